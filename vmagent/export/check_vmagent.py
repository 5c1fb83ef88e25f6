"""check_vmagent: is the agent of this host as it should be?  Asked on its local socket (docs/operations/nagios.md).

`found` is pure: from the answer to `status` to a Result.  Critical is what stops the agent's work: nobody answers, no
hypervisor, no broker for long.  What it tells of itself as degraded is a warning.  What is not known alerts nobody, and
its value is `U`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from vmagent.errors import Problem
from vmagent.export import kernelclock, plugin
from vmagent.export.plugin import Result, Thresholds
from vmagent.local.ctl_client import Client, Unreachable
from vmagent.render.nagios import Metric, Range, Status, worst

SERVICE = "vmagent"
DEFAULT_SOCKET = Path("/run/vmagent/vmagent.sock")
TIMEOUT_S = 10
UNITS = {"answer": "s", "broker_down": "s", "spool_age": "s", "publish_age": "s", "clock_error": "s"}
DEFAULTS: Mapping[str, Tuple[str, str]] = {
    "answer": ("2", "8"),
    "broker_down": ("60", "300"),
    "spool_age": ("300", "3600"),
    "publish_age": ("900", "3600"),
    "certificate_days": ("14:", "3:"),
    "disk_gib": ("", ""),  # twice the site's floor, and the floor itself
    "clock_error": ("0.5", "5"),
}
WORDS = {
    "answer": "the agent answers late: {:.1f} s",
    "broker_down": "no broker for {:.0f} s",
    "spool_age": "something waits to be published for {:.0f} s",
    "publish_age": "nothing was published for {:.0f} s",
    "certificate_days": "a certificate has {:.0f} days left",
    "disk_gib": "{:.0f} GiB are free for guests' disks",
    "clock_error": "the clock may be off by {:.1f} s",
}
OWN_METRIC = ("broker", "hypervisor", "libvirt")  # parts of `degraded` that have a check of their own


def parser() -> plugin.Arguments:
    arguments = plugin.Arguments(
        SERVICE, "Check the vmagent of this host: daemon, hypervisor, broker, spool, certificates, disk, clock.",
        TIMEOUT_S, prog="check_vmagent",
        epilog="examples:\n  check_vmagent\n  check_vmagent -w certificate_days=30: -c disk_gib=20: -t 5\n\n"
               "exit codes: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN",
    )
    arguments.add_argument("--socket", type=Path, default=DEFAULT_SOCKET, metavar="PATH",
                           help=f"the agent's socket (default {DEFAULT_SOCKET})")
    plugin.add_thresholds(arguments, DEFAULTS)
    return arguments


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The plug-in; returns the exit code."""
    said = parser().parse_args(argv)
    return plugin.run(SERVICE, said.timeout, said.verbose, lambda: _asked(said), sys.stdout)


def _asked(said: argparse.Namespace) -> Result:
    if said.socket.exists() and not os.access(said.socket, os.W_OK):
        return Result(Status.UNKNOWN, f"this user may not ask on {said.socket}: it must be in the readers' group")
    began = time.monotonic()
    try:
        with Client(said.socket, said.timeout) as client:
            status = client.ask("status")
    except Unreachable as away:
        return Result(Status.CRITICAL, f"no agent answers on {away.path}: {away.why}")
    except Problem as problem:
        return Result(Status.UNKNOWN, str(problem))
    answer_s = time.monotonic() - began
    return found(status, answer_s, kernelclock.max_error_s(), plugin.thresholds(said, DEFAULTS))


def found(status: Mapping[str, Any], answer_s: float, clock_error_s: Optional[float], limits: Thresholds) -> Result:
    """Judge an answer to `status`.  answer_s: how long it took."""
    health = status["health"]
    values = _values(status, health, answer_s, clock_error_s)
    metrics = [_metric(label, value, limits, health) for label, value in values.items()]
    reasons: List[Tuple[Status, str]] = []
    if not status["hypervisor"]["connected"]:
        reasons.append((Status.CRITICAL, f"no hypervisor: {status['hypervisor']['why']}"))
    for metric in metrics:
        if metric.status() is not Status.OK and metric.value is not None:
            reasons.append((metric.status(), WORDS[metric.label].format(metric.value)))
    for part, why in sorted(status["degraded"].items()):
        if part not in OWN_METRIC:
            reasons.append((Status.WARNING, f"{part}: {why}"))
    return _told(status, reasons, metrics)


def _told(status: Mapping[str, Any], reasons: Sequence[Tuple[Status, str]], metrics: Sequence[Metric]) -> Result:
    live = sum(status["phases"].values())
    drained = ", drained" if status["drained"] else ""
    about = f"{status['host']} runs {status['version']}, {live} VMs{drained}"
    bad = "; ".join(why for _, why in sorted(reasons, key=lambda one: -one[0]))
    counts = [Metric("vms", float(live), least=0.0)]
    more = [f"{each.name}: {why}" for each, why in reasons]
    certificates = [f"{file}: {days} days left" for file, days in sorted(status["health"]["certificates"].items())]
    code = worst([code for code, _ in reasons])
    return Result(code, bad or about, [*metrics, *counts], [about, *more, *certificates])


def _values(
    status: Mapping[str, Any], health: Mapping[str, Any], answer_s: float, clock_error_s: Optional[float]
) -> Dict[str, Optional[float]]:
    return {
        "answer": answer_s,
        "broker_down": 0.0 if status["broker"]["up"] else health["link_s"],
        "spool_age": health["spool_age_s"],
        "publish_age": health["published_age_s"],
        "certificate_days": min(health["certificates"].values(), default=None),
        "disk_gib": health["disk_free_gib"],
        "clock_error": clock_error_s,
    }


def _metric(label: str, value: Optional[float], limits: Thresholds, health: Mapping[str, Any]) -> Metric:
    warning, critical = limits[label]
    if label == "disk_gib":
        floor = float(health["disk_floor_gib"])
        warning, critical = warning or Range(2 * floor), critical or Range(floor)
    least = None if label == "certificate_days" else 0.0
    return Metric(label, None if value is None else float(value), UNITS.get(label, ""), warning, critical, least)


if __name__ == "__main__":
    sys.exit(main())
