"""Telemetry under the names and in the units that CloudWatch has for instances (FORMATS 8.4).

One entry per metric and guest, with the statistics Sum, Average and Maximum.  Counts and bytes are those of a minute,
as CloudWatch's detailed monitoring stores them: Average is what an average minute had, Maximum what one minute would
have had at the peak rate; Sum is of the whole period.  NetworkIn is what the guest received.  What nobody measured has
no entry.  StatusCheckFailed: 1 = its QEMU does not answer (_Instance), or the host cannot be asked (_System).
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Tuple

NAMESPACE = "AWS/EC2"
MINUTE_S = 60
RATES: Mapping[str, Tuple[str, str, str]] = {
    "DiskReadOps": ("disk", "read_ops", "Count"),
    "DiskWriteOps": ("disk", "write_ops", "Count"),
    "DiskReadBytes": ("disk", "read_bytes", "Bytes"),
    "DiskWriteBytes": ("disk", "write_bytes", "Bytes"),
    "NetworkIn": ("network", "in_bytes", "Bytes"),
    "NetworkOut": ("network", "out_bytes", "Bytes"),
    "NetworkPacketsIn": ("network", "in_packets", "Count"),
    "NetworkPacketsOut": ("network", "out_packets", "Count"),
}
"""Name -> part and member of host.telemetry, unit."""
CHECKS: Mapping[str, Tuple[str, ...]] = {
    "StatusCheckFailed": ("stuck", "unknown"),
    "StatusCheckFailed_Instance": ("stuck",),
    "StatusCheckFailed_System": ("unknown",),
}
"""Name -> the phases in which it failed."""


def metrics(telemetry: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """telemetry: the data of host.telemetry."""
    told: List[Dict[str, Any]] = []
    for guest in telemetry["vms"]:
        head = {
            "Namespace": NAMESPACE,
            "Dimensions": [{"Name": "InstanceId", "Value": guest["vm"]}, {"Name": "ImageId", "Value": guest["image"]},
                           {"Name": "InstanceType", "Value": guest["flavour"]}],
            "Timestamp": telemetry["to"],
            "Period": telemetry["seconds"],
        }  # fmt: skip
        told += [{**head, **metric} for metric in _of(guest)]
    return told


def _of(guest: Mapping[str, Any]) -> List[Dict[str, Any]]:
    found: List[Dict[str, Any]] = []
    cpu = guest["cpu_percent"]
    if cpu is not None:
        found.append(_metric("CPUUtilization", "Percent", {"Average": cpu["average"], "Maximum": cpu["peak"]}))
    for name, (part, member, unit) in RATES.items():
        rate = guest[part].get(member)
        if rate is not None:
            peak = None if rate["peak"] is None else round(rate["peak"] * MINUTE_S, 3)
            average = round(rate["average"] * MINUTE_S, 3)
            found.append(_metric(name, unit, {"Sum": rate["sum"], "Average": average, "Maximum": peak}))
    for name, phases in CHECKS.items():
        failed = int(guest["phase"] in phases)
        found.append(_metric(name, "Count", {"Average": failed, "Maximum": failed}))
    return found


def _metric(name: str, unit: str, statistics: Mapping[str, Any]) -> Dict[str, Any]:
    """A maximum that nobody knows is left out."""
    known = {statistic: value for statistic, value in statistics.items() if value is not None}
    return {"MetricName": name, "Unit": unit, "Statistics": known}
