"""What the events of a site said, on disk: the streams' completeness, the newest states, every period of use once.

Rules
  - The book is a function of the events alone, in whatever order and however often they came: states are ordered by
    (epoch number, sequence), and newer means greater; a snapshot ends what it does not name (fleet.py says the same in
    memory).  Streams `events` and `usage` are counted (collector.py); of capacity and telemetry only the newest counts.
  - One batch of frames is one transaction; nothing is remembered outside the database, so a batch that failed is
    simply taken again.  Only after that may a frame be acknowledged.
  - A frame that nobody can understand is set aside in words, once, never dropped silently and never waited for; so is
    a period of use that comes again with another content: the first one counts.
Synchronous; reads no clock: times are those of the events.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Sequence, Set, Tuple

from vmagent.core import schemas, strictjson, walltime
from vmagent.errors import Problem
from vmagent.site.collector import Collector
from vmagent.site.database import Database
from vmagent.site.fleet import PREFIX, host_of
from vmagent.site.settings import LARGEST_EVENT_KIB

COUNTED = ("events", "usage")
"""Streams that lose nothing silently; the others expire on their way, and their newest message is all that matters."""
KEPT_GONE_S = 90 * 86400
MOST_ASIDE = 10_000
MOST_PARTS = 1000  # of one host's telemetry
_NEWER = "(excluded.epoch, excluded.sequence) > ({0}.epoch, {0}.sequence)"
Event = Mapping[str, Any]


@dataclass
class Heard:
    """What a batch of frames was.  aside: why each of those that were not understood was not."""

    new: int = 0
    duplicates: int = 0
    healed: int = 0
    aside: List[str] = field(default_factory=list)


class Book:
    """Writes.  All reading for people is in shelf.py."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, bodies: Sequence[bytes]) -> Heard:
        """Everything in one transaction.  Fault: nothing of it is written."""
        heard = Heard()
        with self._database.transaction():
            events = [event for body in bodies for event in self._read(body, heard)]
            for source in sorted({str(event["source"]) for event in events}):
                self._take(source, [event for event in events if event["source"] == source], heard)
        return heard

    def lacking(self) -> Tuple[str, ...]:
        """Hosts of which states are missing: a snapshot would heal them."""
        found = self._database.rows("SELECT DISTINCT source FROM tracks WHERE stream = 'events' AND missing <> '[]'")
        return tuple(sorted(host_of({"source": source}) for (source,) in found))

    def empty(self) -> bool:
        """Whether nothing was ever heard."""
        return not self._database.rows("SELECT 1 FROM latest LIMIT 1")

    # -- reading frames

    def _read(self, body: bytes, heard: Heard) -> List[Event]:
        try:
            event = strictjson.loads(body, LARGEST_EVENT_KIB * 1024)
            schemas.check("cloudevent", event)
            host_of(event)
            _usable(event)
        except (Problem, LookupError, TypeError, ValueError) as error:
            self._aside(f"{type(error).__name__}: {error}", body, "", heard)
            return []
        return [event]

    def set_aside(self, body: bytes, why: str) -> None:
        """For a frame that the database itself does not take."""
        with self._database.transaction():
            self._aside(why, body, "", Heard())

    def _aside(self, why: str, body: bytes, at: str, heard: Heard) -> None:
        heard.aside.append(why)
        text = body.decode("utf-8", "replace").replace("\0", "\ufffd")
        self._database.run("INSERT INTO aside (id, at, why, body) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
                           (hashlib.sha256(body).hexdigest(), at, why.replace("\0", "\ufffd"), text))
        ((count,),) = self._database.rows("SELECT count(*) FROM aside")
        if count > MOST_ASIDE:
            self._database.run("DELETE FROM aside WHERE id IN (SELECT id FROM aside ORDER BY at, id LIMIT ?)",
                               (count - MOST_ASIDE,))

    # -- one host's events

    def _take(self, source: str, events: Sequence[Event], heard: Heard) -> None:
        collector = self._collector(source)
        healed: Dict[Tuple[str, str], int] = {}
        for event in events:
            if event["stream"] in COUNTED:
                if not collector.take(event).new:
                    heard.duplicates += 1
                    continue
                if event["type"] == PREFIX + "host.snapshot":
                    count = collector.heal(event)
                    heard.healed += count
                    key = (str(event["epoch"]), str(event["stream"]))
                    healed[key] = healed.get(key, 0) + count
            heard.new += 1
            self._apply(event, heard)
        self._keep(source, collector, healed)

    def _collector(self, source: str) -> Collector:
        rows = self._database.rows("SELECT epoch, stream, number, first, last, missing, lost FROM tracks "
                                   "WHERE source = ?", (source,))
        return Collector([
            {"source": source, "epoch": epoch, "stream": stream, "number": number, "first": first, "last": last,
             "missing": [n for low, high in json.loads(missing) for n in range(low, high + 1)], "lost": lost}
            for epoch, stream, number, first, last, missing, lost in rows
        ])

    def _keep(self, source: str, collector: Collector, healed: Mapping[Tuple[str, str], int]) -> None:
        for one in collector.positions():
            count = healed.get((one["epoch"], one["stream"]), 0)
            self._database.run(
                "INSERT INTO tracks (source, epoch, stream, number, first, last, missing, lost, healed) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (source, epoch, stream) DO UPDATE SET "
                "first = excluded.first, last = excluded.last, missing = excluded.missing, lost = excluded.lost, "
                "healed = tracks.healed + excluded.healed",
                (source, one["epoch"], one["stream"], one["number"], one["first"], one["last"],
                 json.dumps(ranges(one["missing"])), one["lost"], count))

    def _apply(self, event: Event, heard: Heard) -> None:
        kind, host = str(event["type"])[len(PREFIX):], host_of(event)
        if kind == "vm.state":
            self._state(host, event)
        elif kind == "host.snapshot":
            self._snapshot(host, event)
        elif kind == "vm.usage":
            self._usage(host, event, heard)
        elif kind == "host.state":
            self._latest(host, kind, event, event["data"])
        elif kind == "host.capacity":
            self._capacity(host, event, event["data"])
        elif kind == "host.telemetry":
            self._latest(host, f"{kind}.{event['data']['part']}", event, event["data"])

    # -- states

    def _capacity(self, host: str, event: Event, data: Mapping[str, Any]) -> None:
        """It comes on its own stream and in snapshots, whose numbers say nothing of each other: its own time does."""
        told_ms = round(walltime.seconds(data["at"]) * 1000)
        self._latest(host, "host.capacity", {**event, "sequence": told_ms}, data)

    def _latest(self, host: str, kind: str, event: Event, data: Any) -> None:
        self._database.run(
            "INSERT INTO latest (host, kind, epoch, sequence, at, data) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (host, kind) DO UPDATE SET epoch = excluded.epoch, sequence = excluded.sequence, "
            f"at = excluded.at, data = excluded.data WHERE {_NEWER.format('latest')}",
            (host, kind, *position(event), event["time"], json.dumps(data)))

    def _at(self, host: str, kind: str) -> Tuple[int, int]:
        rows = self._database.rows("SELECT epoch, sequence FROM latest WHERE host = ? AND kind = ?", (host, kind))
        return (int(rows[0][0]), int(rows[0][1])) if rows else (-1, -1)

    def _state(self, host: str, event: Event) -> None:
        held = self._database.rows("SELECT 1 FROM vms WHERE host = ? AND vm = ?", (host, event["data"]["vm"]))
        if held or position(event) > self._at(host, "host.snapshot"):
            self._vm(host, event, event["data"])

    def _vm(self, host: str, event: Event, data: Mapping[str, Any]) -> None:
        self._database.run(
            "INSERT INTO vms (host, vm, epoch, sequence, at, gone, data) VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (host, vm) DO UPDATE SET epoch = excluded.epoch, sequence = excluded.sequence, "
            f"at = excluded.at, gone = excluded.gone, data = excluded.data WHERE {_NEWER.format('vms')}",
            (host, str(data["vm"]), *position(event), event["time"], int(bool(data.get("closed"))), json.dumps(data)))

    def _snapshot(self, host: str, event: Event) -> None:
        here, data = position(event), event["data"]
        if here <= self._at(host, "host.snapshot"):
            return
        self._latest(host, "host.snapshot", event, {})
        self._latest(host, "host.state", event, data["host"])
        if data.get("capacity"):
            self._capacity(host, event, data["capacity"])
        named: Set[str] = set()
        for state in data["vms"]:
            named.add(str(state["vm"]))
            self._vm(host, event, state)
        older = self._database.rows("SELECT vm FROM vms WHERE host = ? AND gone = 0 AND (epoch, sequence) < (?, ?)",
                                    (host, *here))
        for (vm,) in older:
            if vm not in named:
                self._database.run("UPDATE vms SET gone = 1, epoch = ?, sequence = ?, at = ? WHERE host = ? AND vm = ?",
                                   (*here, event["time"], host, vm))
        kept = walltime.text(walltime.seconds(event["time"]) - KEPT_GONE_S)
        self._database.run("DELETE FROM vms WHERE host = ? AND gone = 1 AND at < ?", (host, kept))

    # -- use

    def _usage(self, host: str, event: Event, heard: Heard) -> None:
        segment, number, vo, began, ended = _period(event)
        data = json.dumps(event["data"], sort_keys=True)
        held = self._database.rows("SELECT data FROM periods WHERE segment = ? AND number = ?", (segment, number))
        if held and held[0][0] != data:
            why = f"period {number} of {segment} came again with another content; the first one counts"
            self._aside(why, json.dumps(event).encode(), event["time"], heard)
        elif not held:
            self._database.run(
                "INSERT INTO periods (segment, number, host, vm, vo, began, ended, data) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (segment, number, host, str(event["data"]["vm"]), vo, began, ended, data))


def position(event: Event) -> Tuple[int, int]:
    """(epoch number, sequence): what comes later is greater."""
    return int(event["epochnumber"]), int(event["sequence"])


def ranges(numbers: Sequence[int]) -> List[List[int]]:
    """Ascending numbers as [first, last] pairs."""
    found: List[List[int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def _usable(event: Event) -> None:
    """ValueError, KeyError or TypeError unless its data has what is needed here; everything else is the reader's."""
    kind, data = str(event["type"])[len(PREFIX):], event["data"]
    walltime.seconds(event["time"])
    states: List[Mapping[str, Any]] = [data] if kind == "vm.state" else []
    if kind == "vm.usage":
        _period(event)
    elif kind == "stream.gap":
        if not isinstance(data["stream"], str) or not 0 < int(data["first"]) <= int(data["last"]):
            raise ValueError("a gap has a stream and goes from `first` to `last`")
    elif kind == "host.snapshot":
        states = data["vms"]
        if not isinstance(data["host"], dict):
            raise ValueError("a snapshot has the host's state")
        if data.get("capacity"):
            walltime.seconds(data["capacity"]["at"])
    elif kind == "host.capacity":
        walltime.seconds(data["at"])
    elif kind == "host.telemetry":
        walltime.seconds(data["to"])
        states = data["vms"]
        if not isinstance(data["part"], int) or not 1 <= data["part"] <= MOST_PARTS:
            raise ValueError(f"part must be a number from 1 to {MOST_PARTS}")
    if any(not isinstance(state["vm"], str) or not state["vm"].isprintable() for state in states):
        raise ValueError("vm must be a printable text")


def _period(event: Event) -> Tuple[str, int, str, str, str]:
    """(segment, number, VO, from, to) of a vm.usage.  Errors when it is not one."""
    data = event["data"]
    segment, number, vo = data["segment"], data["period"], data["owner"]["vo"]
    if not isinstance(segment, str) or not segment.isprintable() or not isinstance(vo, str) or not vo.isprintable():
        raise ValueError("segment and owner.vo must be printable texts")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError("period must be a number from 1 on")
    if walltime.seconds(data["to"]) < walltime.seconds(data["from"]) or not isinstance(data["used"], dict):
        raise ValueError("a period has `from`, a later `to` and `used`")
    return segment, number, vo, data["from"], data["to"]
