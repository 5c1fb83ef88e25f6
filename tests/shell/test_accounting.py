"""The accountant over a real store and a host that is used: what happens in a day, and what a crash leaves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from twisted.internet.defer import fail

from tests.support import building, day
from tests.support.lanes import HandTurned
from tests.support.memory_store import FailingStore, MemoryStore, never
from tests.support.site import Site, again, start_args
from vmagent import usagereport
from vmagent.core import schemas, walltime
from vmagent.core.actions import Do
from vmagent.core.changes import PutAccount, PutUsage
from vmagent.core.identity import vm_id
from vmagent.core.model import Phase, Seen
from vmagent.core.usagemodel import Kind
from vmagent.errors import Fault, FaultKind, Problem

POLICY = dataclasses.replace(building.policy(), maxima=dataclasses.replace(building.policy().maxima, lifetime_s=10**6))


class Day:
    """One host, over as many runs of the agent as a test wants."""

    def __init__(self, folder: Path, store: Any = None) -> None:
        self.folder, self.store = folder, store
        clock = HandTurned()
        clock.rightNow = 1000.0
        self.host = day.UsedHost(clock)
        self.sites: List[Site] = [Site(folder, self.host, POLICY, store)]

    @property
    def site(self) -> Site:
        return self.sites[-1]

    def start(self, **kw: Any) -> str:
        id = self.send("vm.start", start_args(lifetime_s=900_000, **kw))
        vm = vm_id(id, 0)
        self.site.settle(lambda: self.site.phase(vm) is Phase.READY)
        return vm

    def send(self, verb: str, args: Any) -> str:
        until = walltime.text(walltime.seconds(self.host.now().wall) + 3600)
        id = self.site.send(verb, args, valid_until=until)
        assert self.site.replies(id)[-1]["status"] != "refused", self.site.replies(id)
        return id

    def minutes(self, count: int, *vms: str, cpu_ms: int = 700, written: int = 50, sent: int = 9) -> None:
        """Guests work and are measured; the agent lives its minutes."""
        for _ in range(count):
            self.site._drain()
            self.site.reactor.advance(60.0)
            for vm in vms:
                self.host.use(vm, cpu_ms, written, sent)
            self.site._drain()
            self.site.run(self.site.accountant.take(self.host.reading()))
            self.site.run(self.site.accountant.minute())

    def crash(self, away_s: float = 0.0) -> None:
        """kill -9 of the agent, and the next one after a while."""
        old = self.sites[-1]
        old.accountant.publish = lambda changes: None  # type: ignore[method-assign]
        if old.accountant._edge.active():
            old.accountant._edge.cancel()
        self.host.clock.rightNow += away_s
        again(self.sites, self.folder, policy=POLICY, **({"store": self.store} if self.store else {}))
        self.site.run(self.site.holder.hold(whole=True))
        self.site.settle(self.site.reconciler.idle)

    def over(self, vm: str) -> None:
        """Until its segment is closed and stored."""
        self.site.settle(lambda: all(a.kind is not Kind.RUN for v, a in self.site.accountant.accounts.items()
                                     if v == vm) and not self.site.accountant._bookings)

    def rows(self, vm: str = "") -> List[Dict[str, Any]]:
        return [dict(row.data) for row in self.site.wait(self.site.store.usage(0, 10_000, vm))]

    def published(self) -> List[Dict[str, Any]]:
        return [dict(row.data) for row in self.site.rows() if row.type == "org.vmagent.vm.usage"]


@pytest.fixture
def today(tmp_path: Path) -> Iterator[Day]:
    made = Day(tmp_path)
    yield made
    for site in made.sites:
        site.stop()


def seconds(row: Dict[str, Any], name: str) -> float:
    return walltime.seconds(row[name])


# -- the day


def test_a_rest_is_not_forgotten_with_the_agent(today: Day) -> None:
    """No counter tells it again: paused and resumed between two readings, and the agent is killed."""
    vm = today.start()
    today.minutes(1, vm)
    began = today.host.clock.seconds()
    today.send("vm.pause", {"vms": [vm]})
    today.site.settle(lambda: today.site.phase(vm) is Phase.PAUSED)
    today.site.reactor.advance(20.0)
    today.send("vm.resume", {"vms": [vm]})
    today.site.settle(lambda: today.site.accountant.accounts[vm].total.suspended_ms > 0)
    rested = today.site.accountant.accounts[vm].total.suspended_ms
    assert 20_000 <= rested <= 1000 * (today.host.clock.seconds() - began)
    today.crash()
    assert today.site.accountant.accounts[vm].total.suspended_ms == rested


def test_a_scripted_day(today: Day) -> None:
    host = today.host
    one, two = today.start(name="one"), today.start(name="two", restart="always")
    began = {vm: today.site.world.records[vm].journal.began_at for vm in (one, two)}
    today.minutes(50, one, two)
    host.step(5400.0)  # somebody sets the clock forward
    today.minutes(30, one, two)
    today.crash(away_s=2000.0)
    today.minutes(20, one, two)
    today.send("vm.reboot", {"vms": [one]})
    today.minutes(5, one, two)
    today.send("vm.pause", {"vms": [one]})
    today.site.settle(lambda: today.site.phase(one) is Phase.PAUSED)
    paused = today.site.world.observed[one].domain.at
    today.minutes(30, two)
    today.crash(away_s=300.0)
    today.send("vm.resume", {"vms": [one]})
    today.site.settle(lambda: today.site.phase(one) is Phase.READY)
    host.step(-86_400.0)
    today.minutes(90, one, two)
    host.use(one, cpu_ms=100, written=7, sent=1234)  # after the last reading
    host.use(two, sent=4321)
    host.dies(one)
    host.dies(two)
    today.site.reconciler.mark_all()
    today.over(one)
    today.site.settle(lambda: today.site.world.records[two].spec.incarnation == 1
                      and today.site.phase(two) is Phase.READY, 700)
    today.minutes(200, two)
    host.dies(two, "destroyed")
    today.site.reconciler.mark_all()
    today.over(two)
    rows = today.rows()
    assert rows == today.published(), "what is stored is what is published"
    day.balanced(rows)
    for row in rows:
        schemas.check("event.vm.usage", row)
    assert_one(today, [r for r in rows if r["vm"] == one], began[one], paused)
    assert_two(today, [r for r in rows if r["vm"] == two])
    assert any(row["to"] == "2026-12-01T00:00:00.000Z" for row in rows), "no month edge"
    assert [row["clock_step_s"] for row in rows if row["vm"] == one and row["clock_step_s"] > 0] == [5400.0]
    assert min(row["clock_step_s"] for row in rows) < -80_000
    assert not any(d.startswith("accounting") for d in today.site.world.degraded)


def assert_one(today: Day, rows: List[Dict[str, Any]], began: Any, paused: float) -> None:
    """From its first resume to its proven end, to the millisecond; counters but for the tail."""
    last, truth = rows[-1], today.host.truth[rows[0]["vm"]]
    record = today.site.world.find(rows[0]["vm"])
    assert record is not None and record.journal.ended_at is not None
    lived = round((record.journal.ended_at - began) * 1000)
    assert day.summed(rows, "wall_s") + day.summed(rows, "suspended_s") == lived
    assert (last["final"], last["status"], last["outcome"]) == (True, "completed", "crashed")
    assert last["total"]["network"]["out_external_bytes"] == truth.sent, "the last seconds before kill -9"
    assert last["total"]["cpu_s"] == (truth.cpu_ms - 100) / 1000
    assert last["total"]["disk"]["write_bytes"] == truth.written - 7
    assert 0 < last["tail_uncertain_s"] < 61 and last["vanished"] == []
    assert 2090 < last["total"]["suspended_s"] < 2140 and paused > 0


def assert_two(today: Day, rows: List[Dict[str, Any]]) -> None:
    """Two lives, two segments, no traffic lost or counted twice between them."""
    segments = sorted({row["segment"] for row in rows})
    assert [segment.split("/", 1)[1] for segment in segments] == ["0/1", "1/1"]
    finals = [row for row in rows if row["final"]]
    assert [row["outcome"] for row in finals] == [None, "killed"]
    assert seconds(finals[0], "to") <= seconds(next(r for r in rows if r["incarnation"] == 1), "from")
    total = sum(row["total"]["network"]["out_external_bytes"] for row in finals)
    assert total == today.host.truth[rows[0]["vm"]].sent
    assert sum(row["total"]["cpu_s"] for row in finals) == today.host.truth[rows[0]["vm"]].cpu_ms / 1000


# -- what begins and ends a segment


def test_other_limits_are_the_next_segment_and_nothing_is_lost_between(today: Day) -> None:
    vm = today.start()
    today.minutes(3, vm)
    today.host.use(vm, cpu_ms=5, sent=5)
    today.send("vm.limits", {"vms": [vm], "cpu_cap_core_percent": 25})
    today.site.settle(today.site.reconciler.idle)
    today.minutes(3, vm)
    today.host.dies(vm)
    today.site.reconciler.mark_all()
    today.over(vm)
    rows = today.rows()
    day.balanced(rows)
    assert [(r["segment"][-3:], r["final"], r["outcome"]) for r in rows] == [
        ("0/1", True, None), ("0/2", True, "crashed")]
    assert [r["footprint"]["cpu_cap_core_percent"] for r in rows] == [50, 25]
    assert rows[0]["to"] == rows[1]["from"]
    assert sum(r["used"]["network"]["out_external_bytes"] for r in rows) == today.host.truth[vm].sent
    assert sum(r["used"]["cpu_s"] for r in rows) == today.host.truth[vm].cpu_ms / 1000


def test_a_kept_disk_is_accounted_until_its_files_are_gone(today: Day) -> None:
    vm = today.start(keep_s=4000)
    today.minutes(2, vm)
    today.send("vm.kill", {"vms": [vm]})
    today.over(vm)
    today.minutes(40)
    today.crash(away_s=600.0)
    today.minutes(60)
    today.site.settle(lambda: not today.site.accountant.accounts)
    guest, *kept = today.rows()
    day.balanced([guest, *kept])
    assert guest["outcome"] == "killed" and guest["footprint"]["cores"] == 1
    assert [row["footprint"]["cores"] for row in kept] == [0] * len(kept) and len(kept) >= 2
    assert kept[0]["from"] == guest["to"] and kept[-1]["final"]
    assert kept[-1]["total"]["disk_gib_s"] >= 2 * 4000 and kept[-1]["total"]["core_s"] == 0
    assert all(row["vanished"] == [] and row["tail_uncertain_s"] == 0 for row in kept)


def test_a_host_reboot_ends_it_at_the_last_known_time_and_says_how_long_that_is_uncertain(today: Day) -> None:
    vm = today.start()
    today.minutes(5, vm)
    last = today.site.accountant.accounts[vm]
    host = today.host
    host.worlds[vm].off("")
    host.worlds[vm].left -= {"firewall"}
    host.firewall.counted.clear()
    boot, wall = host.clock.rightNow, walltime.seconds(host.now().wall)
    host.boot_id = building.OTHER_BOOT
    host.step(boot + 600 - 20.0)  # it came up ten minutes later, 20 s ago
    host.clock.rightNow = 20.0
    assert walltime.seconds(host.now().wall) == wall + 600
    today.crash()
    today.over(vm)
    (row,) = today.rows()
    day.balanced([row])
    assert (row["outcome"], row["final"]) == ("lost", True)
    assert round(walltime.seconds(row["to"]) * 1000) == last.until_ms
    assert 580 <= row["tail_uncertain_s"] <= 640
    assert row["total"]["cpu_s"] == host.truth[vm].cpu_ms / 1000


def test_a_lost_store_goes_on_from_the_tags_and_says_what_is_unknown(today: Day, tmp_path: Path) -> None:
    vm = today.start()
    today.minutes(5, vm)
    site = today.site
    site.reconciler.stop()
    site.run(site.accountant.stop())
    site.wait(site.store.close())
    for path in tmp_path.glob("vmagent.db*"):
        path.unlink()
    today.crash()
    today.minutes(5, vm, cpu_ms=100, sent=1)
    today.host.dies(vm)
    today.site.reconciler.mark_all()
    today.over(vm)
    (row,) = today.rows()
    assert row["number"] == today.site.world.epoch.number and row["period"] == 1
    assert row["vanished"] == ["cpu", "disk", "network"]
    assert row["total"]["cpu_s"] == 0.4, "the first reading only marks where the counters are"


def test_a_restored_store_books_nothing_on_what_it_has_forgotten(today: Day, tmp_path: Path) -> None:
    vm = today.start()
    today.minutes(2, vm)
    site = today.site
    site.run(site.accountant.stop())
    site.wait(site.store.close())
    copy = (tmp_path / "vmagent.db").read_bytes()
    site.wait(site.store.open(site.host.now()))
    site.accountant._started = True
    today.minutes(60, vm)
    before = today.rows()
    site.reconciler.stop()
    site.wait(site.store.close())
    for path in tmp_path.glob("vmagent.db-*"):
        path.unlink()
    (tmp_path / "vmagent.db").write_bytes(copy)
    today.crash()
    assert today.site.world.epoch.cause == "restored"
    today.minutes(2, vm)
    today.host.dies(vm)
    today.site.reconciler.mark_all()
    today.over(vm)
    segments = {row["segment"] for row in today.rows()}
    assert segments == {f"{vm}/0/{today.site.world.epoch.number}"} and before[0]["segment"] not in segments


# -- crashes


@pytest.mark.parametrize("turns", range(12))
def test_a_crash_anywhere_on_the_way_to_the_end_books_the_last_traffic_once(today: Day, turns: int) -> None:
    vm = today.start()
    today.minutes(2, vm)
    today.host.use(vm, sent=77)
    today.host.dies(vm)
    today.site.reconciler.mark_all()
    for _ in range(turns):
        today.site.reactor.advance(0.1)
        today.site._drain()
    today.crash()
    today.site.settle(lambda: vm not in today.site.world.records and not today.site.accountant.accounts)
    (row,) = today.rows()
    assert row["total"]["network"]["out_external_bytes"] == today.host.truth[vm].sent
    assert row["final"] and row["vanished"] == []
    done = [do for one, do in today.host.done if one == vm]
    assert done.count(Do.REMOVE_FIREWALL) >= 1


@pytest.mark.parametrize("turns", range(0, 30, 3))
def test_a_crash_anywhere_in_a_start_opens_one_account_at_its_first_resume(today: Day, turns: int) -> None:
    id = today.send("vm.start", start_args(lifetime_s=900_000))
    vm = vm_id(id, 0)
    for _ in range(turns):
        today.site.reactor.advance(0.05)
        today.site._drain()
    today.crash()
    today.site.settle(lambda: today.site.phase(vm) is Phase.READY)
    today.minutes(1, vm)
    account = today.site.accountant.accounts[vm]
    began = today.site.world.records[vm].journal.began_at
    assert account.segment == f"{vm}/0/1" and began is not None
    assert account.until_ms - account.began_ms == round((today.host.clock.seconds() - began) * 1000)
    assert account.total.cpu_ms == today.host.truth[vm].cpu_ms


# -- troubles


def test_rules_are_not_removed_while_the_last_traffic_cannot_be_read(today: Day) -> None:
    vm = today.start()
    today.minutes(1, vm)
    today.host.use(vm, sent=500)
    answers = today.host.firewall.counters
    today.host.firewall.counters = lambda: fail(Fault(FaultKind.UNKNOWN, "no answer"))  # type: ignore[method-assign]
    today.host.dies(vm)
    today.site.reconciler.mark_all()
    today.site.reactor.advance(1.0)
    for _ in range(50):
        today.site.reactor.advance(1.0)
        today.site._drain()
    assert Do.REMOVE_FIREWALL not in [do for _, do in today.host.done]
    assert today.rows() == []
    today.host.firewall.counters = answers  # type: ignore[method-assign]
    today.site.settle(lambda: vm not in today.site.world.records, 200)
    (row,) = today.rows()
    assert row["total"]["network"]["out_external_bytes"] == today.host.truth[vm].sent


def test_a_store_that_fails_for_a_while_loses_nothing_and_publishes_nothing_twice(tmp_path: Path) -> None:
    store = FailingStore(MemoryStore(), never)
    today = Day(tmp_path, store)
    vm = today.start()
    today.minutes(5, vm)
    booked = (PutUsage, PutAccount)
    store.fails = lambda changes: FaultKind.FULL if any(isinstance(c, booked) for c in changes) else None
    today.minutes(150, vm)
    assert today.rows() == [] and "store" in today.site.world.degraded
    store.fails = never
    today.minutes(1, vm)
    rows = today.rows()
    day.balanced(rows)
    assert [row["period"] for row in rows] == [1, 2, 3] and rows == today.published()
    assert sum(row["used"]["cpu_s"] for row in rows) * 1000 == pytest.approx(
        rows[-1]["total"]["cpu_s"] * 1000)
    today.site.stop()


def test_an_imbalance_of_the_books_is_told_once_and_published_as_degraded(today: Day) -> None:
    vm = today.start()
    today.minutes(1, vm)
    today.site.accountant._host = lambda: (0, 65536)
    today.minutes(3, vm)
    assert today.site.world.degraded["accounting"] == "cores: 1 accounted, 0 given"
    assert [a["kind"] for a in today.site.alerts()].count("accounting-imbalance") == 1
    today.site.accountant._host = lambda: (16, 65536)
    today.minutes(1, vm)
    assert "accounting" not in today.site.world.degraded


def test_one_sick_guest_is_one_sick_guest(today: Day) -> None:
    well, sick = today.start(name="well"), today.start(name="sick")
    today.minutes(5, well, sick)
    del today.host.counters[sick]
    today.minutes(5, well)
    accounts = today.site.accountant.accounts
    assert accounts[well].total.cpu_ms == 7000 and accounts[sick].total.cpu_ms == 3500
    assert accounts[sick].until_ms == accounts[well].until_ms, "its footprint goes on"
    assert accounts[well].disk_used_gib == 2, "a gibibyte and a half is two that are taken"


# -- what is told of it


def test_what_was_used_can_be_asked(today: Day) -> None:
    one, two = today.start(name="one"), today.start(name="two")
    today.minutes(100, one, two)
    now = today.host.now()
    everything = today.site.run(today.site.usage.view("", {}, now))
    assert [(v["name"], v["periods"]) for v in everything["vms"]] == [("one", 2), ("two", 2)]
    assert everything["rows"] == [] and len(everything["open"]) == 2
    rows = [row for row in today.rows() if row["vm"] == one]
    mine = today.site.run(today.site.usage.view(one, {}, now))
    assert mine["rows"] == rows and mine["open"][0]["period"] == 3
    assert mine["vms"][0]["used"]["cpu_s"] == sum(row["used"]["cpu_s"] for row in rows)
    last = today.site.run(today.site.usage.view(one, {"since": rows[0]["to"], "until": rows[1]["to"]}, now))
    assert last["rows"] == rows[1:]
    with pytest.raises(Problem, match="is no time"):
        today.site.run(today.site.usage.view(one, {"since": "yesterday"}, now))


def test_periods_are_published_again_by_host_report(today: Day) -> None:
    vm = today.start()
    today.minutes(160, vm)
    first, *_ = today.published()
    id = today.send("host.report", {"usage": {"from": first["from"], "to": first["to"]}})
    assert today.site.replies(id)[-1]["result"] == {"periods": 1}
    assert today.published()[-1] == {**first, "resent": True}
    schemas.check("event.vm.usage", today.published()[-1])
    nothing = {"from": day_wall(-200), "to": day_wall(-100)}
    assert today.site.run(today.site.usage.resent(nothing, today.host.now())) == []


def test_too_many_periods_are_refused_and_nothing_is_published(today: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = today.start()
    today.minutes(160, vm)
    count = len(today.published())
    monkeypatch.setattr(usagereport, "MOST_ROWS", 1)
    id = today.site.send("host.report", {"usage": {"from": day_wall(0), "to": day_wall(864_000)}},
                         valid_until=day_wall(86_000))
    assert today.site.replies(id)[-1]["problem"]["type"] == "too-many-periods"
    assert len(today.published()) == count


def day_wall(after_s: float) -> str:
    return walltime.text(day.FIRST + after_s)


def test_what_comes_back_after_its_end_is_not_booked_once_more(today: Day) -> None:
    vm = today.start()
    today.minutes(2, vm)
    world = today.host.worlds[vm]
    tag = world.tag
    today.host.dies(vm)
    today.site.reconciler.mark_all()
    today.site.settle(lambda: vm not in today.site.world.records and not today.site.accountant.accounts)
    before = today.rows()
    world.seen, world.tag = Seen.OFF, tag  # somebody defines it again
    today.site.run(today.site.recovery.resync())
    today.site.settle(lambda: vm not in today.site.world.records and not today.site.accountant.accounts)
    assert today.rows() == before and len(today.published()) == len(before)
