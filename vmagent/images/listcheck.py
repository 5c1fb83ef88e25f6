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
from typing import Optional, Sequence, Tuple

from vmagent.core import trust, walltime
from vmagent.core.imagelist import ImageList, parse
from vmagent.core.policy import ListSource
from vmagent.core.trust import Signature, VerifiedList
from vmagent.errors import Problem
from vmagent.images.listsignature import Endorsers, opened

SAYS_NOTHING = ("crl-missing", "crl-expired")


@dataclass(frozen=True)
class Again:
    """A kept copy looked at again; doubt: why its signer could not be checked now, None = he was."""

    verified: VerifiedList
    doubt: Optional[Problem] = None


def taken(
    raw: bytes, source: ListSource, endorsers: Endorsers, known: Optional[ImageList], now_s: float, skew_s: float
) -> VerifiedList:
    """A list that just came.  Problems: those of `trust.accepted`, list-format, and those of certificates."""
    content, signature, certificates = _opened(raw, source, endorsers)
    if signature is not None:
        endorsers.check(certificates, now_s)
    fresh = _parsed(content)
    trust.accepted(fresh, signature, source, known, now_s, skew_s)
    return VerifiedList(fresh, walltime.text(now_s), signature.subject if signature else "")


def again(raw: bytes, source: ListSource, endorsers: Endorsers, now_s: float) -> Again:
    """The copy that was taken before.  Problems: list-signature, list-format: it is not what was written here."""
    content, signature, certificates = _opened(raw, source, endorsers)
    lst = _parsed(content)
    if lst.identifier != source.identifier:
        raise Problem("list-format", f"the kept copy of list {source.identifier} is list {lst.identifier}")
    verified = VerifiedList(lst, walltime.text(now_s), signature.subject if signature else "")
    try:
        if signature is not None:
            endorsers.check(certificates, now_s)
    except Problem as problem:
        if problem.type in SAYS_NOTHING:
            return Again(verified, problem)
        return Again(dataclasses.replace(verified, void_type=problem.type, void_why=problem.detail), problem)
    return Again(verified)


def _opened(
    raw: bytes, source: ListSource, endorsers: Endorsers
) -> Tuple[bytes, Optional[Signature], Sequence[bytes]]:
    if source.signature == "none":
        return raw, None, ()
    message = opened(raw)
    return message.content, endorsers.signature(message.certificates), message.certificates


def _parsed(content: bytes) -> ImageList:
    try:
        return parse(content)
    except ValueError as wrong:
        raise Problem("list-format", f"not an image list: {wrong}") from None
