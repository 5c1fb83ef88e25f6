"""Frames are taken one at a time and acknowledged after their effect; poison does not stop them."""

from __future__ import annotations

from typing import Any, List, Optional, Tuple

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from tests.support.fake_link import FakeLink
from vmagent.broker.inbox import LONGEST_PAUSE_S, Inbox
from vmagent.broker.link import Frame
from vmagent.errors import Fault, FaultKind

Taken = Tuple[bytes, bool]


class Desk:
    """An inbox on a fake link, and an intake that does what the test says."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.link = FakeLink()
        self.taken: List[Taken] = []
        self.oversized: List[int] = []
        self.answers: List[Any] = []  # next results of `take`; at the end: done at once
        self.inbox = Inbox(self.link, self.clock, self._take, self._refuse, frozenset({"all"}), max_bytes=10)
        self.link.on_state = self.inbox.link_changed
        self.link.up()

    def _answer(self) -> Deferred[None]:
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Deferred):
            return answer
        if isinstance(answer, Exception):
            return fail(answer)
        return succeed(None)

    def _take(self, raw: bytes, from_topic: bool, headers: Any) -> Deferred[None]:
        self.taken.append((raw, from_topic))
        return self._answer()

    def _refuse(self, size: int) -> Deferred[None]:
        self.oversized.append(size)
        return self._answer()

    def frame(self, body: bytes, subscription: str = "own", **headers: str) -> Frame:
        frame = Frame("/queue/c", {"subscription": subscription, **headers}, body)
        self.inbox.received(frame)
        return frame

    @property
    def acked(self) -> List[bytes]:
        return [frame.body for frame in self.link.acked]


def away() -> Fault:
    return Fault(FaultKind.FULL, "disk full")


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_acknowledged_after_the_commit(desk: Desk) -> None:
    commit: Deferred[None] = Deferred()
    desk.answers = [commit]
    desk.frame(b"1")
    assert (desk.taken, desk.acked) == ([(b"1", False)], [])
    commit.callback(None)
    assert desk.acked == [b"1"]


def test_one_at_a_time_and_in_order(desk: Desk) -> None:
    first: Deferred[None] = Deferred()
    second: Deferred[None] = Deferred()
    desk.answers = [first, second]
    for body in (b"1", b"2", b"3"):
        desk.frame(body)
    assert [raw for raw, _ in desk.taken] == [b"1"]
    first.callback(None)
    assert [raw for raw, _ in desk.taken] == [b"1", b"2"]
    second.callback(None)
    assert desk.acked == [b"1", b"2", b"3"]


def test_the_topic_is_told(desk: Desk) -> None:
    desk.frame(b"1", subscription="all")
    desk.frame(b"2", subscription="own")
    desk.inbox.received(Frame("/topic/all", {}, b"3"))
    assert desk.taken == [(b"1", True), (b"2", False), (b"3", False)]


def test_a_failed_commit_is_not_acknowledged_and_tried_again(desk: Desk) -> None:
    desk.answers = [away(), away()]
    desk.frame(b"1")
    desk.frame(b"2")
    assert (desk.acked, len(desk.taken)) == ([], 1)
    desk.clock.advance(1.0)
    assert (desk.acked, len(desk.taken)) == ([], 2)
    desk.clock.advance(1.9)
    assert len(desk.taken) == 2
    desk.clock.advance(0.2)
    assert desk.acked == [b"1", b"2"]
    assert [raw for raw, _ in desk.taken] == [b"1", b"1", b"1", b"2"]


def test_the_pause_has_an_upper_bound_and_starts_small_again(desk: Desk) -> None:
    desk.answers = [away() for _ in range(20)]
    desk.frame(b"1")
    while not desk.acked:
        before = len(desk.taken)
        desk.clock.advance(LONGEST_PAUSE_S)
        assert len(desk.taken) > before
    desk.answers = [away()]
    desk.frame(b"2")
    desk.clock.advance(1.0)
    assert desk.acked == [b"1", b"2"]


def test_a_lost_link_forgets_what_waits_but_not_what_is_being_taken(desk: Desk) -> None:
    commit: Deferred[None] = Deferred()
    desk.answers = [commit]
    for body in (b"1", b"2"):
        desk.frame(body)
    desk.link.down()
    desk.link.up()
    for body in (b"1", b"2"):
        desk.frame(body)  # redelivered
    commit.callback(None)
    assert [raw for raw, _ in desk.taken] == [b"1", b"1", b"2"]


def test_oversized_is_recorded_acknowledged_and_not_taken(desk: Desk) -> None:
    record: Deferred[None] = Deferred()
    desk.answers = [record]
    desk.frame(b"x" * 11)
    assert (desk.oversized, desk.taken, desk.acked) == ([11], [], [])
    record.callback(None)
    assert desk.acked == [b"x" * 11]
    desk.frame(b"x" * 10)
    assert len(desk.taken) == 1
    assert desk.inbox.counts["oversized"] == 1


def test_oversized_waits_for_its_record_too(desk: Desk) -> None:
    desk.answers = [away()]
    desk.frame(b"x" * 11)
    assert desk.acked == []
    desk.clock.advance(1.0)
    assert (desk.oversized, desk.acked) == ([11, 11], [b"x" * 11])


def test_a_reply_is_never_answered(desk: Desk) -> None:
    desk.frame(b"{}", **{"vma-kind": "reply"})
    assert (desk.taken, desk.acked, desk.inbox.counts["replies"]) == ([], [b"{}"], 1)


@pytest.mark.parametrize("raised", [True, False])
def test_a_bug_on_one_frame_does_not_stop_the_others(desk: Desk, raised: bool, caplog: Any) -> None:
    """In the call itself or in its Deferred."""
    take: Optional[Any] = desk.inbox._take
    if raised:
        desk.inbox._take = lambda *_: {}["bug"]  # type: ignore[assignment,index]
        desk.frame(b"1")
        desk.inbox._take = take  # type: ignore[assignment]
    else:
        desk.answers = [KeyError("bug")]
        desk.frame(b"1")
    desk.frame(b"2")
    assert desk.acked == [b"1", b"2"]
    assert desk.inbox.counts["poison"] == 1
    assert "KeyError" in caplog.text


def test_stopped_takes_nothing_more(desk: Desk) -> None:
    commit: Deferred[None] = Deferred()
    desk.answers = [commit]
    desk.frame(b"1")
    desk.frame(b"2")
    desk.inbox.stop()
    commit.callback(None)
    desk.frame(b"3")
    assert [raw for raw, _ in desk.taken] == [b"1"]
    assert desk.acked == [b"1"]


def test_stopped_while_a_frame_is_held(desk: Desk) -> None:
    desk.answers = [away()]
    desk.frame(b"1")
    desk.inbox.stop()
    assert desk.clock.getDelayedCalls() == []
    assert desk.acked == []
