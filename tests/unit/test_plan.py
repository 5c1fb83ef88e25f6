"""The planner, cell by cell: what is committed before what is done (DESIGN 6 and 1.2)."""

from __future__ import annotations

import dataclasses
from typing import Any, FrozenSet, Optional

import pytest

from tests.support import building as b
from vmagent.core.actions import Action, Do
from vmagent.core.ending import REASONS_KEPT
from vmagent.core.model import (
    CgroupSeen,
    CpuLimit,
    Desired,
    DiskIo,
    Drift,
    NetworkSeen,
    Now,
    Observed,
    Outcome,
    Seen,
    VmRecord,
)
from vmagent.core.plan import Plan, gave_up, plan, rolled_back
from vmagent.core.quota import cpu_limit

READY_TO_START: FrozenSet[str] = frozenset({"overlay", "seed", "firewall"})
LOOSE = CpuLimit(100_000, -1)


def planned(record: VmRecord, observed: Observed, now: Optional[Now] = None) -> Plan:
    return plan(record, observed, now or b.now(), b.policy())


def did(outcome: Plan) -> Optional[Do]:
    return outcome.action.do if outcome.action else None


def ran(**kw: Any) -> VmRecord:
    """A record whose guest runs since 1000 with a long lease."""
    kw.setdefault("journal", b.ran())
    return b.record(**kw)


# -- the way to the first instruction


@pytest.mark.parametrize(
    ("seen", "left", "expected"),
    [
        (Seen.MISSING, frozenset(), Do.MAKE_OVERLAY),
        (Seen.MISSING, frozenset({"overlay"}), Do.MAKE_SEED),
        (Seen.MISSING, frozenset({"overlay", "seed"}), Do.APPLY_FIREWALL),
        (Seen.MISSING, READY_TO_START, Do.DEFINE),
        (Seen.OFF, frozenset({"seed", "firewall"}), Do.MAKE_OVERLAY),
        (Seen.OFF, READY_TO_START, Do.START_PAUSED),
    ],
)
@pytest.mark.parametrize("desired", [Desired.RUN, Desired.PAUSED])
def test_define_expands(desired: Desired, seen: Seen, left: FrozenSet[str], expected: Do) -> None:
    assert did(planned(b.record(desired=desired), b.observed(seen, leftovers=left))) is expected


def of_image(left: FrozenSet[str], fetched: bool, **kw: Any) -> Plan:
    """The plan of one whose image is, or is not, on this disk."""
    seen = dataclasses.replace(b.observed(Seen.MISSING, leftovers=left), fetched=fetched)
    return planned(b.record(**kw), seen)


def test_an_image_that_is_not_here_is_fetched_before_its_overlay_and_nobody_waits_in_a_step() -> None:
    assert did(of_image(frozenset(), fetched=False)) is Do.FETCH_IMAGE
    waiting = of_image(frozenset({"download"}), fetched=False)
    assert did(waiting) is None
    assert waiting.wake_at is not None  # start_by goes on counting
    assert did(of_image(frozenset(), fetched=True)) is Do.MAKE_OVERLAY


def test_a_start_that_is_given_up_lets_go_of_its_download() -> None:
    kept = {"outcome": Outcome.KILLED, "journal": b.journal(ended_at=1000.0, ended_boot=b.BOOT), "spec": {"keep_s": 60}}
    seen = dataclasses.replace(
        b.observed(Seen.MISSING, leftovers=frozenset({"download"})), fetched=False, missing_twice=True
    )
    for desired in (Desired.ABSENT, Desired.STOP):
        record = b.record(desired=desired, **kept)
        assert did(planned(record, seen, now=b.now(1001.0))) is Do.CLEAN_UP


def test_no_counters_without_interfaces() -> None:
    record = b.record(spec={"interfaces": ()})
    observed = b.observed(Seen.MISSING, record.spec, leftovers=frozenset({"overlay", "seed"}))
    assert did(planned(record, observed)) is Do.DEFINE


def test_define_carries_tag_and_limit() -> None:
    action = planned(b.record(), b.observed(Seen.MISSING, leftovers=READY_TO_START)).action
    assert action is not None
    assert action.cpu == cpu_limit(b.spec())
    assert action.tag is not None
    assert action.tag.boot_id == ""


def test_the_attempt_is_journaled_before_the_start() -> None:
    outcome = planned(b.record(), b.observed(Seen.OFF, leftovers=READY_TO_START))
    assert outcome.record.journal.attempt_boot == b.BOOT
    assert outcome.record.journal.paused_by == "start"
    assert not outcome.record.journal.may_have_run


def test_a_start_that_never_ran_is_tried_again_in_another_boot() -> None:
    record = b.record(journal={"attempt_boot": b.OTHER_BOOT, "paused_by": "start"})
    outcome = planned(record, b.observed(Seen.OFF, leftovers=READY_TO_START))
    assert did(outcome) is Do.START_PAUSED
    assert outcome.record.journal.attempt_boot == b.BOOT


STARTED = b.record(journal={"attempt_boot": b.BOOT, "paused_by": "start"})


def test_no_resume_before_the_limit_is_read_back() -> None:
    for cpu in (None, LOOSE, CpuLimit(100_000, 45_000)):
        outcome = planned(STARTED, b.observed(Seen.PAUSED, reason="user", cpu=cpu))
        assert did(outcome) is Do.APPLY_CPU
        assert outcome.action is not None
        assert outcome.action.cpu == cpu_limit(STARTED.spec)
        assert not outcome.record.journal.may_have_run


def test_resume_is_journaled_first_and_tagged_once_it_runs() -> None:
    outcome = planned(STARTED, b.observed(Seen.PAUSED, reason="user"), b.now(1007.0))
    journal = outcome.record.journal
    assert did(outcome) is Do.RESUME
    assert (journal.may_have_run, journal.started_at, journal.started_boot) == (True, 1007.0, b.BOOT)
    assert (journal.started_wall, journal.paused_by) == (b.WALL, "resume")
    runs = planned(outcome.record, b.observed(tag=b.tag(STARTED), leftovers=READY_TO_START), b.now(1007.1))
    assert did(runs) is Do.WRITE_TAG
    assert runs.action is not None
    assert runs.action.tag == b.tag(outcome.record)


def test_a_new_interface_is_shaped_without_a_look() -> None:
    starts = planned(b.record(), b.observed(Seen.OFF, leftovers=READY_TO_START))
    assert did(starts) is Do.START_PAUSED
    assert starts.action is not None
    assert starts.action.then is not None
    assert starts.action.then.do is Do.SHAPE


def test_a_resume_that_did_not_come_about_is_made_again_and_the_lease_goes_on() -> None:
    first = planned(STARTED, b.observed(Seen.PAUSED, reason="user"), b.now(1007.0))
    again = planned(first.record, b.observed(Seen.PAUSED, reason="user"), b.now(1100.0))
    assert did(again) is Do.RESUME
    assert again.record.journal.started_at == 1007.0


def test_running_after_our_resume_settles_the_journal() -> None:
    outcome = planned(ran(journal=b.ran(paused_by="resume")), b.observed(leftovers=READY_TO_START))
    assert outcome.action is None
    assert outcome.record.journal.paused_by == ""


def test_a_guest_found_running_unproven_is_suspended_then_proven() -> None:
    for journal in ({}, {"attempt_boot": b.BOOT, "paused_by": "start"}):
        outcome = planned(b.record(journal=journal), b.observed(cpu=LOOSE))
        assert did(outcome) is Do.PAUSE
        assert outcome.record.journal.may_have_run  # it executes: never again from the start
        assert outcome.record.journal.started_at == 1000.0
        assert [note.kind for note in outcome.notes] == ["ran-unproven"]
        paused = planned(outcome.record, b.observed(Seen.PAUSED, reason="user", cpu=LOOSE))
        assert did(paused) is Do.APPLY_CPU
        proven = planned(paused.record, b.observed(Seen.PAUSED, reason="user"))
        assert did(proven) is Do.RESUME
        assert proven.record.journal.started_at == 1000.0


def test_desired_paused_comes_to_rest_paused_and_never_ran() -> None:
    record = dataclasses.replace(STARTED, desired=Desired.PAUSED)
    outcome = planned(record, b.observed(Seen.PAUSED, reason="user"))
    assert outcome.action is None
    assert outcome.record == record


# -- pauses


def test_a_commanded_pause_is_journaled_and_its_resume_watches_anew() -> None:
    paused = planned(ran(desired=Desired.PAUSED, journal=b.ran(ready_at=1001.0)), b.observed())
    assert did(paused) is Do.PAUSE
    assert paused.record.journal.paused_by == "command"
    wanted = dataclasses.replace(paused.record, desired=Desired.RUN)
    watched = planned(wanted, b.observed(Seen.PAUSED, reason="user"))
    assert did(watched) is Do.WATCH_NETWORK
    resumed = planned(watched.record, b.observed(Seen.PAUSED, reason="user"))
    assert did(resumed) is Do.RESUME
    assert resumed.record.journal.ready_at is None


@pytest.mark.parametrize("reason", ["ioerror", "snapshot", "from-snapshot", "save", "dump", "watchdog", "crashed"])
def test_paused_for_a_reason_of_libvirts_is_reported_not_resumed(reason: str) -> None:
    for paused_by in ("", "command", "resume"):
        outcome = planned(ran(journal=b.ran(paused_by=paused_by)), b.observed(Seen.PAUSED, reason=reason))
        assert outcome.action is None
        assert [note.kind for note in outcome.notes] == ["paused-by-others"]


def test_paused_by_an_administrator_is_reported_once() -> None:
    outcome = planned(ran(), b.observed(Seen.PAUSED, reason="user"))
    assert outcome.action is None
    assert [note.kind for note in outcome.notes] == ["paused-by-others"]
    assert planned(outcome.record, b.observed(Seen.PAUSED, reason="user")).notes == ()
    over = planned(outcome.record, b.observed(leftovers=READY_TO_START))
    assert over.record.journal.alarms == ()
    assert [n.kind for n in planned(over.record, b.observed(Seen.PAUSED, reason="user")).notes] == ["paused-by-others"]


# -- holding


def test_a_drifted_limit_is_set_again_and_told_once() -> None:
    outcome = planned(ran(), b.observed(cpu=LOOSE))
    assert did(outcome) is Do.APPLY_CPU
    assert [note.kind for note in outcome.notes] == ["cpu-drift"]
    again = planned(outcome.record, b.observed(cpu=LOOSE))
    assert did(again) is Do.APPLY_CPU
    assert again.notes == ()


def test_a_limit_that_cannot_be_read_is_told_as_such_and_set_again() -> None:
    outcome = planned(ran(), b.observed(cpu=None, leftovers=READY_TO_START))
    assert did(outcome) is Do.APPLY_CPU
    assert [note.kind for note in outcome.notes] == ["cpu-unseen"]


def test_limits_are_held_on_the_way_down_too() -> None:
    record = ran(desired=Desired.STOP, journal=b.ran(stop_at=1000.0, stop_boot=b.BOOT, shutdowns=1))
    assert did(planned(record, b.observed(cpu=LOOSE), b.now(1001.0))) is Do.APPLY_CPU


def test_reboot_at_most_once() -> None:
    outcome = planned(ran(journal=b.ran(reboot_wanted=3)), b.observed(leftovers=READY_TO_START))
    assert did(outcome) is Do.REBOOT
    assert outcome.record.journal.reboot_done == 3
    assert planned(outcome.record, b.observed(leftovers=READY_TO_START)).action is None


def test_the_tag_follows_the_wish() -> None:
    record = ran(generation=2, lifetime_s=7200)
    old = b.tag(ran())
    assert did(planned(record, b.observed(tag=old, leftovers=READY_TO_START))) is Do.WRITE_TAG
    assert planned(record, b.observed(tag=b.tag(record), leftovers=READY_TO_START)).action is None


def test_ready_is_written_down_once() -> None:
    seen = b.observed(leftovers=READY_TO_START, network_seen=(b.spec().interfaces[0].device,))
    outcome = planned(ran(), seen, b.now(1004.0))
    assert outcome.record.journal.ready_at == 1004.0
    assert planned(outcome.record, seen, b.now(1009.0)).record.journal.ready_at == 1004.0


# -- ends


@pytest.mark.parametrize(
    ("reason", "cause", "outcome"),
    [
        ("shutdown", "", Outcome.FINISHED),
        ("crashed", "", Outcome.CRASHED),
        ("failed", "", Outcome.CRASHED),
        ("destroyed", "", Outcome.KILLED),
        ("saved", "", Outcome.KILLED),
        ("", "", Outcome.LOST),
        ("destroyed", "lease", Outcome.EXPIRED),
        ("shutdown", "lease", Outcome.EXPIRED),
        ("destroyed", "command", Outcome.KILLED),
        ("shutdown", "rollback", Outcome.FAILED),
        ("destroyed", "crash", Outcome.CRASHED),
        ("destroyed", "reboot", Outcome.LOST),
    ],
)
def test_outcomes(reason: str, cause: str, outcome: Outcome) -> None:
    record = ran(journal=b.ran(end_cause=cause), spec={"keep_s": 100})
    ended = planned(record, b.observed(Seen.OFF, reason=reason), b.now(1050.0))
    assert ended.action is None
    assert (ended.record.outcome, ended.record.desired) == (outcome, Desired.STOP)
    assert (ended.record.journal.ended_at, ended.record.journal.ended_boot) == (1050.0, b.BOOT)
    assert ended.record.reasons[-1].why


def test_off_after_a_host_reboot_is_lost() -> None:
    ended = planned(ran(), b.observed(Seen.OFF, reason="shutdown"), b.now(20.0, boot_id=b.OTHER_BOOT))
    assert ended.record.outcome is Outcome.LOST
    assert ended.record.reasons[-1].why == "host reboot"


def test_a_guest_restored_into_another_boot_is_destroyed() -> None:
    for seen in (Seen.RUNNING, Seen.PAUSED, Seen.STUCK):
        outcome = planned(ran(), b.observed(seen), b.now(20.0, boot_id=b.OTHER_BOOT))
        assert did(outcome) is Do.DESTROY
        off = planned(outcome.record, b.observed(Seen.OFF, reason="destroyed"), b.now(21.0, boot_id=b.OTHER_BOOT))
        assert off.record.outcome is Outcome.LOST


def test_missing_counts_only_twice() -> None:
    once = planned(ran(), b.observed(Seen.MISSING, missing_twice=False))
    assert (once.action, once.record.outcome, once.wake_at) == (None, None, 1001.0)
    assert planned(ran(), b.observed(Seen.MISSING)).record.outcome is Outcome.LOST


def test_nothing_is_concluded_while_its_process_lives() -> None:
    left = READY_TO_START | {"process"}
    outcome = planned(ran(), b.observed(Seen.OFF, reason="shutdown", leftovers=left))
    assert (outcome.action, outcome.record.outcome) == (None, None)
    assert [note.kind for note in outcome.notes] == ["process-left"]


def test_a_crash_is_remembered_past_the_destroy() -> None:
    outcome = planned(ran(), b.observed(Seen.CRASHED))
    assert did(outcome) is Do.DESTROY
    assert planned(outcome.record, b.observed(Seen.OFF, reason="destroyed")).record.outcome is Outcome.CRASHED


def test_the_first_cause_stays() -> None:
    crashed = planned(ran(), b.observed(Seen.CRASHED)).record
    late = planned(crashed, b.observed(Seen.CRASHED), b.now(1e6)).record
    assert late.desired is Desired.STOP
    assert planned(late, b.observed(Seen.OFF, reason="destroyed")).record.outcome is Outcome.CRASHED


def test_a_record_of_a_restored_store_is_never_started_and_not_called_a_reboot() -> None:
    record = b.record(journal={"may_have_run": True})
    assert planned(record, b.observed()).record.desired is Desired.RUN
    off = planned(record, b.observed(Seen.OFF, leftovers=READY_TO_START)).record
    assert (off.outcome, off.reasons[-1].why) == (Outcome.LOST, "it ran and is gone; nobody saw how")


def ended(**kw: Any) -> VmRecord:
    kw.setdefault("desired", Desired.STOP)
    return ran(outcome=Outcome.FINISHED, journal=b.ran(ended_at=1050.0, ended_boot=b.BOOT), **kw)


def test_the_disk_is_kept_then_everything_goes() -> None:
    record = ended(spec={"keep_s": 100})
    kept = planned(record, b.observed(Seen.OFF), b.now(1149.0))
    assert (kept.action, kept.wake_at) == (None, 1150.0)
    over = planned(record, b.observed(Seen.OFF), b.now(1150.0))
    assert (did(over), over.record.desired) == (Do.UNDEFINE, Desired.ABSENT)


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ({"overlay", "seed", "firewall", "interface"}, Do.CLEAN_UP),
        ({"seed"}, Do.CLEAN_UP),
        ({"firewall", "interface"}, None),
        ({"firewall"}, Do.REMOVE_FIREWALL),
        ({"interface"}, None),
        ({"overlay", "process"}, None),
    ],
)
def test_cleaning_up_in_order(left: FrozenSet[str], expected: Optional[Do]) -> None:
    outcome = planned(ended(desired=Desired.ABSENT), b.observed(Seen.MISSING, leftovers=frozenset(left)))
    assert did(outcome) is expected
    assert not outcome.record.closed


def test_closed_when_nothing_is_left() -> None:
    outcome = planned(ended(desired=Desired.ABSENT), b.observed(Seen.MISSING))
    assert outcome.record.closed
    assert planned(outcome.record, b.observed()).action is None


def test_somebodys_start_of_an_ended_vm_is_destroyed() -> None:
    for desired in (Desired.STOP, Desired.ABSENT):
        outcome = planned(ended(desired=desired, spec={"keep_s": 10_000}), b.observed())
        assert did(outcome) is Do.DESTROY
        assert [note.kind for note in outcome.notes] == ["started-by-others"]
        assert outcome.record.outcome is Outcome.FINISHED


# -- stop


def stopping(**kw: Any) -> VmRecord:
    journal = {"stop_at": 1000.0, "stop_boot": b.BOOT, "grace_s": 25, "end_cause": "command", **kw}
    return ran(desired=Desired.STOP, journal=b.ran(900.0, **journal))


def test_the_ladder_shuts_down_every_ten_seconds_then_destroys() -> None:
    record = stopping()
    story = []
    for at in range(1000, 1030):
        outcome = planned(record, b.observed(), b.now(float(at)))
        record = outcome.record
        if outcome.action:
            story.append((at, outcome.action.do))
    assert story[:4] == [(1000, Do.SHUTDOWN), (1010, Do.SHUTDOWN), (1020, Do.SHUTDOWN), (1025, Do.DESTROY)]


def test_missed_requests_are_not_made_up_for() -> None:
    outcome = planned(stopping(grace_s=600), b.observed(), b.now(1055.0))
    assert (did(outcome), outcome.record.journal.shutdowns, outcome.wake_at) == (Do.SHUTDOWN, 6, 1060.0)
    assert planned(outcome.record, b.observed(), b.now(1055.5)).action is None


def test_a_stop_without_a_ladder_begins_one() -> None:
    outcome = planned(ran(desired=Desired.STOP), b.observed(), b.now(1200.0))
    assert did(outcome) is Do.SHUTDOWN
    assert (outcome.record.journal.stop_at, outcome.record.journal.stop_boot) == (1200.0, b.BOOT)
    assert outcome.wake_at == 1210.0


def test_a_ladder_of_another_boot_is_over() -> None:
    assert did(planned(stopping(), b.observed(), b.now(5.0, boot_id=b.OTHER_BOOT))) is Do.DESTROY


def test_no_grace_is_a_kill() -> None:
    record = ran(desired=Desired.STOP, journal=b.ran(grace_s=0, end_cause="command"))
    assert did(planned(record, b.observed())) is Do.DESTROY


def test_a_paused_guest_is_resumed_to_shut_down_only_when_sound() -> None:
    assert did(planned(stopping(), b.observed(Seen.PAUSED, reason="user"))) is Do.RESUME
    assert did(planned(stopping(), b.observed(Seen.PAUSED, reason="ioerror"))) is Do.DESTROY
    assert did(planned(stopping(), b.observed(Seen.PAUSED, reason="user", cpu=LOOSE))) is Do.DESTROY
    assert did(planned(dataclasses.replace(STARTED, desired=Desired.STOP), b.observed(Seen.PAUSED))) is Do.DESTROY


def test_stopping_waits_and_then_destroys() -> None:
    waits = planned(stopping(shutdowns=1), b.observed(Seen.STOPPING), b.now(1001.0))
    assert (waits.action, waits.wake_at) == (None, 1010.0)
    assert did(planned(stopping(), b.observed(Seen.STOPPING), b.now(1025.0))) is Do.DESTROY


def test_stuck_is_told_once_and_killed_only_when_unwanted() -> None:
    outcome = planned(ran(), b.observed(Seen.STUCK))
    assert (outcome.action, [note.kind for note in outcome.notes]) == (None, ["stuck"])
    assert planned(outcome.record, b.observed(Seen.STUCK)).notes == ()
    assert did(planned(stopping(), b.observed(Seen.STUCK))) is Do.DESTROY


# -- not ours, not seen


def test_unknown_waits_whatever_is_desired() -> None:
    for desired in Desired:
        record = ran(desired=desired, journal=b.ran(alarms=("stuck",)))
        outcome = planned(record, b.observed(Seen.UNKNOWN))
        assert outcome.action is None
        assert outcome.record.outcome is None
        assert outcome.record.journal.alarms == ("stuck",)


def test_foreign_is_refused() -> None:
    outcome = planned(ran(), b.observed(Seen.FOREIGN))
    assert (outcome.action, outcome.record.outcome) == (None, None)
    assert [note.kind for note in outcome.notes] == ["foreign"]
    fresh = planned(b.record(), b.observed(Seen.FOREIGN))
    assert (fresh.action, fresh.record.outcome) == (None, Outcome.FAILED)
    assert fresh.record.reasons[-1].why == "foreign domain has this uuid"
    assert fresh.record.closed


def test_a_foreign_domain_is_never_acted_on() -> None:
    for desired in Desired:
        for record in (b.record(desired=desired), ran(desired=desired), ended(desired=Desired.ABSENT)):
            assert planned(record, b.observed(Seen.FOREIGN, leftovers=READY_TO_START), b.now(9e6)).action is None


# -- giving up


@pytest.mark.parametrize("do", [Do.MAKE_OVERLAY, Do.DEFINE, Do.START_PAUSED, Do.APPLY_CPU])
def test_a_refused_start_step_fails_the_vm_and_cleans_up(do: Do) -> None:
    record = gave_up(b.record(), Action(do, b.spec()), "the image is not what it was", b.now(1003.0))
    assert (record.outcome, record.desired) == (Outcome.FAILED, Desired.ABSENT)
    assert record.reasons[-1].why == f"{do.value}: the image is not what it was"
    assert did(planned(record, b.observed(Seen.PAUSED))) is Do.DESTROY
    assert did(planned(record, b.observed(Seen.OFF))) is Do.UNDEFINE


def test_what_may_run_is_not_ended_by_a_refusal() -> None:
    action = Action(Do.APPLY_CPU, b.spec())
    record = gave_up(ran(), action, "no", b.now())
    assert (record.outcome, record.desired) == (None, Desired.RUN)
    again = gave_up(record, action, "no", b.now())
    assert again == record  # told once, not at every retry


def test_a_roll_back_goes_at_once() -> None:
    record = rolled_back(ran(spec={"keep_s": 900}), "member 3 failed", b.now())
    outcome = planned(record, b.observed())
    assert did(outcome) is Do.DESTROY
    off = planned(outcome.record, b.observed(Seen.OFF, reason="destroyed"))
    assert (off.record.outcome, did(off)) == (Outcome.FAILED, Do.UNDEFINE)
    assert rolled_back(ended(), "late", b.now()) == ended()


def test_the_reason_trail_is_bounded() -> None:
    record = b.record()
    action = Action(Do.DEFINE, b.spec())
    for number in range(50):
        record = gave_up(dataclasses.replace(record, outcome=None), action, str(number), b.now())
    assert len(record.reasons) == REASONS_KEPT
    assert record.reasons[-1].why.endswith("49")


# -- limits


# -- the proof

NIC = b.spec().interfaces[0].device
UNPROVEN = {
    "cpu": ({"cpu": LOOSE}, Do.APPLY_CPU),
    "cgroup": ({"cgroup": CgroupSeen(2, LOOSE)}, Do.APPLY_CPU),
    "no cgroup": ({"cgroup": None}, Do.APPLY_CPU),
    "weight": ({"weight": 1}, Do.APPLY_CPU),
    "disk-io": ({"disk_io": DiskIo(read_ops_per_s=5)}, Do.APPLY_DISK_IO),
    "firewall": ({"network": (Drift("firewall", NIC, "no chain"),)}, Do.APPLY_FIREWALL),
    "bandwidth": ({"network": (Drift("bandwidth", NIC, "no qdisc"),)}, Do.SHAPE),
    "port": ({"network": (Drift("port", NIC, "no guard"),)}, Do.SHAPE),
    "isolated": ({"network": (Drift("isolated", NIC, "down"),)}, Do.REJOIN),
}


def differing(seen: Seen, **kw: Any) -> Observed:
    if "network" in kw:
        kw["network"] = dataclasses.replace(b.proven_network(b.spec()), drift=kw["network"])
    return b.observed(seen, reason="user", **kw)


@pytest.mark.parametrize("name", UNPROVEN)
def test_nothing_is_resumed_while_one_limit_reads_otherwise(name: str) -> None:
    members, repair = UNPROVEN[name]
    outcome = planned(STARTED, differing(Seen.PAUSED, **members))
    assert did(outcome) is repair
    assert not outcome.record.journal.may_have_run


@pytest.mark.parametrize("name", UNPROVEN)
def test_a_running_guest_is_mended_and_not_paused_for_it(name: str) -> None:
    members, repair = UNPROVEN[name]
    assert did(planned(ran(), differing(Seen.RUNNING, **members))) is repair


def test_a_network_that_was_not_read_back_for_this_very_wish_proves_nothing() -> None:
    for network in (None, NetworkSeen("another wish", 1000.0)):
        outcome = planned(STARTED, b.observed(Seen.PAUSED, reason="user", network=network))
        assert outcome.action is None
        assert outcome.wake_at == 1001.0


@pytest.mark.parametrize("seen", [{"memory_mib": 256}, {"memory_max_mib": 1024}, {"memory_mib": None}])
def test_memory_that_differs_is_not_started_and_the_reason_says_so(seen: Any) -> None:
    outcome = planned(STARTED, b.observed(Seen.PAUSED, reason="user", **seen))
    assert outcome.record.desired is Desired.STOP
    assert "memory cannot be proven" in outcome.record.reasons[-1].why


def test_memory_that_differs_on_a_running_guest_is_told() -> None:
    outcome = planned(ran(), b.observed(memory_max_mib=1024))
    assert outcome.action is None
    assert [note.kind for note in outcome.notes] == ["memory-drift"]
    assert "1024" in outcome.notes[0].detail


def test_systemd_is_told_the_cap_of_a_running_guest_whose_scope_does_not_know_it() -> None:
    cgroup = CgroupSeen(2, cpu_limit(b.spec()), "machine-qemu.scope", LOOSE)
    outcome = planned(ran(), b.observed(cgroup=cgroup))
    assert did(outcome) is Do.TELL_SYSTEMD
    assert outcome.notes == ()
    assert planned(ran(), b.observed(cgroup=dataclasses.replace(cgroup, scope_cpu=cpu_limit(b.spec())))).action is None


# -- vm.limits


def limited(**journal: Any) -> VmRecord:
    return ran(spec={"cpu_cap_core_percent": 80}, journal=b.ran(limits_before=b.spec().limits, **journal))


def test_new_limits_are_put_in_force_untold_and_settled_once_proven() -> None:
    record = limited()
    outcome = planned(record, b.observed(cpu=cpu_limit(b.spec())))
    assert did(outcome) is Do.APPLY_CPU
    assert outcome.notes == ()
    assert outcome.record.journal.limits_before is not None
    proven = planned(record, b.observed(of=record.spec))
    assert proven.record.journal.limits_before is None
    paused = limited(paused_by="command")
    paused = dataclasses.replace(paused, desired=Desired.PAUSED)
    assert did(planned(paused, b.observed(Seen.PAUSED, reason="user", cpu=LOOSE))) is Do.APPLY_CPU


def test_limits_that_are_refused_are_taken_back_as_a_whole() -> None:
    record = limited(limits_since=1)
    after = gave_up(record, Action(Do.SHAPE, record.spec), "tc says no", b.now())
    assert after.spec.limits == b.spec().limits
    assert (after.journal.limits_before, after.journal.limits_since) == (None, 0)
    assert after.generation == record.generation + 1
    assert after.reasons[-1].why == "shape: tc says no"
    assert after.outcome is None
