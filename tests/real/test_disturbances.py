"""Issue 1, proof 3: brokers and libvirt that die, QEMUs that freeze, and administrators behind the agent's back."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from typing import Any, List

from tests.real.conftest import domains, qemu_pids, start_args, virsh
from tests.support.agent import Agent, Controller, vm_of
from tests.support.waiting import until


def bare(**kw: Any) -> Any:
    """A VM without a network: ready as soon as it runs."""
    return start_args(networks=None, **kw)


def started(controller: Controller, **kw: Any) -> str:
    vm = vm_of(controller.send("vm.start", bare(**kw)))
    controller.wait_phase(vm, "ready")
    return vm


def alerts(controller: Controller, vm: str) -> List[str]:
    return [e["data"]["kind"] for e in controller.events("security.alert") if e["data"].get("vm") == vm]


def freeze(vm: str, how: int = signal.SIGSTOP) -> None:
    for pid in qemu_pids(vm):
        os.kill(pid, how)


def test_broker_killed_under_load(agent: Agent, controller: Controller, rabbitmq: Any) -> None:
    agent.start()
    id = controller.send("vm.start", bare(count=4))
    controller.reply(id)
    rabbitmq.kill()
    until(lambda: list(domains().values()) == ["running"] * 4, 60, "starts without a broker")
    until(lambda: [row["phase"] for row in agent.ask("list")["vms"]] == ["ready"] * 4, 60, "ready without a broker")
    rabbitmq.start()
    controller.reconnect()
    again = controller.send("vm.query", {"all": True})
    controller.reply(again, "done")
    snapshot = controller.send("host.report", {})
    controller.reply(snapshot, "done")
    until(lambda: controller.events("host.snapshot"), 20, "the snapshot")
    assert {v["phase"] for v in controller.events("host.snapshot")[-1]["data"]["vms"]} == {"ready"}
    assert [f for f in controller.gaps() if "two contents" in f] == []
    kill = controller.send("vm.kill", {"all": True})
    controller.reply(kill, "done")


def test_replies_survive_a_broker_restart(agent: Agent, controller: Controller, rabbitmq: Any) -> None:
    """Queues are durable, so every reply must come although the broker was killed while it was owed."""
    agent.start()
    id = controller.send("vm.start", bare())
    controller.reply(id)
    rabbitmq.kill()
    until(lambda: (agent.ask("show", vm=vm_of(id)) or {}).get("row", {}).get("phase") == "ready", 60, "ready")
    rabbitmq.start()
    controller.reconnect()
    controller.reply(id, "done")
    assert len([r for r in controller.replies(id) if r["status"] == "done"]) <= 2
    controller.reply(controller.send("vm.kill", {"all": True}), "done")


def test_one_frozen_qemu_is_one_frozen_qemu(agent: Agent, controller: Controller) -> None:
    agent.config["hypervisor"]["stuck_after_s"] = 5
    agent.start()
    sick, well = started(controller, name="sick"), started(controller, name="well")
    freeze(sick)
    controller.wait_phase(sick, "stuck")
    controller.reply(controller.send("vm.pause", {"vms": [well]}), "done", 20)
    controller.reply(controller.send("vm.resume", {"vms": [well]}), "done", 20)
    assert agent.ask("list")
    assert controller.states(well)[-1]["phase"] == "ready"
    assert "stuck" in alerts(controller, sick)
    controller.reply(controller.send("vm.kill", {"vms": [sick]}), "done", 60)
    assert not qemu_pids(sick) and qemu_pids(well)
    controller.reply(controller.send("vm.kill", {"all": True}), "done")


def test_a_thawed_qemu_is_well_again(agent: Agent, controller: Controller) -> None:
    agent.start()
    vm = started(controller)
    freeze(vm)
    controller.wait_phase(vm, "stuck")
    freeze(vm, signal.SIGCONT)
    until(lambda: controller.states(vm)[-1]["phase"] == "ready", 90, "ready again")
    controller.reply(controller.send("vm.kill", {"all": True}), "done")


def test_five_frozen_and_a_start(agent: Agent, controller: Controller) -> None:
    agent.start()
    id = controller.send("vm.start", bare(count=5))
    controller.reply(id, "done", 90)
    frozen = [vm_of(id, member) for member in range(5)]
    for vm in frozen:
        freeze(vm)
    controller.reply(controller.send("vm.reboot", {"vms": frozen}))  # five monitor calls that never return
    vm = started(controller, name="sixth")
    assert controller.states(vm)[-1]["phase"] == "ready"
    assert all(qemu_pids(one) for one in frozen)
    controller.reply(controller.send("vm.kill", {"all": True}), "done", 120)
    assert not domains()


def test_a_qemu_that_dies_is_a_crash(agent: Agent, controller: Controller) -> None:
    agent.start()
    vm = started(controller)
    freeze(vm, signal.SIGKILL)
    state = controller.wait_phase(vm, "stopped")
    assert state["outcome"] == "crashed"


def test_behind_our_back(agent: Agent, controller: Controller) -> None:
    agent.start()
    vm = started(controller)
    name = f"vma-{vm}"
    virsh("suspend", name)
    controller.wait_phase(vm, "paused")
    until(lambda: "paused-by-others" in alerts(controller, vm), 20, "the alert")
    assert virsh("domstate", name).strip() == "paused"  # reported, not resumed
    virsh("resume", name)
    until(lambda: controller.states(vm)[-1]["phase"] == "ready", 30, "ready again")
    virsh("undefine", name)  # it runs on, transient
    virsh("destroy", name)
    state = controller.wait_phase(vm, "stopped")
    assert state["outcome"] == "lost"  # nobody can tell any more how it ended, so nobody says so
    until(lambda: (agent.ask("over", handle=vm) or {}).get("over"), 30, "the end")


def test_started_again_behind_our_back(agent: Agent, controller: Controller) -> None:
    agent.start()
    vm = vm_of(controller.send("vm.start", bare(keep_s=600)))
    controller.wait_phase(vm, "ready")
    controller.reply(controller.send("vm.stop", {"vms": [vm], "grace_s": 1}), "done")
    virsh("start", f"vma-{vm}")
    until(lambda: "started-by-others" in alerts(controller, vm), 30, "the alert")
    until(lambda: not qemu_pids(vm), 30, "its end")
    controller.reply(controller.send("vm.kill", {"vms": [vm]}), "done")


def test_foreign_domains_and_clones_are_left_alone(agent: Agent, controller: Controller) -> None:
    agent.start()
    vm = started(controller)
    xml = virsh("dumpxml", "--inactive", f"vma-{vm}")
    twin = str(uuid.uuid4())
    copy = xml.replace(f"<uuid>{vm}</uuid>", f"<uuid>{twin}</uuid>").replace(f"<name>vma-{vm}</name>",
                                                                            f"<name>clone-{twin[:8]}</name>")
    path = agent.folder / "clone.xml"
    path.write_text(copy)
    try:
        virsh("define", str(path))
        until(lambda: any(f["uuid"] == twin for f in agent.ask("list")["foreign"]), 70, "the clone as foreign")
        controller.reply(controller.send("vm.kill", {"all": True}), "done")
        assert virsh("domstate", twin).strip() == "shut off"
        refused = controller.send("vm.kill", {"vms": [twin]})
        assert controller.reply(refused)["problem"]["type"] == "not-found"
        assert virsh("domuuid", f"clone-{twin[:8]}").strip() == twin
    finally:
        virsh("undefine", f"clone-{twin[:8]}")


def test_the_guest_powers_itself_off(agent: Agent, controller: Controller) -> None:
    """Nobody's command: it is finished, not healed."""
    agent.start()
    vm = vm_of(controller.send("vm.start", start_args()))
    controller.wait_phase(vm, "ready")
    pressed = [0.0]

    def off() -> bool:
        """The button is pressed again now and then, as people do: a guest that boots may not hear it yet."""
        if time.monotonic() > pressed[-1] + 10:
            pressed.append(time.monotonic())
            virsh("shutdown", f"vma-{vm}", "--mode", "acpi")
        return "stopped" in controller.phases(vm)

    until(off, 90, "it powers itself off")
    assert controller.states(vm)[-1]["outcome"] == "finished"
    until(lambda: not domains(), 30, "the end")


def test_stopping_the_agent_stops_no_guest(agent: Agent, controller: Controller) -> None:
    agent.start()
    vm = started(controller)
    pids = qemu_pids(vm)
    assert agent.stop() == 0
    assert qemu_pids(vm) == pids and virsh("domstate", f"vma-{vm}").strip() == "running"
    agent.start()
    until(lambda: (agent.ask("show", vm=vm) or {}).get("row", {}).get("phase") == "ready", 30, "ready as before")
    assert qemu_pids(vm) == pids
    controller.reply(controller.send("vm.kill", {"all": True}), "done")
    assert subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=True)


def test_libvirtd_killed_and_back(agent: Agent, controller: Controller, libvirt: Any) -> None:
    """Away is unknown, never off; when it is back everything is as it was."""
    agent.start()
    vm = started(controller)
    pids = qemu_pids(vm)
    libvirt.kill()
    controller.wait_phase(vm, "unknown", 60)
    assert agent.ask("status")["degraded"].get("libvirt")
    waiting = controller.send("vm.start", bare(name="waits"))
    controller.reply(waiting)
    assert qemu_pids(vm) == pids
    libvirt.start()
    until(lambda: controller.states(vm)[-1]["phase"] == "ready", 60, "ready again")
    controller.reply(waiting, "done", 90)
    assert qemu_pids(vm) == pids and "stopped" not in controller.phases(vm)
    controller.reply(controller.send("vm.kill", {"all": True}), "done")


def test_a_frozen_libvirtd_leaves_socket_and_broker_alive(agent: Agent, controller: Controller, libvirt: Any) -> None:
    agent.start()
    vm = started(controller)
    libvirt.process.send_signal(signal.SIGSTOP)
    try:
        controller.wait_phase(vm, "unknown", 90)
        assert agent.ask("list")["vms"][0]["phase"] == "unknown"
        assert controller.reply(controller.send("vm.query", {"all": True}), "done", 20)
    finally:
        libvirt.process.send_signal(signal.SIGCONT)
    until(lambda: controller.states(vm)[-1]["phase"] == "ready", 90, "ready again")
    controller.reply(controller.send("vm.kill", {"all": True}), "done")
