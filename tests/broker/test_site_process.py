"""vmagent-site and the documented example as processes: real reactor, real STOMP, a peer that is broker and agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import pytest

from tests.support import envelopes
from tests.support.controlled import HOST, site
from tests.support.oneagent import OneAgent
from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO3B0yC6l0yX8pQ3ZVtCzXb5b7m8m7l6pY8m4bJ8m2bJ me@example.org"
TIDY = ("import gc, sys, threading\n"
        "def tidy():\n while True:\n  gc.collect()\n  threading.Event().wait(0.05)\n"
        "threading.Thread(target=tidy, daemon=True).start()\n"
        "from vmagent.site.__main__ import main\nsys.exit(main(sys.argv[1:]))")
"""vmagent-site while garbage is collected all the time: what nobody holds is gone."""
START = ["start", HOST, "--image", "tiny", "--flavour", "small", "--lifetime", "1m"]


def configured(folder: Path, url: str, **changes: Any) -> Path:
    site(folder, urls=[url], profile="rabbitmq", reconnect_max_s=1, **changes)
    return folder / "site.yaml"


def ran(config: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vmagent.site", "--config", str(config), *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_documented_example_works(tmp_path: Path) -> None:
    example = ROOT / "docs" / "examples" / "start_one.py"
    assert example.read_text() in (ROOT / "docs" / "controller-library.md").read_text()
    with OneAgent() as agent:
        config = configured(tmp_path, agent.url)
        done = subprocess.run([sys.executable, str(example), str(config), HOST, "tiny"], cwd=ROOT, text=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"VM {next(iter(agent.phases))} is asked for", "it is ready"]
    assert [one.verb for one in agent.commands] == ["vm.start", "vm.stop"]
    assert set(agent.phases.values()) == {"stopped"}


def test_start_and_wait_then_list_then_stop(tmp_path: Path) -> None:
    with OneAgent() as agent:
        config = configured(tmp_path, agent.url, hosts=[HOST])
        started = ran(config, *START, "--wait", "--json", "--count", "2")
        assert started.returncode == 0, started.stderr
        vms = [one["vm"] for one in json.loads(started.stdout)["members"]]
        assert vms == list(agent.phases)
        assert f"member 1  {vms[1]}  ready" in started.stderr
        listed = ran(config, "list")
        assert (listed.returncode, listed.stderr) == (0, "")
        assert all(vm in listed.stdout for vm in vms)
        stopped = ran(config, "stop", HOST, *vms, "--wait")
        assert stopped.returncode == 0, stopped.stderr
    assert set(agent.phases.values()) == {"stopped"}


def test_an_ova_with_user_data_and_a_key_is_started(tmp_path: Path) -> None:
    (tmp_path / "a.ova").write_bytes(envelopes.archive(list(envelopes.package(b"boot").items())))
    (tmp_path / "data").write_bytes(b"#!/bin/sh\n")
    (tmp_path / "me.pub").write_text(KEY + "\n")
    given = ["--ovf", str(tmp_path / "a.ova"), "--image", "tiny", "--lifetime", "1m", "--user-data",
             str(tmp_path / "data"), "--ssh-key", str(tmp_path / "me.pub"), "--meta-data", "role=worker"]  # fmt: skip
    with OneAgent() as agent:
        config = configured(tmp_path, agent.url, ovf_networks={"VM Network": "public"})
        done = ran(config, "start", HOST, *given)
        unmapped = ran(configured(tmp_path, agent.url), "start", HOST, *given)
    assert done.returncode == 0, done.stderr
    (command,) = agent.commands
    assert command.args == {
        "image": {"id": "tiny"}, "lifetime_s": 60, "cores": 2, "memory_mib": 2048, "disk_gib": 3,
        "name": "A worker- 7", "networks": [{"type": "public"}], "user_data": "IyEvYmluL3NoCg==", "ssh_keys": [KEY],
        "meta_data": {"role": "worker"},
    }  # fmt: skip
    assert unmapped.returncode == 2 and "--map-network" in unmapped.stderr


def test_a_hostile_package_is_three_and_nothing_is_sent(tmp_path: Path) -> None:
    (tmp_path / "a.ovf").write_bytes(envelopes.envelope(head='<!DOCTYPE x SYSTEM "http://example.org/x">'))
    with OneAgent() as agent:
        done = ran(configured(tmp_path, agent.url), "start", HOST, "--ovf", str(tmp_path / "a.ovf"), "--image", "tiny",
                   "--lifetime", "1m")  # fmt: skip
    assert (done.returncode, agent.commands) == (3, [])
    assert done.stderr.splitlines()[-1].startswith("vmagent-site: ovf: ")


def test_a_refusal_is_three(tmp_path: Path) -> None:
    with OneAgent(refuse={"type": "no-capacity", "title": "no capacity", "detail": "2 cores are free"}) as agent:
        refused = ran(configured(tmp_path, agent.url), *START)
    assert refused.returncode == 3
    assert refused.stderr == "vmagent-site: no-capacity: 2 cores are free\n"


def test_an_agent_that_is_silent_is_four(tmp_path: Path) -> None:
    with OneAgent(silent=True) as agent:
        done = ran(configured(tmp_path, agent.url), *START, "--timeout", "1s")
    assert done.returncode == 4
    assert "not known" in done.stderr


def test_watch_goes_on_until_interrupted(tmp_path: Path) -> None:
    with OneAgent() as agent:
        config = configured(tmp_path, agent.url)
        watch = subprocess.Popen([sys.executable, "-c", TIDY, "--config", str(config), "watch", "--json"],
                                 cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            until(lambda: len(agent.subscriptions) >= 2, what="the watcher's subscriptions")
            for _ in range(50):  # garbage is collected meanwhile
                agent.publish_state("running")
                assert watch.stdout is not None
                assert json.loads(watch.stdout.readline())["data"]["phase"] == "running"
            agent.publish_state("ready")
            assert watch.stdout is not None
            line = json.loads(watch.stdout.readline())
            assert line["type"] == "org.vmagent.vm.state"
            watch.send_signal(signal.SIGINT)
            assert watch.wait(30) in (130, -signal.SIGINT)
        finally:
            watch.kill()
            watch.wait()


@pytest.mark.parametrize("argv", [["list"], START])
def test_no_broker_is_four(tmp_path: Path, argv: List[str]) -> None:
    config = configured(tmp_path, "stomp://127.0.0.1:1")
    script = ("import sys\nfrom vmagent.site import __main__ as m\nm.CONNECT_S = 1.0\n"
              "sys.exit(m.main(sys.argv[1:]))")
    done = subprocess.run([sys.executable, "-c", script, "--config", str(config), *argv], cwd=ROOT, text=True,
                          capture_output=True, timeout=60)
    assert done.returncode == 4
    assert "stomp://127.0.0.1:1" in done.stderr
