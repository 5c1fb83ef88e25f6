"""vmagent-site glue: the document from hosts asked now, from files, and who is not in it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Dict, List

import pytest

from tests.shell.test_site_command import Ran, connected
from tests.support.controlled import World, host_state
from tests.support.offered import here
from tests.support.published import Publisher, raw
from tests.unit.test_capacity import vm
from tests.unit.test_glue import NOW_S, share
from vmagent.core import capacity
from vmagent.errors import Problem
from vmagent.site import __main__ as command
from vmagent.site import gluing
from vmagent.site.arguments import parser
from vmagent.site.book import Book
from vmagent.site.database import Database
from vmagent.site.reports import READERS, Reading

HOSTS = ("wn1", "wn2")


def snapshot(world: World, host: str, told: Any) -> None:
    data = {"at": "2026-11-20T12:00:00.000Z", "host": host_state(host), "vms": [], "foreign": [], "images": [],
            "sequences": {}, "epoch": "11111111-2222-4333-8444-555555555555", "epochnumber": 1, "capacity": told}
    world.event("host.snapshot", data, host)


def told(host: str, *records: Any) -> Dict[str, Any]:
    """A real host.capacity with its share."""
    return {**capacity.published(here(*records)), "glue": share(*records, host=host)}


def test_every_host_is_asked_and_the_document_is_their_sum(tmp_path: Path) -> None:
    world = connected(tmp_path, hosts=list(HOSTS))
    ran = Ran(world, "glue", "--gocdb-id", "12345G0", "--url", "https://cloud.example.org/", "--json")
    for n, host in enumerate(HOSTS, 1):
        assert ran.going
        snapshot(world, host, told(host, vm(n)))
    assert ran.code == 0
    service = ran.json["CloudComputingService"][0]
    assert (service["TotalVM"], service["OtherInfo"]["gocdb_id"]) == (2, "12345G0")
    assert ran.json["CloudComputingEndpoint"][0]["URL"] == "https://cloud.example.org/"


def test_who_does_not_answer_or_cannot_tell_is_named(tmp_path: Path) -> None:
    world = connected(tmp_path, hosts=["wn1", "wn2", "wn3"])
    ran = Ran(world, "glue", "--timeout", "3s")
    snapshot(world, "wn1", told("wn1", vm(1)))
    snapshot(world, "wn2", None)
    world.clock.advance(3)
    assert ran.code == 1
    assert ran.err.getvalue().splitlines() == ["wn2: no share of it", "wn3: no share of it"]
    assert json.loads(ran.out.getvalue())["CloudComputingService"][0]["TotalVM"] == 1


def test_nobody_answers_and_there_is_no_document(tmp_path: Path) -> None:
    world = connected(tmp_path)
    ran = Ran(world, "glue")
    world.clock.advance(5)
    assert (ran.code, ran.out.getvalue()) == (1, "")
    assert "no document" in ran.err.getvalue()


# ---- from files


def files(folder: Path, *contents: Any) -> List[str]:
    for n, content in enumerate(contents):
        (folder / f"{n}.json").write_text(json.dumps(content))
    return [str(folder / f"{n}.json") for n in range(len(contents))]


def test_a_share_is_found_in_whatever_carries_it(tmp_path: Path) -> None:
    carried = told("wn2", vm(2))
    names = files(tmp_path, share(vm(1), host="wn1"), carried, Publisher("wn3").event("host.capacity", told("wn3")))
    assert sorted(gluing.from_files(names)) == ["wn1", "wn2", "wn3"]


@pytest.mark.parametrize("content", [{}, [], 5, {"glue": {}}, {"glue": 5}, {"CloudComputingService": [{"ID": "x"}]}])
def test_a_file_that_holds_none_is_named(tmp_path: Path, content: Any) -> None:
    with pytest.raises(Problem) as caught:
        gluing.from_files(files(tmp_path, content))
    assert caught.value.type == "usage" and "0.json is not a share" in caught.value.detail


def test_old_files_are_left_out_named_and_no_broker_is_needed(tmp_path: Path, capsys: Any) -> None:
    assert command.main(["glue", *files(tmp_path, share(vm(1), host="wn1"))]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and "wn1: its share is" in shown.err and "no document" in shown.err


# ---- from the collector


def test_from_what_the_collector_has(tmp_path: Path) -> None:
    database = Database(str(tmp_path / "book.db"))
    Book(database).take([raw(Publisher(host).event("host.capacity", told(host, vm(n)), "capacity"))
                         for n, host in enumerate(HOSTS, 1)])
    out, err = io.StringIO(), io.StringIO()
    said = parser().parse_args(["glue", "--collected", "--json"])
    assert READERS["glue"](Reading(said, database, (*HOSTS, "wn3"), lambda: NOW_S, out, err)) == 1
    database.close()
    assert json.loads(out.getvalue())["CloudComputingService"][0]["TotalVM"] == 2
    assert "wn3: no share of it" in err.getvalue()
