"""A point in time as people write it: `2026-11-20`, `2026-11-20T12:00Z`, `2026-11-20T12:00:00.123Z`, or `24h` ago.

All UTC.  Pure: now is handed in.
"""

from __future__ import annotations

import re

from vmagent.core import duration, walltime
from vmagent.errors import Problem

ACCEPTED = "a day like 2026-11-20, a time like 2026-11-20T12:00Z, or a span like 24h, counted back from now"
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_MINUTE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\dZ", re.ASCII)


def wall(text: str, now_wall: str, path: str) -> str:
    """RFC 3339.  Problem `schema` at `path` when it is no such text."""
    try:
        if _DAY.fullmatch(text):
            return walltime.text(walltime.seconds(f"{text}T00:00:00Z"))
        if _MINUTE.fullmatch(text):
            return walltime.text(walltime.seconds(f"{text[:-1]}:00Z"))
        if "T" in text:
            return walltime.text(walltime.seconds(text))
        return walltime.text(walltime.seconds(now_wall) - duration.seconds(text))
    except ValueError as error:
        raise Problem("schema", f"{text!r} is no time", path=path, accepted=ACCEPTED) from error
