"""`vmagentctl adopt` and `disown`: what is asked of the agent, and what is shown."""

from __future__ import annotations

import json
from typing import Any, Dict

import pytest

from tests.support import building as b
from tests.unit.test_adopting import ARGS, DB1, VM, wish
from tests.unit.test_ctl import FakeAgent, run
from vmagent.core import adopting, room, schemas
from vmagent.errors import Problem
from vmagent.local import protocol

HOST = room.HostRoom(cores=1, memory_mib=4096, disk_free_gib=100, drained=False, emulated_ok=True)
OWNER = ("--owner", b.USER)


def told(dry_run: bool, **kw: Any) -> Dict[str, Any]:
    record = wish(**kw)
    return {**adopting.told(DB1, record, room.left(b.policy(), (record,), HOST)), "dry_run": dry_run}


def test_without_yes_it_only_says_what_would_be() -> None:
    agent = FakeAgent(adopt=told(True))
    code, text = run(agent, "adopt", "db1", *OWNER, "--lease", "1h")
    assert code == 0
    assert agent.asked == [("adopt", {"vm": "db1", "owner": b.USER, "lifetime_s": 3600, "dry_run": True})]
    assert "nothing was done" in text and "NOT held: network rules" in text and VM in text
    assert "CAPACITY: cores: 1 more promised" in text


def test_with_yes_it_is_adopted() -> None:
    agent = FakeAgent(adopt=told(False, cpu_cap_core_percent=50))
    _, text = run(agent, "adopt", "db1", *OWNER, "--lease", "30d", "--fqan", "/vo.example", "--cpu-cap", "50",
                  "--reason", "moves here", "--yes")
    ((_, args),) = agent.asked
    schemas.check("adopt", args)
    assert args == {"vm": "db1", "owner": b.USER, "lifetime_s": 30 * 86400, "dry_run": False, "fqan": "/vo.example",
                    "cpu_cap_core_percent": 50, "reason": "moves here"}  # fmt: skip
    assert "its CPU is held to 50 % of a core" in text and "adopted" in text.splitlines()[-1]


def test_as_json() -> None:
    _, text = run(FakeAgent(adopt=told(True)), "adopt", "db1", *OWNER, "--lease", "1h", "--json")
    assert json.loads(text) == told(True)


def test_given_back() -> None:
    agent = FakeAgent(disown={"vm": VM, "name": "db1"})
    code, text = run(agent, "disown", "db1", "--reason", "stays")
    assert (code, agent.asked) == (0, [("disown", {"vm": "db1", "reason": "stays"})])
    schemas.check("disown", agent.asked[0][1])
    assert "runs on" in text


def test_a_refusal_goes_up() -> None:
    with pytest.raises(Problem):
        run(FakeAgent(adopt=Problem("not-adoptable", "it is off", why="not-running")), "adopt", "db1", *OWNER,
            "--lease", "1h")


@pytest.mark.parametrize("argv", [("adopt", "db1", "--lease", "1h"), ("adopt", "db1", *OWNER), ("disown",)])
def test_what_must_be_said(argv: Any) -> None:
    with pytest.raises(SystemExit):
        run(FakeAgent(), *argv)


@pytest.mark.parametrize(("verb", "args", "changes"), [
    ("adopt", ARGS, True), ("adopt", {**ARGS, "dry_run": True}, False), ("adopt", {**ARGS, "dry_run": 1}, True),
    ("disown", {"vm": VM}, True), ("disown", {"vm": VM, "dry_run": True}, True),
])  # fmt: skip
def test_who_may_only_look_may_only_ask_what_would_be(verb: str, args: Dict[str, Any], changes: bool) -> None:
    assert protocol.Request(1, verb, args).changes is changes
