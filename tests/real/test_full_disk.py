"""A disk that is really full, under a real guest: QEMU pauses it; we tell, leave it, and let it go on when asked.

The overlays lie on a small file system of their own.  `ballast` stands for what others wrote there.
"""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest

from tests.real.conftest import start_args
from tests.support.agent import Agent, Controller, vm_of
from tests.support.smalldisk import GIB, Small
from tests.support.waiting import until

WRITES = r"""#!/bin/sh
n=0
while :; do
  n=$((n + 1))
  echo "TRIED $n." | dd of=/dev/vda bs=1M seek=$((200 + n % 600)) conv=notrunc,fsync
  sleep 0.2
done
"""


@pytest.fixture
def host(small: Small, agent: Agent) -> Agent:
    agent.config["images"]["overlays"] = str(small.folder)
    agent.config["snapshots"] = {"allowed": True, "job_s": 60}
    agent.start()
    return agent


def started(controller: Controller, **kw: Any) -> str:
    vm = vm_of(controller.send("vm.start", start_args(user_data=base64.b64encode(WRITES.encode()).decode(), **kw)))
    controller.wait_phase(vm, "ready")
    return vm


def seen(host: Agent, vm: str) -> Any:
    return host.ask("show", vm=vm)["state"]


def tried(small: Small, vm: str) -> int:
    text = (small.folder / f"{vm}.qcow2").read_bytes()
    return max((int(n) for n in re.findall(rb"TRIED (\d+)\.", text)), default=0)


def test_a_guest_that_meets_a_full_disk_is_told_left_and_goes_on_when_asked(
    small: Small, host: Agent, controller: Controller
) -> None:
    vm = started(controller)
    until(lambda: tried(small, vm), 60, "it writes")
    small.fill()
    state = controller.wait_phase(vm, "paused")
    assert state["hypervisor"] == {"state": "paused", "reason": "ioerror"} and state["alarms"] == ["paused-by-others"]
    assert state["owner"]["subject"] and state["desired"] == "run"
    alerts = until(lambda: [one["data"] for one in controller.events("security.alert")
                            if one["data"].get("vm") == vm], 20, "the alert that goes with it")
    (alert,) = alerts
    assert alert["kind"] == "paused-by-others" and "ioerror" in alert["detail"]
    reply = controller.reply(controller.send("vm.snapshot", {"vms": [vm], "name": "s"}), "refused")
    assert reply["problem"]["type"] == "no-capacity"
    still_full = controller.reply(controller.send("vm.resume", {"vms": [vm]}), "failed")
    assert still_full["result"]["members"][0]["problem"]["type"] == "paused-by-others"
    small.empty()
    stopped_at = tried(small, vm)
    controller.reply(controller.send("vm.resume", {"vms": [vm]}), "done")
    until(lambda: tried(small, vm) > stopped_at, 60, "it writes again, and nothing of it was lost")
    until(lambda: seen(host, vm)["phase"] == "ready" and not seen(host, vm)["alarms"], 60, "all is well")
    assert seen(host, vm)["incarnation"] == 0


def test_a_full_disk_at_the_turn_of_a_snapshot_leaves_nothing_of_it(
    small: Small, host: Agent, controller: Controller
) -> None:
    """Accepted while there was room; when it is to begin others have taken it."""
    vm = started(controller)
    host.kill9()
    host.start(crash_at="before-take-snapshot")
    id = controller.send("vm.snapshot", {"vms": [vm], "name": "s", "quiesce": "no"})
    host.crashed()
    small.fill(leave=1 * GIB)  # the floor
    host.start()
    reply = controller.reply(id, "failed")
    assert reply["result"]["members"][0]["problem"]["type"] == "no-capacity"
    until(lambda: seen(host, vm)["snapshots"][0]["state"] == "failed", 60, "it is undone")
    assert sorted(path.name for path in small.folder.glob(f"{vm}*")) == [f"{vm}.qcow2"]
    assert seen(host, vm)["phase"] == "ready"
