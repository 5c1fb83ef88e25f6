"""Issue 4, proof: what a guest is told, one download for many VMs, and a revocation that reaches running guests."""

from __future__ import annotations

import base64
import json
import urllib.request
from pathlib import Path
from typing import Any, Dict, List, Mapping

import pytest

from tests.real.conftest import SUBNET, domains, qemu_pids, start_args
from tests.support.agent import Agent, Controller, vm_of
from tests.support.idle import IDLE, fetches, offered, started
from tests.support.imageserver import ImageServer
from tests.support.waiting import until

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDpZWWFDLfVPXsjn5jvsqFQv4MXvQ4xJRJXDBCBxRHq1 user@example.org"
SERVE = b"#!/bin/sh\nhttpd -p 80 -h /told\n"
WEB = {"inbound": [{"protocol": "tcp", "ports": [80], "action": "allow"}]}
MANY = 20


@pytest.fixture
def config(config: Dict[str, Any], source: ImageServer) -> Dict[str, Any]:
    fetches(config, source)
    return config


def told(name: str) -> str:
    with urllib.request.urlopen(f"http://{SUBNET}.10/{name}", timeout=5) as answer:
        return str(answer.read().decode())


def answers() -> bool:
    try:
        return bool(told("meta-data"))
    except OSError:
        return False


def test_a_guest_reads_its_address_its_keys_and_its_data(agent: Agent, controller: Controller) -> None:
    agent.start()
    args = start_args(user_data=base64.b64encode(SERVE).decode(), ssh_keys=[KEY], meta_data={"role": "worker"})
    args["networks"][0]["firewall"] = WEB
    vm = vm_of(controller.send("vm.start", args))
    controller.wait_phase(vm, "ready")
    until(answers, 30, "the script that came as user data serves what the guest was told")
    meta = json.loads(told("meta-data"))
    assert meta["instance-id"] == vm
    assert KEY in json.dumps(meta)
    assert "worker" in json.dumps(meta)
    assert f"{SUBNET}.10/24" in told("network-config")
    assert told("user-data").encode() == SERVE
    controller.send("vm.kill", {"vms": [vm]})
    controller.wait_phase(vm, "stopped")
    secret = SERVE.splitlines()[1]

    def kept() -> List[Path]:
        return [path for path in (agent.folder / "state").rglob("*") if path.is_file() and secret in path.read_bytes()]

    until(lambda: not domains() and not kept(), 20, "what a user told his guest goes with it")
    assert secret.decode() not in agent.text()


def test_twenty_that_want_one_image_cost_one_download(
    agent: Agent, controller: Controller, source: ImageServer
) -> None:
    agent.start()
    vms = started(controller, offered(source), MANY)
    assert [path for path, _ in source.asked] == ["/idle.raw"]
    assert len({pid for vm in vms for pid in qemu_pids(vm)}) == MANY
    controller.send("vm.kill", {"vms": list(vms)})
    until(lambda: not domains(), 60, "all are gone")


def test_a_download_goes_on_after_kill_9(agent: Agent, controller: Controller, source: ImageServer) -> None:
    """Half of it is here when the agent dies; its successor asks for the other half."""
    image = offered(source)
    half = len(IDLE) // 2
    source.scripts["/idle.raw"] = source.stall(half)
    agent.start()
    vm = vm_of(controller.send("vm.start", start_args(flavour="dot", image=image, networks=None)))
    parts = agent.folder / "state" / "cache"
    until(lambda: any(path.stat().st_size >= half for path in parts.glob("*.part")), 30, "half of it is on the disk")
    agent.kill9()
    agent.start()
    controller.wait_phase(vm, "ready")
    assert [headers.get("range") for _, headers in source.asked] == [None, f"bytes={half}-"]


def test_a_revocation_reaches_those_that_run(agent: Agent, controller: Controller, source: ImageServer) -> None:
    agent.start()
    image = offered(source)
    vms = started(controller, image, 2)
    controller.send("image.revoke", {"sha512": image["sha512"], "action": "kill", "why": "a back door"})
    for vm in vms:
        assert "a back door" in json.dumps(controller.wait_phase(vm, "stopped")["reasons"])
    alerts = [e["data"] for e in controller.events("security.alert") if "vms" in e["data"]]
    assert sorted(each["vm"] for alert in alerts for each in alert["vms"]) == sorted(vms)
    assert all(each["owner"]["subject"] == "/DC=org/DC=example/CN=A User" for alert in alerts for each in alert["vms"])
    refused = controller.reply(controller.send("vm.start", start_args(flavour="dot", image=image, networks=None)))
    assert refused["status"] == "refused"
    assert "revoked" in refused["problem"]["type"]


def final(controller: Controller, verb: str, args: Mapping[str, Any], status: str) -> Mapping[str, Any]:
    """The last reply to this command, which has this status."""
    return controller.reply(controller.send(verb, args), status)


def test_an_image_is_fetched_by_command_kept_while_it_runs_and_then_evicted(
    agent: Agent, controller: Controller, source: ImageServer
) -> None:
    """Issue 4, point 1: the cache by its verbs, the first over `kill -9`; the start finds the file here."""
    agent.start(crash_at="committed")
    image = offered(source)
    name = {"sha512": image["sha512"]}
    fetch = controller.send("image.fetch", image)
    agent.crashed()
    agent.start()
    assert controller.reply(fetch, "done")["result"]["cached"]["size"] == len(IDLE)
    asked = len(source.asked)
    (vm,) = started(controller, image, 1)
    assert len(source.asked) == asked, "it was here"
    problem = final(controller, "image.evict", name, "refused")["problem"]
    assert problem["type"] == "image-in-use"
    assert [one["vm"] for one in problem["vms"]] == [vm]
    assert qemu_pids(vm)
    controller.send("vm.kill", {"vms": [vm]})
    until(lambda: controller.states(vm)[-1]["closed"], 60, "nothing is left of it")
    final(controller, "image.pin", name, "done")
    agent.kill9()
    agent.start()
    assert final(controller, "image.evict", name, "refused")["problem"]["type"] == "image-pinned"
    final(controller, "image.unpin", name, "done")
    cached = agent.folder / "state" / "cache"
    assert list(cached.glob("*.img"))
    final(controller, "image.evict", name, "done")
    assert not list(cached.glob("*"))
