"""Accounts of a real guest: what the other end counted is what is booked, also over `kill -9` of agent and QEMU."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any, Dict, List

from tests.real.conftest import SUBNET, qemu_pids, start_args
from tests.support import day
from tests.support.agent import SITE, Agent, Controller, vm_of
from tests.support.waiting import until
from vmagent.core import schemas, walltime

ADDRESS = f"{SUBNET}.10"
SIZE = 1200  # of each ping's data; 28 bytes of headers come before it
CHATTER = 30_000  # bytes of a small Linux's own network talk in two minutes, at most


def transfer(count: int) -> int:
    """Bytes of layer 3 that came back, by the count of the end that sent."""
    argv = ["ping", "-n", "-q", "-i", "0.02", "-c", str(count), "-s", str(SIZE), "-W", "2", ADDRESS]
    said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    found = re.search(r"(\d+) packets transmitted, (\d+) (?:packets )?received", said)
    assert found is not None, said
    return int(found.group(2)) * (SIZE + 28)


def cpu_of(pid: int) -> float:
    """Seconds of processor time of this process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rows(agent: Agent, vm: str) -> List[Dict[str, Any]]:
    return list((agent.ask("usage", vm=vm) or {"rows": []})["rows"])


def published(controller: Controller, vm: str) -> Dict[Any, Dict[str, Any]]:
    """By segment and period: the last word on each.  Guests of other tests may have left theirs in the queue."""
    bodies = [frame.body for frame in controller.link.messages(f"{SITE}.usage")]
    data = [data_of(body) for body in bodies]
    return {(one["segment"], one["period"]): one for one in data if one["vm"] == vm}


def data_of(body: bytes) -> Dict[str, Any]:
    event = json.loads(body)
    assert event["stream"] == "usage" and event["type"] == "org.vmagent.vm.usage"
    return dict(event["data"])


def test_what_the_other_end_counted_is_booked(agent: Agent, controller: Controller) -> None:
    agent.config["accounting"] = {"period_s": 60}
    agent.config["telemetry"] = {"fine_s": 5, "coarse_s": 10}
    controller.link.subscribe(f"/queue/vmagent.{SITE}.usage")
    agent.start()
    vm = vm_of(controller.send("vm.start", start_args(cpu_cap_core_percent=100)))
    ready = controller.wait_phase(vm, "ready")
    known = transfer(200)
    agent.kill9()
    known += transfer(200)  # while nobody looks
    agent.start()
    until(lambda: rows(agent, vm), 90, "a period is closed at the minute's edge")
    assert rows(agent, vm)[0]["to"].endswith(":00.000Z")
    until(lambda: agent.ask("usage", vm=vm)["open"][0]["total"]["cpu_s"], 30, "it was sampled by this agent")
    (pid,) = qemu_pids(vm)
    known += transfer(200)
    cpu_s = cpu_of(pid)
    os.kill(pid, signal.SIGKILL)  # right after the last byte
    ended = controller.wait_phase(vm, "stopped", 60)
    until(lambda: any(row["final"] for row in rows(agent, vm)), 60, "the segment is closed")
    booked = rows(agent, vm)
    day.balanced(booked)
    for row in booked:
        schemas.check("event.vm.usage", row)
    last = booked[-1]
    network = last["total"]["network"]
    for way in ("in", "out"):  # every ping has its answer
        counted = network[f"{way}_local_bytes"] + network[f"{way}_external_bytes"]
        assert known <= counted <= known + CHATTER, (way, known, network)
    assert "network" not in last["vanished"]
    assert last["total"]["cpu_s"] <= cpu_s + 0.5
    assert cpu_s - last["total"]["cpu_s"] <= last["tail_uncertain_s"] * 1.1 + 0.5  # its cap is one core
    assert last["tail_uncertain_s"] < 60
    assert last["outcome"] == ended["outcome"] and last["status"] == "completed"
    lease = walltime.seconds(ready["lease"]["started_at"])
    assert abs(walltime.seconds(booked[0]["started_at"]) - lease) < 0.2
    total = sum(row["seconds"] for row in booked)
    assert abs(total - (walltime.seconds(last["to"]) - walltime.seconds(booked[0]["from"]))) < 0.001
    until(lambda: len(published(controller, vm)) == len(booked), 20, "every period is published")
    assert sorted(published(controller, vm)) == sorted((row["segment"], row["period"]) for row in booked)
    assert [published(controller, vm)[row["segment"], row["period"]] for row in booked] == booked
