"""Every part of the agent, built and wired in one readable place.  `daemon.py` owns it and drives its life.

What layer 2 packages need of each other they get here, as plain callables: none of them imports another.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import random
from dataclasses import dataclass
from typing import Any, Callable, Coroutine, Mapping, Optional

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

import vmagent
from vmagent import ports
from vmagent.announcer import Announcer
from vmagent.broker.client import BrokerLink, LinkState, Subscription
from vmagent.broker.inbox import Inbox
from vmagent.broker.outbox import Outbox
from vmagent.broker.profiles import PROFILES
from vmagent.broker.signing import Unsigned, Verifier
from vmagent.broker.trust import TrustStore
from vmagent.chronicle import Chronicle, Feeds
from vmagent.config import Config
from vmagent.consequences import Consequences
from vmagent.core import events, walltime
from vmagent.core.admission import HostRoom
from vmagent.core.changes import OutboxRow
from vmagent.core.model import VmSpec
from vmagent.core.policy import Policy
from vmagent.errors import Fault
from vmagent.host import room
from vmagent.host.processes import ProcProcesses
from vmagent.host.witness import NftWitness
from vmagent.hypervisor.adapter import Libvirt
from vmagent.hypervisor.perform import Paths
from vmagent.images.local import LocalImages
from vmagent.intake import Intake, Limits
from vmagent.lanes import Lanes
from vmagent.local.feed import LiveFeed
from vmagent.local.server import LocalServer
from vmagent.log import event, surprise
from vmagent.observer import LIVE, Observer
from vmagent.queries import Queries
from vmagent.reconciler import Reconciler
from vmagent.recovery import Recovery
from vmagent.store.store import SqliteStore
from vmagent.world import World

log = logging.getLogger("vmagent.daemon")
THREADS = {"store": 1, "images": 3, "witness": 1, "files": 1}
RELOAD_S = 30.0


@dataclass
class Parts:
    """The built agent.  Nothing is started yet."""

    clock: ports.Clock
    store: SqliteStore
    images: LocalImages
    hypervisor: Libvirt
    channel: Channel
    world: World
    consequences: Consequences
    observer: Observer
    reconciler: Reconciler
    recovery: Recovery
    announcer: Announcer
    intake: Intake
    local: LocalServer
    trust: TrustStore
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

    async def hold(self) -> None:
        """Read the limits of running guests again, and mend what drifted; see whether their QEMUs run."""
        observed = self.world.observed
        live = [vm for vm in self.world.records if vm in observed and observed[vm].domain.seen in LIVE]
        self.hypervisor.look_alive(live)
        for record in self.world.records.values():
            if record.spec.cpu_cap_core_percent is not None:
                self.reconciler.mark(record.vm)

    async def minute(self) -> None:
        """What is looked after once a minute."""
        await self.lanes["files"].run("trust", RELOAD_S, self.trust.reload)
        await self.intake.minute()
        await self.announcer.changed()

    async def prune(self) -> None:
        """Once a day: what is past its time is forgotten."""
        await self.store.prune(self.clock.now())

    def adopt_policy(self, policy: Policy) -> None:
        """SIGHUP: everything that reads the policy reads this one from now on."""
        self.consequences.policy = policy
        self.images.adopt(policy.images)
        self.reconciler.mark_all()
        self._run(self.minute())

    async def stop(self) -> None:
        """Take nothing new, then close; guests stay as they are."""
        self.reconciler.stop()
        self.local.stop()
        self.channel.inbox.stop()
        self.channel.outbox.stop()
        await self.channel.link.stop()
        await self.hypervisor.stop()
        await self.store.close()
        for lanes in self.lanes.values():
            lanes.stop()

    def _run(self, work: Coroutine[Any, Any, Any]) -> None:
        Deferred.fromCoroutine(work).addErrback(_told)


def _told(failure: Failure) -> None:
    """Edge: nobody waits for this work."""
    if isinstance(failure.value, Fault):
        log.warning("%s", failure.value)
    else:
        surprise(log, "a task in the background failed", failure)


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
    broker = config.broker
    store = SqliteStore(config.directories.state / "vmagent.db", lanes["store"], broker.spool_rows,
                        broker.spool_mib * 2**20)
    images = LocalImages(config.images, policy.images, lanes["images"])
    witness = NftWitness(policy.instance, lanes["witness"])
    processes = ProcProcesses()

    def paths(spec: VmSpec) -> Paths:
        return Paths(*images.paths(spec.vm), str(images.golden(spec)))

    hypervisor = Libvirt(config.hypervisor, policy.instance, paths, reactor, processes.halted, chance.random)
    late, feed = _LateOutbox(), LiveFeed()
    world = World(store, late, Feeds(feed, Chronicle()))
    consequences = Consequences(world, policy)
    observer = Observer(world, hypervisor, images, witness, processes, clock)
    performers = {"hypervisor": hypervisor, "images": images, "witness": witness}
    reconciler = Reconciler(world, observer, performers, consequences, clock, reactor)
    recovery = Recovery(world, store, observer, reconciler, consequences, clock)
    trust = TrustStore(config.security)
    verifier = _verifier(config, trust)
    announcer = Announcer(world, store, hypervisor, consequences, clock, config.security.commands,
                          vmagent.__version__, lambda: _days_left(trust, clock))
    intake = Intake(world, store, verifier, _room(hypervisor, images, world), consequences,
                    Limits(broker.max_command_kib * 1024, config.security.commands == "signed"), clock,
                    reconciler.mark, announcer.snapshot_changes, announcer.changed)
    channel = _channel(config, reactor, clock, chance, store, intake, world)
    late.outbox = channel.outbox
    queries = Queries(world, store, hypervisor, images, clock, lambda: consequences.policy,
                      lambda: dataclasses.asdict(channel.link.state()))
    local = LocalServer(config.socket, reactor,
                        lambda payload, signer: Deferred.fromCoroutine(intake.local(payload, signer)),
                        queries.table(), feed, clock, policy.host)
    return Parts(clock, store, images, hypervisor, channel, world, consequences, observer, reconciler, recovery,
                 announcer, intake, local, trust, lanes)


def _verifier(config: Config, trust: TrustStore) -> ports.Verifier:
    return Verifier(trust) if config.security.commands == "signed" else Unsigned(config.broker.login)


def _days_left(trust: TrustStore, clock: ports.Clock) -> Mapping[str, int]:
    return {name: int(days) for name, days in trust.days_left(walltime.seconds(clock.now().wall)).items()}


def _room(
    hypervisor: ports.Hypervisor, images: ports.Images, world: World
) -> Callable[[], Deferred[HostRoom]]:
    """What admission may promise.  With libvirt away nobody knows what it can start: then the wish waits for it."""
    here = room.facts()

    def of(free_gib: int) -> HostRoom:
        info = hypervisor.info()
        return HostRoom(here.cores, here.memory_mib, free_gib, world.drained, info.startable or not info.connected,
                        cpu_caps=info.cpu_caps)

    return lambda: images.free_gib().addCallback(of)


@dataclass
class Channel:
    """The way to and from the broker."""

    link: BrokerLink
    inbox: Inbox
    outbox: Outbox


def _channel(
    config: Config, reactor: Any, clock: ports.Clock, chance: random.Random, store: ports.Store, intake: Intake,
    world: World,
) -> Channel:
    broker = config.broker
    profile = PROFILES[broker.profile]
    everyone = Subscription(broker.client_id, broker.commands_all, durable=True)
    subscriptions = (Subscription("commands", broker.commands), everyone)

    def changed(state: LinkState) -> None:
        if state.up:
            world.degraded.pop("broker", None)
            event(log, "broker-up", "the broker is connected", peer=state.url)
        elif "broker" not in world.degraded:
            event(log, "broker-away", f"no broker: {state.why}", peer=state.url, reason=state.why)
        if not state.up:
            world.degraded["broker"] = state.why
        channel.inbox.link_changed(state)
        channel.outbox.link_changed(state)

    link = BrokerLink(broker, profile, reactor, lambda: walltime.seconds(clock.now().wall), chance, subscriptions,
                      lambda frame: channel.inbox.received(frame), changed)
    max_bytes = broker.max_command_kib * 1024
    inbox = Inbox(link, reactor,
                  lambda raw, topic, headers: Deferred.fromCoroutine(intake.frame(raw, topic)),
                  lambda size: Deferred.fromCoroutine(intake.oversized(size)), frozenset({everyone.id}), max_bytes)
    source = f"//{config.policy.site}/{config.policy.host}"
    destinations = {"events": broker.events, "usage": broker.usage, "capacity": broker.capacity,
                    "telemetry": broker.telemetry, "replies": config.policy.default_reply}
    outbox = Outbox(store, link, reactor, source, destinations, _renderer(source), broker.window)
    channel = Channel(link, inbox, outbox)
    return channel


def _renderer(source: str) -> Callable[[OutboxRow], bytes]:
    def render(row: OutboxRow) -> bytes:
        """The same bytes for the same row, every time."""
        body = row.data if row.stream == "replies" else events.cloud_event(row, source)
        return bytes(json.dumps(body, sort_keys=True, separators=(",", ":")), "utf-8")

    return render
