"""Final replies, member by member (PROTOCOL 3, Reply; R4)."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Mapping, Optional, Tuple

import pytest

from tests.support import building as b
from vmagent.core import identity, progress, schemas
from vmagent.core.changes import CommandRow
from vmagent.core.commands import VERBS
from vmagent.core.ending import because, taken_back
from vmagent.core.model import Desired, Limits, Outcome, Phase, Reason, VmRecord
from vmagent.core.plan import rolled_back
from vmagent.errors import Problem

IDS = tuple(identity.vm_id(b.COMMAND, member) for member in range(3))
READY = b.ran(ready_at=1010.0)
Member = Tuple[VmRecord, Phase]


def row(verb: str = "vm.start", members: Tuple[str, ...] = IDS[:1], **kw: Any) -> CommandRow:
    fields: Dict[str, Any] = {
        "id": b.COMMAND, "digest": "00", "schema": f"{verb}/1", "signer": b.SIGNER, "route": "broker",
        "issued_wall": b.WALL, "valid_until_wall": b.WALL, "reply_to": "/queue/r", "members": members,
        "status": "accepted", "reply": {"command": b.COMMAND, "status": "accepted"}, "received_wall": b.WALL,
        "args": {},
    }  # fmt: skip
    fields.update(kw)
    return CommandRow(**fields)


def member(phase: Phase, index: int = 0, **kw: Any) -> Member:
    return b.record(spec={"member": index, "vm": IDS[index]}, **kw), phase


def over(index: int = 0, outcome: Outcome = Outcome.FAILED, **kw: Any) -> Member:
    kw.setdefault("reasons", (Reason("agent", "no image", b.WALL),))
    return member(Phase.STOPPED, index, outcome=outcome, desired=Desired.ABSENT, **kw)


def verdict(row: CommandRow, *members: Member, at: float = 1020.0) -> Optional[CommandRow]:
    return progress.verdict(row, {record.vm: (record, phase) for record, phase in members}, b.now(at))


def status(row: CommandRow, *members: Member, at: float = 1020.0) -> str:
    found = verdict(row, *members, at=at)
    if found is None:
        return "pending"
    schemas.check("reply", found.reply)
    assert found.reply["status"] == found.status
    return found.status


@pytest.mark.parametrize(
    ("verb", "one", "expected"),
    [
        ("vm.start", member(Phase.STARTING), "pending"),
        ("vm.start", member(Phase.RUNNING, journal=b.ran()), "pending"),
        ("vm.start", member(Phase.READY, journal=READY), "done"),
        ("vm.start", over(), "failed"),
        ("vm.start", over(outcome=Outcome.FINISHED, journal=READY), "done"),
        ("vm.start", member(Phase.PAUSED, journal=b.ran()), "pending"),
        ("vm.stop", member(Phase.STOPPING, desired=Desired.STOP), "pending"),
        ("vm.stop", member(Phase.UNKNOWN, desired=Desired.STOP, outcome=Outcome.KILLED), "pending"),
        ("vm.stop", member(Phase.STOPPING, desired=Desired.STOP, outcome=Outcome.KILLED), "pending"),
        ("vm.stop", over(outcome=Outcome.KILLED), "done"),
        ("vm.kill", over(outcome=Outcome.FINISHED), "done"),
        ("vm.kill", member(Phase.STUCK, desired=Desired.STOP), "pending"),
        ("vm.pause", member(Phase.READY, desired=Desired.PAUSED), "pending"),
        ("vm.pause", member(Phase.PAUSED, desired=Desired.PAUSED), "done"),
        ("vm.pause", member(Phase.READY), "failed"),
        ("vm.pause", over(), "failed"),
        ("vm.resume", member(Phase.PAUSED, journal=b.ran(paused_by="command")), "pending"),
        ("vm.resume", member(Phase.STARTING, journal=b.ran(paused_by="resume")), "pending"),
        ("vm.resume", member(Phase.RUNNING, journal=b.ran()), "done"),
        ("vm.resume", member(Phase.READY, journal=READY), "done"),
        ("vm.resume", member(Phase.PAUSED, journal=b.ran()), "failed"),
        ("vm.resume", member(Phase.PAUSED, desired=Desired.PAUSED), "failed"),
        ("vm.resume", over(), "failed"),
        ("vm.reboot", member(Phase.READY, journal=b.ran(reboot_wanted=4)), "pending"),
        ("vm.reboot", member(Phase.READY, journal=b.ran(reboot_wanted=4, reboot_done=4)), "done"),
        ("vm.reboot", over(journal=b.ran(reboot_wanted=4)), "failed"),
        ("vm.extend", member(Phase.READY), "done"),
        ("vm.limits", member(Phase.READY, journal=b.ran(limits_before=Limits(), limits_since=4)), "pending"),
        ("vm.limits", member(Phase.READY, journal=b.ran(limits_since=4)), "done"),
        ("vm.limits", member(Phase.FETCHING, journal={"limits_before": Limits(), "limits_since": 4}), "pending"),
        ("vm.limits", member(Phase.READY, journal=b.ran()), "failed"),
        ("vm.limits", over(journal=b.ran(limits_before=Limits(), limits_since=4)), "failed"),
    ],
)
def test_each_verb(verb: str, one: Member, expected: str) -> None:
    assert status(row(verb), one) == expected


def test_limits_that_were_taken_back_are_answered_with_what_the_kernel_said() -> None:
    record, phase = member(Phase.READY, journal=b.ran(limits_before=Limits(cpu_weight=7), limits_since=4))
    back = taken_back(because(record, "agent", "shape: tc says no such qdisc", b.now()))
    assert back.spec.limits == Limits(cpu_weight=7)
    found = verdict(row("vm.limits"), (back, phase))
    assert found is not None and found.status == "failed"
    assert found.reply["problem"]["type"] == "limits-not-applied"
    assert "tc says no such qdisc" in found.reply["problem"]["detail"]


def test_ready_by_counts_from_the_first_resume_and_kills_nothing() -> None:
    silent = member(Phase.RUNNING, journal=b.ran(1000.0))
    assert status(row(), silent, at=1599.0) == "pending"
    found = verdict(row(), silent, at=1600.0)
    assert found is not None
    assert found.reply["problem"]["type"] == "not-ready"
    assert progress.rollbacks(row(args={"atomic": True}), {IDS[0]: silent}) == ()


def test_waiting_for_a_start_is_not_late_by_ready_by() -> None:
    assert status(row(), member(Phase.FETCHING), at=1e6) == "pending"


def test_the_reply_names_every_member() -> None:
    found = verdict(row(members=IDS), member(Phase.READY, 0, journal=READY), over(1), over(2, journal=READY))
    assert found is not None
    assert found.status == "failed"
    entries = found.reply["result"]["members"]
    assert [(e["vm"], e["member"], e["status"]) for e in entries] == [
        (IDS[0], 0, "done"), (IDS[1], 1, "failed"), (IDS[2], 2, "done"),
    ]  # fmt: skip
    assert entries[1]["problem"]["detail"] == "it ended first (failed): no image"
    assert found.reply["problem"]["detail"] == "1 of 3 failed; the first: it ended first (failed): no image"


def test_nothing_is_final_while_one_is_pending() -> None:
    assert status(row(members=IDS[:2]), over(0), member(Phase.STARTING, 1)) == "pending"


def test_members_refused_at_once_are_told_again_and_count() -> None:
    refused = {"member": 1, "status": "refused", "problem": Problem("no-capacity", "no memory").as_json()}
    first = {"command": b.COMMAND, "status": "accepted", "result": {"members": [{"member": 0}, refused]}}
    found = verdict(row(reply=first), member(Phase.READY, journal=READY))
    assert found is not None
    assert found.status == "failed"
    assert found.reply["result"]["members"][1] == refused


def test_a_verdict_is_given_once() -> None:
    final = verdict(row(), over())
    assert final is not None
    assert progress.verdict(final, {IDS[0]: over()}, b.now()) is None


def test_a_member_that_is_forgotten() -> None:
    assert status(row("vm.stop")) == "done"
    assert status(row("vm.pause")) == "failed"


def test_a_command_without_members_is_done() -> None:
    assert status(row("vm.stop", members=())) == "done"


def test_every_verb_that_takes_time_is_judged() -> None:
    slow = {name for name, verb in VERBS.items() if name.startswith("vm.") and verb.changes}
    assert slow == set(progress.JUDGES) | set(progress.OF_SNAPSHOTS)


# -- all or nothing

ATOMIC = row(members=IDS, args={"atomic": True})


def named(*members: Member) -> Mapping[str, Member]:
    return {record.vm: (record, phase) for record, phase in members}


def test_one_that_failed_rolls_back_the_others_even_the_ready_ones() -> None:
    members = named(over(0), member(Phase.READY, 1, journal=READY), member(Phase.READY, 2, journal=READY))
    assert progress.rollbacks(ATOMIC, members) == IDS[1:]
    assert progress.verdict(ATOMIC, members, b.now()) is None


def test_no_roll_back_without_need() -> None:
    ready = [member(Phase.READY, index, journal=READY) for index in range(3)]
    assert progress.rollbacks(ATOMIC, named(*ready)) == ()
    assert progress.rollbacks(dataclasses.replace(ATOMIC, args={}), named(over(0), *ready[1:])) == ()
    assert progress.rollbacks(dataclasses.replace(ATOMIC, status="done"), named(over(0), *ready[1:])) == ()
    late = over(0, outcome=Outcome.FINISHED, journal=READY)
    assert progress.rollbacks(ATOMIC, named(late, *ready[1:])) == ()
    assert status(ATOMIC, late, *ready[1:]) == "done"


def test_the_reply_of_an_atomic_start_waits_for_the_roll_back() -> None:
    failed, ready = over(0), member(Phase.READY, 1, journal=READY)
    third = over(2)
    back = (rolled_back(ready[0], "atomic start: another failed", b.now()), Phase.READY)
    assert progress.rollbacks(ATOMIC, named(failed, back, third)) == ()
    assert status(ATOMIC, failed, back, third) == "pending"
    gone = (dataclasses.replace(back[0], outcome=Outcome.FAILED), Phase.STOPPED)
    found = verdict(ATOMIC, failed, gone, third)
    assert found is not None
    assert [entry["status"] for entry in found.reply["result"]["members"]] == ["failed"] * 3


def test_a_roll_back_goes_on_after_a_crash_in_its_middle() -> None:
    """The first was rolled back and committed; the others are found again from the wishes alone."""
    first = (rolled_back(member(Phase.READY, 0, journal=READY)[0], "x", b.now()), Phase.READY)
    rest = [member(Phase.READY, index, journal=READY) for index in (1, 2)]
    assert progress.rollbacks(ATOMIC, named(first, *rest)) == IDS[1:]
