"""vmagent-site: what is asked, what is shown on which stream, and the exit code."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

import pytest
from twisted.internet.defer import TimeoutError, ensureDeferred
from twisted.python.failure import Failure

from tests.support import offered
from tests.support.controlled import HOST, STATE, World, fired, host_state, site
from tests.unit.test_inquiry import query
from vmagent.core import imageviews, inquiry
from vmagent.core.identity import vm_id
from vmagent.core.imagemodel import ImageRecord, Kept
from vmagent.errors import Problem
from vmagent.render import occi
from vmagent.site import __main__ as command
from vmagent.site import appliance
from vmagent.site.arguments import parser
from vmagent.site.commands import COMMANDS, Run
from vmagent.site.progress import Shown
from vmagent.site.reports import READERS

V1 = "aaaaaaaa-0000-5000-8000-000000000001"
START = ["start", HOST, "--image", "tiny", "--flavour", "small", "--lifetime", "1m"]


class Ran:
    """A sub-command on its way."""

    def __init__(self, world: World, *argv: str) -> None:
        self.world = world
        self.out, self.err = io.StringIO(), io.StringIO()
        said = parser().parse_args(argv)
        if said.verb == "start":
            said.args = appliance.start_args(said, {}, self.err.write)
        run = Run(said, world.controller, world.clock, world.site.hosts, self.out, self.err, world.wall_s)
        self._got: List[Any] = []
        ensureDeferred(COMMANDS[said.verb](run)).addBoth(self._got.append)  # type: ignore[arg-type]

    @property
    def going(self) -> bool:
        return not self._got

    @property
    def code(self) -> int:
        """The exit code; what it failed with is raised."""
        assert self._got, "still going"
        if isinstance(self._got[0], Failure):
            self._got[0].raiseException()
        return int(self._got[0])

    @property
    def json(self) -> Any:
        (line,) = self.out.getvalue().splitlines()
        return json.loads(line)

    def reply(self, status: str, *members: Dict[str, Any], **more: Any) -> None:
        (first, *_) = self.world.commands()
        self.world.reply(first.id, status, {"members": list(members)} if members else None, **more)


@pytest.fixture()
def world(tmp_path: Path) -> World:
    return connected(tmp_path)


def connected(folder: Path, **changes: Any) -> World:
    world = World(site(folder, **changes))
    fired(world.controller.connect())
    return world


def member(world: World, status: str, index: int = 0) -> Dict[str, Any]:
    return {"vm": vm_id(world.commands()[0].id, index), "member": index, "status": status}


def test_every_sub_command_has_help_with_examples() -> None:
    choices: Any = next(one for one in parser()._actions if one.dest == "verb").choices
    assert set(choices) == set(COMMANDS) | {"pki", "collect"} | set(READERS)
    for name, sub in choices.items():
        assert f"vmagent-site {name}" in sub.format_help().split("examples:")[1]


def test_start_tells_the_first_reply(world: World) -> None:
    ran = Ran(world, *START, "--count", "2", "--json", "--owner", "/CN=B")
    assert ran.going
    (sent,) = world.commands()
    assert sent.owner is not None and sent.owner.subject == "/CN=B"
    ran.reply("accepted", member(world, "accepted"), member(world, "accepted", 1))
    assert ran.code == 0
    assert ran.json["status"] == "accepted"
    assert [one["vm"] for one in ran.json["members"]] == [member(world, "")["vm"], member(world, "", 1)["vm"]]


def test_start_and_wait_shows_the_way_of_each_member(world: World) -> None:
    ran = Ran(world, *START, "--wait", "--json")
    vm = member(world, "")["vm"]
    ran.reply("accepted", member(world, "accepted"))
    for phase in ("pending", "starting", "starting", "running", "ready"):
        world.state(vm, phase, reason="so")
    world.state(V1, "ready")
    assert ran.going
    ran.reply("done", member(world, "done"))
    assert (ran.code, ran.json["status"]) == (0, "done")
    assert ran.err.getvalue().splitlines() == [
        f"member 0  {vm}  {phase}  so" for phase in ("pending", "starting", "running", "ready")
    ]


def test_a_start_that_fails_says_which_and_why(world: World) -> None:
    ran = Ran(world, *START, "--wait")
    problem = {"type": "ended", "title": "ended", "detail": "it ended first"}
    ran.reply("accepted", member(world, "accepted"))
    ran.reply("failed", {**member(world, "failed"), "problem": problem}, problem=problem)
    assert ran.code == 1
    assert "failed  it ended first" in ran.out.getvalue()
    assert "ended: it ended first" in ran.err.getvalue()


def test_a_refusal_goes_up_with_all_its_reasons(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(world, *START)
    ran.reply("refused", problem={
        "type": "no-capacity", "title": "no capacity", "detail": "2 are free", "path": "args.cores",
        "also": [{"type": "drained", "title": "drained", "detail": "not now"}]})
    with pytest.raises(Problem) as caught:
        assert ran.code
    assert command._refused(caught.value) == 3
    told = capsys.readouterr().err
    assert "no-capacity: at args.cores: 2 are free" in told and "drained: not now" in told


@pytest.mark.parametrize(("more", "seconds"), [([], 30), (["--wait"], 900), (["--wait", "--timeout", "7"], 7)])
def test_no_answer_is_an_exit_code_of_its_own(world: World, more: List[str], seconds: int,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(world, *START, *more)
    world.clock.advance(seconds - 1)
    assert ran.going
    world.clock.advance(1)
    with pytest.raises(TimeoutError) as caught:
        assert ran.code
    assert command._code(Failure(caught.value), parser().parse_args(START)) == 4
    assert "not known" in capsys.readouterr().err


VERBS: List[Tuple[List[str], str, Dict[str, Any]]] = [
    (["stop", HOST, V1, "--grace", "5s"], "vm.stop", {"vms": [V1], "grace_s": 5}),
    (["kill", HOST, "--tagged", "t"], "vm.kill", {"tag": "t"}),
    (["pause", HOST, V1], "vm.pause", {"vms": [V1]}),
    (["resume", HOST, V1], "vm.resume", {"vms": [V1]}),
    (["reboot", HOST, "--all"], "vm.reboot", {"all": True}),
    (["extend", HOST, V1, "--lifetime", "2h"], "vm.extend", {"vms": [V1], "lifetime_s": 7200}),
    (["limits", HOST, V1, "--cpu-cap", "50", "--bandwidth-in", "10mbit"], "vm.limits",
     {"vms": [V1], "cpu_cap_core_percent": 50, "networks": [{"bandwidth_in_kbit": 10_000}]}),
    (["limits", HOST, "--tagged", "t", "--cpu-weight", "default"], "vm.limits", {"tag": "t", "cpu_weight": None}),
    (["drain", HOST], "host.drain", {}),
    (["undrain", HOST], "host.undrain", {}),
    (["revoke", HOST, "tiny", "--action", "kill"], "image.revoke", {"id": "tiny", "action": "kill"}),
    (["revoke", "*", "ab" * 64, "--revocation", "7"], "image.revoke",
     {"sha512": "ab" * 64, "action": "forbid", "version": 7}),
    (["images", "revoke", HOST, "tiny"], "image.revoke", {"id": "tiny", "action": "forbid"}),
    (["images", "fetch", HOST, "tiny", "--within", "1h"], "image.fetch", {"id": "tiny", "fetch_by_s": 3600}),
    (["images", "evict", HOST, "ab" * 64], "image.evict", {"sha512": "ab" * 64}),
    (["images", "pin", HOST, "tiny"], "image.pin", {"id": "tiny"}),
    (["images", "unpin", HOST, "tiny"], "image.unpin", {"id": "tiny"}),
]


@pytest.mark.parametrize(("argv", "verb", "args"), VERBS)
def test_verbs(world: World, argv: List[str], verb: str, args: Dict[str, Any]) -> None:
    ran = Ran(world, *argv, "--reason", "why")
    (sent,) = world.commands()
    assert (sent.verb, sent.args, sent.reason) == (verb, args, "why")
    ran.reply("done", {"vm": V1, "status": "done"})
    assert ran.code == 0
    assert f"done  command {sent.id}" in ran.out.getvalue()


@pytest.mark.parametrize("argv", [["kill", HOST], ["limits", HOST], ["limits", HOST, "--cpu-cap", "50"]])
def test_nothing_chosen_is_usage(world: World, argv: List[str]) -> None:
    with pytest.raises(Problem) as caught:
        assert Ran(world, *argv).code
    assert command._refused(caught.value) == 2
    assert world.commands() == []


def test_limits_without_a_change_shows_what_the_host_says_now(world: World) -> None:
    ran = Ran(world, "limits", HOST, "--tagged", "t")
    (sent,) = world.commands()
    assert (sent.verb, sent.args) == ("vm.query", {"tag": "t"})
    world.reply(sent.id, "done", {"vms": [STATE, {**STATE, "vm": V1}]})
    assert ran.code == 0
    text = [" ".join(line.split()) for line in ran.out.getvalue().splitlines()]
    assert text.count("cpu - 50 % of a core 2026-11-20T11:59:40.000Z -") == 2
    assert sum(V1 in line for line in text) == 1


def test_limits_as_json_are_those_of_the_state(world: World) -> None:
    ran = Ran(world, "limits", HOST, V1, "--json")
    world.reply(world.commands()[0].id, "done", {"vms": [STATE]})
    assert ran.json["vms"] == [{name: STATE[name] for name in ("vm", "name", "phase", "since", "age_s", "limits")}]
    assert ran.code == 0


def test_the_images_of_a_host(world: World) -> None:
    told = (ImageRecord("tiny", "ab" * 64, "raw", "site"),)
    said = {"id": "x", "sha512": "", "version": 1, "action": "forbid", "by": "me", "why": "because", "at": ""}
    answer = {**imageviews.listing(told, [], {}, lambda one: None, Kept({}, {})), "revocations": [said]}
    for more in ([], ["--json"]):
        ran = Ran(world, "images", "list", HOST, *more)
        sent = world.commands()[-1]
        assert sent.verb == "image.list"
        world.reply(sent.id, "done", answer)
        assert ran.code == 0
        text = ran.out.getvalue()
        assert json.loads(text) == json.loads(json.dumps(answer)) if more else "tiny" in text and "because" in text


def test_a_fetch_shows_how_far_it_is_and_waits_for_its_end(world: World) -> None:
    ran = Ran(world, "images", "fetch", HOST, "tiny", "--wait")
    (sent,) = world.commands()
    waits, comes = {"step": "waiting", "percent": 0}, {"step": "fetching", "percent": 40}
    for fetch, why in ((None, None), (waits, None), (comes, None), (comes, "503")):
        world.reply(sent.id, "accepted", {"image": {"id": "tiny"}, "fetch": fetch, "why": why})
    assert ran.going
    world.reply(sent.id, "done", {"image": {"id": "tiny"}})
    assert ran.code == 0
    assert ran.err.getvalue().splitlines() == ["tiny  waiting", "tiny  fetching 40 %", "tiny  fetching 40 %  503"]


def test_an_eviction_waits_for_its_end_by_itself(world: World) -> None:
    ran = Ran(world, "images", "evict", HOST, "tiny")
    (sent,) = world.commands()
    world.reply(sent.id, "accepted", {"image": {"id": "tiny"}})
    assert ran.going
    problem = {"type": "image-in-use", "title": "t", "detail": "d"}
    world.reply(sent.id, "failed", {"image": {"id": "tiny"}}, problem=problem)
    assert ran.code == 1
    assert "image-in-use" in ran.err.getvalue()


def test_a_start_that_waits_shows_how_far_its_image_is(world: World) -> None:
    ran = Ran(world, *START, "--wait")
    vm = member(world, "")["vm"]
    ran.reply("accepted", member(world, "accepted"))
    for percent in (0, 30, 30, 90):
        world.state(vm, "fetching", fetch={"step": "fetching", "percent": percent})
    assert [line.split("  ")[-1] for line in ran.err.getvalue().splitlines()] == [
        "fetching 0 %", "fetching 30 %", "fetching 90 %"]


def test_limits_of_nobody(world: World) -> None:
    ran = Ran(world, "limits", HOST, "--all")
    world.reply(world.commands()[0].id, "done", {"vms": []})
    assert (ran.code, ran.out.getvalue()) == (0, "no VMs\n")


# -- many hosts


def test_list_asks_every_host_and_ends_when_all_known_ones_answered(tmp_path: Path) -> None:
    world = connected(tmp_path, hosts=["wn1", "wn2"])
    ran = Ran(world, "list")
    (sent,) = world.commands()
    assert (sent.verb, sent.target) == ("host.report", "*")
    world.snapshot({**STATE, "vm": V1}, host="wn1")
    assert ran.going
    world.snapshot(host="wn2")
    assert ran.code == 0
    assert V1 in ran.out.getvalue() and "ready" in ran.out.getvalue()
    assert ran.err.getvalue() == ""


def test_list_names_the_known_hosts_that_did_not_answer(tmp_path: Path) -> None:
    world = connected(tmp_path, hosts=["wn1", "wn2"])
    world.state(V1, "ready", host="wn2")  # heard of before, but it does not answer now
    ran = Ran(world, "list", "--json", "--timeout", "3")
    world.snapshot(host="wn1")
    world.clock.advance(3)
    assert ran.code == 1
    assert (ran.json["hosts"], ran.json["silent"], ran.json["vms"]) == (["wn1"], ["wn2"], [])
    assert "wn2" in ran.err.getvalue()


def test_list_without_known_hosts_listens_to_the_end(world: World) -> None:
    ran = Ran(world, "list")
    world.snapshot()
    world.clock.advance(4)
    assert ran.going
    world.clock.advance(1)
    assert (ran.code, ran.out.getvalue()) == (0, "no VMs\n")


def test_nobody_answers(world: World) -> None:
    ran = Ran(world, "report")
    world.clock.advance(5)
    assert ran.code == 1
    assert "no host answered" in ran.err.getvalue()


def test_report_of_one_host(world: World) -> None:
    ran = Ran(world, "report", HOST)
    (sent,) = world.commands()
    assert sent.target == HOST
    world.snapshot({**STATE, "vm": V1})
    assert ran.code == 0
    assert f"{HOST}  1    test" in ran.out.getvalue()


def test_a_report_that_is_refused_ends_at_once(world: World) -> None:
    ran = Ran(world, "report", HOST)
    ran.reply("refused", problem={"type": "not-authorised", "title": "n", "detail": "not you"})
    with pytest.raises(Problem):
        assert ran.code


def test_watch_shows_events_as_they_come(world: World) -> None:
    ran = Ran(world, "watch")
    world.state(V1, "ready")
    world.event("host.state", host_state(HOST))
    first, second = ran.out.getvalue().splitlines()
    assert f"{HOST}  vm.state  vm/{V1}" in first
    assert "host.state" in second
    assert ran.going


# -- the command itself


def test_a_configuration_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--config", str(tmp_path / "none.yaml"), "list"]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_the_small_ca_needs_no_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pki = str(tmp_path / "pki")
    assert command.main(["pki", "init", pki, "--name", "Test CA"]) == 0
    assert command.main(["pki", "issue", pki, "broker", "--kind", "server", "--san", "127.0.0.1"]) == 0
    assert command.main(["pki", "issue", pki, "controller"]) == 0
    before = (tmp_path / "pki" / "ca.crl").read_bytes()
    assert command.main(["pki", "revoke", pki, "controller"]) == 0
    assert (tmp_path / "pki" / "ca.crl").read_bytes() != before
    assert f"{pki}/controller.key" in capsys.readouterr().out
    assert command.main(["pki", "init", pki]) == 1
    assert command.main(["pki", "revoke", pki, "nobody"]) == 1
    assert "is there already" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_bars(world: World) -> None:
    out = Terminal()
    with Shown([V1], out) as shown:
        shown.phase(V1, "running")
        shown.phase(V1, "stuck")
    assert V1 in out.getvalue() and "stuck" in out.getvalue()


# -- room for VMs


def room(host: str, possible: int, count: int = 5) -> Mapping[str, Any]:
    """A real answer of a host with so many cores free."""
    of = offered.here(room=offered.room(cores=possible))
    of = dataclasses.replace(of, policy=dataclasses.replace(of.policy, host=host))
    return inquiry.answer(query(count=count), of, 4)


def test_one_host_says_what_it_has_room_for_and_why_not_more(world: World) -> None:
    ran = Ran(world, "query-capacity", HOST, "--flavour", "small", "--count", "5", "--for", "2h")
    (sent,) = world.commands()
    assert (sent.verb, sent.args) == ("capacity.query", {"flavour": "small", "count": 5, "for_s": 7200})
    world.reply(sent.id, "done", room(HOST, 3))
    assert ran.code == 1
    text = ran.out.getvalue()
    assert "3 now, 3 then, 3 of them yours: not enough" in text
    assert "why not more  no-capacity: cores: 1 needed, 0 free on this host" in text


def test_all_hosts_are_asked_at_once_and_added_up(tmp_path: Path) -> None:
    world = connected(tmp_path, hosts=["wn1", "wn2"])
    ran = Ran(world, "query-capacity", "*", "--flavour", "small", "--count", "5", "--json")
    (sent,) = world.commands()
    assert sent.target == "*"
    for host in ("wn1", "wn2"):
        assert ran.going
        world.reply(sent.id, "done", room(host, 3))
    assert ran.code == 0
    assert ran.json["possible"] == {"now": 6, "then": 6, "yours": 6}
    assert (ran.json["enough"], ran.json["silent"]) == (True, [])


def test_a_host_that_says_nothing_counts_for_nothing_and_is_named(tmp_path: Path) -> None:
    world = connected(tmp_path, hosts=["wn1", "wn2"])
    ran = Ran(world, "query-capacity", "*", "--flavour", "small", "--count", "2", "--timeout", "5s")
    world.reply(world.commands()[0].id, "done", room("wn1", 3, 2))
    world.clock.advance(5)
    assert ran.code == 1
    assert "no answer within 5 s: wn2" in ran.err.getvalue()
    assert "3 now, 3 then, 3 of them yours: enough" in ran.out.getvalue()


def test_the_one_host_that_is_asked_refuses(world: World) -> None:
    ran = Ran(world, "query-capacity", HOST, "--flavour", "none")
    problem = {"type": "not-authorised", "title": "t", "detail": "capacity.query refused"}
    world.reply(world.commands()[0].id, "refused", problem=problem)
    with pytest.raises(Problem) as caught:
        assert ran.code
    assert caught.value.type == "not-authorised"


# -- VMs of one host


def test_vms_of_one_host_asked_now(world: World) -> None:
    for more, shown in (((), "ready"), (("--json",), '"vms"')):
        ran = Ran(world, "query", HOST, "--tagged", "t", *more)
        sent = world.commands()[-1]
        assert (sent.verb, sent.args) == ("vm.query", {"tag": "t"})
        world.reply(sent.id, "done", {"vms": [STATE]})
        assert ran.code == 0 and shown in ran.out.getvalue()


def test_in_the_words_of_occi(world: World) -> None:
    document = occi.collection([occi.compute(STATE, "x86_64")] * 2)
    for more in ((), ("--json",)):
        ran = Ran(world, "query", HOST, V1, "--occi", *more)
        sent = world.commands()[-1]
        assert sent.args == {"vms": [V1], "occi": True}
        world.reply(sent.id, "done", document)
        assert ran.code == 0
        text = ran.out.getvalue()
        assert json.loads(text) == document if more else text.count("Category: compute;") == 2
