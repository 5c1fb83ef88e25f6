"""Over the edge of a month with a real guest: the clock is stepped, agent and QEMU die, the guest rests and reboots."""

from __future__ import annotations

import datetime
import os
import signal
import time
from pathlib import Path
from typing import Any, Dict, List

from tests.real.conftest import qemu_pids, start_args
from tests.real.test_accounting import CHATTER, published, rows, transfer
from tests.support import day
from tests.support.agent import SITE, Agent, Controller, vm_of
from tests.support.fakedclock import WallClock
from tests.support.waiting import until
from vmagent.core import walltime

RESTS_S = 6.0
LOOK_S = 1.0  # a command, its libvirt call and the look after it


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def month_ends_soon(clock: WallClock) -> str:
    """Step to two edges before the end of a month, by whole minutes; when that is."""
    soon = datetime.datetime.fromtimestamp(clock.now(), datetime.timezone.utc) + datetime.timedelta(days=2)
    edge = (soon.replace(day=1) + datetime.timedelta(days=32)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    clock.step(int((edge.timestamp() - clock.now()) // 60 - 1) * 60)
    return walltime.text(edge.timestamp())


def told(controller: Controller, clock: WallClock, verb: str, vm: str) -> None:
    controller.reply(controller.send(verb, {"vms": [vm]}, **clock.members()), "done")


def gap(rows: List[Dict[str, Any]]) -> float:
    """Seconds by which the ledger was set forward within these."""
    return sum(max(0.0, row["clock_step_s"]) for row in rows)


def test_a_day_at_the_month_s_end_balances(agent: Agent, controller: Controller, tmp_path: Path) -> None:
    clock = WallClock(tmp_path)
    agent.config["accounting"] = {"period_s": 60}
    agent.config["telemetry"] = {"fine_s": 5, "coarse_s": 10}
    controller.link.subscribe(f"/queue/vmagent.{SITE}.usage")
    clock.start(agent)
    vm = vm_of(controller.send("vm.start", start_args(), **clock.members()))
    controller.wait_phase(vm, "ready")
    ran = boottime()
    known = transfer(100)
    month = month_ends_soon(clock)
    rested = rest(agent, controller, clock, vm)
    agent.kill9()
    known += transfer(100)
    clock.start(agent)
    (pid,) = qemu_pids(vm)
    told(controller, clock, "vm.reboot", vm)
    until(lambda: len(rows(agent, vm)) > 1 and rows(agent, vm)[-1]["to"] >= month, 240, "the month is over")
    assert qemu_pids(vm) == (pid,), "a guest that reboots is the same segment"
    until(answering, 60, "it answers again")
    known += transfer(100)
    os.kill(pid, signal.SIGKILL)
    ended = boottime()
    until(lambda: rows(agent, vm)[-1]["final"], 90, "the segment is closed")
    booked = rows(agent, vm)
    assert month in [row["to"] for row in booked] and month in [row["from"] for row in booked]
    check(booked, known, rested, ended - ran)
    until(lambda: len(published(controller, vm)) == len(booked), 30, "every period is published")
    assert [published(controller, vm)[row["segment"], row["period"]] for row in booked] == booked


def answering() -> bool:
    return transfer(1) > 0


def rest(agent: Agent, controller: Controller, clock: WallClock, vm: str) -> float:
    """Paused for a while: how long, from between the two calls' answers."""
    told(controller, clock, "vm.pause", vm)
    paused = boottime()
    until(lambda: boottime() - paused > RESTS_S, 60, "it rests")
    told(controller, clock, "vm.resume", vm)
    return boottime() - paused


def check(booked: List[Dict[str, Any]], known: int, rested: float, ran: float) -> None:
    day.balanced(booked)
    last = booked[-1]
    assert {row["segment"] for row in booked} == {last["segment"]}
    assert gap(booked) > 24 * 3600, "the step is told"
    assert abs(last["total"]["suspended_s"] - rested) < 2 * LOOK_S
    seconds = sum(row["seconds"] for row in booked)
    assert ran - LOOK_S < seconds < ran + 60, "the clock's step is nobody's time"
    network = last["total"]["network"]
    for way in ("in", "out"):
        counted = network[f"{way}_local_bytes"] + network[f"{way}_external_bytes"]
        assert known <= counted <= known + 2 * CHATTER, (way, known, network)
    assert min(numbers([row["used"] for row in booked])) >= 0


def numbers(tree: Any) -> List[float]:
    """All of them, at any depth; what nobody knows is none."""
    if isinstance(tree, dict):
        return numbers(list(tree.values()))
    if isinstance(tree, list):
        return [number for each in tree for number in numbers(each)]
    return [] if tree is None else [tree]
