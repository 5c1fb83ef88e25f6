"""Long jobs: on a connection and lanes of their own, two at a time, each with a deadline, a watchdog and an end.

Rules

1. A job that outlives its deadline is asked to end (`stop`), and libvirt's own job is aborted on the watchdog's
   connection, because the thread of the job may hang in a call.  The lane's deadline comes `ENDING_S` later: past it
   nobody waits any more, and whatever the call still does is found by the next look.
2. While a job may have frozen a guest's file systems, a thaw follows after `FREEZE_S` at the latest, on the
   watchdog's connection, whatever the job's thread does.
3. One job per VM.  `abort` ends it early, by the same way as a deadline.
4. A job is not begun on a guest whose QEMU does not answer at this moment: BUSY.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional

import libvirt
from twisted.internet.defer import Deferred, fail

from vmagent.core.actions import Action, Do
from vmagent.core.snapshotmodel import JobDone
from vmagent.errors import Fault, FaultKind
from vmagent.hypervisor import freezing, layers
from vmagent.hypervisor.link import Link
from vmagent.hypervisor.observe import lookup
from vmagent.lanes import Reactor

log = logging.getLogger("vmagent.hypervisor")
ENDING_S = 15.0
FREEZE_S = 30.0  # longer than the agent has to answer, twice
_WATCHDOG_S = 20.0

Work = Callable[[libvirt.virConnect, Action, layers.Watch], JobDone]
"""What a thread does, on the connection that is current then."""


@dataclass
class _Running:
    """One job under way."""

    stop: threading.Event = field(default_factory=threading.Event)
    why: str = ""
    percent: int = 0
    timers: List[Any] = field(default_factory=list)

    def told(self, percent: int) -> None:
        """On the job's thread: one assignment."""
        self.percent = percent


class LongJobs:
    """See the module's rules.  Every method is called on the reactor's thread."""

    def __init__(
        self, link: Link[Any], watchdog: Link[Any], reactor: Reactor, work: Callable[[], Optional[Work]],
        halted: Callable[[str], bool],
    ) -> None:
        self._link = link
        self._watchdog = watchdog
        self._work = work  # None = not connected yet
        self._halted = halted
        self._reactor = reactor
        self._running: Dict[str, _Running] = {}

    def run(self, action: Action) -> Deferred[JobDone]:
        """See ports.Jobs."""
        work, vm, running = self._work(), action.vm, _Running()
        if work is None:
            return fail(Fault(FaultKind.AWAY, "libvirt is not connected"))
        if self._halted(vm):
            return fail(Fault(FaultKind.BUSY, f"the QEMU of {vm} does not answer at the moment"))
        self._running[vm] = running
        watch = layers.Watch(running.stop, lambda: running.why, running.told)
        doing = self._link.run(vm, action.deadline_s + ENDING_S, work, action, watch)
        late = self._reactor.callLater(action.deadline_s, self._end, vm, running,
                                       f"not done within {action.deadline_s:g} s: aborted")
        running.timers.append(late)
        if action.do is Do.TAKE_SNAPSHOT and action.job is not None and action.job.snapshot.quiesce != "no":
            running.timers.append(self._reactor.callLater(FREEZE_S, self._thaw, vm))
        return doing.addBoth(self._over, vm, running)

    def abort(self, vm: str) -> None:
        """End this VM's job, if there is one."""
        running = self._running.get(vm)
        if running is not None:
            self._end(vm, running, "aborted: it is not wanted any more")

    def percent(self, vm: str) -> Optional[int]:
        """How far its job is; None = there is none."""
        running = self._running.get(vm)
        return None if running is None else running.percent

    def _over(self, outcome: Any, vm: str, running: _Running) -> Any:
        for timer in running.timers:
            if timer.active():
                timer.cancel()
        if self._running.get(vm) is running:
            del self._running[vm]
        return outcome

    def _end(self, vm: str, running: _Running, why: str) -> None:
        if running.stop.is_set():
            return
        log.warning("job of %s: %s", vm, why, extra={"vm": vm})
        running.why = why
        running.stop.set()
        self._watchdog.run(f"{vm} abort", _WATCHDOG_S, _abort_job, vm).addErrback(_told, vm, "abort")
        self._thaw(vm)

    def _thaw(self, vm: str) -> None:
        self._watchdog.run(f"{vm} thaw", _WATCHDOG_S, _thaw_guest, vm).addErrback(_told, vm, "thaw")


def _abort_job(conn: libvirt.virConnect, vm: str) -> None:
    """libvirt's own job; there may be none, and a block job is the thread's to abort."""
    domain = lookup(conn, vm)
    if domain is not None:
        with contextlib.suppress(libvirt.libvirtError):
            domain.abortJob()


def _thaw_guest(conn: libvirt.virConnect, vm: str) -> None:
    domain = lookup(conn, vm)
    if domain is not None:
        freezing.thaw(domain)


def _told(failure: Any, vm: str, what: str) -> None:
    log.warning("%s of %s: %s", what, vm, failure.getErrorMessage(), extra={"vm": vm})
