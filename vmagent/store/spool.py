"""The outbox: sequences, rows waiting for the broker's receipt, and the bound on them.

Rules

1. A published row takes the next number of its (epoch, stream), from 1, in the transaction that appends it.
2. After a commit the outbox holds about `rows` rows and `bytes` bytes at most.  Past that, oldest first and down to
   9/10 of the bound, it drops: telemetry; capacity; states that a newer one of the same subject supersedes; other
   events; usage.  Replies go only past twice the bound.
3. Nothing is dropped silently.  Each contiguous range that is lost of a stream is announced on it by stream.gap.
   Replies have no sequence: their loss is a security.alert `replies-lost` with the count.  Rows of a former epoch are
   only logged: the end of a lost or restored epoch is never provably complete.
4. Announcements are not dropped, but when their stream loses more, the new ones take the place of those still waiting:
   they tell the same ranges, and the replaced ones' own sequence numbers, too.  So they grow instead of piling up.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from dataclasses import dataclass
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Sequence, Tuple

from vmagent.core import events
from vmagent.core.changes import Epoch, OutboxRow, Publish, SendReply
from vmagent.core.codec import canonical
from vmagent.core.model import Now

log = logging.getLogger("vmagent.store")
GAP, ALERT = (events.PREFIX + name for name in ("stream.gap", "security.alert"))
WHOLE_STATES = tuple(events.PREFIX + name for name in ("vm.state", "host.state", "host.snapshot"))
OVERHEAD_BYTES = 200  # a row's own cost beside its texts: columns, indexes

_SUPERSEDED = (
    f"type IN ({', '.join(repr(t) for t in WHOLE_STATES)}) AND EXISTS (SELECT 1 FROM outbox AS newer"
    " WHERE newer.type = outbox.type AND newer.subject = outbox.subject AND newer.row > outbox.row)"
)
_ORDER = ("stream = 'telemetry'", "stream = 'capacity'", _SUPERSEDED, "stream = 'events'", "stream = 'usage'")
_REPLIES = "stream = 'replies'"

Range = Tuple[int, int]  # first and last sequence
Lost = Dict[Tuple[str, str], List[int]]  # (epoch, stream) -> sequences


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

    def hold_bound(self, epoch: Epoch, now: Now) -> None:
        """Rules 2 to 4.  now: the announcements' time."""
        while self._over(1.0):
            lost: Lost = {}
            for which in _ORDER:
                self._sweep(which, 0.9, lost)
            if not lost:
                break
            self._announce(epoch, lost, now)
        if self._over(2.0):
            self._drop_replies(epoch, now)

    def _announce(self, epoch: Epoch, lost: Lost, now: Now) -> None:
        for (life, stream), sequences in lost.items():
            log.error("spool full: %d messages of stream %s dropped", len(sequences), stream)
            if life != epoch.id:
                continue
            for first, last in merged([*((n, n) for n in sequences), *self._taken_back(epoch, stream)]):
                data = events.stream_gap(stream, first, last, "spool full", now)
                self.publish(epoch, Publish(stream, GAP, "host", now.wall, data))

    def _taken_back(self, epoch: Epoch, stream: str) -> Iterator[Range]:
        """Remove what is announced on this stream and still waits: its ranges, and those it was itself."""
        found = self._connection.execute(
            "SELECT row, bytes, sequence, data FROM outbox WHERE type = ? AND stream = ? AND epoch = ?",
            (GAP, stream, epoch.id),
        )
        for row, size, sequence, text in found.fetchall():
            self._remove(row, size)
            data = json.loads(text)
            yield data["first"], data["last"]
            yield sequence, sequence

    def _drop_replies(self, epoch: Epoch, now: Now) -> None:
        lost: Lost = {}
        self._sweep(_REPLIES, 1.8, lost)
        count = sum(len(rows) for rows in lost.values())
        if count == 0:
            return
        detail = f"{count} replies could not be delivered and were dropped: the spool is full"
        log.error("%s", detail)
        data = events.security_alert(kind="replies-lost", detail=detail, now=now, count=count)
        self.publish(epoch, Publish("events", ALERT, "host", now.wall, data))

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
                lost.setdefault((epoch, stream), []).append(sequence)


def merged(ranges: Iterable[Range]) -> List[Range]:
    """The same numbers in as few ranges as possible, ascending."""
    out: List[Range] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return out
