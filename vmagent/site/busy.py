"""`vmagent-site top`: every VM with what it does now, out of states and telemetry.  Pure.

Rules: telemetry older than OLD_S says nothing about now: its numbers are null, its age is told all the same.  Rates are
averages of the last period, per second; what nobody measured is null.  The busiest stand first.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from vmagent.core import walltime
from vmagent.site.shelf import Latest

OLD_S = 300.0
RATES = (("disk", "read_bytes"), ("disk", "write_bytes"), ("network", "in_bytes"), ("network", "out_bytes"))
Json = Dict[str, Any]


def rows(states: Sequence[Tuple[str, Mapping[str, Any]]], told: Sequence[Latest], now_s: float) -> List[Json]:
    """[{host, vm, name, phase, vo, cores, cpu_percent, cpu_peak_percent, delay_percent, memory_mib, read_bytes_per_s,
    write_bytes_per_s, in_bytes_per_s, out_bytes_per_s, told_s}]; told_s: age of the period's end, null = never told."""
    measured = {(one.host, vm["vm"]): (one, vm) for one in told for vm in one.data["vms"]}
    found = [_row(host, state, measured.get((host, str(state["vm"]))), now_s) for host, state in states]
    return sorted(found, key=lambda row: (-(row["cpu_percent"] or 0.0) * row["cores"], row["host"], str(row["name"])))


def _row(host: str, state: Mapping[str, Any], one: Optional[Tuple[Latest, Mapping[str, Any]]], now_s: float) -> Json:
    age_s = None if one is None else max(0.0, now_s - walltime.seconds(one[0].data["to"]))
    vm: Mapping[str, Any] = one[1] if one is not None and age_s is not None and age_s <= OLD_S else {}
    return {
        "host": host, "vm": state["vm"], "name": state.get("name"), "phase": state.get("phase"),
        "vo": (state.get("owner") or {}).get("vo"), "cores": int(state.get("cores") or 0),
        "cpu_percent": _average(vm.get("cpu_percent")), "cpu_peak_percent": (vm.get("cpu_percent") or {}).get("peak"),
        "delay_percent": _average(vm.get("delay_percent")), "memory_mib": _average(vm.get("memory_mib")),
        **{f"{name}_per_s": _average((vm.get(part) or {}).get(name)) for part, name in RATES},
        "told_s": None if age_s is None else round(age_s, 1),
    }  # fmt: skip


def _average(spread: Optional[Mapping[str, Any]]) -> Optional[float]:
    return None if spread is None else spread.get("average")
