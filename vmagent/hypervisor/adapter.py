"""`ports.Hypervisor` over libvirt: what the reconciler sees, wired from session, eyes, hands and health.

Rules

1. A call that enters the QEMU monitor is not begun on a guest that is stuck or halted at this moment: it fails with
   BUSY at once.  A frozen guest so costs no thread, and a start beside it is not delayed.
2. Quick monitor calls have `stuck_after_s` as their deadline: past it their guest is stuck, and the outcome UNKNOWN.
   A guest that is held to a sliver of a core is given longer: its QEMU shares the quota.
3. DESTROY goes to the rescue connection, whatever else hangs.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from typing import Callable, Dict, FrozenSet, Optional, Sequence, Set

import libvirt
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from vmagent.config import HypervisorSettings
from vmagent.core import drivers
from vmagent.core.actions import Action, Do
from vmagent.core.adopting import Candidate
from vmagent.core.domainxml import parts_of
from vmagent.core.model import DomainSeen, HostSeen, HypervisorInfo, VmSpec
from vmagent.core.samples import Reading
from vmagent.errors import Fault, FaultKind
from vmagent.hypervisor.health import Health
from vmagent.hypervisor.host import HostFacts, gather
from vmagent.hypervisor.jobs import LongJobs
from vmagent.hypervisor.link import Retry
from vmagent.hypervisor.observe import LIVE, SETTLING, Eyes, lookup
from vmagent.hypervisor.perform import Hands, Paths
from vmagent.hypervisor.session import Session
from vmagent.hypervisor.statistics import GuestStatistics
from vmagent.lanes import Reactor

log = logging.getLogger("vmagent.hypervisor")
OBSERVE_DEADLINE_S = 15.0
OBSERVE_ALL_DEADLINE_S = 60.0
# Quick calls that enter the QEMU monitor.
MONITOR = frozenset({Do.RESUME, Do.PAUSE, Do.SHUTDOWN, Do.REBOOT, Do.APPLY_DISK_IO})
# Those that wait for the guest too, and so have their own deadline.
PATIENT = frozenset({Do.ATTACH_DISK, Do.DETACH_DISK})
EVERYTHING = "*"
# Of a core.  Measured with vCPUs that never rest: at 5 percent a monitor answers in 1.5 s, at 3 in up to 11 s, at 1 in
# up to 9 s, whatever the period; above this one, as without a cap.
SLIVER_PERCENT = 10


class Libvirt:
    """See ports.Hypervisor.

    reactor: its seconds() is the boot clock; instance: this agent's id, 2 to 4 characters; paths(spec): where a VM's
    files are (called on a thread); halted(vms): ports.Processes.halted; jitter: 0..1.
    """

    def __init__(
        self,
        settings: HypervisorSettings,
        instance: str,
        paths: Callable[[VmSpec], Paths],
        reactor: Reactor,
        halted: Callable[[Sequence[str]], FrozenSet[str]],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._instance = instance
        self._paths = paths
        self._reactor = reactor
        self._health = Health(reactor, halted, self._probe, self._hint)
        self._session = Session(
            settings.uri,
            settings.threads,
            reactor,
            Retry(settings.reconnect_max_s, jitter),
            lambda conn: gather(conn, settings.emulation, settings.pygrub),
            self._up,
            self._down,
            self._event,
            self._late,
        )
        self.jobs = LongJobs(self._session.jobs, self._session.watchdog, reactor,
                             lambda: None if self._hands is None else self._hands.job, self._health.halted)
        self.statistics = GuestStatistics(self._session.meters, self._measured_by, self._left_alone, self._patience_s,
                                          self._health, reactor.seconds)
        self._caps: Dict[str, Optional[int]] = {}  # VM id -> percent of a core, as its tag last said
        self._probing: Set[str] = set()
        self._facts: Optional[HostFacts] = None
        self._eyes: Optional[Eyes] = None
        self._hands: Optional[Hands] = None
        self._on_hint: Callable[[Optional[str]], None] = lambda vm: None
        self._on_connection: Callable[[bool], None] = lambda up: None
        self._info = HypervisorInfo(
            settings.uri, "", "", "", "", "", 0, 0, False, reactor.seconds(), "not connected yet", startable=False
        )

    def start(self, on_hint: Callable[[Optional[str]], None], on_connection: Callable[[bool], None]) -> None:
        """Connect and stay connected; see ports.Hypervisor."""
        self._on_hint = on_hint
        self._on_connection = on_connection
        self._session.start()

    def stop(self) -> Deferred[None]:
        """Close what can be closed; stuck calls are left to their daemon threads.  No guest is touched."""
        self._health.stop()
        return self._session.stop()

    def info(self) -> HypervisorInfo:
        return self._info

    def stuck(self) -> FrozenSet[str]:
        """VM ids with a monitor call past its deadline, or a QEMU seen twice in state T or D."""
        return self._health.stuck()

    async def take(self, reading: Reading) -> None:
        """A reading of everybody's: whether the QEMUs of live guests run."""
        live = [vm for vm in reading.samples if vm in self._caps]
        self._health.seen(live, frozenset(vm for vm in live if reading.samples[vm].halted))

    def observe_all(self) -> Deferred[HostSeen]:
        """One whole look.  Faults: AWAY, UNKNOWN, BUSY."""
        if self._eyes is None:
            return fail(self._away())
        looking = self._session.observe.run(EVERYTHING, OBSERVE_ALL_DEADLINE_S, self._eyes.all)
        return looking.addCallback(self._seen_all)

    def observe(self, vm: str) -> Deferred[DomainSeen]:
        """One domain; MISSING only on libvirt's word.  Faults: AWAY, UNKNOWN, BUSY."""
        if self._eyes is None:
            return fail(self._away())
        return self._session.observe.run(vm, OBSERVE_DEADLINE_S, self._eyes.one, vm).addCallback(self._seen)

    def candidate(self, vm: str) -> Deferred[Candidate]:
        """See ports.Hypervisor."""
        if self._eyes is None:
            return fail(self._away())
        return self._session.observe.run(vm, OBSERVE_DEADLINE_S, self._eyes.candidate, vm)

    def perform(self, action: Action) -> Deferred[None]:
        """Do it, idempotently.  Faults: AWAY, UNKNOWN, GONE, BUSY, REFUSED, FULL."""
        if self._hands is None:
            return fail(self._away())
        vm = action.vm
        if action.do is Do.DESTROY:
            return self._session.rescue.run(vm, action.deadline_s, self._hands.perform, action)
        deadline_s = action.deadline_s
        if action.do in MONITOR | PATIENT and self._health.halted(vm):
            return fail(Fault(FaultKind.BUSY, f"the QEMU of {vm} does not answer at the moment"))
        if action.do in MONITOR:
            cap = action.spec.limits.cpu_cap_core_percent
            deadline_s = min(deadline_s, self._settings.stuck_after_s * _slowness(cap))
        doing = self._session.control.run(vm, deadline_s, self._hands.perform, action)
        return doing.addCallbacks(self._done, self._undone, callbackArgs=(action,), errbackArgs=(vm,))

    # -- outcomes

    def _done(self, result: None, action: Action) -> None:
        if action.do in MONITOR:
            self._health.answered(action.vm)

    def _undone(self, failure: Failure, vm: str) -> Failure:
        if vm in self._session.control.overdue():
            self._health.late(vm)
        return failure

    def _late(self, vm: str) -> None:
        """A call past its deadline has returned: whatever it said, ask the monitor, and look again."""
        if vm in self._health.stuck():
            self._probe(vm)
        self._hint(vm)

    def _probe(self, vm: str) -> None:
        if self._facts is None or vm in self._probing or vm in self._session.control.overdue():
            return
        self._probing.add(vm)
        monitor = self._facts.profile.measured_by == "process"
        probing = self._session.control.run(vm, self._settings.stuck_after_s, _ask, vm, monitor)
        probing.addBoth(self._probed, vm)

    def _probed(self, outcome: Optional[Failure], vm: str) -> None:
        self._probing.discard(vm)
        if isinstance(outcome, Failure):
            log.info("guest %s still does not answer: %s", vm, outcome.getErrorMessage(), extra={"vm": vm})
        else:
            self._health.answered(vm)

    def _seen(self, domain: DomainSeen) -> DomainSeen:
        if domain.seen in LIVE:
            self._health.look((domain.vm,))
            self._capped(domain)
        else:
            self._health.ended(domain.vm)
            self._caps.pop(domain.vm, None)
        if domain.reason == SETTLING and self._facts is not None:
            self._reactor.callLater(self._facts.profile.off_settles_s, self._hint, domain.vm)
        return domain

    def _seen_all(self, host: HostSeen) -> HostSeen:
        live = [vm for vm, domain in host.domains.items() if domain.seen in LIVE]
        self._health.look(live)
        self._caps = {}
        for vm in live:
            self._capped(host.domains[vm])
        for vm in self._health.stuck().difference(live):
            self._health.ended(vm)
        return host

    def _capped(self, domain: DomainSeen) -> None:
        if domain.tag is not None:
            self._caps[domain.vm] = domain.tag.spec.limits.cpu_cap_core_percent

    # -- what is measured

    def _measured_by(self) -> str:
        return "none" if self._facts is None else self._facts.profile.measured_by

    def _left_alone(self, vm: str) -> bool:
        """Its QEMU does not run now, or a step or a long job is under way on it."""
        return self._session.control.busy(vm) or self._session.jobs.busy(vm) or self._health.halted(vm)

    def _patience_s(self, vm: str) -> float:
        return self._settings.stuck_after_s * _slowness(self._caps.get(vm))

    # -- the connection

    def _up(self, facts: HostFacts) -> None:
        self._facts = facts
        self._eyes = Eyes(facts.profile, self._instance, self._reactor.seconds, facts.cgroup)
        self._hands = Hands(facts.profile, facts.choice, self._instance, self._paths, facts.cgroup)
        self._info = HypervisorInfo(
            uri=facts.uri,
            driver=facts.driver,
            domain_type=facts.profile.domain_type,
            arch=facts.arch,
            libvirt_version=facts.libvirt_version,
            hypervisor_version=facts.hypervisor_version,
            cores=facts.cores,
            memory_mib=facts.memory_mib,
            connected=True,
            since=self._reactor.seconds(),
            why=facts.choice.why,
            startable=facts.choice.profile is not None,
            built="built",
            **drivers.told(facts.profile, facts.choice.kinds),
        )
        log.info("libvirt %s at %s: %s", facts.libvirt_version, facts.uri, facts.choice.why)
        self._on_connection(True)
        self._on_hint(None)

    def _down(self, why: str) -> None:
        was = self._info.connected
        since = self._reactor.seconds() if was else self._info.since
        built = "not-built" if self._session.observe.not_built else self._info.built
        self._info = dataclasses.replace(self._info, connected=False, since=since, why=why, built=built)
        if was:
            self._on_connection(False)

    def _event(self, uuid: str) -> None:
        if self._eyes is not None:
            self._eyes.forget(uuid)
        self._hint(uuid)

    def _hint(self, vm: str) -> None:
        self._on_hint(vm)

    def _away(self) -> Fault:
        return Fault(FaultKind.AWAY, f"libvirt: {self._info.why}")


def _slowness(cap: Optional[int]) -> float:
    """How many times as long as others the monitor of a guest with this cap may take."""
    return 1.0 if cap is None else max(1.0, SLIVER_PERCENT / cap)


def _ask(conn: libvirt.virConnect, vm: str, monitor: bool) -> None:
    """One harmless call that must pass the QEMU monitor, about its first disk, whatever that is called; where guests
    have none, their hypervisor.
    """
    domain = lookup(conn, vm)
    if domain is None or not domain.isActive():
        return
    if monitor:
        domain.blockStats(next(iter(parts_of(domain.XMLDesc(0)).disks), ""))
    else:
        domain.info()
