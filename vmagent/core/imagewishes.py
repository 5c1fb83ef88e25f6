"""What was asked of the image cache: image.fetch and image.evict until they are over, and pins (PROTOCOL 3).

Rules

1. A wish is its command's row while that is `accepted`.  So it is stored with its verdict, outlives every crash, and
   its final reply settles it.  Which image is meant was decided when it was taken, and stands in the reply's
   `result.image`.
2. A fetch is over when the file is here; when it cannot be had; when the image is trusted no more; when a later
   image.evict takes it back; and `fetch_by_s` after it was taken, by the wall clock: nobody's run time hangs on it.
3. A pin is about bytes, whatever their name, and holds until it is taken away, whether they are here or not.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Container, Dict, FrozenSet, Iterable, List, Mapping, Optional, Sequence

from vmagent.core import codec, imagechoice, imageviews, startimage, walltime
from vmagent.core.changes import CommandRow
from vmagent.core.imagemodel import Download, ImageFile, ImageRecord, Pin, fetching
from vmagent.core.model import ImageRef, Now, VmRecord
from vmagent.core.policy import Policy
from vmagent.core.startimage import Endorsements
from vmagent.errors import Problem

FETCH, EVICT = "image.fetch", "image.evict"
FETCH_BY_S = 86400
MOST_FETCHES = 64
"""Fetches under way at one time: each may take the whole size limit of an image."""

MOST_PINS = 256
PINS = "pinned_images"  # the setting that holds them, by SHA-512
MOST_NAMED = 20


# ---- which image ----


def wanted(args: Mapping[str, Any], policy: Policy, known: Endorsements) -> ImageRef:
    """The image that a schema-valid image.fetch names, trusted now.

    Problems: `unknown-image`, `image-url`, `not-supported-here`, those of `trust.verdict`.
    """
    if "url" in args:
        return imagechoice.described(args, policy, known, None, "args").ref
    return startimage.chosen(args["id"], policy, known, None, "args.id").ref


def meant(args: Mapping[str, Any], told: Sequence[ImageRecord], here: Container[str]) -> ImageRecord:
    """The image that is named by `id` or `sha512`; of several with one id the one that is here.

    Problems: `unknown-image`, `ambiguous`.
    """
    name = "id" if "id" in args else "sha512"
    found = [one for one in told if getattr(one, name) == args[name]]
    if not found:
        names = sorted({one.id for one in told})[: startimage.MOST_NAMES]
        detail = f"there is no image {args[name]}; there is {', '.join(names) or 'none'}"
        raise Problem("unknown-image", detail, path=f"args.{name}", accepted=names)
    found = [one for one in found if one.sha512 in here] or found
    digests = sorted({one.sha512 for one in found})
    if len(digests) > 1:
        detail = f"{args['id']} is the name of {len(digests)} images here; name one by its sha512"
        raise Problem("ambiguous", detail, path="args.id", accepted=digests)
    return found[0]


def evictable(image: ImageRecord, pin: Optional[Pin], records: Sequence[VmRecord]) -> None:
    """Problems `image-pinned`, and `image-in-use` with `vms`: wishes that stand on the file, or will."""
    if pin is not None:
        raise Problem("image-pinned", f"image {image.id} was pinned by {pin.by}: {pin.why or 'no reason was given'}; "
                      "take the pin away first", image=image.id, by=pin.by, at=pin.wall)
    on_it = [one for one in records if not one.closed and one.spec.image.url and one.spec.image.sha512 == image.sha512]
    if on_it:
        vms = [{"vm": one.vm, "name": one.spec.name, "owner": one.spec.owner.subject} for one in on_it[:MOST_NAMED]]
        detail = f"image {image.id} is used by {len(on_it)} VMs: {', '.join(one['vm'] for one in vms)}"
        raise Problem("image-in-use", detail, image=image.id, vms=vms)


# ---- wishes ----


def pending(rows: Iterable[CommandRow], verb: str) -> List[CommandRow]:
    """The commands of this verb that are not over, oldest first."""
    found = [row for row in rows if row.status == "accepted" and row.schema.split("/")[0] == verb]
    return sorted(found, key=lambda row: (row.received_wall, row.id))


def asked_for(image: ImageRef) -> Dict[str, Any]:
    """The `result` of a wish that was taken."""
    return {"image": codec.plain(image)}


def about(row: CommandRow) -> ImageRef:
    """The image that this wish is about."""
    return ImageRef(**row.reply["result"]["image"])


def late(row: CommandRow, now: Now) -> bool:
    """Whether the time for this fetch is over."""
    by_s = float(row.args.get("fetch_by_s", FETCH_BY_S))
    return walltime.seconds(now.wall) >= walltime.seconds(row.received_wall) + by_s


def progressed(row: CommandRow, download: Optional[Download], why: str) -> CommandRow:
    """The row with how far its fetch is; the same when that is no news.  why: of the last failure, "" = none."""
    how_far = fetching(download) if download is not None else None
    before: Mapping[str, Any] = row.reply["result"]
    result = {"image": before["image"], "fetch": codec.plain(how_far), "why": why or None}
    return row if result == before else dataclasses.replace(row, reply={**row.reply, "result": result})


def done(row: CommandRow, file: Optional[ImageFile]) -> CommandRow:
    """It is over, and well.  file: of a fetch."""
    result = {"image": row.reply["result"]["image"], **({"cached": imageviews.cached(file)} if file else {})}
    return dataclasses.replace(row, status="done", reply={"command": row.id, "status": "done", "result": result})


def failed(row: CommandRow, problem: Problem) -> CommandRow:
    """It is over, and not well."""
    result = {"image": row.reply["result"]["image"]}
    reply = {"command": row.id, "status": "failed", "result": result, "problem": problem.as_json()}
    return dataclasses.replace(row, status="failed", reply=reply)


# ---- pins ----


def pins(settings: Mapping[str, Any]) -> Dict[str, Pin]:
    """By SHA-512."""
    return {sha512: Pin(**said) for sha512, said in (settings.get(PINS) or {}).items()}


def setting(pinned: Mapping[str, Pin]) -> Optional[Mapping[str, Any]]:
    """How they are stored; None = there is none."""
    return codec.plain(pinned) if pinned else None


def kept(settings: Mapping[str, Any], rows: Iterable[CommandRow]) -> FrozenSet[str]:
    """SHA-512s of what must stay in the cache though no VM uses it: pinned, or asked for and not told yet."""
    return frozenset(settings.get(PINS) or ()) | {about(row).sha512 for row in pending(rows, FETCH)}
