"""Use by VO, user or VM out of the periods of vm.usage, and what is missing of it.  Pure.

Rules: a period belongs to the month in which it began, for none lasts over a month's end; each counts once (the book
holds it once); a number that nobody could measure is null, counts as nothing and is named in `unmeasured`.  A segment
numbers its periods from 1: a hole in the numbers, or a segment that is not over and of which nothing came for long, is
use that is missing, and told with the time in which it was had.
"""

from __future__ import annotations

import calendar
import datetime
import re
from itertools import groupby
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from vmagent.core import walltime

Period = Mapping[str, Any]
Json = Dict[str, Any]

BY: Mapping[str, Tuple[str, ...]] = {"vo": ("vo",), "user": ("vo", "user"), "vm": ("vo", "user", "vm", "name", "host")}
"""What to sum by -> the members that tell whose it is."""
PLAIN = ("wall_s", "suspended_s", "core_s", "cpu_s", "memory_mib_s", "disk_gib_s")
NETWORK = ("in_local_bytes", "in_external_bytes", "out_local_bytes", "out_external_bytes")
DISK = ("read_bytes", "write_bytes")
SUMS = (*PLAIN, *NETWORK, *DISK)
LATE_PERIODS = 2  # of at least an hour each: a segment that is silent for longer has use that is missing
HOUR_S = 3600.0


def month_bounds(text: str) -> Tuple[float, float]:
    """Its first second and that of the next month, since 1970 UTC.  ValueError when it is not such as 2026-11."""
    if not re.fullmatch(r"(19[789]\d|[2-9]\d{3})-(0[1-9]|1[0-2])", text, re.ASCII):
        raise ValueError(f"{text!r} is no month like 2026-11")
    year, month = int(text[:4]), int(text[5:])
    after = (year + 1, 1) if month == 12 else (year, month + 1)
    return float(calendar.timegm((year, month, 1, 0, 0, 0))), float(calendar.timegm((*after, 1, 0, 0, 0)))


def month_of(at_s: float) -> str:
    """`2026-11` of seconds since 1970 UTC."""
    return (datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=int(at_s))).strftime("%Y-%m")


def sums(periods: Iterable[Period], month: str, by: str) -> List[Json]:
    """One row per VO, user or VM, ordered by them: whose, vms, periods, SUMS, unmeasured."""
    begin, end = (walltime.text(at) for at in month_bounds(month))
    rows: Dict[Tuple[str, ...], Json] = {}
    vms: Dict[Tuple[str, ...], set[str]] = {}
    for period in periods:
        if not begin <= period["from"] < end:
            continue
        whose = _whose(period, by)
        key = tuple(whose.values())
        row = rows.setdefault(key, {**whose, "vms": 0, "periods": 0, **dict.fromkeys(SUMS, 0), "unmeasured": []})
        vms.setdefault(key, set()).add(str(period["vm"]))
        row["vms"] = len(vms[key])
        row["periods"] += 1
        _add(row, period["used"])
    return [rows[key] for key in sorted(rows)]


def total(rows: Sequence[Mapping[str, Any]]) -> Json:
    """The sums of all rows."""
    return {name: sum(row[name] for row in rows) for name in ("periods", *SUMS)}


def _whose(period: Period, by: str) -> Dict[str, str]:
    owner = period["owner"]
    found = {"vo": owner.get("vo"), "user": owner.get("subject"), "vm": period["vm"], "name": period.get("name"),
             "host": period.get("host")}
    return {name: str(found[name] or "") for name in BY[by]}


def _add(row: Json, used: Mapping[str, Any]) -> None:
    network, disk = used.get("network") or {}, used.get("disk") or {}
    for names, source in ((PLAIN, used), (NETWORK, network), (DISK, disk)):
        for name in names:
            value = source.get(name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                row[name] += value
            elif name not in row["unmeasured"]:
                row["unmeasured"].append(name)


# -- what is missing


def missing(periods: Iterable[Period], month: str, now_s: float) -> List[Json]:
    """[{segment, vm, host, vo, numbers: [first, last] | null, from, to}] of this month; numbers null = nothing since.

    `periods`: those of earlier months too, ordered by segment and number.
    """
    begin, end = month_bounds(month)
    found: List[Json] = []
    for _, each in groupby(periods, key=lambda period: period["segment"]):
        found += _holes(list(each), now_s)
    return [one for one in found
            if walltime.seconds(one["from"]) < end and walltime.seconds(one["to"]) > begin]


def _holes(segment: Sequence[Period], now_s: float) -> List[Json]:
    holes: List[Json] = []
    number, ended = 0, str(segment[0].get("started_at") or segment[0]["from"])
    for period in segment:
        if period["period"] > number + 1:
            holes.append(_hole(period, [number + 1, period["period"] - 1], ended, period["from"]))
        number, ended = period["period"], period["to"]
    last = segment[-1]
    silent_s = now_s - walltime.seconds(ended)
    length_s = max([HOUR_S, *(float(one.get("seconds") or 0.0) for one in segment[-LATE_PERIODS:])])
    if not last.get("final") and silent_s > LATE_PERIODS * length_s:
        holes.append(_hole(last, None, ended, walltime.text(now_s)))
    return holes


def _hole(period: Period, numbers: Optional[List[int]], since: str, until: str) -> Json:
    return {"segment": period["segment"], "vm": period["vm"], "host": period.get("host"),
            "vo": period["owner"].get("vo"), "numbers": numbers, "from": since, "to": until}
