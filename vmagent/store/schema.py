"""The database's shape, and how an older file becomes a newer one.

Rules

1. `PRAGMA user_version` is the number of steps of STEPS a file has been through.  A step is never changed once it was
   released; what is new is a new step at the end.  Each step is one transaction with its version.  A file of each
   version is kept in tests/data/stores: before a step is added, tests/support/oldstores.py makes one.
2. A file with more steps than this program knows was written by a newer vmagent: it is refused, never touched.
3. The JSON columns hold `core.codec`'s canonical form.  A new member with a default needs a step too (an empty one):
   an older vmagent could not read it, and must refuse the file instead of taking it for damaged.
4. SQLite 3.34 is the oldest: no RETURNING, no STRICT.
"""

from __future__ import annotations

import sqlite3
from typing import Dict, FrozenSet, Sequence, Tuple

from vmagent.errors import Fault, FaultKind

Steps = Sequence[Tuple[str, ...]]

STEPS: Steps = (
    (
        # One row per life of this store; the highest number is the current one.  commits: transactions in that life.
        """CREATE TABLE epochs (
            number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, born_wall TEXT NOT NULL, cause TEXT NOT NULL,
            set_aside TEXT NOT NULL, commits INTEGER NOT NULL)""",
        """CREATE TABLE sequences (
            epoch TEXT NOT NULL REFERENCES epochs (id), stream TEXT NOT NULL, last INTEGER NOT NULL,
            PRIMARY KEY (epoch, stream)) WITHOUT ROWID""",
        # changed_wall: when it last changed; `prune` counts from there once the VM is closed
        """CREATE TABLE vms (
            row INTEGER PRIMARY KEY, vm TEXT NOT NULL UNIQUE, command TEXT NOT NULL, closed INTEGER NOT NULL,
            changed_wall TEXT NOT NULL, record TEXT NOT NULL)""",
        "CREATE INDEX vms_open ON vms (row) WHERE closed = 0",
        "CREATE INDEX vms_command ON vms (command)",
        """CREATE TABLE vm_tags (
            tag TEXT NOT NULL, vm TEXT NOT NULL REFERENCES vms (vm) ON DELETE CASCADE,
            PRIMARY KEY (tag, vm)) WITHOUT ROWID""",
        "CREATE INDEX vm_tags_vm ON vm_tags (vm)",
        # keep_wall: a replay of this command may come until then
        """CREATE TABLE commands (
            row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, status TEXT NOT NULL, keep_wall TEXT NOT NULL,
            command TEXT NOT NULL)""",
        "CREATE INDEX commands_pending ON commands (row) WHERE status = 'accepted'",
        # AUTOINCREMENT: a row number is never given twice, so a reader's cursor never passes a new row
        """CREATE TABLE outbox (
            row INTEGER PRIMARY KEY AUTOINCREMENT, stream TEXT NOT NULL, sequence INTEGER NOT NULL,
            epoch TEXT NOT NULL REFERENCES epochs (id), destination TEXT NOT NULL, type TEXT NOT NULL,
            subject TEXT NOT NULL, time_wall TEXT NOT NULL, data TEXT NOT NULL, bytes INTEGER NOT NULL)""",
        "CREATE INDEX outbox_stream ON outbox (stream, row)",
        "CREATE INDEX outbox_subject ON outbox (type, subject, row)",
        """CREATE TABLE audit (
            row INTEGER PRIMARY KEY, when_wall TEXT NOT NULL, who TEXT NOT NULL, route TEXT NOT NULL,
            verb TEXT NOT NULL, subject TEXT NOT NULL, verdict TEXT NOT NULL, why TEXT NOT NULL,
            command TEXT NOT NULL, bounded INTEGER NOT NULL)""",
        "CREATE INDEX audit_subject ON audit (subject, row)",
        "CREATE INDEX audit_when ON audit (when_wall)",
        "CREATE INDEX audit_ring ON audit (row) WHERE bounded = 1",
        "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    ),
    (
        # Users' secrets: gone with the last open VM of the command.  Never in any other table.
        "CREATE TABLE contexts (command TEXT PRIMARY KEY, context TEXT NOT NULL)",
    ),
    (
        # What the site revoked; and two members of the journal (image_cause, image_action) that come with it.
        "CREATE TABLE revocations (key TEXT PRIMARY KEY, revocation TEXT NOT NULL) WITHOUT ROWID",
    ),
    (
        # Accounting: open segments, closed periods, and up to which of them whoever exports them has come; and a
        # member of the journal (over_at) that comes with it.
        "CREATE TABLE accounts (segment TEXT PRIMARY KEY, vm TEXT NOT NULL, account TEXT NOT NULL) WITHOUT ROWID",
        # AUTOINCREMENT: a mark of an export never passes a row that comes later
        """CREATE TABLE usage (
            row INTEGER PRIMARY KEY AUTOINCREMENT, vm TEXT NOT NULL, segment TEXT NOT NULL, period INTEGER NOT NULL,
            from_wall TEXT NOT NULL, to_wall TEXT NOT NULL, data TEXT NOT NULL, UNIQUE (segment, period))""",
        "CREATE INDEX usage_to ON usage (to_wall)",
        "CREATE INDEX usage_vm ON usage (vm, row)",
        "CREATE TABLE exports (who TEXT PRIMARY KEY, row INTEGER NOT NULL) WITHOUT ROWID",
    ),
    # Guests that are adopted: members of the wish (adopted) and of the journal (tag_seen), and one more outcome.
    (),
)


def version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def known(connection: sqlite3.Connection, steps: Steps = STEPS) -> int:
    """The file's version.  Fault REFUSED when it is beyond `steps` (downgrade).  It only reads."""
    found = version(connection)
    if found > len(steps):
        raise Fault(
            FaultKind.REFUSED,
            f"the store was written by a newer vmagent (schema {found}, this one knows up to {len(steps)}): "
            "install that version again, or move the store away to begin with an empty one",
        )
    return found


def migrate(connection: sqlite3.Connection, steps: Steps = STEPS) -> None:
    """Bring the file to `len(steps)`.  Fault REFUSED: `known`."""
    found = known(connection, steps)
    for number, step in enumerate(steps[found:], found + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in step:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number:d}")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")


def shape(connection: sqlite3.Connection) -> Dict[str, FrozenSet[str]]:
    """table -> columns, as the file has them."""
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
    return {
        name: frozenset(column[1] for column in connection.execute(f'PRAGMA table_info("{name}")'))
        for (name,) in names.fetchall()
    }


def expected_shape() -> Dict[str, FrozenSet[str]]:
    """What STEPS make of an empty file."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        migrate(connection)
        return shape(connection)
    finally:
        connection.close()
