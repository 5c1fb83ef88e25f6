"""Reading the book: what stands in the collector's database, for people and programs.  Nothing is changed here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from vmagent.core import walltime
from vmagent.site.database import Database
from vmagent.site.fleet import host_of

Json = Dict[str, Any]


@dataclass(frozen=True)
class Latest:
    """The newest message of a kind of one host.  at: when it was published, RFC 3339."""

    host: str
    at: str
    data: Mapping[str, Any]


def latest(database: Database, kind: str) -> List[Latest]:
    """Of `host.state`, `host.capacity`, and every part of `host.telemetry`; by host."""
    rows = database.rows("SELECT host, at, data FROM latest WHERE kind = ? OR kind LIKE ? ORDER BY host, kind",
                         (kind, f"{kind}.%"))
    return [Latest(host, at, json.loads(data)) for host, at, data in rows]


def states(database: Database, gone: bool = False) -> List[Tuple[str, Mapping[str, Any]]]:
    """(host, data of vm.state), ordered by host and name; gone: those that are no more, too."""
    rows = database.rows("SELECT host, data FROM vms WHERE gone <= ?", (int(gone),))
    found = [(str(host), json.loads(data)) for host, data in rows]
    return sorted(found, key=lambda one: (one[0], str(one[1].get("name")), str(one[1]["vm"])))


def row(host: str, state: Mapping[str, Any], now_s: float) -> Json:
    """One VM in short, from its vm.state: the members and words of `vmagentctl list --json`, and its host.

    now_s: the wall clock; left_s and age_s are counted from it.
    """
    owner, lease = state.get("owner") or {}, state.get("lease") or {}
    seen, ends = state.get("observed_at"), lease.get("ends_at")
    same = ("vm", "name", "phase", "desired", "outcome", "controller", "cores", "memory_mib", "disk_gib", "tags",
            "since")  # fmt: skip
    return {
        "host": host,
        **{name: state.get(name) for name in same},
        "owner": owner.get("subject"),
        "vo": owner.get("vo"),
        "image": (state.get("image") or {}).get("id"),
        "addresses": [one for interface in state.get("interfaces") or () for one in interface.get("addresses") or ()],
        "left_s": None if state.get("outcome") else _until(ends, now_s),
        "age_s": None if seen is None else round(max(0.0, now_s - walltime.seconds(seen)), 1),
        "why": state.get("reason"),
    }


def _until(at: Optional[str], now_s: float) -> Optional[int]:
    return None if at is None else max(0, round(walltime.seconds(at) - now_s))


def completeness(database: Database) -> Json:
    """{missing: [{host, stream, epoch, numbers: [[first, last]]}], lost, healed, aside}: what the book lacks."""
    rows = database.rows("SELECT source, stream, number, missing, lost, healed FROM tracks "
                         "ORDER BY source, number, stream")
    missing = [{"host": host_of({"source": source}), "stream": stream, "epoch": number, "numbers": json.loads(text)}
               for source, stream, number, text, _, _ in rows if json.loads(text)]
    ((aside,),) = database.rows("SELECT count(*) FROM aside")
    return {"missing": missing, "lost": sum(int(one[4]) for one in rows), "healed": sum(int(one[5]) for one in rows),
            "aside": int(aside)}


def periods(database: Database, before: str, vo: str = "") -> List[Mapping[str, Any]]:
    """Data of every vm.usage that began before this time, of one VO or all; by segment and number."""
    which: Sequence[Any] = (before, vo, vo)
    rows = database.rows("SELECT data FROM periods WHERE began < ? AND (? = '' OR vo = ?) ORDER BY segment, number",
                         which)
    return [json.loads(data) for (data,) in rows]
