"""Issue 1, proof 1: a guest boots, gets its address, answers; the collector misses nothing; twice is once."""

from __future__ import annotations

import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

from tests.real.conftest import SUBNET, SUBNET6, domains, pings, qemu_pids, start_args, virsh
from tests.support.agent import Agent, Controller, vm_of
from tests.support.waiting import until
from vmagent.core import schemas


def over(agent: Agent, handle: str) -> bool:
    answer = agent.ask("over", handle=handle)
    return bool(answer and answer.get("over"))


def test_from_frame_to_guest_and_back(agent: Agent, controller: Controller) -> None:
    agent.start()
    id = str(uuid.uuid4())
    body = controller.body("vm.start", start_args(), id=id)
    controller.post(body)
    vm = vm_of(id)
    assert controller.reply(id)["status"] == "accepted"
    state = controller.wait_phase(vm, "ready")
    assert state["image"]["id"] == "try" and state["desired"] == "run"
    assert pings(f"{SUBNET}.10") and pings(f"{SUBNET6}:10")
    assert controller.reply(id, "done")["result"]["members"][0]["status"] == "done"
    assert [p for p in controller.phases(vm) if p != "unknown"] == ["pending", "starting", "running", "ready"] or \
        controller.phases(vm)[-1] == "ready"
    # the same again: nothing happens, the same reply comes
    replies = len(controller.replies(id))
    controller.post(body)
    until(lambda: len(controller.replies(id)) > replies, 20, "the stored reply again")
    assert controller.replies(id)[-1] == controller.reply(id, "done")
    assert len(domains()) == 1
    stop = controller.send("vm.stop", {"vms": [vm]})
    controller.reply(stop, "done")
    assert controller.wait_phase(vm, "stopped")["outcome"] == "killed"
    until(lambda: over(agent, id), 30, "the proof that it is over")
    assert not domains() and not qemu_pids(vm) and not pings(f"{SUBNET}.10")
    assert controller.gaps() == []
    for event in controller.events():
        schemas.check("cloudevent", event)
        schemas.check("event." + event["type"].replace("org.vmagent.", ""), event["data"])


def test_the_golden_image_is_never_written_and_stays_ours(agent: Agent, controller: Controller, golden: Any) -> None:
    directory, image = golden
    before = (directory / image["file"]).stat()
    agent.start()
    vm = vm_of(controller.send("vm.start", start_args()))
    controller.wait_phase(vm, "ready")
    xml = virsh("dumpxml", f"vma-{vm}")
    assert f"{vm}.qcow2" in xml
    now = (directory / image["file"]).stat()
    assert (before.st_uid, before.st_gid, before.st_mtime_ns) == (now.st_uid, now.st_gid, now.st_mtime_ns)
    controller.reply(controller.send("vm.kill", {"vms": [vm]}), "done")
    digest = subprocess.run(["sha512sum", str(directory / image["file"])], capture_output=True, text=True, check=True)
    assert digest.stdout.split()[0] == image["sha512"]


def test_pause_resume_reboot_extend_query(agent: Agent, controller: Controller) -> None:
    agent.start()
    vm = vm_of(controller.send("vm.start", start_args()))
    controller.wait_phase(vm, "ready")
    controller.reply(controller.send("vm.pause", {"vms": [vm]}), "done")
    assert virsh("domstate", f"vma-{vm}").strip() == "paused"
    controller.reply(controller.send("vm.resume", {"vms": [vm]}), "done")
    assert virsh("domstate", f"vma-{vm}").strip() == "running"
    controller.reply(controller.send("vm.extend", {"vms": [vm], "lifetime_s": 1200}), "done")
    answer = controller.reply(controller.send("vm.query", {"all": True}), "done")
    assert answer["result"]["vms"][0]["lease"]["granted_s"] == 1200
    controller.reply(controller.send("vm.reboot", {"vms": [vm]}), "done")
    controller.reply(controller.send("vm.kill", {"vms": [vm]}), "done")


def test_a_cpu_cap_that_drifts_is_repaired(agent: Agent, controller: Controller) -> None:
    """Somebody lifts the cap behind our back: it is set again, and told once."""
    agent.config["intervals"] = {"hold_s": 2}
    agent.start()
    args = start_args(flavour=None, cores=1, memory_mib=128, disk_gib=1, cpu_cap_core_percent=50, networks=None)
    vm = vm_of(controller.send("vm.start", args))
    controller.wait_phase(vm, "ready")
    virsh("schedinfo", f"vma-{vm}", "--live", "global_quota=-1")
    until(lambda: "50000" in _quota(vm), 20, "the cap again")
    until(lambda: [e for e in controller.events("security.alert") if e["data"]["kind"] == "cpu-drift"], 20, "the alert")
    controller.reply(controller.send("vm.kill", {"vms": [vm]}), "done")


def _quota(vm: str) -> str:
    text = virsh("schedinfo", f"vma-{vm}")
    return next((line for line in text.splitlines() if line.startswith("global_quota")), "")


def test_the_cpu_cap_is_in_the_live_domain(agent: Agent, controller: Controller) -> None:
    agent.start()
    vm = vm_of(controller.send("vm.start", start_args(flavour=None, cores=1, memory_mib=128, disk_gib=1,
                                                        cpu_cap_core_percent=50)))
    controller.wait_phase(vm, "running")
    assert _quota(vm).endswith(": 50000")
    controller.reply(controller.send("vm.kill", {"vms": [vm]}), "done")


def test_bulk_is_all_or_nothing_when_asked(agent: Agent, controller: Controller) -> None:
    agent.start()
    args = start_args(count=3, atomic=True, networks=None)
    id = controller.send("vm.start", args)
    done = controller.reply(id, "done")
    assert [m["status"] for m in done["result"]["members"]] == ["done"] * 3
    assert len(domains()) == 3
    refused = controller.send("vm.start", start_args(count=29, atomic=True, networks=None, memory_mib=1024, cores=1,
                                                     disk_gib=1, flavour=None))
    assert controller.reply(refused)["problem"]["type"] == "no-capacity"
    assert len(domains()) == 3
    controller.reply(controller.send("vm.kill", {"all": True}), "done")


def test_a_drained_host_refuses_and_a_dry_run_changes_nothing(agent: Agent, controller: Controller) -> None:
    agent.start()
    dry = controller.reply(controller.send("vm.start", start_args(dry_run=True)))
    assert dry["status"] == "done" and not domains()
    controller.reply(controller.send("host.drain", {}), "done")
    assert controller.reply(controller.send("vm.start", start_args()))["problem"]["type"] == "drained"
    controller.reply(controller.send("host.undrain", {}), "done")
    assert json.dumps(agent.ask("list"))


def test_the_main_job_through_activemq(agent: Agent, activemq: Any, trust: Path) -> None:
    """The same, through the other broker."""
    agent.config["broker"].update(profile="activemq", urls=[activemq.url])
    controller = Controller(activemq.port, (trust / "controller.key").read_bytes(),
                            (trust / "controller.pem").read_bytes())
    try:
        agent.start()
        vm = vm_of(controller.send("vm.start", start_args()))
        controller.wait_phase(vm, "ready")
        assert pings(f"{SUBNET}.10")
        controller.reply(controller.send("vm.stop", {"vms": [vm]}), "done")
        assert controller.gaps() == []
    finally:
        controller.close()
