"""Bad input through the real broker: each is refused with its own problem type, audited, changes nothing, and the queue
goes on.  The whole tables stand in the unit and shell levels; here it is the way through all layers.
"""

from __future__ import annotations

import datetime
import json
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.real.conftest import domains, start_args
from tests.support.agent import Agent, Controller
from tests.support.waiting import until
from vmagent.core import walltime
from vmagent.site import pki


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of a CA that this site does not know."""
    folder = tmp_path_factory.mktemp("stranger")
    now = datetime.datetime.now(datetime.timezone.utc)
    pki.init(folder, "some other CA", now)
    pki.issue(folder, "controller", "client", now)
    return folder


def default_problem(controller: Controller, known: int) -> str:
    """The problem type of the next reply that names no command of ours."""
    def strangers() -> Any:
        replies = [json.loads(frame.body) for frame in controller.link.messages("replies")]
        return [reply["problem"]["type"] for reply in replies if reply.get("problem")][known:]

    found = until(strangers, 20, "the refusal")
    return str(found[0])


def test_frames_that_nobody_signed_for(agent: Agent, controller: Controller, stranger: Path) -> None:
    agent.start()
    good = json.loads(controller.body("vm.query", {"all": True}))
    foreign = Controller.__new__(Controller)
    foreign._key = (stranger / "controller.key").read_bytes()
    foreign._chain = (stranger / "controller.pem").read_bytes()
    frames = (
        (b"\xff\xfe not json", "json"),
        (b'{"a": 1, "a": 2}', "json"),
        (json.dumps({"schema": "vm.start/1", "args": {}}).encode(), "schema"),  # unsigned
        (json.dumps({**good, "signature": good["signature"][:-8] + "AAAAAAAA"}).encode(), "signature"),
        (foreign.body("vm.query", {"all": True}), "certificate-untrusted"),
        (b"x" * (300 * 1024), "too-large"),
    )
    for known, (frame, type) in enumerate(frames):
        controller.post(frame)
        assert default_problem(controller, known) == type
    controller.reply(controller.send("vm.query", {"all": True}), "done")  # the queue goes on
    refused = [row for row in agent.ask("audit", limit=100)["audit"] if row["verdict"] == "refused"]
    assert len(refused) == len(frames) and not domains()


def test_commands_that_must_not_be(agent: Agent, controller: Controller) -> None:
    agent.start()
    now = time.time()
    past = {"issued_at": walltime.text(now - 7200), "valid_until": walltime.text(now - 3600)}
    ahead = {"issued_at": walltime.text(now + 3600), "valid_until": walltime.text(now + 7200)}
    cases = (
        ("vm.start", start_args(), past, "stale-command"),
        ("vm.start", start_args(), ahead, "future-command"),
        ("vm.start", start_args(), {"target": "wn999.test.example.org"}, "wrong-target"),
        ("vm.start", start_args(), {"schema": "vm.explode/1"}, "unknown-verb"),
        ("vm.start", start_args(image={"id": "nope"}), {}, "unknown-image"),
        ("vm.start", start_args(flavour="nope"), {}, "unknown-flavour"),
        ("vm.start", start_args(networks=[{"type": "nope"}]), {}, "unknown-network"),
        ("vm.start", start_args(lifetime_s=10**6), {}, "over-limit"),
        ("vm.start", start_args(name="../../etc/passwd"), {}, "schema"),
        ("vm.start", start_args(name="<domain type='kvm'/>"), {}, "schema"),
        ("vm.kill", {"vms": [str(uuid.uuid4())]}, {}, "not-found"),
    )
    for verb, args, members, type in cases:
        id = controller.send(verb, args, **members)
        assert controller.reply(id, "refused", 20)["problem"]["type"] == type, (verb, type)
    until(lambda: len(controller.events("security.alert")) >= len(cases), 20, "an alert for each")
    assert not domains() and agent.ask("list")["vms"] == []
    controller.reply(controller.send("vm.query", {"all": True}), "done")
    audit = agent.ask("audit", limit=100)["audit"]
    assert len([row for row in audit if row["verdict"] == "refused"]) == len(cases)
