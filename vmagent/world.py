"""The agent's memory: what is stored, and what was last observed.

Rules: `records`, `pending`, `settings` and `revocations` mirror the store and change only after a commit, in
`transact`.  `observed` is never stored.  One decision at a time: whoever changes a wish decides inside `transact`, on
the newest memory, so two writers never overwrite each other.
"""

from __future__ import annotations

from typing import Any, Awaitable, Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple, TypeVar

from twisted.internet.defer import DeferredLock

from vmagent import ports
from vmagent.core.changes import Change, CommandRow, Epoch, PutCommand, PutRevocation, PutSetting, PutVm, Stored
from vmagent.core.imagemodel import ImageFile, Revocation
from vmagent.core.model import ForeignSeen, NetworkSeen, Observed, VmRecord
from vmagent.core.trust import VerifiedList

T = TypeVar("T")
RECENT = 1000  # closed records kept in memory, for `list` and for commands that still owe a reply
Decision = Tuple[Sequence[Change], T]


class World:
    """Stored wishes and fresh observations, side by side."""

    def __init__(self, store: ports.Store, outbox: ports.Outbox, feed: ports.Feed) -> None:
        self._store = store
        self._outbox = outbox
        self._feed = feed
        self._lock: DeferredLock = DeferredLock()
        self.records: Dict[str, VmRecord] = {}
        self.pending: Dict[str, CommandRow] = {}
        self.settings: Dict[str, Any] = {}
        self.revocations: Dict[str, Revocation] = {}  # by key
        self.recent: Dict[str, VmRecord] = {}  # closed, oldest first
        self.observed: Dict[str, Observed] = {}
        self.network: Dict[str, NetworkSeen] = {}  # VM id -> its network limits as last read back
        self.foreign: Tuple[ForeignSeen, ...] = ()
        self.files: Mapping[str, ImageFile] = {}  # what the image cache holds by SHA-512, as last seen; never stored
        self.lists: Mapping[str, VerifiedList] = {}  # image lists by identifier, as last verified; never stored
        self.certificates: Tuple[Mapping[str, Any], ...] = ()  # validity.published, as last looked at; never stored
        self.degraded: Dict[str, str] = {}  # part -> why, published with host.state
        self._owed: Dict[str, Set[str]] = {}  # VM id -> ids of commands that still owe a final reply

    @property
    def epoch(self) -> Epoch:
        return self._store.epoch()

    @property
    def drained(self) -> bool:
        return bool(self.settings.get("drained"))

    def load(self, stored: Stored) -> None:
        """Take over what the store held at start."""
        self.records = {record.vm: record for record in stored.records}
        self.settings = dict(stored.settings)
        self.revocations = {one.key: one for one in stored.revocations}
        for row in stored.pending:
            self._owe(row)

    async def transact(self, decide: Callable[[], Awaitable[Decision[T]]]) -> T:
        """Decide on the newest memory, commit, then remember.

        Raises what `decide` raises; Fault when the commit failed, and then nothing has changed.
        """
        await self._lock.acquire()
        try:
            changes, result = await decide()
            if changes:
                await self._commit(changes)
            return result
        finally:
            self._lock.release()

    async def _commit(self, changes: Sequence[Change]) -> None:
        try:
            await self._store.commit(changes)
        except Exception:
            self.degraded["store"] = "the last commit failed"
            raise
        self.degraded.pop("store", None)
        for change in changes:
            self._remember(change)
        self._outbox.wake()
        self._feed.publish(changes)

    def _remember(self, change: Change) -> None:
        if isinstance(change, PutVm):
            self._remember_vm(change.record)
        elif isinstance(change, PutCommand):
            self._owe(change.row)
        elif isinstance(change, PutSetting):
            self.settings[change.name] = change.value
        elif isinstance(change, PutRevocation):
            self.revocations[change.revocation.key] = change.revocation

    def _remember_vm(self, record: VmRecord) -> None:
        if not record.closed:
            self.recent.pop(record.vm, None)
            self.records[record.vm] = record
            return
        self.records.pop(record.vm, None)
        self.network.pop(record.vm, None)
        self.recent[record.vm] = record
        for vm in list(self.recent)[: max(0, len(self.recent) - RECENT)]:
            if vm not in self._owed:
                del self.recent[vm]
                self.observed.pop(vm, None)

    def learn(self, row: CommandRow, records: Sequence[VmRecord]) -> None:
        """Something that the store holds and memory does not."""
        for record in records:
            self._remember_vm(record)
        self._owe(row)

    def find(self, vm: str) -> Optional[VmRecord]:
        """The record of a VM, also of one that closed a while ago."""
        return self.records.get(vm) or self.recent.get(vm)

    def _owe(self, row: CommandRow) -> None:
        """A command that is accepted owes its last reply; any other status settles it."""
        if row.status == "accepted":
            self.pending[row.id] = row
            for vm in row.members:
                self._owed.setdefault(vm, set()).add(row.id)
            return
        self.pending.pop(row.id, None)
        for vm in row.members:
            owed = self._owed.get(vm)
            if owed is not None:
                owed.discard(row.id)
                if not owed:
                    del self._owed[vm]

    def owed(self, vm: str) -> List[CommandRow]:
        """Commands on this VM whose final reply is still due."""
        return [self.pending[id] for id in sorted(self._owed.get(vm, ()))]
