"""A host made of small worlds (tests/support/world.py), behind every port that the loop and the intake use.

One object plays hypervisor, images and processes, its parts `firewall`, `shaper` and `cgroups` the rest.  Faults are
asked for by name: `fail[do] = [fault, ...]` is raised by the next performances of that effect, `away` makes libvirt
unreachable.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, Optional, Sequence, Set, Tuple

from twisted.internet.defer import Deferred, fail, succeed

from tests.support import building
from tests.support.fake_images import FakeImages
from tests.support.fake_jobs import FakeJobs
from tests.support.hostnet import HostCgroups, HostFirewall, HostShaper
from tests.support.world import World as VmWorld
from vmagent.core import identity
from vmagent.core.actions import Action, Do
from vmagent.core.adopting import Candidate
from vmagent.core.context import NOTHING, Context
from vmagent.core.model import DomainSeen, ForeignSeen, HostSeen, HypervisorInfo, ImageRef, Now, Seen
from vmagent.core.seed import seed_files
from vmagent.core.snapshotmodel import is_file, layer_word
from vmagent.errors import Fault, FaultKind
from vmagent.observer import LIVE


class FakeHost:
    """See the module."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock  # a twisted Clock: its seconds are the boot clock
        self.boot_id = building.BOOT
        self.worlds: Dict[str, VmWorld] = {}
        self.foreign: Tuple[ForeignSeen, ...] = ()
        self.fail: Dict[Do, List[Fault]] = {}
        self.hang: Set[Do] = set()
        self.hung: List[Tuple[Action, Deferred[None]]] = []
        self.frozen: Set[str] = set()
        self.away = False
        self.taken = 3 << 29  # bytes that each VM's disks take
        self.gib = 500  # free on the disk of the overlays
        self.silent: Set[str] = set()
        self.done: List[Tuple[str, Do]] = []
        self.contexts: Callable[[str], Any] = lambda command: succeed(None)
        self.seeds: Dict[str, Mapping[str, bytes]] = {}  # VM id -> the files of its seed, as last made
        self.firewall, self.shaper, self.cgroups = HostFirewall(self), HostShaper(self), HostCgroups(self)
        self.shelf = FakeImages()  # the image cache; `fetches`: images with a URL are looked for there
        self.fetches = False
        self.jobs = FakeJobs(lambda vm: self.worlds[vm].seen if vm in self.worlds else Seen.MISSING)
        self.jobs.on_layers = self._layered

    def now(self) -> Now:
        at = self.clock.seconds()
        return Now(at, f"2026-11-20T12:{int(at) // 60 % 60:02d}:{int(at) % 60:02d}.000Z", self.boot_id)

    # -- acting

    def perform(self, action: Action) -> Deferred[None]:
        if action.do in self.hang:
            waiting: Deferred[None] = Deferred()
            self.hung.append((action, waiting))
            return waiting
        if self.fail.get(action.do):
            return fail(self.fail[action.do].pop(0))
        if action.do is Do.FETCH_IMAGE and self.fetches:
            return self.shelf.perform(action)
        if action.do is Do.CLEAN_UP:
            self.shelf.give_up(action.vm)
        if action.do is Do.MAKE_SEED:
            given = self.contexts(action.spec.command) if action.spec.context else succeed(NOTHING)
            return given.addCallback(lambda context: self._seed(action, context))
        return self._performed(action)

    def _seed(self, action: Action, context: Optional[Context]) -> Deferred[None]:
        if context is None:
            return fail(Fault(FaultKind.REFUSED, "no context"))
        self.seeds[action.vm] = seed_files(action.spec, action.tag, context)
        return self._performed(action)

    def _performed(self, action: Action) -> Deferred[None]:
        world = self.worlds.setdefault(action.vm, VmWorld(action.spec))
        world.at = self.clock.seconds()
        world.speaks = action.vm not in self.silent
        world.perform(dataclasses.replace(action, then=None))  # what follows is the loop's to ask for
        self.done.append((action.vm, action.do))
        return succeed(None)

    def _layered(self, vm: str, names: Sequence[str]) -> None:
        """A job made or removed files of snapshots."""
        world = self.worlds[vm]
        world.left = {word for word in world.left if not word.startswith("layer:")} | set(map(layer_word, names))

    # -- hypervisor

    def start(self, on_hint: Any, on_connection: Any) -> None: ...

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def info(self) -> HypervisorInfo:
        return HypervisorInfo("test:///fake", "TEST", "test", "x86_64", "9.0.0", "0", 16, 65536, not self.away, 0.0,
                              snapshots=("disk", "full"))

    def observe(self, vm: str) -> Deferred[DomainSeen]:
        if self.away:
            return fail(Fault(FaultKind.AWAY, "libvirt is away"))
        return succeed(self._domain(vm))

    def observe_all(self) -> Deferred[HostSeen]:
        if self.away:
            return fail(Fault(FaultKind.AWAY, "libvirt is away"))
        seen = {vm: self._domain(vm) for vm, w in self.worlds.items() if w.seen is not Seen.MISSING}
        theirs = [ForeignSeen(vm, self.worlds[vm].name, self.worlds[vm].seen, domain.reason)
                  for vm, domain in seen.items() if domain.seen is Seen.FOREIGN and self.worlds[vm].others]
        ours = {vm: domain for vm, domain in seen.items() if vm not in {one.uuid for one in theirs}}
        return succeed(HostSeen(self.clock.seconds(), ours, (*self.foreign, *theirs)))

    def theirs(self, vm: str, name: str) -> VmWorld:
        """A guest that others started, and that runs."""
        world = VmWorld(building.spec(vm=vm, interfaces=(), cpu_cap_core_percent=None), Seen.RUNNING)
        world.others, world.name, world.left = True, name, set()
        world.boots = 1
        self.worlds[vm] = world
        return world

    def candidate(self, vm: str) -> Deferred[Candidate]:
        world = self.worlds.get(vm)
        if world is None:
            return fail(Fault(FaultKind.GONE, f"no domain {vm}"))
        why = "" if world.tag is not None else "no-tag"
        return succeed(Candidate(vm, world.name, world.seen, why, autostart=world.autostart, cores=1,
                                 memory_mib=world.memory_mib, devices=("vnet0",), disks=("sda",)))

    def stuck(self) -> FrozenSet[str]:
        return frozenset(self.frozen)

    def _domain(self, vm: str) -> DomainSeen:
        world = self.worlds.get(vm)
        at = self.clock.seconds()
        if world is None:
            return DomainSeen(vm, Seen.MISSING, "", at)
        return dataclasses.replace(world.look().domain, at=at)

    # -- images, processes

    def leftovers(self, *args: Any) -> Any:
        if args:  # as Processes: (vm, devices)
            return frozenset()
        found = {vm: frozenset(word for word in w.left if is_file(word)) for vm, w in self.worlds.items()}
        waiting = {vm: found.get(vm, frozenset()) | {"download"} for vm in self.shelf.fetching
                   if vm not in self.shelf.asking}
        return succeed({**found, **waiting})

    def here(self, image: ImageRef) -> bool:
        return not self.fetches or self.shelf.here(image)

    def files(self) -> Any:
        return self.shelf.files()

    def downloads(self) -> Any:
        return self.shelf.downloads()

    def evict(self, sha512: str) -> Deferred[None]:
        return self.shelf.evict(sha512)

    def fetch(self, who: str, image: ImageRef) -> None:
        self.shelf.fetch(who, image)

    def give_up(self, who: str) -> None:
        self.shelf.give_up(who)

    def used(self) -> Deferred[Mapping[str, int]]:
        return succeed({vm: self.taken for vm, world in self.worlds.items() if "overlay" in world.left})

    def free_gib(self) -> Deferred[int]:
        return succeed(self.gib)

    def present(self, devices: Sequence[str]) -> FrozenSet[str]:
        shapers = {identity.shaper_name(i.device) for w in self.worlds.values() if "shaper" in w.left
                   for i in w.spec.interfaces}
        return frozenset(devices) & shapers

    def plugged(self, devices: Sequence[str]) -> bool:
        found = {i.device for w in self.worlds.values() if w.seen in LIVE for i in w.spec.interfaces}
        return found.issuperset(devices)

    def halted(self, vms: Sequence[str]) -> FrozenSet[str]:
        return frozenset()

    def one(self) -> Optional[VmWorld]:
        """The only VM there is."""
        assert len(self.worlds) <= 1
        return next(iter(self.worlds.values()), None)
