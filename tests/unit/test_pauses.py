"""A guest that QEMU paused because its disk cannot be written: reported, and one `vm.resume` is one leave to go on."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

import pytest

from tests.support import building as b
from vmagent.core import verbs
from vmagent.core.actions import Do
from vmagent.core.model import CpuLimit, Desired, Seen, VmRecord
from vmagent.core.plan import Plan, plan

BROKEN = b.observed(Seen.PAUSED, reason="ioerror")
BY_HAND = b.observed(Seen.PAUSED, reason="user")


def planned(record: VmRecord, observed: Any) -> Plan:
    return plan(record, observed, b.now(), b.policy())


def did(outcome: Plan) -> Optional[Do]:
    return outcome.action.do if outcome.action else None


def asked(record: Optional[VmRecord] = None) -> VmRecord:
    """`vm.resume` was applied to it."""
    return verbs._resume(None, record or b.record(journal=b.ran()), b.policy(), b.now())  # type: ignore[arg-type]


def test_without_a_command_it_is_told_once_and_nothing_is_done() -> None:
    first = planned(b.record(journal=b.ran()), BROKEN)
    assert first.action is None
    assert [(note.kind, "ioerror" in note.detail) for note in first.notes] == [("paused-by-others", True)]
    assert planned(first.record, BROKEN).notes == ()


def test_a_command_lets_it_go_on_once() -> None:
    resumed = planned(asked(), BROKEN)
    assert did(resumed) is Do.RESUME
    again = planned(resumed.record, BROKEN)  # its disk failed it once more, or we died before the resume
    assert again.action is None
    assert did(planned(asked(again.record), BROKEN)) is Do.RESUME


def test_not_before_its_limits_are_as_wanted() -> None:
    domain = dataclasses.replace(BROKEN.domain, cpu=CpuLimit(100_000, -1))
    assert did(planned(asked(), dataclasses.replace(BROKEN, domain=domain))) is Do.APPLY_CPU


@pytest.mark.parametrize("between", [BY_HAND, b.observed(Seen.RUNNING)])
def test_the_leave_is_void_when_there_was_no_error_to_go_on_from(between: Any) -> None:
    looked = planned(asked(), between)
    assert did(looked) is None
    assert planned(looked.record, BROKEN).action is None


def test_what_somebody_paused_is_not_resumed_by_it() -> None:
    for reason in ("user", "snapshot", "save", "dump", "watchdog", "crashed"):
        assert planned(asked(), b.observed(Seen.PAUSED, reason=reason)).action is None


def test_a_pause_wanted_meanwhile_goes_before_it() -> None:
    assert planned(dataclasses.replace(asked(), desired=Desired.PAUSED), BROKEN).action is None
