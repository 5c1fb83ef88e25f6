"""What is left and how many fit: the same numbers by which admission decides."""

from __future__ import annotations

import dataclasses
import random
from typing import Any, Dict, List

import pytest

from tests.support import building as b
from tests.unit.test_admission import POLICY, ROOM, admitted, start
from vmagent.core import room
from vmagent.core.asked import asked
from vmagent.core.model import Outcome, VmRecord
from vmagent.errors import Problems


def what(**args: Any) -> Any:
    return asked({"lifetime_s": 60, **args}, POLICY)


def test_possible_is_exactly_what_admission_takes_one_after_another() -> None:
    chance = random.Random(9)
    for _ in range(400):
        facts: Dict[str, Any] = {
            "descriptors_free": chance.choice([None, 0, 1000, 10**6]), "tasks_free": chance.choice([None, 30, 500]),
            "ports_free": chance.choice([{}, {b.BRIDGE: chance.randrange(6)}]),
            "memory_overhead_mib": chance.choice([0, 100]),
        }  # fmt: skip
        size = {"cores": chance.choice([1, 1, 2, 3, 9]), "memory_mib": chance.choice([64, 512, 3000]),
                "disk_gib": chance.randrange(1, 40), "networks": [{"type": "public"}] * chance.randrange(3)}
        records: List[VmRecord] = [
            b.record(spec={"member": 900 + n, "cores": 1, "memory_mib": chance.choice([64, 900]), "interfaces": ()},
                     journal=b.ran() if chance.random() < 0.5 else b.journal())
            for n in range(chance.randrange(3))
        ]
        free = room.left(POLICY, records, dataclasses.replace(ROOM, **facts))
        fits = room.possible(what(**size), free, POLICY)
        try:
            got = len(admitted(start(count=50, **size), tuple(records), **facts).specs)
        except Problems:
            got = 0
        assert got == min(fits, 50), (facts, size)


def test_one_more_than_possible_lacks_something_and_all_that_fit_lack_nothing() -> None:
    size, free = what(flavour="free"), room.left(POLICY, (), ROOM)
    fits = room.possible(size, free, POLICY)
    assert fits == 4
    assert room.lacking(size, fits, free, POLICY) == []
    assert [p.fields["resource"] for p in room.lacking(size, 1, free.minus(size, POLICY, fits), POLICY)] == ["cores"]


@pytest.mark.parametrize(
    ("facts", "resource"),
    [({"descriptors_free": 127}, "descriptors"), ({"tasks_free": 24}, "tasks"),
     ({"ports_free": {b.BRIDGE: 0}}, "ports")],
)
def test_what_the_kernel_runs_out_of_refuses_a_start_with_its_name(facts: Dict[str, Any], resource: str) -> None:
    with pytest.raises(Problems) as caught:
        admitted(start(networks=[{"type": "public"}]), **facts)
    (problem,) = caught.value.problems
    assert (problem.type, problem.fields["resource"]) == ("no-capacity", resource)
    assert "path" not in problem.fields


def test_what_the_kernel_does_not_tell_limits_nothing() -> None:
    admitted(start(count=3, networks=[{"type": "public"}], atomic=True), ports_free={"another": 0})


def test_what_is_accepted_and_has_not_run_is_counted_by_us_what_runs_by_the_kernel() -> None:
    facts = dataclasses.replace(ROOM, descriptors_free=1000, tasks_free=100, ports_free={b.BRIDGE: 10})
    coming, runs = b.record(), b.record(journal=b.ran())
    free = room.left(POLICY, (coming,), facts)
    assert (free.descriptors, free.tasks, free.ports) == (1000 - room.DESCRIPTORS, 100 - room.TASKS - 1, {b.BRIDGE: 9})
    free = room.left(POLICY, (runs, b.record(outcome=Outcome.FAILED)), facts)
    assert (free.descriptors, free.tasks, free.ports) == (1000, 100, {b.BRIDGE: 10})


def test_what_disks_have_written_counts_once_and_never_more_than_was_promised() -> None:
    one, kept = b.record(), b.record(spec={"member": 1}, outcome=Outcome.KILLED)
    gone = b.record(spec={"member": 2}, closed=True)
    used = {one.vm: 3 << 29, kept.vm: 99 << 30, gone.vm: 50 << 30, "nobody": 50 << 30}
    assert room.written_gib((one, kept, gone), used) == 3, "one and a half, and the two that were promised"
    assert room.written_gib((one,), {}) == 0
