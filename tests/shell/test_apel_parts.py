"""The accounting export wired as the agent wires it, over a real store: kill -9, the socket's verbs, the broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Iterator, List

import pytest
from twisted.internet.defer import Deferred

from tests.support import apel_reader
from tests.support.apel_child import Run
from tests.support.controlled import fired
from tests.support.publishing import sent
from vmagent import apelparts
from vmagent.core.policy import Volume
from vmagent.errors import Fault, FaultKind, Problem
from vmagent.local.protocol import RESEND

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(name="run")
def fixture_run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    run.stop()


def child(here: Path, hours: int, crash_at: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VMAGENT_CRASH_AT": crash_at}
    command = [sys.executable, "-m", "tests.support.apel_child", str(here), str(hours)]
    return subprocess.run(command, cwd=ROOT, text=True, env=environment, capture_output=True, timeout=120, check=False)


def durations(texts: List[str]) -> List[str]:
    return [fields["WallDuration"] for text in texts for fields in apel_reader.load(text)]


@pytest.mark.parametrize("taken", [False, True])
def test_killed_with_the_message_queued_and_not_marked(tmp_path: Path, taken: bool) -> None:
    assert child(tmp_path, 2, "accounts-queued").returncode == -signal.SIGKILL
    first = sent(tmp_path / "outgoing") if taken else []
    again = child(tmp_path, 3)
    assert again.returncode == 0 and "unexported 0" in again.stdout, again.stderr
    assert durations(first + sent(tmp_path / "outgoing")) == (["7200", "10800"] if taken else ["10800"])
    assert "unexported 0" in child(tmp_path, 3).stdout and sent(tmp_path / "outgoing") == []


@pytest.mark.parametrize("point", ["accounts-written", "accounts-archived"])
def test_killed_while_it_writes_nothing_is_lost(tmp_path: Path, point: str) -> None:
    assert child(tmp_path, 2, point).returncode == -signal.SIGKILL
    assert sent(tmp_path / "outgoing") == []
    assert "unexported 0" in child(tmp_path, 2).stdout
    assert durations(sent(tmp_path / "outgoing")) == ["7200"]


def test_what_the_socket_may_ask(run: Run, tmp_path: Path) -> None:
    run.used(1, 2)
    assert run.ask("accounting")["apel"]["unexported_since"] == "2026-11-21T01:00:00.000Z"
    run.settle(run.books.turn())
    assert (run.ask("accounting")["apel"]["exported_row"], run.books.exporters) == (2, ("apel",))
    sent(tmp_path / "outgoing")
    planned = run.ask(RESEND, month="2026-11", dry_run=True)
    assert (planned["records"], planned["messages"], sent(tmp_path / "outgoing")) == (1, 1, [])
    assert run.ask(RESEND, month="2026-11") == {**planned, "dry_run": False}
    assert durations(sent(tmp_path / "outgoing")) == ["7200"]
    with pytest.raises(Problem, match="2026-11"):
        run.ask(RESEND, month="November")


def test_trouble_is_told_as_degraded_and_taken_back(run: Run, tmp_path: Path) -> None:
    run.used(1)
    (tmp_path / "outgoing").write_text("no directory")
    run.settle(run.books.turn())
    assert "Not a directory" in run.world.degraded[apelparts.PART]
    (tmp_path / "outgoing").unlink()
    run.clock.wall = "2026-11-21T12:30:00.000Z"
    run.settle(run.books.turn())
    assert apelparts.PART not in run.world.degraded and len(sent(tmp_path / "outgoing")) == 1


def test_a_spool_that_hangs_holds_up_nobody_and_is_not_asked_twice(run: Run) -> None:
    hung: Deferred[None] = Deferred()
    turns: List[int] = []

    async def turn() -> None:
        turns.append(1)
        await hung

    run.books.turn = turn  # type: ignore[method-assign]
    for _ in range(3):
        fired(Deferred.fromCoroutine(run.books.look()))
    assert turns == [1]
    hung.errback(Fault(FaultKind.UNKNOWN, "it hung"))
    fired(Deferred.fromCoroutine(run.books.look()))
    assert turns == [1, 1]


def test_over_the_broker(tmp_path: Path) -> None:
    run = Run(tmp_path, destination="/queue/apel")
    run.used(1)
    run.settle(run.books.turn())
    ((destination, body),) = run.link.sent
    assert destination == "/queue/apel" and durations([body.decode()]) == ["3600"]
    run.ask(RESEND, month="2026-11", dry_run=True)
    assert len(run.link.sent) == 1
    run.ask(RESEND, month="2026-11")
    assert run.link.sent == [(destination, body)] * 2, "again, and at once"
    assert sent(tmp_path / "outgoing") == []
    run.stop()


def test_without_the_setting_nothing_is_there() -> None:
    nobody = apelparts.Apel(None, None)
    assert nobody.exporters == ()
    with pytest.raises(Problem, match="accounting.apel"):
        fired(nobody.queries()[RESEND]({"month": "2026-11"}))


def test_the_size_of_a_volume(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"x" * 1024)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(tmp_path / "q"), "5M"], check=True, timeout=60)
    volumes = {"raw": Volume("raw", str(tmp_path / "raw")), "q": Volume("q", str(tmp_path / "q"), "qcow2"),
               "gone": Volume("gone", str(tmp_path / "gone")), "pool": Volume("pool", pool="p", volume="v"),
               "other": Volume("other", str(tmp_path / "raw"), "qcow2")}
    sizes = {name: apelparts.volume_bytes(volumes, name) for name in (*volumes, "unknown")}
    assert sizes == {"raw": 1024, "q": 5 * 2**20, "gone": None, "pool": None, "other": None, "unknown": None}
