"""The outbox: sequences, rows waiting for the broker's receipt, and the bound on them.

Rules

1. A published row takes the next number of its (epoch, stream), from 1, in the transaction that appends it.
2. After a commit the outbox holds about `rows` rows and `bytes` bytes at most.  Past that, oldest first and down to
   9/10 of the bound, it drops: telemetry; capacity; states that a newer one of the same subject supersedes; other
   events; usage.  Replies go only past twice the bound.
3. Nothing is dropped silently.  What is lost of one (epoch, stream) is announced on that stream by
   org.vmagent.stream.gap (at most RANGES ranges each):
   {"stream", "epoch", "from", "to", "count", "ranges", "why": "spool-full"}; `count` messages within from..to are lost,
   exactly those of `ranges` ([[from, to], ...]).  Replies have no sequence: theirs is told on `events`, from = to = 0.
4. Announcements are not dropped, but when their stream loses more, the new one takes the place of those still waiting:
   it tells their ranges, and their own sequence numbers, too.  So they never pile up, and may tell a loss twice.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from dataclasses import dataclass
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Sequence, Tuple

from vmagent.core.changes import Epoch, OutboxRow, Publish, SendReply
from vmagent.core.codec import canonical

log = logging.getLogger("vmagent.store")
GAP = "org.vmagent.stream.gap"
WHOLE_STATES = ("org.vmagent.vm.state", "org.vmagent.host.state", "org.vmagent.host.snapshot")
RANGES = 200  # in one announcement
OVERHEAD_BYTES = 200  # a row's own cost beside its texts: columns, indexes

_SUPERSEDED = (
    f"type IN ({', '.join(repr(t) for t in WHOLE_STATES)}) AND EXISTS (SELECT 1 FROM outbox AS newer"
    " WHERE newer.type = outbox.type AND newer.subject = outbox.subject AND newer.row > outbox.row)"
)
_ORDER = ("stream = 'telemetry'", "stream = 'capacity'", _SUPERSEDED, "stream = 'events'", "stream = 'usage'")
_REPLIES = "stream = 'replies'"

Ranges = List[Tuple[int, int]]
Lost = Dict[Tuple[str, str], Ranges]  # (epoch, stream) -> sequences; replies have none: one (0, 0) each


@dataclass
class Totals:
    """What the outbox holds; kept in memory because counting rows on every commit would read them all."""

    rows: int = 0
    bytes: int = 0


class Spool:
    """The outbox table; every method runs inside the caller's transaction, in the store's thread."""

    def __init__(self, connection: sqlite3.Connection, rows: int, bytes: int) -> None:
        self._connection = connection
        self._rows = rows
        self._bytes = bytes
        self.totals = Totals(*connection.execute("SELECT count(*), ifnull(sum(bytes), 0) FROM outbox").fetchone())

    def publish(self, epoch: Epoch, message: Publish) -> None:
        key = (epoch.id, message.stream)
        self._connection.execute(
            "INSERT INTO sequences VALUES (?, ?, 1) ON CONFLICT (epoch, stream) DO UPDATE SET last = last + 1", key
        )
        (sequence,) = self._connection.execute(
            "SELECT last FROM sequences WHERE epoch = ? AND stream = ?", key
        ).fetchone()
        self._append(
            message.stream, sequence, epoch, "", message.type, message.subject, message.time_wall, message.data
        )

    def reply(self, epoch: Epoch, reply: SendReply) -> None:
        self._append("replies", 0, epoch, reply.destination, "", "", "", reply.body)

    def _append(
        self, stream: str, sequence: int, epoch: Epoch, destination: str, type: str, subject: str, time_wall: str,
        data: Mapping[str, Any],
    ) -> None:  # fmt: skip
        text = canonical(data)
        size = OVERHEAD_BYTES + len(text) + len(subject) + len(destination)
        self._connection.execute(
            "INSERT INTO outbox (stream, sequence, epoch, destination, type, subject, time_wall, data, bytes)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (stream, sequence, epoch.id, destination, type, subject, time_wall, text, size),
        )
        self.totals.rows += 1
        self.totals.bytes += size

    def delivered(self, rows: Sequence[int]) -> None:
        """Forget these; rows that were dropped meanwhile are nothing new."""
        for row in rows:
            found = self._connection.execute("SELECT bytes FROM outbox WHERE row = ?", (row,)).fetchone()
            if found is not None:
                self._remove(row, found[0])

    def _remove(self, row: int, size: int) -> None:
        self._connection.execute("DELETE FROM outbox WHERE row = ?", (row,))
        self.totals.rows -= 1
        self.totals.bytes -= size

    def waiting(self, after: int, limit: int) -> Tuple[OutboxRow, ...]:
        found = self._connection.execute(
            "SELECT row, stream, sequence, epoch, number, destination, type, subject, time_wall, data"
            " FROM outbox JOIN epochs ON epochs.id = outbox.epoch WHERE row > ? ORDER BY row LIMIT ?",
            (after, limit),
        )
        rows: List[List[Any]] = [[*row[:-1], json.loads(row[-1])] for row in found.fetchall()]
        return tuple(OutboxRow(*row) for row in rows)

    def sequences(self, epoch: Epoch) -> Dict[str, int]:
        found = self._connection.execute("SELECT stream, last FROM sequences WHERE epoch = ?", (epoch.id,))
        return dict(found.fetchall())

    def hold_bound(self, epoch: Epoch, wall: str) -> None:
        """Rules 2 to 4.  wall: the announcement's time."""
        if not self._over(1.0):
            return
        lost: Lost = {}
        for which in _ORDER:
            self._sweep(which, 0.9, lost)
        if self._over(2.0):
            self._sweep(_REPLIES, 1.8, lost)
        while self._absorb_announcements(lost):
            pass
        for message in _announcements(lost, wall):
            log.error("spool full: messages of stream %(stream)s are lost, %(from)d to %(to)d", message.data)
            self.publish(epoch, message)

    def _over(self, factor: float) -> bool:
        return self.totals.rows > factor * self._rows or self.totals.bytes > factor * self._bytes

    def _sweep(self, which: str, down_to: float, lost: Lost) -> None:
        """Drop the oldest of these until the bound is kept or none is left."""
        while self._over(down_to):
            found = self._connection.execute(
                "SELECT row, bytes, epoch, stream, sequence FROM outbox"
                f" WHERE {which} AND type <> ? ORDER BY row LIMIT 500",
                (GAP,),
            ).fetchall()
            if not found:
                return
            for row, size, epoch, stream, sequence in found:
                if not self._over(down_to):
                    return
                self._remove(row, size)
                lost.setdefault((epoch, stream), []).append((sequence, sequence))

    def _absorb_announcements(self, lost: Lost) -> bool:
        """Rule 4: take back what was announced about streams that lost more; False when there was nothing."""
        found = self._connection.execute(
            "SELECT row, bytes, epoch, stream, sequence, data FROM outbox WHERE type = ?", (GAP,)
        ).fetchall()
        absorbed = False
        for row, size, epoch, stream, sequence, text in found:
            data = json.loads(text)
            about = (data["epoch"], data["stream"])
            if about not in lost:
                continue
            self._remove(row, size)
            ranges = [(low, high) for low, high in data["ranges"]]
            lost[about] += ranges * data["count"] if data["stream"] == "replies" else ranges
            lost.setdefault((epoch, stream), []).append((sequence, sequence))
            absorbed = True
        return absorbed


def merged(ranges: Iterable[Tuple[int, int]]) -> Ranges:
    """The same numbers in as few ranges as possible, ascending."""
    out: Ranges = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return out


def _announcements(lost: Lost, wall: str) -> Iterator[Publish]:
    for (epoch, stream), ranges in lost.items():
        if stream == "replies":
            yield _gap("events", stream, epoch, [(0, 0)], len(ranges), wall)
            continue
        whole = merged(ranges)
        for start in range(0, len(whole), RANGES):
            part = whole[start : start + RANGES]
            yield _gap(stream, stream, epoch, part, sum(high - low + 1 for low, high in part), wall)


def _gap(on: str, stream: str, epoch: str, ranges: Ranges, count: int, wall: str) -> Publish:
    data = {
        "stream": stream,
        "epoch": epoch,
        "from": ranges[0][0],
        "to": ranges[-1][1],
        "count": count,
        "ranges": [list(r) for r in ranges],
        "why": "spool-full",
    }
    return Publish(on, GAP, "host", wall, data)
