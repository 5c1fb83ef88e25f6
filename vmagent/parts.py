"""Every part of the agent, built and wired in one readable place.  `daemon.py` owns it and drives its life.

What layer 2 packages need of each other they get here, as plain callables: none of them imports another.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Callable, Coroutine, Mapping, Optional, Sequence, Tuple

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from vmagent import apelparts, bookparts, imageparts, kernelparts, meterparts, ports
from vmagent.accounting import Accountant, CountedFirewall
from vmagent.adopter import Adopter
from vmagent.announcer import Announcer
from vmagent.apelparts import Apel
from vmagent.bookparts import reporting
from vmagent.broker.signing import Unsigned, Verifier
from vmagent.broker.trust import TrustStore
from vmagent.channel import Channel, channel
from vmagent.chronicle import Chronicle, Feeds
from vmagent.condition import Condition
from vmagent.config import Config
from vmagent.consequences import Consequences
from vmagent.core.changes import Change, PutSetting
from vmagent.core.model import VmSpec
from vmagent.core.policy import Policy
from vmagent.counting import Watchman
from vmagent.errors import Fault
from vmagent.holding import Holder
from vmagent.host import interfaces
from vmagent.hypervisor.adapter import Libvirt
from vmagent.hypervisor.perform import Paths
from vmagent.imagecommands import ImageCommands
from vmagent.imagekeeping import ImageKeeper
from vmagent.images.local import LocalImages
from vmagent.images.subscriptions import Subscriptions
from vmagent.intake import Intake, Limits
from vmagent.kernelparts import Kernel
from vmagent.lanes import Lanes
from vmagent.local import handles
from vmagent.local.feed import LiveFeed
from vmagent.local.protocol import ADOPT, DISOWN
from vmagent.local.server import LocalServer
from vmagent.local.session import Deeds
from vmagent.log import event, surprise
from vmagent.meterparts import Measuring
from vmagent.observer import LIVE, Observer
from vmagent.offering import Offering
from vmagent.queries import Queries
from vmagent.reconciler import Reconciler
from vmagent.recovery import Recovery
from vmagent.revoking import Revoker
from vmagent.snapshotting import Snapshotting
from vmagent.speaking import OVERHEAD, speakers
from vmagent.store.store import SqliteStore
from vmagent.sweeping import Sweeper
from vmagent.world import World

log = logging.getLogger("vmagent.daemon")
THREADS = {"store": 1, "images": 3, "network": 2, "files": 1, "fetching": 4, "meter": 1, "export": 1}
LIST_PART = "image-list "  # and its identifier: the part of host.state's `degraded`


@dataclass
class Keepers:
    """Who looks after limits, images and long jobs beside the loop."""

    holder: Holder
    sweeper: Sweeper
    watchman: Watchman
    snapshotting: Snapshotting
    revoker: Revoker
    images: ImageKeeper
    accountant: Accountant


@dataclass
class Parts:
    """The built agent.  Nothing is started yet."""

    clock: ports.Clock
    store: SqliteStore
    images: LocalImages
    kernel: Kernel
    hypervisor: Libvirt
    channel: Channel
    world: World
    consequences: Consequences
    observer: Observer
    reconciler: Reconciler
    recovery: Recovery
    keepers: Keepers
    measuring: Measuring
    announcer: Announcer
    offering: Offering
    intake: Intake
    local: LocalServer
    grid: Apel
    trust: TrustStore
    lists: Subscriptions
    lanes: Mapping[str, Lanes]
    connected: Deferred[None] = dataclasses.field(default_factory=Deferred)  # libvirt came or went for the first time

    def hint(self, vm: Optional[str]) -> None:
        """libvirt's events: look again."""
        if vm is None:
            self._run(self.recovery.resync())
        elif vm in self.world.records:
            self.reconciler.mark(vm)
        else:
            self._run(self.recovery.resync())

    def connection(self, up: bool) -> None:
        """libvirt came or went."""
        if not self.connected.called:
            self.connected.callback(None)
        info = self.hypervisor.info()
        if up:
            self.world.degraded.pop("libvirt", None)
            event(log, "libvirt-up", f"libvirt answers: {info.why}", peer=info.uri)
        else:
            self.world.degraded["libvirt"] = info.why
            self.observer.unseen()
            event(log, "libvirt-away", f"libvirt is away: {info.why}", peer=info.uri, reason=info.why)
        self.reconciler.mark_all()
        self._run(self.announcer.changed())

    async def network(self) -> None:
        """The default drop for our prefix, and what the kernel can do here.  A host without goes on: it starts nothing
        that needs it, and says so.
        """
        try:
            await self.kernel.firewall.start()
        except Fault as fault:
            self.world.degraded["firewall"] = str(fault)
            log.error("no firewall: %s", fault)
        else:
            self.world.degraded.pop("firewall", None)
        await self.kernel.shaper.start()

    async def hold(self) -> None:
        """Hold the limits of running guests."""
        await self.keepers.holder.hold()

    async def minute(self) -> None:
        """What is looked after once a minute, each by itself: what fails holds up nothing else."""
        keepers = self.keepers
        for look in (self._files, self._network_again, lambda: keepers.holder.hold(whole=True), keepers.revoker.look,
                     keepers.images.work, keepers.sweeper.sweep, keepers.watchman.count,
                     keepers.accountant.minute, self._learn,
                     self.intake.minute, self.grid.look, self.measuring.scraping.look,
                     self.announcer.changed):
            try:
                await look()
            except Fault as fault:
                log.warning("%s", fault)

    async def _files(self) -> None:
        await self.channel.certificates.look()
        await self.lists.look()

    async def endorse(self) -> None:
        """Image lists: those kept from the last run count at once, all are read again from now on."""
        with suppress(Fault):  # a directory that hangs holds nobody up; the next minute looks again
            await self.channel.certificates.look()
        await self.lists.start(self.consequences.policy.trust, self.consequences.policy.clock_skew_s, self.listed)

    def listed(self) -> None:
        """Image lists, or what is wrong with them, changed."""
        self.world.lists = self.lists.lists
        for part in [part for part in self.world.degraded if part.startswith(LIST_PART)]:
            del self.world.degraded[part]
        self.world.degraded.update({LIST_PART + name: why for name, why in self.lists.troubles.items()})
        self.reconciler.mark_all()
        self._run(self.keepers.revoker.look())
        self.keepers.images.wake()
        self._run(self.announcer.changed())

    async def _network_again(self) -> None:
        if "firewall" in self.world.degraded:
            await self.network()

    async def _learn(self) -> None:
        """What QEMU takes beside the guest's memory: the most that was ever seen is what admission counts."""
        live = {vm: record.spec.memory_mib for vm, record in self.world.records.items()
                if vm in self.world.observed and self.world.observed[vm].domain.seen in LIVE}
        learned = max(self.kernel.cgroups.overheads(live).values(), default=0)
        if learned > self.world.settings.get(OVERHEAD, 0):
            await self.world.transact(lambda: _setting(OVERHEAD, learned))

    async def offer(self) -> None:
        """What is free, for the first time: a disk that cannot be read keeps nobody from starting."""
        try:
            await self.offering.changed()
        except Fault as fault:
            log.warning("what is free here is not known: %s", fault)

    async def prune(self) -> None:
        """Once a day: what is past its time is forgotten."""
        await self.store.prune(self.clock.now(), self.consequences.policy.accounting.keep_days, self.grid.exporters)

    def adopt_policy(self, policy: Policy) -> None:
        """SIGHUP: everything that reads the policy reads this one from now on."""
        self.consequences.policy = policy
        self.images.adopt(policy.images, policy.volumes)
        self.kernel.firewall.adopt(policy.firewall)
        self.lists.adopt(policy.trust, policy.clock_skew_s)
        self.reconciler.mark_all()
        self._run(self.minute())

    async def stop(self) -> None:
        """Take nothing new, then close; guests stay as they are."""
        self.reconciler.stop()
        self.keepers.snapshotting.stop()
        self.keepers.revoker.stop()
        self.keepers.images.stop()
        self.lists.stop()
        self.local.stop()
        await self.measuring.scraping.stop()
        self.channel.inbox.stop()
        self.channel.outbox.stop()
        await self.channel.link.stop()
        await self.hypervisor.stop()
        await self.keepers.accountant.stop()
        self.kernel.shaper.close()
        await self.store.close()
        for lanes in self.lanes.values():
            lanes.stop()

    def _run(self, work: Coroutine[Any, Any, Any]) -> None:
        _begin(work)


def _begin(work: Coroutine[Any, Any, Any]) -> None:
    Deferred.fromCoroutine(work).addErrback(_told)


async def _setting(name: str, value: Any) -> Tuple[Sequence[Change], None]:
    return (PutSetting(name, value),), None


def _told(failure: Failure) -> None:
    """Edge: nobody waits for this work."""
    if isinstance(failure.value, Fault):
        log.warning("%s", failure.value)
    else:
        surprise(log, "a task in the background failed", failure)


Table = Mapping[str, Callable[[Mapping[str, Any]], "Deferred[Any]"]]


class _LateOutbox:
    """The world wakes the outbox, and the outbox reads the store that the world commits to: one of them comes first."""

    def __init__(self) -> None:
        self.outbox: Optional[ports.Outbox] = None

    def wake(self) -> None:
        if self.outbox is not None:
            self.outbox.wake()


def build(config: Config, reactor: Any, clock: ports.Clock, chance: random.Random) -> Parts:
    """Wire everything.  Problem `configuration` when something named in it cannot be used."""
    policy = config.policy
    lanes = {name: Lanes(name, threads, reactor) for name, threads in THREADS.items()}
    store = _store(config, lanes["store"])
    images = imageparts.files(config, reactor, clock, chance, lanes, lambda: world, store.context,
                              lambda: consequences.policy.disk_floor_gib)
    interfaces.ours_alone(policy.instance)
    kernel = kernelparts.kernel(policy, lanes["network"])
    hypervisor = Libvirt(config.hypervisor, policy.instance, _paths(images), reactor, kernel.processes.halted,
                         chance.random)
    late, feed = _LateOutbox(), LiveFeed()
    feeds = Feeds(feed, Chronicle())
    world = World(store, late, feeds)
    consequences = Consequences(world, policy)
    books = bookparts.books(world, feeds, store, kernel, images, consequences, clock, reactor, hypervisor)
    observer, snapshotting, reconciler = _loop(world, hypervisor, images, kernel, consequences, clock, reactor,
                                               books.accountant)
    recovery = Recovery(world, store, observer, reconciler, consequences, clock)
    keepers = _keepers(world, kernel, hypervisor, images, observer, reconciler, consequences, clock, reactor,
                       snapshotting, books.accountant)
    measured = meterparts.measuring(config, world, hypervisor, kernel.processes, kernel.firewall, clock, reactor,
                                    lanes["meter"], [keepers.watchman.take, books.accountant.take])
    imageparts.heard(reconciler.mark, keepers.images.news, snapshotting.attend, images.tell)
    commands = ImageCommands(world, consequences, keepers.revoker, keepers.images)
    trust = TrustStore(config.security)
    lists = imageparts.lists(config, trust, lanes["files"], reactor, clock, chance)
    said = speakers(config, world, store, hypervisor, images, kernel, consequences, clock, lanes["files"], commands)
    keepers.images.attend(said.announcer.changed)
    intake = Intake(world, store, _verifier(config, trust), said.room, consequences,
                    _limits(config), clock, reconciler.mark, reporting(said.announcer, books.usage),
                    said.announcer.changed, commands, said.questions)
    way = channel(config, reactor, clock, chance, store, intake, world, trust, lanes["files"])
    late.outbox = way.outbox
    queries = Queries(world, store, hypervisor, images, clock, lambda: consequences.policy,
                      Condition(store, images, way, clock, world, lambda: consequences.policy), said.capabilities,
                      kernel.firewall.counters, commands, said.offering, measured.telemetry.view, books.usage)
    measured.sampler.attend(queries.pacing)
    grid = apelparts.build(config, store, world, clock, lanes["export"], way.link,
                           lambda: consequences.policy.volumes)
    adopter = Adopter(world, store, hypervisor, consequences, said.room, clock, reconciler.mark, handles.pick)
    local = _socket(config, reactor, intake, {**queries.table(), **grid.queries()}, feed, clock, adopter)
    return Parts(clock, store, images, kernel, hypervisor, way, world, consequences, observer, reconciler, recovery,
                 keepers, measured, said.announcer, said.offering, intake, local, grid, trust, lists, lanes)


def _socket(
    config: Config, reactor: Any, intake: Intake, table: Table, feed: LiveFeed, clock: ports.Clock, adopter: Adopter
) -> LocalServer:
    """Commands by the intake, questions by the table, guests of others by the adopter."""
    deeds: Deeds = {ADOPT: lambda args, signer: Deferred.fromCoroutine(adopter.adopt(args, signer)),
                    DISOWN: lambda args, signer: Deferred.fromCoroutine(adopter.disown(args, signer))}
    return LocalServer(config.socket, reactor,
                       lambda payload, signer: Deferred.fromCoroutine(intake.local(payload, signer)),
                       table, feed, clock, config.policy.host, deeds)


def _store(config: Config, lane: Lanes) -> SqliteStore:
    broker = config.broker
    return SqliteStore(config.directories.state / "vmagent.db", lane, broker.spool_rows, broker.spool_mib * 2**20)


def _loop(
    world: World, hypervisor: Libvirt, images: LocalImages, kernel: Kernel, consequences: Consequences,
    clock: ports.Clock, reactor: Any, accountant: Accountant,
) -> Tuple[Observer, Snapshotting, Reconciler]:
    """Who looks, who has long jobs under way, and the loop over both."""
    observer = Observer(world, hypervisor, images, kernel.firewall, kernel.shaper, kernel.cgroups, kernel.processes,
                        clock)
    firewall = CountedFirewall(kernel.firewall, accountant.last)
    performers = {"hypervisor": hypervisor, "images": images, "firewall": firewall, "shaper": kernel.shaper,
                  "cgroups": kernel.cgroups}
    snapshotting = Snapshotting(world, hypervisor.jobs, images, consequences, clock, reactor)
    return observer, snapshotting, Reconciler(world, observer, performers, consequences, clock, reactor,
                                              snapshotting.wanted)


def _keepers(
    world: World, kernel: Kernel, hypervisor: Libvirt, images: LocalImages, observer: Observer,
    reconciler: Reconciler, consequences: Consequences, clock: ports.Clock, reactor: Any, snapshotting: Snapshotting,
    accountant: Accountant,
) -> Keepers:
    return Keepers(
        Holder(world, observer, kernel.firewall, kernel.shaper, kernel.cgroups, reconciler, consequences, clock),
        Sweeper(world, hypervisor, kernel.firewall, kernel.shaper, clock),
        Watchman(world, clock),
        snapshotting,
        Revoker(world, consequences, reconciler.mark, clock, reactor, _begin),
        ImageKeeper(world, consequences, images, clock, reactor, _begin),
        accountant,
    )


def _paths(images: LocalImages) -> Callable[[VmSpec], Paths]:
    return lambda spec: Paths(*images.paths(spec.vm), str(images.golden(spec)), images.sources(spec),
                              *images.boot_paths(spec))


def _limits(config: Config) -> Limits:
    return Limits(config.broker.max_command_kib * 1024, config.security.commands == "signed")


def _verifier(config: Config, trust: TrustStore) -> ports.Verifier:
    return Verifier(trust) if config.security.commands == "signed" else Unsigned(config.broker.login)
