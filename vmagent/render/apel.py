"""Usage rows as APEL cloud records, version 0.4 (FORMATS 1.1 to 1.6).

Rules, each of them one of the reader's traps:

1. A message is `Key: value` lines in printable ASCII; records are separated by `%%`, wherever it stands.  One bad
   record rejects all of its message, so every value is made by FIELDS and nothing else.
2. All counters are cumulative since StartTime and never fall; times are whole seconds; what is not known is left out.
3. The reader keeps the last record that it got of a VM and month: there is one in a message, the newest.
4. ImageId, Status and RecordCreateTime are always there; EndTime whenever the status is `completed`.
5. VMUUID is the segment with site and host.  Another footprint is another segment, so a VM that grew is not booked
   with its new size for the time before.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple

from vmagent.core import walltime
from vmagent.render import owners, usage, words
from vmagent.render.usage import Row

HEADER = "APEL-cloud-message: v0.4\n"
SEPARATOR = "%%\n"
MOST_RECORDS = 100
MOST_BYTES = 900_000  # of a message; the relay takes 1 MB, signature included
CLOUD_TYPE = "vmagent"
UNKNOWN_IMAGE = "unknown"
_GIB = 2**30
_BENCHMARK_NAME = 50  # characters


@dataclass(frozen=True)
class Publisher:
    """Who publishes, and how.  cpu_duration: "wall" = wall time x cores, what most sites send; "used" = as measured."""

    site_name: str  # as the grid's registry (GOCDB) has it
    cloud_service: str  # which cloud of that site; "" = not said
    cpu_duration: str = "wall"


@dataclass(frozen=True)
class Record:
    """One record as text, without separator, and what decides which of two replaces the other."""

    vmuuid: str
    month: str
    at: int  # measured: seconds since 1970
    text: str


def record(row: Row, publisher: Publisher) -> Record:
    """The row's totals as a record.  ValueError, KeyError, TypeError: the row is none."""
    lines = []
    for name, value in FIELDS.items():
        text = value(row, publisher)
        if text:
            lines.append(f"{name}: {text}\n")
    at = usage.measured_at(row)
    return Record(_vmuuid(row, publisher), usage.month_of(at), at, "".join(lines))


def messages(records: Iterable[Record]) -> List[str]:
    """Texts of at most MOST_RECORDS records and MOST_BYTES bytes, in the given order."""
    found: List[List[str]] = []
    size = 0
    for one in records:
        text = one.text + SEPARATOR
        if not found or len(found[-1]) >= MOST_RECORDS or size + len(text) > MOST_BYTES:
            found.append([])
            size = len(HEADER)
        found[-1].append(text)
        size += len(text)
    return [HEADER + "".join(texts) for texts in found]


def held(message: str) -> Dict[Tuple[str, str], int]:
    """(VMUUID, month) -> when it was measured, of every record in a message of ours, signed or not."""
    found: Dict[Tuple[str, str], int] = {}
    vmuuid = ""
    for text in message.splitlines():
        name, _, value = text.partition(": ")
        if name == "VMUUID":
            vmuuid = value
        elif name == "RecordCreateTime" and vmuuid:
            found[(vmuuid, usage.month_of(int(value)))] = int(value)
    return found


# ---- the fields


def _text(read: Callable[[Row], Any]) -> Callable[[Row, Publisher], str]:
    return lambda row, publisher: words.line(str(read(row)))


def _count(read: Callable[[Row], Optional[float]]) -> Callable[[Row, Publisher], str]:
    """A whole number, rounded down, or nothing when it is not known."""

    def told(row: Row, publisher: Publisher) -> str:
        value = read(row)
        return "" if value is None else str(max(0, math.floor(value)))

    return told


def _vmuuid(row: Row, publisher: Publisher) -> str:
    """Unique in the world; one that is too long keeps its digest instead of its end."""
    whole = words.line(f"{row['segment']}@{row['host']}.{row['site']}", 10 * words.LONGEST)
    if len(whole) <= words.LONGEST:
        return whole
    return whole[: words.LONGEST - 65] + "-" + hashlib.sha256(whole.encode("ascii")).hexdigest()


def _machine(row: Row, publisher: Publisher) -> str:
    return words.line(str(row["name"])) or words.line(str(row["vm"]))


def _image(row: Row, publisher: Publisher) -> str:
    image = row["image"]
    return words.line(str(image["id"])) or words.line(str(image.get("sha512", ""))) or UNKNOWN_IMAGE


def _status(row: Row, publisher: Publisher) -> str:
    if usage.over(row):
        return "completed"
    return "suspended" if row["status"] == "suspended" else "started"


def _started(row: Row) -> int:
    return min(int(walltime.seconds(row["started_at"])), usage.measured_at(row))


def _ended(row: Row) -> Optional[int]:
    """Within the month that the row is of, so that its usage is booked there."""
    if not usage.over(row):
        return None
    ended = int(walltime.seconds(row.get("ended_at") or row["to"]))
    return max(_started(row), int(walltime.seconds(row["from"])), min(ended, usage.measured_at(row)))


def cores(row: Row) -> float:
    """Cores that the VM could use: those it has, or less by its cap."""
    footprint = row["footprint"]
    cap = footprint.get("cpu_cap_core_percent")
    return float(footprint["cores"]) if cap is None else min(float(footprint["cores"]), cap / 100)


def _cpu_duration(row: Row, publisher: Publisher) -> str:
    total = row["total"]
    seconds = total["cpu_s"] if publisher.cpu_duration == "used" else total["wall_s"] * cores(row)
    return "" if seconds is None else str(max(0, math.floor(seconds)))


def _decimal(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _gib(direction: str) -> Callable[[Row], Optional[int]]:
    """Local and external together, only then rounded, to the nearest."""

    def told(row: Row) -> Optional[int]:
        network: Optional[Mapping[str, int]] = row["total"]["network"]
        if network is None:
            return None
        whole: int = network[f"{direction}_local_bytes"] + network[f"{direction}_external_bytes"]
        return (whole + _GIB // 2) // _GIB

    return told


def _benchmark(row: Row) -> Mapping[str, Any]:
    return row["footprint"].get("benchmark") or {"name": "", "per_core": None}


FIELDS: Mapping[str, Callable[[Row, Publisher], str]] = {
    "VMUUID": _vmuuid,
    "SiteName": lambda row, publisher: words.line(publisher.site_name),
    "CloudComputeService": lambda row, publisher: words.line(publisher.cloud_service),
    "MachineName": _machine,
    "GlobalUserName": _text(lambda row: owners.user(row["owner"])),
    "FQAN": _text(lambda row: owners.fqan(row["owner"])),
    "Status": _status,
    "RecordCreateTime": _count(usage.measured_at),
    "StartTime": _count(_started),
    "EndTime": _count(_ended),
    "SuspendDuration": _count(lambda row: row["total"]["suspended_s"]),
    "WallDuration": _count(lambda row: row["total"]["wall_s"]),
    "CpuDuration": _cpu_duration,
    "CpuCount": lambda row, publisher: _decimal(cores(row)),
    "NetworkInbound": _count(_gib("in")),
    "NetworkOutbound": _count(_gib("out")),
    "PublicIPCount": _count(lambda row: len(row["footprint"].get("public_addresses", ()))),
    "Memory": _count(lambda row: row["footprint"]["memory_mib"]),
    "Disk": _count(lambda row: math.ceil(row["footprint"]["disk_gib"])),
    "BenchmarkType": lambda row, publisher: words.line(str(_benchmark(row)["name"]), _BENCHMARK_NAME),
    "Benchmark": lambda row, publisher: _decimal(_benchmark(row)["per_core"]) if _benchmark(row)["name"] else "",
    "ImageId": _image,
    "CloudType": lambda row, publisher: CLOUD_TYPE,
}
"""Every field that we send -> its text; "" = left out, which reads as not known."""


def of(rows: Iterable[Row], publisher: Publisher) -> Tuple[List[Record], List[str]]:
    """Records of the newest row of each segment and month, oldest first; and which rows could not be one, with why.

    The disk that an ended VM left behind is no VM: it is not told here.
    """
    found: Dict[usage.Key, Row] = {}
    wrong: List[str] = []
    for row in rows:
        try:
            if usage.runs(row):
                record(row, publisher)
                usage.keep_newest(found, row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            wrong.append(f"{row.get('segment')} period {row.get('period')}: {error!r}")
    return [record(row, publisher) for row in usage.ordered(found)], wrong
