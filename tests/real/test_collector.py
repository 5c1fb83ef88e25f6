"""The collector and the plug-ins beside a real agent: the state rebuilt from events equals what the agent shows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from tests.real.conftest import SUBNET, start_args
from tests.support.agent import HOST, ROOT, SITE, Agent, Controller, vm_of
from tests.support.waiting import until
from tests.unit.test_nagios import Read, read

MOVING = ("age_s", "left_s")  # what goes on by itself
NO_CLOCK = ("-w", "clock_error=~:", "-c", "clock_error=~:")  # this machine's clock is its own business


class Collector:
    """`vmagent-site` on a folder of its own; `collect` runs as a process."""

    def __init__(self, folder: Path, port: int, trust: Path) -> None:
        folder.mkdir()
        (folder / "passcode").write_text("guest")
        self.config = folder / "site.yaml"
        self.config.write_text(json.dumps({
            "site": SITE, "urls": [f"stomp://127.0.0.1:{port}"], "profile": "rabbitmq", "login": "guest",
            "passcode_file": "passcode", "key": str(trust / "controller.key"), "hosts": [HOST],
            "chain": str(trust / "controller.pem"), "database": "collector.db", "reconnect_max_s": 2}))
        self.log = folder / "log"
        self.running: List[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.running.append(subprocess.Popen(self._site("collect"), cwd=ROOT, stdout=log, stderr=log))

    def end(self, number: int) -> int:
        process = self.running.pop()
        process.send_signal(number)
        return process.wait(30)

    def site(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return run(*self._site(*argv))

    def _site(self, *argv: str) -> List[str]:
        return [sys.executable, "-m", "vmagent.site", "--config", str(self.config), *argv]

    def rows(self) -> Dict[str, Any]:
        """VM id -> its row; {} while there is no book."""
        done = self.site("list", "--collected", "--json")
        return {row["vm"]: row for row in json.loads(done.stdout)["vms"]} if done.returncode == 0 else {}


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)


def plugin(module: str, *argv: str) -> Read:
    done = run(sys.executable, "-m", module, *argv)
    assert done.stderr == "", done.stderr
    found = read(done.stdout.rstrip("\n"))
    assert done.returncode == ["OK", "WARNING", "CRITICAL", "UNKNOWN"].index(found.status)
    return found


@pytest.fixture
def collector(tmp_path: Path, rabbitmq: Any, trust: Path, agent: Agent) -> Iterator[Collector]:
    made = Collector(tmp_path / "collector", rabbitmq.port, trust)
    made.start()
    yield made
    for process in made.running:
        process.kill()
        process.wait()
    print(made.log.read_text()[-3000:])


def ctl(agent: Agent, *argv: str) -> Any:
    socket = str(agent.folder / "run" / "vmagent.sock")
    done = run(sys.executable, "-m", "vmagent.local.ctl", "--socket", socket, *argv, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def still(row: Dict[str, Any]) -> Dict[str, Any]:
    return {name: value for name, value in row.items() if name not in (*MOVING, "host")}


def same(agent: Agent, collector: Collector) -> bool:
    """Whether the book says what the agent says, now."""
    shown = {row["vm"]: still(row) for row in ctl(agent, "list")["vms"]}
    rebuilt = {vm: still(row) for vm, row in collector.rows().items()}
    if rebuilt != shown:
        print(f"shown   {shown}\nrebuilt {rebuilt}")
    return bool(shown) and rebuilt == shown


def used(collector: Collector) -> Dict[str, Any]:
    """VM id -> its use of this month; nothing of it may be missing."""
    found = json.loads(collector.site("usage", "--by", "vm", "--json").stdout)
    assert (found["missing"], found["lost_messages"]) == ([], [])
    return {row["vm"]: row for row in found["rows"]}


def checked(agent: Agent, *argv: str) -> Read:
    socket = str(agent.folder / "run" / "vmagent.sock")
    return plugin("vmagent.export.check_vmagent", "--socket", socket, *NO_CLOCK, *argv)


def test_the_state_rebuilt_from_events_is_the_agent_s(
    agent: Agent, controller: Controller, collector: Collector, rabbitmq: Any
) -> None:
    agent.start()
    until(lambda: HOST in collector.site("capacity", "--json").stdout, 30, "the first capacity")
    first, second = (vm_of(controller.send("vm.start", start_args(networks=None, name=name))) for name in ("a", "b"))
    for vm in (first, second):
        controller.wait_phase(vm, "ready")
    until(lambda: same(agent, collector), 30, "the same state before")

    collector.end(signal.SIGKILL)
    rabbitmq.kill()
    ctl(agent, "kill", first, "--yes")
    ctl(agent, "pause", second, "--yes")
    until(lambda: ctl(agent, "show", second)["row"]["phase"] == "paused", 60, "paused during the outage")
    late = checked(agent, "-w", "broker_down=0", "-c", "broker_down=1")
    assert late.status == "CRITICAL" and "no broker for" in late.text
    collector.start()  # and it finds no broker
    rabbitmq.start()
    controller.reconnect()

    until(lambda: same(agent, collector) and set(collector.rows()) == {second}, 60, "the same state after")
    assert collector.rows()[second]["phase"] == "paused"
    found = json.loads(collector.site("list", "--collected", "--json").stdout)
    assert (found["missing"], found["aside"]) == ([], 0)
    until(lambda: first in used(collector), 30, "the use of the VM that ended during the outage")
    assert used(collector)[first]["vo"] == "vo.example" and used(collector)[first]["core_s"] > 0
    assert collector.end(signal.SIGTERM) == 0


def test_the_plug_ins_on_a_real_host(agent: Agent, controller: Controller, collector: Collector) -> None:
    agent.start()
    until(lambda: collector.site("capacity").returncode == 0, 30, "the capacity")
    told = json.loads(collector.site("capacity", "--json").stdout)["total"]
    assert told["cores"]["total"] == ctl(agent, "capacity")["cores"]["total"]

    until(lambda: checked(agent).status == "OK", 30, "an agent that is well")
    well = checked(agent)
    assert well.metrics["certificate_days"]["value"] not in (None, "0")
    assert well.metrics["publish_age"]["value"] is not None

    creation = ["vmagent.site.check_vm_creation", "--config", str(collector.config), "-H", HOST, "--image", "try"]
    good = plugin(*creation, "--flavour", "tiny", "--network", f"public={SUBNET}.10", "-t", "90")
    assert good.status == "OK", good.text
    assert float(good.metrics["ready"]["value"] or 0) > 0
    assert ctl(agent, "list")["vms"] == []
    bad = plugin(*creation, "--flavour", "none", "-t", "60")
    assert bad.status == "CRITICAL" and "none" in bad.text

    process = subprocess.Popen([sys.executable, "-m", *creation, "--flavour", "tiny", "-t", "100"], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: ctl(agent, "list")["vms"], 30, "its VM")
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=90)
    assert read(out.rstrip("\n")).status == "UNKNOWN" and "could not" not in out
    assert ctl(agent, "list")["vms"] == []
    mine = {json.loads(frame.body).get("command") for frame in controller.link.messages("replies")}
    assert mine == set(), "its replies are its own: another controller's queue is left alone"
