"""Lanes on real threads: Events hold the calls, the test makes the reactor's turns."""

from __future__ import annotations

import logging
import threading
from typing import Any, List

import pytest
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure

from tests.support.lanes import HandTurned
from tests.support.waiting import until
from vmagent.errors import Fault, FaultKind
from vmagent.lanes import Lanes

DEADLINE = 10.0


class Held:
    """A call that says when it began and returns when it is let go."""

    def __init__(self, value: Any = None, error: Any = None) -> None:
        self.began = threading.Event()
        self.go = threading.Event()
        self.value = value
        self.error = error
        self.thread = ""

    def __call__(self) -> Any:
        self.thread = threading.current_thread().name
        self.began.set()
        assert self.go.wait(20)
        if self.error is not None:
            raise self.error
        return self.value

    def wait(self) -> None:
        assert self.began.wait(20)


class World:
    """One set of lanes; lets every held call go at the end."""

    def __init__(self) -> None:
        self.reactor = HandTurned()
        self.late: List[str] = []
        self.held: List[Held] = []
        self.lanes = Lanes("test", 2, self.reactor, self.late.append)
        self._others = set(threading.enumerate())

    def ask(self, key: str, value: Any = None, error: Any = None, deadline: float = DEADLINE) -> Any:
        call = Held(value, error)
        self.held.append(call)
        got: List[Any] = []
        call.answer = self.lanes.run(key, deadline, call)  # type: ignore[attr-defined]
        call.answer.addBoth(got.append)  # type: ignore[attr-defined]
        call.got = got  # type: ignore[attr-defined]
        return call

    def let_go(self, call: Held) -> None:
        call.go.set()
        self.reactor.turn()

    def threads(self) -> List[str]:
        """Names of those made since."""
        return sorted(thread.name for thread in threading.enumerate() if thread not in self._others)

    def close(self) -> None:
        self.lanes.stop()
        for call in self.held:
            call.go.set()


@pytest.fixture
def world() -> Any:
    made = World()
    yield made
    made.close()


def kind(got: List[Any]) -> FaultKind:
    (failure,) = got
    assert isinstance(failure, Failure), failure
    assert isinstance(failure.value, Fault)
    return failure.value.kind


def test_the_result_and_the_arguments_cross(world: World) -> None:
    assert world.reactor.settle(world.lanes.run("a", DEADLINE, divmod, 17, 5)) == (3, 2)


def test_an_exception_of_the_call_goes_to_the_errback(world: World) -> None:
    with pytest.raises(ZeroDivisionError):
        world.reactor.settle(world.lanes.run("a", DEADLINE, divmod, 1, 0))


def test_even_system_exit_in_a_call_reaches_the_errback_and_frees_the_key(world: World) -> None:
    with pytest.raises(SystemExit):
        world.reactor.settle(world.lanes.run("a", DEADLINE, exit_now))
    assert world.reactor.settle(world.lanes.run("a", DEADLINE, len, "abc")) == 3


def exit_now() -> None:
    raise SystemExit(3)


def test_one_key_is_in_order_and_never_twice_at_once(world: World) -> None:
    first, second = world.ask("a"), world.ask("a")
    first.wait()
    assert not second.began.is_set()
    world.let_go(first)
    second.wait()
    assert first.got == [None] and not second.got
    world.let_go(second)
    assert second.got == [None]


def test_different_keys_run_beside_each_other_up_to_the_number_of_threads(world: World) -> None:
    one, two, three = world.ask("a"), world.ask("b"), world.ask("c")
    one.wait()
    two.wait()
    assert not three.began.is_set()
    world.let_go(one)
    three.wait()


def test_a_key_with_a_long_queue_does_not_starve_the_others(world: World) -> None:
    crowd = [world.ask("a") for _ in range(3)]
    hold = world.ask("b")
    guest = world.ask("c")
    crowd[0].wait()
    hold.wait()
    world.let_go(crowd[0])
    guest.wait()
    assert not crowd[1].began.is_set()


def test_no_thread_is_made_before_it_is_needed_and_idle_ones_are_used_again(world: World) -> None:
    first = world.ask("a")
    world.let_go(first)
    second = world.ask("b")
    second.wait()
    assert (first.thread, second.thread) == ("test-1-1", "test-1-1") and world.threads() == ["test-1-1"]
    third = world.ask("c")
    third.wait()
    assert third.thread == "test-1-2"


def test_a_passed_deadline_is_outcome_unknown_and_blocks_only_its_own_key(world: World) -> None:
    stuck = world.ask("a")
    stuck.wait()
    world.reactor.advance(DEADLINE)
    assert kind(stuck.got) is FaultKind.UNKNOWN
    again, other = world.ask("a"), world.ask("b", "fine")
    other.wait()
    world.let_go(other)
    assert other.got == ["fine"] and not again.began.is_set()
    world.let_go(stuck)
    again.wait()


def test_overdue_tells_who_since_when_and_by_how_much(world: World) -> None:
    world.reactor.advance(100)
    stuck = world.ask("a")
    stuck.wait()
    world.reactor.advance(DEADLINE - 1)
    assert world.lanes.overdue() == ()
    world.reactor.advance(4)
    (late,) = world.lanes.overdue()
    assert (late.key, late.since, late.seconds_over) == ("a", 100, 3)
    world.let_go(stuck)
    assert world.lanes.overdue() == ()


def test_a_late_return_says_observe_again_and_fires_nothing_twice(world: World) -> None:
    stuck = world.ask("a", "too late")
    stuck.wait()
    world.reactor.advance(DEADLINE)
    world.let_go(stuck)
    assert world.late == ["a"]
    assert len(stuck.got) == 1


def test_a_call_in_time_is_not_late(world: World) -> None:
    call = world.ask("a")
    world.let_go(call)
    world.reactor.advance(10 * DEADLINE)
    assert call.got == [None] and world.late == []


def test_a_late_exception_is_logged_not_lost(world: World, caplog: Any) -> None:
    stuck = world.ask("a", error=ValueError("after all"))
    stuck.wait()
    world.reactor.advance(DEADLINE)
    with caplog.at_level(logging.WARNING, "vmagent.lanes"):
        world.let_go(stuck)
    assert any(r.exc_info and isinstance(r.exc_info[1], ValueError) for r in caplog.records)


def test_waiting_does_not_count_towards_the_deadline(world: World) -> None:
    first = world.ask("a", deadline=100)
    second = world.ask("a")
    world.reactor.advance(DEADLINE - 1)
    world.let_go(first)
    second.wait()
    world.reactor.advance(DEADLINE - 1)
    assert not second.got
    world.reactor.advance(1)
    assert kind(second.got) is FaultKind.UNKNOWN


def test_waiting_behind_a_stuck_call_ends_with_busy_and_never_runs(world: World) -> None:
    stuck = world.ask("a")
    stuck.wait()
    waiting = world.ask("a", deadline=2 * DEADLINE)
    world.reactor.advance(DEADLINE)
    assert not waiting.got
    world.reactor.advance(DEADLINE)
    assert kind(waiting.got) is FaultKind.BUSY
    world.let_go(stuck)
    after = world.ask("a")
    after.wait()
    assert not waiting.began.is_set()


def test_a_long_wait_behind_healthy_calls_is_no_failure_until_they_are_overdue(world: World) -> None:
    slow = world.ask("a", deadline=5 * DEADLINE)
    slow.wait()
    waiting = world.ask("a")
    world.reactor.advance(3 * DEADLINE)
    assert not waiting.got
    world.reactor.advance(2 * DEADLINE)
    assert kind(waiting.got) is FaultKind.BUSY


def test_all_threads_stuck_fails_other_keys_with_busy(world: World) -> None:
    for key in ("a", "b"):
        world.ask(key).wait()
    waiting = world.ask("c")
    world.reactor.advance(DEADLINE)
    assert kind(waiting.got) is FaultKind.BUSY


def test_fresh_threads_serve_other_keys_while_stuck_keys_stay_blocked(world: World) -> None:
    stuck = [world.ask(key) for key in ("a", "b")]
    for call in stuck:
        call.wait()
    blocked, other = world.ask("a", deadline=1000), world.ask("c", deadline=1000)
    world.reactor.advance(DEADLINE)
    world.lanes.replace_threads()
    other.wait()
    assert other.thread.startswith("test-2-")
    assert world.lanes.abandoned() == 2 and len(world.lanes.overdue()) == 2
    assert not blocked.began.is_set()
    world.let_go(stuck[0])
    blocked.wait()
    assert world.lanes.abandoned() == 1
    until(lambda: not any(t.name == stuck[0].thread for t in threading.enumerate()), what="the old thread ends")


def test_stop_ends_idle_threads_refuses_new_calls_and_fails_waiting_ones() -> None:
    world = World()
    done, running = world.ask("a"), world.ask("b")
    running.wait()
    world.let_go(done)
    waiting = world.ask("b")
    world.lanes.stop()
    assert kind(waiting.got) is FaultKind.BUSY
    assert kind(world.ask("c").got) is FaultKind.BUSY
    until(lambda: not any(t.name == done.thread for t in threading.enumerate()), what="the idle thread ends")
    world.let_go(running)
    assert running.got == [None]
    assert not waiting.began.is_set()
    assert world.reactor.getDelayedCalls() == []


def test_cancelling_takes_a_waiting_call_out_and_drops_a_running_ones_result(world: World) -> None:
    running, waiting, last = world.ask("a"), world.ask("a"), world.ask("a")
    running.wait()
    waiting.answer.cancel()
    running.answer.cancel()
    assert all(isinstance(c.got[0].value, CancelledError) for c in (running, waiting))
    assert not last.began.is_set()
    world.let_go(running)
    last.wait()
    assert not waiting.began.is_set() and len(running.got) == 1
