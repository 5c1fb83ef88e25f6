"""R15 on real guests: a snapshot, what is written after it, the way back, a frozen QEMU, `kill -9`, and expiry.

The guest writes marks to its own disk; they are looked for from outside, in the files of the chain.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any, Dict, List

import libvirt
import pytest

from tests.real.conftest import SUBNET, pings, qemu_pids, start_args, virsh
from tests.support.agent import Agent, Controller, vm_of
from tests.support.waiting import until

MARKS = """#!/bin/sh
life=$(sed -n "s/.*instance-id[^0-9a-f]*\\([0-9a-f-]*\\).*/\\1/p" /told/meta-data)
n=0
while :; do
  n=$((n + 1))
  echo "MARK $life $n." | dd of=/dev/vda bs=1M seek=900 conv=notrunc
  sync
  sleep 1
done
"""


LARGE_MIB = 400
FILLS = f"""#!/bin/sh
until [ "$(awk '/^Icmp: [0-9]/ {{print $10}}' /proc/net/snmp)" != 0 ]; do sleep 0.2; done
dd if=/dev/zero of=/dev/vda bs=1M seek=500 count={LARGE_MIB} conv=notrunc,fsync
{MARKS[MARKS.index("life"):]}"""
"""Pinged, it writes so much that to commit it takes a while; and marks from then on."""


@pytest.fixture
def allowed(agent: Agent) -> Agent:
    agent.config["snapshots"] = {"allowed": True, "revert": "allow", "job_s": 15}
    return agent


def started(controller: Controller, **kw: Any) -> str:
    kw.setdefault("user_data", base64.b64encode(MARKS.encode()).decode())
    vm = vm_of(controller.send("vm.start", start_args(**kw)))
    controller.wait_phase(vm, "ready")
    return vm


def snapshots(agent: Agent, vm: str) -> List[Dict[str, Any]]:
    state = (agent.ask("show", vm=vm) or {}).get("state")  # no word of it while the agent starts
    return list(state["snapshots"]) if state else []


def in_state(agent: Agent, vm: str, state: str, seconds: float = 60) -> Dict[str, Any]:
    return until(lambda: [one for one in snapshots(agent, vm) if one["state"] == state], seconds, state)[-1]


def files(agent: Agent, vm: str) -> List[Path]:
    return sorted(Path(agent.config["directories"]["state"]).rglob(f"{vm}*.qcow2"))


def named(agent: Agent, vm: str, end: str) -> Path:
    return next(path for path in files(agent, vm) if path.name == vm + end)


def marked(path: Path, text: str = "MARK ") -> bool:
    os.sync()
    return text.encode() in path.read_bytes()


def test_snapshot_write_revert_delete(allowed: Agent, controller: Controller) -> None:
    allowed.start()
    vm = started(controller, keep_s=300)
    overlay = named(allowed, vm, ".qcow2")
    until(lambda: marked(overlay), 60, "the guest writes to its disk")
    controller.reply(controller.send("vm.snapshot", {"vms": [vm], "name": "before"}), "done")
    layer = named(allowed, vm, ".snap-before.qcow2")
    kept = overlay.read_bytes()
    until(lambda: marked(layer, f"MARK {vm} "), 60, "what is written after the snapshot is in its layer")
    assert overlay.read_bytes() == kept
    controller.reply(controller.send("vm.revert", {"vms": [vm], "snapshot": "before", "grace_s": 0}), "done")
    assert overlay.read_bytes() == kept
    assert not marked(layer, f"MARK {vm} "), "what was written since is gone"
    until(lambda: marked(layer, f"MARK {vm}-1 "), 60, "the next life writes on top of what was kept")
    controller.reply(controller.send("vm.snapshot.delete", {"vms": [vm], "name": "before"}), "done")
    assert files(allowed, vm) == [overlay]
    assert marked(overlay, f"MARK {vm}-1 "), "what was in the layer is in the overlay now"
    stopped_flat_and_sound(allowed, controller, vm)


def stopped_flat_and_sound(agent: Agent, controller: Controller, vm: str) -> None:
    """Ends it; its disk is kept: one overlay, nothing leaked or broken in it, directly on the golden image."""
    controller.reply(controller.send("vm.stop", {"vms": [vm], "grace_s": 0}), "done")
    (overlay,) = files(agent, vm)
    assert overlay.name == f"{vm}.qcow2"
    subprocess.run(["qemu-img", "check", "-q", str(overlay)], check=True)
    told = subprocess.run(["qemu-img", "info", "--backing-chain", "--output=json", str(overlay)], check=True,
                          stdout=subprocess.PIPE).stdout
    golden = Path(agent.config["images"]["directory"]) / agent.config["images"]["catalogue"]["try"]["file"]
    assert [one["filename"] for one in json.loads(told)] == [str(overlay), str(golden)]


def test_expiry_leaves_a_flat_chain_and_the_guest_alone(allowed: Agent, controller: Controller) -> None:
    allowed.start()
    vm = started(controller, keep_s=300)
    controller.reply(controller.send("vm.snapshot", {"vms": [vm], "name": "short", "keep_s": 10}), "done")
    assert len(files(allowed, vm)) == 2
    gone = in_state(allowed, vm, "gone")
    assert gone["created_at"] and gone["ended_at"] and gone["size_bytes"] > 0
    assert [path.name for path in files(allowed, vm)] == [f"{vm}.qcow2"]
    assert ".snap-" not in virsh("dumpxml", f"vma-{vm}")
    assert controller.wait_phase(vm, "ready")["incarnation"] == 0
    stopped_flat_and_sound(allowed, controller, vm)


def test_a_frozen_qemu_is_told_in_time_and_nothing_is_left(allowed: Agent, controller: Controller) -> None:
    allowed.start()
    vm = started(controller)
    (pid,) = qemu_pids(vm)
    os.kill(pid, signal.SIGSTOP)
    try:
        reply = controller.reply(controller.send("vm.snapshot", {"vms": [vm], "name": "late"}), "failed")
        assert reply["result"]["members"][0]["problem"]["type"] == "snapshot-late"
    finally:
        os.kill(pid, signal.SIGCONT)
    in_state(allowed, vm, "failed", 90)
    assert [path.name for path in files(allowed, vm)] == [f"{vm}.qcow2"]
    assert controller.wait_phase(vm, "ready")["incarnation"] == 0


def killed_at(agent: Agent, controller: Controller, instant: str, verb: str, vm: str) -> None:
    """It dies there while it does this to the snapshot "a"; the next one brings it to its end."""
    agent.kill9()
    agent.start(crash_at=instant)
    id = controller.send(verb, {"vms": [vm], "name": "a"})
    until(lambda: not agent.alive(), 60, instant)
    agent.start()
    controller.reply(id, "done")


@pytest.mark.parametrize("instant", ["before-take-snapshot", "after-take-snapshot"])
def test_killed_while_it_is_taken(allowed: Agent, controller: Controller, instant: str) -> None:
    allowed.start()
    vm = started(controller)
    killed_at(allowed, controller, instant, "vm.snapshot", vm)
    assert in_state(allowed, vm, "there")["name"] == "a" and len(files(allowed, vm)) == 2


@pytest.mark.parametrize("instant", ["before-delete-snapshot", "after-delete-snapshot"])
def test_killed_while_it_is_deleted(allowed: Agent, controller: Controller, instant: str) -> None:
    allowed.start()
    vm = started(controller)
    controller.reply(controller.send("vm.snapshot", {"vms": [vm], "name": "a"}), "done")
    killed_at(allowed, controller, instant, "vm.snapshot.delete", vm)
    assert [path.name for path in files(allowed, vm)] == [f"{vm}.qcow2"]
    assert controller.wait_phase(vm, "ready")["incarnation"] == 0


@pytest.mark.parametrize("below", [False, True], ids=["the top layer", "a layer in the middle"])
def test_killed_in_the_middle_of_a_long_commit(allowed: Agent, controller: Controller, below: bool) -> None:
    """QEMU goes on with the block job; the next agent finds it, lets it end, and takes the layer away."""
    allowed.config["snapshots"]["job_s"] = 240
    allowed.start()
    vm = started(controller, keep_s=300, user_data=base64.b64encode(FILLS.encode()).decode())
    take(controller, vm, "a")
    until(lambda: pings(f"{SUBNET}.10"), 30, "the guest is told to fill it")
    layer = named(allowed, vm, ".snap-a.qcow2")
    until(lambda: allocated(layer) > LARGE_MIB << 20 and marked(layer), 120, "the guest fills the layer")
    if below:
        take(controller, vm, "b")
    domain = libvirt.open(allowed.config["hypervisor"]["uri"]).lookupByUUIDString(vm)
    id = controller.send("vm.snapshot.delete", {"vms": [vm], "name": "a"})
    until(lambda: slow(domain), 60, "the commit is under way, at 1 MiB/s from here on")
    allowed.kill9()
    assert domain.blockJobInfo("vda"), "QEMU goes on by itself"
    marks = newest(allowed, vm)
    allowed.start()
    (found,) = until(lambda: [one for one in snapshots(allowed, vm) if one["name"] == "a"], 30, "it knows of it")
    assert found["state"] == "deleting" and domain.blockJobInfo("vda")
    domain.blockJobSetSpeed("vda", 0)
    controller.reply(id, "done")
    assert not layer.exists()
    until(lambda: newest(allowed, vm) > marks, 60, "the guest has gone on all the time")
    assert controller.wait_phase(vm, "ready")["incarnation"] == 0
    if below:
        assert len(files(allowed, vm)) == 2
        controller.reply(controller.send("vm.snapshot.delete", {"vms": [vm], "name": "b"}), "done")
    stopped_flat_and_sound(allowed, controller, vm)


def take(controller: Controller, vm: str, name: str) -> None:
    controller.reply(controller.send("vm.snapshot", {"vms": [vm], "name": name}), "done")


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def slow(domain: libvirt.virDomain) -> bool:
    """Whether there is a block job on its disk, held to 1 MiB/s from here on."""
    try:
        domain.blockJobSetSpeed("vda", 1)
    except libvirt.libvirtError:
        return False
    return bool(domain.blockJobInfo("vda"))


def newest(agent: Agent, vm: str) -> int:
    """The last mark that the guest wrote."""
    numbers = [re.findall(rb"MARK [0-9a-f-]+ (\d+)\.", path.read_bytes()) for path in files(agent, vm)]
    return max((int(n) for found in numbers for n in found), default=0)
