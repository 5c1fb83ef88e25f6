"""The collector's service without a broker: acknowledged after the commit, whatever the database and the link do."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from random import Random
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import pytest
from twisted.internet.defer import Deferred

from tests.support.controlled import site
from tests.support.fake_link import FakeLink
from tests.support.loop import RealLoop
from tests.support.published import Publisher, raw
from vmagent.broker.link import Frame
from vmagent.errors import Fault, FaultKind, Problem
from vmagent.site import gathering, shelf
from vmagent.site.book import Book
from vmagent.site.database import Database
from vmagent.site.gathering import Gatherer

V1, V2 = (f"{n:08d}-0000-5000-8000-000000000000" for n in (1, 2))
HOST = "wn1.example.org"


class Failing(Book):
    """Fails as told, before anything is written."""

    faults: List[FaultKind] = []
    never = b"\0"  # a text on which it fails
    how: Exception = Fault(FaultKind.REFUSED, "as told")

    def take(self, bodies: Sequence[bytes]) -> Any:
        if any(self.never in body for body in bodies):
            raise self.how
        if self.faults:
            raise Fault(self.faults.pop(0), "as told")
        return super().take(bodies)


class Collected:
    """A gatherer, its link and its database."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.loop = RealLoop()
        self.place = str(folder / "collector.db")
        self.opened = 0
        Failing.faults = []
        self.gatherer = Gatherer(site(folder, **changes), self.loop, lambda: 1_790_000_000.0, self._open, Random(1),
                                 self._link)

    def _open(self) -> Tuple[Book, Any]:
        self.opened += 1
        database = Database(self.place)
        return Failing(database), database.close

    def _link(self, subscriptions: Any, on_frame: Any, on_state: Any) -> FakeLink:
        self.subscriptions, self.on_frame = subscriptions, on_frame
        self.link = FakeLink(on_state, auto=True)
        return self.link

    def start(self, anew: bool = False) -> None:
        self.loop.result(self.gatherer.open())
        self.loop.result(self.gatherer.connect(anew))

    def hear(self, *events: Dict[str, Any]) -> List[Frame]:
        frames = [Frame("/topic/x", {"subscription": "events"}, raw(event)) for event in events]
        for frame in frames:
            self.on_frame(frame)
        return frames

    def settled(self) -> None:
        self.loop.until(lambda: self.gatherer.idle, what="the commit")

    def phases(self) -> Dict[str, str]:
        database = Database(self.place)
        try:
            return {data["vm"]: data["phase"] for _, data in shelf.states(database)}
        finally:
            database.close()

    def commands(self) -> List[Dict[str, Any]]:
        payloads = [json.loads(sent.body)["payload"] + "==" for sent in self.link.sent]
        return [json.loads(base64.urlsafe_b64decode(payload)) for payload in payloads]


@pytest.fixture
def collected(tmp_path: Path) -> Iterator[Collected]:
    made = Collected(tmp_path)
    yield made
    made.loop.result(Deferred.fromCoroutine(made.gatherer.stop()))


def test_a_frame_is_acknowledged_after_its_commit(collected: Collected) -> None:
    collected.start()
    host = Publisher()
    frames = collected.hear(host.state(V1, "running"))
    assert collected.link.acked == []
    collected.loop.until(lambda: collected.link.acked, what="an ACK")
    assert collected.phases() == {V1: "running"}
    frames += collected.hear(host.state(V1, "stopping"), host.state(V1, "ready"))
    collected.settled()
    assert collected.phases() == {V1: "ready"}
    assert collected.link.acked == frames


def test_while_the_database_fails_nothing_is_acknowledged_and_nothing_is_lost(
    collected: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "AGAIN_S", 0.01)
    collected.start()
    Failing.faults = [FaultKind.AWAY, FaultKind.AWAY, FaultKind.AWAY]
    frames = collected.hear(Publisher().state(V1, "ready"))
    collected.loop.until(lambda: len(Failing.faults) < 3 and not collected.gatherer._busy, what="a failed commit")
    assert collected.link.acked == []
    collected.loop.until(lambda: collected.link.acked == frames, what="the ACK")
    assert collected.phases() == {V1: "ready"}
    assert collected.opened == 4  # a broken connection is not used again


def test_frames_of_a_link_that_went_are_left_to_the_broker(
    collected: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "AGAIN_S", 0.01)
    collected.start()
    Failing.faults = [FaultKind.AWAY] * 2
    collected.hear(Publisher().state(V1, "ready"))
    collected.link.down()
    collected.link.up()
    collected.settled()
    assert collected.link.acked == [] and collected.phases() == {}
    again = collected.hear(Publisher().state(V1, "ready"))
    collected.loop.until(lambda: collected.link.acked == again, what="the redelivered frame's ACK")


@pytest.mark.parametrize("how", [Fault(FaultKind.REFUSED, "as told"), RecursionError("a defect")])
def test_one_frame_that_the_database_refuses_stops_no_other(
    collected: Collected, monkeypatch: pytest.MonkeyPatch, how: Exception
) -> None:
    monkeypatch.setattr(Failing, "how", how)
    monkeypatch.setattr(Failing, "never", b"poison")
    collected.start()
    host = Publisher()
    frames = collected.hear(host.state(V2, "running"), host.state(V1, "poison"), host.state(V2, "ready"))
    collected.loop.until(lambda: collected.link.acked == frames, what="all ACKs")
    assert collected.phases() == {V2: "ready"}
    assert len(collected.gatherer.heard.aside) == 1


def test_missing_states_are_asked_for_after_a_while_and_at_growing_intervals(
    collected: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "SETTLE_S", (0.01, 0.02))
    monkeypatch.setattr(gathering, "REPORT_S", 0.05)
    collected.start()
    host = Publisher()
    collected.hear(host.state(V1, "pending"))
    host.state(V1, "ready")
    collected.hear(host.state(V2, "ready"))
    collected.loop.until(lambda: len({one["id"] for one in collected.commands()}) == 3, what="three requests")
    assert {(one["schema"], one["target"]) for one in collected.commands()} == {("host.report/1", HOST)}
    assert collected.gatherer._asked[HOST][1] == pytest.approx(0.2)
    collected.hear(host.snapshot(host.full(V1, "ready")))
    collected.settled()
    assert collected.gatherer.lacking == () and collected.gatherer._asking == {}
    assert collected.phases() == {V1: "ready"}


def test_what_comes_late_needs_no_request(collected: Collected) -> None:
    collected.start()
    host = Publisher()
    first, second, third = (host.state(V1, phase) for phase in ("pending", "running", "ready"))
    collected.hear(first, third)
    collected.settled()
    assert collected.gatherer.lacking == (HOST,)
    collected.hear(second)
    collected.settled()
    assert collected.gatherer._asking == {} and collected.commands() == []


def test_a_new_collector_asks_every_host_once(collected: Collected) -> None:
    collected.start(anew=True)
    (command,) = collected.commands()
    assert (command["schema"], command["target"]) == ("host.report/1", "*")


def test_its_names_are_its_own(tmp_path: Path) -> None:
    plain, named = Collected(tmp_path), Collected(tmp_path, subscription="portal", replies="/queue/vmagent.S.replies.p")
    assert [(one.id, one.destination, one.durable) for one in plain.subscriptions] == [
        ("replies", "/queue/vmagent.S.replies.collector", False),
        ("vmagent.S.collector", "/topic/vmagent.S.events", True),
        ("usage", "/queue/vmagent.S.usage", False),
        ("capacity", "/topic/vmagent.S.capacity", False),
        ("telemetry", "/topic/vmagent.S.telemetry", False),
    ]
    assert [one.id for one in named.subscriptions][:2] == ["replies", "portal.collector"]
    assert gathering.own(site(tmp_path)).broker.client_id == "vmagent.S.collector"


def test_a_database_that_cannot_be_opened_is_told_at_once(tmp_path: Path) -> None:
    broken = Collected(tmp_path)
    (tmp_path / "collector.db").write_text("no database " * 100)
    with pytest.raises(Fault, match="not a database"):
        broken.loop.result(broken.gatherer.open())
    broken.place = "postgresql://me:secret@db.example.org/x"
    with pytest.raises(Problem, match="pgpass"):
        broken.loop.result(broken.gatherer.open())
