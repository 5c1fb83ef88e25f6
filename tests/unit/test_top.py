"""`vmagentctl top`: how fast guests go, how that is shown in 80 columns, and how it ends."""

from __future__ import annotations

import io
import json
import os
import pty
import threading
import time
from typing import Any, Dict, List, Optional

import pytest

from tests.support import building as b
from tests.unit.test_ctl import FakeAgent
from vmagent.core.limitmodel import NicCounters
from vmagent.core.paces import KEPT, Pace, Paces
from vmagent.core.samples import DiskCounters, HostSample, Reading, Sample
from vmagent.errors import Problem
from vmagent.local import ctl_parser, ctl_top, tables, toplines, topview
from vmagent.local.ctl_session import Session

BUSY = b.record(journal=b.ran())
IDLE = b.record(spec={"member": 1, "name": "idle", "owner": b.Owner("/DC=org/CN=Else", "/other.example")},
                journal=b.ran(at=500.0))
DEVICES = {one.vm: [one.spec.interfaces[0].device] for one in (BUSY, IDLE)}
TAP = DEVICES[BUSY.vm][0]


def reading(
    at: float, cpu: float, into: int, disk: Optional[int] = None, run: str = "1", disk_at: float = 0
) -> Reading:
    sample = Sample(BUSY.vm, at, run, cpu_s=cpu, memory_mib=300, disk_at=disk_at or at,
                    disk=None if disk is None else DiskCounters(disk, 1, 2 * disk, 1))
    nics = {TAP: NicCounters(in_local_bytes=into, in_external_bytes=into, out_local_bytes=into)}
    return Reading(at, {BUSY.vm: sample, IDLE.vm: Sample(IDLE.vm, at, "9", cpu_s=1.0)}, nics, HostSample(at))


def fed(*readings: Reading) -> Paces:
    paces = Paces()
    for one in readings:
        paces.take(one, DEVICES)
    return paces


def test_a_pace_is_what_grew_per_second() -> None:
    paces = fed(reading(10, 1.0, 1000, 5000), reading(20, 6.0, 21000, 15000))
    assert paces.of(BUSY.vm)[-1] == Pace(50, 4000, 2000, 1000, 2000, 300)
    assert paces.of(IDLE.vm)[-1].cpu_core_percent == 0 and paces.of(IDLE.vm)[-1].network_in_bytes_per_s is None


def test_the_first_reading_a_new_qemu_and_a_shrunk_counter_say_nothing() -> None:
    first, again, shrunk = fed(reading(10, 1.0, 9, 9)).of(BUSY.vm)[-1], reading(20, 6.0, 99, 99, run="2"), 0
    assert (first.cpu_core_percent, first.network_in_bytes_per_s, first.disk_read_bytes_per_s) == (None, None, None)
    new = fed(reading(10, 1.0, 9, 9), again).of(BUSY.vm)[-1]
    assert (new.cpu_core_percent, new.disk_read_bytes_per_s) == (None, None)
    less = fed(reading(10, 9.0, 9, 9), reading(20, 1.0, shrunk, 9)).of(BUSY.vm)[-1]
    assert (less.cpu_core_percent, less.network_in_bytes_per_s) == (None, None)


def test_between_two_looks_at_the_disks_their_last_pace_stands() -> None:
    looks = (reading(10, 1, 1, 0), reading(70, 1, 1, 60), reading(80, 1, 1, 60, disk_at=70), reading(130, 1, 1, 660))
    assert [one.disk_read_bytes_per_s for one in fed(*looks).of(BUSY.vm)] == [None, 1, 1, 10]


def test_so_many_are_kept_and_those_of_a_guest_that_is_gone_are_not() -> None:
    paces = fed(*(reading(10.0 * n, n, n) for n in range(1, 3 * KEPT)))
    assert len(paces.of(BUSY.vm)) == KEPT
    paces.take(Reading(999, {}, {}, HostSample(999)), DEVICES)
    assert paces.of(BUSY.vm) == ()


# -- shown


def answer() -> Dict[str, Any]:
    paces = fed(reading(1990, 1.0, 1000, 5000), reading(2000, 6.0, 21000, 15000))
    seen = {one.vm: b.observed(of=one.spec) for one in (BUSY, IDLE)}
    view: Dict[str, Any] = json.loads(json.dumps(topview.top([BUSY, IDLE], seen, paces, b.now(2003.0))))
    return view


def test_a_row_has_lease_limits_and_pace() -> None:
    row = answer()["vms"][0]
    assert row["left_s"] == 2597 and row["limits"]["cpu_cap_core_percent"] == 50
    assert row["pace"]["cpu_core_percent"] == 50 and row["paces"]["cpu_core_percent"] == [None, 50]
    limited = b.record(spec={"nics": (b.NicLimits(1000, 2000),)})
    assert topview.top([limited], {}, Paces(), b.now())["vms"][0]["limits"]["bandwidth_out_kbit"] == 2000


def test_eighty_columns_hold_every_line() -> None:
    rows = toplines.chosen(answer()["vms"], [], "cpu")
    shown = toplines.lines(answer(), rows)
    assert all(len(line) <= 80 for line in shown)
    assert shown[0] == "2 of 2 VMs, measured 3 s ago"
    assert BUSY.vm[:8] in shown[2] and "50/50" in shown[2] and "6.0k" in shown[2] and "3.0k" in shown[2]
    assert "█" in shown[2] and "43m" in shown[2]
    wide = toplines.lines(answer(), rows, 140)
    assert b.USER[:20] in wide[2] and all(len(line) <= 140 for line in wide)


def test_what_has_no_room_is_counted() -> None:
    rows = toplines.chosen(answer()["vms"], [], "cpu") * 30
    shown = toplines.lines(answer(), rows, 80, 24)
    assert len(shown) == 24 and shown[-1] == "... and 39 more"


@pytest.mark.parametrize(
    ("filters", "sort", "names"),
    [
        ([], "cpu", ["worker", "idle"]), ([], "name", ["idle", "worker"]), ([], "left", ["idle", "worker"]),
        ([("owner", "else")], "cpu", ["idle"]), ([("vo", "vo.example")], "cpu", ["worker"]),
        ([("vo", "vo.example"), ("vo", "other.example")], "cpu", ["worker", "idle"]),
        ([("vo", "vo.example"), ("owner", "else")], "cpu", []), ([("phase", "pending")], "cpu", []),
    ],
)  # fmt: skip
def test_sorted_and_filtered(filters: Any, sort: str, names: List[str]) -> None:
    assert [row["name"] for row in toplines.chosen(answer()["vms"], filters, sort)] == names


@pytest.mark.parametrize(("value", "text"), [
    (None, "-"), (0, "0"), (980, "980"), (9940, "9.9k"), (9960, "10k"), (12_345_678, "12M"), (3_400_000_000, "3.4G"),
])  # fmt: skip
def test_amounts(value: Any, text: str) -> None:
    assert toplines.amount(value) == text


def test_bars_are_relative_and_blank_where_nobody_knows() -> None:
    assert toplines.spark([9, 9, None, 0, 50, 100]) == "▂ ▁▅█"
    assert toplines.spark([0, 0]) == "▁▁" and toplines.spark([]) == ""


# -- run


def run(out: Any, *argv: str, pause: Any = None) -> int:
    said = ctl_parser.parser().parse_args(["top", *argv])
    agent: Any = FakeAgent(top=answer())
    session = Session(said, agent, out, tables.Screen(out), lambda _: False, pause or time.sleep)
    return int(ctl_top.top(session))


def test_once_as_lines_and_as_json() -> None:
    out = io.StringIO()
    assert run(out, "--once") == 0 and "\x1b" not in out.getvalue() and BUSY.vm[:8] in out.getvalue()
    out = io.StringIO()
    assert run(out, "--once", "--json", "--filter", "owner=Else") == 0
    assert [row["name"] for row in json.loads(out.getvalue())["vms"]] == ["idle"]


def test_without_a_terminal_it_goes_on_line_by_line() -> None:
    out, paused = io.StringIO(), []

    def pause(seconds: float) -> None:
        paused.append(seconds)
        if len(paused) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(out, "--every", "5", pause=pause)
    assert paused == [5, 5, 5] and out.getvalue().count("2 of 2 VMs") == 3


def test_it_asks_no_more_than_once_per_second() -> None:
    with pytest.raises(Problem, match="at least 1s"):
        run(io.StringIO(), "--every", "0s")


@pytest.mark.parametrize("text", ["owner", "colour=red", "vo="])
def test_a_wrong_filter_is_told(text: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        ctl_parser.parser().parse_args(["top", "--filter", text])
    assert "owner=TEXT, vo=NAME, phase=WORD" in capsys.readouterr().err


def test_q_ends_it_and_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    shown: List[bytes] = []

    def press() -> None:
        """q once something was drawn; then read on, so that nobody who writes is held up."""
        pressed = False
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:
                return
            if not data:
                return
            shown.append(data)
            if not pressed and b"q ends" in b"".join(shown):
                pressed = True
                os.write(ours, b"q")

    person = threading.Thread(target=press, daemon=True)
    with open(theirs, "r+b", buffering=0) as raw, io.TextIOWrapper(raw, write_through=True) as terminal:
        import termios

        before = termios.tcgetattr(terminal)
        person.start()
        monkeypatch.setattr(ctl_top.sys, "stdin", terminal)
        monkeypatch.setenv("TERM", "xterm")
        assert run(terminal, "--every", "60s") == 0
        assert termios.tcgetattr(terminal) == before
    person.join(20)  # until it has read all: the other end is closed
    os.close(ours)
    text = b"".join(shown)
    assert b"\x1b[?1049h" in text and b"\x1b[?1049l" in text and BUSY.vm[:8].encode() in text
