"""Fulfils what is wanted of the image cache: fetches and evictions, one look after the other.

Rules

1. Level-triggered, as the loop is: a look takes every wish that is not over (imagewishes.py), compares it with what the
   cache holds, and asks for what is missing.  Start-up is the first look; `kill -9` at any point costs another one.
2. It looks when a command was taken, when a download is over, when lists or the policy change, once a minute, and every
   LOOK_S while something is wanted.  So progress is told at most that often, and in tens of percent.
3. A final reply is committed before the download is let go.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any, Awaitable, Callable, List, Optional, Protocol, Sequence, Set, Tuple

from vmagent import ports
from vmagent.consequences import Consequences, settlement
from vmagent.core import imagewishes
from vmagent.core.changes import Change, CommandRow, PutCommand, SendReply
from vmagent.core.imagemodel import Download
from vmagent.core.model import ImageRef, Now
from vmagent.core.revocation import record_of
from vmagent.errors import Fault, FaultKind, Problem
from vmagent.log import event
from vmagent.world import World

log = logging.getLogger("vmagent.imagekeeping")
LOOK_S = 5.0


class Timer(Protocol):
    """The part of the reactor that this needs."""

    def callLater(self, delay: float, call: Any, *args: Any) -> Any: ...


class ImageKeeper:
    """begin: runs a coroutine that nobody waits for."""

    def __init__(
        self, world: World, consequences: Consequences, images: ports.Images, clock: ports.Clock, timer: Timer,
        begin: Callable[[Any], None],
    ) -> None:
        self._world = world
        self._consequences = consequences
        self._images = images
        self._clock = clock
        self._timer = timer
        self._begin = begin
        self._told: Callable[[], Awaitable[None]] = _nobody
        self._asked: Set[str] = set()  # commands for which a download was asked
        self._working = False
        self._again = False
        self._waiting: Any = None
        self._stopped = False

    def attend(self, told: Callable[[], Awaitable[None]]) -> None:
        """Who publishes what changed in the cache: made after this."""
        self._told = told

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopped = True
        self._cancel()

    def news(self, who: str) -> None:
        """A download is over that `who` waited for: the cache holds another file now."""
        if who in self._asked:
            self.wake()

    def wake(self) -> None:
        """There may be something to do."""
        if not self._stopped:
            self._begin(self.work())

    async def look(self) -> None:
        """Remember what the cache holds; what cannot be seen now is as it was."""
        try:
            self._world.files = {one.sha512: one for one in await self._images.files()}
        except Fault as fault:
            log.warning("the image cache cannot be read: %s", fault)

    async def work(self) -> None:
        """One look, and what follows from it.  Asked again meanwhile, it looks once more."""
        self._again = True
        if self._working:
            return
        self._working = True
        try:
            while self._again and not self._stopped:
                self._again = False
                await self._turn()
        finally:
            self._working = False
            self._later()

    async def _turn(self) -> None:
        await self.look()
        settled = [await self._fetch(row) for row in self._wishes(imagewishes.FETCH)]
        settled += [await self._evict(row) for row in self._wishes(imagewishes.EVICT)]
        for who in self._asked - {row.id for row in self._wishes(imagewishes.FETCH)}:
            self._asked.discard(who)
            self._images.give_up(who)
        if any(settled):
            await self.look()
            with suppress(Fault):  # published within the minute at the latest
                await self._told()

    def _wishes(self, verb: str) -> List[CommandRow]:
        return imagewishes.pending(self._world.pending.values(), verb)

    def _later(self) -> None:
        self._cancel()
        if not self._stopped and (self._wishes(imagewishes.FETCH) or self._wishes(imagewishes.EVICT)):
            self._waiting = self._timer.callLater(LOOK_S, self._woken)

    def _woken(self) -> None:
        self._waiting = None
        self.wake()

    def _cancel(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()

    # -- one wish; True = it is over

    async def _fetch(self, row: CommandRow) -> bool:
        image, now, why = imagewishes.about(row), self._clock.now(), ""
        problem = self._hindered(image, row, now)
        if problem is None and image.sha512 in self._world.files:
            return await self._settle(row, imagewishes.done(row, self._world.files[image.sha512]))
        if problem is None:
            try:
                self._asked.add(row.id)
                self._images.fetch(row.id, image)
            except Fault as fault:
                why = fault.detail
                if fault.kind in (FaultKind.REFUSED, FaultKind.FULL):
                    problem = Problem("image-not-fetched", why, image=image.id)
        if problem is not None:
            return await self._settle(row, imagewishes.failed(row, problem))
        await self._progress(row, imagewishes.progressed(row, self._download(image), why))
        return False

    def _hindered(self, image: ImageRef, row: CommandRow, now: Now) -> Optional[Problem]:
        distrust = self._consequences.distrust_of(record_of(image), now)
        if distrust is not None:
            return distrust.problem
        if imagewishes.late(row, now) and image.sha512 not in self._world.files:
            return Problem("image-late", f"image {image.id} was not here in time; what came of it is gone on from when "
                           "it is asked for again", image=image.id)
        return None

    def _download(self, image: ImageRef) -> Optional[Download]:
        return next((one for one in self._images.downloads() if one.sha512 == image.sha512), None)

    async def _evict(self, row: CommandRow) -> bool:
        image = imagewishes.about(row)
        try:
            await self._images.evict(image.sha512)
        except Fault as fault:
            if fault.kind is FaultKind.BUSY:
                problem = Problem("image-in-use", f"image {image.id}: {fault.detail}", image=image.id)
                return await self._settle(row, imagewishes.failed(row, problem))
            if fault.kind is not FaultKind.GONE:
                log.warning("image %s is not evicted yet: %s", image.id, fault)
                return False
        else:
            event(log, "image-evicted", f"{image.id}: its file was removed from the cache", image=image.id)
        return await self._settle(row, imagewishes.done(row, None))

    # -- telling

    async def _settle(self, row: CommandRow, over: CommandRow) -> bool:
        return await self._commit(row, lambda: settlement(over, self._clock.now()))

    async def _progress(self, row: CommandRow, on: CommandRow) -> None:
        """The stored reply says how far it is, so a command that is sent again is told that too."""
        if on is row:
            return
        changes: List[Change] = [PutCommand(on)]
        if row.route == "broker":
            changes.append(SendReply(row.reply_to, on.reply))
        await self._commit(row, lambda: changes)

    async def _commit(self, row: CommandRow, changes: Callable[[], List[Change]]) -> bool:
        """Unless somebody else has settled it meanwhile.  What cannot be stored now is found by the next look."""

        async def decide() -> Tuple[Sequence[Change], bool]:
            if self._world.pending.get(row.id) is not row:
                return [], False
            return changes(), True

        try:
            return await self._world.transact(decide)
        except Fault as fault:
            log.warning("what became of %s cannot be recorded yet: %s", row.id, fault)
            return False


async def _nobody() -> None:
    """Nobody publishes."""
