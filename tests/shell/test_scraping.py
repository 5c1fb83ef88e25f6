"""Whether /metrics is offered: by the site's wish, told when it cannot be, tried again."""

from __future__ import annotations

from typing import Any, Optional

from twisted.internet.defer import Deferred, succeed

from tests.support.controlled import fired
from vmagent.errors import Fault, FaultKind
from vmagent.scraping import PART, Scraping
from vmagent.world import World


class Server:
    def __init__(self) -> None:
        self.starts = self.stops = 0
        self.failing: Optional[Fault] = None

    def start(self) -> int:
        self.starts += 1
        if self.failing is not None:
            raise self.failing
        return 9177

    def stop(self) -> Deferred[Any]:
        self.stops += 1
        return succeed(None)


def world() -> World:
    nobody: Any = None
    return World(nobody, nobody, nobody)


def run(coroutine: Any) -> None:
    fired(Deferred.fromCoroutine(coroutine))


def test_an_address_that_cannot_be_had_is_told_and_tried_again() -> None:
    server, here = Server(), world()
    scraping = Scraping(here, server)
    server.failing = Fault(FaultKind.REFUSED, "/metrics cannot be offered on ::1 port 9177: in use")
    for _ in range(2):
        run(scraping.look())
        assert "port 9177: in use" in here.degraded[PART]
    server.failing = None
    run(scraping.look())
    run(scraping.look())
    assert (server.starts, here.degraded) == (3, {})
    run(scraping.stop())
    run(scraping.stop())
    assert server.stops == 1


def test_where_the_site_wants_none_there_is_none() -> None:
    here = world()
    scraping = Scraping(here, None)
    run(scraping.look())
    run(scraping.stop())
    assert here.degraded == {}


def test_what_was_never_offered_is_not_stopped() -> None:
    server = Server()
    run(Scraping(world(), server).stop())
    assert server.stops == 0
