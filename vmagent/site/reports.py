"""Sub-commands that read the collector's database; they ask nobody and change nothing.

`READERS` is the whole list; each is called with the open database and returns an exit code.
"""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import dataclass
from typing import Any, Callable, List, Mapping, Sequence, TextIO

from vmagent.core import columns, duration, walltime
from vmagent.errors import Problem
from vmagent.site import accounts, busy, gluing, output, shelf, stock
from vmagent.site.commands import Code
from vmagent.site.database import Database

HOUR_S = 3600.0
GB = 1e9
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Reading:
    """One run of a command that reads.  wall_s: the wall clock, seconds since 1970; hosts: of the configuration."""

    said: argparse.Namespace
    database: Database
    hosts: Sequence[str]
    wall_s: Callable[[], float]
    out: TextIO
    err: TextIO
    pause: Callable[[float], None] = time.sleep  # between two looks

    def tell(self, text: str) -> None:
        self.err.write(f"vmagent-site: {columns.clean(text)}\n")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], none: str) -> None:
        self.out.write("\n".join(columns.lines(header, rows)) + "\n" if rows else f"{none}\n")


def check(said: argparse.Namespace) -> None:
    """Problem `usage` when options do not go together."""
    if said.verb == "list" and (said.ended or said.database) and not said.collected:
        raise Problem("usage", "--ended and --database go with --collected: hosts that are asked have neither")
    if said.verb == "usage" and said.csv and said.json:
        raise Problem("usage", "give one of --csv and --json")


# -- list --collected


def listing(run: Reading) -> int:
    """`list --collected`: the newest state of every VM, as events told it."""
    now = run.wall_s()
    rows = [shelf.row(host, state, now) for host, state in shelf.states(run.database, run.said.ended)]
    lacks = shelf.completeness(run.database)
    if run.said.json:
        output.as_json(run.out, {"vms": rows, **lacks})
        return Code.OK
    header = ("HOST", "ID", "NAME", "PHASE", "LEASE", "OWNER", "IMAGE", "SEEN")
    run.table(header, [_cells(row) for row in rows], "no VMs")
    for one in lacks["missing"]:
        run.tell(f"{one['host']}: {one['stream']} {_numbers(one['numbers'])} did not come")
    return Code.OK


def _cells(row: Mapping[str, Any]) -> List[str]:
    phase = f"{row['phase']} ({row['outcome']})" if row["outcome"] else str(row["phase"])
    left = "" if row["left_s"] is None else f"{duration.text(row['left_s'])} left"
    seen = "never" if row["age_s"] is None else f"{duration.text(row['age_s'])} ago"
    return [row["host"], row["vm"], str(row["name"] or ""), phase, left, str(row["owner"] or ""),
            str(row["image"] or ""), seen]


def _numbers(pairs: List[List[int]]) -> str:
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in pairs)


# -- usage


def usage(run: Reading) -> int:
    """What was used in a month; 1 when some of it is known to be missing."""
    said, now = run.said, run.wall_s()
    month = said.month or accounts.month_of(now)
    try:
        _, end = accounts.month_bounds(month)
    except ValueError as error:
        raise Problem("usage", str(error), path="--month") from None
    periods = shelf.periods(run.database, walltime.text(end), said.vo or "")
    rows = accounts.sums(periods, month, said.by)
    missing = accounts.missing(shelf.periods(run.database, "9999", said.vo or ""), month, now)
    holes = [one for one in shelf.completeness(run.database)["missing"] if one["stream"] == "usage"]
    if said.json:
        output.as_json(run.out, {"month": month, "by": said.by, "rows": rows, "total": accounts.total(rows),
                                 "missing": missing, "lost_messages": holes})
    elif said.csv:
        _csv(run.out, rows, said.by)
    else:
        _usage(run, rows, said.by)
    _tell_missing(run, rows, missing, holes)
    return Code.FAILED if missing or holes else Code.OK


def _csv(out: TextIO, rows: Sequence[Json], by: str) -> None:
    """Base units: seconds, bytes, MiB and GiB times seconds."""
    names = [*accounts.BY[by], "vms", "periods", *accounts.SUMS, "unmeasured"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([" ".join(row[name]) if name == "unmeasured" else _inert(row[name]) for name in names])


def _inert(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula is not one."""
    return "'" + value if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


USAGE_HEADER = ("VMS", "WALL h", "CORE h", "CPU h", "MEMORY GiB h", "DISK GiB h", "IN GB", "OUT GB")


def _usage(run: Reading, rows: Sequence[Json], by: str) -> None:
    header = (*(name.upper() for name in accounts.BY[by]), *USAGE_HEADER)
    cells = [[*(str(row[name]) for name in accounts.BY[by]), *_amounts(row, str(row["vms"]))] for row in rows]
    if len(rows) > 1:
        whole = accounts.total(rows)
        cells.append(["all", *[""] * (len(accounts.BY[by]) - 1), *_amounts(whole, str(sum(r["vms"] for r in rows)))])
    run.table(header, cells, "no use")


def _amounts(row: Json, vms: str) -> List[str]:
    incoming, outgoing = (row[f"{way}_local_bytes"] + row[f"{way}_external_bytes"] for way in ("in", "out"))
    return [vms, *(f"{row[name] / HOUR_S:.2f}" for name in ("wall_s", "core_s", "cpu_s")),
            f"{row['memory_mib_s'] / 1024 / HOUR_S:.2f}", f"{row['disk_gib_s'] / HOUR_S:.2f}",
            f"{incoming / GB:.3f}", f"{outgoing / GB:.3f}"]


def _tell_missing(run: Reading, rows: Sequence[Json], missing: Sequence[Json], holes: Sequence[Json]) -> None:
    for one in missing:
        what = "nothing came since" if one["numbers"] is None else \
            f"period {_numbers([one['numbers']])} did not come: the use from"
        run.tell(f"{one['segment']} on {one['host']}: {what} {one['from']}"
                 + ("" if one["numbers"] is None else f" to {one['to']}"))
    for one in holes:
        run.tell(f"{one['host']}: messages {_numbers(one['numbers'])} of its use did not come")
    unmeasured = sorted({name for row in rows for name in row["unmeasured"]})
    if unmeasured:
        run.tell(f"not measured everywhere, and then counted as nothing: {', '.join(unmeasured)}")


# -- capacity


def capacity(run: Reading) -> int:
    """What the site can take; 1 when a host's answer is too old, or there is none."""
    now = run.wall_s()
    found = stock.site(shelf.latest(run.database, "host.capacity"), shelf.latest(run.database, "host.state"),
                       run.hosts, now)
    if run.said.json:
        output.as_json(run.out, found)
    else:
        rows = [_stock(one["host"], one, "full" if one["full"] else f"{duration.text(one['age_s'])} ago")
                for one in found["hosts"]]
        rows.append(_stock("all", found["total"], ""))
        run.table(("HOST", "VMS", "CORES free/total", "MEMORY GiB free/total", "DISK GiB free/total", "TOLD"), rows, "")
        more = ", ".join(f"{count} x {name}" for name, count in found["flavours"].items())
        run.out.write(columns.clean(f"can be started now: {more or 'no flavour is known'}") + "\n")
    for text in stock.reasons(found["hosts"]):
        run.tell(text)
    for one in found["stale"]:
        run.tell(f"{one['host']}: what it told is {duration.text(one['age_s'])} old and not counted")
    for host in found["silent"]:
        run.tell(f"{host}: never told its capacity")
    return Code.FAILED if found["stale"] or found["silent"] or not found["hosts"] else Code.OK


def _stock(name: str, one: Json, told: str) -> List[str]:
    def pair(what: str, unit: int = 1) -> str:
        return f"{one[what]['free'] // unit}/{one[what]['total'] // unit}"

    return [name, str(one["vms"]), pair("cores"), pair("memory_mib", 1024), pair("disk_gib"), told]


def glue(run: Reading) -> int:
    """The site's GLUE document, of what the collector has."""
    told = shelf.latest(run.database, "host.capacity")
    shares = {one.host: one.data["glue"] for one in told if one.data.get("glue")}
    whole = gluing.write(run.said, shares, run.hosts, run.wall_s(), run.out, run.tell)
    return Code.OK if whole else Code.FAILED


# -- top


def top(run: Reading) -> int:
    """Again and again until interrupted; with --once one look."""
    while True:
        now = run.wall_s()
        rows = busy.rows(shelf.states(run.database), shelf.latest(run.database, "host.telemetry"), now)
        if run.said.json:
            output.as_json(run.out, {"at": walltime.text(now), "vms": rows})
        else:
            run.out.write(CLEAR if run.out.isatty() and not run.said.once else "")
            run.table(TOP_HEADER, [_busy(row) for row in rows], "no VMs")
            run.out.flush()
        if run.said.once:
            return Code.OK
        run.pause(run.said.interval)


TOP_HEADER = ("HOST", "ID", "NAME", "PHASE", "VO", "CPU %", "PEAK %", "WAIT %", "MEMORY MiB", "READ B/s", "WRITE B/s",
              "IN B/s", "OUT B/s", "TOLD")
CLEAR = "\x1b[H\x1b[2J"


def _busy(row: Json) -> List[str]:
    names = ("cpu_percent", "cpu_peak_percent", "delay_percent", "memory_mib", "read_bytes_per_s", "write_bytes_per_s",
             "in_bytes_per_s", "out_bytes_per_s")
    numbers = ["" if row[name] is None else f"{row[name]:.1f}" if "percent" in name else f"{row[name]:.0f}"
               for name in names]
    told = "never" if row["told_s"] is None else f"{duration.text(row['told_s'])} ago"
    texts = [str(row[name] or "") for name in ("host", "vm", "name", "phase", "vo")]
    return [*texts, *numbers, told]


READERS: Mapping[str, Callable[[Reading], int]] = {
    "list": listing,
    "usage": usage,
    "capacity": capacity,
    "glue": glue,
    "top": top,
}
