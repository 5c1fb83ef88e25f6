"""An agent's accounting export over a real store, one turn of it: `apel_child.py DIRECTORY HOUR`.

The store gets the hours up to HOUR of one VM; what is there already stays.  Each run publishes once and prints how many
rows are not exported.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict

from twisted.internet.defer import Deferred

from tests.support.lanes import HandTurned, lane
from tests.support.publishing import HandClock
from tests.support.usage_rows import VM, row
from vmagent import apelparts
from vmagent.config import ApelSettings
from vmagent.core import walltime
from vmagent.core.changes import PutUsage
from vmagent.store.store import SqliteStore
from vmagent.world import World

WALL = "2026-11-21T12:05:00.000Z"
MIDNIGHT = walltime.seconds("2026-11-21T00:00:00Z")


def settings(here: Path, **changes: Any) -> ApelSettings:
    members: Dict[str, Any] = {
        "site_name": "EXAMPLE-SITE", "cloud_service": "", "spool": here / "outgoing", "archive": here / "archive",
        "publish_hours": 24, "cpu_duration": "wall", "sign": None, "destination": None, "public_ip_spool": None,
        "storage_spool": None,
    }  # fmt: skip
    return ApelSettings(**{**members, **changes})


def hour(number: int) -> PutUsage:
    begun, end = (walltime.text(MIDNIGHT + 3600 * n) for n in (number - 1, number))
    data = row(begun, end, period=number, started_at="2026-11-21T00:00:00Z")
    return PutUsage(VM, data["segment"], number, begun, end, data)


class Silent:
    def wake(self) -> None: ...

    def publish(self, changes: Any) -> None: ...


class Run:
    """The store open, the world over it, and the export."""

    def __init__(self, here: Path, **changes: Any) -> None:
        self.reactor = HandTurned()
        self.lanes = [lane(self.reactor, name) for name in ("kept", "exported")]
        self.clock = HandClock(WALL)
        self.store = SqliteStore(here / "vmagent.db", self.lanes[0], 1000, 10**7)
        stored = self.reactor.settle(self.store.open(self.clock.now()))
        self.world = World(self.store, Silent(), Silent())
        self.world.load(stored)
        config: Any = SimpleNamespace(
            apel=settings(here, **changes),
            policy=SimpleNamespace(host="wn1"),
        )
        self.link = SimpleNamespace(sent=[], state=lambda: SimpleNamespace(up=True), send=self._send)
        link: Any = self.link
        self.books = apelparts.build(config, self.store, self.world, self.clock, self.lanes[1], link, dict)

    def _send(self, destination: str, body: bytes, headers: Any) -> Deferred[None]:
        self.link.sent.append((destination, body))
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done

    def settle(self, work: Any) -> Any:
        return self.reactor.settle(Deferred.fromCoroutine(work))

    def ask(self, verb: str, **args: Any) -> Any:
        return self.reactor.settle(self.books.queries()[verb](args))

    def stop(self) -> None:
        self.reactor.settle(self.store.close())
        for lanes in self.lanes:
            lanes.stop()

    def used(self, *hours: int) -> None:
        self.reactor.settle(self.store.commit([hour(number) for number in hours]))


def main(here: Path, hours: int) -> None:
    run = Run(here)
    run.used(*range(1, hours + 1))
    run.settle(run.books.turn())
    mark = run.reactor.settle(run.store.exported()).get("apel", 0)
    print(f"unexported {len(run.reactor.settle(run.store.usage(mark, 100)))}", flush=True)
    run.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    sys.exit(0)
