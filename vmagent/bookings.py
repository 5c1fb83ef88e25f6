"""What accounting has decided and the store does not hold yet, in order.

Memory goes on whatever the store does: a period that is closed is closed, and waits here with its message until it is
stored.  A commit whose outcome is unknown is made again as it was, so the same period never has two contents.
"""

from __future__ import annotations

import logging
from typing import Deque, List, Sequence, Tuple

from twisted.internet.defer import DeferredLock

from vmagent.core.changes import Change
from vmagent.errors import Fault
from vmagent.world import World

log = logging.getLogger("vmagent.accounting")
AT_ONCE = 100
"""Changes in one commit, about: an edge with 500 guests must not hold up a command."""


class Bookings:
    """A queue of commits."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._waiting: Deque[Sequence[Change]] = Deque()
        self._lock: DeferredLock = DeferredLock()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, together: Sequence[Sequence[Change]]) -> None:
        """Each of these lands whole or not at all; several may share a commit."""
        batch: List[Change] = []
        for changes in together:
            batch += changes
            if len(batch) >= AT_ONCE:
                self._waiting.append(tuple(batch))
                batch = []
        if batch:
            self._waiting.append(tuple(batch))

    async def flush(self) -> None:
        """Store what waits, oldest first.  Fault when the store fails; what is left waits for the next call."""
        await self._lock.acquire()
        try:
            while self._waiting:
                await self._world.transact(self._oldest)
                self._waiting.popleft()
        finally:
            self._lock.release()

    async def _oldest(self) -> Tuple[Sequence[Change], None]:
        return self._waiting[0], None

    async def try_flush(self) -> bool:
        """The same, and a failure is only told; whether nothing waits any more."""
        try:
            await self.flush()
        except Fault as fault:
            log.warning("usage waits for the store (%d commits): %s", len(self._waiting), fault)
        return not self._waiting
