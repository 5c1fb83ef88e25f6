"""The collector's book, the same body on SQLite and on a real PostgreSQL: it is a function of the events alone."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from tests.support import postgres
from tests.support.published import AT, Publisher, raw
from vmagent.errors import Fault, FaultKind, Problem
from vmagent.site import shelf
from vmagent.site.book import Book
from vmagent.site.database import Database

V1, V2, V3 = (f"{n:08d}-0000-5000-8000-000000000000" for n in (1, 2, 3))
SERVER = pytest.mark.skipif(bool(postgres.missing()), reason=postgres.missing())


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Postgres]:
    made = postgres.Postgres()
    yield made
    made.remove()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=SERVER)])
def place(request: Any, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return str(tmp_path / "deep" / "collector.db")
    return str(request.getfixturevalue("server").emptied())


@pytest.fixture
def database(place: str) -> Iterator[Database]:
    opened = Database(place)
    yield opened
    opened.close()


@pytest.fixture
def book(database: Database) -> Book:
    return Book(database)


def take(book: Book, *events: Dict[str, Any]) -> Any:
    return book.take([raw(event) for event in events])


def phases(database: Database, gone: bool = False) -> Dict[str, str]:
    return {data["vm"]: data["phase"] for _, data in shelf.states(database, gone)}


def test_the_newest_state_counts_in_any_order(place: str) -> None:
    host = Publisher()
    story = [host.state(V1, "pending"), host.state(V1, "running"), host.state(V1, "ready")]
    for number, order in enumerate(itertools.permutations(story)):
        one = Database(place)
        renamed = [{**event, "source": f"//S/wn{number}"} for event in order]
        for event in renamed:
            Book(one).take([raw(event)])
        found = {host: data["phase"] for host, data in shelf.states(one)}
        one.close()
        assert found[f"wn{number}"] == "ready"


def test_a_snapshot_ends_what_it_does_not_name_and_nothing_old_comes_back(book: Book, database: Database) -> None:
    host = Publisher()
    late = host.state(V3, "running")
    take(book, host.state(V1, "ready"), host.state(V2, "ready"))
    take(book, host.snapshot(host.full(V2, "ready")))
    take(book, late)
    assert phases(database) == {V2: "ready"}
    assert phases(database, gone=True) == {V1: "ready", V2: "ready"}


def test_a_snapshot_that_comes_late_undoes_nothing_newer(book: Book, database: Database) -> None:
    host = Publisher()
    old = host.snapshot(host.full(V1, "running"))
    take(book, host.state(V1, "stopped", closed=True), host.state(V2, "ready"))
    take(book, old)
    assert phases(database) == {V2: "ready"}


def test_a_greater_epoch_is_newer_whatever_its_sequence(book: Book, database: Database) -> None:
    first, second = Publisher(epoch=1), Publisher(epoch=2)
    for _ in range(5):
        first.state(V1, "running")
    last = first.state(V1, "ready")
    take(book, second.state(V1, "stopping"), last)
    assert phases(database) == {V1: "stopping"}
    take(book, second.snapshot(second.full(V1, "stopping")), first.state(V2, "ready"))  # V2 ended with its epoch
    assert phases(database) == {V1: "stopping"}


def test_missing_states_are_seen_and_healed_by_a_snapshot(book: Book, database: Database) -> None:
    host = Publisher()
    take(book, host.state(V1, "pending"))
    host.state(V1, "running")
    host.state(V2, "ready")
    take(book, host.state(V3, "ready"))
    assert book.lacking() == ("wn1.example.org",)
    assert shelf.completeness(database)["missing"] == [
        {"host": "wn1.example.org", "stream": "events", "epoch": 1, "numbers": [[2, 3]]}]
    heard = take(book, host.snapshot(host.full(V1, "ready"), host.full(V2, "ready"), host.full(V3, "ready")))
    assert (heard.healed, book.lacking()) == (2, ())
    assert phases(database) == {V1: "ready", V2: "ready", V3: "ready"}
    assert shelf.completeness(database) == {"missing": [], "lost": 0, "healed": 2, "aside": 0}


def test_a_new_epoch_of_a_known_host_is_counted_from_one(book: Book) -> None:
    take(book, Publisher(epoch=1).state(V1, "ready"))
    second = Publisher(epoch=2)
    second.state(V1, "stopping")
    take(book, second.state(V2, "ready"))
    assert book.lacking() == ("wn1.example.org",)


def test_missing_use_is_waited_for_and_no_snapshot_heals_it(book: Book, database: Database) -> None:
    host = Publisher()
    first, second, third = (host.usage(V1, n, f"2026-11-20T0{n}:00:00.000Z", f"2026-11-20T0{n + 1}:00:00.000Z")
                            for n in (1, 2, 3))
    take(book, first, third, host.snapshot())
    assert book.lacking() == ()
    assert [one["stream"] for one in shelf.completeness(database)["missing"]] == ["usage"]
    take(book, second)
    assert shelf.completeness(database)["missing"] == []


def test_what_expires_on_its_way_is_never_missing(book: Book, database: Database) -> None:
    host = Publisher()
    first, _, third, other = (host.event("host.telemetry", {"to": AT, "vms": [], "n": n, "part": part}, "telemetry")
                              for n, part in ((1, 1), (2, 1), (3, 1), (4, 2)))
    take(book, third, first, other)
    assert [one.data["n"] for one in shelf.latest(database, "host.telemetry")] == [3, 4]  # the newest of each part
    assert shelf.completeness(database)["missing"] == []


def test_the_newest_capacity_counts_whichever_way_it_came(book: Book, database: Database) -> None:
    def at(minute: int) -> Dict[str, Any]:
        return {"at": f"2026-11-20T12:{minute:02d}:00.000Z", "n": minute}

    host = Publisher()
    for _ in range(9):
        host.state(V1, "ready")
    carried = {**(snapshot := host.snapshot()), "data": {**snapshot["data"], "capacity": at(5)}}
    take(book, host.event("host.capacity", at(1), "capacity"), carried)
    assert [one.data["n"] for one in shelf.latest(database, "host.capacity")] == [5]
    take(book, host.event("host.capacity", at(7), "capacity"), host.event("host.capacity", at(3), "capacity"))
    assert [one.data["n"] for one in shelf.latest(database, "host.capacity")] == [7]


def test_a_period_counts_once_however_often_it_comes(book: Book, database: Database) -> None:
    host = Publisher()
    sent = host.usage(V1, 1, "2026-11-20T00:00:00.000Z", "2026-11-20T01:00:00.000Z")
    again = host.event("vm.usage", sent["data"], "usage")  # re-sent: another number, the same content
    other = host.usage(V1, 1, "2026-11-20T00:00:00.000Z", "2026-11-20T01:00:00.000Z", name="another")
    assert take(book, sent, sent, again).duplicates == 1
    heard = take(book, other)
    assert len(heard.aside) == 1 and "another content" in heard.aside[0]
    assert [one["name"] for one in shelf.periods(database, "2027")] == ["worker"]


def test_any_order_with_repetitions_and_restarts_comes_to_the_same(place: str) -> None:
    dice = random.Random(4711)
    host = Publisher()
    story: List[Dict[str, Any]] = [host.state(V1, "pending")]
    for n, phase in enumerate(("starting", "running", "ready", "stopping")):
        story += [host.state(V1, phase), host.state(V2, phase),
                  host.usage(V1, n + 1, f"2026-11-20T0{n}:00:00.000Z", f"2026-11-20T0{n + 1}:00:00.000Z")]
    story.insert(5, {**host.snapshot(host.full(V1, "running")), "sequence": f"{500:012d}"})
    truth: Dict[str, Any] = {}
    for number in range(12):
        source = f"//S/wn{number}"
        events = [{**event, "source": source} for event in story + dice.sample(story, 5)]
        if number:
            dice.shuffle(events)
        while events:
            size = dice.randint(1, 4)
            one = Database(place)
            Book(one).take([raw(event) for event in events[:size]])
            found = {data["vm"]: data["phase"] for host, data in shelf.states(one) if host == f"wn{number}"}
            one.close()
            events = events[size:]
        truth = truth or found
        assert found == truth


@pytest.mark.parametrize("body", [
    b"", b"no json", b"[]", b"{}", b'{"specversion": "1.0"}', b"\xff\0",
    raw({**Publisher().state(V1, "x"), "data": {}}), raw({**Publisher().state(V1, "x"), "source": "x"}),
    raw({**Publisher().snapshot(), "data": {"vms": [{}], "host": {}}}),
    raw({**Publisher().event("stream.gap", {"stream": "usage", "first": 5, "last": 3})}),
    raw(Publisher().usage(V1, 0, "2026-11-20T00:00:00.000Z", "2026-11-20T01:00:00.000Z")),
    raw({**Publisher().state("a\0b", "x")}), raw({**Publisher().state(V1, "x"), "time": "yesterday"}),
])  # fmt: skip
def test_what_nobody_understands_is_set_aside_once_and_stops_nothing(
    book: Book, database: Database, body: bytes
) -> None:
    good = raw(Publisher("wn2").state(V2, "ready"))
    for _ in range(2):
        heard = book.take([body, good])
        assert len(heard.aside) == 1
    assert phases(database) == {V2: "ready"}
    assert shelf.completeness(database)["aside"] == 1


def test_nothing_of_a_batch_that_fails_is_written(place: str, database: Database) -> None:
    host, dying = Publisher(), Book(database)
    calls: List[str] = []
    run = database.run

    def failing(statement: str, values: Any = ()) -> Any:
        calls.append(statement)
        if statement.startswith("INSERT INTO tracks"):
            raise Fault("away", "as told")  # type: ignore[arg-type]
        return run(statement, values)

    database.run = failing  # type: ignore[method-assign]
    with pytest.raises(Fault):
        take(dying, host.state(V1, "ready"))
    database.run = run  # type: ignore[method-assign]
    assert any(statement.startswith("INSERT INTO vms") for statement in calls)
    assert phases(database) == {} and dying.empty()
    assert take(dying, Publisher().state(V1, "ready")).new == 1


def test_a_database_of_somebody_else_or_of_another_version_is_refused(place: str, database: Database) -> None:
    with database.transaction():
        database.run("UPDATE meta SET value = '99'")
    with pytest.raises(Problem, match="no database of this version"):
        Database(place)


def test_states_are_rebuilt_as_they_were_sent(book: Book, database: Database) -> None:
    event = Publisher().state(V1, "ready", name="jane's \u00e9\u4e2d; DROP TABLE vms; --", tags=["a'b"])
    take(book, event)
    ((_, data),) = shelf.states(database)
    assert data == json.loads(json.dumps(event["data"]))


@SERVER
def test_a_password_in_the_url_and_a_server_that_is_away_are_told(server: postgres.Postgres) -> None:
    with pytest.raises(Problem, match="pgpass"):
        Database("postgresql://me:secret@localhost/x")
    with pytest.raises(Fault, match="PostgreSQL"):
        Database(f"postgresql://postgres@/postgres?host={server.folder}/nowhere")


@SERVER
def test_a_server_that_went_down_is_had_again_by_a_fresh_connection(server: postgres.Postgres) -> None:
    place, host = server.emptied(), Publisher()
    broken = Database(place)
    take(Book(broken), host.state(V1, "pending"))
    server.halt()
    try:
        with pytest.raises(Fault) as failed:
            take(Book(broken), host.state(V1, "running"))
    finally:
        server.start()
    assert failed.value.kind is FaultKind.AWAY
    broken.close()
    fresh = Database(place)
    take(Book(fresh), host.state(V1, "ready"))
    assert phases(fresh) == {V1: "ready"} and Book(fresh).lacking() == ("wn1.example.org",)
    fresh.close()


def test_reading_makes_no_database(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="does not exist"):
        Database(str(tmp_path / "none.db"), made=False)
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "empty.db").write_bytes(b"")
    with pytest.raises(Problem, match="no collector has written"):
        Database(str(tmp_path / "empty.db"), made=False)
    (tmp_path / "other.db").write_text("this is a text, and no database at all " * 30)
    with pytest.raises(Fault, match="not a database"):
        Database(str(tmp_path / "other.db"))
