"""Averages, peaks, gaps, and counters that begin anew; nothing that nobody measured is a number."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Dict, Mapping, Optional

import pytest

from vmagent.core import schemas, telemetry
from vmagent.core.limitmodel import NicCounters
from vmagent.core.model import Now
from vmagent.core.samples import DiskCounters, HostSample, Reading, Sample
from vmagent.core.telemetry import Period

VM = "6f1c2f9e-0000-4000-8000-000000000001"
DEVICES = {VM: ("dev0", "dev1")}
FACTS: Dict[str, Any] = {"name": "worker", "cores": 2, "flavour": "small", "image": "el9", "phase": "ready"}


def now(at: float) -> Now:
    return Now(at, f"2026-11-20T12:{int(at) // 60:02d}:{int(at) % 60:02d}.000Z", "boot")


def sample(at: float, cpu_s: Optional[float] = None, run: str = "1", **kw: Any) -> Sample:
    return Sample(VM, at, run, cpu_s, **kw)


def reading(
    one: Optional[Sample], nics: Optional[Mapping[str, NicCounters]] = None, at: float = 0, **host: Any
) -> Reading:
    at = one.at if one else at
    return Reading(at, {} if one is None else {VM: one}, nics, HostSample(at, **host))


def fold(*readings: Reading, fine_s: float = 10) -> Period:
    period = Period(now(0), fine_s)
    for each in readings:
        period.take(each, DEVICES)
    return period


def row(period: Period, at: float) -> Dict[str, Any]:
    (guest,) = period.guests({VM: FACTS}, now(at))
    return guest


def test_average_and_peak_of_cpu_are_percent_of_its_own_cores() -> None:
    told = row(fold(*(reading(sample(at, cpu)) for at, cpu in ((0, 100), (10, 110), (20, 130), (30, 130)))), 32)
    assert told["cpu_percent"] == {"average": 50.0, "peak": 100.0}
    assert (told["samples"], told["measured_s"], told["gaps"], told["age_s"]) == (4, 30, 0, 2)
    assert told["delay_percent"] is None and told["throttled_percent"] is None
    assert told["vm"] == VM and told["cores"] == 2


def test_a_gap_keeps_the_average_right_and_makes_no_peak() -> None:
    told = row(fold(*(reading(sample(at, cpu)) for at, cpu in ((0, 0), (10, 1), (110, 101)))), 110)
    assert told["cpu_percent"] == {"average": round(100 * 101 / 110 / 2, 3), "peak": 5.0}
    assert (told["measured_s"], told["gaps"]) == (10, 1)


@pytest.mark.parametrize("run, after, grown", [("2", 3.0, 3.0), ("2", 60.0, 60.0), ("1", 3.0, 3.0), ("1", 60.0, 10.0)])
def test_a_counter_that_began_anew_adds_what_it_shows(run: str, after: float, grown: float) -> None:
    told = row(fold(reading(sample(0, 50.0)), reading(sample(10, after, run))), 10)
    assert told["cpu_percent"]["average"] == grown / 10 / 2 * 100


def test_what_was_not_known_before_only_sets_the_mark() -> None:
    told = row(fold(reading(sample(0)), reading(sample(10, 5000.0)), reading(sample(20, 5001.0))), 20)
    assert told["cpu_percent"] == {"average": 5.0, "peak": 5.0}


def disked(at: float, disk_at: float, read: int, run: str = "1") -> Reading:
    return reading(sample(at, 0.0, run, disk=DiskCounters(read, read // 10, 0, 0), disk_at=disk_at))


def test_disks_from_one_look_at_them_to_the_next() -> None:
    period = fold(disked(0, -5, 1000), disked(10, -5, 1000), disked(60, 55, 7000), disked(120, 115, 7000))
    told = row(period, 130)
    assert told["disk"]["read_bytes"] == {"sum": 6000, "average": 50.0, "peak": 100.0}
    assert told["disk"]["read_ops"]["sum"] == 600 and told["disk"]["write_bytes"]["sum"] == 0
    assert told["disk_age_s"] == 15


def test_disks_of_another_life_count_from_its_beginning() -> None:
    period = fold(disked(0, 0, 1000), reading(sample(10, 0.0, "2")), disked(20, 15, 300, "2"), disked(30, 25, 500, "2"))
    assert row(period, 30)["disk"]["read_bytes"]["sum"] == 500


def test_network_of_all_interfaces_by_the_guest_s_view() -> None:
    def nics(n: int) -> Mapping[str, NicCounters]:
        return {"dev0": NicCounters(in_local_bytes=n, in_external_bytes=2 * n), "dev1": NicCounters(in_local_bytes=n),
                "else": NicCounters(in_local_bytes=10**9 * n, out_local_bytes=10**9 * n)}

    period = fold(*(reading(sample(at), nics(n)) for at, n in ((0, 10), (10, 20), (20, 120))))
    told = row(period, 20)["network"]
    assert told["in_bytes"] == {"sum": 440, "average": 22.0, "peak": 40.0}
    assert told["out_bytes"] == {"sum": 0, "average": 0.0, "peak": 0.0}


def test_a_turn_without_network_counters_loses_no_bytes() -> None:
    def nics(n: int) -> Mapping[str, NicCounters]:
        return {"dev0": NicCounters(out_external_bytes=n)}

    period = fold(reading(sample(0), nics(0)), reading(sample(10)), reading(sample(20), nics(100)))
    assert row(period, 20)["network"]["out_bytes"]["sum"] == 100


def test_without_interfaces_the_network_is_unknown() -> None:
    assert row(fold(reading(sample(0), {}), reading(sample(10), {})), 10)["network"]["in_bytes"] is None


def test_memory_and_pressure() -> None:
    period = fold(*(reading(sample(at, memory_mib=mib, pressure={"cpu": float(at)}))
                    for at, mib in ((0, 10), (10, 40), (20, None))))
    told = row(period, 20)
    assert told["memory_mib"] == {"average": 25.0, "peak": 40}
    assert told["pressure"] == {"cpu": {"average": 10.0, "peak": 20.0}}


def test_the_host() -> None:
    period = fold(*(reading(None, at=at, cpu_busy_s=busy, cpu_steal_s=0.0, memory_free_mib=free, pressure={"io": 2.0})
                    for at, busy, free in ((0, 0, 100), (10, 40, 50), (20, 40, 60))))
    told = period.host(4)
    assert told["cpu_percent"] == {"average": 50.0, "peak": 100.0}
    assert told["memory_free_mib"] == {"average": 70.0, "lowest": 50}
    assert told["steal_percent"] == {"average": 0.0, "peak": 0.0} and told["pressure"]["io"]["peak"] == 2.0


def test_a_period_goes_on_from_the_marks_of_the_former_and_from_nothing_else() -> None:
    first = fold(reading(sample(0, 0.0), {"dev0": NicCounters()}), reading(sample(10, 9.0), {"dev0": NicCounters()}))
    second = Period(now(10), 10, first)
    assert second.guests({VM: FACTS}, now(10)) == []
    second.take(reading(sample(20, 10.0), {"dev0": NicCounters(in_local_bytes=5)}), DEVICES)
    told = row(second, 20)
    assert told["cpu_percent"]["average"] == 5.0 and told["network"]["in_bytes"]["sum"] == 5
    third = Period(now(20), 10, second)
    fourth = Period(now(30), 10, third)
    fourth.take(reading(sample(400, 3000.0)), DEVICES)
    assert row(fourth, 400)["cpu_percent"] is None, "who was not there for a whole period begins anew"


def test_who_is_not_known_any_more_is_left_out() -> None:
    assert fold(reading(sample(0, 0.0))).guests({}, now(0)) == []


def test_messages_are_split_by_size_and_all_of_them_fit_their_schema() -> None:
    full = dataclasses.replace(sample(10, 1.0, delay_s=1.0, throttled_s=0.0, memory_mib=5, pressure={"io": 1.0}),
                               disk=DiskCounters(), disk_at=9.0)
    period = fold(reading(sample(0, 0.0), {"dev0": NicCounters()}), reading(full, {"dev0": NicCounters()}))
    guests = [dict(row(period, 12), vm=f"{n:08d}-0000-4000-8000-000000000000") for n in range(5)]
    told = telemetry.split({**telemetry.whole(period, {}, 4, 1, now(12)), "vms": guests},
                           2 * len(json.dumps(guests[0])))
    assert [(m["part"], m["parts"], len(m["vms"])) for m in told] == [(1, 3, 2), (2, 3, 2), (3, 3, 1)]
    assert [guest["vm"] for m in told for guest in m["vms"]] == [guest["vm"] for guest in guests]
    for message in told:
        schemas.check("event.host.telemetry", json.loads(json.dumps(message)))
    (empty,) = telemetry.split(telemetry.whole(period, {}, 4, 0, now(12)))
    assert (empty["seconds"], empty["vms"], empty["lost"]) == (12.0, [], 0)
    schemas.check("event.host.telemetry", empty)
