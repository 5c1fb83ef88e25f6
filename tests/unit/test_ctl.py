"""vmagentctl: what is asked of the agent, what is shown, and the exit code.  The answers are the real views'."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

import pytest

from tests.support.building import WALL, now, observed, policy, ran, record
from tests.support.offered import here
from tests.unit.test_inquiry import query
from vmagent.core import capacity, events, inquiry, moment, schemas, usagemodel, usagesums
from vmagent.core.changes import Epoch
from vmagent.core.commands import Signer
from vmagent.core.imagemodel import Fetching
from vmagent.core.model import (
    CpuLimit,
    Desired,
    DiskIo,
    Firewall,
    ForeignSeen,
    HypervisorInfo,
    NicCounters,
    NicLimits,
    Outcome,
    Rule,
    Seen,
)
from vmagent.errors import Problem
from vmagent.local import capacitytables, ctl, ctl_parser, limittables, tables, views
from vmagent.local.ctl_client import Unreachable
from vmagent.local.ctl_commands import COMMANDS
from vmagent.local.ctl_session import Session
from vmagent.render import occi

NOW = now(2000.0)
RUNS = record(journal=ran(1000.0, ready_at=1010.0))
GONE = record(spec={"member": 1}, journal=ran(1000.0, ended_at=1500.0), outcome=Outcome.KILLED, closed=True,
              desired=Desired.ABSENT)
LOOK = {RUNS.vm: observed()}
INFO = HypervisorInfo("qemu:///system", "QEMU", "kvm", "x86_64", "9.0", "7.2", 16, 65536, True, 1.0)
FOREIGN = ForeignSeen("f0f0f0f0-aaaa", "ev\x1b[31mil", Seen.RUNNING, "no-tag")
RULES = Firewall((Rule("allow", "tcp", ((22, 22), (80, 90)), "192.0.2.0/24"),), (Rule("deny", "icmp"),))
LIMITED = record(spec={"nics": (NicLimits(10_000, 1_500_000, RULES, 50),), "disk_io": DiskIo(50_000_000, None, 1234),
                       "sources": (("cpu_cap_core_percent", "flavour"), ("cpu_weight", "site"))},
                 journal=ran(1000.0, ready_at=1010.0))
TAP = LIMITED.spec.interfaces[0].device
COUNTED = {TAP: NicCounters(in_local_bytes=840, in_local_packets=10, dropped_in_packets=3, spoofed_packets=7),
           "vmaother": NicCounters()}
EVENT = {"time": WALL, "type": "org.vmagent.vm.state", "subject": f"vm/{RUNS.vm}",
         "data": events.vm_state(RUNS, observed(), NOW, policy())}
AUDIT = {"when_wall": WALL, "who": "CN=c", "route": "broker", "verb": "vm.start", "subject": RUNS.vm,
         "verdict": "accepted", "why": "", "command": "c"}


class FakeAgent:
    """Answers with the views of a small host; keeps what it was asked."""

    def __init__(self, **answers: Any) -> None:
        self.asked: List[Tuple[str, Mapping[str, Any]]] = []
        members = [{"vm": RUNS.vm, "status": "accepted"}]
        self.reply: Dict[str, Any] = {"status": "accepted", "result": {"members": members}}
        self.answers: Dict[str, Any] = {
            "list": views.listing([RUNS], LOOK, [FOREIGN], NOW),
            "show": views.show(RUNS, LOOK, NOW, policy()),
            "who": views.who([RUNS], LOOK, NOW),
            "status": views.status([RUNS, GONE], LOOK, policy(), INFO, Epoch("e", 1, WALL, "first"), {
                "drained": True, "degraded": {"broker": "away"}, "broker": {"up": False}, "version": "1"}),
            "capacity": capacity.published(here(RUNS)),
            "audit": {"audit": [AUDIT]},
            "limits": views.limits(LIMITED, {LIMITED.vm: observed(of=LIMITED.spec)}, NOW, COUNTED, ""),
            **answers,
        }

    def ask(self, verb: str, args: Optional[Mapping[str, Any]] = None) -> Any:
        self.asked.append((verb, dict(args or {})))
        if verb == "command":
            return {"command": (args or {})["id"], **self.reply}
        answer = self.answers[verb]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stream(self, verb: str, args: Mapping[str, Any]) -> Iterator[Any]:
        self.asked.append((verb, dict(args)))
        yield EVENT

    @property
    def payload(self) -> Mapping[str, Any]:
        """The one command that was sent, complete, as the agent's schemas want it."""
        ((_, payload),) = [one for one in self.asked if one[0] == "command"]
        schemas.check("command", {"issued_at": WALL, "valid_until": WALL, "target": "h", **payload})
        schemas.check(payload["schema"].split("/")[0], payload["args"])
        return payload


def run(agent: FakeAgent, *argv: str, yes: bool = False) -> Tuple[int, str]:
    said = ctl_parser.parser().parse_args(argv)
    out = io.StringIO()
    code = COMMANDS[said.verb](Session(said, agent, out, tables.Screen(out), lambda question: yes))  # type: ignore[arg-type]
    return int(code), out.getvalue()


# -- looking


def test_every_sub_command_does_something_and_has_help() -> None:
    actions = [one for one in ctl_parser.parser()._actions if one.dest == "verb"]
    assert actions[0].choices is not None
    choices: Mapping[str, Any] = actions[0].choices  # type: ignore[assignment]
    assert set(choices) == set(COMMANDS) | {"doctor", "bundle"}
    for name, sub in choices.items():
        text = sub.format_help()
        assert f"vmagentctl {name}" in text.split("examples:")[1]
        assert "exit codes:" in text


def test_list_shows_the_whole_id_and_what_is_foreign_and_obeys_no_name() -> None:
    code, text = run(FakeAgent(), "list")
    assert code == 0
    assert RUNS.vm in text
    assert "ready" in text and "43m" in text and "192.0.2.10/24" in text
    assert "ev?[31mil" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("verb", ["list", "who", "status", "capacity", "audit"])
def test_json_is_the_answer_itself(verb: str) -> None:
    agent = FakeAgent()
    code, text = run(agent, verb, "--json")
    assert (code, json.loads(text)) == (0, json.loads(json.dumps(agent.answers[verb])))


def test_list_may_include_what_has_ended() -> None:
    agent = FakeAgent()
    run(agent, "list", "--ended")
    assert agent.asked == [("list", {"all": True})]


def test_show_tells_what_a_person_wants_to_know() -> None:
    agent = FakeAgent()
    code, text = run(agent, "show", "work")
    assert (code, agent.asked) == (0, [("show", {"vm": "work"})])
    for word in (RUNS.vm, "ready", "/DC=org/DC=example/CN=A User", "1h granted", "50 % of a core", "192.0.2.10/24"):
        assert word in text


def test_show_tells_how_far_the_image_is() -> None:
    look = {RUNS.vm: observed(Seen.MISSING, fetching=Fetching("fetching", 40))}
    waits = FakeAgent(show=views.show(RUNS, look, NOW, policy()))
    assert "its download  fetching 40 %" in run(waits, "show", "work")[1]
    assert "its download" not in run(FakeAgent(), "show", "work")[1]


def test_limits_shows_wanted_proven_since_when_and_the_counters() -> None:
    agent = FakeAgent()
    code, text = run(agent, "limits", "worker")
    assert (code, agent.asked) == (0, [("limits", {"vm": "worker"})])
    cells = {tuple(line.split()) for line in text.splitlines()}
    proven = "2026-11-20T11:43:20.000Z"
    assert cells >= {
        ("cpu", "-", "50", "%", "of", "a", "core", proven, "-"),
        ("weight", "-", "100", proven, "-"),
        ("memory", "-", "512", "MiB", proven, "-"),
        ("disk", "i/o", "-", "read", "50", "MB/s,", "read", "1234", "operations/s", proven, "-"),
        ("bandwidth", "in", TAP, "10", "Mbit/s", proven, "-"),
        ("bandwidth", "out", TAP, "1500", "Mbit/s", proven, "-"),
        ("firewall", TAP, "1", "rules", "in,", "1", "out", proven, "-"),
        ("connections", TAP, "50", "new", "per", "s", proven, "-"),
        (TAP, "inbound", "allow", "tcp", "22,80-90", "192.0.2.0/24"),
        (TAP, "inbound", "deny", "any", "-", "everything", "else"),
        (TAP, "outbound", "deny", "icmp", "-", "everybody"),
        (TAP, "outbound", "allow", "any", "-", "everything", "else"),
        (TAP, "in", "840", "B,", "10", "packets", "0", "B,", "0", "packets", "3", "-", "-"),
        (TAP, "out", "0", "B,", "0", "packets", "0", "B,", "0", "packets", "0", "7", "0"),
    }
    assert "by flavour: cpu_cap_core_percent\nby site: cpu_weight\n" in text
    assert "vmaother" not in text


def test_limits_say_what_differs_and_what_is_not_proven() -> None:
    look = {LIMITED.vm: observed(of=LIMITED.spec, cpu=CpuLimit(100_000, -1), network=None)}
    agent = FakeAgent(limits=views.limits(LIMITED, look, NOW, {}, "outcome-unknown: nft did not answer"))
    text = run(agent, "limits", "worker")[1]
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "cpu - 50 % of a core not proven libvirt says no cap, not 50 % of a core" in lines
    assert f"bandwidth in {TAP} 10 Mbit/s not proven not read back yet" in lines
    assert f"firewall {TAP} 1 rules in, 1 out not proven -" in lines
    assert "memory - 512 MiB 2026-11-20T11:43:20.000Z -" in lines
    assert lines[-1] == "counters cannot be read now: outcome-unknown: nft did not answer"


def test_limits_of_several_vms_and_as_json() -> None:
    agent = FakeAgent()
    code, text = run(agent, "limits", "worker", RUNS.vm, "--json")
    assert (code, [args["vm"] for _, args in agent.asked]) == (0, ["worker", RUNS.vm])
    answer = json.loads(text)
    assert answer == json.loads(json.dumps({"vms": [agent.answers["limits"]] * 2}))
    assert answer["vms"][0]["counters"][TAP]["spoofed_packets"] == 7


def test_limits_of_nothing_are_usage() -> None:
    with pytest.raises(Problem) as caught:
        run(FakeAgent(), "limits")
    assert caught.value.type == "usage"


def test_who_status_capacity_and_audit_are_readable() -> None:
    assert "/DC=org/DC=example/CN=A User" in run(FakeAgent(), "who")[1]
    status = run(FakeAgent(), "status")[1]
    assert "1 ready" in status and "broker: away" in status and "new VMs are refused" in status
    shown = run(FakeAgent(), "capacity")[1]
    assert "cores       8      1         7      0         7       8      8" in shown
    assert "large    4      8192  40   1    1       2      2      cores" in shown
    assert "public   0 and 1 without a limit" in shown and "no start was measured" in shown
    assert "vm.start" in run(FakeAgent(), "audit", "--subject", RUNS.vm)[1]


@pytest.mark.parametrize(("count", "code"), [(7, 0), (8, 1)])
def test_capacity_asks_how_many_can_start(count: int, code: int) -> None:
    agent = FakeAgent()
    answer = inquiry.answer(query(Signer("local:root"), count=count), here(RUNS), 4)
    agent.reply = {"status": "done", "result": answer}
    argv = ("capacity", "--flavour", "small", "--count", str(count), "--for", "2h", "--network", "public",
            "--bandwidth-in", "10mbit", "--owner", "/CN=A")
    found, text = run(agent, *argv)
    assert found == code
    assert agent.payload["args"] == {
        "flavour": "small", "count": count, "for_s": 7200,
        "networks": [{"type": "public", "bandwidth_in_kbit": 10000}]}  # fmt: skip
    assert agent.payload["on_behalf_of"] == {"subject": "/CN=A", "fqan": ""}
    assert "possible now    7" in text and "why not more  no-capacity: cores" in text
    assert "no start was measured" in text and f"room for all    {'in 1h' if count == 8 else 'now'}\n" in text


def test_show_in_the_words_of_occi() -> None:
    resource = occi.compute(views.show(RUNS, LOOK, NOW, policy())["state"], "x86_64")
    agent = FakeAgent(show={"occi": {"resource": resource, "lines": occi.lines(resource)}})
    code, text = run(agent, "show", RUNS.vm, "--occi")
    assert (code, agent.asked) == (0, [("show", {"vm": RUNS.vm, "occi": True})])
    assert "X-OCCI-Attribute: occi.compute.state=\"active\"" in text.splitlines()
    assert json.loads(run(agent, "show", RUNS.vm, "--occi", "--json")[1]) == resource


def test_the_share_of_glue_is_json_for_programs() -> None:
    for more in ((), ("--json",)):
        assert json.loads(run(FakeAgent(glue={"Share": [{"ID": "x"}]}), "glue", *more)[1]) == {"Share": [{"ID": "x"}]}


def test_a_refused_question_says_why() -> None:
    agent = FakeAgent()
    agent.reply = {"status": "refused", "problem": {"type": "schema", "title": "t", "detail": "at args: no"}}
    code, text = run(agent, "capacity", "--cores", "2")
    assert code == 3 and "at args: no" in text


def test_empty_answers_are_said() -> None:
    empty = FakeAgent(list=views.listing([], {}, [], NOW), who=views.who([], {}, NOW), audit={"audit": []})
    assert run(empty, "list")[1] == "no VMs\n"
    assert "nobody" in run(empty, "who")[1]
    assert "nothing" in run(empty, "audit")[1]


def test_events() -> None:
    agent = FakeAgent()
    code, text = run(agent, "events", "-f", "-n", "7")
    assert (code, agent.asked) == (0, [("events", {"limit": 7, "follow": True})])
    assert text.startswith(f"{WALL}  vm.state  vm/{RUNS.vm} worker  ready")
    assert json.loads(run(agent, "events", "--json")[1]) == json.loads(json.dumps(EVENT))


# -- answers that are exit codes


@pytest.mark.parametrize(
    ("records", "look", "code", "word"),
    [
        ([GONE], {}, 0, "over; no process"),
        ([RUNS], LOOK, 1, "not over"),
        ([], {}, 2, "unknown"),
    ],
)
def test_over(records: List[Any], look: Dict[str, Any], code: int, word: str) -> None:
    agent = FakeAgent(over=views.over("h", records, look, NOW))
    got, text = run(agent, "over", "h")
    assert got == code
    assert word in text


@pytest.mark.parametrize(("minutes", "code", "word"), [("1h", 0, "yes: in 1h"), ("10m", 1, "no: 1 will still")])
def test_can_this_host_go_down(minutes: str, code: int, word: str) -> None:
    asked = {"1h": 60, "10m": 10}[minutes]
    agent = FakeAgent(drain_check=views.drain_check([RUNS], LOOK, [], NOW, asked, False))
    got, text = run(agent, "drain", "--check", minutes)
    assert (got, agent.asked) == (code, [("drain_check", {"minutes": asked})])
    assert word in text
    assert "new VMs may still come" in text


# -- acting


def test_start_is_a_command_that_the_agent_accepts() -> None:
    agent = FakeAgent()
    code, text = run(agent, "start", "--owner", "/CN=U", "--fqan", "/vo", "--image", "tiny", "--flavour", "small",
                     "--lifetime", "2h", "--network", "public=192.0.2.9", "--tag", "a", "--tag", "b", "--reason", "try")
    assert code == 0
    assert agent.payload["on_behalf_of"] == {"subject": "/CN=U", "fqan": "/vo"}
    assert agent.payload["reason"] == "try"
    assert agent.payload["args"] == {
        "image": {"id": "tiny"}, "flavour": "small", "lifetime_s": 7200, "tags": ["a", "b"],
        "networks": [{"type": "public", "addresses": ["192.0.2.9"]}],
    }
    assert RUNS.vm in text


@pytest.mark.parametrize("argv", [
    ["start", "--image", "tiny", "--lifetime", "2h"], ["start", "--owner", "x", "--image", "tiny"],
    ["start", "--owner", "x", "--image", "tiny", "--lifetime", "soon"], ["kill", "--grace", "1s", "x"],
    ["limits", "x", "--cpu-cap", "half"], ["limits", "x", "--bandwidth-in", "fast"],
    ["extend", "x"], ["nonsense"], [], ["drain", "--check", "x"], ["events", "-n", "-1"],
])
def test_wrong_arguments_are_usage(argv: List[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        ctl_parser.parser().parse_args(argv)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "schema", "args"),
    [
        (["stop", "work", "--grace", "30s"], "vm.stop/1", {"vms": ["work"], "grace_s": 30}),
        (["kill", "worker"], "vm.kill/1", {"vms": [RUNS.vm]}),
        (["pause", RUNS.vm[:6]], "vm.pause/1", {"vms": [RUNS.vm]}),
        (["resume", RUNS.vm], "vm.resume/1", {"vms": [RUNS.vm]}),
        (["reboot", "worker", RUNS.vm], "vm.reboot/1", {"vms": [RUNS.vm]}),
        (["extend", "worker", "--lifetime", "4h"], "vm.extend/1", {"vms": [RUNS.vm], "lifetime_s": 14400}),
        (["limits", "worker", "--cpu-cap", "50", "--bandwidth-in", "10mbit"], "vm.limits/1",
         {"vms": [RUNS.vm], "cpu_cap_core_percent": 50, "networks": [{"bandwidth_in_kbit": 10_000}]}),
        (["limits", "--tagged", "t", "--yes", "--bandwidth-out", "default"], "vm.limits/1",
         {"tag": "t", "networks": [{"bandwidth_out_kbit": None}]}),
        (["limits", "worker", "--allow-in", "tcp:22@192.0.2.0/24", "--no-rules-out"], "vm.limits/1",
         {"vms": [RUNS.vm], "networks": [{"firewall": {
             "inbound": [{"action": "allow", "protocol": "tcp", "ports": [22], "cidr": "192.0.2.0/24"}],
             "outbound": []}}]}),
        (["kill", "--tagged", "t", "--yes"], "vm.kill/1", {"tag": "t"}),
        (["kill", "--all", "--yes"], "vm.kill/1", {"all": True}),
        (["drain"], "host.drain/1", {}),
        (["undrain"], "host.undrain/1", {}),
        (["revoke", "tiny"], "image.revoke/1", {"id": "tiny", "action": "forbid"}),
        (["revoke", "ab" * 64, "--action", "stop", "--yes", "--revocation", "7"], "image.revoke/1",
         {"sha512": "ab" * 64, "action": "stop", "version": 7}),
    ],
)
def test_verbs(argv: List[str], schema: str, args: Dict[str, Any]) -> None:
    agent = FakeAgent()
    if args.get("vms") == ["work"]:
        agent.answers["list"] = {"vms": [{"vm": RUNS.vm, "name": "work"}]}
        args = {**args, "vms": [RUNS.vm]}
    assert run(agent, *argv)[0] == 0
    assert (agent.payload["schema"], agent.payload["args"]) == (schema, args)


def test_several_at_once_need_a_yes() -> None:
    for argv in (["revoke", "tiny", "--action", "pause"], ["kill", "--all"], ["limits", "--all", "--cpu-cap", "50"]):
        agent = FakeAgent()
        with pytest.raises(Problem) as caught:
            run(agent, *argv)
        assert caught.value.type == "usage"
        assert agent.asked == []
        assert run(agent, *argv, yes=True)[0] == 0


@pytest.mark.parametrize("argv", [["kill"], ["kill", "worker", "--all"], ["kill", "--all", "--tagged", "x"]])
def test_a_selector_is_needed_and_only_one(argv: List[str]) -> None:
    with pytest.raises(Problem) as caught:
        run(FakeAgent(), *argv, yes=True)
    assert caught.value.type == "usage"


def test_a_name_that_means_nothing_changes_nothing() -> None:
    agent = FakeAgent()
    with pytest.raises(Problem) as caught:
        run(agent, "kill", "nobody")
    assert caught.value.type == "not-found"
    assert [verb for verb, _ in agent.asked] == ["list"]


@pytest.mark.parametrize(("status", "code"), [("accepted", 0), ("done", 0), ("failed", 1), ("refused", 3)])
def test_the_reply_is_the_exit_code(status: str, code: int) -> None:
    agent = FakeAgent()
    agent.reply = {"status": status, "problem": {
        "type": "no-capacity", "detail": "2 are free", "path": "args.cores", "accepted": ["1", "2"],
        "also": [{"type": "drained", "detail": "not now"}]}}
    got, text = run(agent, "drain")
    assert got == code
    assert "no-capacity: at args.cores: 2 are free (accepted: 1, 2)" in text
    assert "drained: not now" in text


# -- when there is nobody


def test_without_an_agent_it_says_what_to_do(tmp_path: Path) -> None:
    err = io.StringIO()
    path = tmp_path / "none.sock"
    assert ctl.main(["--socket", str(path), "list"], io.StringIO(), err) == 4
    for word in (str(path), "systemctl status vmagent", "systemctl start vmagent", "doctor"):
        assert word in err.getvalue()


@pytest.mark.parametrize(("type", "code"), [("not-found", 3), ("usage", 2), ("fault", 1), ("internal", 1)])
def test_a_problem_is_an_exit_code(type: str, code: int) -> None:
    err = io.StringIO()
    assert ctl._refused(Problem(type, "because"), err) == code
    assert err.getvalue() == f"vmagentctl: {type}: because\n"
    assert "no agent answers on x (gone)" in ctl.unreachable_text(Unreachable(Path("x"), "gone"))


def test_doctor_works_without_agent_and_configuration(tmp_path: Path) -> None:
    out = io.StringIO()
    (tmp_path / "vmagent.yaml").write_text("nonsense: true\n")
    code = ctl.main(["doctor", "--config", str(tmp_path / "vmagent.yaml")], out, io.StringIO())
    assert code == 1
    assert "--check-config" in out.getvalue()


# -- on a terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_table_with_short_ids() -> None:
    out = Terminal()
    tables.listing(tables.Screen(out), views.listing([RUNS], LOOK, [FOREIGN], NOW))
    text = out.getvalue()
    assert RUNS.vm[:8] in text
    assert "ready" in text
    assert "[31mil" in text and "ev\x1b" not in text


def test_every_screen_can_be_drawn_on_a_terminal() -> None:
    agent = FakeAgent(over=views.over("h", [RUNS], LOOK, NOW),
                      drain_check=views.drain_check([RUNS], LOOK, [FOREIGN], NOW, 1, False))
    for draw, verb in ((tables.show, "show"), (tables.who, "who"), (tables.status, "status"), (tables.audit, "audit"),
                       (capacitytables.capacity, "capacity"), (tables.over, "over"),
                       (tables.drain_check, "drain_check")):
        out = Terminal()
        draw(tables.Screen(out), agent.answers[verb])
        assert out.getvalue().strip()


def test_limits_can_be_drawn_on_a_terminal() -> None:
    out = Terminal()
    limittables.limits(tables.Screen(out), {"vms": [FakeAgent().answers["limits"]] * 2})
    assert "50 % of a core" in out.getvalue() and "SPOOFED" in out.getvalue()


USED = {"wall_s": 3600.0, "suspended_s": 0.0, "core_s": 7200.0, "cpu_s": None, "memory_mib_s": 1.0, "disk_gib_s": 1.0,
        "network": dict.fromkeys(usagemodel.NETWORK, 1024), "disk": None}
PERIOD = {"vm": RUNS.vm, "name": "worker", "owner": {"subject": "/CN=U", "fqan": "", "vo": ""},
          "segment": f"{RUNS.vm}/0/1", "incarnation": 0, "number": 1, "period": 1,
          "from": WALL, "to": WALL, "status": "started", "final": False,
          "used": USED, "tail_uncertain_s": 61.0, "vanished": ["cpu"]}


def test_usage_is_shown_with_its_sums_and_its_gaps() -> None:
    sums = usagesums.Sums()
    sums.add(PERIOD)
    sums.add({**PERIOD, "period": 2, "final": True, "used": {**USED, "cpu_s": 0.3, "network": None}})
    answer = {"since": WALL, "until": None, "vms": sums.told(), "rows": [PERIOD], "left_out": 3, "open": [PERIOD]}
    (total,) = answer["vms"]
    assert total["used"]["cpu_s"] == 0.3 and total["used"]["core_s"] == 14400.0 and total["final"]
    assert total["used"]["disk"] is None and total["used"]["network"]["in_local_bytes"] == 1024
    code, out = run(FakeAgent(usage=answer), "usage", "worker", "--since", "6h")
    assert code == 0 and "unknown" in out and "2 KiB" in out and "1m1s" in out and "3 later periods" in out


@pytest.mark.parametrize(
    ("text", "wall"),
    [("2026-11-19", "2026-11-19T00:00:00.000Z"), ("2026-11-19T08:30Z", "2026-11-19T08:30:00.000Z"),
     ("2026-11-19T08:30:01.5Z", "2026-11-19T08:30:01.500Z"), ("36h", "2026-11-19T00:00:00.000Z")],
)
def test_times_are_days_minutes_instants_or_spans_back_from_now(text: str, wall: str) -> None:
    assert moment.wall(text, WALL, "at") == wall


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "2026-11-19T08:30", "-1h", " "])
def test_what_is_no_time_is_refused_with_what_would_be(text: str) -> None:
    with pytest.raises(Problem) as caught:
        moment.wall(text, WALL, "args.since")
    assert caught.value.fields["path"] == "args.since" and "24h" in str(caught.value.fields["accepted"])
