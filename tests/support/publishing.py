"""A publisher of accounting over kept rows, for tests: its store can fail, its clock is set by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from dirq.QueueSimple import QueueSimple
from twisted.internet.defer import Deferred, fail, succeed

from tests.support.lanes import HandTurned, lane
from vmagent.core import walltime
from vmagent.core.model import Now
from vmagent.core.usagemodel import UsageRow
from vmagent.errors import Fault, FaultKind
from vmagent.export.apel import Publisher, Queues
from vmagent.export.smime import Signer
from vmagent.export.spool import Spool
from vmagent.render import apel

GONE = Fault(FaultKind.AWAY, "the store is away")


class KeptRows:
    """The part of the store that publishing needs: contract as ports.Store's."""

    def __init__(self) -> None:
        self.rows: List[UsageRow] = []
        self.marks: Dict[str, int] = {}
        self.failing = False

    def add(self, data: Mapping[str, Any]) -> None:
        number = len(self.rows) + 1
        self.rows.append(UsageRow(number, data["vm"], data["segment"], data["period"], data["from"], data["to"], data))

    def usage(
        self, after: int, limit: int, vm: str = "", since: str = "", until: str = ""
    ) -> Deferred[Tuple[UsageRow, ...]]:
        if self.failing:
            return fail(GONE)
        found = [row for row in self.rows if row.row > after and (not vm or row.vm == vm)
                 and (not since or row.to_wall > since) and (not until or row.from_wall < until)]
        return succeed(tuple(found[:limit]))

    def exported(self) -> Deferred[Mapping[str, int]]:
        return succeed(dict(self.marks))

    async def mark(self, row: int) -> None:
        if self.failing:
            raise GONE
        self.marks["apel"] = row


class HandClock:
    def __init__(self, wall: str) -> None:
        self.wall = wall

    def now(self) -> Now:
        return Now(1.0, self.wall, "boot")


class Publishing:
    """All of it in one directory; a second one there is the next run of the agent."""

    def __init__(
        self, here: Path, rows: Optional[KeptRows] = None, wall: str = "2026-11-21T10:05:00.000Z",
        signer: Optional[Signer] = None, every_s: int = 86400, extra: bool = False,
    ) -> None:  # fmt: skip
        self.here = here
        self.rows = rows or KeptRows()
        self.clock = HandClock(wall)
        self.reactor = HandTurned()
        self.lanes = lane(self.reactor, "publishing")
        self.troubles: List[str] = []
        self.spool = Spool(here / "outgoing", here / "archive")
        queues = Queues(self.spool)
        if extra:
            queues = Queues(self.spool, *(Spool(here / name, here / f"archive-{name}") for name in ("ip", "star")))
        self.publisher = Publisher(
            self.rows, queues, apel.Publisher("EXAMPLE-SITE", "vmagent"), signer, self.lanes, self.clock,
            self.rows.mark, self.troubles.append, {"data": 2**30}.get, every_s, 0,
        )  # fmt: skip

    def settle(self, work: Any) -> Any:
        return self.reactor.settle(Deferred.fromCoroutine(work))

    def publish(self) -> Any:
        return self.settle(self.publisher.publish())

    def at(self, wall: str) -> None:
        self.clock.wall = walltime.text(walltime.seconds(wall))

    def stop(self) -> None:
        self.lanes.stop()


def sent(directory: Path, most: int = 10**6) -> List[str]:
    """What the site's relay takes now, in its order."""
    queue, texts = QueueSimple(str(directory)), []
    name = queue.first()
    while name and len(texts) < most:
        if queue.lock(name):
            texts.append(queue.get(name).decode("ascii"))
            queue.remove(name)
        name = queue.next()
    return texts
