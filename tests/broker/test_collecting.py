"""`vmagent-site collect` as a process, against a broker that drops connections: the book is what was published."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Tuple

import pytest

from tests.broker.test_site_process import TIDY
from tests.support.controlled import site
from tests.support.droppingbroker import DroppingBroker
from tests.support.published import Publisher, use
from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
EVENTS, USAGE = "/topic/vmagent.S.events", "/queue/vmagent.S.usage"
PHASES = ("pending", "starting", "running", "ready")
VMS = tuple(f"{n:08d}-0000-5000-8000-000000000000" for n in range(1, 9))


class Story:
    """Two hosts, eight VMs, a day of use; some events never reach the broker."""

    def __init__(self) -> None:
        self.hosts = {name: Publisher(name) for name in ("wn1.example.org", "wn2.example.org")}
        self.truth: Dict[str, str] = {}

    def tell(self, broker: DroppingBroker) -> None:
        for n, vm in enumerate(VMS):
            host = self.hosts["wn1.example.org" if n % 2 else "wn2.example.org"]
            for phase in PHASES:
                event = host.state(vm, phase)
                if not (vm == VMS[1] and phase in ("running", "ready")):  # lost for good: only a snapshot heals it
                    broker.put(EVENTS, event)
            self.truth[vm] = "ready"
            for hour in range(3):
                broker.put(USAGE, host.usage(vm, hour + 1, f"2026-11-20T0{hour}:00:00.000Z",
                                             f"2026-11-20T0{hour + 1}:00:00.000Z", used=use(core_s=100)))

    def report(self, command: Mapping[str, Any]) -> List[Tuple[str, Mapping[str, Any]]]:
        hosts = [one for name, one in self.hosts.items() if command["target"] in (name, "*")]
        return [(EVENTS, one.snapshot(*[one.full(vm, self.truth[vm]) for n, vm in enumerate(VMS)
                                        if (n % 2 == 1) == (one.host == "wn1.example.org")])) for one in hosts]


class Process:
    """A collector's process on a folder."""

    def __init__(self, folder: Path, url: str) -> None:
        site(folder, urls=[url], profile="rabbitmq", reconnect_max_s=1, database="collector.db")
        self.config = folder / "site.yaml"
        self.running: List[subprocess.Popen[str]] = []

    def start(self) -> subprocess.Popen[str]:
        self.running.append(subprocess.Popen(self._command("collect"), cwd=ROOT, text=True, stderr=subprocess.PIPE))
        return self.running[-1]

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self._command(*argv), cwd=ROOT, capture_output=True, text=True, timeout=120)

    def _command(self, *argv: str) -> List[str]:
        return [sys.executable, "-c", TIDY, "--config", str(self.config), *argv]

    def listed(self) -> Dict[str, Any]:
        done = self.run("list", "--collected", "--json")
        assert done.returncode == 0, done.stderr
        found: Dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture
def story() -> Story:
    return Story()


@pytest.fixture
def stopped() -> Iterator[List[Process]]:
    made: List[Process] = []
    yield made
    for process in (one for each in made for one in each.running):
        process.kill()
        process.communicate()


def test_the_book_is_what_was_published_whatever_the_broker_drops(
    tmp_path: Path, story: Story, stopped: List[Process]
) -> None:
    with DroppingBroker([3, 1, 9, 20], story.report) as broker:
        story.tell(broker)
        collector = Process(tmp_path, broker.url)
        stopped.append(collector)
        first = collector.start()
        until(lambda: broker.connections >= 3 and len(broker.delivered) > 5, 60, "the first cuts")
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        second = collector.start()
        until(lambda: broker.connections >= 5 and not broker.kept, 60, "everything acknowledged")
        until(lambda: not collector.listed()["missing"], 60, "nothing missing")
        second.send_signal(signal.SIGTERM)
        _, said = second.communicate(timeout=30)
        assert second.returncode == 0, said
    assert len(broker.delivered) > len(set(broker.delivered))  # some came again
    assert {one["schema"] for one in broker.commands} == {"host.report/1"}
    found = collector.listed()
    assert {row["vm"]: row["phase"] for row in found["vms"]} == story.truth
    assert (found["missing"], found["lost"], found["aside"]) == ([], 0, 0)


def test_once_drains_and_ends(tmp_path: Path, story: Story) -> None:
    with DroppingBroker([4], story.report) as broker:
        story.tell(broker)
        done = Process(tmp_path, broker.url).run("collect", "--once", "--json")
        assert not broker.kept
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["new"] >= len(VMS) * 7 - 2 and counts["aside"] == 0 and counts["lacking"] == []
    assert {row["vm"]: row["phase"] for row in Process(tmp_path, broker.url).listed()["vms"]} == story.truth


def test_no_broker_and_no_database_are_told(tmp_path: Path) -> None:
    collector = Process(tmp_path, "stomp://127.0.0.1:1")
    listed = collector.run("list", "--collected")
    assert listed.returncode == 2 and "does not exist" in listed.stderr
    other = collector.run("collect", "--database", "postgresql://me:secret@db.example.org/x")
    assert other.returncode == 2 and "pgpass" in other.stderr
    (tmp_path / "taken").write_text("a file")
    unmade = collector.run("collect", "--database", str(tmp_path / "taken" / "x.db"))
    assert unmade.returncode == 4 and "taken" in unmade.stderr
