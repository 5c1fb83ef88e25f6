"""Telemetry as it is told: once per period, in the store's outbox, on the local socket."""

from __future__ import annotations

import io
import json
from typing import Any, List, Mapping

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from tests.support import building as b
from tests.support.controlled import fired
from vmagent.core import schemas
from vmagent.core.changes import Publish
from vmagent.core.samples import DiskCounters, HostSample, Reading, Sample
from vmagent.errors import Fault, FaultKind, Problem
from vmagent.local.tables import Screen
from vmagent.local.telemetrytables import telemetry as table
from vmagent.queries import Queries
from vmagent.telemetry import Telemetry
from vmagent.world import World

RUNS = b.record(journal=b.ran())


class Store:
    def __init__(self) -> None:
        self.committed: List[Any] = []
        self.full = False

    def commit(self, changes: Any) -> Deferred[None]:
        if self.full:
            return fail(Fault(FaultKind.FULL, "no space"))
        self.committed += changes
        return succeed(None)


class Rig:
    """One guest that uses half of a core, read every ten seconds."""

    def __init__(self) -> None:
        nobody: Any = None
        self.store, self.at = Store(), 1000.0
        store: Any = self.store
        self.world = World(store, self, self)
        self.world.records[RUNS.vm] = RUNS
        self.world.observed[RUNS.vm] = b.observed()
        self.telemetry = Telemetry(self.world, lambda: 4, self, 10.0, 60.0)
        self.queries = Queries(self.world, nobody, nobody, nobody, self, b.policy, dict, dict, nobody, nobody, nobody,
                               self.telemetry.view, nobody).table()

    def now(self) -> Any:
        return b.now(self.at)

    def wake(self) -> None: ...

    def publish(self, changes: Any) -> None: ...

    def turns(self, number: int) -> None:
        for _ in range(number):
            self.at += 10
            sample = Sample(RUNS.vm, self.at, "1", self.at / 2, memory_mib=40, disk=DiskCounters(), disk_at=self.at)
            fired(Deferred.fromCoroutine(self.telemetry.take(
                Reading(self.at, {RUNS.vm: sample}, None, HostSample(self.at, self.at, 0.0, 2000)))))

    def told(self) -> List[Mapping[str, Any]]:
        return [one.data for one in self.store.committed if isinstance(one, Publish)]

    def ask(self, **args: Any) -> Any:
        return fired(self.queries["telemetry"](args))


def test_each_period_is_told_once() -> None:
    rig = Rig()
    rig.turns(6)
    assert rig.told() == []
    rig.turns(1)
    (first,) = rig.told()
    assert (first["seconds"], first["lost"], first["parts"]) == (60.0, 0, 1)
    (vm,) = first["vms"]
    assert vm["vm"] == RUNS.vm and vm["phase"] == "running" and vm["cores"] == RUNS.spec.cores
    assert vm["cpu_percent"]["average"] == 50 / RUNS.spec.cores
    assert first["host"]["cpu_percent"]["average"] == 25.0
    rig.turns(6)
    second = rig.told()[1]
    assert (second["from"], second["vms"][0]["measured_s"]) == (first["to"], 60.0), "no second is lost between"
    for data in rig.told():
        schemas.check("event.host.telemetry", json.loads(json.dumps(data)))
    assert {(one.stream, one.type) for one in rig.store.committed} == {("telemetry", "org.vmagent.host.telemetry")}


def test_a_period_that_cannot_be_stored_is_counted_by_the_next() -> None:
    rig = Rig()
    rig.store.full = True
    for _ in range(2):
        rig.turns(6)
        with pytest.raises(Fault):
            rig.turns(1)
        rig.at -= 10  # the next turn is the first of its period
    rig.store.full = False
    rig.turns(14)
    assert [data["lost"] for data in rig.told()] == [2, 0]


def test_a_look_tells_the_last_whole_period_or_what_there_is() -> None:
    rig = Rig()
    assert (rig.ask()["whole"], rig.ask()["vms"]) == (False, [])
    rig.turns(3)
    assert (rig.ask()["whole"], rig.ask()["vms"][0]["samples"]) == (False, 3)
    rig.turns(6)
    assert (rig.ask()["whole"], rig.ask()["vms"][0]["samples"]) == (True, 7)


def test_one_vm_alone_and_under_other_names() -> None:
    rig = Rig()
    rig.turns(7)
    other = b.record(spec=b.spec(command="00000000-0000-4000-8000-000000000009"))
    rig.world.records[other.vm] = other
    assert [one["vm"] for one in rig.ask(vm=RUNS.vm)["vms"]] == [RUNS.vm]
    assert rig.ask(vm=other.vm)["vms"] == []
    names = {one["MetricName"] for one in rig.ask(**{"as": "cloudwatch"})["metrics"]}
    assert {"CPUUtilization", "DiskReadBytes"} <= names and "NetworkIn" not in names
    with pytest.raises(Problem):
        rig.ask(**{"as": "ganglia"})
    with pytest.raises(Problem):
        rig.ask(vm="nobody")


def test_the_table_for_people() -> None:
    rig = Rig()
    rig.turns(7)
    out = io.StringIO()
    table(Screen(out), rig.ask())
    table(Screen(out), rig.ask(**{"as": "cloudwatch"}))
    text = out.getvalue()
    assert RUNS.vm in text and f"{50 / RUNS.spec.cores:.1f}/{50 / RUNS.spec.cores:.1f}" in text
    assert "host of 4 cores: 25.0/25.0 % busy" in text and "CPUUtilization" in text
