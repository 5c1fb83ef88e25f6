"""Wall time as text and as a number: RFC 3339 in UTC, written with milliseconds and `Z`.

Only `Z` is read (no offsets, no lower case, no leap second), so that one instant has one spelling up to its fraction.
Pure: no clock is read here.
"""

from __future__ import annotations

import datetime
import math
import re

_FORM = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(\.\d{1,9})?Z", re.ASCII)
_EPOCH = datetime.datetime(1970, 1, 1)
_FIRST_MS = -62135596800000  # 0001-01-01
_LAST_MS = 253402300799999  # 9999-12-31


def seconds(text: str) -> float:
    """`2026-11-20T12:00:00.123Z` as seconds since 1970-01-01 UTC.  ValueError when it is not such a text."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError("not a time like 2026-11-20T12:00:00.123Z")
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    whole = datetime.datetime(year, month, day, hour, minute, second) - _EPOCH
    return whole.days * 86400 + whole.seconds + float(found.group(7) or 0)


def text(at: float) -> str:
    """Seconds since 1970-01-01 UTC as RFC 3339 with milliseconds.  ValueError outside the years 1 to 9999."""
    if not math.isfinite(at) or not _FIRST_MS <= round(at * 1000) <= _LAST_MS:
        raise ValueError(f"not a time in the years 1 to 9999: {at}")
    ms = round(at * 1000)
    moment = _EPOCH + datetime.timedelta(seconds=ms // 1000)
    return f"{moment.isoformat()}.{ms % 1000:03d}Z"
