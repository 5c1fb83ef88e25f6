"""The audit trail: complete for authenticated commands, a ring for unauthenticated refusals.

A ring, because whoever can reach the broker could otherwise fill the disk.  Pruned by age (`Database.prune`).
"""

from __future__ import annotations

import sqlite3
from typing import Any, Mapping, Tuple

from vmagent.core.changes import PutAudit

RING = 10_000  # bounded rows kept
_COLUMNS = ("when_wall", "who", "route", "verb", "subject", "verdict", "why", "command", "bounded")


class AuditTrail:
    """The audit table; runs inside the caller's transaction, in the store's thread."""

    def __init__(self, connection: sqlite3.Connection, ring: int = RING) -> None:
        self._connection = connection
        self._ring = ring
        (self.bounded,) = connection.execute("SELECT count(*) FROM audit WHERE bounded = 1").fetchone()

    def append(self, entry: PutAudit) -> None:
        self._connection.execute(
            f"INSERT INTO audit ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})",
            tuple(getattr(entry, name) for name in _COLUMNS),
        )
        if entry.bounded:
            self.bounded += 1
            self._turn()

    def _turn(self) -> None:
        over = self.bounded - self._ring
        if over > 0:
            self._connection.execute(
                "DELETE FROM audit WHERE row IN (SELECT row FROM audit WHERE bounded = 1 ORDER BY row LIMIT ?)", (over,)
            )
            self.bounded = self._ring

    def newest(self, limit: int, subject: str) -> Tuple[Mapping[str, Any], ...]:
        """Members as in PutAudit; subject "" = all."""
        which, values = ("WHERE subject = ?", (subject, limit)) if subject else ("", (limit,))
        found = self._connection.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM audit {which} ORDER BY row DESC LIMIT ?", values
        )
        return tuple({**dict(zip(_COLUMNS, row)), "bounded": bool(row[-1])} for row in found.fetchall())

    def prune(self, before_wall: str) -> int:
        gone = self._connection.execute("DELETE FROM audit WHERE when_wall < ?", (before_wall,)).rowcount
        (self.bounded,) = self._connection.execute("SELECT count(*) FROM audit WHERE bounded = 1").fetchone()
        return gone
