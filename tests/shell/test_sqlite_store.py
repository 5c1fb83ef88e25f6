"""What only a store on a disk must stand: kill -9, damage, full disks, old and new files, commits stored together."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Iterator, List, Optional

import pytest
from twisted.python.failure import Failure

from tests.support import building as b
from tests.support.opened import OpenedStore
from tests.support.waiting import until
from vmagent.core.changes import Change, Publish, PutAudit, PutSetting, PutVm
from vmagent.core.model import Now
from vmagent.errors import Fault, FaultKind
from vmagent.store import schema
from vmagent.store.database import Database
from vmagent.store.store import KEY

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vmagent.db"


def event(n: int = 0) -> Publish:
    return Publish("events", "t", "vm/1", b.WALL, {"n": n})


def edit(path: Path, *statements: str) -> None:
    """Behind the agent's back."""
    connection = sqlite3.connect(str(path), isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


# -- kill -9


def killed_after(path: Path, first: int, lines: int) -> int:
    """Run the child, kill it once `lines` commits were acknowledged; the last acknowledged number."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.support.store_child", str(path), str(first)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        seen = [int(child.stdout.readline()) for _ in range(lines)]
        os.kill(child.pid, signal.SIGKILL)
        seen += [int(line) for line in child.stdout.read().split(b"\n") if line]
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert seen == list(range(first, first + len(seen)))
    return seen[-1]


def test_kill_9_loses_nothing_acknowledged_and_stores_nothing_by_halves(path: Path) -> None:
    chance = random.Random(42)
    first, epochs = 0, set()
    for _ in range(4):
        acknowledged = killed_after(path, first, chance.randrange(20, 150))
        with OpenedStore(path) as opened:
            vms = [record.spec.member for record in opened.stored.records]
            events = [row.data["n"] for row in opened.ask("outbox", 0, 10**6)]
            last = opened.stored.settings["last"]
            assert vms == events == list(range(last + 1))
            assert last >= acknowledged
            assert opened.ask("sequences") == {"events": last + 1}
            epochs.add(opened.epoch)
        first = last + 1
    assert [epoch.cause for epoch in epochs] == ["first"]


# -- damage


def garbage(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 1000)


def torn_pages(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (os.path.getsize(path) - 4096))


def torn_audit(path: Path) -> None:
    """Pages that opening has no need to read."""
    raw = bytearray(path.read_bytes())
    for page in range(0, len(raw), 4096):
        if b"wide" * 100 in raw[page : page + 4096]:
            raw[page : page + 8] = b"\xa5" * 8
    path.write_bytes(raw)


def cut_short(path: Path) -> None:
    os.truncate(path, 4096 * 3)


def no_table(path: Path) -> None:
    edit(path, "DROP TABLE audit")


def row_that_is_no_json(path: Path) -> None:
    edit(path, "UPDATE vms SET record = '{'")


def row_that_is_no_record(path: Path) -> None:
    edit(path, "UPDATE vms SET record = '[]'")


@pytest.mark.parametrize(
    "harm", [garbage, torn_pages, torn_audit, cut_short, no_table, row_that_is_no_json, row_that_is_no_record]
)
def test_a_damaged_file_is_set_aside_and_told(path: Path, harm: Any) -> None:
    with OpenedStore(path) as opened:
        opened.commit(PutVm(b.record()), event())
        opened.commit(*(PutAudit(b.WALL, "", "", "", "x", "", "wide" * 500) for _ in range(20)))
        before = opened.epoch
    harm(path)
    content = path.read_bytes()
    later = Now(5.0, "2026-11-21T08:09:10.111Z", b.BOOT)
    with OpenedStore(path, later) as opened:
        assert opened.epoch.cause == "corrupt" and opened.epoch.number > before.number
        assert opened.stored.records == () and opened.ask("outbox", 0, 10) == ()
        aside = Path(opened.epoch.set_aside)
        assert aside.name == "vmagent.db.corrupt-2026-11-21T080910.111Z" and aside.parent == path.parent
        assert aside.read_bytes() == content
        opened.commit(event())
        epoch = opened.epoch
    with OpenedStore(path) as opened:
        assert opened.epoch == epoch and opened.ask("sequences") == {"events": 1}


def test_a_second_damage_at_the_same_time_overwrites_no_evidence(path: Path) -> None:
    asides = []
    for _ in range(2):
        garbage(path)
        with OpenedStore(path) as opened:
            asides.append(opened.epoch.set_aside)
    assert len(set(asides)) == 2 and all(Path(aside).exists() for aside in asides)


def test_a_place_that_cannot_hold_a_store_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(Fault) as caught:
        OpenedStore(tmp_path / "missing" / "vmagent.db")
    assert caught.value.kind is FaultKind.AWAY


def test_only_the_agents_user_may_read_it(path: Path) -> None:
    with OpenedStore(path) as opened:
        opened.commit(event())
        for part in path.parent.iterdir():
            assert stat.S_IMODE(part.stat().st_mode) == 0o600, part


def test_a_vm_that_is_forgotten_leaves_no_tag_behind(path: Path) -> None:
    with OpenedStore(path) as opened:
        opened.commit(PutVm(b.record(closed=True)))
        assert opened.ask("prune", Now(1.0, "2030-01-01T00:00:00.000Z", b.BOOT)) == 1
    connection = sqlite3.connect(str(path))
    assert connection.execute("SELECT * FROM vm_tags").fetchall() == []
    connection.close()


# -- versions


def test_steps_bring_an_older_file_up_and_keep_what_it_holds(path: Path) -> None:
    with OpenedStore(path) as opened:
        opened.commit(PutVm(b.record()))
    more = ("ALTER TABLE vms ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue'",), ("CREATE TABLE t (a)",)
    steps = (*schema.STEPS, *more)
    connection = sqlite3.connect(str(path), isolation_level=None)
    schema.migrate(connection, steps)
    assert schema.version(connection) == len(schema.STEPS) + 2
    assert connection.execute("SELECT vm, colour FROM vms").fetchall() == [(b.record().vm, "blue")]
    schema.migrate(connection, steps)
    connection.close()


@pytest.mark.parametrize("steps", range(1, len(schema.STEPS)))
def test_the_file_of_every_earlier_version_is_taken_over(path: Path, steps: int) -> None:
    connection = sqlite3.connect(str(path), isolation_level=None)
    schema.migrate(connection, schema.STEPS[:steps])
    connection.execute("INSERT INTO settings VALUES ('drained', 'true')")
    connection.close()
    with OpenedStore(path) as opened:
        assert opened.stored.settings == {"drained": True} and opened.stored.accounts == ()
    assert not list(path.parent.glob("*.corrupt-*"))


def test_a_step_that_fails_leaves_the_file_at_the_step_before(path: Path) -> None:
    connection = sqlite3.connect(str(path), isolation_level=None)
    broken = ("CREATE TABLE half (a)", "CREATE TABLE half (a)")
    with pytest.raises(sqlite3.OperationalError):
        schema.migrate(connection, (("CREATE TABLE whole (a)",), broken))
    assert schema.version(connection) == 1 and set(schema.shape(connection)) == {"whole"}
    connection.close()


def test_a_newer_file_is_refused_in_plain_words_and_left_alone(path: Path) -> None:
    OpenedStore(path).close()
    edit(path, "PRAGMA user_version = 99")
    with pytest.raises(Fault, match="written by a newer vmagent") as caught:
        OpenedStore(path)
    assert caught.value.kind is FaultKind.REFUSED
    assert not list(path.parent.glob("*.corrupt-*"))
    connection = sqlite3.connect(str(path))
    assert schema.version(connection) == 99
    connection.close()


# -- full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root; the page limit's test runs without")
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "vmagent-test", str(place)], check=False).returncode:
        pytest.skip("no mount here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"\0" * 4096)
    return filler


def outcome(opened: OpenedStore, *changes: Change) -> Optional[FaultKind]:
    try:
        opened.commit(*changes)
    except Fault as fault:
        return fault.kind
    return None


def test_on_a_full_disk_nothing_is_stored_by_halves_and_it_heals(small_disk: Path) -> None:
    with OpenedStore(small_disk / "vmagent.db") as opened:
        opened.commit(event())
        filler = fill(small_disk)
        outcomes = [outcome(opened, PutVm(b.record()), *(event() for _ in range(20))) for _ in range(30)]
        assert set(outcomes) <= {None, FaultKind.FULL} and FaultKind.FULL in outcomes
        stored = 1 + 20 * outcomes.count(None)
        assert len(opened.ask("outbox", 0, 10**6)) == stored and opened.ask("sequences") == {"events": stored}
        filler.unlink()
        opened.commit(event())
        assert opened.ask("sequences") == {"events": stored + 1}


def test_an_agent_killed_on_a_full_disk_opens_its_store_there(small_disk: Path) -> None:
    path = small_disk / "vmagent.db"
    killed_after(path, 0, 5)
    fill(small_disk)
    with OpenedStore(path) as opened:
        assert opened.epoch.cause == "first" and len(opened.stored.records) >= 5


def test_without_room_for_pages_a_commit_is_full_and_counts_nothing(path: Path) -> None:
    database = Database(path, 1000, 10**9)
    before = database.open(b.now()).epoch
    database.commit([event(1)])
    (pages,) = database.connection().execute("PRAGMA page_count").fetchone()
    database.connection().execute(f"PRAGMA max_page_count = {pages + 1}")
    big: List[Change] = [PutSetting(str(n), "x" * 4000) for n in range(10)]
    errors = database.commit_all([[event(2)], big, [event(3)]])
    assert [error is None for error in errors] == [True, False, True]
    database.close()
    with OpenedStore(path) as opened:
        assert [row.data["n"] for row in opened.ask("outbox", 0, 9)] == [1, 2, 3]
        assert opened.epoch == before and opened.stored.settings == {}


# -- the lane


def held(opened: OpenedStore) -> threading.Event:
    """Keeps the store's thread busy, so that commits gather."""
    go = threading.Event()
    opened.lanes.run(KEY, 1000.0, go.wait, 20)
    return go


def test_commits_stored_together_fail_one_by_one(path: Path) -> None:
    with OpenedStore(path) as opened:
        go = held(opened)
        bad = PutSetting("bad", float("nan"))
        waiting: List[List[Change]] = [[event(1)], [event(2), bad], [event(3)]]
        answers = [opened.store.commit(changes) for changes in waiting]
        go.set()
        opened.reactor.settle(answers[0])
        with pytest.raises(Fault) as caught:
            opened.reactor.settle(answers[1])
        opened.reactor.settle(answers[2])
        assert caught.value.kind is FaultKind.REFUSED
        rows = opened.ask("outbox", 0, 9)
        assert [(row.sequence, row.data["n"]) for row in rows] == [(1, 1), (2, 3)]


def test_commits_that_wait_share_one_transaction(path: Path) -> None:
    with OpenedStore(path) as opened:
        before = commits(path)
        go = held(opened)
        answers = [opened.store.commit([event(n)]) for n in range(20)]
        go.set()
        for answer in answers:
            opened.reactor.settle(answer)
        assert commits(path) == before + 1
        assert [row.data["n"] for row in opened.ask("outbox", 0, 99)] == list(range(20))


def commits(path: Path) -> int:
    connection = sqlite3.connect(str(path))
    (count,) = connection.execute("SELECT commits FROM epochs").fetchone()
    connection.close()
    return int(count)


def kinds(got: List[Any]) -> List[FaultKind]:
    assert all(isinstance(failure, Failure) for failure in got), got
    return [failure.value.kind for failure in got]


def test_a_commit_that_never_began_is_busy_and_never_stored(path: Path) -> None:
    with OpenedStore(path) as opened:
        go = threading.Event()
        opened.lanes.run(KEY, 1.0, go.wait, 20).addErrback(lambda _: None)
        got: List[Any] = []
        opened.store.commit([event(1)]).addBoth(got.append)
        opened.reactor.advance(10)
        assert kinds(got) == [FaultKind.BUSY]
        go.set()
        opened.reactor.turn()
        opened.commit(event(2))
        assert [row.data["n"] for row in opened.ask("outbox", 0, 9)] == [2]


def test_commits_that_a_stuck_one_took_along_are_unknown(path: Path) -> None:
    with OpenedStore(path) as opened:
        other = sqlite3.connect(str(path), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        go = held(opened)
        got: List[Any] = []
        for n in range(2):
            opened.store.commit([event(n)]).addBoth(got.append)
        go.set()
        opened.reactor.turn()  # the holder ends, the first commit begins
        until(lambda: opened.store.gathered() == 0, what="the first commit took the second along")
        opened.reactor.advance(10)
        assert kinds(got) == [FaultKind.UNKNOWN, FaultKind.UNKNOWN]
        other.execute("ROLLBACK")
        other.close()
        opened.reactor.turn()
        assert [row.data["n"] for row in opened.ask("outbox", 0, 9)] == [0, 1]


def test_what_is_known_to_be_stored_is_no_failure_although_the_deadline_passed(path: Path) -> None:
    with OpenedStore(path) as opened:
        go = held(opened)
        got: List[Any] = []
        for n in range(2):
            opened.store.commit([event(n)]).addBoth(got.append)
        go.set()
        opened.reactor.turn()  # the holder ends, the first commit begins
        until(opened.reactor.handed_over, what="both are stored, the reactor does not know it yet")
        opened.reactor.advance(10)
        assert got == [None, None]
        assert [row.data["n"] for row in opened.ask("outbox", 0, 9)] == [0, 1]


def test_a_stored_text_is_the_canonical_one(path: Path) -> None:
    with OpenedStore(path) as opened:
        opened.commit(PutVm(b.record()))
    connection = sqlite3.connect(str(path))
    (text,) = connection.execute("SELECT record FROM vms").fetchone()
    connection.close()
    assert json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) == text
