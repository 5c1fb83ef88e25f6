"""A reader of APEL's cloud messages that rejects what APEL's own rejects (FORMATS 1.1 to 1.4), written from them.

`load` is the loader, `month` the bookkeeping of the database: the last record received of a VM and month wins.
"""

from __future__ import annotations

import datetime
import re
from typing import Dict, List, Optional, Tuple

TEXTS = ("VMUUID SiteName CloudComputeService MachineName LocalUserId LocalGroupId GlobalUserName FQAN Status "
         "NetworkType BenchmarkType StorageRecordId ImageId CloudType").split()
INTEGERS = ("SuspendDuration WallDuration CpuDuration NetworkInbound NetworkOutbound PublicIPCount Memory "
            "Disk").split()
FLOATS = ("CpuCount", "Benchmark")
TIMES = ("RecordCreateTime", "StartTime", "EndTime")
IGNORED = ("UpdateTime", "MeasurementTime", "MeasurementMonth", "MeasurementYear")
COUNTERS = ("WallDuration", "CpuDuration", "NetworkInbound", "NetworkOutbound")
NULLS = ("none", "null", "")
LONGEST = 255
Fields = Dict[str, str]


class Rejected(Exception):
    """The whole message is refused."""


def load(message: str) -> List[Fields]:
    """The records of a message; null fields are absent."""
    try:
        message.encode("ascii")
    except UnicodeEncodeError as error:
        raise Rejected("the relay reads ASCII: this file blocks its whole queue") from error
    header, _, body = message.replace("\r\n", "\n").partition("\n")
    if not re.fullmatch(r"APEL-cloud-message: v[0-9.]+", header):
        raise Rejected(f"unknown header {header!r}")
    texts = body.split("%%")
    if not texts[-1].strip():
        texts.pop()
    return [_record(text.strip("\n")) for text in texts]


def _record(text: str) -> Fields:
    fields: Fields = {}
    for line in text.split("\n"):
        name, colon, value = line.partition(":")
        if not colon:
            raise Rejected(f"a line without a colon: {line!r}")
        if name not in (*TEXTS, *INTEGERS, *FLOATS, *TIMES, *IGNORED):
            raise Rejected(f"unknown field {name!r}")
        value = value.strip()
        if value.lower() not in NULLS:
            _check(name, value)
            fields[name] = value
    for name in ("VMUUID", "SiteName"):
        if name not in fields:
            raise Rejected(f"no {name}")
    return fields


def _check(name: str, value: str) -> None:
    if name in INTEGERS and not re.fullmatch("-?[0-9]+", value):
        raise Rejected(f"{name}: {value!r} is no integer")
    if name in TIMES and not re.fullmatch("[0-9]{1,10}", value):
        raise Rejected(f"{name}: {value!r} is no time in seconds")
    if name in FLOATS:
        try:
            float(value)
        except ValueError:
            raise Rejected(f"{name}: {value!r} is no number") from None
    if len(value) > LONGEST:
        raise Rejected(f"{name} is longer than its column")


def measured(fields: Fields) -> Optional[int]:
    """When APEL says that it was measured; None: its usage is lost in month 0."""
    if fields.get("Status") == "completed":
        return int(fields["EndTime"]) if "EndTime" in fields else None
    if "RecordCreateTime" in fields:
        return int(fields["RecordCreateTime"])
    return sum(int(fields[name]) for name in ("StartTime", "SuspendDuration", "WallDuration"))


def vo(fqan: Optional[str]) -> Tuple[Optional[str], Optional[str], Optional[str]]:
    """(VO, group, role) as APEL reads an FQAN."""
    if fqan is None:
        return None, None, None
    first = fqan.split(";")[0]
    if not first.startswith("/"):
        return first, None, None
    parts = first.split("/")
    roles = [part for part in parts if part.startswith("Role=")]
    groups = [part for part in parts[1:] if "=" not in part]
    return groups[0], "/" + "/".join(groups), roles[0] if roles else None


class Database:
    """CloudRecords and its summaries."""

    def __init__(self) -> None:
        self.rows: Dict[Tuple[str, str], Fields] = {}

    def take(self, message: str) -> None:
        for fields in load(message):
            at = measured(fields)
            assert at is not None, "booked in month 0"
            for name in ("ImageId", "Status", "CpuCount"):
                assert name in fields, f"{name} is null: no summary can be made any more"
            self.rows[(fields["VMUUID"], _month(at))] = fields

    def monthly(self, vmuuid: str, counter: str) -> Dict[str, int]:
        """month -> use: this month's record minus the newest earlier one."""
        found, before = {}, 0
        for (_, month), fields in sorted((key, value) for key, value in self.rows.items() if key[0] == vmuuid):
            found[month] = int(fields[counter]) - before
            before = int(fields[counter])
        return found


def _month(at: int) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.timezone.utc).strftime("%Y-%m")
