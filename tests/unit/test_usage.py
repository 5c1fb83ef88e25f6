"""Accounts: what is cut into periods sums up exactly, whatever becomes of clocks, counters and guests."""

from __future__ import annotations

import dataclasses
import random
from typing import Any, Dict, List, Optional, Tuple

import pytest

from tests.support import building as b
from vmagent.core import schemas, usage, usageviews, walltime
from vmagent.core.ledger import Ledger, edges, ms, wall_text
from vmagent.core.limitmodel import NicCounters
from vmagent.core.model import Outcome
from vmagent.core.samples import DiskCounters, HostSample, Reading, Sample
from vmagent.core.usagemodel import (
    Account,
    AccountingRules,
    Benchmark,
    Closed,
    Footprint,
    Kind,
    Measured,
)

NOON = ms(walltime.seconds("2026-11-20T12:00:00.000Z"))
VM, NIC = b.spec().vm, b.spec().interfaces[0].device
SIZE = Footprint(2, 512, 10)


def account(**kw: Any) -> Account:
    return dataclasses.replace(usage.opened(VM, 0, 1, b.BOOT, NOON, SIZE, (NIC,)), **kw)


def seen(at_ms: int = NOON + 10_000, run: str = "1", cpu: Optional[int] = 0, written: int = 0, sent: int = 0,
         **kw: Any) -> Measured:
    members: Dict[str, Any] = {
        "cpu_ms": cpu, "disk": (0, 0, written, written), "disk_at": at_ms / 1000.0, "disk_at_ms": at_ms,
        "nics": {NIC: (0, 0, 0, 0, 0, 0, sent, 1)}, **kw,
    }  # fmt: skip
    return Measured(at_ms, run, **members)


def sent(one: Account) -> int:
    return one.total.network[6]


def written(one: Account) -> int:
    return one.total.disk[2]


# -- time


def test_time_is_suspended_or_not_from_when_it_was_seen() -> None:
    one = usage.booked(account(), NOON + 10_000, suspended=True)
    one = usage.booked(one, NOON + 15_000)
    one = usage.booked(one, NOON + 16_000, suspended=False)
    one = usage.booked(one, NOON + 17_000)
    assert (one.total.wall_ms, one.total.suspended_ms) == (11_000, 6_000)


def test_time_never_runs_backwards() -> None:
    one = usage.booked(account(), NOON + 10_000)
    assert usage.booked(one, NOON + 5_000) == one


def test_periods_meet_at_the_edge_and_sum_up_to_the_total() -> None:
    one = usage.taken(account(), seen(cpu=700, written=5, sent=9))
    one, first = usage.period_closed(one, NOON + 3_600_000)
    one = usage.taken(one, seen(NOON + 3_610_000, cpu=1000, written=6, sent=10))
    last = usage.ended(one, NOON + 3_620_000, "killed")
    assert (first.account.period, last.account.period) == (1, 2)
    assert first.account.until_ms == last.account.period_ms == NOON + 3_600_000
    both = [usage.used(first.account), usage.used(last.account)]
    assert [u.wall_ms for u in both] == [3_600_000, 20_000]
    assert [u.cpu_ms for u in both] == [700, 300] and last.account.total.cpu_ms == 1000
    assert [u.disk[2] for u in both] == [5, 1] and [u.network[6] for u in both] == [9, 1]


def test_a_step_of_the_clock_takes_no_time_and_is_told() -> None:
    one, closed = usage.period_closed(account(), NOON + 3_600_000, 7_200_000)
    assert one.period_ms == one.until_ms == NOON + 10_800_000
    assert one.total.wall_ms == 3_600_000 and closed.clock_step_ms == 7_200_000
    one, closed = usage.period_closed(account(), NOON + 3_600_000, -7_200_000)
    assert one.period_ms == NOON + 3_600_000 and closed.clock_step_ms == -7_200_000


# -- counters


def test_another_qemu_s_counters_begin_at_zero_and_what_was_lost_between_is_told() -> None:
    one = usage.taken(account(), seen(cpu=700, written=50))
    one = usage.taken(one, seen(NOON + 20_000, run="2", cpu=800, written=60))
    assert one.total.cpu_ms == 1500 and written(one) == 110
    assert one.vanished == ("cpu", "disk")
    late = dataclasses.replace(seen(NOON + 20_000, run="2", cpu=800), disk=None)
    one = usage.taken(usage.taken(account(), seen(cpu=700, written=50)), late)
    one = usage.taken(one, seen(NOON + 30_000, run="2", cpu=900, written=20))
    assert written(one) == 70, "its disk counters came later than those of its cpu"


def test_a_counter_that_fell_adds_what_it_shows() -> None:
    one = usage.taken(account(), seen(cpu=700, sent=1000))
    one = usage.taken(one, seen(NOON + 20_000, cpu=100, sent=10))
    assert one.total.cpu_ms == 800 and sent(one) == 1010
    assert set(one.vanished) == {"cpu", "network"}


def test_a_disk_that_was_taken_away_takes_its_counter_along_and_adds_nothing() -> None:
    one = usage.taken(account(), seen(written=1000))
    one = usage.taken(one, seen(NOON + 20_000, written=400))
    one = usage.taken(one, seen(NOON + 30_000, written=450))
    assert written(one) == 1050 and one.vanished == ("disk",)


def test_disk_counters_that_were_booked_are_not_booked_again() -> None:
    first = seen(written=1000)
    one = usage.taken(account(), first)
    again = dataclasses.replace(first, at_ms=NOON + 20_000)
    assert usage.taken(one, again).total == one.total
    assert one.disk_ms_at == NOON + 10_000


def test_rules_that_vanished_take_their_counters_along() -> None:
    one = usage.taken(account(), seen(sent=1000))
    one = usage.taken(one, seen(NOON + 20_000, nics={}))
    one = usage.taken(one, seen(NOON + 30_000, sent=5000))
    assert sent(one) == 6000 and one.vanished == ("network",)


def test_what_the_kernel_does_not_say_is_unknown_and_takes_nothing_away() -> None:
    one = usage.taken(account(), seen(sent=1000))
    one = usage.taken(one, seen(NOON + 20_000, nics=None, cpu=None, disk=None))
    assert sent(one) == 1000 and one.vanished == ()
    one, _ = usage.period_closed(one, NOON + 3_600_000)
    assert usage.unmeasured(one) == ("cpu", "disk", "network")


def test_what_ran_before_it_was_adopted_is_unknown_and_never_booked() -> None:
    one = usage.opened(VM, 0, 5, b.BOOT, NOON, SIZE, (NIC,), adopted=True)
    one = usage.taken(one, seen(cpu=9000, written=9000, sent=9000))
    assert one.total.cpu_ms == 0 and written(one) == 0 and sent(one) == 0
    assert one.vanished == ("cpu", "disk", "network")
    one, _ = usage.period_closed(one, NOON + 3_600_000)
    one = usage.taken(one, seen(NOON + 3_610_000, cpu=9500, written=9001, sent=9002))
    assert (one.total.cpu_ms, written(one), sent(one), one.vanished) == (500, 1, 2, ())


# -- segments


def test_another_footprint_is_the_next_segment_with_the_same_counters() -> None:
    one = usage.taken(account(), seen(cpu=700, sent=70))
    two, closed = usage.followed(one, NOON + 20_000, Footprint(4, 512, 10))
    two = usage.taken(two, seen(NOON + 30_000, cpu=1000, sent=71))
    assert (closed.account.segment, two.segment) == (f"{VM}/0/1", f"{VM}/0/2")
    assert closed.final and closed.account.until_ms == two.began_ms
    assert two.total.cpu_ms == 300 and sent(two) == 1 and two.vanished == ()


def test_a_kept_disk_is_a_segment_without_cores_of_which_nothing_is_unknown() -> None:
    over = usage.ended(account(), NOON + 20_000, "finished")
    kept = usage.afterwards(over.account, over.account.until_ms, Kind.DISK)
    kept = usage.taken(kept, seen(NOON + 30_000, cpu=9, sent=9))
    data = view(usage.ended(kept, NOON + 30_000))
    assert data["footprint"]["cores"] == 0 and data["used"]["core_s"] == 0
    assert data["used"]["disk_gib_s"] == 100 and data["segment"] == f"{VM}/0/2"
    assert data["vanished"] == [] and data["tail_uncertain_s"] == 0


def test_the_tail_is_what_no_sample_covers() -> None:
    one = usage.taken(account(), seen(NOON + 10_000))
    one = usage.taken(one, dataclasses.replace(seen(NOON + 20_000), disk_at=NOON / 1000.0 + 10))
    assert usage.uncertain_ms(usage.ended(one, NOON + 25_000)) == 15_000  # of the disk
    assert usage.uncertain_ms(usage.ended(one, NOON + 25_000, gap_ms=60_000)) == 75_000
    assert usage.uncertain_ms(usage.ended(account(), NOON + 3_000)) == 3_000


# -- from a reading


def test_a_reading_becomes_what_is_known_of_a_vm() -> None:
    sample = Sample(VM, 1010.0, "1:2", cpu_s=1.5, disk=DiskCounters(1, 2, 3, 4), disk_at=1005.0, memory_mib=300)
    nics = {NIC: NicCounters(1, 2, 3, 4, 5, 6, 7, 8, spoofed_packets=9), "other": NicCounters()}
    ledger = Ledger(b.BOOT, 1_000_000, NOON)
    found = usage.measured(VM, (NIC,), Reading(1010.0, {VM: sample}, nics, HostSample(1010.0)), ledger)
    assert found == Measured(NOON + 10_000, "1:2", 1500, (1, 2, 3, 4), 1005.0, NOON + 5_000,
                             {NIC: (1, 2, 3, 4, 5, 6, 7, 8)}, 300)
    absent = usage.measured(VM, (NIC,), Reading(1010.0, {}, None, HostSample(1010.0)), ledger)
    assert absent == Measured(NOON + 10_000)


# -- what is published


def view(closed: Closed, **kw: Any) -> Dict[str, Any]:
    data = usageviews.data(closed, b.record(**kw), b.policy())
    schemas.check("event.vm.usage", data)
    return data


def test_what_is_published_has_its_schema_and_its_numbers() -> None:
    one = usage.taken(account(), seen(cpu=700, written=5, sent=9))
    one = usage.booked(one, NOON + 1_800_000, suspended=True)
    data = view(usage.ended(one, NOON + 3_600_000, Outcome.KILLED.value))
    assert data["used"] == data["total"]
    assert data["used"]["wall_s"] == data["used"]["suspended_s"] == 1800.0
    assert data["used"]["core_s"] == 7200.0 and data["used"]["memory_mib_s"] == 512 * 3600
    assert data["used"]["cpu_s"] == 0.7 and data["used"]["network"]["out_external_bytes"] == 9
    assert (data["status"], data["final"], data["outcome"]) == ("completed", True, "killed")
    assert data["from"] == data["started_at"] == "2026-11-20T12:00:00.000Z"
    assert data["to"] == data["ended_at"] == "2026-11-20T13:00:00.000Z"


def test_numbers_that_nobody_measured_are_null_and_named() -> None:
    data = view(usage.ended(account(), NOON + 3_000))
    assert data["used"]["cpu_s"] is data["used"]["network"] is data["total"]["disk"] is None
    assert data["vanished"] == ["cpu", "disk", "network"] and data["used"]["core_s"] == 6.0


@pytest.mark.parametrize(
    "public, found",
    [((), ("8.8.8.8", "2606:4700::1111")), (("192.0.2.0/24",), ("192.0.2.10",)), (("10.0.0.0/8",), ())],
)
def test_public_addresses_are_the_site_s_or_what_is_routable(public: Tuple[str, ...], found: Tuple[str, ...]) -> None:
    addresses = ("192.0.2.10/24", "192.168.1.2/24", "8.8.8.8/24", "2606:4700::1111/64", "fd00::1/64")
    spec = b.spec(interfaces=(b.interface(VM, addresses=addresses),))
    rules = AccountingRules(public=public, benchmark=Benchmark("HEPSPEC06", 12.5))
    what = usageviews.footprint(spec, rules)
    assert what.public_addresses == found
    assert (what.cores, what.memory_mib, what.disk_gib, what.benchmark) == (1, 512, 2, rules.benchmark)


def test_an_imbalance_of_the_host_is_said_in_words() -> None:
    policy = dataclasses.replace(b.policy(), cpu_overcommit=2.0, reserved_memory_mib=1024)
    three = [dataclasses.replace(account(), vm=name) for name in "abc"]
    assert usageviews.imbalance(three, 3, 4096, policy) == ""
    assert usageviews.imbalance(three, 2, 4096, policy) == "cores: 6 accounted, 4 given"
    assert usageviews.imbalance(three, 3, 2048, policy) == "memory_mib: 1536 accounted, 1024 given"
    assert usageviews.imbalance([*three, account(vm="c")], 9, 9999, policy) == "two open segments of c"


# -- a random life


class Life:
    """A guest, its counters as the kernel keeps them, and what really happened; every step by seeded chance."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.at = NOON + self.chance.randrange(3_600_000)
        self.first = self.at
        self.run, self.cpu, self.disk, self.sent = 1, 0, 0, 0
        self.true_cpu = self.true_disk = self.true_sent = 0
        self.steps = 0
        self.account = usage.opened(VM, 0, 1, b.BOOT, self.at, SIZE, (NIC,))
        self.closed: List[Closed] = []

    def pass_time(self) -> None:
        """Counters grow by what is used, periods close at their edges."""
        until = self.at + self.chance.randrange(1, 2_000_000)
        for edge in edges(self.at, until, 3600):
            step = self.chance.choice((0, 0, 0, 86_400_000, -5_000))
            self.account, closed = usage.period_closed(self.account, edge, step)
            self.closed.append(closed)
            if step > 0:
                self.steps += step
                until = edge + step
                break
        self.at = until
        self.account = usage.booked(self.account, self.at, self.chance.choice((None, True, False)))
        for name in ("cpu", "disk", "sent"):
            more = self.chance.randrange(5000)
            setattr(self, name, getattr(self, name) + more)
            setattr(self, f"true_{name}", getattr(self, f"true_{name}") + more)

    def look(self) -> None:
        nics = {NIC: (0, 0, 0, 0, 0, 0, self.sent, 0)}
        self.account = usage.taken(self.account, seen(self.at, str(self.run), self.cpu, self.disk, nics=nics))

    def trouble(self) -> None:
        """Right after a look, so that nothing is lost: a new QEMU, flushed rules, another size."""
        self.look()
        kind = self.chance.choice(("none", "qemu", "rules", "size"))
        if kind == "qemu":
            self.run, self.cpu, self.disk = self.run + 1, 0, 0
        elif kind == "rules":
            self.sent = 0
            nics = self.chance.choice(({}, {NIC: (0,) * 8}))
            self.account = usage.taken(self.account, Measured(self.at, nics=nics))
        elif kind == "size":
            size = Footprint(self.chance.randrange(1, 9), 512, 10)
            self.account, closed = usage.followed(self.account, self.at, size)
            self.closed.append(closed)


@pytest.mark.parametrize("seed", range(60))
def test_a_random_life_balances(seed: int) -> None:
    life = Life(seed)
    for _ in range(40):
        life.pass_time()
        life.trouble()
    life.closed.append(usage.ended(life.account, life.at, "killed"))
    spans = [(c.account.period_ms, c.account.until_ms) for c in life.closed]
    for (_, to), (begins, _), before in zip(spans, spans[1:], life.closed):
        assert begins == to + max(0, before.clock_step_ms), "no gap, no overlap"
    parts = [usage.used(c.account) for c in life.closed]
    numbers = [n for u in parts for n in (u.wall_ms, u.suspended_ms, u.cpu_ms, *u.network, *u.disk)]
    assert min(numbers) >= 0
    assert sum(u.wall_ms + u.suspended_ms for u in parts) == life.at - life.first - life.steps
    assert sum(u.cpu_ms for u in parts) == life.true_cpu
    assert sum(u.disk[2] for u in parts) == life.true_disk
    assert sum(u.network[6] for u in parts) == life.true_sent
    assert_published(life.closed)


def assert_published(closed: List[Closed]) -> None:
    """Per segment: numbered from 1, one final, and the published sums agree to the millisecond and byte."""
    rows = [view(one) for one in closed]
    for segment in {row["segment"] for row in rows}:
        mine = [row for row in rows if row["segment"] == segment]
        assert [row["period"] for row in mine] == list(range(1, len(mine) + 1))
        assert [row["final"] for row in mine] == [False] * (len(mine) - 1) + [True]
        for name in ("wall_s", "suspended_s", "core_s", "cpu_s", "memory_mib_s", "disk_gib_s"):
            total = mine[-1]["total"][name]
            assert sum(ms(row["used"][name] or 0) for row in mine) == ms(total or 0)
        sums = sum((row["used"]["network"] or {"out_external_bytes": 0})["out_external_bytes"] for row in mine)
        assert sums == (mine[-1]["total"]["network"] or {"out_external_bytes": 0})["out_external_bytes"]
    assert all(row["to"] == wall_text(one.account.until_ms) for row, one in zip(rows, closed))
