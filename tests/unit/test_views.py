"""What people see: rows, owners, the proof that something is over, and whether the host may go down."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Optional, Sequence

import pytest

from tests.support import building
from tests.support.building import COMMAND, SIGNER, USER, now, observed, policy, ran, record, spec
from vmagent.core import identity
from vmagent.core.changes import Epoch
from vmagent.core.model import (
    Desired,
    ForeignSeen,
    HypervisorInfo,
    NicCounters,
    Observed,
    Outcome,
    Owner,
    Seen,
    VmRecord,
)
from vmagent.errors import Problem
from vmagent.local import handles, views

NOW = now(2000.0)
RUNS = record(journal=ran(1000.0, ready_at=1010.0))
FOREIGN = ForeignSeen("f0", "their-vm", Seen.RUNNING, "no-tag")
INFO = HypervisorInfo("qemu:///system", "QEMU", "kvm", "x86_64", "9.0", "7.2", 16, 65536, True, 1.0)


def member(index: int, **kw: Any) -> VmRecord:
    return record(spec={"member": index, **kw.pop("spec", {})}, **kw)


def seen(of: VmRecord, what: Seen = Seen.RUNNING, **kw: Any) -> Dict[str, Observed]:
    return {of.vm: observed(what, of.spec, **kw)}


# -- rows and lists


def test_a_row_says_what_matters() -> None:
    row = views.row(RUNS, seen(RUNS, at=1990.0), NOW)
    assert row == {
        "vm": identity.vm_id(COMMAND, 0), "name": "worker", "phase": "ready", "desired": "run", "outcome": None,
        "owner": USER, "vo": "vo.example", "controller": SIGNER, "cores": 1, "memory_mib": 512, "disk_gib": 2,
        "image": "tiny", "addresses": ["192.0.2.10/24"], "tags": ["batch-1"], "left_s": 2600,
        "since": building.WALL, "age_s": 10.0, "why": "",
    }


def test_limits_join_the_proof_with_the_counters_of_its_own_interfaces() -> None:
    device = RUNS.spec.interfaces[0].device
    counted = {device: NicCounters(in_local_bytes=84), "vmaother": NicCounters(spoofed_packets=1)}
    answer = views.limits(RUNS, seen(RUNS, at=1990.0), NOW, counted, "")
    assert answer["limits"] == views.show(RUNS, seen(RUNS, at=1990.0), NOW, policy())["state"]["limits"]
    assert set(answer["counters"]) == {device} and answer["counters"][device]["in_local_bytes"] == 84
    assert (answer["started_at"], answer["age_s"], answer["phase"]) == (building.WALL, 10.0, "ready")
    json.dumps(answer)


def test_limits_of_what_was_never_seen_prove_nothing() -> None:
    answer = views.limits(record(), {}, NOW, {}, "why")
    assert answer["limits"]["wanted"]["memory_mib"] == 512
    assert (answer["limits"]["proven"], answer["limits"]["drift"]) == ({}, [])
    assert (answer["age_s"], answer["started_at"]) == (None, None)
    assert (answer["counters"], answer["counters_why"]) == ({}, "why")


def test_what_was_not_observed_is_unknown_and_has_no_age() -> None:
    row = views.row(RUNS, {}, NOW)
    assert (row["phase"], row["age_s"]) == ("unknown", None)


@pytest.mark.parametrize(
    ("one", "left"),
    [
        (record(), None),
        (RUNS, 2600),
        (record(journal=ran(1000.0), lifetime_s=10), 0),
        (record(journal=ran(1000.0, started_boot=building.OTHER_BOOT)), None),
        (record(journal=ran(1000.0), outcome=Outcome.KILLED), None),
    ],
)
def test_the_lease_left(one: VmRecord, left: Optional[int]) -> None:
    assert views.left_s(one, NOW) == left


def test_the_list_is_in_the_order_of_acceptance_and_shows_what_is_foreign() -> None:
    late = member(0, spec={"command": "6f1c2f9e-6d5b-4f0e-9d51-0d6a7a1b2c3f"}, accepted_wall="2026-11-20T13:00:00.000Z")
    answer = views.listing([late, member(2), member(1)], {}, [FOREIGN], NOW)
    assert [row["vm"] for row in answer["vms"]] == [member(1).vm, member(2).vm, late.vm]
    assert answer["foreign"] == [{"uuid": "f0", "name": "their-vm", "seen": "running", "why": "no-tag"}]


def test_show_holds_the_published_state_and_what_was_seen() -> None:
    answer = views.show(RUNS, seen(RUNS, leftovers=frozenset({"seed", "overlay"})), NOW, policy())
    assert answer["state"]["vm"] == RUNS.vm
    assert answer["seen"]["leftovers"] == ["overlay", "seed"]
    assert answer["seen"]["domain"] == "running"
    json.dumps(answer, allow_nan=False)


def test_who_runs_what() -> None:
    mine = [member(0), member(1)]
    theirs = member(2, spec={"owner": Owner("/CN=B", "/other"), "cores": 4})
    gone = member(3, outcome=Outcome.FINISHED)
    owners = views.who([theirs, gone, *mine], {}, NOW)["owners"]
    assert [(o["owner"], o["vo"], o["count"], o["cores"]) for o in owners] == [
        ("/CN=B", "other", 1, 4), (USER, "vo.example", 2, 2),
    ]
    assert [row["vm"] for row in owners[1]["vms"]] == [one.vm for one in mine]


# -- naming


IDS = [("aaaa1111", "web"), ("aaaa2222", "db"), ("bbbb3333", "web"), ("cccc4444", "aaaa2222")]


@pytest.mark.parametrize(
    ("text", "id"),
    [("bbbb", "bbbb3333"), ("BBBB3333", "bbbb3333"), ("db", "aaaa2222"), ("aaaa2222", "aaaa2222"),
     ("aaaa1", "aaaa1111")],
)
def test_picking_one(text: str, id: str) -> None:
    assert handles.pick(text, IDS) == id


@pytest.mark.parametrize(
    ("text", "type"), [("web", "ambiguous"), ("aaaa", "ambiguous"), ("bbb", "not-found"), ("", "not-found")]
)
def test_picking_none_or_several(text: str, type: str) -> None:
    with pytest.raises(Problem) as caught:
        handles.pick(text, IDS)
    assert caught.value.type == type


def test_find_takes_a_record() -> None:
    assert views.find(RUNS.vm[:8], [member(4, spec={"name": "x"}), RUNS]) is RUNS


def test_a_name_that_was_taken_again_means_the_one_that_is_not_over() -> None:
    over = [member(number, spec={"name": "web"}, closed=True) for number in (5, 6)]
    alive = member(7, spec={"name": "web"})
    assert views.find("web", [*over, alive]) is alive
    assert views.find(over[0].vm, [*over, alive]) is over[0]
    for records, type in (([*over], "ambiguous"), ([alive, member(8, spec={"name": "web"})], "ambiguous")):
        with pytest.raises(Problem) as caught:
            views.find("web", records)
        assert caught.value.type == type


# -- over


ENDED = record(journal=ran(1000.0, ended_at=1500.0, ended_boot=building.BOOT), outcome=Outcome.KILLED,
               desired=Desired.ABSENT)
CLOSED = record(journal=ran(1000.0, ended_at=1500.0), outcome=Outcome.KILLED, desired=Desired.ABSENT, closed=True)


@pytest.mark.parametrize(
    ("one", "look", "over", "unknown"),
    [
        (ENDED, observed(Seen.MISSING), True, False),
        (CLOSED, None, True, False),
        (CLOSED, observed(Seen.MISSING), True, False),
        (ENDED, observed(Seen.MISSING, missing_twice=False), False, True),  # seen once is no proof
        (ENDED, None, False, True),
        (ENDED, observed(Seen.UNKNOWN), False, True),
        (CLOSED, observed(Seen.UNKNOWN), True, False),  # closing was the proof, and an id never runs again
        (CLOSED, observed(Seen.FOREIGN), False, True),
        (ENDED, observed(Seen.MISSING, leftovers=frozenset({"process"})), False, False),
        (ENDED, observed(Seen.MISSING, leftovers=frozenset({"interface"})), False, False),
        (ENDED, observed(Seen.MISSING, leftovers=frozenset({"overlay"})), False, False),
        (ENDED, observed(Seen.MISSING, leftovers=frozenset({"seed"})), False, False),
        (ENDED, observed(Seen.MISSING, leftovers=frozenset({"firewall"})), True, False),
        (ENDED, observed(Seen.OFF), False, False),
        (ENDED, observed(Seen.STUCK), False, False),
        (ENDED, observed(Seen.RUNNING), False, False),
        (RUNS, observed(Seen.RUNNING), False, False),
        (RUNS, None, False, False),  # it has not ended, whatever can be seen
        (record(), observed(Seen.MISSING), False, False),  # it will be started
    ],
)
def test_over_is_a_proof(one: VmRecord, look: Optional[Observed], over: bool, unknown: bool) -> None:
    answer = views.over("h", [one], {one.vm: look} if look else {}, NOW)
    assert (answer["over"], answer["unknown"]) == (over, unknown)


def test_over_needs_every_member() -> None:
    other = member(1)
    answer = views.over(COMMAND, [CLOSED, other], seen(other), NOW)
    assert (answer["over"], answer["unknown"]) == (False, False)
    assert [one["over"] if "over" in one else one["process"] for one in answer["members"]] == [False, True]


def test_a_handle_that_nobody_knows_proves_nothing() -> None:
    answer = views.over("x", [], {}, NOW)
    assert (answer["over"], answer["unknown"], answer["members"]) == (False, True, [])


# -- may this host go down?


def check(records: Sequence[VmRecord], look: Dict[str, Observed], minutes: float = 10,
          foreign: Sequence[ForeignSeen] = (), drained: bool = True) -> Dict[str, Any]:
    return views.drain_check(records, look, foreign, NOW, minutes, drained)


def names(entries: List[Dict[str, Any]]) -> List[str]:
    return [entry["vm"] for entry in entries]


def test_an_empty_host_may_go_down() -> None:
    answer = check([], {})
    assert (answer["yes"], answer["empty_in_s"]) == (True, 0)


def test_only_leases_that_end_in_time_may_stay() -> None:
    soon = member(0, journal=ran(1000.0), lifetime_s=1500)
    late = member(1, journal=ran(1000.0), lifetime_s=1601)
    look = {**seen(soon), **seen(late)}
    answer = check([soon, late], look)
    assert (names(answer["ending"]), names(answer["staying"])) == ([soon.vm], [late.vm])
    assert (answer["yes"], answer["empty_in_s"]) == (False, 601)
    assert check([soon, late], look, minutes=10.1)["yes"]


def test_what_is_being_stopped_ends_with_its_grace_time() -> None:
    one = member(0, desired=Desired.STOP, lifetime_s=90000,
                 journal=ran(1000.0, stop_at=1990.0, stop_boot=building.BOOT, grace_s=60))
    answer = check([one], seen(one, Seen.STOPPING))
    assert (answer["yes"], answer["ending"][0]["ends_in_s"]) == (True, 50)


@pytest.mark.parametrize(
    ("one", "what"),
    [
        (member(0, lifetime_s=10), Seen.MISSING),  # waits for its start
        (member(0, lifetime_s=10, journal=ran(1000.0)), Seen.STUCK),
        (member(0, lifetime_s=10, journal=ran(1000.0)), Seen.UNKNOWN),
    ],
)
def test_what_cannot_be_told_stays(one: VmRecord, what: Seen) -> None:
    answer = check([one], seen(one, what))
    assert (answer["yes"], answer["empty_in_s"], names(answer["staying"])) == (False, None, [one.vm])


def test_a_foreign_guest_that_runs_keeps_the_host_up() -> None:
    assert not check([], {}, foreign=[FOREIGN])["yes"]
    assert check([], {}, foreign=[ForeignSeen("f", "n", Seen.OFF)])["yes"]


def test_what_has_ended_keeps_nobody() -> None:
    assert check([ENDED], seen(ENDED, Seen.OFF))["yes"]


def test_new_vms_may_still_come_unless_drained() -> None:
    assert check([], {}, drained=False)["drained"] is False


def test_a_restart_is_not_the_end() -> None:
    again = member(0, journal=ran(1000.0, stop_at=1990.0, stop_boot=building.BOOT, grace_s=60, renew_wanted=1))
    (one,) = check([again], seen(again), minutes=10)["staying"]
    assert (one["ends_in_s"], one["why"]) == (2600, "its lease ends then")


# -- the host


def test_status_counts_phases_and_outcomes() -> None:
    epoch = Epoch("e1", 3, building.WALL, "first")
    answer = views.status([RUNS, member(1), ENDED], seen(RUNS), policy(), INFO, epoch,
                          {"drained": False, "degraded": {}})
    assert answer["phases"] == {"ready": 1, "pending": 1}
    assert answer["ended"] == {"killed": 1}
    assert (answer["epoch"]["number"], answer["drained"]) == (3, False)
    assert spec().vm == RUNS.vm
