"""host.capacity: what is free is what is admitted, now and later; what nobody knows is null."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Dict, List

import pytest

from tests.support import building as b
from tests.support.offered import FLAVOURS, here, room
from tests.unit.test_admission import start
from vmagent.core import admission, capacity, schemas, starts
from vmagent.core.capacity import Around, Here
from vmagent.core.model import Desired, NicLimits, Outcome, Owner, Phase, Seen
from vmagent.core.policy import Flavour, Minima
from vmagent.core.usagemodel import AccountingRules, Benchmark
from vmagent.errors import Problems


def told(of: Here) -> Dict[str, Any]:
    data = capacity.published(of)
    schemas.check("event.host.capacity", {**data, "glue": {}})
    return data


def vm(n: int, **kw: Any) -> Any:
    """One that runs since boot time 1000 for an hour; 4 cores, 4 GiB, 10 GiB of disk."""
    spec = {"member": n, "cores": 4, "memory_mib": 4096, "disk_gib": 10, **kw.pop("spec", {})}
    return b.record(spec=spec, **{"journal": b.ran(), **kw})


def possible(data: Dict[str, Any]) -> Dict[str, int]:
    return {one["flavour"]: one["possible"] for one in data["flavours"]}


def resources(reasons: List[Dict[str, Any]]) -> List[str]:
    return [one.get("resource", one["type"]) for one in reasons]


def test_what_stands_does_not_change_by_itself() -> None:
    """So a look that finds the same is not published, and need not reckon the rest."""
    now, later = here(vm(0), at=2000.0), here(vm(0), at=2900.0)
    assert capacity.standing(now) == capacity.standing(later)
    assert set(told(now)) - set(capacity.standing(now)) == {"at", "valid_until", "later", "starts", "kernel"}


# ---- sums


def test_an_empty_host_is_all_free() -> None:
    data = told(here())
    assert data["cores"] == {"host": 8, "total": 8, "reserved": 0, "overcommit": 1.0, "promised": 0, "free": 8}
    assert data["memory_mib"]["total"] == data["memory_mib"]["free"] == 16384
    assert (data["memory_mib"]["reserved"], data["disk_gib"]["reserved"], data["disk_gib"]["free"]) == (1024, 5, 100)
    assert possible(data) == {"small": 8, "large": 2}
    assert (data["full"], data["reasons"]) == (False, [])
    assert data["vms"] == {"total": 0, "running": 0, "suspended": 0, "halted": 0, "unknown": 0}


def test_overcommit_sells_more_and_a_learned_overhead_less() -> None:
    policy = b.policy(flavours=FLAVOURS, cpu_overcommit=2.0, memory_overhead_mib=64)
    data = told(here(vm(1), policy=policy, room=room(memory_overhead_mib=200)))
    assert (data["cores"]["total"], data["cores"]["overcommit"], data["cores"]["free"]) == (16, 2.0, 12)
    assert data["memory_mib"]["overhead"] == {"counted": 200, "learned": 200}
    assert data["memory_mib"]["promised"] == 4096 + 200


def test_nothing_learned_is_null() -> None:
    assert told(here())["memory_mib"]["overhead"] == {"counted": 0, "learned": None}


def test_too_much_promised_is_nothing_free_never_less() -> None:
    data = told(here(*(vm(n) for n in range(9))))
    assert [data[what]["free"] for what in ("cores", "memory_mib", "disk_gib")] == [0, 0, 10]
    assert (data["full"], data["largest"], possible(data)) == (True, None, {"small": 0, "large": 0})
    assert resources(data["reasons"]) == ["cores", "memory_mib"]


# ---- admission and capacity agree


def taken(of: Here, **args: Any) -> int:
    command = start(**{"count": 50, **args})
    try:
        return len(admission.admit(command, of.policy, of.records, of.room).specs)
    except Problems:
        return 0


@pytest.mark.parametrize(
    "kw",
    [{}, {"room": room(drained=True)}, {"room": room(emulated_ok=False)}, {"room": room(cpu_caps=False)},
     {"room": room(disk_free_gib=30)}, {"room": room(tasks_free=100)}, {"room": room(descriptors_free=300)},
     {"policy": b.policy(flavours={"small": Flavour(1, 512, 2), "large": Flavour(2, 512, 200)})},
     {"policy": b.policy(flavours=FLAVOURS, minima=Minima(cores=2))}],
)  # fmt: skip
def test_each_flavour_starts_as_often_as_published_and_says_why_not_once_more(kw: Dict[str, Any]) -> None:
    of = here(vm(1), vm(2, spec={"cores": 1}, journal=b.journal()), **kw)
    for one in told(of)["flavours"]:
        assert one["possible"] == taken(of, flavour=one["flavour"]), one
        assert one["reasons"], "nothing has no end"


def test_the_largest_vm_is_taken_and_one_more_of_anything_is_not() -> None:
    for of in (here(), here(vm(1)), here(vm(1), policy=b.policy(memory_overhead_mib=100)),
               here(room=room(cores=64, disk_free_gib=999, tasks_free=30)), here(room=room(descriptors_free=127))):
        size = capacity.largest(of)
        if size is None:
            assert taken(of, count=1, cores=1, memory_mib=16, disk_gib=1) == 0
            continue
        assert taken(of, count=1, **size) == 1
        for what in size:
            assert taken(of, count=1, **{**size, what: size[what] + 1}) == 0, what


def test_the_largest_that_the_host_could_ever_give_is_what_an_empty_one_gives() -> None:
    policy = b.policy(maxima=b.maxima(cores=99, memory_mib=10**6, disk_gib=99), memory_overhead_mib=100)
    busy, empty = (told(here(*vms, policy=policy))["instance"] for vms in ((vm(1), vm(2)), ()))
    assert busy == empty == {"minimum": {"cores": 1, "memory_mib": 16, "disk_gib": 1},
                             "maximum": {"cores": 8, "memory_mib": 16284, "disk_gib": 99}}
    assert capacity.largest(here(policy=policy)) == empty["maximum"]


def test_all_the_reasons_and_not_the_first() -> None:
    small = told(here(vm(1, spec={"cores": 8, "memory_mib": 16384, "disk_gib": 100})))["flavours"][1]
    assert (small["flavour"], resources(small["reasons"])) == ("small", ["cores", "memory_mib", "disk_gib"])
    drained = told(here(room=room(drained=True, emulated_ok=False)))
    assert resources(drained["reasons"]) == ["drained", "no-virtualisation"]
    assert drained["largest"] is None and drained["full"]
    assert all(resources(one["reasons"])[:2] == ["drained", "no-virtualisation"] for one in drained["flavours"])


@pytest.mark.parametrize("kw", [{"descriptors_free": 10}, {"tasks_free": 3}, {"ports_free": {b.BRIDGE: 0}}])
def test_full_when_the_kernel_runs_out(kw: Dict[str, Any]) -> None:
    data = told(here(room=room(**kw)))
    assert data["full"] and resources(data["reasons"]) == [next(iter(kw)).split("_")[0]]


def test_a_bridge_that_nobody_can_count_is_not_full() -> None:
    more = b.policy(networks={"public": b.network(), "other": b.network("other", bridge="vmbr1")})
    data = told(here(room=room(ports_free={b.BRIDGE: 0}), policy=more))
    assert not data["full"]
    assert [one["ports_free"] for one in data["networks"]] == [None, 0]


# ---- later


def test_later_counts_leases_that_end_and_nothing_else() -> None:
    ends = vm(1, lifetime_s=1500)  # at 2500: in 500 s
    waits = b.record(spec={"member": 2, "cores": 2, "memory_mib": 64})
    stuck = vm(3, spec={"cores": 1}, lifetime_s=1100)
    of = here(ends, waits, stuck, seen={stuck.vm: b.observed(Seen.STUCK, stuck.spec)})
    ten, hour, six = told(of)["later"]
    assert told(of)["cores"]["free"] == 1
    assert (ten["in_s"], ten["at"], ten["ending"], ten["free"]["cores"]) == (600, "2026-11-20T12:10:00.000Z", 1, 5)
    assert hour["free"]["cores"] == six["free"]["cores"] == 5
    assert ten["flavours"] == {"large": 1, "small": 5}


def test_a_kept_disk_goes_when_its_time_is_over() -> None:
    kept = vm(1, lifetime_s=1500, spec={"keep_s": 4000})
    of = here(kept)
    assert [one["free"]["disk_gib"] for one in told(of)["later"]] == [90, 90, 100]
    assert [one["free"]["cores"] for one in told(of)["later"]] == [8, 8, 8]
    ended = vm(2, outcome=Outcome.EXPIRED, desired=Desired.STOP, spec={"keep_s": 1200},
               journal=b.ran(ended_at=1900.0, ended_boot=b.BOOT))  # kept until 3100
    assert [one["free"]["disk_gib"] for one in told(here(ended))["later"]] == [90, 100, 100]


def test_a_vm_that_is_stopped_ends_with_its_ladder_and_a_restart_is_no_end() -> None:
    stopping = vm(1, desired=Desired.STOP, journal=b.ran(stop_at=1990.0, stop_boot=b.BOOT, grace_s=60))
    again = vm(2, lifetime_s=86400, journal=b.ran(stop_at=1990.0, stop_boot=b.BOOT, grace_s=60, renew_wanted=1))
    assert [one["free"]["cores"] for one in told(here(stopping, again))["later"]] == [4, 4, 4]


def test_what_cannot_be_seen_may_be_here_for_ever() -> None:
    runs = vm(1, lifetime_s=1500)
    of = here(runs, seen={runs.vm: b.observed(Seen.UNKNOWN, runs.spec)})
    assert [one["free"]["cores"] for one in told(of)["later"]] == [4, 4, 4]
    assert told(of)["vms"] == {"total": 1, "running": 0, "suspended": 0, "halted": 0, "unknown": 1}


def test_who_ends_gives_back_what_the_kernel_counts() -> None:
    ends = vm(1, lifetime_s=1500)
    ten = told(here(ends, room=room(ports_free={b.BRIDGE: 0}, tasks_free=2, descriptors_free=10)))["later"][0]
    assert (ten["flavours"]["small"], ten["largest"]["cores"]) == (1, 6)


# ---- who, how fast, over what


def test_counts_by_what_they_do_and_by_vo() -> None:
    theirs = {"owner": Owner("/CN=B", "/other.example/Role=NULL")}
    records = (vm(1), vm(2, spec=theirs), vm(3, spec={"owner": Owner("/CN=C")}, journal=b.journal()))
    of = here(*records, seen={records[1].vm: b.observed(Seen.PAUSED, records[1].spec)})
    of = dataclasses.replace(of, phases={**of.phases, records[1].vm: Phase.PAUSED})
    data = told(of)
    assert data["vms"] == {"total": 3, "running": 1, "suspended": 1, "halted": 1, "unknown": 0}
    assert [(one["vo"], one["vms"]["total"], one["cores"]) for one in data["vos"]] == [
        ("", 1, 4), ("other.example", 1, 4), ("vo.example", 1, 4)]  # fmt: skip


def test_start_latency_of_the_last_day() -> None:
    def took(n: int, ms: int, wall: str = b.WALL) -> Any:
        return vm(n, closed=True, outcome=Outcome.FINISHED, timings_ms=(("resumed", ms), ("ready", ms + 1000)),
                  journal=b.ran(started_wall=wall))

    recent = [took(n, 100 * n) for n in range(1, 21)] + [took(30, 99999, "2026-11-19T11:59:59.000Z")]
    found = told(here(recent=tuple(recent)))["starts"]
    assert (found["count"], found["median_s"], found["p95_s"]) == (20, 1.0, 1.9)
    assert found["ready_median_s"] == 2.0


def test_nobody_measured_is_null_and_never_nought() -> None:
    found = told(here(vm(1)))["starts"]
    assert (found["count"], found["median_s"], found["p95_s"]) == (0, None, None)


def test_starts_are_kept_bounded_by_a_day_and_a_number_and_the_newest_word_counts() -> None:
    def took(n: int, **timings: int) -> Any:
        wall = f"2026-11-20T11:{n // 60:02d}:{n % 60:02d}.000Z"
        return vm(n, timings_ms=tuple(timings.items()), journal=b.ran(started_wall=wall))

    many = [took(n, resumed=n) for n in range(400)]
    kept = starts.lately(None, many, b.now())
    assert (len(kept), kept[0].resumed_ms, kept[-1].resumed_ms) == (starts.MOST, 100, 399)
    raw = json.loads(json.dumps(starts.setting(kept)))
    assert starts.lately(raw, (), b.now()) == kept
    again = starts.lately(raw, [took(399, resumed=399, ready=5000)], b.now())
    assert (len(again), again[-1].ready_ms) == (starts.MOST, 5000)
    assert starts.lately(raw, (), b.now(wall="2026-11-21T12:00:00.000Z")) == []


def sold(n: int, limit: Any) -> Any:
    return vm(n, spec={"nics": (NicLimits(limit, limit),)})


def test_what_is_sold_of_a_network_and_what_its_uplink_carries() -> None:
    capped = b.policy(maxima=b.maxima(bandwidth_in_kbit=10**6, bandwidth_out_kbit=10**6))
    (one,) = told(here(sold(1, 1000), sold(2, 500_000), policy=capped))["networks"]
    assert (one["bandwidth_sold_in_kbit"], one["bandwidth_link_kbit"], one["bandwidth_free_out_kbit"]) == (
        501_000, 10_000_000, 9_499_000)  # fmt: skip
    assert (one["guarantee"], one["interfaces"], one["unlimited"]) == ("hard-cap", 2, 0)


def test_one_without_a_limit_makes_it_shared_and_what_is_free_unknown() -> None:
    capped = b.policy(maxima=b.maxima(bandwidth_in_kbit=10**6, bandwidth_out_kbit=10**6))
    (one,) = told(here(sold(1, 1000), sold(2, None), policy=capped))["networks"]
    assert (one["bandwidth_sold_in_kbit"], one["bandwidth_free_in_kbit"], one["unlimited"]) == (1000, None, 1)
    assert one["guarantee"] == "shared"
    assert told(here(sold(1, 1000)))["networks"][0]["guarantee"] == "shared"  # the next one may come without
    assert told(here(policy=capped, room=room(shaping=False)))["networks"][0]["guarantee"] == "shared"


def test_what_the_host_does_not_say_is_null() -> None:
    data = told(here(around=Around()))
    assert data["devices"] is None
    assert data["kernel"] == {"descriptors_free": None, "tasks_free": None}
    (one,) = data["networks"]
    assert (one["bandwidth_link_kbit"], one["bandwidth_free_in_kbit"], one["ports_free"]) == (None, None, None)


def test_what_a_core_is_worth() -> None:
    assert told(here())["cpu"] == {"model": None, "mhz": None, "benchmark": None}
    measured = dataclasses.replace(here().policy, accounting=AccountingRules(benchmark=Benchmark("HEPscore23", 12.5)))
    cpu = told(here(policy=measured, around=Around(cpu_model="An Example", cpu_mhz=2500)))["cpu"]
    assert cpu == {"model": "An Example", "mhz": 2500, "benchmark": {"name": "HEPscore23", "per_core": 12.5}}


def test_addresses_left_are_counted() -> None:
    assert told(here(vm(1)))["networks"][0]["addresses_free"] == 51
    held = vm(1, spec={"interfaces": (b.interface("x", addresses=("192.0.2.100/24",)),)})
    assert told(here(held))["networks"][0]["addresses_free"] == 50
    named = b.policy(networks={"own": b.network("own", addressing="controller", pools=())})
    assert told(here(policy=named))["networks"][0]["addresses_free"] is None


def test_how_long_it_may_be_believed() -> None:
    data = told(here(stale=({"part": "vms", "since": None, "why": "libvirt is away"},)))
    assert (data["at"], data["valid_until"]) == (b.WALL, "2026-11-20T12:05:00.000Z")
    assert [one["part"] for one in data["stale"]] == ["vms"]
