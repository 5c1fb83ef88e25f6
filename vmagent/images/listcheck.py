"""From the bytes of an image list to a verified one.  Blocking: for a lane's thread.

Two occasions.  `taken`: a text that just came; everything is asked, in the order of FORMATS 6.3, and what fails leaves
the known list in use.  `again`: the copy that was taken before, after a restart or when the CA directory changed; it
is never thrown away for what time did to it, but it becomes void when its certificate is not believed any more.  A
revocation list that is missing or out of date says nothing about the signer: then the copy counts on, to its own end,
and that is told.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Optional, Tuple

from vmagent.core import trust, walltime
from vmagent.core.imagelist import ImageList, parse
from vmagent.core.policy import ListSource
from vmagent.core.trust import Signature, VerifiedList
from vmagent.errors import Problem
from vmagent.images.listsignature import Endorsers, opened

SAYS_NOTHING = ("crl-missing", "crl-expired")


@dataclass(frozen=True)
class Checked:
    """A list as it stands; certificates: PEM, the signer's first, none for a plain list.

    doubt: why its signer is not believed, or could not be checked, now; None = he is.
    """

    verified: VerifiedList
    certificates: Tuple[bytes, ...] = ()
    doubt: Optional[Problem] = None


def taken(
    raw: bytes, source: ListSource, endorsers: Endorsers, known: Optional[ImageList], now_s: float, skew_s: float
) -> Checked:
    """A list that just came.  Problems: those of `trust.accepted`, list-format, and those of certificates."""
    content, signature, certificates = _opened(raw, source, endorsers)
    if signature is not None:
        endorsers.check(certificates, now_s)
    fresh = _parsed(content)
    trust.accepted(fresh, signature, source, known, now_s, skew_s)
    signer = signature.subject if signature else ""
    return Checked(VerifiedList(fresh, walltime.text(now_s), signer), certificates)


def again(raw: bytes, source: ListSource, endorsers: Endorsers, now_s: float) -> Checked:
    """The copy that was taken before.  Problems: list-signature, list-format: it is not what was written here."""
    content, signature, certificates = _opened(raw, source, endorsers)
    lst = _parsed(content)
    if lst.identifier != source.identifier:
        raise Problem("list-format", f"the kept copy of list {source.identifier} is list {lst.identifier}")
    verified = VerifiedList(lst, walltime.text(now_s), signature.subject if signature else "")
    return believed(Checked(verified, certificates), endorsers, now_s)


def believed(one: Checked, endorsers: Endorsers, now_s: float) -> Checked:
    """The same list, its signer checked now; the reason that he is not believed makes it void."""
    verified = dataclasses.replace(one.verified, void_type="", void_why="")
    if not one.certificates:
        return one
    try:
        endorsers.check(one.certificates, now_s)
    except Problem as problem:
        if problem.type not in SAYS_NOTHING:
            verified = dataclasses.replace(verified, void_type=problem.type, void_why=problem.detail)
        return Checked(verified, one.certificates, problem)
    return Checked(verified, one.certificates)


def _opened(
    raw: bytes, source: ListSource, endorsers: Endorsers
) -> Tuple[bytes, Optional[Signature], Tuple[bytes, ...]]:
    if source.signature == "none":
        return raw, None, ()
    message = opened(raw)
    return message.content, endorsers.signature(message.certificates), message.certificates


def _parsed(content: bytes) -> ImageList:
    try:
        return parse(content)
    except ValueError as wrong:
        raise Problem("list-format", f"not an image list: {wrong}") from None
