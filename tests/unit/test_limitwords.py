"""Limits in words: units, what is not there, where a difference is told."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest

from tests.support import building as b
from vmagent.core import codec, events, limitwords
from vmagent.core.model import DiskIo, Drift, NetworkSeen, NicCounters, NicLimits
from vmagent.core.proof import network_digest

TWO = b.spec(interfaces=(b.interface(b.spec().vm), b.interface(b.spec().vm, 1)), nics=(NicLimits(), NicLimits(64, 65)))
FIRST, SECOND = (interface.device for interface in TWO.interfaces)


def limits(*drift: Drift, **kw: Any) -> Dict[str, Any]:
    network = NetworkSeen(network_digest(TWO), 1000.0, drift)
    return events.limits(TWO, b.observed(of=TWO, network=network, **kw), b.now(1000.0))


def found(rows: List[limitwords.Row], what: str) -> Dict[str, str]:
    """Interface -> what is told in the last column."""
    return {row[1]: row[-1] for row in rows if row[0] == what}


@pytest.mark.parametrize(
    ("kbit", "words"),
    [(None, "no limit"), (64, "64 kbit/s"), (1500, "1500 kbit/s"), (10_000, "10 Mbit/s"), (400_000_000, "400 Gbit/s")],
)
def test_bandwidth_is_told_in_the_greatest_unit_that_is_exact(kbit: Any, words: str) -> None:
    assert limitwords.bandwidth(kbit) == words


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (DiskIo(), "no limit"),
        (DiskIo(write_bytes_per_s=65536), "write 65536 B/s"),
        (DiskIo(10**9, 2_000_000, 10, 20), "read 1 GB/s, write 2 MB/s, read 10 operations/s, write 20 operations/s"),
    ],
)
def test_disk_limits_name_the_way_and_the_unit(limits: DiskIo, words: str) -> None:
    assert limitwords.disk_io(codec.plain(limits)) == words


def test_no_cap_is_a_word_and_a_fraction_is_not_rounded_away() -> None:
    assert [limitwords.cap(one) for one in (None, 50, 37.5)] == ["no cap", "50 % of a core", "37.5 % of a core"]


def test_a_difference_stands_in_the_row_and_interface_that_it_is_about() -> None:
    rows = limitwords.rows(limits(Drift("firewall", SECOND, "rule 3 is gone"), Drift("bandwidth", FIRST, "no qdisc")))
    assert found(rows, "firewall") == {FIRST: "", SECOND: "rule 3 is gone"}
    assert found(rows, "bandwidth in") == {FIRST: "no qdisc", SECOND: ""}
    assert found(rows, "memory") == {"": ""}


@pytest.mark.parametrize(
    "drift",
    [Drift(what, SECOND, "odd") for what in ("firewall", "bandwidth", "port", "isolated", "missing")]
    + [Drift("network", "", "odd")],
    ids=lambda one: one.what,
)
def test_every_difference_of_a_network_is_told_somewhere(drift: Drift) -> None:
    assert "odd" in {row[-1] for row in limitwords.rows(limits(drift))}


@pytest.mark.parametrize("members", [{"cpu": None}, {"weight": 7}, {"memory_max_mib": 7}, {"disk_io": DiskIo(7)}])
def test_every_difference_of_a_domain_is_told_in_one_row(members: Dict[str, Any]) -> None:
    assert len([row for row in limitwords.rows(limits(**members)) if row[-1]]) == 1


def test_every_cell_of_every_table_has_its_column() -> None:
    assert {len(row) for row in limitwords.rows(limits())} == {len(limitwords.HEADER)}
    assert {len(row) for row in limitwords.rules(limits())} == {len(limitwords.RULES_HEADER)}
    counters = limitwords.counters({FIRST: codec.plain(NicCounters())})
    assert {len(row) for row in counters} == {len(limitwords.COUNTERS_HEADER)}


def test_what_decides_without_a_rule_is_told_for_each_direction() -> None:
    assert [row[:3] for row in limitwords.rules(limits())] == [
        (device, *rest) for device in (FIRST, SECOND) for rest in (("inbound", "deny"), ("outbound", "allow"))
    ]
