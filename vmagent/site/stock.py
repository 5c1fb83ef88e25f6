"""What the whole site can take, out of the newest host.capacity of each host.  Pure.

Rules: what is older than STALE_S is not believed: such hosts are named and count for nothing.  `free` counts hosts that
take something now; one that is full or drained has free cores that nobody gets.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence

from vmagent.core import walltime
from vmagent.site.shelf import Latest

STALE_S = 300.0
WHAT = ("cores", "memory_mib", "disk_gib")
Json = Dict[str, Any]


def site(capacities: Sequence[Latest], states: Sequence[Latest], expected: Sequence[str], now_s: float) -> Json:
    """{hosts: [...], stale: [{host, age_s}], silent: [host], total: {cores: {total, promised, free}, ..., vms},
    flavours: {name: how many more start}}.

    silent: hosts that are known or expected and of which no capacity ever came.
    """
    fresh = [one for one in capacities if _age_s(one, now_s) <= STALE_S]
    known = {one.host for one in capacities}
    return {
        "hosts": [_host(one, now_s) for one in fresh],
        "stale": [{"host": one.host, "age_s": round(_age_s(one, now_s))} for one in capacities if one not in fresh],
        "silent": sorted(({one.host for one in states} | set(expected)) - known),
        "total": {
            **{what: {"total": _sum(fresh, what, "total"), "promised": _sum(fresh, what, "promised"),
                      "free": _sum([one for one in fresh if not one.data["full"]], what, "free")} for what in WHAT},
            "vms": sum(int(one.data["vms"]["total"]) for one in fresh),
        },
        "flavours": _flavours(fresh),
    }


def _age_s(one: Latest, now_s: float) -> float:
    return now_s - walltime.seconds(one.data.get("at") or one.at)


def _sum(hosts: Sequence[Latest], what: str, member: str) -> int:
    return sum(int(one.data[what][member]) for one in hosts)


def _host(one: Latest, now_s: float) -> Json:
    data = one.data
    return {
        "host": one.host,
        "age_s": round(max(0.0, _age_s(one, now_s)), 1),
        **{what: {member: data[what][member] for member in ("total", "promised", "free")} for what in WHAT},
        "vms": data["vms"]["total"],
        "full": data["full"],
        "reasons": [reason["detail"] for reason in data["reasons"]],
    }


def _flavours(hosts: Sequence[Latest]) -> Mapping[str, int]:
    found: Dict[str, int] = {}
    for one in hosts:
        for flavour in one.data["flavours"]:
            name = str(flavour["flavour"])
            found[name] = found.get(name, 0) + int(flavour["possible"])
    return dict(sorted(found.items()))


def reasons(hosts: Sequence[Json]) -> List[str]:
    """`HOST: why it takes nothing`, one for each reason."""
    return [f"{one['host']}: {why}" for one in hosts if one["full"] for why in one["reasons"]]
