"""What a collection costs with N idle VMs: ours, a bare bulk call of the same groups, and `virsh domstats`.

    python3 -m bench.telemetry [VMS...] [--seconds S] [--paused]     (root, libvirt, QEMU; 1 100 500, 120 s)

Guests are bare QEMUs of 32 MiB without an operating system, on a libvirtd of their own where that can be had.  One
collection of ours is everything that the agent reads in a minute for each guest, all at once: what the kernel counts,
and the disks of every guest by its monitor.  The bare call asks libvirt for the same in one `getAllDomainStats`.  Each
is measured ROUNDS times in turn, wall and CPU time of the client and of libvirtd; the medians count.  Then the agent is
left at rest for S seconds.  One JSON object for each number of VMs; the last line is that of the last.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import resource
import socket
import statistics
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

import libvirt

from bench import idle
from tests.support import libvirtd
from tests.support.hypervisor import nobody_halted, settings
from tests.support.loop import RealLoop
from vmagent.host.meter import HostMeter
from vmagent.host.processes import ProcProcesses
from vmagent.hypervisor.adapter import Libvirt
from vmagent.lanes import Lanes
from vmagent.metering import TwoHalves

ROUNDS = 5
SETTLE_S = 15.0
GROUPS = ("cpu-total", "vcpu", "balloon", "block")
MASK = (libvirt.VIR_DOMAIN_STATS_CPU_TOTAL | libvirt.VIR_DOMAIN_STATS_VCPU | libvirt.VIR_DOMAIN_STATS_BALLOON
        | libvirt.VIR_DOMAIN_STATS_BLOCK)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Seconds of one collection."""

    wall_s: float
    client_s: float
    libvirtd_s: float


def daemon_pid(uri: str) -> int:
    """Who listens on the socket of this URI."""
    found = re.search(r"socket=([^&]+)", uri)
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(found[1] if found else "/run/libvirt/libvirt-sock")
        return int(struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def resident_mib(pid: int, what: str) -> float:
    """what: VmRSS, or RssAnon: of that what is its own, without the files of libraries that others map as well."""
    found = re.search(rf"^{what}:\s+([0-9]+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return round(int(found[1]) / 1024, 1) if found else 0.0


class Collector:
    """The agent's own halves of the meter, without the agent."""

    def __init__(self, uri: str) -> None:
        self._loop = RealLoop()
        self._libvirt = Libvirt(settings(uri), "vmab", lambda spec: None, self._loop, nobody_halted)  # type: ignore
        up: List[bool] = []
        self._libvirt.start(lambda vm: None, up.append)
        self._loop.until(lambda: up, 120, "libvirt answers")
        lanes = Lanes("meter", 1, self._loop)
        self._meter = TwoHalves(HostMeter(ProcProcesses(), self._loop.seconds), self._libvirt.statistics, lanes.run)

    def collect(self, vms: Sequence[str]) -> None:
        self._loop.result(self._meter.coarse(vms), 600)
        samples = self._loop.result(self._meter.fine(vms), 600)
        self._meter.host()
        untold = [vm for vm in vms if vm not in samples or samples[vm].disk is None or samples[vm].cpu_s is None]
        assert not untold, f"{len(untold)} of {len(vms)} were not read"

    def stop(self) -> None:
        self._loop.result(self._libvirt.stop(), 30)


def cost(call: Callable[[], Any], daemon: int) -> Cost:
    served, used, begun = ran_s(daemon), client_s(), time.monotonic()
    call()
    return Cost(time.monotonic() - begun, client_s() - used, ran_s(daemon) - served)


def client_s() -> float:
    """CPU time of this process and of the children that it waited for."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in spent)


def ran_s(pid: int) -> float:
    """CPU time of all its threads, finer than the clock tick; a thread that ended meanwhile is lost."""
    total = 0
    for path in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((path / "schedstat").read_text().split()[0])
    return total * 1e-9


def compared(uri: str, daemon: int, vms: Sequence[str]) -> Dict[str, Cost]:
    """Medians of each way, measured in turn so that a busy moment hits all."""
    conn, ours = libvirt.open(uri), Collector(uri)
    virsh = ["virsh", "-c", uri, "domstats", *(f"--{group}" for group in GROUPS)]
    ways: Dict[str, Callable[[], Any]] = {
        "ours": lambda: ours.collect(vms),
        "bare": lambda: conn.getAllDomainStats(MASK, 0),
        "virsh": lambda: subprocess.run(virsh, capture_output=True, check=True),
    }
    for call in ways.values():
        call()
    costs: Dict[str, List[Cost]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, call in ways.items():
            costs[name].append(cost(call, daemon))
    ours.stop()
    conn.close()
    return {name: Cost(*(statistics.median(getattr(one, member) for one in found)
                         for member in ("wall_s", "client_s", "libvirtd_s"))) for name, found in costs.items()}


def at_rest(agent: int, daemon: int, seconds: float) -> Dict[str, float]:
    """Shares of one core while nothing happens."""
    begun, used, served = time.monotonic(), idle.cpu_s(agent), idle.cpu_s(daemon)
    time.sleep(seconds)
    lasted = time.monotonic() - begun
    return {
        "agent_cpu_percent": round(100 * (idle.cpu_s(agent) - used) / lasted, 3),
        "libvirtd_cpu_percent": round(100 * (idle.cpu_s(daemon) - served) / lasted, 3),
        "agent_rss_mib": resident_mib(agent, "VmRSS"),
        "agent_own_mib": resident_mib(agent, "RssAnon"),
    }


def measured(folder: Path, uri: str, number: int, seconds: float, paused: bool) -> Dict[str, Any]:
    """One number of VMs, from an empty host to an empty host."""
    daemon = daemon_pid(uri)
    settings = idle.config(folder, number)
    settings["hypervisor"]["uri"] = uri
    with idle.agent_with(folder, settings) as agent:
        assert agent.process is not None
        took = idle.start(agent, number, paused)
        vms = [row["vm"] for row in agent.ask("list")["vms"]]
        time.sleep(SETTLE_S)
        costs = compared(uri, daemon, vms)
        rest = at_rest(agent.process.pid, daemon, seconds)
    told = {f"{way}_{member}": round(getattr(one, member), 4) for way, one in costs.items()
            for member in ("wall_s", "client_s", "libvirtd_s")}  # fmt: skip
    total = {way: one.client_s + one.libvirtd_s for way, one in costs.items()}
    return {
        "vms": number, "paused": paused, "started_in_s": round(took, 1), **told,
        "ratio_vs_bare": round(costs["ours"].wall_s / costs["bare"].wall_s, 2),
        "ratio_vs_virsh": round(costs["ours"].wall_s / costs["virsh"].wall_s, 2),
        "cpu_ratio_vs_bare": round(total["ours"] / total["bare"], 2),
        "measured_s": seconds, **rest,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("vms", nargs="*", type=int, default=[1, 100, 500])
    parser.add_argument("--seconds", type=float, default=120.0, help="at rest (default 120)")
    parser.add_argument("--paused", action="store_true", help="pause the guests: hundreds take all there is")
    said = parser.parse_args()
    for number in said.vms:
        with idle.roomy() as folder, libvirtd.isolated() as uri:
            print(json.dumps(measured(folder, uri, number, said.seconds, said.paused)), flush=True)


if __name__ == "__main__":
    main()
