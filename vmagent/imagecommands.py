"""Verbs on images: what is known of them, what is wanted of the cache, and what the site says against one (PROTOCOL 3).

A revocation is stored before anything is done about it, known to this host or not: an image that comes later is refused
all the same.  Versions are the site's: redelivery may reorder, so an older one about the same image is refused.
A fetch or an eviction is a wish, which imagekeeping.py fulfils (imagewishes.py has the rules).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

from vmagent.consequences import Consequences, settlement, unseen
from vmagent.core import events, imageviews, imagewishes
from vmagent.core.changes import Change, PutRevocation, PutSetting
from vmagent.core.commands import Command
from vmagent.core.imagemodel import ImageRecord, Kept, Pin, Revocation
from vmagent.core.model import ImageRef, Now, VmRecord
from vmagent.core.revocation import record_of, version
from vmagent.core.startimage import Endorsements
from vmagent.errors import Problem
from vmagent.imagekeeping import ImageKeeper
from vmagent.revoking import Revoker
from vmagent.world import World


@dataclass(frozen=True)
class Effect:
    """What a command means.  status: "done", or "accepted" when there is something to be done first."""

    result: Mapping[str, Any]
    changes: Sequence[Change] = ()
    status: str = "done"


class ImageCommands:
    """Decides image.* commands, inside the intake's transaction."""

    def __init__(self, world: World, consequences: Consequences, revoker: Revoker, keeper: ImageKeeper) -> None:
        self._world = world
        self._consequences = consequences
        self._revoker = revoker
        self._keeper = keeper
        self._effects: Mapping[str, Callable[[Command, Now], Effect]] = {
            "image.list": lambda command, now: Effect(self.listing(now)),
            "image.fetch": self._fetch,
            "image.evict": self._evict,
            "image.pin": self._pin,
            "image.unpin": self._unpin,
            "image.revoke": self._revoke,
        }

    async def look(self) -> None:
        """Before a decision: what the cache holds now."""
        await self._keeper.look()

    def effect(self, command: Command, now: Now) -> Effect:
        """Problems: `superseded`, those of imagewishes.py, `image-not-cached`, `image-limit`."""
        return self._effects[command.verb](command, now)

    async def after(self, verb: str) -> None:
        """The command is committed: reach what runs, or do what is wanted."""
        if verb == "image.revoke":
            await self._revoker.look()
        self._keeper.wake()

    # -- looking

    def listing(self, now: Now) -> Dict[str, Any]:
        """What image.list answers."""
        return self._views(self._known(), now)

    def here(self, now: Now) -> Sequence[Mapping[str, Any]]:
        """The images that host.snapshot and image.state tell of: not those that only stand in a list."""
        told = imageviews.here(self._known(), self._records(), self._kept())
        views: Sequence[Mapping[str, Any]] = self._views(told, now)["images"]
        return views

    def running(self) -> List[Dict[str, Any]]:
        """VM by VM, on which image it runs."""
        return [self._user(record) for record in imageviews.users(self._records())]

    def _views(self, told: Sequence[ImageRecord], now: Now) -> Dict[str, Any]:
        return imageviews.listing(told, self._records(), self._world.revocations,
                                  lambda one: self._consequences.distrust_of(one, now), self._kept())

    def _records(self) -> List[VmRecord]:
        return list(self._world.records.values())

    def _kept(self) -> Kept:
        return Kept(self._world.files, imagewishes.pins(self._world.settings))

    def _known(self) -> Tuple[ImageRecord, ...]:
        return imageviews.known(self._consequences.policy.images, self._records(), self._world.lists, self._kept())

    def _user(self, record: VmRecord) -> Dict[str, Any]:
        seen = self._world.observed.get(record.vm) or unseen(record.vm)
        return imageviews.user(record, events.phase(record, seen))

    # -- the cache

    def _fetch(self, command: Command, now: Now) -> Effect:
        known = Endorsements(self._world.lists, now.wall)
        image = imagewishes.wanted(command.args, self._consequences.policy, known)
        distrust = self._consequences.distrust_of(record_of(image), now)
        if distrust is not None:
            raise distrust.problem
        result = imagewishes.asked_for(image)
        if not image.url:
            return Effect({**result, "cached": None})  # a file of the site's own, which is never fetched
        file = self._world.files.get(image.sha512)
        if file is not None:
            return Effect({**result, "cached": imageviews.cached(file)})
        if len(imagewishes.pending(self._world.pending.values(), imagewishes.FETCH)) >= imagewishes.MOST_FETCHES:
            raise _full("fetches are under way", imagewishes.MOST_FETCHES)
        return Effect(result, status="accepted")

    def _evict(self, command: Command, now: Now) -> Effect:
        image = self._meant(command)
        imagewishes.evictable(image, self._kept().pins.get(image.sha512), self._records())
        fetches = [row for row in imagewishes.pending(self._world.pending.values(), imagewishes.FETCH)
                   if imagewishes.about(row).sha512 == image.sha512]  # fmt: skip
        if image.sha512 not in self._world.files and not fetches:
            raise _not_cached(image)
        changes: List[Change] = []
        for row in fetches:
            problem = Problem("superseded", f"a later image.evict of {command.signer.subject} takes it back")
            changes += settlement(imagewishes.failed(row, problem), now)
        return Effect(imagewishes.asked_for(_ref(image)), changes, "accepted")

    def _pin(self, command: Command, now: Now) -> Effect:
        image, pins = self._meant(command), imagewishes.pins(self._world.settings)
        if not image.url and image.sha512 not in self._world.files and image.sha512 not in pins:
            raise _not_cached(image)
        if image.sha512 in pins:
            return Effect(_pinned(image, pins[image.sha512]))
        if len(pins) >= imagewishes.MOST_PINS:
            raise _full("images are pinned", imagewishes.MOST_PINS)
        pin = Pin(image.sha512, image.id, command.signer.subject, command.reason, now.wall)
        stored = imagewishes.setting({**pins, image.sha512: pin})
        return Effect(_pinned(image, pin), [PutSetting(imagewishes.PINS, stored)])

    def _unpin(self, command: Command, now: Now) -> Effect:
        image, pins = self._meant(command), imagewishes.pins(self._world.settings)
        if image.sha512 not in pins:
            return Effect({**imagewishes.asked_for(_ref(image)), "pinned": None})
        left = {sha512: pin for sha512, pin in pins.items() if sha512 != image.sha512}
        return Effect({**imagewishes.asked_for(_ref(image)), "pinned": None},
                      [PutSetting(imagewishes.PINS, imagewishes.setting(left))])

    def _meant(self, command: Command) -> ImageRecord:
        kept = self._kept()
        named = kept.pins if command.verb == "image.unpin" else kept.files
        return imagewishes.meant(command.args, self._known(), named)

    # -- revocation

    def _revoke(self, command: Command, now: Now) -> Effect:
        args, revocations = command.args, self._world.revocations
        said = Revocation(
            id=args.get("id", ""), sha512=args.get("sha512", ""),
            version=args.get("version", version(revocations) + 1), action=args.get("action", "forbid"),
            by=command.signer.subject, why=args.get("why") or command.reason, wall=now.wall,
        )  # fmt: skip
        before = revocations.get(said.key)
        if before is not None and said.version <= before.version:
            if (said.version, said.action) != (before.version, before.action):
                detail = f"this host knows version {before.version} about this image: {before.action}"
                raise Problem("superseded", detail, path="args.version", current=before.version)
            said = before
        users = imageviews.on(said, self._records())
        return Effect({
            "revocation": imageviews.revocation(said),
            "revocation_version": max(said.version, version(revocations)),
            "vms": [self._user(record) for record in users],
        }, [] if said is before else [PutRevocation(said)])  # fmt: skip


def _ref(image: ImageRecord) -> ImageRef:
    return ImageRef(image.id, image.sha512, image.format, image.url, image.size, image.endorser, image.list,
                    image.list_version, image.source)  # fmt: skip


def _pinned(image: ImageRecord, pin: Pin) -> Dict[str, Any]:
    return {**imagewishes.asked_for(_ref(image)), "pinned": imageviews.pinned(pin)}


def _not_cached(image: ImageRecord) -> Problem:
    what = "no file of it is in the cache" if image.url else "a file of the site's own, which is not the cache's"
    return Problem("image-not-cached", f"image {image.id}: {what}", image=image.id)


def _full(what: str, most: int) -> Problem:
    return Problem("image-limit", f"{most} {what} already, which is as many as this host takes", maximum=most)
