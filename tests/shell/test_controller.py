"""The controller's library: identical retries, replies by id, several waiters, events counted, the fleet kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Mapping

import pytest
from twisted.internet.defer import ensureDeferred

from tests.support.controlled import HOST, STATE, World, fired, site, waits
from vmagent.core import identity, walltime
from vmagent.core.model import Owner
from vmagent.errors import Fault, FaultKind, Problem
from vmagent.site.controller import LONGEST_RETRY_S, VALID_S, Controller
from vmagent.site.handle import Handle
from vmagent.site.settings import load

V1 = "aaaaaaaa-0000-5000-8000-000000000001"
START = {"image": "tiny", "flavour": "small", "lifetime_s": 60}


@pytest.fixture()
def world(tmp_path: Path) -> World:
    world = World(site(tmp_path))
    fired(world.controller.connect())
    return world


def start(world: World, **args: Any) -> Handle:
    handle = fired(world.controller.start(HOST, **{**START, **args}))
    assert isinstance(handle, Handle)
    return handle


def done(handle: Handle) -> Mapping[str, Any]:
    return {"members": [{"vm": vm, "member": n, "status": "done"} for n, vm in enumerate(handle.ids)]}


# -- what is sent


def test_a_start_is_a_command_that_agents_accept(world: World) -> None:
    handle = start(world, count=3, reason="batch 1")
    (command,) = world.commands()
    assert (command.verb, command.id, command.target) == ("vm.start", handle.id, HOST)
    assert command.args == {"image": {"id": "tiny"}, "flavour": "small", "lifetime_s": 60, "count": 3}
    assert command.owner == Owner("/CN=A User", "/vo.example")
    assert command.reason == "batch 1"
    assert command.reply_to == "/queue/vmagent.S.replies"
    assert world.link.sent[0].destination == f"/queue/vmagent.S.{HOST}.commands"
    assert walltime.seconds(command.valid_until_wall) - walltime.seconds(command.issued_wall) == VALID_S
    assert world.link.sent[0].expires_s == pytest.approx(VALID_S)


def test_vm_ids_are_known_before_anything_is_answered(world: World) -> None:
    handle = start(world, count=2)
    assert handle.ids == tuple(identity.vm_id(handle.id, member) for member in (0, 1))


VERBS = ["stop", "kill", "pause", "resume", "reboot"]


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_on_vms(world: World, verb: str) -> None:
    vm = start(world).ids[0]
    fired(getattr(world.controller, verb)(HOST, vms=[vm], reason="why"))
    command = world.commands()[-1]
    assert (command.verb, command.args, command.reason) == (f"vm.{verb}", {"vms": [vm]}, "why")


def test_extend_drain_undrain_and_report(world: World) -> None:
    fired(world.controller.extend(HOST, all=True, lifetime_s=99))
    fired(world.controller.drain(HOST))
    fired(world.controller.undrain(HOST))
    fired(world.controller.report())
    assert [(one.verb, one.target) for one in world.commands()] == [
        ("vm.extend", HOST), ("host.drain", HOST), ("host.undrain", HOST), ("host.report", "*"),
    ]
    assert world.link.sent[-1].destination == "/topic/vmagent.S.commands"


def test_only_verbs_made_for_it_go_to_every_host(world: World) -> None:
    with pytest.raises(Problem) as caught:
        world.controller.command("*", "vm.kill", {"all": True})
    assert caught.value.type == "wrong-target"
    assert world.link.sent == []


def test_two_commands_in_one_instant_are_issued_one_after_the_other(world: World) -> None:
    fired(world.controller.pause(HOST, all=True))
    fired(world.controller.resume(HOST, all=True))
    first, second = world.commands()
    assert walltime.seconds(first.issued_wall) < walltime.seconds(second.issued_wall)


def test_an_owner_may_be_named_for_one_start(world: World) -> None:
    fired(world.controller.start(HOST, owner=Owner("/CN=B"), **START))
    assert world.commands()[0].owner == Owner("/CN=B", "")


# -- retries


def test_retries_are_identical_and_grow_rarer(world: World) -> None:
    start(world)
    at: List[float] = []
    for _ in range(300):
        before = len(world.link.sent)
        world.clock.advance(1)
        if len(world.link.sent) > before:
            at.append(world.clock.seconds())
    assert at[:4] == [5, 15, 35, 75]
    assert {b - a for a, b in zip(at[4:], at[5:])} == {LONGEST_RETRY_S}
    assert len({sent.body for sent in world.link.sent}) == 1


def test_what_is_sent_the_moment_the_link_comes_is_sent_once(tmp_path: Path) -> None:
    world = World(site(tmp_path))

    async def begin() -> None:
        await world.controller.connect()
        await world.controller.start(HOST, **START)

    fired(begin())
    assert len(world.link.sent) == 1


def test_a_final_reply_ends_the_retries(world: World) -> None:
    handle = start(world)
    world.reply(handle.id, "done", done(handle))
    world.clock.advance(3 * LONGEST_RETRY_S)
    assert len(world.link.sent) == 1
    assert world.clock.getDelayedCalls() == []


def test_a_lost_last_reply_is_asked_for_again(world: World) -> None:
    handle = start(world)
    world.reply(handle.id, "accepted", done(handle))
    world.clock.advance(5)
    assert len(world.link.sent) == 2
    assert waits(handle.done)


def test_what_was_not_sent_goes_out_when_the_link_is_back(world: World) -> None:
    world.link.down()
    handle = start(world)
    assert world.link.sent == []
    world.link.up()
    assert [one.id for one in world.commands()] == [handle.id]


def test_a_receipt_that_never_came_is_healed_by_the_same_bytes(world: World) -> None:
    world.link.auto = False
    handle = start(world)
    world.link.down()
    world.link.auto = True
    world.link.up()
    assert [one.id for one in world.commands()] == [handle.id] * 2
    assert len({sent.body for sent in world.link.sent}) == 1
    assert waits(handle.accepted)


def test_what_the_broker_refuses_fails(world: World) -> None:
    world.link.auto = False
    handle = start(world)
    world.link.refuse(world.link.sent[0], FaultKind.REFUSED)
    with pytest.raises(Fault) as caught:
        fired(handle.accepted)
    assert caught.value.kind is FaultKind.REFUSED
    assert world.clock.getDelayedCalls() == []


def test_silence_until_the_command_is_valid_no_more_is_an_unknown_outcome(world: World) -> None:
    handle = start(world)
    world.clock.pump([10] * (VALID_S // 10 + 1))
    for answer in (handle.accepted, handle.done):
        with pytest.raises(Fault) as caught:
            fired(answer)
        assert caught.value.kind is FaultKind.UNKNOWN
    assert max(len(world.link.sent), 1) < VALID_S / LONGEST_RETRY_S + 10
    assert world.clock.getDelayedCalls() == []


def test_an_accepted_command_is_not_repeated_after_its_time_but_may_still_end(world: World) -> None:
    handle = start(world)
    world.reply(handle.id, "accepted", done(handle))
    world.clock.pump([10] * (VALID_S // 10 + 1))
    sent = len(world.link.sent)
    world.clock.advance(VALID_S)
    assert len(world.link.sent) == sent
    world.reply(handle.id, "done", done(handle))
    assert fired(handle.done)["status"] == "done"


# -- replies


def test_replies_are_matched_by_id_alone(world: World) -> None:
    first, second = start(world), start(world)
    world.reply(second.id, "accepted", done(second))
    assert waits(first.accepted)
    assert fired(second.accepted)["command"] == second.id


def test_any_number_may_wait_and_nobody_has_to(world: World) -> None:
    handle = start(world)
    early = [handle.accepted, handle.accepted]
    world.reply(handle.id, "accepted", done(handle))
    assert [fired(one)["status"] for one in (*early, handle.accepted)] == ["accepted"] * 3
    given_up = handle.done
    given_up.addErrback(lambda failure: None)
    given_up.cancel()
    world.reply(handle.id, "done", done(handle))
    assert fired(handle.done)["status"] == "done"


def test_a_refusal_is_the_problem_it_was(world: World) -> None:
    handle = start(world)
    problem = {"type": "no-capacity", "title": "no capacity", "detail": "2 cores are free", "free": 2}
    world.reply(handle.id, "refused", problem=problem)
    for answer in (handle.accepted, handle.done):
        with pytest.raises(Problem) as caught:
            fired(answer)
        assert (caught.value.type, caught.value.fields["free"]) == ("no-capacity", 2)


def test_a_failure_was_accepted_and_says_what_became_of_each(world: World) -> None:
    handle = start(world, count=2)
    members = [{"vm": handle.ids[0], "status": "done"}, {"vm": handle.ids[1], "status": "failed"}]
    world.reply(handle.id, "accepted", {"members": []})
    world.reply(handle.id, "failed", {"members": members},
                {"type": "ended", "title": "ended", "detail": "it ended first"})
    assert fired(handle.accepted)["status"] == "accepted"
    with pytest.raises(Problem) as caught:
        fired(handle.done)
    assert (caught.value.type, caught.value.fields["members"]) == ("ended", members)
    assert handle.members == tuple(members)


def test_a_reply_that_is_delivered_twice_changes_nothing(world: World) -> None:
    handle = start(world)
    world.reply(handle.id, "done", done(handle))
    world.reply(handle.id, "refused", problem={"type": "x", "title": "x", "detail": "x"})
    assert fired(handle.done)["status"] == "done"
    assert world.controller.strays == 1


def test_replies_for_others_are_acknowledged_and_counted(world: World) -> None:
    world.reply("somebody-elses", "done")
    world.frame({"command": None, "status": "refused"})
    assert world.controller.strays == 2
    assert len(world.link.acked) == 2


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", {"command": "x"}, {"specversion": "1.0"}, {"status": 1}])
def test_what_is_not_understood_is_acknowledged_and_counted(world: World, body: Any) -> None:
    frame = world.frame(body)
    assert world.controller.malformed == 1
    assert world.link.acked == [frame]


def test_the_ids_of_a_selection_come_with_the_reply(world: World) -> None:
    handle = fired(world.controller.stop(HOST, all=True))
    assert handle.ids == ()
    world.reply(handle.id, "accepted", {"members": [{"vm": V1, "status": "accepted"}]})
    assert handle.ids == (V1,)


def test_a_query_gives_the_states(world: World) -> None:
    got: List[Any] = []
    ensureDeferred(world.controller.query(HOST)).addCallback(got.append)
    (command,) = world.commands("vm.query")
    assert command.args == {"all": True}
    world.reply(command.id, "done", {"vms": [STATE]})
    assert got == [[STATE]]


def test_a_question_about_room_gives_its_answer(world: World) -> None:
    got: List[Any] = []
    asked = world.controller.capacity(HOST, flavour="small", count=500, owner=Owner("/CN=A", "/vo"))
    ensureDeferred(asked).addCallback(got.append)
    (command,) = world.commands("capacity.query")
    assert (command.args, command.owner) == ({"flavour": "small", "count": 500}, Owner("/CN=A", "/vo"))
    world.reply(command.id, "done", {"enough": False})
    assert got == [{"enough": False}]


def test_one_host_that_refuses_a_report_does_not_speak_for_the_others(world: World) -> None:
    handle = fired(world.controller.report())
    world.reply(handle.id, "refused", problem={"type": "not-authorised", "title": "n", "detail": "not you"})
    assert waits(handle.done)
    assert [one.type for one in handle.refusals] == ["not-authorised"]
    world.reply(handle.id, "done", {})
    world.reply(handle.id, "done", {})
    assert fired(handle.done)["status"] == "done"
    assert world.controller.strays == 0
    world.clock.advance(VALID_S)
    assert world.clock.getDelayedCalls() == []


# -- events


def test_events_feed_collector_fleet_and_watchers_once(world: World) -> None:
    seen: List[str] = []
    forget = world.controller.watch(lambda event: seen.append(event["id"]))
    body = world.event("vm.state", {**STATE, "vm": V1})
    world.frame(body)
    assert seen == [body["id"]]
    assert world.controller.collector.duplicates == 1
    assert [data["vm"] for _, data in world.controller.fleet.vms()] == [V1]
    forget()
    world.state(V1, "paused")
    assert len(seen) == 1
    assert len(world.link.acked) == 3


def test_a_gap_is_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.state(V1, "running")
    world.event("vm.state", {**STATE, "vm": V1}, skip=2)
    assert world.controller.collector.missing()[0][3] == (2, 3)
    assert "2 events are missing" in caplog.text


def test_a_watcher_that_fails_harms_nobody(world: World, caplog: pytest.LogCaptureFixture) -> None:
    seen: List[str] = []
    world.controller.watch(lambda event: [][1])
    world.controller.watch(lambda event: seen.append(event["id"]))
    world.state(V1, "ready")
    assert (len(seen), world.controller.failures, world.controller.malformed) == (1, 1, 0)
    assert "IndexError" in caplog.text


# -- the link and its settings


def test_connecting_waits_for_the_subscriptions(tmp_path: Path) -> None:
    world = World(site(tmp_path))
    world.link.start = lambda: None  # type: ignore[method-assign]
    connected = world.controller.connect()
    assert waits(connected)
    world.link.up()
    assert world.controller.link.up


def test_closing_ends_every_timer(world: World) -> None:
    start(world)
    fired(world.controller.close())
    assert world.clock.getDelayedCalls() == []


def test_subscriptions_are_durable_only_by_name(tmp_path: Path) -> None:
    plain = World(site(tmp_path))
    assert [(one.destination, one.durable) for one in plain.subscriptions] == [
        ("/queue/vmagent.S.replies", False), ("/topic/vmagent.S.events", False),
    ]
    named = World(site(tmp_path, subscription="collector-1", replies="/queue/vmagent.SITE.replies.c1"))
    assert [(one.id, one.destination, one.durable) for one in named.subscriptions] == [
        ("replies", "/queue/vmagent.S.replies.c1", False), ("collector-1", "/topic/vmagent.S.events", True),
    ]
    assert named.site.broker.client_id == "collector-1"


def test_every_mistake_in_the_configuration_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("site: '!'\nurls: []\nkey: a\nchain: b\ncolour: red\n")
    with pytest.raises(Problem) as caught:
        load(tmp_path / "site.yaml")
    told = caught.value.as_json()
    assert told["type"] == "configuration"
    assert len(told["also"]) == 2
    for name in ("site", "urls", "colour"):
        assert any(f"{name}" in str(one) for one in (told, *told["also"]))


@pytest.mark.parametrize("text", ["", "[", "- a", "site: S\nurls: ['stomp://h:1']\nkey: none\nchain: none\n"])
def test_a_configuration_that_cannot_be_read_is_a_problem(tmp_path: Path, text: str) -> None:
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(Problem) as caught:
        load(tmp_path / "site.yaml")
    assert caught.value.type == "configuration"


def test_a_key_that_cannot_sign_is_a_problem(tmp_path: Path) -> None:
    settings = site(tmp_path)
    (tmp_path / "c.key").write_text("nonsense")
    world = World(load(tmp_path / "site.yaml"))
    fired(world.controller.connect())
    with pytest.raises(Problem) as caught:
        fired(world.controller.start(HOST, **START))
    assert caught.value.type == "configuration"
    assert isinstance(World(settings).controller, Controller)
