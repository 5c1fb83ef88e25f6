"""check_vm_creation as a process, against a peer that is broker and agent: its line, its times, and what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import List, Tuple

import pytest

from tests.support.controlled import HOST, site
from tests.support.oneagent import OneAgent
from tests.support.waiting import until
from tests.unit.test_nagios import Read, read

ROOT = Path(__file__).resolve().parents[2]
REFUSAL = {"type": "no-capacity", "title": "no capacity", "detail": "2 cores are free"}


def command(folder: Path, url: str, *argv: str) -> List[str]:
    site(folder, urls=[url], profile="rabbitmq", reconnect_max_s=1)
    return [sys.executable, "-m", "vmagent.site.check_vm_creation", "--config", str(folder / "site.yaml"), "-H", HOST,
            "--image", "try", "--flavour", "tiny", *argv]


def checked(folder: Path, url: str, *argv: str) -> Tuple[int, Read]:
    done = subprocess.run(command(folder, url, *argv), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr == "", done.stderr
    return done.returncode, read(done.stdout.rstrip("\n"))


def test_a_vm_starts_becomes_ready_and_ends(tmp_path: Path) -> None:
    with OneAgent() as agent:
        code, found = checked(tmp_path, agent.url, "--network", "public=198.51.100.9", "-t", "60")
    assert (code, found.status) == (0, "OK") and found.text.startswith(f"{HOST}: ready after ")
    assert [one.verb for one in agent.commands] == ["vm.start", "vm.stop"]
    start = agent.commands[0].args
    assert start["networks"] == [{"type": "public", "addresses": ["198.51.100.9"]}] and start["image"] == {"id": "try"}
    assert (start["lifetime_s"], start["start_by_s"]) == (180, 60)
    assert set(agent.phases.values()) == {"stopped"}
    assert list(found.metrics) == ["connect", "accepted", "ready", "stopped", "over", "total"]
    assert all(metric["unit"] == "s" for metric in found.metrics.values())


def test_one_that_is_slow_is_judged(tmp_path: Path) -> None:
    with OneAgent() as agent:
        code, found = checked(tmp_path, agent.url, "-w", "total=@0:1000", "-t", "60")
    assert (code, found.status) == (1, "WARNING") and "slow: total took" in found.text


def test_a_refusal_is_critical_and_leaves_nothing_to_clean(tmp_path: Path) -> None:
    with OneAgent(refuse=REFUSAL) as agent:
        code, found = checked(tmp_path, agent.url, "-t", "60")
    assert (code, found.status, found.text) == (2, "CRITICAL", f"{HOST}: not accepted: no-capacity: 2 cores are free")
    assert [one.verb for one in agent.commands] == ["vm.start"]
    assert found.metrics["ready"]["value"] is None


def test_one_that_never_becomes_ready_is_critical_and_killed(tmp_path: Path) -> None:
    with OneAgent(deaf=["vm.start"]) as agent:
        code, found = checked(tmp_path, agent.url, "-t", "16")
    assert (code, found.status, found.text) == (2, "CRITICAL", f"{HOST}: not ready in time")
    told = {one.id: one.verb for one in agent.commands if one.verb != "host.report"}  # unanswered ones come again
    assert list(told.values()) == ["vm.start", "vm.kill"]
    assert set(agent.phases.values()) == {"stopped"}


def test_one_that_does_not_end_is_killed_and_if_that_fails_it_is_told(tmp_path: Path) -> None:
    with OneAgent(deaf=["vm.stop", "vm.kill"]) as agent:
        code, found = checked(tmp_path, agent.url, "-t", "16")
    assert (code, found.status) == (2, "CRITICAL")
    assert found.text == f"{HOST}: not stopped in time; the VM could not be proven over: its lease ends it"
    assert found.more == [f"VM {vm}" for vm in agent.phases]


def test_a_silent_agent_and_no_broker_are_critical(tmp_path: Path) -> None:
    with OneAgent(silent=True) as agent:
        code, found = checked(tmp_path, agent.url, "-t", "12")
    assert (code, found.status) == (2, "CRITICAL") and "not accepted in time" in found.text
    code, found = checked(tmp_path, "stomp://127.0.0.1:1", "-t", "4")
    assert code == 2 and found.text.startswith(f"{HOST}: no broker in time: stomp://127.0.0.1:1: ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_work_and_the_vm(tmp_path: Path, number: int) -> None:
    with OneAgent(deaf=["vm.start"]) as agent:
        process = subprocess.Popen(command(tmp_path, agent.url, "-t", "100"), cwd=ROOT, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            until(lambda: agent.commands, 30, "the start")
            os.kill(process.pid, number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
            process.communicate()
        until(lambda: set(agent.phases.values()) == {"stopped"}, 10, "the kill")
    found = read(out.rstrip("\n"))
    assert (process.returncode, err, found.status) == (3, "", "UNKNOWN") and "ended by a signal" in found.text


def test_a_configuration_that_is_wrong_is_unknown(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "vmagent.site.check_vm_creation", "-H", HOST, "--image", "x"]
    done = subprocess.run([*argv, "--config", str(tmp_path / "none")], cwd=ROOT, capture_output=True, text=True,
                          timeout=60)
    assert (done.returncode, done.stderr) == (3, "") and read(done.stdout.rstrip("\n")).status == "UNKNOWN"
    bare = subprocess.run(argv[:-2], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (bare.returncode, bare.stderr) == (3, "") and "--image" in bare.stdout
