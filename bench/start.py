"""What a start with every limit proven costs, against libvirt alone and against libvirt's own packet filter.

    python -m bench.start [--rounds 10]

As root.  Three ways to a running guest, taken in turns in one run, so that the machine's mood meets all of them alike:

    bare       libvirt's createXML of the guest, no limits at all
    vmagent    the loop itself (planner, store on disk, libvirt, nft, tc, ip, cgroup): wish stored, firewall, define,
               start paused, shape both ways, cap, read everything back, resume
    nwfilter   createXML of the guest with libvirt's `clean-traffic` (anti-spoofing only)

Each is timed until the call that lets the guest run has returned; that vmagent looks again afterwards is in none.  The
order changes from round to round: a start meets what the end before it left to the kernel.

Guests are QEMU of 32 MiB with a disk and one interface on a bridge of their own; they run firmware only.  Making the
overlay and the seed is in none of the three.  All is made and removed here, on a libvirtd of its own.  The last line is
one JSON object: medians in seconds, ratios of medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import subprocess
import tempfile
import time
import uuid
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, List, Mapping

from twisted.internet.defer import Deferred, succeed

from tests.support import building, hypervisor, libvirtd
from vmagent.consequences import Consequences
from vmagent.core import identity
from vmagent.core.actions import Action, Do
from vmagent.core.changes import PutVm
from vmagent.core.domainxml import domain_xml
from vmagent.core.drivers import PROFILES
from vmagent.core.model import Firewall, ImageRef, Limits, NicLimits, Now, Rule, Seen, VmSpec
from vmagent.core.policy import SiteFirewall
from vmagent.core.quota import UNLIMITED
from vmagent.host.cgroups import HostCgroups
from vmagent.host.firewall import NftFirewall
from vmagent.host.processes import ProcProcesses
from vmagent.host.shaper import TcShaper
from vmagent.lanes import Lanes
from vmagent.local.feed import LiveFeed
from vmagent.observer import Observer
from vmagent.reconciler import Reconciler
from vmagent.store.store import SqliteStore
from vmagent.world import World

BRIDGE = "vbenchbr0"
RULES = Firewall(inbound=(Rule("allow", "tcp", ((22, 22), (8000, 8100))), Rule("allow", "icmp")),
                 outbound=(Rule("deny", "tcp", ((25, 25),)),))
LIMITS = Limits(cpu_cap_core_percent=100, nics=(NicLimits(100_000, 100_000, RULES),))
WAYS = ("bare", "vmagent", "nwfilter")


class Clock:
    """ports.Clock."""

    def now(self) -> Now:
        return building.now(time.clock_gettime(time.CLOCK_BOOTTIME))


class Disks:
    """ports.Images for disks that are there already."""

    def leftovers(self) -> Deferred[Mapping[str, FrozenSet[str]]]:
        return succeed(_Everywhere())

    def here(self, image: ImageRef) -> bool:
        return True


class _Everywhere(Dict[str, FrozenSet[str]]):
    def get(self, vm: str, default: Any = None) -> FrozenSet[str]:
        return frozenset({"overlay", "seed"})


class NoOutbox:
    def wake(self) -> None: ...


class Resumes:
    """ports.Hypervisor's effects, and when each guest was let run."""

    def __init__(self, port: Any) -> None:
        self._port = port
        self.at: Dict[str, float] = {}

    def perform(self, action: Action) -> Deferred[None]:
        doing: Deferred[None] = self._port.perform(action)
        return doing.addCallback(self._noted, action) if action.do is Do.RESUME else doing

    def _noted(self, result: None, action: Action) -> None:
        self.at[action.vm] = time.perf_counter()


class Loop:
    """The reconciler over the real ports of this host."""

    def __init__(self, rig: hypervisor.Rig, folder: Path) -> None:
        self.rig = rig
        loop: Any = rig.loop
        self.lanes = [Lanes("network", 2, loop), Lanes("store", 1, loop)]
        self.firewall = NftFirewall(hypervisor.INSTANCE, self.lanes[0], SiteFirewall())
        self.shaper = TcShaper(hypervisor.INSTANCE, self.lanes[0])
        processes, clock = ProcProcesses(), Clock()
        cgroups = HostCgroups(self.lanes[0], processes)
        self.store = SqliteStore(folder / "vmagent.db", self.lanes[1], 10_000, 2**24)
        rig.result(self.store.open(clock.now()))
        rig.result(self.firewall.start())
        rig.result(self.shaper.start())
        self.world = World(self.store, NoOutbox(), LiveFeed())
        consequences = Consequences(self.world, building.policy(instance=hypervisor.INSTANCE))
        observer = Observer(self.world, rig.port, Disks(), self.firewall, self.shaper, cgroups, processes,  # type: ignore
                            clock)
        self.resumes = Resumes(rig.port)
        performers = {"hypervisor": self.resumes, "firewall": self.firewall, "shaper": self.shaper, "cgroups": cgroups}
        self.reconciler = Reconciler(self.world, observer, performers, consequences, clock, loop, _no_job)

    def start(self, spec: VmSpec) -> float:
        """Seconds from the wish to the guest that runs, proven."""
        began = time.perf_counter()
        record = building.record(spec=spec, accepted_at=time.clock_gettime(time.CLOCK_BOOTTIME))
        self.rig.result(Deferred.fromCoroutine(self.world.transact(lambda: _put(record))))
        self.reconciler.mark(spec.vm)
        self.rig.loop.until(lambda: self._runs(spec.vm), 60, "it runs")
        return self.resumes.at[spec.vm] - began

    def forget(self, vm: str) -> None:
        """Its end is not ours to measure."""
        self.rig.loop.until(self.reconciler.idle, 30, "its last step")
        del self.world.records[vm]

    def _runs(self, vm: str) -> bool:
        observed = self.world.observed.get(vm)
        return observed is not None and observed.domain.seen is Seen.RUNNING

    def end(self) -> None:
        self.reconciler.stop()
        devices = self.rig.result(self.firewall.devices())
        self.rig.result(self.firewall.forget(sorted(devices)))
        self.rig.result(self.shaper.forget(sorted(self.rig.result(self.shaper.devices()))))
        self.shaper.close()
        subprocess.run(["nft", "delete", "table", "bridge", self.firewall.table], check=False, capture_output=True)
        self.rig.result(self.store.close())
        for lanes in self.lanes:
            lanes.stop()


def _no_job(action: Action) -> None:
    raise AssertionError(f"a start has no job: {action.do}")


async def _put(record: Any) -> Any:
    return (PutVm(record),), None


def a_spec(rig: hypervisor.Rig) -> VmSpec:
    spec = rig.spec(command=str(uuid.uuid4()))
    device = identity.device_name(hypervisor.INSTANCE, spec.vm, 0)
    nic = building.interface(spec.vm, bridge=BRIDGE, device=device, addresses=("198.18.5.10/24",), mtu=1500)
    return dataclasses.replace(spec, interfaces=(nic,), limits=LIMITS)


def bare_xml(rig: hypervisor.Rig, spec: VmSpec, nwfilter: bool) -> str:
    paths = rig.disks.paths(spec)
    xml = domain_xml(spec, rig.tag(spec), PROFILES[rig.port.info().domain_type], paths.overlay, paths.seed,
                     paths.golden, UNLIMITED, 2)
    root = ElementTree.fromstring(xml)
    for name in ("metadata", "cputune"):
        for element in root.findall(name):
            root.remove(element)
    if nwfilter:
        ElementTree.SubElement(root.find("devices/interface"), "filterref", filter="clean-traffic")
    return ElementTree.tostring(root, encoding="unicode")


def timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def one_round(rig: hypervisor.Rig, loop: Loop) -> Dict[str, float]:
    took: Dict[str, float] = {}
    for way in random.sample(WAYS, len(WAYS)):
        spec = a_spec(rig)
        if way == "vmagent":
            took[way] = loop.start(spec)
            loop.forget(spec.vm)
            rig.outside.domain(spec.vm).destroy()
            rig.outside.domain(spec.vm).undefine()
        else:
            xml = bare_xml(rig, spec, way == "nwfilter")
            took[way] = timed(lambda: rig.outside.conn.createXML(xml, 0))  # noqa: B023
            rig.outside.domain(spec.vm).destroy()
    return took


def report(rounds: List[Mapping[str, float]]) -> Dict[str, float]:
    medians = {way: statistics.median(each[way] for each in rounds) for way in WAYS}
    for way in WAYS:
        spread = sorted(each[way] for each in rounds)
        print(f"{way:9} median {medians[way]:.3f} s  ({spread[0]:.3f} to {spread[-1]:.3f})  "
              f"{medians[way] / medians['bare']:.2f} x bare")
    return {
        **{f"{way}_s": round(medians[way], 4) for way in WAYS},
        "ratio_vs_bare": round(medians["vmagent"] / medians["bare"], 3),
        "ratio_vs_nwfilter": round(medians["vmagent"] / medians["nwfilter"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    bridges = hypervisor.one_bridge(BRIDGE)
    next(bridges)
    try:
        with libvirtd.isolated() as uri, tempfile.TemporaryDirectory() as folder:
            rig = hypervisor.qemu(uri)
            rig.start()
            loop = Loop(rig, Path(folder))
            try:
                one_round(rig, loop)  # warms caches: QEMU's capabilities, the page cache
                print(json.dumps(report([one_round(rig, loop) for _ in range(options.rounds)])))
            finally:
                loop.end()
                rig.end()
    finally:
        next(bridges, None)


if __name__ == "__main__":
    main()
