"""Ledger time: the wall clock of accounts, which no step of the host's clock can spoil.

Theory.  Ledger time is one anchor (boot time, wall time) per boot plus the boot clock.  Between two edges of periods it
goes on evenly, whatever is done to the wall clock.  At an edge it is compared with the wall clock: where that is ahead,
the ledger is set forward, and the step is told with the period that it closes; where that is behind, the ledger is not
set back, it only says so.  In a new boot it begins at the wall clock's time, never before what was booked already.

All times here are whole milliseconds, so that sums are exact: ledger time since 1970-01-01 UTC, boot time since boot.
Edges are the multiples of `period_s`, which divides a day: so months begin at edges too.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Iterator, Optional, Tuple

from vmagent.core import walltime
from vmagent.core.model import Now

NOISE_MS = 100
"""The two clocks are read one after the other, and written with milliseconds: less than this is no step."""


def ms(seconds: float) -> int:
    return round(seconds * 1000)


def wall_text(ledger_ms: int) -> str:
    """RFC 3339, UTC."""
    return walltime.text(ledger_ms / 1000)


@dataclass(frozen=True)
class Ledger:
    """The anchor in force.  Stored as the setting `ledger`."""

    boot_id: str
    boot_ms: int  # boot time of the anchor
    wall_ms: int  # ledger time then
    edge_ms: int = 0  # ledger time at which it was last compared with the wall clock, or began
    epoch: int = 0  # number of the store's epoch in which this ledger was kept

    def time(self, boot_at: float) -> int:
        """Ledger time of a boot time (in seconds) of this boot."""
        return self.wall_ms + ms(boot_at) - self.boot_ms

    def boot_at(self, ledger_ms: int) -> float:
        """Boot time in seconds of a ledger time: where a timer is set."""
        return (ledger_ms - self.wall_ms + self.boot_ms) / 1000

    def turned(self, edge_ms: int, now: Now) -> Tuple[Ledger, int]:
        """At an edge that has passed: the ledger from there on, and by how much it is set forward there.

        A negative step was not made: so much is the wall clock behind.
        """
        step = ms(walltime.seconds(now.wall)) - self.time(now.at)
        if step < NOISE_MS:
            return dataclasses.replace(self, edge_ms=edge_ms), step if step <= -NOISE_MS else 0
        at_ms = edge_ms + step
        return Ledger(self.boot_id, ms(self.boot_at(edge_ms)), at_ms, at_ms, self.epoch), step


def begun(now: Now, former: Optional[Ledger], booked_ms: int, epoch: int) -> Ledger:
    """The ledger of this boot: that of before if it is of this boot, else a new one.

    booked_ms: the latest ledger time that anything was booked at; 0 = nothing was.
    """
    if former is not None and former.boot_id == now.boot_id:
        return dataclasses.replace(former, epoch=epoch)
    at_ms = max(ms(walltime.seconds(now.wall)), booked_ms)
    return Ledger(now.boot_id, ms(now.at), at_ms, at_ms, epoch)


def next_edge(ledger_ms: int, period_s: int) -> int:
    """The first edge after this time."""
    return (ledger_ms // (period_s * 1000) + 1) * period_s * 1000


def edges(after_ms: int, until_ms: int, period_s: int) -> Iterator[int]:
    """Edges later than `after_ms`, up to and including `until_ms`."""
    edge = next_edge(after_ms, period_s)
    while edge <= until_ms:
        yield edge
        edge += period_s * 1000
