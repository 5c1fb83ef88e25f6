"""Long jobs beside the loop: begun when a plan asks for one, recorded when it ends.

Rules

1. The plan says which job a VM needs; here is only remembered which one is under way.  Taking a snapshot that the plan
   wants no more is aborted; a deletion is not, because what it has written below cannot be taken back.
2. A job that failed is asked for again by the next plan, not before its wait is over: the waits double up to a minute.
3. What a job came to is committed before anything else follows from it.  An outcome that cannot be committed is
   forgotten: the job is done once more, and finds its work done.
4. How far it is goes into the wish in steps of ten percent.
5. Room and the site's word are looked at when a taking begins, each time it does: it may have waited since it was
   accepted.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Protocol, Tuple

from twisted.internet.defer import Deferred

from vmagent import ports
from vmagent.consequences import Consequences
from vmagent.core import snapshotplan, snapshots
from vmagent.core.actions import Action, Do
from vmagent.core.changes import Change
from vmagent.core.model import VmRecord
from vmagent.crashpoint import reach
from vmagent.errors import Fault, Problem
from vmagent.log import event
from vmagent.world import World

log = logging.getLogger("vmagent.snapshotting")
LOOK_S = 1.0
WAIT_FIRST_S, WAIT_MOST_S = 1.0, 60.0


class Timer(Protocol):
    """The part of the reactor that jobs need."""

    def callLater(self, delay: float, call: Any, *args: Any) -> Any: ...


class Free(Protocol):
    """The part of ports.Images that jobs need."""

    def free_gib(self) -> Deferred[int]: ...


@dataclass
class _Failed:
    """Failures of this VM's job in a row."""

    times: int = 0
    again_at: float = 0.0


class Snapshotting:
    """See the module's rules."""

    def __init__(
        self, world: World, jobs: ports.Jobs, images: Free, consequences: Consequences, clock: ports.Clock,
        timer: Timer,
    ) -> None:
        self._world = world
        self._jobs = jobs
        self._images = images
        self._consequences = consequences
        self._clock = clock
        self._timer = timer
        self._running: Dict[str, Action] = {}
        self._failed: Dict[str, _Failed] = {}
        self._mark: Callable[[str], None] = lambda vm: None
        self._stopped = False

    def attend(self, mark: Callable[[str], None]) -> None:
        """Who looks at a VM again when its job has ended: the loop, which is made after this."""
        self._mark = mark

    def stop(self) -> None:
        """Begin nothing more.  What is under way is found by the next run of the agent."""
        self._stopped = True

    def running(self, vm: str) -> bool:
        return vm in self._running

    def wanted(self, action: Action) -> None:
        """The plan wants this job to be under way."""
        vm = action.vm
        now = self._running.get(vm)
        if now is not None:
            if now.do is Do.TAKE_SNAPSHOT and _about(now) != _about(action):
                self._jobs.abort(vm)
            return
        if self._stopped or self._clock.now().at < self._failed.get(vm, _Failed()).again_at:
            return
        self._running[vm] = action
        self._timer.callLater(LOOK_S, self._look, action)
        Deferred.fromCoroutine(self._run(action)).addBoth(self._over, action)

    async def _run(self, action: Action) -> None:
        try:
            problem = await self._unfit(action)
            if problem is not None:
                why = problem
                await self._change(action.vm, lambda r: snapshotplan.refused(r, action, why, self._clock.now()))
                return
            reach(f"before-{action.do.value}")
            done = await self._jobs.run(action)
        except Fault as fault:
            event(log, "action-failed", f"{action.do.value} of {action.vm}: {fault}", vm=action.vm,
                  action=action.do.value, fault=fault.kind.value)
            self._wait(action.vm)
            failure = fault
            await self._change(action.vm, lambda r: snapshotplan.failed(r, action, failure, self._clock.now()))
            return
        reach(f"after-{action.do.value}")
        self._failed.pop(action.vm, None)
        await self._change(action.vm, lambda r: snapshotplan.succeeded(r, action, done, self._clock.now()))

    async def _unfit(self, action: Action) -> Optional[Problem]:
        """Why this taking must not be begun now.  Faults: those of the look at the disk."""
        record = self._world.records.get(action.vm)
        if action.do is not Do.TAKE_SNAPSHOT or action.job is None or record is None:
            return None
        free_gib = await self._images.free_gib()
        return snapshots.begins(record, action.job.snapshot.kind, self._consequences.policy, free_gib)

    def _over(self, result: Any, action: Action) -> None:
        """Whatever came of it, look again; what nobody foresaw is logged, and waits like a failure."""
        self._running.pop(action.vm, None)
        if result is not None:
            event(log, "surprise", f"a job of {action.vm} failed: {result.getErrorMessage()}", vm=action.vm)
            self._wait(action.vm)
        if not self._stopped:
            self._mark(action.vm)

    def _wait(self, vm: str) -> None:
        failed = self._failed.setdefault(vm, _Failed())
        wait_s = min(WAIT_MOST_S, WAIT_FIRST_S * 2.0 ** min(failed.times, 10))
        failed.times += 1
        failed.again_at = self._clock.now().at + wait_s
        self._timer.callLater(wait_s, self._again, vm)

    def _again(self, vm: str) -> None:
        if not self._stopped:
            self._mark(vm)

    def _look(self, action: Action) -> None:
        """Once a second while it is under way."""
        vm, percent = action.vm, self._jobs.percent(action.vm)
        if self._stopped or self._running.get(vm) is not action:
            return
        self._timer.callLater(LOOK_S, self._look, action)
        if percent is not None:
            telling = self._change(vm, lambda r: snapshotplan.progressed(r, action, percent or 0))
            Deferred.fromCoroutine(telling).addErrback(lambda failure: log.warning("%s", failure.getErrorMessage()))

    async def _change(self, vm: str, after: Callable[[VmRecord], VmRecord]) -> None:
        """Commit what this makes of the newest record, if it makes a difference.  Faults: the store's."""

        async def decide() -> Tuple[List[Change], None]:
            before = self._world.records.get(vm)
            record = before and after(before)
            if before is None or record is None or record == before:
                return [], None
            return self._consequences.of_record(before, record, self._clock.now()), None

        await self._world.transact(decide)


def _about(action: Action) -> Tuple[str, str]:
    return action.do.value, action.job.snapshot.command if action.job else ""
