"""Images as people and programs see them: image.list and `vmagentctl images` show the same (PROTOCOL 2, 3).

An image is here by its SHA-512 and its id: what the site, a list or a request tells of, and what a guest runs on
although nobody tells of it any more (source "gone").
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from vmagent.core import codec, trust
from vmagent.core.imagemodel import ImageRecord, Revocation
from vmagent.core.model import Phase, VmRecord
from vmagent.core.policy import CatalogueImage
from vmagent.core.revocation import Distrust, against, record_of, version
from vmagent.core.trust import VerifiedList

GONE = "gone"
MOST_REVOCATIONS = 1000
"""Of the newest versions; older ones hold all the same."""

Key = Tuple[str, str]


def known(
    catalogue: Mapping[str, CatalogueImage], records: Sequence[VmRecord], lists: Mapping[str, VerifiedList]
) -> Tuple[ImageRecord, ...]:
    """Every image that there is something to say about, by id."""
    found: Dict[Key, ImageRecord] = {(one.id, one.sha512): trust.of_catalogue(one) for one in catalogue.values()}
    for held in lists.values():
        for one in held.list.images:
            found.setdefault((one.id, one.sha512), one)
    for record in users(records):
        image = record.spec.image
        gone = dataclasses.replace(record_of(image), source=GONE)
        found.setdefault((image.id, image.sha512), record_of(image) if image.url and not image.list else gone)
    return tuple(one for _, one in sorted(found.items()))


def users(records: Sequence[VmRecord]) -> List[VmRecord]:
    """Those that hold on to their image: wishes that have not ended."""
    return [record for record in records if record.outcome is None and not record.closed]


def on(image: Any, records: Sequence[VmRecord]) -> List[VmRecord]:
    """The users of `image`, which has an id and a sha512; an empty one matches every one."""
    return [record for record in users(records)
            if image.id in ("", record.spec.image.id) and image.sha512 in ("", record.spec.image.sha512)]  # fmt: skip


def user(record: VmRecord, phase: Phase) -> Dict[str, Any]:
    """Who runs on what (R16)."""
    spec = record.spec
    return {
        "vm": spec.vm,
        "name": spec.name,
        "phase": phase.value,
        "owner": {"subject": spec.owner.subject, "fqan": spec.owner.fqan, "vo": spec.owner.vo},
        "controller": spec.controller,
        "image": codec.plain(spec.image),
        "distrust": record.journal.image_cause,
        "done": record.journal.image_action,
    }


def revocation(said: Revocation) -> Dict[str, Any]:
    """One revocation."""
    return {"id": said.id, "sha512": said.sha512, "version": said.version, "action": said.action, "by": said.by,
            "why": said.why, "at": said.wall}  # fmt: skip


def image(told: ImageRecord, said: Optional[Revocation], distrust: Optional[Distrust], running: int) -> Dict[str, Any]:
    """The `data` of image.state.  running: wishes that have not ended."""
    return {
        "id": told.id,
        "sha512": told.sha512,
        "format": told.format,
        "size": told.size or None,
        "source": told.source,
        "url": told.url or None,
        "endorser": told.endorser or None,
        "list": told.list or None,
        "list_version": told.list_version or None,
        "created": told.created_wall or None,
        "expires": told.expires_wall or None,
        "revoked": revocation(said) if said else None,
        "trusted": distrust is None,
        "problem": distrust.problem.as_json() if distrust else None,
        "running": running,
    }


def listing(
    told: Sequence[ImageRecord],
    records: Sequence[VmRecord],
    revocations: Mapping[str, Revocation],
    distrust: Callable[[ImageRecord], Optional[Distrust]],
) -> Dict[str, Any]:
    """Everything: the images, and what the site said against some, known here or not; newest first."""
    newest = sorted(revocations.values(), key=lambda one: one.version, reverse=True)
    return {
        "images": [image(one, against(one, revocations), distrust(one), len(on(one, records))) for one in told],
        "revocations": [revocation(one) for one in newest[:MOST_REVOCATIONS]],
        "revocation_version": version(revocations),
    }  # fmt: skip
