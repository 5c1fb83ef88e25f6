"""ports.Store without a disk, and one that fails when told to.  Both pass tests/contract/test_store.py.

A MemoryStore outlives close() and open() as a file outlives kill -9: give the same one to the next agent.  It has no
spool bound and no corruption: tests of those take SqliteStore.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from twisted.internet.defer import Deferred, fail, succeed

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
from vmagent.core.codec import account_from_json, canonical, record_from_json
from vmagent.core.context import Context, from_json
from vmagent.core.imagemodel import Revocation
from vmagent.core.model import Now, VmRecord
from vmagent.core.usagemodel import Account, UsageRow
from vmagent.errors import Fault, FaultKind
from vmagent.ports import Store

RING = 10_000  # bounded audit rows kept


def _copy(value: Any) -> Any:
    """What JSON makes of it, so that a test sees what a real store would hand back."""
    return json.loads(canonical(value))


class MemoryStore:
    """Every Deferred has fired when it is returned."""

    def __init__(self) -> None:
        self._epoch: Optional[Epoch] = None
        self._opened = False
        self._vms: Dict[str, VmRecord] = {}
        self._commands: Dict[str, CommandRow] = {}
        self._settings: Dict[str, Any] = {}
        self._contexts: Dict[str, Context] = {}
        self._revocations: Dict[str, Revocation] = {}
        self._audit: List[PutAudit] = []
        self._outbox: Dict[int, OutboxRow] = {}
        self._sequences: Dict[str, int] = {}
        self._rows = 0
        self._accounts: Dict[str, Account] = {}
        self._usage: Dict[int, UsageRow] = {}
        self._exported: Dict[str, int] = {}

    def new_epoch(self, now: Now, cause: str) -> None:
        """As if the store had been lost (everything goes) or an older copy restored (everything stays)."""
        if cause != "restored":
            self.__init__()  # type: ignore[misc]
        known = self._epoch.number if self._epoch else 0
        number = max(known + 1, int(walltime.seconds(now.wall)))
        self._epoch = Epoch(str(uuid.uuid4()), number, now.wall, cause)
        self._sequences = {}

    def open(self, now: Now) -> Deferred[Stored]:
        if self._epoch is None:
            self.new_epoch(now, "first")
        self._opened = True
        records = tuple(record for record in self._vms.values() if not record.closed)
        pending = tuple(row for row in self._commands.values() if row.status == "accepted")
        revocations = tuple(one for _, one in sorted(self._revocations.items()))
        accounts = tuple(one for _, one in sorted(self._accounts.items()))
        return succeed(Stored(self.epoch(), records, pending, dict(self._settings), revocations, accounts))

    def close(self) -> Deferred[None]:
        self._opened = False
        return succeed(None)

    def epoch(self) -> Epoch:
        if self._epoch is None:
            raise Fault(FaultKind.AWAY, "the store is not open yet")
        return self._epoch

    def commit(self, changes: Sequence[Change]) -> Deferred[None]:
        if not self._opened:
            return fail(Fault(FaultKind.AWAY, "the store is not open"))
        try:
            for change in changes:
                canonical(change)  # what has no JSON is refused before anything is stored
        except (ValueError, TypeError) as error:
            return fail(Fault(FaultKind.REFUSED, str(error)))
        for change in changes:
            self._apply(change)
        over = sum(entry.bounded for entry in self._audit) - RING
        for entry in [entry for entry in self._audit if entry.bounded][: max(0, over)]:
            self._audit.remove(entry)
        return succeed(None)

    def _apply(self, change: Change) -> None:
        if isinstance(change, PutVm):
            record = self._vms[change.record.vm] = record_from_json(_copy(change.record))
            command = record.spec.command
            if record.closed and all(r.closed for r in self._vms.values() if r.spec.command == command):
                self._contexts.pop(command, None)
        elif isinstance(change, PutContext):
            self._contexts[change.command] = from_json(_copy(change.context))
        elif isinstance(change, PutCommand):
            row = change.row
            self._commands[row.id] = dataclasses.replace(row, reply=_copy(row.reply), args=_copy(row.args))
        elif isinstance(change, PutSetting):
            self._settings.pop(change.name, None)
            if change.value is not None:
                self._settings[change.name] = _copy(change.value)
        elif isinstance(change, PutRevocation):
            self._revocations[change.revocation.key] = change.revocation
        elif isinstance(change, PutAudit):
            self._audit.append(change)
        elif isinstance(change, (PutAccount, DropAccount, PutUsage, MarkExported)):
            self._book(change)
        elif isinstance(change, Publish):
            self._sequences[change.stream] = self._sequences.get(change.stream, 0) + 1
            self._append(
                change.stream, self._sequences[change.stream], "", change.type, change.subject, change.time_wall,
                change.data,
            )  # fmt: skip
        elif isinstance(change, SendReply):
            self._append("replies", 0, change.destination, "", "", "", change.body)

    def _book(self, change: Any) -> None:
        if isinstance(change, PutAccount):
            self._accounts[change.account.segment] = account_from_json(_copy(change.account))
        elif isinstance(change, DropAccount):
            self._accounts.pop(change.segment, None)
        elif isinstance(change, MarkExported):
            self._exported[change.who] = max(change.row, self._exported.get(change.who, 0))
        else:
            key = (change.segment, change.period)
            known = next((n for n, row in self._usage.items() if (row.segment, row.period) == key), None)
            row = max(self._usage, default=0) + 1 if known is None else known
            self._usage[row] = UsageRow(row, change.vm, *key, change.from_wall, change.to_wall, _copy(change.data))

    def _append(
        self, stream: str, sequence: int, destination: str, type: str, subject: str, wall: str, data: Mapping[str, Any]
    ) -> None:
        self._rows += 1
        epoch = self.epoch()
        self._outbox[self._rows] = OutboxRow(
            self._rows, stream, sequence, epoch.id, epoch.number, destination, type, subject, wall, _copy(data)
        )

    def command(self, id: str) -> Deferred[Optional[CommandRow]]:
        return succeed(self._commands.get(id))

    def context(self, command: str) -> Deferred[Optional[Context]]:
        return succeed(self._contexts.get(command))

    def records(self, handle: str) -> Deferred[Tuple[VmRecord, ...]]:
        return succeed(
            tuple(r for r in self._vms.values() if handle in (r.vm, r.spec.command) or handle in r.spec.tags)
        )

    def audit(self, limit: int, subject: str) -> Deferred[Tuple[Mapping[str, Any], ...]]:
        found = [dataclasses.asdict(entry) for entry in reversed(self._audit) if subject in ("", entry.subject)]
        return succeed(tuple(found[:limit]))

    def usage(
        self, after: int, limit: int, vm: str = "", since: str = "", until: str = ""
    ) -> Deferred[Tuple[UsageRow, ...]]:
        found = [row for row in self._usage.values() if row.row > after and vm in ("", row.vm)
                 and row.to_wall > since and (not until or row.from_wall < until)]
        return succeed(tuple(found[:limit]))

    def exported(self) -> Deferred[Mapping[str, int]]:
        return succeed(dict(self._exported))

    def outbox(self, after: int, limit: int) -> Deferred[Tuple[OutboxRow, ...]]:
        return succeed(tuple(row for number, row in self._outbox.items() if number > after)[:limit])

    def delivered(self, rows: Sequence[int]) -> Deferred[None]:
        for row in rows:
            self._outbox.pop(row, None)
        return succeed(None)

    def sequences(self) -> Deferred[Mapping[str, int]]:
        return succeed(dict(self._sequences))

    def prune(self, now: Now, usage_days: int = 400, exporters: Sequence[str] = ()) -> Deferred[int]:
        at = walltime.seconds(now.wall)
        long_ago, expired = walltime.text(at - 400 * 86400), walltime.text(at - 2 * 86400)
        vms = [r.vm for r in self._vms.values() if r.closed and max(r.since_wall, r.accepted_wall) < long_ago]
        commands = [
            c.id
            for c in self._commands.values()
            if c.status != "accepted" and max(c.valid_until_wall, c.received_wall) < expired
        ]
        entries = [entry for entry in self._audit if entry.when_wall < long_ago]
        for vm in vms:
            del self._vms[vm]
        for command in commands:
            del self._commands[command]
        self._audit = [entry for entry in self._audit if entry not in entries]
        taken = min((self._exported.get(who, 0) for who in exporters), default=None)
        before = walltime.text(at - usage_days * 86400)
        used = [row.row for row in self._usage.values()
                if row.to_wall < before and (taken is None or row.row <= taken)]
        for number in used:
            del self._usage[number]
        return succeed(len(vms) + len(commands) + len(entries) + len(used))


class FailingStore:
    """`store`, but a commit for which `fails(changes)` names a kind fails so, and nothing of it is stored.

    `fails` may be exchanged while it runs; `full(...)` and `never` are ready-made.
    """

    def __init__(self, store: Store, fails: Callable[[Sequence[Change]], Optional[FaultKind]]) -> None:
        self._store = store
        self.fails = fails
        self.failed: List[Tuple[Change, ...]] = []
        self.open = store.open
        self.close = store.close
        self.command = store.command
        self.context = store.context
        self.records = store.records
        self.audit = store.audit
        self.outbox = store.outbox
        self.delivered = store.delivered
        self.sequences = store.sequences
        self.usage = store.usage
        self.exported = store.exported
        self.epoch = store.epoch
        self.prune = store.prune

    def commit(self, changes: Sequence[Change]) -> Deferred[None]:
        kind = self.fails(changes)
        if kind is None:
            return self._store.commit(changes)
        self.failed.append(tuple(changes))
        return fail(Fault(kind, "this commit was chosen to fail"))


def full(changes: Sequence[Change]) -> Optional[FaultKind]:
    """Every commit."""
    return FaultKind.FULL


def never(changes: Sequence[Change]) -> Optional[FaultKind]:
    """No commit."""
    return None
