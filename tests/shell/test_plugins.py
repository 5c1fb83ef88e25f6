"""check_vmagent as a process: whatever the agent does, one line in time, on standard output, with its exit code."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Iterator, Tuple

import pytest

from tests.support.waiting import until
from tests.unit.test_check_vmagent import GOOD
from tests.unit.test_nagios import Read, read

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "vmagent.export.check_vmagent"]
Answer = Callable[[socket.socket], None]


class Agent:
    """A socket on which every connection gets `answer`."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path = path
        self.connections = 0
        self.over = threading.Event()
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._run, args=(link,), daemon=True).start()

    def _run(self, link: socket.socket) -> None:
        with contextlib.suppress(OSError), link:
            self._answer(link)

    def close(self) -> None:
        self.over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Callable[[Answer], Agent]]:
    made = []

    def make(answer: Answer) -> Agent:
        made.append(Agent(tmp_path / "vmagent.sock", answer))
        return made[-1]

    yield make
    for one in made:
        one.close()


def says(result: Any, member: str = "result") -> Answer:
    def answer(link: socket.socket) -> None:
        request = json.loads(link.makefile("rb").readline())
        link.sendall(json.dumps({"id": request["id"], member: result}).encode() + b"\n")

    return answer


def hangs(link: socket.socket) -> None:
    link.settimeout(60)
    while link.recv(4096):
        pass


def drips(link: socket.socket) -> None:
    """An answer that never ends: no single read of it is late."""
    link.recv(4096)
    over = threading.Event()
    while not over.wait(0.1):
        link.sendall(b" ")


def checked(path: Path, *argv: str) -> Tuple[int, Read]:
    done = subprocess.run([*COMMAND, "--socket", str(path), *argv], cwd=ROOT, capture_output=True, text=True,
                          timeout=60)
    assert done.stderr == "", done.stderr
    return done.returncode, read(done.stdout.rstrip("\n"))


NO_CLOCK = ("-w", "clock_error=~:", "-c", "clock_error=~:")  # this machine's clock is its own business


def test_an_agent_that_is_well(agent: Any) -> None:
    path = agent(says(GOOD)).path
    code, found = checked(path, *NO_CLOCK)
    assert (code, found.status, found.more) == (0, "OK", [])
    assert found.metrics["disk_gib"]["value"] == "500"
    assert "ca.pem: 300 days left" in checked(path, "-v", *NO_CLOCK)[1].more


def test_one_that_is_not(agent: Any) -> None:
    status = {**GOOD, "hypervisor": {**GOOD["hypervisor"], "connected": False, "why": "it is gone"}}
    code, found = checked(agent(says(status)).path, *NO_CLOCK)
    assert (code, found.status, found.text) == (2, "CRITICAL", "no hypervisor: it is gone")
    assert "CRITICAL: no hypervisor: it is gone" in found.more


def test_nobody_there_is_critical(tmp_path: Path) -> None:
    code, found = checked(tmp_path / "none.sock")
    assert (code, found.status) == (2, "CRITICAL") and "no agent answers" in found.text


@pytest.mark.parametrize("answer", [hangs, drips])
def test_one_that_hangs_is_critical_in_time(agent: Any, answer: Answer) -> None:
    code, found = checked(agent(answer).path, "-t", "1")
    assert (code, found.status) == (2, "CRITICAL") and "no answer within 1 s" in found.text


def test_one_that_refuses_or_is_none_is_unknown(agent: Any) -> None:
    code, found = checked(agent(says({"type": "not-authorised", "detail": "go away"}, "problem")).path)
    assert (code, found.status, found.text) == (3, "UNKNOWN", "not-authorised: go away")


def test_an_answer_that_nobody_understands_is_a_defect_and_unknown(agent: Any) -> None:
    code, found = checked(agent(says({"host": "x"})).path)
    assert (code, found.status) == (3, "UNKNOWN") and "defect" in found.text


def test_a_signal_ends_it_with_a_line(agent: Any) -> None:
    stuck = agent(hangs)
    process = subprocess.Popen([*COMMAND, "--socket", str(stuck.path), "-t", "50"], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: stuck.connections, 30, "its question")
        os.kill(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, err, read(out.rstrip("\n")).status) == (3, "", "UNKNOWN")
