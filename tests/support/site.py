"""Intake, loop and recovery over a real store and a fake host: the agent without libvirt, broker and reactor."""

from __future__ import annotations

import base64
import json
import uuid
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional

from twisted.internet.defer import Deferred, succeed

from tests.support import building
from tests.support.host import FakeHost
from tests.support.lanes import HandTurned, lane
from vmagent.accounting import Accountant, CountedFirewall
from vmagent.announcer import Announcer
from vmagent.bookparts import reporting
from vmagent.chronicle import Feeds
from vmagent.consequences import Consequences
from vmagent.core import dn, events, limitviews, request
from vmagent.core.capacity import Around
from vmagent.core.commands import Signer
from vmagent.core.model import Phase
from vmagent.core.policy import Policy
from vmagent.core.room import HostRoom
from vmagent.counting import Watchman
from vmagent.errors import Problem
from vmagent.holding import Holder
from vmagent.imagecommands import ImageCommands
from vmagent.imagekeeping import ImageKeeper
from vmagent.imageparts import heard
from vmagent.intake import Intake, Limits
from vmagent.local.feed import LiveFeed
from vmagent.observer import Observer
from vmagent.offering import Offering
from vmagent.questions import Questions
from vmagent.reconciler import Reconciler
from vmagent.recovery import Recovery
from vmagent.render import glue, occi
from vmagent.revoking import Revoker
from vmagent.snapshotting import Snapshotting
from vmagent.store.store import SqliteStore
from vmagent.sweeping import Sweeper
from vmagent.usagereport import UsageReport
from vmagent.world import World

MOST_TURNS = 3000
URL = "stomp+ssl://broker.example.org:61614"


def occi_of(states: Any) -> Any:
    return occi.collection(occi.compute(state, "x86_64") for state in states)


class NoOutbox:
    def wake(self) -> None: ...


class Trusting:
    """Believes whoever the frame says it is: `{"signer": ..., "payload": {...}}` stands for a signed body."""

    def verify(self, envelope: request.Envelope, now_s: float) -> Any:
        if envelope.signature == "AAAA":
            raise Problem("signature", "the signature is wrong")
        padded = envelope.payload + "=" * (-len(envelope.payload) % 4)
        return base64.urlsafe_b64decode(padded), SIGNER

    def unsigned(self) -> Signer:
        return Signer("broker:test")


SIGNER = Signer(building.SIGNER, dn.parse(building.SIGNER), "ab" * 32)


class Site:
    """One run of the agent over `folder`; `Site(folder, host=old.host)` is the next run on the same host."""

    def __init__(self, folder: Path, host: Optional[FakeHost] = None, policy: Optional[Policy] = None,
                 store: Any = None) -> None:
        self.reactor = HandTurned()
        self.around = Around({building.BRIDGE: 1_000_000}, ())
        self.written_gib = 0  # by somebody else, on the disk of the overlays
        self.able: Dict[str, Any] = {}  # members of HostRoom, where the driver is another one
        if host is not None:
            self.reactor.rightNow = host.clock.seconds()
            host.clock = self.reactor
        else:
            self.reactor.rightNow = 1000.0
        self.host = host or FakeHost(self.reactor)
        self.lane = lane(self.reactor, "store")
        self.store = store or SqliteStore(folder / "vmagent.db", self.lane, 10_000, 2**24)
        self.host.contexts = self.store.context
        policy = policy or building.policy()
        self.feed = LiveFeed()
        feeds = Feeds(self.feed)
        self.world = World(self.store, NoOutbox(), feeds)
        self.consequences = Consequences(self.world, policy)
        h = self.host
        self.observer = Observer(self.world, h, h, h.firewall, h.shaper, h.cgroups, h, h)
        self.accountant = Accountant(self.world, self.store, h.firewall, h, self.reactor,
                                     lambda: self.consequences.policy, lambda: (16, 65536), h.used)
        feeds.add(self.accountant)
        self.usage = UsageReport(self.world, self.store, self.accountant, lambda: self.consequences.policy)
        firewall = CountedFirewall(h.firewall, self.accountant.last)
        performers = {"hypervisor": h, "images": h, "firewall": firewall, "shaper": h.shaper, "cgroups": h.cgroups}
        self.snapshotting = Snapshotting(self.world, h.jobs, h, self.consequences, h, self.reactor)
        self.reconciler = Reconciler(self.world, self.observer, performers, self.consequences, h, self.reactor,
                                     self.snapshotting.wanted)
        self.holder = Holder(self.world, self.observer, h.firewall, h.shaper, h.cgroups, self.reconciler,
                             self.consequences, h)
        self.sweeper = Sweeper(self.world, h, h.firewall, h.shaper, h)
        self.watchman = Watchman(self.world, h)
        self.revoker = Revoker(self.world, self.consequences, self.reconciler.mark, h, self.reactor, self.run)
        self.recovery = Recovery(self.world, self.store, self.observer, self.reconciler, self.consequences, h)
        self.keeper = ImageKeeper(self.world, self.consequences, h, h, self.reactor, self._begin)
        heard(self.reconciler.mark, self.keeper.news, self.snapshotting.attend, h.shelf.tell)
        commands = ImageCommands(self.world, self.consequences, self.revoker, self.keeper)
        self.announcer = Announcer(
            self.world, self.store, h, self.consequences, h, "signed", "0",
            lambda: limitviews.capabilities(h.info(), h.firewall.info(), h.shaper.info(), 2,
                                            self.consequences.policy.snapshots), commands.here)
        self.offering = Offering(self.world, h, self.consequences, h, self._room, lambda: succeed(self.around),
                                 lambda data, now: glue.share(self.announcer.host(now), data, commands.here(now), URL))
        self.announcer.capacity = self.offering.view
        self.intake = Intake(self.world, self.store, Trusting(), self._room, self.consequences, Limits(262144, True), h,
                             self.reconciler.mark, reporting(self.announcer, self.usage), self.announcer.changed,
                             commands, Questions(self.world, self.consequences, self.offering, 4,
                                                 occi_of))
        self.keeper.attend(self.announcer.changed)
        self.stored = self.wait(self.store.open(h.now()))
        self.world.load(self.stored)
        self.run(self.recovery.restored())
        self.run(self.recovery.recall())
        self.run(self.accountant.start(self.stored.accounts))
        self.run(self.revoker.look())
        self.run(self.keeper.work())
        self.run(self.recovery.resync())

    def _room(self) -> Deferred[HostRoom]:
        room: Deferred[HostRoom] = Deferred()
        able = {"snapshots": self.host.info().snapshots, **self.able}
        room.callback(HostRoom(16, 65536, 500 - self.written_gib, self.world.drained, True, **able))
        return room

    # -- turning

    def wait(self, answer: Any) -> Any:
        return self.reactor.settle(answer)

    def run(self, coroutine: Any) -> Any:
        return self.wait(Deferred.fromCoroutine(coroutine))

    def _begin(self, coroutine: Any) -> None:
        Deferred.fromCoroutine(coroutine)

    def settle(self, until: Any, seconds: float = 120.0) -> None:
        """Turn, a tenth of a second of boot time at a time, until `until()`."""
        ends = self.reactor.seconds() + seconds
        while not until():
            assert self.reactor.seconds() < ends, f"not within {seconds} s of boot time: {self.phases()}"
            self.reactor.advance(0.1)
            self._drain()

    def _drain(self) -> None:
        """Let the store answer whatever it was asked."""
        barrier = self.store.sequences()
        self.wait(barrier)

    def stop(self) -> None:
        self.reconciler.stop()
        self.run(self.accountant.stop())
        self.snapshotting.stop()
        self.revoker.stop()
        self.keeper.stop()
        self.wait(self.store.close())
        self.lane.stop()

    # -- commands

    def body(self, verb: str, args: Mapping[str, Any], id: str = "", **members: Any) -> bytes:
        wall = self.host.now().wall
        payload: Dict[str, Any] = {
            "schema": f"{verb}/1", "id": id or str(uuid.uuid4()), "issued_at": wall,
            "valid_until": "2026-11-20T13:30:00.000Z", "target": self.consequences.policy.host,
            "on_behalf_of": {"subject": building.USER, "fqan": "/vo.example/Role=NULL"}, "args": dict(args), **members,
        }
        text = base64.urlsafe_b64encode(json.dumps(payload).encode()).rstrip(b"=").decode()
        return json.dumps({"protected": "e30", "payload": text, "signature": "c2ln"}).encode()

    def send(self, verb: str, args: Mapping[str, Any], id: str = "", **members: Any) -> str:
        id = id or str(uuid.uuid4())
        self.run(self.intake.frame(self.body(verb, args, id, **members), False))
        return id

    # -- what came out

    def rows(self) -> List[Any]:
        return list(self.wait(self.store.outbox(0, 10_000)))

    def replies(self, id: str) -> List[Mapping[str, Any]]:
        return [row.data for row in self.rows() if row.stream == "replies" and row.data.get("command") == id]

    def states(self, vm: str) -> List[Mapping[str, Any]]:
        return [row.data for row in self.rows() if row.type.endswith("vm.state") and row.data["vm"] == vm]

    def alerts(self) -> List[Mapping[str, Any]]:
        return [row.data for row in self.rows() if row.type.endswith("security.alert")]

    def phase(self, vm: str) -> Phase:
        record = self.world.find(vm)
        observed = self.world.observed.get(vm)
        return events.phase(record, observed) if record and observed else Phase.PENDING

    def phases(self) -> Dict[str, str]:
        return {vm: self.phase(vm).value for vm in (*self.world.records, *self.world.recent)}


def start_args(**kw: Any) -> Dict[str, Any]:
    args: Dict[str, Any] = {"flavour": "small", "image": {"id": "tiny"}, "lifetime_s": 3600,
                            "networks": [{"type": "public"}], "name": "worker"}
    args.update(kw)
    return {k: v for k, v in args.items() if v is not None}


def lives(folder: Path, **kw: Any) -> Iterator[List[Site]]:
    """For a fixture: the first run over `folder`, and room for more; all are ended."""
    made = [Site(folder, **kw)]
    yield made
    for site in made:
        site.stop()


def again(sites: List[Site], folder: Path, **kw: Any) -> Site:
    """The agent dies and comes back on the same host: nothing is told, closed or written."""
    old = sites[-1]
    old.reconciler.stop()
    old.keeper.stop()
    old.wait(old.store.close())
    sites.append(Site(folder, old.host, **kw))
    return sites[-1]
