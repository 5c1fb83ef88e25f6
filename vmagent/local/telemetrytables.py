"""`vmagentctl telemetry` for people: averages with their peaks, and how old they are."""

from __future__ import annotations

from typing import Any, List, Mapping, Optional

from vmagent.local.tables import Screen, span

HEADER = ("ID", "NAME", "CPU %", "WAITS %", "CAPPED %", "MIB", "READ KB/S", "WRITTEN KB/S", "IN KB/S", "OUT KB/S",
          "GAPS", "AGE", "DISK AGE")  # fmt: skip
METRICS_HEADER = ("ID", "METRIC", "UNIT", "AVERAGE", "MAXIMUM", "SUM")
KB = 1000.0


def telemetry(screen: Screen, answer: Mapping[str, Any]) -> None:
    """The host in two lines, then the VMs."""
    if "metrics" in answer:
        _metrics(screen, answer["metrics"])
        return
    host = answer["host"]
    what = "" if answer["whole"] else ", not over yet"
    screen.line(f"{answer['from']} to {answer['to']}{what}: average/peak")
    free = host["memory_free_mib"]
    least = "-" if free is None else f"{free['average']:.0f}/{free['lowest']:.0f} MiB free (average/least)"
    screen.line(f"host of {host['cores']} cores: {_spread(host['cpu_percent'])} % busy, "
                f"{_spread(host['steal_percent'])} % stolen, {least}{_pressure(host['pressure'])}")
    screen.table(HEADER, [_row(screen, vm) for vm in answer["vms"]], "no VM was measured")


def _row(screen: Screen, vm: Mapping[str, Any]) -> List[str]:
    disk, network = vm["disk"], vm["network"]
    rates = (disk["read_bytes"], disk["write_bytes"], network["in_bytes"], network["out_bytes"])
    return [
        screen.id(vm["vm"]), vm["name"],
        *(_spread(vm[name]) for name in ("cpu_percent", "delay_percent", "throttled_percent", "memory_mib")),
        *(_spread(rate, KB) for rate in rates),
        str(vm["gaps"]), span(vm["age_s"]), span(vm["disk_age_s"]),
    ]  # fmt: skip


def _spread(spread: Optional[Mapping[str, Any]], unit: float = 1.0) -> str:
    """average/peak; `-` is what nobody measured."""
    if spread is None:
        return "-"
    peak = "-" if spread["peak"] is None else f"{spread['peak'] / unit:.1f}"
    return f"{spread['average'] / unit:.1f}/{peak}"


def _pressure(pressure: Mapping[str, Any]) -> str:
    return "".join(f", pressure on {name} {_spread(one)} %" for name, one in pressure.items())


def _metrics(screen: Screen, metrics: List[Mapping[str, Any]]) -> None:
    rows = []
    for metric in metrics:
        statistics = metric["Statistics"]
        values = [str(statistics.get(name, "-")) for name in ("Average", "Maximum", "Sum")]
        rows.append([screen.id(metric["Dimensions"][0]["Value"]), metric["MetricName"], metric["Unit"], *values])
    screen.table(METRICS_HEADER, rows, "no VM was measured")
