"""Sums over periods of usage (`data` of vm.usage), VM by VM.

What nobody measured in any of them is null; what was not measured in some is named in `vanished`.  Sums go by whole
milliseconds, so they are exact.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional

Data = Mapping[str, Any]
SPANS = ("wall_s", "suspended_s", "core_s", "cpu_s", "memory_mib_s", "disk_gib_s")
WAYS = {"in": ("in_local_bytes", "in_external_bytes"), "out": ("out_local_bytes", "out_external_bytes")}


class Sums:
    """Rows in, one entry per VM out, in the order in which they first came."""

    def __init__(self) -> None:
        self._vms: Dict[str, Dict[str, Any]] = {}

    def add(self, data: Data) -> None:
        _add(self._vms.setdefault(data["vm"], _empty(data)), data)

    def told(self) -> List[Dict[str, Any]]:
        return [_told(one) for one in self._vms.values()]


def _empty(data: Data) -> Dict[str, Any]:
    numbers: Dict[str, Any] = dict.fromkeys((*SPANS, "network", "disk"))
    return {"vm": data["vm"], "name": data["name"], "owner": data["owner"], "periods": 0, "segments": set(),
            "used": numbers, "vanished": set(), "final": False, "to": ""}


def _add(one: Dict[str, Any], data: Data) -> None:
    used = one["used"]
    for name in SPANS:
        value = data["used"][name]
        used[name] = _plus(used[name], None if value is None else round(value * 1000))
    for name in ("network", "disk"):
        used[name] = _merged(used[name], data["used"][name])
    one["periods"] += 1
    one["segments"].add(data["segment"])
    one["vanished"].update(data["vanished"])
    if data["to"] >= one["to"]:
        one["to"], one["final"] = data["to"], data["final"]


def _plus(one: Optional[int], other: Optional[int]) -> Optional[int]:
    return other if one is None else one if other is None else one + other


def _merged(one: Optional[Mapping[str, int]], other: Optional[Mapping[str, int]]) -> Optional[Dict[str, int]]:
    if one is None or other is None:
        return dict(one or other or {}) or None
    return {name: one[name] + other[name] for name in one}


def _told(one: Dict[str, Any]) -> Dict[str, Any]:
    used = {name: None if one["used"][name] is None else one["used"][name] / 1000 for name in SPANS}
    return {**one, "segments": len(one["segments"]), "vanished": sorted(one["vanished"]),
            "used": {**used, "network": one["used"]["network"], "disk": one["used"]["disk"]}}


def traffic(network: Optional[Mapping[str, int]], way: str) -> Optional[int]:
    """Bytes in or out, whatever the peer; None = not measured."""
    return None if network is None else sum(network[name] for name in WAYS[way])
