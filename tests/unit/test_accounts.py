"""Use out of periods: each counts once, in its month; what is missing is told; and what a whole site can take."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest

from tests.support.published import period, use
from vmagent.core import schemas, walltime
from vmagent.site import accounts, stock
from vmagent.site.shelf import Latest

V1, V2 = (f"{n:08d}-0000-5000-8000-000000000000" for n in (1, 2))
NOW = "2026-12-05T00:00:00.000Z"


def hour(day: str, number: int, vm: str = V1, **more: Any) -> Dict[str, Any]:
    """The period of this hour; the first hour of the first day is number 1."""
    return period(vm, number, f"{day}T{number - 1:02d}:00:00.000Z", f"{day}T{number:02d}:00:00.000Z", **more)


def missing(*periods: Dict[str, Any], month: str = "2026-11", now: str = NOW) -> List[Any]:
    found = accounts.missing(periods, month, walltime.seconds(now))
    return [(one["numbers"], one["from"], one["to"]) for one in found]


def test_the_periods_of_these_tests_are_as_the_agents_publish_them() -> None:
    schemas.check("event.vm.usage", hour("2026-11-02", 1))
    schemas.check("event.vm.usage", hour("2026-11-02", 1, used=use(cpu_s=None)))


def test_sums_by_vo_user_and_vm() -> None:
    rows = [hour("2026-11-02", 1), hour("2026-11-02", 2),
            hour("2026-11-02", 1, V2, subject="/CN=Another", used=use(core_s=7200)),
            hour("2026-11-02", 3, V2, vo="other")]
    by = {what: {tuple(row[name] for name in accounts.BY[what]): row for row in accounts.sums(rows, "2026-11", what)}
          for what in accounts.BY}
    assert {key: row["core_s"] for key, row in by["vo"].items()} == {("other",): 3600, ("vo.example",): 14400}
    assert by["vo"][("vo.example",)]["vms"] == 2 and by["vo"][("vo.example",)]["periods"] == 3
    assert {key[1]: row["core_s"] for key, row in by["user"].items() if key[0] == "vo.example"} == {
        "/CN=A User": 7200, "/CN=Another": 7200}
    assert {key[2] for key in by["vm"]} == {V1, V2}
    for rows_of in by.values():
        assert accounts.total(list(rows_of.values()))["core_s"] == 18000
        assert accounts.total(list(rows_of.values()))["in_external_bytes"] == 4000


def test_a_period_belongs_to_the_month_in_which_it_began() -> None:
    edge = [period(V1, 1, "2026-10-31T23:00:00.000Z", "2026-11-01T00:00:00.000Z"),
            period(V1, 2, "2026-11-01T00:00:00.000Z", "2026-11-01T01:00:00.000Z"),
            period(V1, 3, "2026-12-01T00:00:00.000Z", "2026-12-01T01:00:00.000Z")]
    assert [accounts.sums(edge, month, "vo")[0]["periods"] for month in ("2026-10", "2026-11", "2026-12")] == [1, 1, 1]
    assert accounts.sums(edge, "2026-09", "vo") == []


def test_what_nobody_measured_counts_as_nothing_and_is_named() -> None:
    blind = use(cpu_s=None, network=None, disk={"read_bytes": None, "read_ops": 1, "write_bytes": 5, "write_ops": 1})
    (row,) = accounts.sums([hour("2026-11-02", 1, used=blind), hour("2026-11-02", 2)], "2026-11", "vo")
    assert row["unmeasured"] == ["cpu_s", *accounts.NETWORK, "read_bytes"]
    assert (row["cpu_s"], row["wall_s"], row["write_bytes"]) == (1800.0, 7200, 8197)


def test_a_period_that_did_not_come_is_told_with_its_time() -> None:
    first, third, last = hour("2026-11-02", 1), hour("2026-11-02", 3), hour("2026-11-02", 4, final=True)
    assert missing(first, third, last) == [([2, 2], "2026-11-02T01:00:00.000Z", "2026-11-02T02:00:00.000Z")]
    assert missing(third, last) == [([1, 2], "2026-11-01T00:00:00.000Z", "2026-11-02T02:00:00.000Z")]
    assert missing(first, third, last, month="2026-10") == []
    assert missing(hour("2026-11-02", 1), hour("2026-11-02", 2, final=True)) == []


def test_a_segment_that_fell_silent_is_told() -> None:
    running = hour("2026-11-02", 1)
    assert missing(running, now="2026-11-02T02:30:00.000Z") == []
    assert missing(running, now="2026-11-02T04:00:00.000Z") == [
        (None, "2026-11-02T01:00:00.000Z", "2026-11-02T04:00:00.000Z")]
    daily = hour("2026-11-02", 1, seconds=86400)
    assert missing(daily, now="2026-11-03T10:00:00.000Z") == []


def test_segments_are_counted_apart() -> None:
    one, two = hour("2026-11-02", 1, final=True), hour("2026-11-02", 1, V2, final=True)
    assert missing(one, two) == []


@pytest.mark.parametrize("month", ["", "2026", "2026-13", "2026-00", "26-11", "2026-1", "2026-11-01", "1960-01",
                                   "2026-11\n"])
def test_a_month_that_is_none(month: str) -> None:
    with pytest.raises(ValueError, match="no month"):
        accounts.month_bounds(month)


def test_months_have_their_lengths() -> None:
    bounds = [accounts.month_bounds(month) for month in ("2024-02", "2026-02", "2026-12")]
    assert [(end - begin) / 86400 for begin, end in bounds] == [29, 28, 31]
    assert accounts.month_of(bounds[2][1]) == "2027-01"


# -- capacity


def told(host: str, free: int, at: str = NOW, full: bool = False, possible: int = 3) -> Latest:
    amount = {"total": 16, "promised": 16 - free, "free": free, "reserved": 0, "overcommit": 1, "host": 16}
    reasons = [{"type": "drained", "detail": "this host takes nothing new"}] if full else []
    return Latest(host, at, {"at": at, "cores": amount, "memory_mib": amount, "disk_gib": amount, "vms": {"total": 2},
                             "full": full, "reasons": reasons, "flavours": [{"flavour": "tiny", "possible": possible}]})


def test_the_site_s_total_is_the_sum_of_its_hosts() -> None:
    found = stock.site([told("wn1", 4), told("wn2", 8)], [], (), walltime.seconds(NOW) + 299)
    assert found["total"]["cores"] == {"total": 32, "promised": 20, "free": 12}
    assert (found["total"]["vms"], found["flavours"], found["stale"], found["silent"]) == (4, {"tiny": 6}, [], [])


def test_what_is_free_where_nothing_is_taken_is_not_free() -> None:
    found = stock.site([told("wn1", 4), told("wn2", 8, full=True, possible=0)], [], (), walltime.seconds(NOW))
    assert found["total"]["cores"] == {"total": 32, "promised": 20, "free": 4}
    assert stock.reasons(found["hosts"]) == ["wn2: this host takes nothing new"]


def test_an_old_answer_is_named_and_counts_for_nothing() -> None:
    old = told("wn1", 4, at="2026-12-04T23:54:00.000Z")
    found = stock.site([old, told("wn2", 8)], [Latest("wn3", NOW, {})], ("wn4", "wn2"), walltime.seconds(NOW))
    assert found["stale"] == [{"host": "wn1", "age_s": 360}]
    assert found["silent"] == ["wn3", "wn4"]
    assert [one["host"] for one in found["hosts"]] == ["wn2"] and found["total"]["cores"]["total"] == 16
