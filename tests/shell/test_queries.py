"""The query `limits`: the newest proof joined with the live counters, and what hides nothing of the rest."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, Callable, Dict, Mapping

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from tests.support import building as b
from tests.support.controlled import fired
from tests.support.fake_images import FakeImages
from vmagent.core.model import Drift, HypervisorInfo, ImageRef, NicCounters
from vmagent.core.samples import HostSample, Reading, Sample
from vmagent.errors import Fault, FaultKind, Problem
from vmagent.queries import Queries
from vmagent.world import World

RUNS = b.record(journal=b.ran())
DEVICE = RUNS.spec.interfaces[0].device
Counters = Callable[[], "Deferred[Mapping[str, NicCounters]]"]


class FixedClock:
    def now(self) -> Any:
        return b.now(1030.0)


def limits(world: World, counters: Counters, vm: str = "worker") -> Dict[str, Any]:
    nobody: Any = None
    queries = Queries(world, nobody, nobody, nobody, FixedClock(), b.policy, dict, dict, counters, nobody, nobody,
                      dict, nobody)
    answer: Dict[str, Any] = fired(queries.table()["limits"]({"vm": vm}))
    return answer


def test_top_is_fed_with_the_sampler_s_readings(world: World) -> None:
    nobody: Any = None
    queries = Queries(world, nobody, nobody, nobody, FixedClock(), b.policy, dict, dict, counted, nobody, nobody,
                      dict, nobody)
    for at, cpu_s in ((1010.0, 1.0), (1020.0, 3.5)):
        reading = Reading(at, {RUNS.vm: Sample(RUNS.vm, at, "1", cpu_s)}, {}, HostSample(at))
        Deferred.fromCoroutine(queries.pacing(reading))
    answer = fired(queries.table()["top"]({}))
    assert answer["age_s"] == 10.0
    assert [row["pace"]["cpu_core_percent"] for row in answer["vms"]] == [25]


@pytest.fixture(name="world")
def _world() -> World:
    nobody: Any = None
    world = World(nobody, nobody, nobody)
    world.records[RUNS.vm] = RUNS
    world.observed[RUNS.vm] = b.observed()
    return world


def counted() -> Deferred[Mapping[str, NicCounters]]:
    return succeed({DEVICE: NicCounters(capped_packets=4), "vmaother": NicCounters()})


def test_downloads_are_told_as_they_are_now(world: World) -> None:
    nobody: Any = None
    images = FakeImages()
    images.fetch("c", ImageRef("far", "cd" * 64, "raw", "https://a/b", 200))
    images.progress["cd" * 64] = 50
    queries = Queries(world, nobody, nobody, images, FixedClock(), b.policy, dict, dict, counted, nobody,
                      nobody, dict, nobody).table()
    (told,) = fired(queries["downloads"]({}))["downloads"]
    assert (told["percent"], told["step"], told["for"]) == (25, "fetching", [])


def test_limits_and_counters_in_one_answer(world: World) -> None:
    answer = limits(world, counted)
    assert answer["vm"] == RUNS.vm
    assert answer["counters"][DEVICE]["capped_packets"] == 4 and set(answer["counters"]) == {DEVICE}
    assert answer["counters_why"] == ""


def test_the_network_is_as_it_was_looked_at_last_not_as_the_domain_was(world: World) -> None:
    drift = (Drift("firewall", DEVICE, "the chain is gone"),)
    world.network[RUNS.vm] = dataclasses.replace(b.proven_network(RUNS.spec), at=1025.0, drift=drift)
    found = limits(world, counted)["limits"]
    assert [one["found"] for one in found["drift"]] == ["the chain is gone"]
    assert "firewall" not in found["proven"]
    assert found["proven"]["bandwidth"]["proven_at"] == "2026-11-20T11:59:55.000Z"
    assert found["proven"]["memory"]["proven_at"] == "2026-11-20T11:59:30.000Z"


def test_counters_that_cannot_be_read_hide_nothing_of_the_rest(world: World) -> None:
    answer = limits(world, lambda: fail(Fault(FaultKind.UNKNOWN, "nft did not answer")))
    assert set(answer["limits"]["proven"]) == {"cpu", "memory", "disk_io", "bandwidth", "firewall"}
    assert (answer["counters"], answer["counters_why"]) == ({}, "outcome-unknown: nft did not answer")


def test_a_vm_that_has_ended_and_one_that_nobody_knows(world: World) -> None:
    gone = b.record(spec={"member": 1, "name": "gone"})
    world.recent[gone.vm] = gone
    assert limits(world, counted, "gone")["limits"]["proven"] == {}
    with pytest.raises(Problem) as caught:
        limits(world, counted, "nobody")
    assert caught.value.type == "not-found"


def test_a_vm_in_the_words_of_occi_beside_our_own(world: World) -> None:
    nobody: Any = None

    class Here:
        def info(self) -> Any:
            return HypervisorInfo("qemu:///system", "QEMU", "kvm", "x86_64", "9", "7", 8, 16384, True, 1.0)

    hypervisor: Any = Here()
    others = len(inspect.signature(Queries).parameters) - 9
    queries = Queries(world, nobody, hypervisor, nobody, FixedClock(), b.policy, dict, dict, counted,
                      *[nobody] * others)
    plain = fired(queries.table()["show"]({"vm": "worker"}))
    told = fired(queries.table()["show"]({"vm": "worker", "occi": True}))
    assert told["occi"]["resource"]["attributes"]["occi.compute.architecture"] == "x64"
    assert told["occi"]["lines"][0].startswith("Category: compute")
    assert {name: told[name] for name in plain} == plain and "occi" not in plain
