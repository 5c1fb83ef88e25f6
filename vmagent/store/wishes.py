"""VMs, commands, contexts and settings: what was asked for, as canonical JSON with the columns that look-ups need.

Text that cannot be turned back into its value raises Unreadable: at open the file counts as damaged.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any, Callable, Dict, Optional, Tuple, TypeVar

from vmagent.core.changes import CommandRow, PutCommand, PutContext, PutRevocation, PutSetting, PutVm
from vmagent.core.codec import canonical, record_from_json
from vmagent.core.context import Context, from_json
from vmagent.core.imagemodel import Revocation
from vmagent.core.model import VmRecord

V = TypeVar("V")


class Unreadable(Exception):
    """The file is damaged, or holds what this program cannot have written."""


def read(text: str, make: Callable[[Any], V], what: str) -> V:
    """The value that a column's text stands for."""
    try:
        return make(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"{what} cannot be read back: {error}") from error


def _command(raw: Any) -> CommandRow:
    return CommandRow(**{**raw, "members": tuple(raw["members"])})


class Wishes:
    """The tables vms, vm_tags, commands, contexts, settings, revocations; in the caller's transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.forgotten = 0  # contexts whose bytes may still stand in the write-ahead log

    def put_vm(self, change: PutVm) -> None:
        record = change.record
        changed = max(record.accepted_wall, record.since_wall)
        self._connection.execute(
            "INSERT INTO vms (vm, command, closed, changed_wall, record) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (vm) DO UPDATE SET command = excluded.command, closed = excluded.closed,"
            " changed_wall = excluded.changed_wall, record = excluded.record",
            (record.vm, record.spec.command, record.closed, changed, canonical(record)),
        )
        self._connection.execute("DELETE FROM vm_tags WHERE vm = ?", (record.vm,))
        self._connection.executemany(
            "INSERT OR IGNORE INTO vm_tags (tag, vm) VALUES (?, ?)", [(tag, record.vm) for tag in record.spec.tags]
        )
        if record.closed:
            self._forget_context(record.spec.command)

    def put_context(self, change: PutContext) -> None:
        self._connection.execute(
            "INSERT INTO contexts VALUES (?, ?) ON CONFLICT (command) DO UPDATE SET context = excluded.context",
            (change.command, canonical(change.context)),
        )

    def _forget_context(self, command: str) -> None:
        """Once none of the command's VMs is open any more."""
        still = "EXISTS (SELECT 1 FROM vms WHERE vms.command = contexts.command AND closed = 0)"
        gone = self._connection.execute(f"DELETE FROM contexts WHERE command = ? AND NOT {still}", (command,))
        self.forgotten += gone.rowcount

    def context(self, command: str) -> Optional[Context]:
        found = self._connection.execute("SELECT context FROM contexts WHERE command = ?", (command,)).fetchone()
        return None if found is None else read(found[0], from_json, f"context of {command}")

    def put_command(self, change: PutCommand) -> None:
        row = change.row
        self._connection.execute(
            "INSERT INTO commands (id, status, keep_wall, command) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET status = excluded.status, keep_wall = excluded.keep_wall,"
            " command = excluded.command",
            (row.id, row.status, max(row.valid_until_wall, row.received_wall), canonical(row)),
        )

    def put_setting(self, change: PutSetting) -> None:
        if change.value is None:
            self._connection.execute("DELETE FROM settings WHERE name = ?", (change.name,))
            return
        self._connection.execute(
            "INSERT INTO settings VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (change.name, canonical(change.value)),
        )

    def put_revocation(self, change: PutRevocation) -> None:
        self._connection.execute(
            "INSERT INTO revocations VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET revocation = excluded.revocation",
            (change.revocation.key, canonical(change.revocation)),
        )

    def revocations(self) -> Tuple[Revocation, ...]:
        found = self._connection.execute("SELECT key, revocation FROM revocations ORDER BY key")
        return tuple(read(text, lambda raw: Revocation(**raw), f"revocation of {key}") for key, text in found)

    def command(self, id: str) -> Optional[CommandRow]:
        found = self._commands("id = ?", id)
        return found[0] if found else None

    def pending(self) -> Tuple[CommandRow, ...]:
        return self._commands("status = 'accepted'")

    def _commands(self, which: str, *values: str) -> Tuple[CommandRow, ...]:
        found = self._connection.execute(f"SELECT id, command FROM commands WHERE {which} ORDER BY row", values)
        return tuple(read(text, _command, f"command {id}") for id, text in found.fetchall())

    def open_records(self) -> Tuple[VmRecord, ...]:
        return self._records("closed = 0")

    def records(self, handle: str) -> Tuple[VmRecord, ...]:
        tagged = "vm IN (SELECT vm FROM vm_tags WHERE tag = ?)"
        return self._records(f"vm = ? OR command = ? OR {tagged}", handle, handle, handle)

    def _records(self, which: str, *values: str) -> Tuple[VmRecord, ...]:
        found = self._connection.execute(f"SELECT vm, record FROM vms WHERE {which} ORDER BY row", values)
        return tuple(read(text, record_from_json, f"VM {vm}") for vm, text in found.fetchall())

    def settings(self) -> Dict[str, Any]:
        found = self._connection.execute("SELECT name, value FROM settings")
        return {name: read(text, lambda value: value, f"setting {name}") for name, text in found.fetchall()}

    def prune(self, vms_before_wall: str, commands_before_wall: str) -> int:
        """Closed VMs last changed, and finished commands no replay of which can come, before these times."""
        return (
            self._connection.execute(
                "DELETE FROM vms WHERE closed = 1 AND changed_wall < ?", (vms_before_wall,)
            ).rowcount
            + self._connection.execute(
                "DELETE FROM commands WHERE status <> 'accepted' AND keep_wall < ?", (commands_before_wall,)
            ).rowcount
        )
