"""Issue 4, proof: what is measured of real guests, and that a sick one never blanks the others."""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.request
from typing import Any, Dict

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.real.conftest import qemu_pids, start_args
from tests.support.agent import SITE, Agent, Controller, vm_of
from tests.support.waiting import until

FRESH_S = 8.0  # fine and coarse are 1 and 2 s here; this machine is slow


def free_port() -> int:
    with socket.socket() as link:
        link.bind(("127.0.0.1", 0))
        return int(link.getsockname()[1])


def scraped(port: int) -> Dict[str, Dict[str, float]]:
    """Metric -> VM id -> value, of those that have one."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    found: Dict[str, Dict[str, float]] = {}
    for sample in (sample for family in families for sample in family.samples if "vm" in sample.labels):
        found.setdefault(sample.name, {})[sample.labels["vm"]] = sample.value
    return found


def measured(agent: Agent) -> Dict[str, Any]:
    """VM id -> its row of the last whole period."""
    answer = agent.ask("telemetry")
    return {row["vm"]: row for row in answer["vms"]} if answer["whole"] else {}


def test_a_frozen_guest_keeps_its_numbers_and_blanks_nobody_s(agent: Agent, controller: Controller) -> None:
    port = free_port()
    agent.config["telemetry"] = {"fine_s": 1, "coarse_s": 2, "period_s": 10}
    agent.config["prometheus"] = {"listen": f"127.0.0.1:{port}"}
    agent.start()
    controller.link.subscribe(f"/topic/vmagent.{SITE}.telemetry")
    command = controller.send("vm.start", start_args(networks=None, count=3))
    vms = [vm_of(command, member) for member in range(3)]
    for vm in vms:
        controller.wait_phase(vm, "ready")
    sick, *others = vms

    def ages(name: str) -> Dict[str, float]:
        return scraped(port).get(f"vmagent_domain_{name}_age_seconds", {})

    def readers() -> int:
        return sum(value > 0 for value in scraped(port).get("vmagent_domain_disk_read_bytes_total", {}).values())

    until(lambda: readers() == 3, 60, "all of them read from their disks")
    (pid,) = qemu_pids(sick)
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: ages("disk")[sick] > 2 * FRESH_S, 60, "its disk counters grow old")
        disks, samples = ages("disk"), ages("sample")
        assert set(disks) == set(samples) == set(vms), "nobody is missing"
        assert max(disks[vm] for vm in others) < FRESH_S and max(samples.values()) < FRESH_S

        def told_as_stuck() -> bool:
            row = measured(agent).get(sick, {})
            return row.get("phase") == "stuck" and row["disk_age_s"] > 2 * FRESH_S

        until(told_as_stuck, 60, "a whole period tells it as stuck, with its age")
        rows = measured(agent)
        assert max(rows[vm]["disk_age_s"] for vm in others) < FRESH_S
        assert all(row["cpu_percent"] is not None and row["measured_s"] > 5 for row in rows.values())
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: ages("disk")[sick] < FRESH_S, 60, "it is read again")
    until(lambda: controller.link.messages("telemetry"), 30, "it is told to the site")
    told = json.loads(controller.link.messages("telemetry")[-1].body)
    assert told["type"] == "org.vmagent.host.telemetry"
    assert told["stream"] == "telemetry" and {row["vm"] for row in told["data"]["vms"]} == set(vms)
    controller.reply(controller.send("vm.kill", {"all": True}), "done")
