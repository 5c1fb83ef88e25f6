"""Accounts: what a VM is promised and what it uses, from its first instruction to its proven end.  Pure.

Rules

1. A segment is one footprint of one incarnation; another footprint is the next segment.  A reboot by the guest is
   nothing here.  A disk that is kept after the end is a segment of its own, without cores and memory.
2. Time is booked by the ledger, in order: `until_ms` only grows, and what is booked is suspended or not.
3. A counter that another program keeps may begin anew.  In another run of the QEMU, or where it shows less than
   before, it adds what it shows; what was not counted in between is told (`vanished`).  Only the disks' counters of
   one and the same run add nothing when they shrink: a disk was taken away, and its counter with it.
4. A period is closed once, at its edge; its use is the difference of two totals, so the periods sum up to the total.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Iterable, Optional, Tuple

from vmagent.core.ledger import Ledger, ms
from vmagent.core.limitmodel import NicCounters
from vmagent.core.samples import DiskCounters, Reading
from vmagent.core.usagemodel import (
    DISK,
    NETWORK,
    NO_IO,
    NO_TRAFFIC,
    PARTS,
    UNKNOWN,
    Account,
    Closed,
    Counts,
    Footprint,
    Kind,
    Known,
    Measured,
    Use,
)


def opened(
    vm: str, incarnation: int, number: int, boot_id: str, at_ms: int, footprint: Footprint, devices: Tuple[str, ...],
    adopted: bool = False,
) -> Account:
    """A segment begins.  adopted: its guest ran before, nobody knows since when: that is told in its first period."""
    return Account(
        vm, incarnation, number, boot_id, footprint, at_ms, at_ms, at_ms, devices=devices,
        known=UNKNOWN if adopted else Known(), **_first(devices),
        vanished=() if not adopted else PARTS if devices else ("cpu", "disk"),
    )  # fmt: skip


def _first(devices: Tuple[str, ...]) -> Dict[str, Any]:
    """Without interfaces the traffic is known: there is none."""
    parts = () if devices else ("network",)
    return {"measured": parts, "ever": parts}


def booked(account: Account, at_ms: int, suspended: Optional[bool] = None) -> Account:
    """Time up to here, as it was; from here on it is suspended or not.  None = nobody knows: as before."""
    span = max(0, at_ms - account.until_ms)
    total = account.total
    if account.suspended:
        total = dataclasses.replace(total, suspended_ms=total.suspended_ms + span)
    else:
        total = dataclasses.replace(total, wall_ms=total.wall_ms + span)
    after = account.suspended if suspended is None else suspended
    return dataclasses.replace(account, total=total, until_ms=account.until_ms + span, suspended=after)


def measured(vm: str, devices: Iterable[str], reading: Reading, ledger: Ledger) -> Measured:
    """What this reading says of this VM."""
    sample = reading.samples.get(vm)
    nics = None if reading.nics is None else {d: traffic(reading.nics[d]) for d in devices if d in reading.nics}
    if sample is None:
        return Measured(ledger.time(reading.at), nics=nics)
    disk = None if sample.disk is None or sample.disk_at is None else io(sample.disk)
    disk_at = sample.disk_at or 0.0
    cpu = None if sample.cpu_s is None else ms(sample.cpu_s)
    return Measured(ledger.time(sample.at), sample.run, cpu, disk, disk_at, ledger.time(disk_at), nics,
                    sample.memory_mib)


def traffic(counters: NicCounters) -> Counts:
    return tuple(getattr(counters, name) for name in NETWORK)


def io(counters: DiskCounters) -> Counts:
    return tuple(getattr(counters, name) for name in DISK)


def taken(account: Account, seen: Measured) -> Account:
    """The account with what a reading shows."""
    if account.kind is not Kind.RUN:
        return account
    entry = _Entry(account)
    entry.network(account.devices, seen)
    if seen.run:
        entry.anew(seen)
        entry.cpu(seen)
        entry.disk(seen)
    return entry.made(account if seen.memory_mib is None or not seen.run else _resident(account, seen.memory_mib))


def _resident(account: Account, memory_mib: int) -> Account:
    return account if account.memory_mib == memory_mib else dataclasses.replace(account, memory_mib=memory_mib)


class _Entry:
    """One reading on its way into an account: written down part by part, made a value once, for that is what costs."""

    def __init__(self, account: Account) -> None:
        total, known = account.total, account.known
        self._total: Dict[str, Any] = {"cpu_ms": total.cpu_ms, "disk": total.disk, "network": total.network}
        self._known: Dict[str, Any] = {"run": known.run, "cpu_ms": known.cpu_ms, "disk": known.disk,
                                       "disk_at": known.disk_at, "nics": known.nics}
        self._times: Dict[str, Any] = {}
        self._parts: Dict[str, Any] = {"measured": account.measured, "ever": account.ever, "vanished": account.vanished}

    def made(self, account: Account) -> Account:
        """The account after it."""
        total = dataclasses.replace(account.total, **self._total)
        return dataclasses.replace(account, total=total, known=Known(**self._known), **self._parts, **self._times)

    def _mark(self, part: str, lost: bool) -> None:
        for name in ("measured", "ever", "vanished") if lost else ("measured", "ever"):
            if part not in self._parts[name]:
                self._parts[name] = tuple(sorted((*self._parts[name], part)))

    def anew(self, seen: Measured) -> None:
        """Another QEMU than the last keeps the counters now: they begin at zero, and the last one's end is lost."""
        last, self._known["run"] = self._known["run"], seen.run
        if last in ("", seen.run):
            return
        self._known.update(cpu_ms=0, disk=NO_IO)
        for part in ("cpu", "disk"):
            if part in self._parts["ever"] and part not in self._parts["vanished"]:
                self._parts["vanished"] = tuple(sorted((*self._parts["vanished"], part)))

    def cpu(self, seen: Measured) -> None:
        if seen.cpu_ms is None:
            return
        last = self._known["cpu_ms"]
        lost = last is None or seen.cpu_ms < last
        self._total["cpu_ms"] += 0 if last is None else seen.cpu_ms if lost else seen.cpu_ms - last
        self._known["cpu_ms"], self._times["cpu_ms_at"] = seen.cpu_ms, seen.at_ms
        self._mark("cpu", lost)

    def disk(self, seen: Measured) -> None:
        if seen.disk is None or seen.disk_at <= self._known["disk_at"]:
            return
        last = self._known["disk"]
        then = seen.disk if last is None else last
        shrunk = any(a < b for a, b in zip(seen.disk, then))
        more = tuple(max(0, a - b) for a, b in zip(seen.disk, then))
        self._total["disk"] = _sum(self._total["disk"], more)
        self._known.update(disk=seen.disk, disk_at=seen.disk_at)
        self._times["disk_ms_at"] = seen.disk_at_ms
        self._mark("disk", last is None or shrunk)

    def network(self, devices: Tuple[str, ...], seen: Measured) -> None:
        """Rules that were taken away took their counters along: what is made anew begins at zero."""
        if seen.nics is None or not devices:
            return
        if self._known["nics"] is None:
            self._known["nics"] = tuple(sorted(seen.nics.items()))
            self._mark("network", True)
            return
        marks, lost = dict(self._known["nics"]), False
        for device in devices:
            last, now = marks.get(device, NO_TRAFFIC), seen.nics.get(device, NO_TRAFFIC)
            marks[device] = now
            if now != last:
                fell = any(a < b for a, b in zip(now, last))
                more = now if fell else tuple(a - b for a, b in zip(now, last))
                self._total["network"] = _sum(self._total["network"], more)
                lost = lost or fell
        self._known["nics"] = tuple(sorted(marks.items()))
        if seen.nics or lost:
            self._mark("network", lost)


def _sum(one: Counts, other: Counts) -> Counts:
    return tuple(a + b for a, b in zip(one, other))


def used(account: Account) -> Use:
    """In the open period."""
    return account.total.minus(account.before)


def period_closed(account: Account, edge_ms: int, step_ms: int = 0) -> Tuple[Account, Closed]:
    """At an edge: the account in its next period, and the one that is over.  step_ms: what the ledger does here."""
    account = booked(account, edge_ms)
    closed = Closed(account, clock_step_ms=step_ms)
    begins = account.until_ms + max(0, step_ms)
    return _next_period(account, begins), closed


def _next_period(account: Account, at_ms: int) -> Account:
    return dataclasses.replace(
        account, period=account.period + 1, period_ms=at_ms, until_ms=at_ms, before=account.total, vanished=(),
        measured=PARTS if account.kind is not Kind.RUN else () if account.devices else ("network",),
    )  # fmt: skip


def ended(account: Account, at_ms: int, outcome: str = "", gap_ms: int = 0) -> Closed:
    """The segment is over at a proven time, or gap_ms: at most this much later than at_ms."""
    return Closed(booked(account, at_ms), True, outcome, gap_ms=gap_ms)


def followed(account: Account, at_ms: int, footprint: Footprint) -> Tuple[Account, Closed]:
    """Another footprint: the next segment goes on where this one ends, with the same counters."""
    closed = ended(account, at_ms)
    last = closed.account
    fresh = opened(last.vm, last.incarnation, last.number + 1, last.boot_id, last.until_ms, footprint, last.devices)
    return dataclasses.replace(
        fresh, known=last.known, suspended=last.suspended, memory_mib=last.memory_mib,
        disk_used_gib=last.disk_used_gib,
    ), closed  # fmt: skip


def afterwards(account: Account, at_ms: int, kind: Kind) -> Account:
    """What follows its guest: DISK or OVER.  Nothing is measured any more, and nothing is lost by that."""
    footprint = Footprint(0, 0, account.footprint.disk_gib if kind is Kind.DISK else 0)
    number = account.number + 1
    return dataclasses.replace(
        opened(account.vm, account.incarnation, number, account.boot_id, at_ms, footprint, ()), kind=kind,
        measured=PARTS, ever=PARTS, disk_used_gib=account.disk_used_gib,
    )  # fmt: skip


def uncertain_ms(closed: Closed) -> int:
    """How much of the time before the end no sample covers: the oldest of what is measured by sampling at all."""
    account = closed.account
    if account.kind is not Kind.RUN:
        return closed.gap_ms
    times = [at for at in (account.cpu_ms_at, account.disk_ms_at) if at is not None]
    last = min(times, default=account.began_ms)
    return max(0, account.until_ms - max(last, account.began_ms)) + closed.gap_ms


def unmeasured(account: Account) -> Tuple[str, ...]:
    """Parts of which something, or all, was not counted in the open period."""
    lacks = [part for part in PARTS if part not in account.measured]
    return tuple(sorted({*account.vanished, *lacks}))
