"""Which golden image a start means, and whether it may be used here: the site's catalogue and the lists it takes.

A name can stand in several places: the first that is trusted is taken, the site's own before those of lists.  Who
endorsed the image then goes into the wish (ImageRef), so that it is known for as long as the VM runs (rule 1 of
trust.py: another list may endorse it later, the wish tells what was true at its admission).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Optional, Tuple

from vmagent.core import trust
from vmagent.core.imagemodel import FORMATS, LIST, ImageRecord
from vmagent.core.model import ImageRef
from vmagent.core.policy import Policy
from vmagent.core.trust import VerifiedList
from vmagent.errors import Problem

MOST_NAMES = 50
PATH = "args.image.id"


@dataclass(frozen=True)
class Endorsements:
    """What is known of endorsement when a start is decided."""

    lists: Mapping[str, VerifiedList] = field(default_factory=dict)  # by identifier, as last verified
    now_wall: str = ""


NONE = Endorsements()
"""No list at all."""


@dataclass(frozen=True)
class StartImage:
    """A trusted image; minimum_disk_gib: the smallest disk that it is known to fit on."""

    ref: ImageRef
    minimum_disk_gib: int = 1


def chosen(id: str, policy: Policy, known: Endorsements, vo: Optional[str], path: str = PATH) -> StartImage:
    """The image of this name for an owner of this VO; None = the owner is not known, so no VO is asked about.

    Problems: `unknown-image`, `not-supported-here` (its format), and those of `trust.verdict`: the first place's.
    """
    found = trust.candidates(id, policy.images, known.lists, policy.trust)
    if not found:
        names = _names(policy, known)
        detail = f"there is no image {id}; there is {', '.join(names) or 'none'}"
        raise Problem("unknown-image", detail, path=path, accepted=list(names))
    reasons = []
    for record in found:
        reason = _reason(record, policy, known, vo)
        if reason is None:
            return _start_image(record, policy, known)
        reasons.append(reason)
    raise Problem(reasons[0].type, reasons[0].detail, path=path, **reasons[0].fields)


def _names(policy: Policy, known: Endorsements) -> Tuple[str, ...]:
    listed = {image.id for source in policy.trust.lists if source.identifier in known.lists
              for image in known.lists[source.identifier].list.images}  # fmt: skip
    return tuple(sorted({*policy.images, *listed})[:MOST_NAMES])


def _reason(record: ImageRecord, policy: Policy, known: Endorsements, vo: Optional[str]) -> Optional[Problem]:
    if record.format not in FORMATS:
        detail = f"image {record.id} is a {record.format}; taken are {', '.join(FORMATS)}"
        return Problem("not-supported-here", detail, accepted=list(FORMATS))
    return trust.verdict(record, known.lists, policy.trust, known.now_wall, vo)


def _start_image(record: ImageRecord, policy: Policy, known: Endorsements) -> StartImage:
    if record.source == LIST:
        ref = ImageRef(record.id, record.sha512, record.format, record.url, record.size, record.endorser, record.list,
                       record.list_version, LIST)  # fmt: skip
        return StartImage(ref)
    by = endorsed_by(record, policy, known, None) or record
    site = policy.images[record.id]
    ref = ImageRef(record.id, record.sha512, record.format, site.url, site.size, by.endorser, by.list,
                   by.list_version, boot=site.boot)  # fmt: skip
    return StartImage(ref, site.minimum_disk_gib)


def endorsed_by(
    record: ImageRecord, policy: Policy, known: Endorsements, vo: Optional[str]
) -> Optional[ImageRecord]:
    """The entry of a list that has the digest of an image which came from elsewhere, and is trusted itself."""
    for source in policy.trust.lists:
        held = known.lists.get(source.identifier)
        entry = held.list.endorses(record.sha512) if held is not None else None
        if entry is not None and trust.verdict(entry, known.lists, policy.trust, known.now_wall, vo) is None:
            return entry
    return None
