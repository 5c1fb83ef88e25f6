"""CloudWatch's names, units and statistics."""

from __future__ import annotations

from typing import Any, Dict, List

from vmagent.render import cloudwatch

VM = "6f1c2f9e-0000-4000-8000-000000000001"
RATE = {"sum": 600, "average": 2.0, "peak": 10.0}


def told(**kw: Any) -> List[Dict[str, Any]]:
    guest: Dict[str, Any] = {
        "vm": VM, "image": "el9", "flavour": "small", "phase": "ready", "cpu_percent": {"average": 12.5, "peak": 80.0},
        "disk": dict.fromkeys(("read_bytes", "read_ops", "write_bytes", "write_ops"), RATE),
        "network": dict.fromkeys(("in_bytes", "in_packets", "out_bytes", "out_packets"), RATE), **kw,
    }
    return cloudwatch.metrics({"to": "2026-11-20T12:05:00Z", "seconds": 300.0, "vms": [guest]})


def test_every_name_with_its_unit() -> None:
    assert {metric["MetricName"]: metric["Unit"] for metric in told()} == {
        "CPUUtilization": "Percent", "DiskReadOps": "Count", "DiskWriteOps": "Count", "DiskReadBytes": "Bytes",
        "DiskWriteBytes": "Bytes", "NetworkIn": "Bytes", "NetworkOut": "Bytes", "NetworkPacketsIn": "Count",
        "NetworkPacketsOut": "Count", "StatusCheckFailed": "Count", "StatusCheckFailed_Instance": "Count",
        "StatusCheckFailed_System": "Count",
    }


def test_one_metric_whole() -> None:
    (metric,) = [one for one in told() if one["MetricName"] == "NetworkIn"]
    assert metric == {
        "Namespace": "AWS/EC2", "MetricName": "NetworkIn", "Unit": "Bytes", "Timestamp": "2026-11-20T12:05:00Z",
        "Period": 300.0, "Statistics": {"Sum": 600, "Average": 120.0, "Maximum": 600.0},
        "Dimensions": [{"Name": "InstanceId", "Value": VM}, {"Name": "ImageId", "Value": "el9"},
                       {"Name": "InstanceType", "Value": "small"}],
    }


def test_what_the_guest_received_is_in() -> None:
    metrics = {one["MetricName"]: one["Statistics"] for one in told(network={"in_bytes": dict(RATE, sum=1),
                                                                             "out_bytes": dict(RATE, sum=2)})}
    assert (metrics["NetworkIn"]["Sum"], metrics["NetworkOut"]["Sum"]) == (1, 2)
    assert "NetworkPacketsIn" not in metrics


def test_what_nobody_measured_has_no_entry() -> None:
    none: Dict[str, Any] = {"read_bytes": None}
    names = [one["MetricName"] for one in told(cpu_percent=None, disk=none, network={})]
    assert names == ["StatusCheckFailed", "StatusCheckFailed_Instance", "StatusCheckFailed_System"]
    (cpu, *_) = told(cpu_percent={"average": 1.0, "peak": None})
    assert cpu["Statistics"] == {"Average": 1.0}


def test_checks() -> None:
    def failed(phase: str) -> Dict[str, int]:
        return {one["MetricName"]: one["Statistics"]["Maximum"] for one in told(phase=phase)
                if one["MetricName"].startswith("Status")}

    assert set(failed("ready").values()) == {0}
    assert failed("stuck") == {"StatusCheckFailed": 1, "StatusCheckFailed_Instance": 1, "StatusCheckFailed_System": 0}
    assert failed("unknown") == {"StatusCheckFailed": 1, "StatusCheckFailed_Instance": 0, "StatusCheckFailed_System": 1}
