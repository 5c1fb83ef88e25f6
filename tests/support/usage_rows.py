"""Period rows (the `data` of vm.usage, docs/design/0008) for tests of what is made of them."""

from __future__ import annotations

from typing import Any, Dict

from vmagent.core import walltime

VM = "5b1c2d1e-0d5e-5d6b-9a55-0c1f0d2b7a11"
JANE = {"subject": "CN=Jane Doe,DC=example,DC=org", "fqan": "/vo.example.org/ops/Role=admin", "vo": "vo.example.org"}
GIB = 2**30


def use(
    wall_s: float, cores: float, suspended_s: float = 0.0, gib_in: float = 0.0, gib_out: float = 0.0
) -> Dict[str, Any]:
    half_in, half_out = int(gib_in * GIB / 2), int(gib_out * GIB / 2)
    return {
        "wall_s": wall_s, "suspended_s": suspended_s, "core_s": cores * (wall_s + suspended_s), "cpu_s": wall_s / 4,
        "memory_mib_s": 4096 * wall_s, "disk_gib_s": 40 * wall_s,
        "network": {
            "in_local_bytes": half_in, "in_local_packets": 10, "in_external_bytes": half_in, "in_external_packets": 10,
            "out_local_bytes": half_out, "out_local_packets": 5, "out_external_bytes": half_out,
            "out_external_packets": 5,
        },
        "disk": {"read_bytes": 1, "read_ops": 1, "write_bytes": 1, "write_ops": 1},
    }  # fmt: skip


def row(begun: str = "2026-11-21T09:00:00Z", end: str = "2026-11-21T10:00:00Z", **changes: Any) -> Dict[str, Any]:
    """One period of a VM with two cores that began at the first period's beginning, unless `changes` say otherwise."""
    started = changes.get("started_at", begun)
    lived = walltime.seconds(end) - walltime.seconds(started)
    seconds = walltime.seconds(end) - walltime.seconds(begun)
    members: Dict[str, Any] = {
        "vm": VM, "incarnation": 1, "number": 1, "period": 1, "from": begun, "to": end, "seconds": seconds,
        "status": "started", "final": False, "started_at": started, "ended_at": None, "outcome": None,
        "site": "site-a", "host": "wn1.example.org", "name": "worker-7", "command": "c-1", "tags": [],
        "owner": dict(JANE), "controller": "CN=controller", "flavour": "small",
        "image": {"id": "el9-worker", "sha512": "ab" * 64, "format": "qcow2"},
        "footprint": {"cores": 2, "memory_mib": 4096, "disk_gib": 40, "cpu_cap_core_percent": None,
                      "public_addresses": [], "benchmark": None},
        "used": use(seconds, 2), "total": use(lived, 2), "memory_mib": 3000, "disk_used_gib": 2, "volumes": [],
        "snapshots": [], "sampled_at": end, "tail_uncertain_s": 0.0, "vanished": [], "clock_step_s": 0.0,
    }  # fmt: skip
    members.update(changes)
    members.setdefault("segment", f"{members['vm']}/{members['incarnation']}/{members['number']}")
    return members
