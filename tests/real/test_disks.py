"""Disks of real guests: back to the golden image, data volumes, scratch (R13).

The guest counts in its data volume how often it was started, and spoils the other disks that it has: its own begins
with `spoiled` then, and would not boot again.
"""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from tests.real.conftest import domains, qemu_pids
from tests.support.agent import Agent, Controller, vm_of
from tests.support.waiting import until

SCRIPT = b"""#!/bin/sh
until [ -b /dev/vdd ]; do sleep 1; done
read -r lives < /dev/vdc
echo spoiled > /dev/vda
echo spoiled > /dev/vdd
[ -b /dev/vde ] && echo spoiled > /dev/vde
sync
echo $((lives + 1)) > /dev/vdc
sync
"""
# What it finds on the disk that is attached later goes to its report; its name takes the place of that.
LATER = b"""#!/bin/sh
until [ -b /dev/vdd ]; do sleep 1; done
read -r found < /dev/vdd
echo NAME > /dev/vdd
echo "$found" > /dev/vdc
sync
"""
MIB = 2**20
BOOT_S = 120.0  # emulated, on a busy machine
MODE = 0o666


@pytest.fixture
def site(agent: Agent, tmp_path: Path) -> Iterator[Path]:
    """Volumes that QEMU's own user may open."""
    for name in ("data", "reference", "reports-1", "reports-2"):
        volume = tmp_path / f"{name}.raw"
        volume.write_bytes(b"0\n".ljust(2 * MIB, b"\0"))
        volume.chmod(MODE)
    agent.config["volumes"] = {
        name: {"path": str(tmp_path / f"{name}.raw"), "writable": name != "reference"}
        for name in ("data", "reference", "reports-1", "reports-2")
    }
    agent.config["limits"]["disk_gib"] = 3
    agent.start()
    yield tmp_path


def args(**kw: Any) -> Dict[str, Any]:
    script = base64.b64encode(SCRIPT).decode()
    return {"flavour": "tiny", "image": {"id": "try"}, "lifetime_s": 1200, "user_data": script, **kw}


def start_of(path: Path, format: str = "raw") -> bytes:
    """Its first line, read beside a QEMU that has it open."""
    said = subprocess.run(["qemu-io", "-U", "-r", "-f", format, "-c", "read -v 0 16", str(path)],
                          capture_output=True, text=True, check=True).stdout
    return bytes.fromhex("".join(said.splitlines()[0].split()[1:17])).split(b"\n")[0]


def overlay(site: Path, vm: str) -> Path:
    return site / "state" / "overlays" / f"{vm}.qcow2"


def lives(site: Path, wanted: int) -> None:
    until(lambda: start_of(site / "data.raw") == str(wanted).encode(), BOOT_S, f"the volume counts {wanted}")


def owner(path: Path) -> List[int]:
    seen = path.stat()
    return [seen.st_uid, seen.st_gid, seen.st_mode]


def test_what_it_wrote_is_gone_after_a_revert_and_a_volume_keeps_it(
    site: Path, controller: Controller, golden: Any
) -> None:
    directory, image = golden
    files = (site / "data.raw", site / "reference.raw", directory / image["file"])
    owners = [owner(path) for path in files]
    vm = vm_of(controller.send("vm.start", args(disks=[
        {"volume": "data"}, {"scratch_gib": 1}, {"volume": "reference", "read_only": True}])))
    state = controller.wait_phase(vm, "ready")
    assert [disk["serial"] for disk in state["disks"]] == ["data", "scratch-d", "reference"]
    lives(site, 1)
    scratch = site / "state" / "overlays" / f"{vm}.scratch-d.raw"
    controller.reply(controller.send("vm.pause", {"vms": [vm]}), "done")  # QEMU flushes what only it knows then
    assert start_of(overlay(site, vm), "qcow2") == start_of(scratch) == b"spoiled"
    for life, verb in ((2, "vm.revert"), (3, "vm.restart")):
        controller.reply(controller.send(verb, {"vms": [vm], "grace_s": 0}), "done", 120)
        lives(site, life)  # it booted: its disk was fresh
    assert controller.states(vm)[-1]["incarnation"] == 2
    assert len(domains()) == len(qemu_pids(vm)) == 1
    controller.reply(controller.send("vm.kill", {"vms": [vm]}), "done")
    until(lambda: not overlay(site, vm).exists() and not scratch.exists(), 20, "its own disks to go")
    assert [start_of(path) for path in files[:2]] == [b"3", b"0"]
    assert hashlib.sha512(files[2].read_bytes()).hexdigest() == image["sha512"]
    assert [owner(path) for path in files] == owners


def test_who_writes_has_it_alone_and_readers_share(site: Path, controller: Controller) -> None:
    both = vm_of(controller.send("vm.start", args(disks=[{"volume": "reference", "read_only": True}])))
    more = controller.send("vm.start", args(disks=[{"cdrom": "reference"}, {"volume": "data"}]))
    controller.reply(more, "done", 120)
    controller.wait_phase(both, "ready")
    refused = controller.reply(controller.send("vm.start", args(disks=[{"volume": "data", "read_only": True}])))
    assert refused["problem"]["type"] == "volume-in-use"
    controller.reply(controller.send("vm.kill", {"vms": [vm_of(more)]}), "done")
    controller.reply(controller.send("vm.start", args(disks=[{"volume": "data", "read_only": True}])), "done", 120)
    controller.reply(controller.send("vm.kill", {"all": True}), "done")


def again(controller: Controller, vm: str) -> bool:
    """Its next life was seen to be ready."""
    return any(state["incarnation"] == 1 and state["phase"] == "ready" for state in controller.states(vm))


def test_a_guest_whose_qemu_dies_is_made_anew(site: Path, controller: Controller) -> None:
    disks = [{"volume": "data"}, {"scratch_gib": 1}]
    vm = vm_of(controller.send("vm.start", args(restart="always", disks=disks)))
    lives(site, 1)
    (pid,) = qemu_pids(vm)
    os.kill(pid, signal.SIGKILL)
    lives(site, 2)
    assert again(controller, vm)
    controller.reply(controller.send("vm.kill", {"vms": [vm]}), "done")


@pytest.mark.parametrize("point", ["before-undefine", "after-clean-up", "before-make-overlay", "after-resume"])
def test_killed_in_a_restart_it_runs_once_from_a_fresh_disk(
    site: Path, agent: Agent, controller: Controller, point: str
) -> None:
    vm = vm_of(controller.send("vm.start", args(disks=[{"volume": "data"}, {"scratch_gib": 1}])))
    lives(site, 1)
    agent.kill9()
    agent.start(crash_at=point)
    controller.send("vm.restart", {"vms": [vm], "grace_s": 0})
    agent.crashed(90)
    agent.start()
    lives(site, 2)
    until(lambda: again(controller, vm), 60, "its next life")
    assert len(qemu_pids(vm)) == 1
    controller.reply(controller.send("vm.kill", {"vms": [vm]}), "done")
    assert start_of(site / "data.raw") == b"2"


def reporting(controller: Controller, number: int) -> str:
    """A guest that waits for a disk."""
    script = base64.b64encode(LATER.replace(b"NAME", b"guest-%d" % number)).decode()
    vm = vm_of(controller.send("vm.start", args(user_data=script, disks=[{"volume": f"reports-{number}"}])))
    controller.wait_phase(vm, "ready", BOOT_S)
    return vm


def used(controller: Controller, vm: str) -> Any:
    """When it had the volume, as accounting reads it."""
    (use,) = [one for one in controller.states(vm)[-1]["volumes"] if one["volume"] == "data"]
    return use["attached_at"], use["detached_at"]


def test_attached_to_a_running_guest_and_then_to_another_which_reads_what_the_first_wrote(
    site: Path, agent: Agent, controller: Controller
) -> None:
    first, second = reporting(controller, 1), reporting(controller, 2)
    agent.kill9()
    agent.start(crash_at="after-attach-disk")  # the guest has it, and nobody wrote that down
    command = controller.send("vm.attach", {"vms": [first], "volume": "data"})
    agent.crashed(60)
    agent.start()
    controller.reply(command, "done", 60)
    attached_at, detached_at = used(controller, first)
    assert attached_at and not detached_at
    until(lambda: start_of(site / "data.raw") == b"guest-1", BOOT_S, "the first guest sees it and writes")
    refused = controller.reply(controller.send("vm.attach", {"vms": [second], "volume": "data"}))
    assert refused["problem"]["type"] == "volume-in-use"
    controller.reply(controller.send("vm.detach", {"vms": [first], "volume": "data"}), "done", 60)
    attached_at, detached_at = used(controller, first)
    assert attached_at < detached_at
    controller.reply(controller.send("vm.attach", {"vms": [second], "volume": "data"}), "done", 60)
    until(lambda: start_of(site / "reports-2.raw") == b"guest-1", BOOT_S, "the second guest reads what the first wrote")
    until(lambda: start_of(site / "data.raw") == b"guest-2", 20, "the second guest writes")
    assert used(controller, second)[0] >= detached_at
    assert {len(qemu_pids(vm)) for vm in (first, second)} == {1}
    controller.reply(controller.send("vm.kill", {"all": True}), "done")
