"""Who is stuck, by the hand-turned clock."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from vmagent.hypervisor.health import HALTED_APART_S, Health


class World:
    """Guests whose QEMU's state the test decides."""

    def __init__(self):
        self.clock = Clock()
        self.down = set()
        self.asked = []
        self.probed = []
        self.changed = []
        self.health = Health(self.clock, self.halted, self.probed.append, self.changed.append)

    def halted(self, vms):
        self.asked.append(tuple(vms))
        return frozenset(vms) & self.down


@pytest.fixture
def world():
    return World()


def test_healthy_guests_cost_nothing_afterwards(world):
    world.health.look(("a", "b"))
    assert world.health.stuck() == frozenset()
    assert world.clock.getDelayedCalls() == []


def test_one_look_makes_a_suspect_and_two_apart_make_it_stuck(world):
    world.down = {"a"}
    assert world.health.halted("a")
    assert not world.health.halted("b")
    assert world.health.stuck() == frozenset()
    world.clock.advance(HALTED_APART_S - 1)
    world.health.look(("a", "b"))
    assert world.health.stuck() == frozenset(), "less than the time apart"
    world.clock.advance(1)
    assert world.health.stuck() == {"a"}
    assert world.changed == ["a"]


def test_a_moment_in_the_disk_is_forgiven(world):
    world.down = {"a"}
    world.health.look(("a",))
    world.down = set()
    world.clock.advance(HALTED_APART_S)
    assert world.health.stuck() == frozenset()
    assert not world.health.halted("a")
    assert world.clock.getDelayedCalls() == []


def test_it_is_cleared_only_by_an_answer_of_the_monitor(world):
    world.down = {"a"}
    world.health.look(("a",))
    world.clock.advance(HALTED_APART_S)
    assert world.probed == [], "a halted one is not asked: the call would hang"
    world.down = set()
    world.clock.advance(HALTED_APART_S)
    assert world.probed == ["a"]
    assert world.health.stuck() == {"a"}
    world.health.answered("a")
    assert world.health.stuck() == frozenset()
    assert world.changed == ["a", "a"]
    world.clock.advance(HALTED_APART_S)
    assert world.clock.getDelayedCalls() == []


def test_a_late_call_makes_it_stuck_at_once_and_it_is_asked_again(world):
    world.health.late("a")
    assert world.health.stuck() == {"a"}
    assert world.health.halted("a")
    world.clock.advance(HALTED_APART_S)
    world.clock.advance(HALTED_APART_S)
    assert world.probed == ["a", "a"]


def test_its_end_ends_it(world):
    world.health.late("a")
    world.health.ended("a")
    assert world.health.stuck() == frozenset()
    world.clock.advance(HALTED_APART_S)
    assert world.clock.getDelayedCalls() == []


def test_nothing_ticks_after_the_stop(world):
    world.health.late("a")
    world.health.stop()
    assert world.clock.getDelayedCalls() == []
