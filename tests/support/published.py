"""Events as the agents publish them, made for collectors: streams that count, states, snapshots, periods of use."""

from __future__ import annotations

import json
from typing import Any, Dict, Mapping, Optional

from tests.support.building import COMMAND, now
from tests.support.controlled import STATE, host_state
from vmagent.core import events
from vmagent.core.changes import Epoch, OutboxRow

AT = "2026-11-20T12:00:00.000Z"


class Publisher:
    """One host's streams: every message has the next number of its stream."""

    def __init__(self, host: str = "wn1.example.org", epoch: int = 1) -> None:
        self.host = host
        self.epoch = epoch
        self.numbers: Dict[str, int] = {}

    def event(self, kind: str, data: Mapping[str, Any], stream: str = "events", at: str = AT) -> Dict[str, Any]:
        number = self.numbers[stream] = self.numbers.get(stream, 0) + 1
        epoch = f"{self.epoch:08d}-2222-4333-8444-555555555555"
        row = OutboxRow(number, stream, number, epoch, self.epoch, "", f"org.vmagent.{kind}", "host", at, data)
        return events.cloud_event(row, f"//S/{self.host}")

    def state(self, vm: str, phase: str, **more: Any) -> Dict[str, Any]:
        return self.event("vm.state", {**STATE, "vm": vm, "name": vm, "host": self.host, "phase": phase, **more})

    def snapshot(self, *states: Mapping[str, Any], at: str = AT) -> Dict[str, Any]:
        epoch = Epoch(f"{self.epoch:08d}-2222-4333-8444-555555555555", self.epoch, AT, "first")
        data = events.host_snapshot(host_state(self.host), states, (), self.numbers, epoch, now())
        return self.event("host.snapshot", data, at=at)

    def full(self, vm: str, phase: str) -> Dict[str, Any]:
        """A state as a snapshot holds it."""
        return {**STATE, "vm": vm, "name": vm, "host": self.host, "phase": phase}

    def usage(self, vm: str, number: int, began: str, ended: str, **more: Any) -> Dict[str, Any]:
        return self.event("vm.usage", period(vm, number, began, ended, self.host, **more), "usage")


def use(**more: Any) -> Dict[str, Any]:
    """USE of the design: one core for an hour, half busy."""
    network = {f"{way}_{where}_{what}": 0 for way in ("in", "out") for where in ("local", "external")
               for what in ("bytes", "packets")}
    return {"wall_s": 3600, "suspended_s": 0, "core_s": 3600, "cpu_s": 1800.0, "memory_mib_s": 3600 * 1024,
            "disk_gib_s": 3600 * 10, "network": {**network, "in_external_bytes": 1000, "out_external_bytes": 500},
            "disk": {"read_bytes": 4096, "read_ops": 1, "write_bytes": 8192, "write_ops": 2}, **more}


def period(vm: str, number: int, began: str, ended: str, host: str = "wn1.example.org",
           vo: str = "vo.example", subject: str = "/CN=A User", used: Optional[Mapping[str, Any]] = None,
           **more: Any) -> Dict[str, Any]:
    """The data of a vm.usage."""
    return {"vm": vm, "segment": f"{vm}/1/1", "incarnation": 1, "number": 1, "period": number, "from": began,
            "to": ended, "seconds": 3600, "status": "started", "final": False, "started_at": "2026-11-01T00:00:00.000Z",
            "ended_at": None, "outcome": None, "site": "S", "host": host, "name": "worker", "command": COMMAND,
            "tags": [],
            "owner": {"subject": subject, "fqan": f"/{vo}", "vo": vo}, "controller": "CN=controller",
            "flavour": "small", "image": {"id": "tiny"},
            "footprint": {"cores": 1, "memory_mib": 1024, "disk_gib": 10, "cpu_cap_core_percent": 100,
                          "public_addresses": [], "benchmark": None},
            "used": dict(used) if used is not None else use(), "total": use(), "memory_mib": None,
            "disk_used_gib": None, "volumes": [], "snapshots": [], "sampled_at": None, "tail_uncertain_s": 0.0,
            "vanished": [], "clock_step_s": 0.0, **more}


def raw(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event).encode()
