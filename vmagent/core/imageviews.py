"""Images as people and programs see them: image.list and `vmagentctl images` show the same (PROTOCOL 2, 3).

An image is here by its SHA-512 and its id: what the site, a list or a request tells of, and what a guest runs on,
or the cache holds, although nobody tells of it any more (source "gone").
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from vmagent.core import codec, trust
from vmagent.core.changes import CommandRow
from vmagent.core.imagemodel import LIST, REQUEST, Download, ImageFile, ImageRecord, Kept, Pin, Revocation, nameless
from vmagent.core.model import Now, Phase, VmRecord
from vmagent.core.policy import CatalogueImage
from vmagent.core.revocation import Distrust, against, record_of, version
from vmagent.core.trust import VerifiedList

GONE = "gone"
MOST_REVOCATIONS = 1000
"""Of the newest versions; older ones hold all the same."""

Key = Tuple[str, str]


def known(
    catalogue: Mapping[str, CatalogueImage], records: Sequence[VmRecord], lists: Mapping[str, VerifiedList],
    kept: Kept,
) -> Tuple[ImageRecord, ...]:
    """Every image that there is something to say about, by id."""
    found: Dict[Key, ImageRecord] = {(one.id, one.sha512): trust.of_catalogue(one) for one in catalogue.values()}
    for held in lists.values():
        for one in held.list.images:
            found.setdefault((one.id, one.sha512), one)
    for record in users(records):
        image = record.spec.image
        gone = dataclasses.replace(record_of(image), source=GONE)
        found.setdefault((image.id, image.sha512), record_of(image) if image.source == REQUEST else gone)
    named = {sha512 for _, sha512 in found}
    for sha512 in sorted({*kept.files, *kept.pins} - named):
        gone = _nameless(sha512, kept)
        found[(gone.id, sha512)] = gone
    return tuple(one for _, one in sorted(found.items()))


def _nameless(sha512: str, kept: Kept) -> ImageRecord:
    """What only the cache, or a pin, knows of."""
    file, pin = kept.files.get(sha512), kept.pins.get(sha512)
    return ImageRecord(pin.id if pin else nameless(sha512), sha512, file.file_format if file else "", GONE)


def here(told: Sequence[ImageRecord], records: Sequence[VmRecord], kept: Kept) -> Tuple[ImageRecord, ...]:
    """Those that are more than a line in a list: the site's own, in use, in the cache, or pinned."""
    used = {(record.spec.image.id, record.spec.image.sha512) for record in users(records)}
    return tuple(one for one in told if one.source != LIST or one.sha512 in kept.files or one.sha512 in kept.pins
                 or (one.id, one.sha512) in used)  # fmt: skip


def users(records: Sequence[VmRecord]) -> List[VmRecord]:
    """Those that hold on to their image: wishes that have not ended.  What an adopted guest runs on, nobody knows."""
    return [one for one in records if one.outcome is None and not one.closed and not one.spec.adopted]


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


def cached(file: ImageFile) -> Dict[str, Any]:
    """The file that the cache holds; its SHA-512 is another one than the image's where it was converted."""
    return {"size": file.size, "virtual_size": file.virtual_size, "format": file.file_format,
            "sha512": file.file_sha512, "last_used": file.last_used_wall or None}  # fmt: skip


def pinned(pin: Pin) -> Dict[str, Any]:
    """Who wants it kept, and why."""
    return {"by": pin.by, "why": pin.why, "at": pin.wall}


def image(
    told: ImageRecord, said: Optional[Revocation], distrust: Optional[Distrust], running: int, kept: Kept
) -> Dict[str, Any]:
    """The `data` of image.state.  running: wishes that have not ended."""
    file, pin = kept.files.get(told.sha512), kept.pins.get(told.sha512)
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
        "cached": cached(file) if file else None,
        "pinned": pinned(pin) if pin else None,
    }


def news(view: Mapping[str, Any]) -> Dict[str, Any]:
    """What of `image` is worth telling when it changes: every start changes how many run on it, and its last use."""
    file = view["cached"]
    stays = {name: value for name, value in view.items() if name not in ("running", "cached")}
    return {**stays, "cached": file and {name: value for name, value in file.items() if name != "last_used"}}


def downloads(
    under_way: Sequence[Download], records: Mapping[str, VmRecord], pending: Mapping[str, CommandRow], now: Now
) -> Dict[str, Any]:
    """`downloads` of the local socket -> {downloads: [{id, sha512, url, step, done, total, percent, since_s, for}]}.

    done, total in bytes; total and percent null = not known; for: [{vm, name, owner} | {command, by}].
    """
    return {"downloads": [_download(one, records, pending, now) for one in under_way]}


def _download(
    one: Download, records: Mapping[str, VmRecord], pending: Mapping[str, CommandRow], now: Now
) -> Dict[str, Any]:
    id, whom = nameless(one.sha512), []
    for who in one.waiting:
        if who in records:
            spec = records[who].spec
            id = spec.image.id
            whom.append({"vm": who, "name": spec.name, "owner": spec.owner.subject})
        elif who in pending:
            id = pending[who].reply["result"]["image"]["id"]
            whom.append({"command": who, "by": pending[who].signer})
    return {
        "id": id, "sha512": one.sha512, "url": one.url, "step": one.step, "done": one.done, "total": one.total or None,
        "percent": min(100, one.done * 100 // one.total) if one.total else None,
        "since_s": max(0, round(now.at - one.since)), "for": whom,
    }  # fmt: skip


def listing(
    told: Sequence[ImageRecord],
    records: Sequence[VmRecord],
    revocations: Mapping[str, Revocation],
    distrust: Callable[[ImageRecord], Optional[Distrust]],
    kept: Kept,
) -> Dict[str, Any]:
    """Everything: the images, and what the site said against some, known here or not; newest first."""
    newest = sorted(revocations.values(), key=lambda one: one.version, reverse=True)
    return {
        "images": [image(one, against(one, revocations), distrust(one), len(on(one, records)), kept) for one in told],
        "revocations": [revocation(one) for one in newest[:MOST_REVOCATIONS]],
        "revocation_version": version(revocations),
    }  # fmt: skip
