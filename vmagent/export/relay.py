"""Our own relay, for a site that wants its accounting messages over its broker instead of by `ssmsend`.

It takes from the spool as SSM does: in order, one message at a time, and a message is removed only after the broker's
receipt.  So a link that breaks sends one message twice, which its reader takes for one, and lets none overtake.  Nobody
else takes from that spool.  Blocking work is a lane's; the link's `send` waits for the receipt.
"""

from __future__ import annotations

import logging
from typing import Callable, Mapping, Optional, Protocol

from twisted.internet.defer import Deferred

from vmagent.errors import Fault
from vmagent.export.spool import Spool
from vmagent.lanes import Lanes

log = logging.getLogger("vmagent.export")
KEY = "apel"
CALL_S = 30.0
CONTENT_TYPE = "text/plain"


class Sends(Protocol):
    """The part of the link that is needed here."""

    def __call__(self, destination: str, body: bytes, headers: Mapping[str, str]) -> Deferred[None]: ...


class Relay:
    """`look` is called each minute and after each publication."""

    def __init__(self, queue: Spool, lanes: Lanes, send: Sends, up: Callable[[], bool], destination: str) -> None:
        self._queue = queue
        self._lanes = lanes
        self._send = send
        self._up = up
        self._destination = destination
        self._busy = False
        self._begun = False

    async def look(self) -> int:
        """Send what waits, as long as it goes; how many messages went.  A link that is down is no failure."""
        if self._busy:
            return 0
        self._busy = True
        try:
            return await self._all()
        finally:
            self._busy = False

    async def _all(self) -> int:
        if not self._begun:
            await self._lanes.run(KEY, CALL_S, self._queue.break_locks)
            self._begun = True
        sent = 0
        for name in await self._lanes.run(KEY, CALL_S, self._queue.untaken):
            if not self._up() or not await self._one(name):
                break
            sent += 1
        return sent

    async def _one(self, name: str) -> bool:
        text: Optional[bytes] = await self._lanes.run(KEY, CALL_S, self._queue.read, name)
        if text is not None:
            try:
                await self._send(self._destination, text, {"content-type": CONTENT_TYPE, "empa-id": name})
            except Fault as fault:
                log.warning("accounting message %s is sent again later: %s", name, fault)
                return False
        await self._lanes.run(KEY, CALL_S, self._queue.drop, name)
        return True
