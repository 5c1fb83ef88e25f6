"""Keeps the accounts: opens, books, cuts and closes them, and publishes `vm.usage`.

Rules

1. What begins and ends an account is read from the records (core/accountplan.py), whenever one was committed and at
   every start; what is used comes from the same readings that telemetry has.  Nothing here looks at a guest.
2. Memory goes on and the store follows (bookings.py): a period's row, its message and the account after it are one
   commit.  Between edges accounts are saved once a minute; what was not saved is in the counters still.
3. An ended guest's rules are removed only after its last traffic was booked and stored: `last`.
4. Periods are cut before anything else is booked, so nothing is ever booked beyond an edge.
5. A host that accounts for more than it gives has an error in its books: told, and never hidden by booking less.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Awaitable, Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from twisted.internet.defer import Deferred, DeferredLock
from twisted.python.failure import Failure

from vmagent import ports
from vmagent.bookings import Bookings
from vmagent.core import accountplan, codec, events, ledger, usage, usageviews
from vmagent.core.accountplan import End
from vmagent.core.actions import Action, Do
from vmagent.core.changes import Change, DropAccount, Publish, PutAccount, PutSetting, PutUsage, PutVm
from vmagent.core.ledger import Ledger
from vmagent.core.model import NicCounters, VmRecord
from vmagent.core.policy import Policy
from vmagent.core.samples import Reading
from vmagent.core.usagemodel import Account, Closed, Kind, Measured
from vmagent.crashpoint import reach
from vmagent.errors import Fault, FaultKind
from vmagent.log import surprise
from vmagent.world import World

log = logging.getLogger("vmagent.accounting")
PART, LEDGER = "accounting", "ledger"
GIB = 1 << 30
LONGEST_WAIT_S = 3600.0  # for an edge: then it is reckoned anew
EDGE_SLACK_S = 0.005  # a timer that is a rounding too early would find no edge


class Accountant:
    """One account per VM at a time."""

    def __init__(
        self, world: World, store: ports.Store, firewall: ports.Firewall, clock: ports.Clock, timer: Any,
        policy: Callable[[], Policy], host: Callable[[], Tuple[int, int]],
        disks: Callable[[], Deferred[Mapping[str, int]]],
    ) -> None:
        self._world = world
        self._store = store
        self._firewall = firewall
        self._clock = clock
        self._timer = timer
        self._policy = policy
        self._host = host  # -> cores, MiB of this host
        self._disks = disks  # -> bytes that each VM's disks take
        self._bookings = Bookings(world)
        self._ledger = Ledger("", 0, 0)
        self._accounts: Dict[str, Account] = {}
        self._records: Dict[str, VmRecord] = {}  # of each account
        self._ends: Dict[str, End] = {}  # over, and its last traffic not booked yet
        self._dirty: Set[str] = set()
        self._unsaved: Set[str] = set()
        self._turning: Optional[Any] = None
        self._edge: Optional[Any] = None
        self._started = False
        self._lock: DeferredLock = DeferredLock()

    @property
    def accounts(self) -> Mapping[str, Account]:
        """Open ones by VM id."""
        return self._accounts

    @property
    def time(self) -> int:
        """Ledger time now."""
        return self._ledger.time(self._clock.now().at)

    # -- life

    async def start(self, accounts: Sequence[Account]) -> None:
        """Once the records are loaded.  accounts: as the store held them."""
        now, epoch = self._clock.now(), self._world.epoch
        kept = self._world.settings.get(LEDGER)
        former = None if kept is None else Ledger(**kept)
        booked = max((one.until_ms for one in accounts), default=0)
        self._ledger = ledger.begun(now, former, booked, epoch.number)
        restored = epoch.cause == "restored" and former is not None and former.epoch != epoch.number
        for account in accounts:
            await self._resumed(account, restored)
        self._bookings.add([[self._setting()]])
        self._started = True
        self._dirty.update(self._world.records)
        self._cut()
        await self._turn()
        self._arm()

    async def _resumed(self, account: Account, restored: bool) -> None:
        """An account of the last run of the agent goes on."""
        record = self._world.find(account.vm) or next(iter(await self._store.records(account.vm)), None)
        after = accountplan.doubted(account, self._ledger, self._clock.now().at) if restored else account
        if record is None or after is None:
            log.warning("%s is not accounted for any more: nothing is known of its VM", account.segment)
            self._bookings.add([[DropAccount(account.segment)]])
            return
        after = accountplan.moved(after, self._ledger)
        if after.segment != account.segment:
            self._bookings.add([[DropAccount(account.segment), PutAccount(after)]])
        self._accounts[account.vm], self._records[account.vm] = after, record
        self._dirty.add(account.vm)

    async def stop(self) -> None:
        """Save; what the store does not take now is in the counters, or is cut again."""
        for call in (self._edge, self._turning):
            if call is not None and call.active():
                call.cancel()
        if self._started:
            self._started = False
            self._save()
            await self._bookings.try_flush()

    # -- news

    def publish(self, changes: Sequence[Change]) -> None:
        """Implements ports.Feed: what a record says of its account is looked at soon."""
        self._dirty.update(change.record.vm for change in changes if isinstance(change, PutVm))
        if self._dirty and self._started and (self._turning is None or not self._turning.active()):
            self._turning = self._timer.callLater(0, self._begin)

    def _begin(self) -> None:
        Deferred.fromCoroutine(self._turn()).addErrback(_told)

    async def _turn(self) -> bool:
        """Everything that is known now, one turn at a time; whether all of it is stored."""
        await self._lock.acquire()
        try:
            return await self._turn_alone()
        finally:
            self._lock.release()

    async def _turn_alone(self) -> bool:
        self._cut()
        dirty, self._dirty = self._dirty, set()
        for vm in sorted(dirty):
            await self._follow(vm)
        await self._close_ended()
        return await self._bookings.try_flush()

    async def _follow(self, vm: str) -> None:
        record = self._world.find(vm) or self._records.get(vm)
        if record is None or vm in self._ends:
            return
        now_at = self._clock.now().at
        account = self._accounts.get(vm)
        if account is not None:
            self._records[vm] = record
            end = accountplan.ending(account, record, self._ledger, now_at)
            if end is not None:
                self._ends[vm] = end
                return
        rules = self._policy().accounting
        fresh = accountplan.beginning(record, account, self._ledger, now_at, rules)
        if fresh is not None:
            await self._open(fresh, account, record)
        elif account is not None:
            observed = self._world.observed.get(vm)
            after, closed = accountplan.going_on(account, record, observed, self._ledger, now_at, rules)
            self._bookings.add([self._closing(vm, closed, after)])

    async def _open(self, fresh: Account, before: Optional[Account], record: VmRecord) -> None:
        """A guest that was over before this was asked is followed to its end, unless that was done already."""
        if record.outcome is not None:
            prefix = f"{fresh.vm}/{fresh.incarnation}/"
            rows = await self._store.usage(0, 10_000, fresh.vm)
            if any(row.segment.startswith(prefix) for row in rows):
                fresh = usage.afterwards(fresh, fresh.until_ms, Kind.OVER)
        dropped = [] if before is None else [DropAccount(before.segment)]
        self._accounts[fresh.vm], self._records[fresh.vm] = fresh, record
        self._bookings.add([[*dropped, PutAccount(fresh)], self._cut_one(fresh.vm, self._ledger.edge_ms, 0)])
        self._dirty.add(fresh.vm)
        self.publish(())

    # -- readings

    async def take(self, reading: Reading) -> None:
        """Book a reading."""
        if not self._started:
            return
        self._cut()
        for vm, account in list(self._accounts.items()):
            if account.kind is not Kind.RUN or vm in self._ends or account.boot_id != self._ledger.boot_id:
                continue
            seen = usage.measured(vm, account.devices, reading, self._ledger)
            if min(self._ledger.time(reading.at), seen.at_ms) >= account.began_ms:  # else of the guest before
                account = usage.booked(account, self._ledger.time(reading.at))
                self._accounts[vm] = usage.taken(account, seen)
                self._unsaved.add(vm)

    async def last(self, vm: str) -> None:
        """Before the rules of an ended VM are removed.  Fault while its last traffic is not booked and stored."""
        if not self._started:
            raise Fault(FaultKind.BUSY, "accounting has not begun yet")
        self._dirty.add(vm)
        if not await self._turn() or vm in self._ends:
            raise Fault(FaultKind.BUSY, "its last traffic is not booked yet")
        reach("booked")

    async def _close_ended(self) -> None:
        """Accounts that are over are closed with the counters of rules that outlived the guest."""
        ends = {vm: end for vm, end in self._ends.items() if vm in self._accounts}
        counters = await self._counters(ends)
        for vm, end in ends.items():
            account = self._accounts[vm]
            if self._counted(account):
                if counters is None:
                    continue
                nics = {device: usage.traffic(counters[device]) for device in account.devices if device in counters}
                account = usage.taken(account, Measured(end.at_ms, nics=nics))
            self._ends.pop(vm, None)
            self._over(account, end)

    def _counted(self, account: Account) -> bool:
        return account.kind is Kind.RUN and bool(account.devices) and account.boot_id == self._ledger.boot_id

    async def _counters(self, ends: Mapping[str, End]) -> Optional[Mapping[str, NicCounters]]:
        if not any(self._counted(self._accounts[vm]) for vm in ends):
            return None
        try:
            return await self._firewall.counters()
        except Fault as fault:
            log.warning("the last traffic of %d VMs cannot be read yet: %s", len(ends), fault)
            return None

    def _over(self, account: Account, end: End) -> None:
        record = self._records[account.vm]
        closed = usage.ended(account, end.at_ms, end.outcome, end.gap_ms)
        after = accountplan.after(closed, record)
        if after is not None:
            after = accountplan.moved(after, self._ledger)
        self._bookings.add([self._closing(account.vm, [closed], after)])
        self._dirty.add(account.vm)
        self.publish(())

    # -- periods

    def _cut(self) -> None:
        """Close every period whose edge has passed; at the last edge the ledger follows the clock."""
        now, period_s = self._clock.now(), self._policy().accounting.period_s
        passed = ledger.next_edge(self._ledger.time(now.at), period_s) - period_s * 1000
        if passed <= self._ledger.edge_ms:
            return
        self._ledger, step = self._ledger.turned(passed, now)
        self._bookings.add([[self._setting()]])
        self._bookings.add([changes for vm in list(self._accounts) for changes in [self._cut_one(vm, passed, step)]])

    def _cut_one(self, vm: str, passed_ms: int, step_ms: int) -> List[Change]:
        account, end = self._accounts[vm], self._ends.get(vm)
        if account.kind is Kind.OVER or account.boot_id != self._ledger.boot_id:
            return []
        until, closed = passed_ms if end is None else min(passed_ms, end.at_ms - 1), []
        for edge in ledger.edges(account.period_ms, until, self._policy().accounting.period_s):
            account, one = usage.period_closed(account, edge, step_ms if edge == passed_ms else 0)
            closed.append(one)
        return self._closing(vm, closed, account)

    def _closing(self, vm: str, closed: Sequence[Closed], after: Optional[Account]) -> List[Change]:
        """Periods that are over and the account after them: remembered, and what stores them."""
        before = self._accounts[vm]
        changes: List[Change] = []
        for one in closed:
            if one.account.kind is not Kind.OVER:
                changes += self._row(one, self._records[vm])
        if after is None or after.segment != before.segment:
            changes.append(DropAccount(before.segment))
        if after is None:
            del self._accounts[vm], self._records[vm]
            self._unsaved.discard(vm)
            return changes
        if changes or after.suspended is not before.suspended:  # what no counter tells again is stored at once
            changes.append(PutAccount(after))
        elif after != before:
            self._unsaved.add(vm)
        self._accounts[vm] = after
        return changes

    def _row(self, closed: Closed, record: VmRecord) -> List[Change]:
        account = closed.account
        data = usageviews.data(closed, record, self._policy())
        return [
            PutUsage(account.vm, account.segment, account.period, data["from"], data["to"], data),
            Publish("usage", "org.vmagent.vm.usage", f"vm/{account.vm}", self._clock.now().wall, data),
        ]

    def _setting(self) -> PutSetting:
        return PutSetting(LEDGER, codec.plain(self._ledger))

    def _arm(self) -> None:
        """Wake at the next edge."""
        now = self._clock.now()
        edge = ledger.next_edge(self._ledger.time(now.at), self._policy().accounting.period_s)
        delay = max(0.0, self._ledger.boot_at(edge) - now.at) + EDGE_SLACK_S
        self._edge = self._timer.callLater(min(delay, LONGEST_WAIT_S), self._at_edge)

    def _at_edge(self) -> None:
        self._arm()
        self._begin()

    # -- once a minute

    async def minute(self) -> None:
        """Save, try again what failed, look whether the host's books balance."""
        if not self._started:
            return
        self._dirty.update(self._accounts)
        await self._weigh()
        await self._turn()
        self._save()
        await self._bookings.try_flush()
        await self._balance()

    async def _weigh(self) -> None:
        """What disks take by now; where that cannot be read it stays as last seen."""
        try:
            taken = await self._disks()
        except Fault as fault:
            log.warning("what disks take: %s", fault)
            return
        for vm, account in self._accounts.items():
            if vm in taken:
                self._accounts[vm] = dataclasses.replace(account, disk_used_gib=-(-taken[vm] // GIB))

    def _save(self) -> None:
        """Not while anything waits: it would be stored before what it follows from."""
        if not self._bookings:
            accounts = [self._accounts[vm] for vm in sorted(self._unsaved) if vm in self._accounts]
            self._unsaved.clear()
            self._bookings.add([[PutAccount(account)] for account in accounts])

    async def _balance(self) -> None:
        cores, memory_mib = self._host()
        wrong = usageviews.imbalance(self._accounts.values(), cores, memory_mib, self._policy())
        told = self._world.degraded.get(PART)
        if not wrong:
            self._world.degraded.pop(PART, None)
            return
        self._world.degraded[PART] = wrong
        if told is None:
            now = self._clock.now()
            alert = events.security_alert(kind="accounting-imbalance", detail=wrong, now=now)
            self._bookings.add([[Publish("events", "org.vmagent.security.alert", "host", now.wall, alert)]])
            await self._bookings.try_flush()


class CountedFirewall:
    """Performs what the firewall does; rules of an ended guest go after their counters were booked."""

    def __init__(self, firewall: ports.Firewall, last: Callable[[str], Awaitable[None]]) -> None:
        self._firewall = firewall
        self._last = last

    def perform(self, action: Action) -> Deferred[None]:
        if action.do is not Do.REMOVE_FIREWALL:
            return self._firewall.perform(action)
        return Deferred.fromCoroutine(self._removed(action))

    async def _removed(self, action: Action) -> None:
        await self._last(action.vm)
        await self._firewall.perform(action)


def _told(failure: Failure) -> None:
    """Edge: nobody waits for this work."""
    if isinstance(failure.value, Fault):
        log.warning("%s", failure.value)
    else:
        surprise(log, "accounting failed", failure)
