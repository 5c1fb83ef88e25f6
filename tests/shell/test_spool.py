"""The bound of the outbox: what goes first, and that every loss is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Set

import pytest

from tests.support import building as b
from tests.support.opened import OpenedStore
from vmagent.core import schemas
from vmagent.core.changes import OutboxRow, Publish, SendReply
from vmagent.core.model import Now
from vmagent.store.spool import ALERT, GAP, merged

STATE = "org.vmagent.vm.state"
ROWS = 20


@pytest.fixture
def small(tmp_path: Path) -> Any:
    with OpenedStore(tmp_path / "vmagent.db", rows=ROWS) as opened:
        yield opened


def message(stream: str, n: int = 0, subject: str = "host", type: str = "t") -> Publish:
    return Publish(stream, type, subject, b.WALL, {"n": n})


def state(vm: int, n: int = 0) -> Publish:
    return message("events", n, f"vm/{vm}", STATE)


def rows(opened: OpenedStore) -> List[OutboxRow]:
    return list(opened.ask("outbox", 0, 10**6))


def plain(opened: OpenedStore, stream: str) -> List[int]:
    """Sequences of a stream still held, announcements aside."""
    return [row.sequence for row in rows(opened) if row.stream == stream and row.type != GAP]


def gaps(opened: OpenedStore) -> List[Dict[str, Any]]:
    return [dict(row.data) for row in rows(opened) if row.type == GAP]


def told(opened: OpenedStore, stream: str) -> Set[int]:
    """Sequences that announcements say are lost."""
    ranges = [(gap["first"], gap["last"]) for gap in gaps(opened) if gap["stream"] == stream]
    return {n for first, last in ranges for n in range(first, last + 1)}


def nothing_is_silent(opened: OpenedStore, streams: Any) -> None:
    """Held + announced = all that was ever numbered."""
    last = opened.ask("sequences")
    for stream in streams:
        held = {row.sequence for row in rows(opened) if row.stream == stream}
        assert held | told(opened, stream) == set(range(1, last.get(stream, 0) + 1)), stream


def test_within_the_bound_nothing_is_dropped(small: OpenedStore) -> None:
    small.commit(*(message("telemetry", n) for n in range(ROWS)))
    assert len(rows(small)) == ROWS and gaps(small) == []


def test_past_the_bound_the_oldest_telemetry_goes_and_its_stream_is_told(small: OpenedStore) -> None:
    small.commit(*(message("telemetry", n) for n in range(ROWS)), message("usage"))
    assert plain(small, "telemetry") == list(range(4, ROWS + 1)) and plain(small, "usage") == [1]
    newest = rows(small)[-1]
    assert (newest.type, newest.stream, newest.sequence, newest.subject) == (GAP, "telemetry", ROWS + 1, "host")
    assert newest.time_wall == b.WALL
    assert newest.data == {
        "stream": "telemetry", "first": 1, "last": 3, "count": 3, "why": "spool full", "at": b.WALL
    }  # fmt: skip
    schemas.check("event.stream.gap", newest.data)


def test_announcements_of_one_stream_are_joined_not_piled_up(small: OpenedStore) -> None:
    for n in range(5 * ROWS):
        small.commit(message("telemetry", n))
        assert len(rows(small)) <= ROWS and len(gaps(small)) <= ROWS // 2
    assert gaps(small)[0]["first"] == 1 and gaps(small)[0]["count"] > ROWS
    nothing_is_silent(small, ["telemetry"])


def test_the_order_is_telemetry_capacity_old_states_other_events_usage(small: OpenedStore) -> None:
    kinds = [
        *(message("usage", n) for n in range(4)),
        *(message("events", n, type="org.vmagent.security.alert") for n in range(4)),
        *(state(vm, 1) for vm in range(4)),
        *(state(vm, 2) for vm in range(4)),
        *(message("capacity", n) for n in range(4)),
    ]
    small.commit(*kinds)
    old, new, alerts = [5, 6, 7, 8], [9, 10, 11, 12], [1, 2, 3, 4]
    waiting = [("capacity", n) for n in range(1, 5)] + [("events", n) for n in old]
    waiting += [("events", n) for n in alerts + new] + [("usage", n) for n in range(1, 5)]
    for n in range(2 * ROWS):
        if not waiting:
            break
        small.commit(SendReply("/queue/r", {"n": n}))
        nothing_is_silent(small, ("capacity", "events", "usage"))
        left = {(stream, n) for stream in ("capacity", "events", "usage") for n in plain(small, stream)}
        gone = len(waiting) - len(left)
        assert left == set(waiting[gone:])
        waiting = waiting[gone:]
    assert waiting == []


def test_the_newest_state_of_each_subject_outlives_its_older_ones(small: OpenedStore) -> None:
    for n in range(3 * ROWS):
        small.commit(state(n % 3, n))
    newest = {row.subject: row.data["n"] for row in rows(small) if row.type == STATE}
    assert newest == {f"vm/{n % 3}": n for n in range(3 * ROWS - 3, 3 * ROWS)}
    nothing_is_silent(small, ["events"])


def test_replies_stay_up_to_twice_the_bound_and_their_loss_is_told_on_events(small: OpenedStore) -> None:
    for n in range(2 * ROWS):
        small.commit(SendReply("/queue/r", {"n": n}))
    assert len(rows(small)) == 2 * ROWS and gaps(small) == []
    for n in range(2 * ROWS, 4 * ROWS):
        small.commit(SendReply("/queue/r", {"n": n}))
    replies = [row.data["n"] for row in rows(small) if row.stream == "replies"]
    assert replies == list(range(4 * ROWS - len(replies), 4 * ROWS)) and len(rows(small)) <= 2 * ROWS
    alerts = [row.data for row in rows(small) if row.type == ALERT]
    for alert in alerts:
        schemas.check("event.security.alert", alert)
    assert {alert["kind"] for alert in alerts} == {"replies-lost"} and alerts[-1]["count"] >= 1
    nothing_is_silent(small, ["events"])


def test_bytes_are_bounded_too(tmp_path: Path) -> None:
    with OpenedStore(tmp_path / "vmagent.db", bytes=50_000) as opened:
        for _ in range(30):
            opened.commit(Publish("telemetry", "t", "host", b.WALL, {"x": "y" * 5000}))
        assert 5 <= len(plain(opened, "telemetry")) <= 10
        nothing_is_silent(opened, ["telemetry"])


def test_rows_dropped_while_at_the_broker_may_still_be_delivered(small: OpenedStore) -> None:
    small.commit(*(message("telemetry", n) for n in range(ROWS)))
    in_flight = [row.row for row in rows(small)]
    small.commit(message("usage"))
    small.ask("delivered", in_flight)
    assert [row.stream for row in rows(small)] == ["usage", "telemetry"]
    small.commit(*(message("telemetry", n) for n in range(ROWS - 2)))
    assert len(rows(small)) == ROWS and len(gaps(small)) == 1


def test_what_was_delivered_in_between_is_not_called_lost(small: OpenedStore) -> None:
    small.commit(*(message("telemetry", n) for n in range(ROWS)))
    delivered = [row for row in rows(small) if row.sequence % 2 == 0]
    small.ask("delivered", [row.row for row in delivered])
    small.commit(*(message("usage", n) for n in range(ROWS)))
    assert told(small, "telemetry").isdisjoint(row.sequence for row in delivered)


def test_losses_torn_into_single_numbers_still_end_within_the_bound(small: OpenedStore) -> None:
    for n in range(4 * ROWS):
        small.commit(state(1, n), message("events", n, type="org.vmagent.security.alert"))
        assert len(rows(small)) <= ROWS
    nothing_is_silent(small, ["events"])
    assert [row.data["n"] for row in rows(small) if row.type == STATE][-1] == 4 * ROWS - 1


def test_losses_of_a_former_epoch_are_not_told_as_losses_of_this_one(tmp_path: Path) -> None:
    path = tmp_path / "vmagent.db"
    with OpenedStore(path, rows=ROWS) as opened:
        opened.commit(*(message("telemetry", n) for n in range(ROWS)))
    path.with_suffix(".epoch").unlink()
    with OpenedStore(path, Now(1.0, "2026-11-20T13:00:00.000Z", b.BOOT), rows=ROWS) as opened:
        assert opened.epoch.cause == "restored"
        opened.commit(message("telemetry"))
        assert len(rows(opened)) < ROWS and gaps(opened) == []


def test_a_commit_that_fails_leaves_the_count_as_it_was(small: OpenedStore) -> None:
    small.commit(*(message("usage", n) for n in range(ROWS)))
    for _ in range(5):
        with pytest.raises(Exception, match="store"):
            small.commit(message("telemetry"), Publish("usage", "t", "s", b.WALL, {"x": float("inf")}))
    assert len(rows(small)) == ROWS and gaps(small) == []
    small.ask("delivered", [rows(small)[0].row])
    small.commit(message("usage"))
    assert len(rows(small)) == ROWS and gaps(small) == []


@pytest.mark.parametrize(
    "ranges, expected",
    [
        ([], []),
        ([(3, 3), (1, 1), (2, 2)], [(1, 3)]),
        ([(1, 5), (2, 3), (7, 9), (6, 6)], [(1, 9)]),
        ([(1, 2), (4, 5)], [(1, 2), (4, 5)]),
    ],
)
def test_merged(ranges: Any, expected: Any) -> None:
    assert merged(ranges) == expected
