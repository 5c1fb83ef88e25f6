"""What several foreign records say of one period row (the `data` of vm.usage), reckoned once.

A record is cumulative since its segment began, so of each segment the newest row of a month says all of that month.
APEL books by the month of the time of measurement: the end of a month's last period is the first second of the next, so
it counts as one second earlier (FORMATS 1.4).
"""

from __future__ import annotations

import calendar
import datetime
import re
from typing import Any, Dict, List, Mapping, Tuple

from vmagent.core import walltime

Row = Mapping[str, Any]
Key = Tuple[str, str]  # segment, month
_EPOCH = datetime.datetime(1970, 1, 1)
_MONTH = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])", re.ASCII)


def month_of(at: int) -> str:
    """`2026-11` of seconds since 1970-01-01 UTC."""
    return (_EPOCH + datetime.timedelta(seconds=at)).strftime("%Y-%m")


def month_bounds(month: str) -> Tuple[int, int]:
    """Its first second, and that of the next one.  ValueError when it is none such as 2026-11."""
    found = _MONTH.fullmatch(month)
    if found is None or int(found.group(1)) < 1970:
        raise ValueError("a month is written as 2026-11")
    year, number = int(found.group(1)), int(found.group(2))
    after = (year + 1, 1) if number == 12 else (year, number + 1)
    return calendar.timegm((year, number, 1, 0, 0, 0)), calendar.timegm((*after, 1, 0, 0, 0))


def measured_at(row: Row) -> int:
    """When what the row says was measured: its end, but within the month that it is of."""
    begun, end = int(walltime.seconds(row["from"])), int(walltime.seconds(row["to"]))
    return max(begun, min(end, month_bounds(month_of(begun))[1] - 1))


def key(row: Row) -> Key:
    return row["segment"], month_of(measured_at(row))


def over(row: Row) -> bool:
    """The segment has ended: no later row of it will be."""
    return row["final"] is True or row["status"] == "completed"


def runs(row: Row) -> bool:
    """Whether the segment is of a VM, not of the disk that one left behind."""
    return bool(row["footprint"]["cores"] > 0)


def keep_newest(found: Dict[Key, Row], row: Row) -> None:
    """Take the row in, unless one of the same segment and month with a higher period is there."""
    of = key(row)
    if of not in found or row["period"] >= found[of]["period"]:
        found[of] = row


def ordered(rows: Mapping[Key, Row]) -> List[Row]:
    """Oldest measurement first."""
    return sorted(rows.values(), key=lambda row: (measured_at(row), row["segment"]))
