"""What every ports.Store does: the fake and SQLite pass the same body."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Iterator, List, Sequence

import pytest

from tests.support import building as b
from tests.support.lanes import HandTurned, lane
from tests.support.memory_store import FailingStore, MemoryStore, full, never
from vmagent.core.changes import (
    Change,
    CommandRow,
    DropAccount,
    MarkExported,
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
)
from vmagent.core.context import Context
from vmagent.core.imagemodel import Revocation
from vmagent.core.model import Now, Reason
from vmagent.core.usagemodel import UNKNOWN, Account, Benchmark, Footprint, Kind, Known, Use
from vmagent.errors import Fault, FaultKind
from vmagent.store.store import SqliteStore

NOW = b.now()
OTHER = "0d9e4c7a-0000-4000-8000-000000000001"
LONG_AFTER = Now(1000.0, "2027-12-31T00:00:00.000Z", b.BOOT)
DAYS_AFTER = Now(1000.0, "2026-11-24T00:00:00.000Z", b.BOOT)


class Opened:
    """A store with its reactor turned: answers are plain values, failures are raised."""

    def __init__(self, make: Any, reactor: HandTurned) -> None:
        self._make, self.reactor = make, reactor
        self.store = make()
        self.stored = self.ask("open", NOW)

    def ask(self, method: str, *args: Any) -> Any:
        return self.reactor.settle(getattr(self.store, method)(*args))

    def commit(self, *changes: Change) -> None:
        self.ask("commit", changes)

    def again(self, now: Now = NOW) -> Any:
        """Closed and opened by the next agent: what `open` hands back."""
        self.ask("close")
        self.store = self._make()
        self.stored = self.ask("open", now)
        return self.stored


@pytest.fixture(params=["memory", "failing", "sqlite"])
def opened(request: Any, tmp_path: Any) -> Iterator[Opened]:
    reactor = HandTurned()
    lanes = lane(reactor)
    if request.param == "sqlite":
        made = Opened(lambda: SqliteStore(tmp_path / "vmagent.db", lanes, 1000, 10_000_000), reactor)
    else:
        memory = MemoryStore()
        fake: Any = memory if request.param == "memory" else FailingStore(memory, never)
        made = Opened(lambda: fake, reactor)
    yield made
    made.ask("close")
    lanes.stop()


def command(id: str = b.COMMAND, **kw: Any) -> CommandRow:
    members = {
        "id": id, "digest": "d" * 64, "schema": "vm.start/1", "signer": b.SIGNER, "route": "broker",
        "issued_wall": b.WALL, "valid_until_wall": b.WALL, "reply_to": "/queue/r", "members": ("vm-1", "vm-2"),
        "status": "accepted", "reply": {"status": "accepted", "result": [1, {"a": None}]}, "received_wall": b.WALL,
        "args": {"cores": 1, "tags": ["ä"]},
    }  # fmt: skip
    members.update(kw)
    return CommandRow(**members)  # type: ignore[arg-type]


def event(stream: str = "events", subject: str = "vm/1", **data: Any) -> Publish:
    return Publish(stream, "org.vmagent.vm.state", subject, b.WALL, data or {"phase": "pending"})


def audit(subject: str, **kw: Any) -> PutAudit:
    return PutAudit(b.WALL, kw.pop("who", b.SIGNER), "broker", "vm.start", subject, "accepted", "because", **kw)


def kind_of(opened: Opened, changes: Sequence[Change]) -> FaultKind:
    with pytest.raises(Fault) as caught:
        opened.commit(*changes)
    return caught.value.kind


def test_a_new_store_is_empty_and_in_its_first_epoch(opened: Opened) -> None:
    assert (opened.stored.records, opened.stored.pending, dict(opened.stored.settings)) == ((), (), {})
    assert opened.stored.epoch.cause == "first" and opened.stored.epoch.born_wall == NOW.wall
    assert opened.store.epoch() == opened.stored.epoch
    assert opened.ask("outbox", 0, 10) == () and opened.ask("sequences") == {}


def test_the_epoch_stays_when_nothing_was_lost(opened: Opened) -> None:
    first = opened.stored.epoch
    opened.commit(PutVm(b.record()))
    assert opened.again().epoch == first


def test_a_record_comes_back_whole(opened: Opened) -> None:
    reasons = (Reason("agent", "wägt ab", b.WALL),)
    record = b.record(journal=b.ran(warned_s=(3600, 600)), reasons=reasons, timings_ms=(("received", 0),))
    opened.commit(PutVm(record))
    assert opened.ask("records", record.vm) == (record,)
    assert opened.again().records == (record,)


def test_a_later_record_replaces_and_a_closed_one_is_found_only_by_its_handle(opened: Opened) -> None:
    one, two = b.record(), b.record(spec={"member": 1})
    opened.commit(PutVm(one), PutVm(two))
    closed = dataclasses.replace(one, closed=True, generation=2)
    opened.commit(PutVm(closed))
    assert opened.again().records == (two,)
    assert opened.ask("records", one.vm) == (closed,)


def test_records_by_id_tag_and_command_closed_ones_included(opened: Opened) -> None:
    one = b.record(spec={"tags": ("batch-1", "night")}, closed=True)
    two = b.record(spec={"member": 1, "tags": ("batch-1",)})
    three = b.record(spec={"command": OTHER, "tags": ()})
    opened.commit(PutVm(one), PutVm(two), PutVm(three))
    assert opened.ask("records", two.vm) == (two,)
    assert opened.ask("records", b.COMMAND) == (one, two)
    assert opened.ask("records", "batch-1") == (one, two)
    assert opened.ask("records", "night") == (one,)
    assert opened.ask("records", "nothing") == ()


def test_tags_follow_the_record(opened: Opened) -> None:
    opened.commit(PutVm(b.record(spec={"tags": ("old", "both")})))
    opened.commit(PutVm(b.record(spec={"tags": ("both", "new", "new")})))
    assert [len(opened.ask("records", tag)) for tag in ("old", "both", "new")] == [0, 1, 1]


def test_a_command_comes_back_whole_and_is_pending_while_accepted(opened: Opened) -> None:
    row = command()
    opened.commit(PutCommand(row), PutCommand(command(OTHER, status="refused")))
    assert opened.ask("command", row.id) == row
    assert opened.again().pending == (row,)
    opened.commit(PutCommand(dataclasses.replace(row, status="done")))
    assert opened.again().pending == ()
    assert opened.ask("command", row.id).status == "done"
    assert opened.ask("command", "unknown") is None


def test_sequences_count_per_stream_from_one_and_replies_have_none(opened: Opened) -> None:
    opened.commit(event(), event("usage"), SendReply("/queue/r", {"status": "accepted"}), event())
    rows = opened.ask("outbox", 0, 10)
    assert [(r.stream, r.sequence) for r in rows] == [("events", 1), ("usage", 1), ("replies", 0), ("events", 2)]
    assert opened.ask("sequences") == {"events": 2, "usage": 1}
    assert rows[2].destination == "/queue/r" and rows[2].data == {"status": "accepted"}
    epoch = opened.store.epoch()
    assert {(r.epoch, r.epoch_number) for r in rows} == {(epoch.id, epoch.number)}
    assert (rows[0].type, rows[0].subject, rows[0].time_wall) == ("org.vmagent.vm.state", "vm/1", b.WALL)


def test_sequences_and_rows_go_on_after_everything_was_delivered_and_the_agent_began_anew(opened: Opened) -> None:
    opened.commit(event(), event())
    before = [r.row for r in opened.ask("outbox", 0, 10)]
    opened.ask("delivered", before)
    opened.again()
    opened.commit(event())
    (row,) = opened.ask("outbox", 0, 10)
    assert row.sequence == 3
    assert row.row > max(before)


def test_the_outbox_is_read_in_order_from_a_cursor(opened: Opened) -> None:
    opened.commit(*(event(n=n) for n in range(5)))
    first = opened.ask("outbox", 0, 2)
    rest = opened.ask("outbox", first[-1].row, 10)
    assert [r.data["n"] for r in (*first, *rest)] == [0, 1, 2, 3, 4]


def test_delivered_forgets_exactly_these_and_unknown_rows_are_no_error(opened: Opened) -> None:
    opened.commit(*(event(n=n) for n in range(3)))
    rows = opened.ask("outbox", 0, 10)
    opened.ask("delivered", [rows[1].row, 999_999])
    opened.ask("delivered", [rows[1].row])
    assert [r.data["n"] for r in opened.ask("outbox", 0, 10)] == [0, 2]


def test_audit_is_newest_first_and_by_subject(opened: Opened) -> None:
    opened.commit(audit("vm/1", command="c1"), audit("vm/2"), audit("vm/1", bounded=True))
    assert [e["subject"] for e in opened.ask("audit", 2, "")] == ["vm/1", "vm/2"]
    newest, oldest = opened.ask("audit", 10, "vm/1")
    assert oldest == {
        "when_wall": b.WALL, "who": b.SIGNER, "route": "broker", "verb": "vm.start", "subject": "vm/1",
        "verdict": "accepted", "why": "because", "command": "c1", "bounded": False,
    }  # fmt: skip
    assert newest["bounded"] is True


def test_refusals_of_strangers_are_a_ring_and_push_nobody_else_out(opened: Opened) -> None:
    opened.commit(audit("mine"))
    opened.commit(*(audit("theirs", bounded=True, who=str(n)) for n in range(10_003)))
    assert [e["who"] for e in opened.ask("audit", 10_100, "theirs")] == [str(n) for n in range(10_002, 2, -1)]
    assert len(opened.ask("audit", 10, "mine")) == 1


def test_settings_are_any_json_and_none_deletes(opened: Opened) -> None:
    opened.commit(PutSetting("drained", {"by": "x", "since": [1, 2]}), PutSetting("zero", 0))
    assert opened.again().settings == {"drained": {"by": "x", "since": [1, 2]}, "zero": 0}
    opened.commit(PutSetting("drained", None), PutSetting("never-there", None))
    assert opened.again().settings == {"zero": 0}


def test_changes_that_cannot_be_stored_are_refused_and_nothing_of_them_lands(opened: Opened) -> None:
    bad: List[Change] = [PutVm(b.record()), event(), PutAudit(b.WALL, "", "", "", "x", "", ""), event(x=math.nan)]
    assert kind_of(opened, bad) is FaultKind.REFUSED
    assert opened.again().records == ()
    assert (opened.ask("outbox", 0, 10), opened.ask("sequences"), opened.ask("audit", 9, "")) == ((), {}, ())
    opened.commit(event())
    assert opened.ask("sequences") == {"events": 1}


def test_nothing_is_stored_after_close(opened: Opened) -> None:
    opened.ask("close")
    assert kind_of(opened, [event()]) is FaultKind.AWAY


def test_prune_keeps_what_runs_is_owed_or_may_come_again(opened: Opened) -> None:
    running, ended = b.record(), b.record(spec={"member": 1}, closed=True)
    owed, done = command(), command(OTHER, status="done")
    fresh = command("fresh", status="done", valid_until_wall="2026-11-23T12:00:00.000Z")
    opened.commit(PutVm(running), PutVm(ended), PutCommand(owed), PutCommand(done), PutCommand(fresh), audit("vm/1"))
    assert opened.ask("prune", DAYS_AFTER) == 1
    assert opened.ask("command", OTHER) is None and opened.ask("command", "fresh") == fresh
    assert opened.ask("records", ended.vm) == (ended,) and len(opened.ask("audit", 9, "")) == 1
    assert opened.ask("prune", LONG_AFTER) == 3
    assert opened.ask("records", b.COMMAND) == (running,) and opened.ask("command", b.COMMAND) == owed
    assert opened.ask("audit", 9, "") == () and opened.ask("records", "batch-1") == (running,)


def test_a_failing_store_stores_nothing_of_the_chosen_commits() -> None:
    reactor = HandTurned()
    store = FailingStore(MemoryStore(), full)
    opened = Opened(lambda: store, reactor)
    assert kind_of(opened, [event()]) is FaultKind.FULL
    store.fails = never
    opened.commit(event())
    assert opened.ask("sequences") == {"events": 1} and len(store.failed) == 1


def test_a_context_goes_with_the_last_vm_of_its_command(opened: Opened) -> None:
    given = Context("eA==", ("key",), (("a", 1), ("b", None)))
    first, second = b.record(), b.record(spec={"member": 1})
    other = b.record(spec={"command": OTHER})
    opened.commit(PutContext(b.COMMAND, given), PutVm(first), PutVm(second))
    opened.commit(PutContext(OTHER, given), PutVm(other))
    opened.commit(PutVm(dataclasses.replace(first, closed=True)))
    opened.again()
    assert opened.ask("context", b.COMMAND) == given
    opened.commit(PutVm(dataclasses.replace(second, closed=True)))
    assert opened.ask("context", b.COMMAND) is None
    opened.again()
    assert opened.ask("context", b.COMMAND) is None
    assert opened.ask("context", OTHER) == given


def test_revocations_outlive_every_run_the_newest_per_image(opened: Opened) -> None:
    first = Revocation("tiny", "", 1, "forbid", b.SIGNER, "CVE", b.WALL)
    later = dataclasses.replace(first, version=3, action="stop")
    bytes_of = Revocation("", "ab" * 64, 2, "kill", "local:root", "", b.WALL)
    opened.commit(PutRevocation(first))
    opened.commit(PutRevocation(bytes_of), PutRevocation(later))
    assert set(opened.again(LONG_AFTER).revocations) == {later, bytes_of}
    opened.ask("prune", LONG_AFTER)
    assert set(opened.again().revocations) == {later, bytes_of}


# -- accounts and usage


def account(number: int = 1, **kw: Any) -> Account:
    what = Footprint(2, 512, 10, 50, ("192.0.2.1",), Benchmark("HEPSPEC06", 12.5))
    use = Use(5, 6, 7, (1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4))
    known = Known("12:34", 700, (1, 2, 3, 4), 10.5, (("va1", (1, 2, 3, 4, 5, 6, 7, 8)),))
    whole = Account(b.record().vm, 0, number, b.BOOT, what, 1, 3, 2, 2, ("va1",), True, total=use, before=use,
                    known=known, cpu_ms_at=9, measured=("cpu",), ever=("cpu", "disk"), vanished=("network",))
    return dataclasses.replace(whole, **kw)


def used(vm: str, period: int, from_wall: str, to_wall: str, **data: Any) -> PutUsage:
    return PutUsage(vm, f"{vm}/0/1", period, from_wall, to_wall, data or {"n": period})


def test_accounts_come_back_whole_until_they_are_dropped(opened: Opened) -> None:
    adopted = account(2, known=UNKNOWN, footprint=Footprint(0, 0, 1), kind=Kind.DISK)
    opened.commit(PutAccount(account()), PutAccount(adopted))
    assert opened.again().accounts == (account(), adopted)
    opened.commit(PutAccount(account(until_ms=99)), DropAccount(adopted.segment), DropAccount("never there"))
    assert opened.again().accounts == (account(until_ms=99),)


def test_usage_by_row_vm_and_time(opened: Opened) -> None:
    opened.commit(used("a", 1, "2026-11-20T11", "2026-11-20T12"), used("b", 1, "2026-11-20T11", "2026-11-20T12"))
    opened.commit(used("a", 2, "2026-11-20T12", "2026-11-20T13", x=[1, None]))
    rows = opened.ask("usage", 0, 10)
    assert [(r.vm, r.segment, r.period) for r in rows] == [("a", "a/0/1", 1), ("b", "b/0/1", 1), ("a", "a/0/1", 2)]
    assert rows[2].data == {"x": [1, None]} and rows[2].from_wall == "2026-11-20T12"
    assert opened.ask("usage", rows[0].row, 1) == (rows[1],)
    assert opened.ask("usage", 0, 10, "a") == (rows[0], rows[2])
    assert opened.ask("usage", 0, 10, "", "2026-11-20T12", "") == (rows[2],)
    assert opened.ask("usage", 0, 10, "", "2026-11-20T10", "2026-11-20T12") == rows[:2]


def test_a_period_that_is_stored_again_keeps_its_row(opened: Opened) -> None:
    opened.commit(used("a", 1, "1", "2"), used("a", 2, "2", "3"))
    first, second = opened.ask("usage", 0, 10)
    opened.commit(used("a", 1, "1", "2", n="again"))
    again, same = opened.ask("usage", 0, 10)
    assert (again.row, again.data, same) == (first.row, {"n": "again"}, second)


def test_usage_is_kept_until_it_is_old_and_exported_by_all_who_export(opened: Opened) -> None:
    opened.commit(*(used("a", n, "2026-11-20T11", "2026-11-20T12") for n in (1, 2, 3)))
    rows = [row.row for row in opened.ask("usage", 0, 10)]
    opened.commit(MarkExported("apel", rows[1]), MarkExported("other", rows[0]), MarkExported("apel", rows[0]))
    assert opened.ask("exported") == {"apel": rows[1], "other": rows[0]}
    opened.again()
    assert opened.ask("prune", DAYS_AFTER) == 0
    assert opened.ask("prune", LONG_AFTER, 400, ["apel", "silent"]) == 0
    assert opened.ask("prune", LONG_AFTER, 400, ["apel", "other"]) == 1
    assert opened.ask("prune", LONG_AFTER, 400, ["apel"]) == 1
    assert opened.ask("prune", LONG_AFTER, 4000, []) == 0
    assert opened.ask("prune", LONG_AFTER, 400, []) == 1 and opened.ask("usage", 0, 10) == ()
