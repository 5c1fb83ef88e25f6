"""What a plug-in tells Nagios, Icinga and their kin: one line, its performance data, and the exit code.

Source: the Monitoring Plugins Development Guidelines (FORMATS 8.1).  Rules of the line:

    SERVICE STATUS: text | 'label'=value[UOM];[warn];[crit];[min];[max] ...

`|` begins the performance data, so it stands nowhere else; labels hold neither `=` nor `'`; a value that is not known
is `U`; numbers have no exponent.  A range `[@]start:end` alerts when the value lies outside (with `@`: inside, the ends
included); `10` is 0:10, `10:` has no end, `~:10` no start.  The worst of several results is critical, then warning,
then unknown.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import List, Optional, Sequence

UNITS = ("", "s", "us", "ms", "%", "B", "KB", "MB", "TB", "c")
_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_RANGE = re.compile(rf"(@)?(?:(~|{_NUMBER})?(:))?({_NUMBER})?", re.ASCII)
ACCEPTED = "[@][START:][END], such as 10, 10:, ~:10, 5:10 or @5:10"
LONGEST_TEXT = 500


class Status(IntEnum):
    """Exit codes."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


_BADNESS = (Status.OK, Status.UNKNOWN, Status.WARNING, Status.CRITICAL)


@dataclass(frozen=True)
class Range:
    """A threshold.  start, end: None = no bound; inside: alerts inside instead of outside."""

    start: Optional[float] = 0.0
    end: Optional[float] = None
    inside: bool = False

    def alerts(self, value: float) -> bool:
        above = self.start is None or value >= self.start
        below = self.end is None or value <= self.end
        return (above and below) is self.inside

    def __str__(self) -> str:
        start = "~:" if self.start is None else "" if self.start == 0.0 and self.end is not None else \
            f"{number(self.start)}:"
        return ("@" if self.inside else "") + start + ("" if self.end is None else number(self.end))


@dataclass(frozen=True)
class Metric:
    """A measured value.  value: None = not known, which alerts nobody by itself."""

    label: str
    value: Optional[float]
    unit: str = ""
    warning: Optional[Range] = None
    critical: Optional[Range] = None
    least: Optional[float] = None
    most: Optional[float] = None

    def status(self) -> Status:
        if self.value is None:
            return Status.OK
        if self.critical is not None and self.critical.alerts(self.value):
            return Status.CRITICAL
        return Status.WARNING if self.warning is not None and self.warning.alerts(self.value) else Status.OK

    def __str__(self) -> str:
        label = self.label.replace("=", "_").replace("'", "_")
        parts = [
            f"'{_plain(label)}'={'U' if self.value is None else number(self.value) + self.unit}",
            *("" if one is None else str(one) for one in (self.warning, self.critical)),
            *("" if one is None else number(one) for one in (self.least, self.most)),
        ]
        return ";".join(parts).rstrip(";")


def parse(text: str) -> Range:
    """Read a range.  ValueError when it is none, or ends before it starts."""
    found = _RANGE.fullmatch(text)
    if found is None or not (found.group(2) or found.group(4)):
        raise ValueError(f"{text!r} is no range; accepted: {ACCEPTED}")
    at, start, colon, end = found.groups()
    first = None if start == "~" else float(start or 0.0)
    last = float(end) if end else None
    if not colon:
        first = 0.0
    if first is not None and last is not None and last < first:
        raise ValueError(f"{text!r} ends before it starts; accepted: {ACCEPTED}")
    return Range(first, last, bool(at))


def worst(statuses: Sequence[Status]) -> Status:
    """The one that counts; OK when there is none."""
    return max(statuses, key=_BADNESS.index, default=Status.OK)


def output(service: str, status: Status, text: str, metrics: Sequence[Metric] = (), more: Sequence[str] = ()) -> str:
    """Everything that is printed: the line, and further lines for people."""
    line = f"{_plain(service).upper()} {status.name}: {_plain(text)[:LONGEST_TEXT]}"
    data = " ".join(str(metric) for metric in metrics)
    lines: List[str] = [f"{line} | {data}" if data else line, *(_plain(one) for one in more)]
    return "\n".join(lines)


def number(value: float) -> str:
    """Up to three decimals, never an exponent.  ValueError for what is no number."""
    if not math.isfinite(value):
        raise ValueError(f"not a number: {value}")
    text = f"{value:.3f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _plain(text: str) -> str:
    """In one line, without what has a meaning of its own."""
    return "".join(" " if one == "|" else one if one.isprintable() else "?" for one in text)
