"""The one loop: observe, plan, commit, act, observe again.

Level-triggered: whoever has news marks a VM dirty; nothing is decided from the news itself.  One step per VM is under
way at a time, steps of different VMs run beside each other.  Retry lives here and nowhere else.
Start-up is recovery: the first resync marks everything dirty, and that is all there is.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Callable, Dict, List, Mapping, Optional, Protocol, Sequence, Set, Tuple

from twisted.internet.defer import Deferred

from vmagent import ports
from vmagent.consequences import Consequences
from vmagent.core import plan as planning
from vmagent.core import proof, rebirth
from vmagent.core.actions import TABLE, Action, Do, abreast
from vmagent.core.changes import Change
from vmagent.core.ending import WAITS_FOR_ROOM, because
from vmagent.core.model import Observed, Seen, VmRecord
from vmagent.crashpoint import reach
from vmagent.errors import Fault, FaultKind
from vmagent.log import event
from vmagent.observer import MISSING_APART_S, Observer
from vmagent.world import World

log = logging.getLogger("vmagent.reconciler")
Failed = Tuple[Action, Fault]
COMMIT_WAIT_S = 5.0  # past it a safe action goes ahead of its record (DESIGN 1.9)
PLUGGED_LOOK_S = 0.005  # while an interface is waited for that is about to come
OWED_LOOK_S = 5.0  # while a reply is owed, or an image is fetched for it, look at least this often
READY_POLL_FIRST_S, READY_POLL_MOST_S = 1.0, 30.0
STEPS_AT_ONCE = 64
LONGEST_STEP_S = 2 * max(row.deadline_s for row in TABLE.values() if row.port != "jobs") + 60
IN_VAIN_MOST = 3  # a limit that was set this often and still reads otherwise
BACKOFF_FIRST_S, BACKOFF_MOST_S = 0.5, 60.0


class Timer(Protocol):
    """The part of the reactor that the loop needs."""

    def callLater(self, delay: float, call: Any, *args: Any) -> Any: ...

    def seconds(self) -> float: ...


class Reconciler:
    """Makes what is observed equal to what is wished."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        performers: Mapping[str, Any],
        consequences: Consequences,
        clock: ports.Clock,
        timer: Timer,
        job: Callable[[Action], None],
    ) -> None:
        self._world = world
        self._observer = observer
        self._performers = performers  # port name -> hypervisor | images | firewall | shaper | cgroups
        self._consequences = consequences
        self._clock = clock
        self._timer = timer
        self._job = job  # have this one under way beside the steps
        self._dirty: Set[str] = set()
        self._busy: Dict[str, float] = {}  # VM id -> boot time at which its step began
        self._failures: Dict[str, int] = {}
        self._acted: Dict[str, Tuple[Action, Observed, int]] = {}  # VM id -> what was done, on what, how often in vain
        self._wake: Dict[str, Any] = {}  # VM id -> pending delayed call
        self._turning = False
        self._stopped = False
        self.steps = 0  # proof of progress for the watchdog and the tests

    # -- news

    def mark(self, vm: str) -> None:
        """Look at this VM again."""
        self._dirty.add(vm)
        if not self._turning and not self._stopped:
            self._turning = True
            self._timer.callLater(0, self._turn)

    def mark_all(self) -> None:
        """Look at every VM again."""
        for vm in list(self._world.records):
            self.mark(vm)

    def stop(self) -> None:
        """Begin nothing new; guests, rules and limits stay as they are."""
        self._stopped = True
        for call in self._wake.values():
            call.cancel()
        self._wake.clear()

    def idle(self) -> bool:
        """Nothing is dirty and nothing is under way."""
        return not self._dirty and not self._busy

    def busy_s(self, vm: str) -> float:
        """For how long a step of this VM has been under way; 0 = none is."""
        since = self._busy.get(vm)
        return 0.0 if since is None else self._clock.now().at - since

    def healthy(self) -> bool:
        """No step is under way for longer than every deadline in it together: somebody still owns each of them."""
        oldest = min(self._busy.values(), default=None)
        return oldest is None or self._clock.now().at - oldest < LONGEST_STEP_S

    # -- the turn

    def _turn(self) -> None:
        self._turning = False
        for vm in sorted(self._dirty - set(self._busy)):
            if self._stopped or len(self._busy) >= STEPS_AT_ONCE:
                return
            self._dirty.discard(vm)
            record = self._world.records.get(vm)
            if record is None:
                continue
            self._cancel(vm)
            self._busy[vm] = self._clock.now().at
            Deferred.fromCoroutine(self._guarded(record)).addBoth(self._done, vm)

    def _done(self, result: Any, vm: str) -> None:
        self._busy.pop(vm, None)
        self.steps += 1
        if self._dirty:
            self.mark(next(iter(self._dirty)))

    async def _guarded(self, record: VmRecord) -> None:
        try:
            await self._step(record)
        except Exception:  # noqa: BLE001 - edge: one VM's surprise must not stop the loop
            event(log, "surprise", f"a step of {record.vm} failed", vm=record.vm)
            self._later(record.vm, self._backoff(record.vm))

    async def _step(self, record: VmRecord) -> None:
        observed = await self._observer.look(record)
        urgent = self._urgent(record.vm, observed)
        try:
            planned, committed = await self._adopt(record, observed)
        finally:
            if urgent is not None:
                await urgent
        if urgent is not None or planned is None:
            return
        if planned.job is not None and committed:
            self._job(planned.job)
        action = planned.action
        doing = () if action is None else action.chain if committed else action.safe_chain
        if action is not None and doing:
            await self._act(action, doing, observed)
        elif not committed:
            self._later(record.vm, self._backoff(record.vm))
        else:
            self._failures.pop(record.vm, None)
            self._acted.pop(record.vm, None)
            self._sleep(planned, observed)

    def _urgent(self, vm: str, observed: Observed) -> Optional[Deferred[None]]:
        """What does not wait for the commit of its plan: a guest that rebooted runs, and without its cap."""
        newest = self._world.records.get(vm)
        if newest is None or not rebirth.uncapped(newest, observed.domain):
            return None
        action = self._plan(newest, observed).action
        if action is None or action.do is not Do.APPLY_CPU:
            return None
        return Deferred.fromCoroutine(self._act(action, (action,), observed))

    async def _adopt(self, record: VmRecord, observed: Observed) -> Tuple[Optional[planning.Plan], bool]:
        """Plan on the newest record and commit what it asks; (plan, whether the commit landed)."""
        adopting = Deferred.fromCoroutine(self._world.transact(lambda: self._decide(record.vm, observed)))
        try:
            planned = await within(self._timer, adopting, COMMIT_WAIT_S)
        except Fault as fault:
            event(log, "store-failed", f"cannot record a step of {record.vm}: {fault}", vm=record.vm,
                  fault=fault.kind.value)
            newest = self._world.records.get(record.vm)
            return (self._plan(newest, observed), False) if newest else (None, False)
        if planned is not None and planned.record.phase != "ready" and self._world_phase(record.vm) == "ready":
            reach("ready")
        return planned, True

    async def _decide(self, vm: str, observed: Observed) -> Tuple[Tuple[Change, ...], Optional[planning.Plan]]:
        record = self._world.records.get(vm)
        if record is None:
            return (), None
        planned = self._plan(record, observed)
        changes = self._consequences.of_plan(record, planned, observed, self._clock.now())
        return tuple(changes), planned

    def _plan(self, record: VmRecord, observed: Observed) -> planning.Plan:
        now = self._clock.now()
        distrust = self._consequences.distrust(record.spec, now)
        rivals = self._consequences.rivals(record)
        return planning.plan(record, observed, now, self._consequences.policy, distrust, rivals)

    def _world_phase(self, vm: str) -> str:
        record = self._world.records.get(vm)
        return record.phase if record else ""

    # -- effects

    def _in_vain(self, action: Action, observed: Observed) -> int:
        """How often this very action was performed on this very observation before, and changed nothing."""
        seen = _ageless(observed)
        before = self._acted.get(action.vm)
        times = before[2] + 1 if before is not None and before[:2] == (action, seen) else 0
        self._acted[action.vm] = (action, seen, times)
        return times

    async def _act(self, action: Action, chain: Sequence[Action], observed: Observed) -> None:
        times = self._in_vain(action, observed)
        for row in abreast(chain):
            failed = await self._row(row)
            for doing, fault in failed:
                await self._failed(doing, fault)
            if failed:
                return
        if times:
            await self._changed_nothing(action, observed, times)
            return
        self._failures.pop(action.vm, None)
        self.mark(action.vm)

    async def _row(self, row: Sequence[Action]) -> List[Failed]:
        """All of these at the same time; those that failed."""
        ended: List[Optional[Failed]] = []
        under_way = [Deferred.fromCoroutine(self._beside(each, row, ended)) for each in row]
        for one in under_way:
            await one
        return [failed for failed in ended if failed is not None]

    async def _beside(self, action: Action, row: Sequence[Action], ended: List[Optional[Failed]]) -> None:
        """What needs an interface waits for it while its guest is made; without a guest there will be none."""
        waits = action is not row[0] and action.do is Do.SHAPE
        while waits and not ended and not self._observer.plugged(action.spec):
            pause: Deferred[None] = Deferred()
            self._timer.callLater(PLUGGED_LOOK_S, pause.callback, None)
            await pause
        if not (waits and ended and ended[0]):
            ended.append(await self._perform(action))

    async def _perform(self, action: Action) -> Optional[Failed]:
        """None = it was done."""
        reach(f"before-{action.do.value}")
        try:
            await self._performers[action.port].perform(action)
        except Fault as fault:
            return action, fault
        reach(f"after-{action.do.value}")
        return None

    async def _changed_nothing(self, action: Action, observed: Observed, times: int) -> None:
        """Success was told, and the next look found the same: after a few times a limit counts as refused."""
        differs = proof.drift(action.spec, observed)
        if times >= IN_VAIN_MOST and differs and action.do in proof.REPAIRS.values():
            found = "; ".join(f"{one.what} {one.device}: {one.found}".replace(" :", ":") for one in differs)
            await self._failed(action, Fault(FaultKind.REFUSED, f"it was done, but what is read back differs: {found}"))
        else:
            self._later(action.vm, self._backoff(action.vm))

    async def _failed(self, action: Action, fault: Fault) -> None:
        """What it means is the planner's to say; people read it in the reason trail."""
        event(log, "action-failed", f"{action.do.value} of {action.vm}: {fault}", vm=action.vm, action=action.do.value,
              fault=fault.kind.value)
        if fault.kind is not FaultKind.AWAY:
            await self._record(action, fault)
        if fault.kind is FaultKind.GONE:
            self.mark(action.vm)
        else:
            self._later(action.vm, self._backoff(action.vm))

    async def _record(self, action: Action, fault: Fault) -> None:
        full = fault.kind is FaultKind.FULL and action.do not in WAITS_FOR_ROOM
        final = fault.kind is FaultKind.REFUSED or full

        async def decide() -> Tuple[Tuple[Change, ...], None]:
            before = self._world.records.get(action.vm)
            now = self._clock.now()
            if before is None:
                return (), None
            if final:
                after = planning.gave_up(before, action, fault.detail, now)
            else:
                after = because(before, "agent", f"{action.do.value}: {fault.detail}", now)
            return tuple(self._consequences.of_record(before, after, now)), None

        try:
            await self._world.transact(decide)
        except Fault as failed:
            event(log, "store-failed", f"cannot record the failure of {action.vm}: {failed}", vm=action.vm,
                  fault=failed.kind.value)

    # -- time

    def _sleep(self, planned: planning.Plan, observed: Observed) -> None:
        """Wake when the plan says, or sooner while something is expected that sends no event."""
        vm, now = planned.record.vm, self._clock.now().at
        waits = [] if planned.wake_at is None else [planned.wake_at - now]
        if self._world.owed(vm) or observed.fetching is not None:
            waits.append(OWED_LOOK_S)
        if observed.domain.seen is Seen.MISSING and not observed.missing_twice:
            waits.append(MISSING_APART_S)
        if observed.domain.seen is Seen.RUNNING and not self._observer.speaking(planned.record):
            waits.append(_ready_poll(now - (planned.record.journal.started_at or now)))
        if waits:
            self._later(vm, max(0.0, min(waits)))

    def _backoff(self, vm: str) -> float:
        count = self._failures.get(vm, 0)
        self._failures[vm] = count + 1
        return float(min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** min(count, 10)))

    def _later(self, vm: str, delay: float) -> None:
        self._cancel(vm)
        if not self._stopped:
            self._wake[vm] = self._timer.callLater(delay, self._woken, vm)

    def _woken(self, vm: str) -> None:
        self._wake.pop(vm, None)
        self.mark(vm)

    def _cancel(self, vm: str) -> None:
        call = self._wake.pop(vm, None)
        if call is not None:
            call.cancel()


def _ageless(observed: Observed) -> Observed:
    """The observation without its ages."""
    network = observed.network and dataclasses.replace(observed.network, at=0.0)
    return dataclasses.replace(observed, domain=dataclasses.replace(observed.domain, at=0.0), network=network)


def _ready_poll(running_s: float) -> float:
    """A guest is asked often while it boots, and ever more rarely when it stays silent."""
    return min(READY_POLL_MOST_S, max(READY_POLL_FIRST_S, running_s / 10))


async def within(timer: Timer, waited: Deferred[Any], seconds: float) -> Any:
    """The result, or Fault UNKNOWN after `seconds`; what was waited for goes on by itself."""
    answer: Deferred[Any] = Deferred()
    late = timer.callLater(seconds, lambda: answer.errback(Fault(FaultKind.UNKNOWN, f"no answer within {seconds:g} s")))

    def relay(result: Any) -> None:
        if late.active():
            late.cancel()
            answer.callback(result)

    waited.addBoth(relay)
    return await answer
