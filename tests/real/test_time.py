"""Issue 1, proof 4: the lease ends with broker and agent down for part of it; a stepped wall clock has no effect."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.real.conftest import domains, qemu_pids, start_args
from tests.support.agent import Agent, Controller, vm_of
from tests.support.fakedclock import WallClock
from tests.support.waiting import until
from vmagent.core import walltime

LEASE_S = 30


def test_a_lease_ends_while_broker_and_agent_were_down(agent: Agent, controller: Controller, rabbitmq: Any) -> None:
    agent.start()
    vm = vm_of(controller.send("vm.start", start_args(lifetime_s=LEASE_S, networks=None)))
    controller.wait_phase(vm, "ready")
    begun = time.clock_gettime(time.CLOCK_BOOTTIME)
    rabbitmq.kill()
    agent.kill9()
    agent.start()
    until(lambda: not qemu_pids(vm), LEASE_S + 15, "the end of the lease")
    lasted = time.clock_gettime(time.CLOCK_BOOTTIME) - begun
    assert lasted > LEASE_S - 12
    rabbitmq.start()
    controller.reconnect()
    until(lambda: agent.ask("over", handle=vm)["over"], 30, "the proof")
    assert agent.ask("over", handle=vm)["members"][0]["outcome"] == "expired"


def test_warnings_come_before_the_end(agent: Agent, controller: Controller) -> None:
    """Both before it is asked to stop: a guest that obeys at once is not told any more."""
    agent.config["lease"]["warn_before_s"] = [20, 10]
    agent.start()
    vm = vm_of(controller.send("vm.start", start_args(lifetime_s=LEASE_S, networks=None)))
    state = controller.wait_phase(vm, "stopped", LEASE_S + 40)
    assert state["outcome"] == "expired"
    warned = [e["data"]["before_s"] for e in controller.events("vm.lease.warning") if e["data"]["vm"] == vm]
    assert warned == [20, 10]


@pytest.mark.parametrize("step", (86400, -86400))
def test_a_stepped_wall_clock_changes_no_lease(agent: Agent, controller: Controller, step: int, tmp_path: Path) -> None:
    clock = WallClock(tmp_path)
    clock.start(agent)
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    vm = vm_of(controller.send("vm.start", start_args(lifetime_s=LEASE_S + 10, networks=None)))
    controller.wait_phase(vm, "ready")
    clock.step(step)
    until(lambda: abs(_skew(agent)) > 80000, 20, "the step in the agent's wall clock")
    used = agent.ask("show", vm=vm)["state"]["lease"]["used_s"]
    assert used <= time.clock_gettime(time.CLOCK_BOOTTIME) - before + 1
    assert qemu_pids(vm)
    state = controller.wait_phase(vm, "stopped", LEASE_S + 60)
    lasted = time.clock_gettime(time.CLOCK_BOOTTIME) - before
    assert state["outcome"] == "expired" and LEASE_S - 5 < lasted < LEASE_S + 60
    until(lambda: not domains() and shutil.which("virsh"), 20, "its definition is gone")


def _skew(agent: Agent) -> float:
    answer = agent.ask("status")
    return walltime.seconds(answer["wall"]) - time.time() if answer and "wall" in answer else 0.0
