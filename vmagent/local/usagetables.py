"""What VMs were promised and used, as text for people: `vmagentctl usage`."""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Sequence

from vmagent.core import usagesums
from vmagent.local.tables import SHORT, Screen, span

Answer = Mapping[str, Any]
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
NUMBERS = ("WALL", "PAUSED", "CORE", "CPU", "IN", "OUT", "READ", "WRITTEN")


def usage(screen: Screen, answer: Answer) -> None:
    """Sums per VM, the periods of the one that was asked for, and what is open."""
    screen.table(("ID", "NAME", "OWNER", "PERIODS", *NUMBERS, "NOT IN FULL"), [_sums(one) for one in answer["vms"]],
                 "no closed period in that time")
    if answer["rows"]:
        screen.line()
        screen.table(("FROM", "TO", "SEGMENT", "PERIOD", "STATUS", *NUMBERS, "UNCERTAIN"),
                     [_period(row) for row in answer["rows"]])
    if answer["left_out"]:
        screen.line(f"{answer['left_out']} later periods are left out: name a shorter time", "yellow")
    if answer["open"]:
        screen.line()
        screen.table(("OPEN SINCE", "ID", "SEGMENT", "PERIOD", "STATUS", *NUMBERS),
                     [_open(row) for row in answer["open"]])


def _sums(one: Answer) -> Sequence[str]:
    return (one["vm"][:SHORT], one["name"], one["owner"]["subject"], str(one["periods"]), *_numbers(one["used"]),
            ", ".join(one["vanished"]))


def _period(row: Answer) -> Sequence[str]:
    return (row["from"], row["to"], _segment(row), str(row["period"]), row["status"], *_numbers(row["used"]),
            span(row["tail_uncertain_s"]))


def _open(row: Answer) -> Sequence[str]:
    return (row["from"], row["vm"][:SHORT], _segment(row), str(row["period"]), row["status"], *_numbers(row["used"]))


def _segment(row: Answer) -> str:
    return f"{row['incarnation']}/{row['number']}"


def _numbers(used: Answer) -> List[str]:
    disk = used["disk"] or {"read_bytes": None, "write_bytes": None}
    return [
        *(span(used[name]) if used[name] is not None else "unknown"
          for name in ("wall_s", "suspended_s", "core_s", "cpu_s")),
        *(size(usagesums.traffic(used["network"], way)) for way in ("in", "out")),
        size(disk["read_bytes"]), size(disk["write_bytes"]),
    ]  # fmt: skip


def size(count: Optional[int]) -> str:
    """Bytes in words; what nobody measured is unknown."""
    if count is None:
        return "unknown"
    value, unit = float(count), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.3g} {UNITS[unit]}" if unit else f"{count} B"
