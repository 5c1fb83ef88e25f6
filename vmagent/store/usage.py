"""Open accounts, closed periods of usage, and how far each export of them has come.

Periods are kept for as long as the site says, and longer while an export that is configured has not taken them.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any, Dict, List, Sequence, Tuple

from vmagent.core.changes import DropAccount, MarkExported, PutAccount, PutUsage
from vmagent.core.codec import account_from_json, canonical
from vmagent.core.usagemodel import Account, UsageRow
from vmagent.store.wishes import read

_COLUMNS = "row, vm, segment, period, from_wall, to_wall, data"


class UsageBook:
    """The tables accounts, usage, exports; in the caller's transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def put_account(self, change: PutAccount) -> None:
        account = change.account
        self._connection.execute(
            "INSERT INTO accounts VALUES (?, ?, ?) ON CONFLICT (segment) DO UPDATE SET account = excluded.account",
            (account.segment, account.vm, canonical(account)),
        )

    def drop_account(self, change: DropAccount) -> None:
        self._connection.execute("DELETE FROM accounts WHERE segment = ?", (change.segment,))

    def put_usage(self, change: PutUsage) -> None:
        self._connection.execute(
            "INSERT INTO usage (vm, segment, period, from_wall, to_wall, data) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (segment, period) DO UPDATE SET from_wall = excluded.from_wall,"
            " to_wall = excluded.to_wall, data = excluded.data",
            (change.vm, change.segment, change.period, change.from_wall, change.to_wall, canonical(change.data)),
        )

    def mark(self, change: MarkExported) -> None:
        self._connection.execute(
            "INSERT INTO exports VALUES (?, ?) ON CONFLICT (who) DO UPDATE SET row = max(row, excluded.row)",
            (change.who, change.row),
        )

    def accounts(self) -> Tuple[Account, ...]:
        found = self._connection.execute("SELECT segment, account FROM accounts ORDER BY segment")
        return tuple(read(text, account_from_json, f"account {segment}") for segment, text in found.fetchall())

    def rows(self, after: int, limit: int, vm: str, since: str, until: str) -> Tuple[UsageRow, ...]:
        """See ports.Store.usage."""
        which: List[str] = ["row > ?"]
        values: List[object] = [after]
        for condition, value in (("vm = ?", vm), ("to_wall > ?", since), ("from_wall < ?", until)):
            if value:
                which.append(condition)
                values.append(value)
        found = self._connection.execute(
            f"SELECT {_COLUMNS} FROM usage WHERE {' AND '.join(which)} ORDER BY row LIMIT ?", (*values, limit)
        )
        rows: List[List[Any]] = [[*row[:-1], json.loads(row[-1])] for row in found.fetchall()]
        return tuple(UsageRow(*row) for row in rows)

    def exported(self) -> Dict[str, int]:
        return dict(self._connection.execute("SELECT who, row FROM exports").fetchall())

    def prune(self, before_wall: str, exporters: Sequence[str]) -> int:
        """Periods that ended before this, and that each of these has taken."""
        marks = self.exported()
        taken = min((marks.get(who, 0) for who in exporters), default=None)
        which, values = ("to_wall < ?", (before_wall,))
        if taken is None:
            return self._connection.execute(f"DELETE FROM usage WHERE {which}", values).rowcount
        return self._connection.execute(f"DELETE FROM usage WHERE {which} AND row <= ?", (*values, taken)).rowcount
