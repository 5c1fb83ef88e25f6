"""The planner: one stored wish, one observation, the clocks and the policy in; what to commit and what to do out.

The journal law: `Plan.record` is committed before `Plan.action` is performed, and says that it may have been.  So a
crash between the two, or after both, needs nothing but another look and another plan.  Planning again from the
committed record and the same observation gives the same action and leaves the record alone.  Four effects are counted
instead, so that they are not repeated: an ACPI request (the next is due 10 s later), a reboot (at most once), a resume
after an I/O error (at most once per command, pauses.py) and the renewal of the frame counters before a resume (without
it the guest is ready a little early, no more).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Callable, Dict, Optional, Sequence, Tuple

from vmagent.core import attaching, lease, pauses, premises, proof, rebirth, renewal, snapshotplan
from vmagent.core.actions import Action, Do
from vmagent.core.alarms import Note, alarms, fresh_notes
from vmagent.core.ending import because, begin_stop, begun, ended, gave_up, journaled, rebooted, rolled_back
from vmagent.core.model import SCRATCH, Desired, Now, Observed, Seen, Tag, VmRecord
from vmagent.core.policy import Policy
from vmagent.core.premises import LIVE
from vmagent.core.quota import UNLIMITED, caps, cpu_limit
from vmagent.core.rebirth import Reproven
from vmagent.core.revocation import Distrust
from vmagent.core.snapshotmodel import is_file, layer_word
from vmagent.core.transitions import Facts, Step, step

__all__ = ["Note", "Plan", "gave_up", "plan", "rolled_back", "tag_of"]


@dataclass(frozen=True)
class Plan:
    """What `plan` decided.  `record` may equal the one put in; then nothing needs a commit."""

    record: VmRecord
    action: Optional[Action] = None
    wake_at: Optional[float] = None  # boot time; None = nothing changes by time alone
    warnings: Tuple[int, ...] = ()  # lease warnings to publish with this commit, seconds before the end
    notes: Tuple[Note, ...] = ()
    job: Optional[Action] = None  # to have under way beside the steps (snapshotplan.py)
    reproven: Optional[Reproven] = None  # to be told: a new domain of a guest that rebooted is proven (rebirth.py)


@dataclass(frozen=True)
class _Case:
    """What a step's handler decides on."""

    record: VmRecord
    observed: Observed
    now: Now
    policy: Policy
    facts: Facts

    def act(self, do: Do, record: Optional[VmRecord] = None, then: Optional[Action] = None) -> _Done:
        record = record or self.record
        tagged = do in (Do.MAKE_SEED, Do.DEFINE, Do.WRITE_TAG, Do.CLAIM)
        limited = do in (Do.DEFINE, Do.APPLY_CPU, Do.TELL_SYSTEMD)
        tag = tag_of(record, self.policy.instance) if tagged else None
        layers = snapshotplan.layers(record) if do in (Do.DEFINE, Do.MAKE_LAYER) else ()
        return record, Action(do, record.spec, tag, cpu_limit(record.spec) if limited else None, then, layers=layers)


_Done = Tuple[VmRecord, Optional[Action]]
NO_TAG = "no-tag"  # of ForeignSeen.reason: nobody's tag is in it


def tag_of(record: VmRecord, instance: str) -> Tag:
    """What the domain's metadata should say, so that the wish can be rebuilt from it."""
    journal = record.journal
    boot = lease.run_boot(journal) if journal.may_have_run else ""
    return Tag(
        instance, record.spec, record.generation, record.lifetime_s, record.accepted_wall,
        boot, journal.started_at, journal.started_wall,
    )  # fmt: skip


def plan(
    record: VmRecord, observed: Observed, now: Now, policy: Policy, distrust: Optional[Distrust] = None,
    rivals: Sequence[VmRecord] = (),
) -> Plan:
    """The next step of one VM.  Pure and total.

    distrust: why its image must not be started now; rivals: other wishes that name a volume of this one's.
    """
    if record.closed:
        return Plan(record)
    before = record
    record = premises.refused(record, distrust, now)
    record, warnings = premises.time_passed(record, observed, now, policy)
    record = premises.seen(record, observed, now, policy)
    record, reproven = rebirth.seen(record, observed, now)
    record = premises.excluded(record, observed, rivals, now)
    facts = _facts(record, observed, now)
    following = step(record.desired, observed.domain.seen, facts)
    if following is Step.RENEW and distrust is not None:
        record, following = begin_stop(record, "image", 0, now, premises.not_trusted(distrust)), Step.END
    if following is Step.END:
        again = None if distrust else renewal.again(record, observed, now)
        record = again or premises.keep(ended(record, observed, now), now)
        facts = _facts(record, observed, now)
        following = step(record.desired, observed.domain.seen, facts)
    record = renewal.over(record, observed, now)
    if following is Step.RENEW:
        record = renewal.renewed(snapshotplan.before_renewal(record, now), now)
        facts = _facts(record, observed, now)
        following = step(record.desired, observed.domain.seen, facts)
    raised = alarms(record, observed, facts, following)
    record, action = _HANDLERS[following](_Case(record, observed, now, policy, facts))
    record = journaled(record, alarms=tuple(sorted(raised)))
    calm = action is None and following in (Step.HOLD, Step.REST)
    record, job = snapshotplan.step(record, observed, now, policy, calm)
    notes = fresh_notes(before, raised, observed)
    soon = following is Step.PROVE and action is None
    return Plan(record, action, _wake_at(record, observed, now, policy, soon), warnings, notes, job, reproven)


def _wake_at(record: VmRecord, observed: Observed, now: Now, policy: Policy, soon: bool) -> Optional[float]:
    at = _sooner(lease.wake_at(record, now, policy), snapshotplan.wake_at(record, now, policy.snapshots))
    once = observed.domain.seen is Seen.MISSING and not observed.missing_twice and not record.closed
    again = now.at + lease.LOOK_AGAIN_S
    return min(again, again if at is None else at) if once or soon else at


def _sooner(one: Optional[float], other: Optional[float]) -> Optional[float]:
    return min((at for at in (one, other) if at is not None), default=None)


def _facts(record: VmRecord, observed: Observed, now: Now) -> Facts:
    journal, domain = record.journal, observed.domain
    return Facts(
        has_run=journal.may_have_run,
        ended=record.outcome is not None,
        missing_twice=observed.missing_twice,
        process="process" in observed.leftovers,
        unproven=not journal.may_have_run or journal.paused_by == "start",
        paused_by_us=pauses.ours(journal, domain),
        proven=not proof.drift(record.spec, observed),
        io_error=domain.reason in pauses.BROKEN,
        grace_over=lease.grace_over(record, now),
        left=bool(snapshotplan.remains(record, observed.leftovers) - {"process"}),
        attempted=journal.attempt_boot != "",
        renew=renewal.wanted(record) and not rebooted(record, now),
        held=now.at < journal.renew_after,
        adopted=record.spec.adopted,
        unclaimed=not journal.tag_seen and domain.reason == NO_TAG,
    )


# -- one handler per step


def _nothing(case: _Case) -> _Done:
    return case.record, None


def _prepared(case: _Case, then: Callable[[_Case], _Done]) -> _Done:
    """Image, overlay, seed and firewall exist before the domain does and before it starts."""
    left = case.observed.leftovers
    layered = _layered(case) if snapshotplan.layers(case.record) else None
    if layered is not None:
        return layered
    scratch = any(disk.kind == SCRATCH for disk in case.record.spec.disks)
    if "overlay" not in left or (scratch and "scratch" not in left):
        return _imaged(case)
    if "seed" not in left:
        return case.act(Do.MAKE_SEED)
    record, following = then(case)
    if "firewall" not in left and record.spec.interfaces:
        return case.act(Do.APPLY_FIREWALL, record, following)
    return record, following


def _layered(case: _Case) -> Optional[_Done]:
    """A guest that goes back to a snapshot: what is below must be there, and on top of it an empty layer."""
    names = snapshotplan.layers(case.record)
    lacks = [name for name in names if layer_word(name) not in case.observed.leftovers]
    scratch = any(disk.kind == SCRATCH for disk in case.record.spec.disks)
    needed = {"overlay", "scratch"} if scratch else {"overlay"}
    if needed - case.observed.leftovers or lacks not in ([], [names[-1]]):
        return begin_stop(case.record, "start", 0, case.now, f"files below the snapshot {names[-1]} are gone"), None
    return case.act(Do.MAKE_LAYER) if lacks else None


def _imaged(case: _Case) -> _Done:
    """A download takes hours, and a wish may end in between: it is asked for and not waited for here."""
    if case.observed.fetched:
        return case.act(Do.MAKE_OVERLAY)
    return (case.record, None) if "download" in case.observed.leftovers else case.act(Do.FETCH_IMAGE)


def _define(case: _Case) -> _Done:
    """In one go with its start: a look in between would show what was just done."""
    def define(c: _Case) -> _Done:
        record, starting = _starting(c)
        return c.act(Do.DEFINE, record, starting)
    return _prepared(case, define)


def _start(case: _Case) -> _Done:
    return _prepared(case, _starting)


def _starting(case: _Case) -> _Done:
    """A new interface has no limit yet, no look is needed to know that: it is shaped at once, and looked at then."""
    record = journaled(case.record, attempt_boot=case.now.boot_id, paused_by="start")
    return case.act(Do.START_PAUSED, record, Action(Do.SHAPE, record.spec) if record.spec.interfaces else None)


def _resume(case: _Case) -> _Done:
    """Commits `may_have_run`, and with the first one the beginning of the lease."""
    journal = case.record.journal
    if journal.paused_by == "command" and case.record.desired is Desired.RUN and case.record.spec.interfaces:
        return case.act(Do.WATCH_NETWORK, journaled(case.record, paused_by="start"))
    record = journaled(begun(case.record, case.now), paused_by="resume", resume_asked=False, ready_at=None,
                       proven_domain=case.observed.domain.number, reborn_at=None)
    return case.act(Do.RESUME, record)


def _prove(case: _Case) -> _Done:
    """Paused by us, and a limit is not as wanted: mend it; what cannot be mended does not run."""
    mended = proof.mended(case.record.spec, case.observed)
    if mended is not None:
        return case.act(mended)
    beyond = [one for one in proof.drift(case.record.spec, case.observed) if one.what != "network"]
    if not beyond:
        return case.record, None  # the network was not read back yet
    why = f"{beyond[0].what} {beyond[0].device} cannot be proven: {beyond[0].found}".replace("  ", " ")
    return begin_stop(case.record, "start", 0, case.now, why), None


def _pause(case: _Case) -> _Done:
    record = case.record
    if case.facts.unproven:
        # It executes already: at most once counts from here, and so does the lease.
        record = journaled(begun(record, case.now), attempt_boot=record.journal.attempt_boot or case.now.boot_id)
        return case.act(Do.PAUSE, journaled(record, paused_by="start"))
    return case.act(Do.PAUSE, journaled(record, paused_by="command"))


def _hold(case: _Case) -> _Done:
    """What a running guest may need: its limits, its tag, the reboot it is owed, its volumes."""
    mended = proof.mended(case.record.spec, case.observed)
    if mended is not None:
        return case.act(mended)
    journal = case.record.journal
    if journal.reboot_done < journal.reboot_wanted:
        return case.act(Do.REBOOT, journaled(case.record, reboot_done=journal.reboot_wanted))
    change = attaching.due(case.record, case.observed)
    if change is not None:
        return case.record, Action(change[0], case.record.spec, disk=change[1])
    return _rest(case)


def _rest(case: _Case) -> _Done:
    """A live domain's tag follows the wish, or a lost store would be rebuilt from an old one."""
    domain = case.observed.domain
    if case.record.outcome is not None and "download" in case.observed.leftovers:
        return case.act(Do.CLEAN_UP)  # it ended before there was a disk that could be kept
    mended = proof.mended(case.record.spec, case.observed)
    if mended is not None and case.record.journal.limits_before is not None and domain.seen is Seen.PAUSED:
        return case.act(mended)
    stale = domain.tag is not None and _stale(domain.tag, tag_of(case.record, case.policy.instance))
    return case.act(Do.WRITE_TAG) if stale and domain.seen in LIVE else (case.record, None)


def _stale(seen: Tag, wanted: Tag) -> bool:
    """Not before the first resume: until then nothing is in it that the definition did not say."""
    return _worn(seen) != _worn(wanted)


def _worn(tag: Tag) -> Tuple[int, int, str, int]:
    """What of a tag grows old."""
    return tag.generation, tag.lifetime_s, tag.boot_id, tag.spec.incarnation


def _shutdown(case: _Case) -> _Done:
    journal = case.record.journal
    if case.now.at >= lease.shutdown_at(journal):
        return case.act(Do.SHUTDOWN, journaled(case.record, shutdowns=lease.shutdowns_by(journal, case.now)))
    mended = proof.mended(case.record.spec, case.observed)
    return case.act(mended) if mended is not None else (case.record, None)


def _destroy(case: _Case) -> _Done:
    record = case.record
    crashed = case.observed.domain.seen is Seen.CRASHED and record.journal.may_have_run
    if crashed and not record.journal.end_cause and record.outcome is None and not renewal.wanted(record):
        record = because(journaled(record, end_cause="crash"), "libvirt", "the guest or its QEMU died", case.now)
    return case.act(Do.DESTROY, record)


def _clean_up(case: _Case) -> _Done:
    """Files first, then the firewall once no interface is left that it guards; interfaces go by themselves."""
    record = case.record
    left = snapshotplan.remains(record, case.observed.leftovers)
    if any(is_file(word) for word in left):
        if left == case.observed.leftovers:
            return case.act(Do.CLEAN_UP)
        return record, Action(Do.CUT_BACK, record.spec, layers=snapshotplan.below(record))
    if "shaper" in left:
        return case.act(Do.UNSHAPE)
    if "firewall" in left and "interface" not in left:
        return case.act(Do.REMOVE_FIREWALL)
    return case.record, None


def _close(case: _Case) -> _Done:
    return dataclasses.replace(case.record, closed=True), None


def _untag(case: _Case) -> _Done:
    """A cap that was held goes with it: in libvirt by the same action, in systemd's unit after it."""
    spec, now_free = case.record.spec, None
    if caps(spec) and case.observed.domain.seen in LIVE:
        now_free = Action(Do.TELL_SYSTEMD, spec, cpu=UNLIMITED)
    return case.act(Do.UNTAG, None, now_free)


def _simply(do: Do) -> Callable[[_Case], _Done]:
    return lambda case: case.act(do)


_HANDLERS: Dict[Step, Callable[[_Case], _Done]] = {
    Step.REST: _rest,
    Step.WAIT: _nothing,
    Step.REPORT: _nothing,
    Step.REFUSE: _nothing,
    Step.DEFINE: _define,
    Step.START: _start,
    Step.DISCARD: _simply(Do.DISCARD_SAVED),
    Step.HOLD: _hold,
    Step.PROVE: _prove,
    Step.RESUME: _resume,
    Step.PAUSE: _pause,
    Step.SHUTDOWN: _shutdown,
    Step.DESTROY: _destroy,
    Step.UNDEFINE: _simply(Do.UNDEFINE),
    Step.CLEAN_UP: _clean_up,
    Step.CLOSE: _close,
    Step.CLAIM: _simply(Do.CLAIM),
    Step.UNTAG: _untag,
}
