"""vmagent-site on the collector's database: tables, CSV, JSON and exit codes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from tests.support.controlled import site
from tests.support.published import Publisher, raw, use
from vmagent.errors import Problem
from vmagent.site.__main__ import main
from vmagent.site.arguments import parser
from vmagent.site.book import Book
from vmagent.site.database import Database
from vmagent.site.reports import READERS, Reading

V1, V2 = (f"{n:08d}-0000-5000-8000-000000000000" for n in (1, 2))
NOW_S = 1795910400.0  # 2026-11-29T00:00:00Z


class Asked:
    """A database with some events, and what a command says of it."""

    def __init__(self, folder: Path) -> None:
        self.place = str(folder / "collector.db")
        self.take()

    def take(self, *events: Dict[str, Any]) -> None:
        database = Database(self.place)
        Book(database).take([raw(event) for event in events])
        database.close()

    def pause(self, seconds: float) -> None:
        """The second look is the last."""
        self.paused = [*getattr(self, "paused", []), seconds]
        if len(self.paused) == 2:
            raise KeyboardInterrupt

    def __call__(self, *argv: str, hosts: Tuple[str, ...] = ()) -> Tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        said = parser().parse_args(argv)
        database = Database(self.place, made=False)
        try:
            code = READERS[said.verb](Reading(said, database, hosts, lambda: NOW_S, out, err, self.pause))
        finally:
            database.close()
        return code, out.getvalue(), err.getvalue()


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path)


def spent(host: Publisher, vm: str, *hours: int, **more: Any) -> List[Dict[str, Any]]:
    return [host.usage(vm, n, f"2026-11-20T{n - 1:02d}:00:00.000Z", f"2026-11-20T{n:02d}:00:00.000Z",
                       final=n == hours[-1], **more) for n in hours]


def test_usage_as_a_table_with_its_sum(asked: Asked) -> None:
    host = Publisher()
    asked.take(*spent(host, V1, 1, 2), *spent(host, V2, 1, vo="another", used=use(core_s=7200)))
    code, out, err = asked("usage", "--month", "2026-11")
    assert (code, err) == (0, "")
    header, another, example, whole = (line.split() for line in out.splitlines())
    assert header[:2] == ["VO", "VMS"]
    assert another[:4] == ["another", "1", "1.00", "2.00"] and example[:4] == ["vo.example", "1", "2.00", "2.00"]
    assert whole[:4] == ["all", "2", "3.00", "4.00"]
    assert asked("usage", "--month", "2026-11", "--vo", "another")[1].splitlines()[1].split()[0] == "another"
    assert asked("usage", "--month", "2026-10") == (0, "no use\n", "")


def test_usage_as_csv_in_base_units_and_no_formula(asked: Asked) -> None:
    asked.take(*spent(Publisher(), V1, 1, subject='=cmd|"x",1'))
    code, out, _ = asked("usage", "--by", "user", "--csv", "--month", "2026-11")
    (row,) = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert (row["vo"], row["user"], row["core_s"], row["in_external_bytes"]) == (
        "vo.example", '\'=cmd|"x",1', "3600", "1000")


def test_usage_as_json_with_what_is_missing(asked: Asked) -> None:
    host = Publisher()
    lost = spent(host, V1, 1, 2, 3, 4)
    asked.take(lost[0], lost[3])
    code, out, err = asked("usage", "--json", "--month", "2026-11", "--by", "vm")
    found = json.loads(out)
    assert code == 1
    assert [row["periods"] for row in found["rows"]] == [2] and found["total"]["core_s"] == 7200
    assert [one["numbers"] for one in found["missing"]] == [[2, 3]]
    assert [one["numbers"] for one in found["lost_messages"]] == [[[2, 3]]]
    assert "period 2 to 3 did not come: the use from 2026-11-20T01:00:00.000Z" in err
    asked.take(*lost)
    assert asked("usage", "--month", "2026-11")[0] == 0


@pytest.mark.parametrize("argv", [["list", "--ended"], ["list", "--database", "x"], ["usage", "--csv", "--json"]])
def test_options_that_do_not_go_together(argv: List[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert "usage: " in capsys.readouterr().err


def test_a_month_that_is_none_is_told(asked: Asked) -> None:
    with pytest.raises(Problem, match="no month like"):
        asked("usage", "--month", "November")


def capacity(host: Publisher, at: str, full: bool = False) -> Dict[str, Any]:
    amount = {"total": 2048, "promised": 1024, "free": 1024}
    data = {"at": at, "cores": amount, "memory_mib": amount, "disk_gib": amount, "vms": {"total": 3}, "full": full,
            "reasons": [{"type": "drained", "detail": "it is\x1b[2J drained"}] if full else [],
            "flavours": [{"flavour": "tiny", "possible": 0 if full else 7}]}
    return host.event("host.capacity", data, "capacity", at)


def test_the_site_s_capacity_and_who_is_silent(asked: Asked) -> None:
    fresh, old, state = Publisher("wn1"), Publisher("wn2"), Publisher("wn3")
    asked.take(capacity(fresh, "2026-11-28T23:59:00.000Z"), capacity(old, "2026-11-28T23:54:00.000Z"),
               state.event("host.state", {"drained": False}))
    code, out, err = asked("capacity", hosts=("wn1", "wn4"))
    assert code == 1
    assert out.splitlines()[1].split() == ["wn1", "3", "1024/2048", "1/2", "1024/2048", "1m", "ago"]
    assert out.splitlines()[2].split() == ["all", "3", "1024/2048", "1/2", "1024/2048", "-"]
    assert out.splitlines()[3] == "can be started now: 7 x tiny"
    assert [line.split(":")[1].strip() for line in err.splitlines()] == ["wn2", "wn3", "wn4"]
    assert "6m old" in err
    assert json.loads(asked("capacity", "--json")[1])["total"]["cores"]["free"] == 1024


def test_a_full_host_says_why_in_words_that_move_no_cursor(asked: Asked) -> None:
    asked.take(capacity(Publisher("wn1"), "2026-11-28T23:59:00.000Z", full=True))
    code, out, err = asked("capacity")
    assert (code, err) == (0, "vmagent-site: wn1: it is?[2J drained\n")
    assert "0/" not in out.splitlines()[1] and out.splitlines()[2].split()[2] == "0/2048"


def test_the_list_says_what_did_not_come(asked: Asked) -> None:
    host = Publisher()
    first, lost, last = (host.state(V1, phase) for phase in ("pending", "running", "ready"))
    asked.take(first, last)
    code, out, err = asked("list", "--collected")
    assert code == 0 and V1 in out and "ready" in out
    assert err == "vmagent-site: wn1.example.org: events 2 did not come\n"
    asked.take(lost, host.snapshot())
    assert asked("list", "--collected") == (0, "no VMs\n", "")
    assert V1 in asked("list", "--collected", "--ended")[1]


def busy(host: Publisher, part: int, vm: str, cpu: Any, to: str = "2026-11-28T23:59:30.000Z") -> Dict[str, Any]:
    spread = None if cpu is None else {"average": cpu, "peak": cpu * 2}
    told = {"vm": vm, "cpu_percent": spread, "delay_percent": None, "memory_mib": None,
            "disk": {"read_bytes": {"sum": 9, "average": 3.0, "peak": 9.0}}, "network": {}}
    return host.event("host.telemetry", {"to": to, "part": part, "parts": 2, "vms": [told]}, "telemetry", to)


def test_top_shows_the_busiest_first_and_what_is_not_known_as_such(asked: Asked) -> None:
    host, old = Publisher("wn1"), Publisher("wn2")
    asked.take(host.state(V1, "ready"), host.state(V2, "ready"), old.state(V1, "ready"),
               busy(host, 1, V1, 10.0), busy(host, 2, V2, 60.0), busy(old, 1, V1, 99.0, "2026-11-28T23:00:00.000Z"))
    code, out, _ = asked("top", "--once")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0 and [row[:2] for row in rows[1:]] == [["wn1", V2], ["wn1", V1], ["wn2", V1]]
    assert rows[1][5:8] == ["60.0", "120.0", "-"] and rows[1][9] == "3" and rows[1][-2:] == ["30s", "ago"]
    assert rows[3][5:7] == ["-", "-"] and rows[3][-2:] == ["1h", "ago"]
    first = json.loads(asked("top", "--once", "--json")[1])["vms"][0]
    assert (first["cpu_percent"], first["out_bytes_per_s"]) == (60.0, None)


def test_top_goes_on_until_interrupted(asked: Asked) -> None:
    asked.take(Publisher().state(V1, "ready"))
    with pytest.raises(KeyboardInterrupt):
        asked("top", "--interval", "7s")
    assert asked.paused == [7, 7]


def test_the_place_may_be_configured(tmp_path: Path) -> None:
    assert site(tmp_path, database="x/y.db").database == str(tmp_path / "x/y.db")
    assert site(tmp_path, database="postgresql://me@db.example.org/x").database == "postgresql://me@db.example.org/x"
