"""Issue 1, proof 2: `kill -9` at each step between frame and `ready`; the store lost; an old store restored."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.real.conftest import SUBNET, domains, pings, qemu_pids, start_args
from tests.support import confined
from tests.support.agent import Agent, Controller, vm_of
from tests.support.waiting import until
from vmagent.core import walltime
from vmagent.core.actions import Do

START = (Do.MAKE_OVERLAY, Do.MAKE_SEED, Do.APPLY_FIREWALL, Do.DEFINE, Do.START_PAUSED, Do.SHAPE, Do.RESUME)
# One start's steps in an order that always holds: rules and definition are made at the same time, and an interface is
# shaped while its QEMU starts.
IN_TURN = tuple(f"{when}-{do.value}" for do in START for when in ("before", "after")
                if do is not Do.DEFINE and (when, do) != ("after", Do.START_PAUSED))
NETWORK = (Do.APPLY_FIREWALL, Do.SHAPE, Do.REMOVE_FIREWALL)
ON_THE_WAY = ("frame-received", "decided", "committed", "acked", "sent", "receipted",
              *(f"{when}-{do.value}" for do in START for when in ("before", "after")), "ready")
END = (Do.SHUTDOWN, Do.DESTROY, Do.UNDEFINE, Do.CLEAN_UP, Do.REMOVE_FIREWALL)


def args_for(point: str) -> Any:
    """A network, and so a guest that boots and answers, where the point is about it; else a VM ready as it runs."""
    return start_args() if any(do.value in point for do in NETWORK) else start_args(networks=None)


def ended(agent: Agent, controller: Controller, vm: str) -> None:
    born = agent.ask("status")["epoch"]["born"]
    until(lambda: time.time() > walltime.seconds(born) + 3, 10, "commands are taken by a new epoch")
    controller.reply(controller.send("vm.kill", {"vms": [vm]}), "done")
    until(lambda: not domains() and not qemu_pids(vm), 30, "the end of the guest")


def test_killed_at_every_step_of_one_start(agent: Agent, controller: Controller) -> None:
    """One VM with a network, and the agent dies at each step on its way, one after the other."""
    id = str(uuid.uuid4())
    controller.post(controller.body("vm.start", start_args(), id=id))
    for point in ("frame-received", "decided", "committed", *IN_TURN, "ready"):
        agent.start(crash_at=point, ready=False)
        agent.crashed(90)
    agent.start()
    vm = vm_of(id)
    controller.wait_phase(vm, "ready")
    controller.reply(id, "done")
    assert list(domains()) == [f"vma-{vm}"] and len(qemu_pids(vm)) == 1
    assert controller.gaps() == []
    ended(agent, controller, vm)


@pytest.mark.parametrize("point", ON_THE_WAY)
def test_killed_on_the_way_to_ready(agent: Agent, controller: Controller, point: str) -> None:
    agent.start(crash_at=point, ready=False)
    id = str(uuid.uuid4())
    body = controller.body("vm.start", args_for(point), id=id)
    controller.post(body)
    vm = vm_of(id)
    agent.crashed()
    agent.start()
    controller.wait_phase(vm, "ready")
    assert controller.reply(id, "done")["result"]["members"][0]["vm"] == vm
    assert list(domains()) == [f"vma-{vm}"] and len(qemu_pids(vm)) == 1
    assert controller.gaps() == []
    controller.post(body)  # once more, after everything
    until(lambda: len([r for r in controller.replies(id) if r["status"] == "done"]) >= 2, 20, "the stored reply")
    assert len(qemu_pids(vm)) == 1
    ended(agent, controller, vm)
    assert controller.states(vm)[-1]["outcome"] == "killed"


@pytest.mark.parametrize("do", END)
@pytest.mark.parametrize("when", ("before", "after"))
def test_killed_on_the_way_to_the_end(agent: Agent, controller: Controller, do: Do, when: str) -> None:
    agent.start()
    vm = vm_of(controller.send("vm.start", args_for(do.value)))
    controller.wait_phase(vm, "ready")
    agent.stop()
    agent.start(crash_at=f"{when}-{do.value}")
    stop = controller.send("vm.stop", {"vms": [vm], "grace_s": 2})
    agent.crashed(90)
    agent.start()
    controller.reply(stop, "done")
    until(lambda: (agent.ask("over", handle=vm) or {}).get("over"), 40, "the proof that it is over")
    assert not domains() and not qemu_pids(vm)
    assert controller.states(vm)[-1]["outcome"] == "killed"
    assert controller.gaps() == []


def test_twenty_five_crashes_before_the_ack(agent: Agent, controller: Controller) -> None:
    id = str(uuid.uuid4())
    controller.post(controller.body("vm.start", start_args(networks=None), id=id))
    for turn in range(25):
        agent.start(crash_at="decided" if turn < 12 else "committed", ready=False)
        agent.crashed()
    agent.start()
    vm = vm_of(id)
    controller.reply(id, "done")
    assert list(domains()) == [f"vma-{vm}"] and len(qemu_pids(vm)) == 1
    ended(agent, controller, vm)


def test_the_store_lost_under_running_guests(agent: Agent, controller: Controller) -> None:
    agent.start()
    id = str(uuid.uuid4())
    body = controller.body("vm.start", start_args(tags=["batch-7"]), id=id)
    controller.post(body)
    vm = vm_of(id)
    before = controller.wait_phase(vm, "ready")
    number = controller.events()[-1]["epochnumber"]
    agent.kill9()
    for path in (agent.folder / "state").glob("vmagent.db*"):
        path.unlink()
    agent.start()
    until(lambda: "row" in (agent.ask("show", vm=vm) or {}), 30, "the VM rebuilt from its tag")
    until(lambda: controller.events()[-1]["epochnumber"] > number, 30, "a new epoch")
    until(lambda: controller.states(vm)[-1]["phase"] == "ready", 30, "ready again")
    after = controller.states(vm)[-1]
    for member in ("owner", "controller", "name", "tags", "image", "interfaces", "command"):
        assert after[member] == before[member], member
    assert after["lease"]["granted_s"] == before["lease"]["granted_s"]
    assert abs(after["lease"]["used_s"] - before["lease"]["used_s"]) < 120
    controller.post(body)  # issued before this epoch was born
    until(lambda: controller.replies(id)[-1]["status"] == "refused", 20, "the refusal")
    assert controller.replies(id)[-1]["problem"]["type"] == "before-epoch"
    assert len(qemu_pids(vm)) == 1
    ended(agent, controller, vm)


def test_a_store_that_was_set_aside_comes_back(agent: Agent, controller: Controller, tmp_path: Path) -> None:
    """So an administrator goes back to a version, and forth again: the guest that both stores know runs on."""
    agent.start()
    vm = vm_of(controller.send("vm.start", start_args()))
    controller.wait_phase(vm, "ready")
    pids = qemu_pids(vm)
    agent.stop()
    state, aside = agent.folder / "state", tmp_path / "aside"
    aside.mkdir()
    for path in state.glob("vmagent.db*"):
        path.rename(aside / path.name)
    agent.start()
    until(lambda: (agent.ask("show", vm=vm) or {}).get("row", {}).get("phase") == "ready", 40, "rebuilt from its tag")
    agent.stop()
    for path in state.glob("vmagent.db*"):
        path.unlink()
    for path in aside.iterdir():
        path.rename(state / path.name)
    before = len(controller.states(vm))
    agent.start()
    until(lambda: (agent.ask("show", vm=vm) or {}).get("row", {}).get("phase") == "ready", 40, "it is known again")
    until(lambda: len(controller.states(vm)) > before, 30, "its state is told")
    assert pings(f"{SUBNET}.10") and qemu_pids(vm) == pids
    assert {told["phase"] for told in controller.states(vm)[before:]} == {"ready"}
    ended(agent, controller, vm)


def test_an_old_store_restored(agent: Agent, controller: Controller, tmp_path: Path) -> None:
    """The copy knows a VM that has ended since, and not one that runs: the one stays ended, the other goes on."""
    agent.start()
    old = vm_of(controller.send("vm.start", start_args(networks=None, name="old")))
    controller.wait_phase(old, "ready")
    agent.stop()
    state, copy = agent.folder / "state", tmp_path / "copy"
    copy.mkdir()
    for path in state.glob("vmagent.db*"):
        shutil.copy(path, copy)
    agent.start()
    new = vm_of(controller.send("vm.start", start_args(name="new")))
    controller.wait_phase(new, "ready")
    ended_old = controller.send("vm.kill", {"vms": [old]})
    controller.reply(ended_old, "done")
    number = controller.events()[-1]["epochnumber"]
    agent.kill9()
    for path in state.glob("vmagent.db*"):
        path.unlink()
    for path in copy.iterdir():
        confined.give(Path(shutil.copy(path, state)))
    agent.start()
    until(lambda: any(s["phase"] == "stopped" and s["outcome"] for s in controller.states(old)[-1:]), 30, "old is over")
    until(lambda: (agent.ask("show", vm=new) or {}).get("row", {}).get("phase") == "ready", 40, "new goes on")
    assert list(domains()) == [f"vma-{new}"]
    until(lambda: controller.events()[-1]["epochnumber"] > number, 30, "another epoch is told")
    assert not qemu_pids(old) and len(qemu_pids(new)) == 1
    ended(agent, controller, new)
    assert json.dumps(agent.ask("list"))
