"""The database file and its transactions; synchronous, one thread, one connection.

Opening: connect (WAL, synchronous FULL), quick_check, migrate, compare the shape, read every open wish back, compare
with the epoch marker.  A file that fails in any of that is set aside (`aside.py`) and an empty one takes its place:
domains are then adopted by their tags.  Errors of the disk or of locking are no damage.

A commit is one BEGIN IMMEDIATE ... COMMIT that also counts itself in its epoch; the marker follows after it.
What users gave their guests is overwritten when it is deleted, in the log too (`_scrub`).
Restoring a backup by hand: stop the agent, put the copy in place of the file, remove `-wal` and `-shm`.  The marker
then tells that the copy is older: a new epoch begins, `restored`.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Type, TypeVar

from vmagent.core import walltime
from vmagent.core.changes import (
    Change,
    CommandRow,
    DropAccount,
    Epoch,
    MarkExported,
    OutboxRow,
    Publish,
    PutAccount,
    PutAudit,
    PutCommand,
    PutContext,
    PutRevocation,
    PutSetting,
    PutUsage,
    PutVm,
    SendReply,
    Stored,
)
from vmagent.core.context import Context
from vmagent.core.model import Now, VmRecord
from vmagent.core.usagemodel import UsageRow
from vmagent.errors import Fault, FaultKind
from vmagent.store import epochs, schema
from vmagent.store.aside import set_aside
from vmagent.store.audit import AuditTrail
from vmagent.store.faults import is_damage
from vmagent.store.marker import Damaged, Mark, Marker
from vmagent.store.spool import Spool, Totals
from vmagent.store.usage import UsageBook
from vmagent.store.wishes import Unreadable, Wishes

log = logging.getLogger("vmagent.store")
T = TypeVar("T")
Undo = Tuple[Optional[epochs.Life], Totals, int]

BUSY_S = 5.0  # how long another process (a backup) may hold the write lock
KEPT_S = 400 * 86400  # audit and closed VMs
REPLAY_S = 2 * 86400  # a command past its valid_until; more than any clock skew a site may allow


class Database:
    """One open file.  Raises sqlite3.Error, OSError, Fault, Unreadable; `store.py` makes Faults of them."""

    def __init__(self, path: Path, spool_rows: int, spool_bytes: int) -> None:
        self._path = path
        self._bounds = (spool_rows, spool_bytes)
        self._marker = Marker(path.with_suffix(".epoch"))
        self._connection: Optional[sqlite3.Connection] = None
        self._life: Optional[epochs.Life] = None
        self._now = Now(0.0, "", "")  # as last told: when a loss is announced

    # -- opening and closing

    def open(self, now: Now) -> Stored:
        self.close()
        self._now = now
        try:
            stored, aside = self._load_or_replace(now)
            stored = replace(stored, epoch=self._settle_epoch(now, aside))
            self._scrub()
            return stored
        except BaseException:
            self.close()
            raise

    def _load_or_replace(self, now: Now) -> Tuple[Stored, str]:
        try:
            return self._load(), ""
        except (Unreadable, sqlite3.DatabaseError) as error:
            if not (isinstance(error, Unreadable) or is_damage(error)):
                raise
            self.close()
            aside = set_aside(self._path, now.wall)
            log.error("the store is damaged (%s): set aside as %s, an empty one takes its place", error, aside)
        return self._load(), aside

    def _load(self) -> Stored:
        """Connect, and prove that everything needed can be read."""
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._connection = connection = sqlite3.connect(str(self._path), timeout=BUSY_S, isolation_level=None)
        schema.known(connection)  # before anything is written to it
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
            connection.execute(f"PRAGMA {pragma}")
        problems = [text for (text,) in connection.execute("PRAGMA quick_check(3)") if text != "ok"]
        if problems:
            raise Unreadable("; ".join(problems))
        schema.migrate(connection)
        if schema.shape(connection) != schema.expected_shape():
            raise Unreadable("the tables are not those of this schema version")
        self._life = epochs.current(connection)
        self._wishes, self._audit = Wishes(connection), AuditTrail(connection)
        self._spool, self._usage = Spool(connection, *self._bounds), UsageBook(connection)
        nobody = Epoch("", 0, "", "")
        wishes = self._wishes
        return Stored(nobody, wishes.open_records(), wishes.pending(), wishes.settings(), wishes.revocations(),
                      self._usage.accounts())

    def _settle_epoch(self, now: Now, aside: str) -> Epoch:
        mark: Optional[Mark] = None
        damaged = False
        try:
            mark = self._marker.read()
        except Damaged as error:
            log.error("%s", error)
            damaged = True
        cause = "corrupt" if aside else epochs.verdict(self._life, mark, damaged)
        if cause is None:
            self._follow()
        else:
            self._transaction(lambda: self._begin_epoch(now, cause, aside, mark))
            self._marker.replace(self._alive().mark)
            log.warning("epoch %d begins: %s", self._alive().epoch.number, cause)
        return self._alive().epoch

    def _begin_epoch(self, now: Now, cause: str, aside: str, mark: Optional[Mark]) -> None:
        self._life = epochs.begin(self.connection(), now, cause, aside, self._life, mark)

    def close(self) -> None:
        self._marker.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def connection(self) -> sqlite3.Connection:
        """The open connection.  Fault AWAY when there is none."""
        if self._connection is None:
            raise Fault(FaultKind.AWAY, "the store is not open")
        return self._connection

    def _alive(self) -> epochs.Life:
        if self._life is None:
            raise Fault(FaultKind.AWAY, "the store has no epoch")
        return self._life

    # -- transactions

    def commit(self, changes: Sequence[Change]) -> None:
        self._counted(lambda: self._apply(changes))

    def commit_all(self, commits: Sequence[Sequence[Change]]) -> List[Optional[Exception]]:
        """Several commits at the price of one.  When that fails, each has a transaction of its own: nobody's changes
        fail because of another's.  The errors, in order; None = stored.  Raises nothing."""
        if len(commits) > 1:
            together = self._commit_one([change for changes in commits for change in changes])
            if together is None:
                return [None] * len(commits)
        return [self._commit_one(changes) for changes in commits]

    def _commit_one(self, changes: Sequence[Change]) -> Optional[Exception]:
        try:
            self.commit(changes)
        except Exception as error:  # noqa: BLE001 - edge: the owner of this commit is told, the others go on
            log.warning("a commit of %d changes failed", len(changes), exc_info=True)
            return error
        return None

    def _counted(self, work: Callable[[], T]) -> T:
        result = self._transaction(work)
        self._follow()
        if self._wishes.forgotten:
            self._scrub()
        return result

    def _scrub(self) -> None:
        """What was secret and is deleted leaves the write-ahead log too; the pages of the database were overwritten
        with zeros (secure_delete).  A reader (a backup) or a full disk delays it until a later commit or start.
        """
        connection = self.connection()
        try:
            connection.execute("PRAGMA busy_timeout = 0")
            (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                self._wishes.forgotten = 0
        except sqlite3.Error as error:
            log.warning("the write-ahead log cannot be emptied yet: %s", error)
        finally:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_S * 1000:.0f}")

    def _transaction(self, work: Callable[[], T]) -> T:
        """All of `work` or nothing of it, counted in the epoch."""
        connection = self.connection()
        undo: Undo = (self._life and replace(self._life), replace(self._spool.totals), self._audit.bounded)
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = work()
            life = self._alive()
            life.commits += 1
            connection.execute("UPDATE epochs SET commits = ? WHERE number = ?", (life.commits, life.epoch.number))
            connection.execute("COMMIT")
        except BaseException:
            self._roll_back(connection, undo)
            raise
        return result

    def _roll_back(self, connection: sqlite3.Connection, undo: Undo) -> None:
        self._life, self._spool.totals, self._audit.bounded = undo
        if connection.in_transaction:  # on a full disk SQLite may have rolled back already
            connection.execute("ROLLBACK")

    def _follow(self) -> None:
        """The marker goes after the database; one that lags is harmless."""
        try:
            self._marker.advance(self._alive().mark)
        except OSError:
            log.exception("the epoch marker cannot be written")

    def _apply(self, changes: Sequence[Change]) -> None:
        epoch = self._alive().epoch
        todo: Dict[Type[Any], Callable[[Any], None]] = {
            PutVm: self._wishes.put_vm,
            PutCommand: self._wishes.put_command,
            PutContext: self._wishes.put_context,
            PutSetting: self._wishes.put_setting,
            PutRevocation: self._wishes.put_revocation,
            PutAudit: self._audit.append,
            Publish: lambda change: self._spool.publish(epoch, change),
            SendReply: lambda change: self._spool.reply(epoch, change),
            PutAccount: self._usage.put_account,
            DropAccount: self._usage.drop_account,
            PutUsage: self._usage.put_usage,
            MarkExported: self._usage.mark,
        }
        for change in changes:
            todo[type(change)](change)
            if isinstance(change, Publish):
                self._now = replace(self._now, wall=change.time_wall)
        self._spool.hold_bound(epoch, self._now)

    def delivered(self, rows: Sequence[int]) -> None:
        self._counted(lambda: self._spool.delivered(rows))

    def prune(self, now: Now, usage_days: int, exporters: Sequence[str]) -> int:
        """Forget what is past its time; how many rows that was."""
        at = walltime.seconds(now.wall)
        long_ago, expired = walltime.text(at - KEPT_S), walltime.text(at - REPLAY_S)
        used = walltime.text(at - usage_days * 86400)
        return self._counted(lambda: self._wishes.prune(long_ago, expired) + self._audit.prune(long_ago)
                             + self._usage.prune(used, exporters))

    # -- reading

    def command(self, id: str) -> Optional[CommandRow]:
        self.connection()
        return self._wishes.command(id)

    def context(self, command: str) -> Optional[Context]:
        self.connection()
        return self._wishes.context(command)

    def records(self, handle: str) -> Tuple[VmRecord, ...]:
        self.connection()
        return self._wishes.records(handle)

    def audit(self, limit: int, subject: str) -> Tuple[Mapping[str, Any], ...]:
        self.connection()
        return self._audit.newest(limit, subject)

    def usage(self, after: int, limit: int, vm: str, since: str, until: str) -> Tuple[UsageRow, ...]:
        self.connection()
        return self._usage.rows(after, limit, vm, since, until)

    def exported(self) -> Dict[str, int]:
        self.connection()
        return self._usage.exported()

    def outbox(self, after: int, limit: int) -> Tuple[OutboxRow, ...]:
        self.connection()
        return self._spool.waiting(after, limit)

    def sequences(self) -> Dict[str, int]:
        self.connection()
        return self._spool.sequences(self._alive().epoch)
