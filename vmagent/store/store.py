"""ports.Store over SQLite: every call goes through the store's own lane of one thread, in order.

Commits that wait together are stored together, in one transaction with one fsync; the first one in the queue takes all
that have come until then, and the others, at their turn, find theirs done.  Each keeps a Deferred, a deadline and a
failure of its own.

What a failed commit means: FULL, BUSY and REFUSED: nothing was stored.  UNKNOWN: past the deadline or a disk error; it
may have been stored, or be stored yet.  Commit again: records, commands and settings are idempotent, and an event may
then be published twice with two sequence numbers, which full-state events allow.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any, Callable, List, Mapping, Optional, Sequence, Tuple, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from vmagent.core.changes import Change, CommandRow, Epoch, OutboxRow, Stored
from vmagent.core.context import Context
from vmagent.core.model import Now, VmRecord
from vmagent.core.usagemodel import UsageRow
from vmagent.errors import Fault, FaultKind
from vmagent.lanes import Lanes
from vmagent.store.database import Database
from vmagent.store.faults import fault

log = logging.getLogger("vmagent.store")
T = TypeVar("T")
KEY = "store"
OPEN_S = 300.0  # quick_check and migrations read the whole file
CALL_S = 10.0


class _Commit:
    """One commit on its way to the disk."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self.changes = tuple(changes)
        self.done = False
        self.error: Optional[Exception] = None


class _Waiting:
    """Commits that no transaction has taken yet; between the reactor's thread and the store's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._commits: List[_Commit] = []

    def add(self, commit: _Commit) -> None:
        with self._lock:
            self._commits.append(commit)

    def take_all(self) -> List[_Commit]:
        with self._lock:
            taken, self._commits = self._commits, []
        return taken

    def count(self) -> int:
        with self._lock:
            return len(self._commits)

    def withdraw(self, commit: _Commit) -> bool:
        """True when it was still there: it will never be stored."""
        with self._lock:
            if commit not in self._commits:
                return False
            self._commits.remove(commit)
            return True


class SqliteStore:
    """ports.Store.  lane: one thread, of this store alone and never replaced; it stays the caller's to stop.

    path: `vmagent.db`; the epoch marker lies beside it as `vmagent.epoch`.  spool_rows, spool_bytes: the outbox's
    bound.
    """

    def __init__(self, path: Path, lane: Lanes, spool_rows: int, spool_bytes: int) -> None:
        self._lane = lane
        self._database = Database(path, spool_rows, spool_bytes)
        self._waiting = _Waiting()
        self._epoch: Optional[Epoch] = None

    def open(self, now: Now) -> Deferred[Stored]:
        """Faults: REFUSED (written by a newer vmagent), FULL, AWAY (the file system refuses), UNKNOWN."""

        def opened(stored: Stored) -> Stored:
            self._epoch = stored.epoch
            return stored

        return self._run(OPEN_S, self._database.open, now).addCallback(opened)

    def close(self) -> Deferred[None]:
        """After what was asked before it.  It may be opened again."""
        return self._run(CALL_S, self._database.close)

    def epoch(self) -> Epoch:
        """Fault AWAY before `open` has succeeded."""
        if self._epoch is None:
            raise Fault(FaultKind.AWAY, "the store is not open yet")
        return self._epoch

    def commit(self, changes: Sequence[Change]) -> Deferred[None]:
        """Faults: FULL, BUSY, REFUSED (nothing stored), UNKNOWN (see the module)."""
        commit = _Commit(changes)
        self._waiting.add(commit)
        answer: Deferred[None] = self._lane.run(KEY, CALL_S, self._store, commit)
        return answer.addErrback(self._not_begun, commit)

    def gathered(self) -> int:
        """Commits that no transaction has taken yet."""
        return self._waiting.count()

    def _store(self, commit: _Commit) -> None:
        """In the store's thread: this commit with all that wait behind it, unless an earlier one took it along."""
        if not commit.done:
            taken = self._waiting.take_all()
            errors = self._database.commit_all([one.changes for one in taken])
            for one, error in zip(taken, errors):
                one.done, one.error = True, error
        _outcome(commit)

    def _not_begun(self, failure: Failure, commit: _Commit) -> None:
        """The lane gave up on this call, or it failed: what is known of the commit counts, for an earlier one may have
        taken it along.  BUSY stays BUSY only if it can never be stored any more."""
        withdrawn = self._waiting.withdraw(commit)
        if commit.done:
            return _outcome(commit)
        error: BaseException = failure.value  # type: ignore[assignment]
        if isinstance(error, Fault) and error.kind is FaultKind.BUSY and not withdrawn:
            raise Fault(FaultKind.UNKNOWN, error.detail)
        raise error

    def command(self, id: str) -> Deferred[Optional[CommandRow]]:
        return self._run(CALL_S, self._database.command, id)

    def context(self, command: str) -> Deferred[Optional[Context]]:
        return self._run(CALL_S, self._database.context, command)

    def records(self, handle: str) -> Deferred[Tuple[VmRecord, ...]]:
        return self._run(CALL_S, self._database.records, handle)

    def audit(self, limit: int, subject: str) -> Deferred[Tuple[Mapping[str, Any], ...]]:
        return self._run(CALL_S, self._database.audit, limit, subject)

    def outbox(self, after: int, limit: int) -> Deferred[Tuple[OutboxRow, ...]]:
        return self._run(CALL_S, self._database.outbox, after, limit)

    def delivered(self, rows: Sequence[int]) -> Deferred[None]:
        return self._run(CALL_S, self._database.delivered, tuple(rows))

    def sequences(self) -> Deferred[Mapping[str, int]]:
        return self._run(CALL_S, self._database.sequences)

    def usage(
        self, after: int, limit: int, vm: str = "", since: str = "", until: str = ""
    ) -> Deferred[Tuple[UsageRow, ...]]:
        return self._run(CALL_S, self._database.usage, after, limit, vm, since, until)

    def exported(self) -> Deferred[Mapping[str, int]]:
        return self._run(CALL_S, self._database.exported)

    def prune(self, now: Now, usage_days: int = 400, exporters: Sequence[str] = ()) -> Deferred[int]:
        """Once a day will do."""
        return self._run(CALL_S, self._database.prune, now, usage_days, tuple(exporters))

    def _run(self, deadline_s: float, call: Callable[..., T], *args: Any) -> Deferred[T]:
        return self._lane.run(KEY, deadline_s, _translated, call, *args)


def _outcome(commit: _Commit) -> None:
    if not commit.done:
        raise Fault(FaultKind.UNKNOWN, "store: the commit has no outcome")
    if commit.error is not None:
        raise fault(commit.error) from commit.error


def _translated(call: Callable[..., T], *args: Any) -> T:
    """In the store's thread: the port's errors are Faults, nothing else."""
    try:
        return call(*args)
    except Fault:
        raise
    except Exception as error:  # edge: of the store's thread, where every error becomes a Fault
        log.exception("store: %s failed", getattr(call, "__name__", call))
        raise fault(error) from error
