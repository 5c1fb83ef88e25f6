"""The clock of accounts: even between edges, forward at an edge, never back."""

from __future__ import annotations

import dataclasses

from tests.support import building as b
from vmagent.core import walltime
from vmagent.core.ledger import Ledger, begun, edges, ms, next_edge, wall_text
from vmagent.core.model import Now

NOON = ms(walltime.seconds("2026-11-20T12:00:00.000Z"))
HOUR = 3_600_000


def at(boot: float, wall: str, boot_id: str = b.BOOT) -> Now:
    return Now(boot, wall, boot_id)


def ledger() -> Ledger:
    return begun(at(1000.0, "2026-11-20T11:30:00.000Z"), None, 0, 7)


def test_between_edges_only_the_boot_clock_counts() -> None:
    assert wall_text(ledger().time(1000.0 + 1799.5)) == "2026-11-20T11:59:59.500Z"
    assert ledger().boot_at(NOON) == 2800.0
    assert ledger().time(ledger().boot_at(NOON)) == NOON


def test_at_an_edge_it_follows_a_clock_that_was_set_forward_from_that_edge_on() -> None:
    turned, step = ledger().turned(NOON, at(2801.0, "2026-11-20T13:20:01.000Z"))
    assert step == 4_800_000
    assert wall_text(turned.time(2800.0)) == "2026-11-20T13:20:00.000Z"
    assert wall_text(turned.time(2801.0)) == "2026-11-20T13:20:01.000Z"


def test_it_is_never_set_back_but_says_how_far_the_clock_is_behind() -> None:
    turned, step = ledger().turned(NOON, at(2801.0, "2026-11-20T10:00:01.000Z"))
    assert (turned, step) == (dataclasses.replace(ledger(), edge_ms=NOON), -7_200_000)


def test_what_two_readings_of_two_clocks_differ_by_is_no_step() -> None:
    turned, step = ledger().turned(NOON, at(2801.0, "2026-11-20T12:00:01.099Z"))
    assert (turned.time(2800.0), step) == (NOON, 0)


def test_an_agent_s_restart_keeps_it_and_a_boot_begins_it_anew_not_before_what_was_booked() -> None:
    later = at(5000.0, "2026-11-21T00:00:00.000Z")
    assert begun(later, ledger(), NOON, 8) == dataclasses.replace(ledger(), epoch=8)
    rebooted = at(10.0, "2026-11-20T12:00:00.000Z", b.OTHER_BOOT)
    assert begun(rebooted, ledger(), NOON + 5, 7).time(10.0) == NOON + 5
    assert begun(rebooted, ledger(), NOON - 5, 7).time(10.0) == NOON


def test_edges_are_utc_hours_and_so_months() -> None:
    assert next_edge(NOON, 3600) == NOON + HOUR and next_edge(NOON - 1, 3600) == NOON
    assert list(edges(NOON, NOON + 2 * HOUR, 3600)) == [NOON + HOUR, NOON + 2 * HOUR]
    month = ms(walltime.seconds("2026-12-01T00:00:00.000Z"))
    for period_s in (60, 3600, 21600, 86400):
        assert month in edges(month - 86_400_000, month, period_s)
