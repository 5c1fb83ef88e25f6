"""How the agent fares, on its socket: the age of what waits, of what was taken, and what nobody can find out."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from tests.support import building as b
from tests.support.controlled import fired
from tests.support.fake_link import FakeLink
from vmagent.broker.outbox import Outbox
from vmagent.channel import Channel
from vmagent.condition import Condition
from vmagent.core.changes import OutboxRow
from vmagent.errors import Fault, FaultKind
from vmagent.world import World

AT_S = 1030.0


class Spool:
    """A store with these rows waiting; a Fault when it fails."""

    def __init__(self, *walls: str, failing: bool = False) -> None:
        self.rows = [OutboxRow(n, "events", n, "e", 1, "", "org.vmagent.vm.state", "s", wall, {})
                     for n, wall in enumerate(walls, 1)]
        self.failing = failing

    def outbox(self, after: int, limit: int) -> Deferred[Any]:
        if self.failing:
            return fail(Fault(FaultKind.FULL, "no space"))
        return succeed(tuple(row for row in self.rows if row.row > after)[:limit])

    def delivered(self, rows: Any) -> Deferred[None]:
        self.rows = [row for row in self.rows if row.row not in rows]
        return succeed(None)

    def free_gib(self) -> Deferred[int]:
        return fail(Fault(FaultKind.AWAY, "not mounted")) if self.failing else succeed(70)


class FixedClock:
    def now(self) -> Any:
        return b.now(AT_S)


def condition(store: Spool, sending: bool) -> Condition:
    """With a link that is up; sending: the broker took what waited, ten seconds ago."""
    clock, link, nobody = Clock(), FakeLink(auto=True), None
    clock.advance(AT_S - 10)
    outbox = Outbox(store, link, clock, "//S/h", {"events": "/topic/e"}, lambda row: b"{}", 10 if sending else 0)
    link.up()
    outbox.wake()
    way: Any = Channel(link, nobody, outbox, nobody)  # type: ignore[arg-type]
    world = World(store, nobody, nobody)  # type: ignore[arg-type]
    world.certificates = ({"file": "a.pem", "days_left": 30},)
    return Condition(store, store, way, FixedClock(), world, b.policy)  # type: ignore[arg-type]


def test_what_waits_has_its_age_and_nothing_was_published_yet() -> None:
    facts = fired(condition(Spool("2026-11-20T11:58:00.000Z", "2026-11-20T11:59:00.000Z"), False).facts())
    now_wall = b.now(AT_S).wall
    assert now_wall.startswith("2026-11-20T12:00")
    assert facts["spool_age_s"] >= 120 and facts["published_age_s"] is None
    assert facts["certificates"] == {"a.pem": 30} and facts["disk_free_gib"] == 70.0
    assert facts["disk_floor_gib"] == b.policy().disk_floor_gib and facts["link_s"] == AT_S


def test_a_reply_that_waits_has_no_time_and_hides_nothing() -> None:
    assert fired(condition(Spool("", "2026-11-20T11:58:00.000Z"), False).facts())["spool_age_s"] >= 120
    assert fired(condition(Spool(""), False).facts())["spool_age_s"] == 0.0


def test_what_the_broker_took_waits_no_more() -> None:
    facts = fired(condition(Spool("2026-11-20T11:58:00.000Z"), True).facts())
    assert (facts["spool_age_s"], facts["published_age_s"]) == (0.0, 10.0)


def test_a_store_that_fails_hides_nothing_else() -> None:
    facts = fired(condition(Spool("2026-11-20T11:58:00.000Z", failing=True), False).facts())
    assert facts["spool_age_s"] is None and facts["disk_free_gib"] is None
    assert facts["certificates"] == {"a.pem": 30}


def test_the_link_is_told_as_it_is() -> None:
    told = condition(Spool(), False).broker()
    assert told["up"] is True and set(told) == {"up", "url", "since", "why", "failures"}
