"""Completeness of streams, and the newest state of every VM, in whatever order the events come."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any, Dict, List, Mapping, Optional

import pytest

from vmagent.core import events
from vmagent.core.changes import OutboxRow
from vmagent.site.collector import Collector
from vmagent.site.fleet import Fleet, host_of

SOURCE = "//site.example.org/wn1"


def event(number: int, type: str = "vm.state", data: Optional[Mapping[str, Any]] = None, epoch: int = 1,
          stream: str = "events", source: str = SOURCE) -> Dict[str, Any]:
    row = OutboxRow(number, stream, number, f"e{epoch}", epoch, "", f"org.vmagent.{type}", "host",
                    "2026-11-20T12:00:00.000Z", data if data is not None else {"vm": "v", "phase": str(number)})
    return events.cloud_event(row, source)


def gap(number: int, first: int, last: int, stream: str = "events") -> Dict[str, Any]:
    return event(number, "stream.gap", {"stream": stream, "first": first, "last": last}, stream=stream)


def taken(collector: Collector, *numbers: int) -> List[bool]:
    return [collector.take(event(number)).new for number in numbers]


# -- counting


def test_consecutive_numbers_are_complete() -> None:
    collector = Collector()
    assert taken(collector, 7, 8, 9) == [True] * 3
    assert collector.complete
    assert collector.missing() == []


def test_a_repeated_number_is_a_duplicate() -> None:
    collector = Collector()
    assert taken(collector, 1, 2, 2, 1) == [True, True, False, False]
    assert collector.duplicates == 2
    assert collector.complete


def test_what_was_sent_before_we_listened_is_no_duplicate_and_no_gap() -> None:
    collector = Collector()
    assert taken(collector, 5, 4) == [True, False]
    assert collector.complete


def test_a_gap_is_seen_at_once_and_closed_by_what_comes_late() -> None:
    collector = Collector()
    collector.take(event(1))
    assert collector.take(event(5)).missing == (2, 3, 4)
    assert not collector.complete
    assert taken(collector, 3, 3, 2) == [True, False, True]
    assert collector.missing() == [(SOURCE, "e1", "events", (4,))]
    assert taken(collector, 4, 6) == [True, True]
    assert collector.complete


def test_streams_epochs_and_hosts_count_apart() -> None:
    collector = Collector()
    for one in (event(1), event(1, epoch=2), event(1, stream="usage"), event(1, source="//s/wn2")):
        assert collector.take(one).new
    assert collector.complete
    assert len(collector.tracks) == 4


def test_an_announced_loss_is_no_more_waited_for_but_told() -> None:
    collector = Collector()
    taken(collector, 1, 2)
    assert collector.take(gap(6, 3, 5)).missing == (3, 4, 5)
    assert collector.missing() == []
    assert not collector.complete
    assert collector.tracks[(SOURCE, "e1", "events")].lost == 3


def test_a_loss_may_be_announced_before_the_next_event_shows_it() -> None:
    collector = Collector()
    taken(collector, 1)
    collector.take(event(10, "stream.gap", {"stream": "usage", "first": 3, "last": 4}, stream="events"))
    collector.take(event(5, stream="usage"))
    assert [one for one in collector.missing() if one[2] == "usage"] == []


def test_any_order_with_repetitions_ends_complete() -> None:
    dice = random.Random(4711)
    for _ in range(200):
        collector = Collector()
        collector.take(event(1))
        numbers = list(range(2, 12)) + [dice.randint(2, 11) for _ in range(5)]
        dice.shuffle(numbers)
        new = sum(taken(collector, *numbers))
        assert (new, collector.duplicates, collector.complete) == (10, 5, True)


def test_positions_carry_it_over_a_restart() -> None:
    before = Collector()
    taken(before, 1, 2, 5)
    after = Collector(json.loads(json.dumps(before.positions())))
    assert after.positions() == before.positions()
    assert taken(after, 2, 3, 6) == [False, True, True]
    assert after.missing() == [(SOURCE, "e1", "events", (4,))]


def test_an_event_of_somebody_else_is_refused() -> None:
    with pytest.raises(LookupError):
        Collector().take({"specversion": "1.0"})


# -- the fleet


def state(vm: str, phase: str, number: int, epoch: int = 1, closed: bool = False) -> Dict[str, Any]:
    return event(number, data={"vm": vm, "name": vm, "phase": phase, "closed": closed}, epoch=epoch)


def snapshot(number: int, *vms: str, epoch: int = 1, phase: str = "ready") -> Dict[str, Any]:
    states = [{"vm": vm, "name": vm, "phase": phase, "closed": False} for vm in vms]
    return event(number, "host.snapshot", {"host": {"drained": False}, "vms": states}, epoch=epoch)


def phases(fleet: Fleet) -> Dict[str, str]:
    return {data["vm"]: data["phase"] for _, data in fleet.vms()}


def test_the_newest_state_counts_in_any_order() -> None:
    story = [state("a", "pending", 1), state("a", "running", 2), state("a", "ready", 3)]
    for order in itertools.permutations(story):
        fleet = Fleet()
        for one in order:
            fleet.apply(one)
        assert phases(fleet) == {"a": "ready"}


def test_a_greater_epoch_is_newer_whatever_its_sequence() -> None:
    fleet = Fleet()
    assert fleet.apply(state("a", "ready", 900, epoch=1))
    assert fleet.apply(state("a", "stopping", 1, epoch=2))
    assert not fleet.apply(state("a", "running", 901, epoch=1))
    assert fleet.state("a")["phase"] == "stopping"


def test_a_snapshot_ends_what_it_does_not_name() -> None:
    fleet = Fleet()
    fleet.apply(state("a", "ready", 1))
    fleet.apply(state("b", "ready", 2))
    fleet.apply(snapshot(3, "b", "c"))
    assert set(phases(fleet)) == {"b", "c"}
    assert not fleet.apply(state("a", "running", 1))
    assert not fleet.apply(state("never-heard-of", "running", 2))
    assert set(phases(fleet)) == {"b", "c"}
    assert [data["vm"] for _, data in fleet.vms(gone=True)] == ["a", "b", "c"]


def test_an_old_snapshot_changes_nothing() -> None:
    fleet = Fleet()
    fleet.apply(snapshot(5, "a"))
    fleet.apply(state("b", "ready", 6))
    assert not fleet.apply(snapshot(4, "z"))
    assert set(phases(fleet)) == {"a", "b"}


def test_a_snapshot_that_comes_late_does_not_undo_newer_states() -> None:
    fleet = Fleet()
    fleet.apply(state("a", "stopped", 8, closed=True))
    fleet.apply(state("b", "ready", 9))
    fleet.apply(snapshot(7, "a"))
    assert set(phases(fleet)) == {"b"}


def test_closed_vms_leave_the_view_and_do_not_come_back() -> None:
    fleet = Fleet()
    fleet.apply(state("a", "ready", 1))
    fleet.apply(state("a", "stopped", 3, closed=True))
    fleet.apply(state("a", "stopping", 2))
    assert fleet.vms() == []
    assert fleet.state("a")["phase"] == "stopped"


def test_what_does_not_concern_vms_changes_nothing() -> None:
    fleet = Fleet()
    assert not fleet.apply(event(1, "security.alert", {"kind": "x"}))
    assert fleet.apply(event(2, "host.state", {"drained": True}))
    assert fleet.hosts["wn1"].state == {"drained": True}
    assert not fleet.apply(event(1, "host.state", {"drained": False}))


def test_the_host_stands_in_the_source() -> None:
    assert host_of(event(1)) == "wn1"
    for bad in ("", "wn1", "//s/", "/s/wn1", "//s/a/b"):
        with pytest.raises(ValueError):
            host_of({"source": bad})
