"""Which VMs a selector means, and what becomes of each wish."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import Any, Dict, List, Optional, Tuple

import pytest

from tests.support import building
from vmagent.core import request, verbs
from vmagent.core.commands import VERBS, Command, Signer
from vmagent.core.model import Desired, ImageRef, Outcome, Owner, Reason, VmRecord
from vmagent.core.policy import Minima
from vmagent.core.progress import OF_SNAPSHOTS
from vmagent.errors import Problem, Problems

SIGNER = Signer(building.SIGNER, (), "ab" * 32)
OTHER = Signer("CN=other,C=NL", (), "cd" * 32)
POLICY = building.policy()
NOW = building.now(at=2000.0)  # 1000 s after the builders' first resume
LATER = "2026-11-20T12:00:01.000Z"
EARLIER = "2026-11-20T11:59:59.999Z"


def command(verb: str, issued: str = LATER, signer: Signer = SIGNER, reason: str = "", generation: Optional[int] = None,
            **args: Any) -> Command:  # fmt: skip
    payload: Dict[str, Any] = {
        "schema": f"{verb}/1", "id": building.COMMAND, "issued_at": issued, "valid_until": "2026-11-20T18:00:00Z",
        "target": "wn017.site.example.org", "reason": reason, "if_generation": generation,
        "args": args or {"all": True},
    }  # fmt: skip
    if verb == "vm.extend" and not {"lifetime_s", "until"} & set(args):
        payload["args"] = {**payload["args"], "lifetime_s": 7200}
    if verb == "vm.limits" and not {"cpu_cap_core_percent", "cpu_weight", "disk_io", "networks"} & set(args):
        payload["args"] = {**payload["args"], "cpu_weight": 100}
    if verb in ("vm.attach", "vm.detach") and "volume" not in args:
        payload["args"] = {**payload["args"], "volume": "data"}
    if verb in OF_SNAPSHOTS and "name" not in args:
        payload["args"] = {**payload["args"], "name": "s"}
    return request.parse(payload, "d" * 64, signer, "broker")


def applied(asked: Command, record: Optional[VmRecord] = None) -> VmRecord:
    record = record or building.record(journal=building.ran())
    if asked.verb in ("vm.snapshot.delete", "vm.snapshot.cancel") and not record.snapshots:
        record = dataclasses.replace(record, snapshots=(building.snapshot("s"),))
    return verbs.apply(asked, record, POLICY, NOW)


def refused(asked: Command, record: Optional[VmRecord] = None) -> Problem:
    with pytest.raises(Problem) as caught:
        applied(asked, record)
    json.dumps(caught.value.as_json()).encode("ascii")
    assert caught.value.fields["vm"] in caught.value.detail
    return caught.value


CHANGING = sorted(verb.name for verb in VERBS.values() if verb.selects and verb.changes)

# ---- select ----

A = building.record(spec={"member": 0, "tags": ("x", "y")})
B = building.record(spec={"member": 1, "tags": ("y",), "image": ImageRef("other", building.SHA512, "raw")})
C = building.record(spec={"member": 2, "tags": (), "owner": Owner("check-in@example.org", "")})
ENDED = building.record(spec={"member": 3, "tags": ("y", "z")}, outcome=Outcome.EXPIRED)
CLOSED = building.record(spec={"member": 4, "tags": ("y",)}, outcome=Outcome.EXPIRED, closed=True)
RECORDS = (A, B, C, ENDED, CLOSED)


@pytest.mark.parametrize(
    ("args", "changing", "looking"),
    [
        ({"all": True}, (A, B, C), (A, B, C, ENDED)),
        ({"tag": "y"}, (A, B), (A, B, ENDED)),
        ({"tag": "z"}, None, (ENDED,)),
        ({"tag": "Y"}, None, ()),
        ({"tag": "nope"}, None, ()),
        ({"image": "other"}, (B,), (B,)),
        ({"image": "nope"}, None, ()),
        ({"owner": building.USER}, (A, B), (A, B, ENDED)),
        ({"owner": "CN=A User,DC=example,DC=org"}, (A, B), (A, B, ENDED)),
        ({"owner": "check-in@example.org"}, (C,), (C,)),
        ({"owner": "CN=A User"}, None, ()),
        ({"vms": [B.vm, A.vm]}, (B, A), (B, A)),
        ({"vms": [ENDED.vm]}, (ENDED,), (ENDED,)),
        ({"vms": [CLOSED.vm]}, None, None),
        ({"vms": [A.vm, "00000000-0000-4000-8000-000000000000"]}, None, None),
    ],
)
def test_select(
    args: Dict[str, Any], changing: Optional[Tuple[VmRecord, ...]], looking: Optional[Tuple[VmRecord, ...]]
) -> None:
    for verb, expected in (("vm.stop", changing), ("vm.query", looking)):
        if expected is not None:
            assert verbs.select(command(verb, **args), RECORDS) == expected
            continue
        with pytest.raises(Problem) as caught:
            verbs.select(command(verb, **args), RECORDS)
        assert caught.value.type == "not-found"
        assert caught.value.fields["path"] == f"args.{next(iter(args))}"


def test_all_of_nothing_is_nothing() -> None:
    assert verbs.select(command("vm.kill"), ()) == ()


def test_what_is_missing_is_named_and_bounded() -> None:
    ids = [f"00000000-0000-4000-8000-{n:012d}" for n in range(100)]
    with pytest.raises(Problem) as caught:
        verbs.select(command("vm.kill", vms=[*ids, A.vm]), RECORDS)
    assert caught.value.fields["missing"] == ids[:20]
    assert A.vm not in caught.value.detail


# ---- what each verb wishes ----


@pytest.mark.parametrize("verb", CHANGING)
def test_every_verb_leaves_its_trace(verb: str) -> None:
    before = building.record(generation=6, journal=building.ran())
    after = applied(command(verb, reason="batch 4711"), before)
    assert after.generation == 7
    assert after.reasons == (Reason(building.SIGNER, "batch 4711", NOW.wall),)
    assert after.last_commands == ((building.SIGNER, LATER),)
    assert dataclasses.replace(after.spec, limits=before.spec.limits, disks=before.spec.disks) == before.spec
    assert (after.outcome, after.closed, after.accepted_at) == (None, False, before.accepted_at)
    assert applied(command(verb), before).reasons[-1].why == verb


def test_stop() -> None:
    after = applied(command("vm.stop", all=True, grace_s=7))
    assert after.desired is Desired.STOP
    assert (after.journal.end_cause, after.journal.grace_s, after.journal.stop_at) == ("command", 7, None)
    assert applied(command("vm.stop")).journal.grace_s == POLICY.grace_s
    assert applied(command("vm.stop", all=True, grace_s=0)).journal.grace_s == 0


def test_kill() -> None:
    after = applied(command("vm.kill"))
    assert (after.desired, after.journal.end_cause) == (Desired.ABSENT, "command")


def test_a_kept_disk_outlives_a_kill() -> None:
    record = building.record(spec={"keep_s": 60}, journal=building.ran())
    after = applied(command("vm.kill"), record)
    assert (after.desired, after.journal.grace_s, after.journal.end_cause) == (Desired.STOP, 0, "command")
    assert applied(command("vm.kill"), building.record(spec={"keep_s": 60})).desired is Desired.ABSENT


def test_pause_and_resume() -> None:
    paused = applied(command("vm.pause"))
    assert paused.desired is Desired.PAUSED
    assert paused.journal == building.ran()
    assert applied(command("vm.resume"), paused).desired is Desired.RUN
    assert applied(command("vm.resume")).desired is Desired.RUN


def test_reboot_is_wanted_once_per_command() -> None:
    first = applied(command("vm.reboot"))
    assert (first.journal.reboot_wanted, first.journal.reboot_done, first.desired) == (2, 0, Desired.RUN)
    assert applied(command("vm.reboot"), first).journal.reboot_wanted == 3


# ---- nothing revives a VM ----


@pytest.mark.parametrize("desired", [Desired.STOP, Desired.ABSENT])
@pytest.mark.parametrize("verb", ["vm.pause", "vm.resume", "vm.reboot", "vm.extend", "vm.limits"])
def test_what_is_being_ended_is_not_revived(verb: str, desired: Desired) -> None:
    record = building.record(desired=desired, journal=building.ran(end_cause="lease"))
    assert refused(command(verb), record).type == "stopping"


def test_what_is_being_ended_can_end_faster_and_keeps_its_first_cause() -> None:
    record = building.record(desired=Desired.STOP, journal=building.ran(end_cause="lease", stop_at=1500.0))
    stopped = applied(command("vm.stop", all=True, grace_s=1), record)
    assert (stopped.desired, stopped.journal.end_cause, stopped.journal.grace_s) == (Desired.STOP, "lease", 1)
    assert stopped.journal.stop_at == 1500.0
    killed = applied(command("vm.kill"), stopped)
    assert (killed.desired, killed.journal.end_cause) == (Desired.ABSENT, "lease")
    assert applied(command("vm.stop"), killed).desired is Desired.ABSENT


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("verb", [verb for verb in CHANGING if verb != "vm.kill"])
def test_what_has_ended_takes_no_command(verb: str, outcome: Outcome) -> None:
    record = building.record(desired=Desired.STOP, outcome=outcome)
    assert refused(command(verb), record).type == "ended"
    assert refused(command(verb, generation=99), record).type == "ended"


# ---- order ----


@pytest.mark.parametrize("verb", CHANGING)
def test_superseded(verb: str) -> None:
    problem = refused(command(verb, issued=EARLIER))
    assert (problem.type, problem.fields["last"]) == ("superseded", building.WALL)
    applied(command(verb, issued=building.WALL))
    applied(command(verb, issued="2026-11-20T12:00:00Z"))  # the same instant, spelled otherwise
    applied(command(verb, issued=EARLIER, signer=OTHER))
    applied(command(verb, issued=EARLIER, generation=1))
    applied(command(verb, issued=EARLIER), building.record(last_commands=()))


@pytest.mark.parametrize("generation", [1, 3, 2**40])
def test_generation(generation: int) -> None:
    problem = refused(command("vm.kill", generation=generation), building.record(generation=2))
    assert (problem.type, problem.fields["current"], problem.fields["path"]) == ("generation", 2, "if_generation")
    applied(command("vm.kill", generation=2), building.record(generation=2))


def test_two_orders_of_delivery_one_result() -> None:
    first, second = command("vm.pause", issued=building.WALL), command("vm.resume", issued=LATER)
    in_order = applied(second, applied(first))
    late = applied(second)
    assert refused(first, late).type == "superseded"
    assert late.desired is in_order.desired is Desired.RUN


# ---- run time ----

EXTENSIONS: Tuple[Tuple[Dict[str, Any], Any], ...] = (
    ({"lifetime_s": 7200}, 7200),
    ({"lifetime_s": 1001}, 1001),
    ({"lifetime_s": 1000}, "lifetime"),
    ({"lifetime_s": 1}, "lifetime"),
    ({"lifetime_s": 7 * 86400}, 7 * 86400),
    ({"lifetime_s": 7 * 86400 + 1}, "over-limit"),
    ({"until": "2026-11-20T13:00:00Z"}, 1000 + 3600),
    ({"until": "2026-11-20T12:00:00.001Z"}, 1001),
    ({"until": "2026-11-20T12:00:00Z"}, "lifetime"),
    ({"until": "2026-11-20T11:00:00Z"}, "lifetime"),
    ({"until": "1970-01-01T00:00:00Z"}, "lifetime"),
    ({"until": "9999-12-31T23:59:59Z"}, "over-limit"),
)


@pytest.mark.parametrize(("args", "expected"), EXTENSIONS)
def test_extend(args: Dict[str, Any], expected: Any) -> None:
    asked = command("vm.extend", all=True, **args)
    if isinstance(expected, int):
        assert applied(asked).lifetime_s == expected
        return
    problem = refused(asked)
    assert (problem.type, problem.fields["path"]) == (expected, f"args.{next(iter(args))}")


def test_extend_before_the_first_instruction() -> None:
    waiting = building.record()
    assert applied(command("vm.extend", all=True, lifetime_s=1), waiting).lifetime_s == 1
    assert applied(command("vm.extend", all=True, until="2026-11-20T13:00:00Z"), waiting).lifetime_s == 3600


def test_the_wall_clock_prolongs_nothing() -> None:
    """A length is agreed; what the wall says at another time does not matter."""
    asked = command("vm.extend", all=True, lifetime_s=7200)
    record = building.record(journal=building.ran())
    for wall in ("2026-11-19T12:00:00.000Z", "2026-11-21T12:00:00.000Z"):
        assert verbs.apply(asked, record, POLICY, building.now(at=2000.0, wall=wall)).lifetime_s == 7200


def test_an_extension_never_ends_in_the_past() -> None:
    chance = random.Random(11)
    form = command("vm.extend")
    for _ in range(500):
        used = chance.randrange(0, 10 * 86400)
        record = building.record(journal=building.ran(at=1000.0))
        args: Dict[str, Any] = {"lifetime_s": chance.randrange(1, 10 * 86400)}
        if chance.random() < 0.5:
            args = {"until": f"2026-11-{chance.randrange(10, 30)}T{chance.randrange(24):02d}:00:00Z"}
        try:
            asked = dataclasses.replace(form, args=args)
            after = verbs.apply(asked, record, POLICY, building.now(at=1000.0 + used))
        except Problem as problem:
            assert problem.type in ("lifetime", "over-limit")
            continue
        assert used < after.lifetime_s <= POLICY.maxima.lifetime_s


# ---- limits ----


def test_new_limits_are_the_wish_and_the_old_ones_are_kept() -> None:
    before = building.record(generation=4, journal=building.ran())
    first = applied(command("vm.limits", all=True, cpu_weight=50), before)
    assert first.spec.limits.cpu_weight == 50
    assert first.spec.limits.cpu_cap_core_percent == before.spec.limits.cpu_cap_core_percent
    assert (first.journal.limits_before, first.journal.limits_since) == (before.spec.limits, 5)
    again = applied(command("vm.limits", all=True, cpu_cap_core_percent=10), first)
    assert (again.spec.limits.cpu_weight, again.spec.limits.cpu_cap_core_percent) == (50, 10)
    assert again.journal.limits_before == before.spec.limits, "what was proven last, not what was asked in between"
    assert again.journal.limits_since == 6


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"cpu_weight": 1001}, [("over-limit", "args.cpu_weight")]),
        ({"cpu_weight": 9}, [("under-limit", "args.cpu_weight")]),
        ({"networks": [{"type": "dmz", "bandwidth_in_kbit": 100}]}, [("unknown-network", "args.networks[0].type")]),
        (
            {"cpu_weight": 1001, "networks": [{"firewall": {"inbound": [{"action": "allow", "ports": [1]}]}}]},
            [("rule", "args.networks[0].firewall.inbound[0].ports"), ("over-limit", "args.cpu_weight")],
        ),
    ],
)
def test_limits_that_the_site_does_not_give_change_nothing(args: Dict[str, Any], expected: List[Any]) -> None:
    policy = building.policy(maxima=building.maxima(cpu_weight=1000), minima=Minima(cpu_weight=10))
    record = building.record(journal=building.ran())
    with pytest.raises(Problems) as caught:
        verbs.apply(command("vm.limits", all=True, **args), record, policy, NOW)
    assert [(one.type, one.fields["path"]) for one in caught.value.problems] == expected
    for one in caught.value.problems:
        assert one.fields["vm"] == record.vm and record.vm in one.detail
    assert record.journal == building.ran() and record == building.record(journal=building.ran())


# ---- the trail ----


def test_the_reason_trail_is_bounded_newest_last() -> None:
    record = building.record(journal=building.ran())
    for n in range(30):
        record = applied(command("vm.pause", reason=f"r{n}"), record)
    assert [reason.why for reason in record.reasons] == [f"r{n}" for n in range(10, 30)]


def test_any_sequence_of_commands_only_ever_goes_forward() -> None:
    chance = random.Random(42)
    order: List[Desired] = [Desired.STOP, Desired.ABSENT]
    forms = [command(verb) for verb in CHANGING]
    for _ in range(100):
        record = building.record(journal=building.ran())
        for n in range(12):
            asked = dataclasses.replace(chance.choice(forms), issued_wall=f"2026-11-20T12:00:{n:02d}.000Z")
            before = record
            try:
                record = applied(asked, record)
            except Problem as problem:
                assert problem.type == "stopping" or asked.verb in OF_SNAPSHOTS
                continue
            assert record.generation == before.generation + 1
            if before.desired in order:
                assert record.desired in order[order.index(before.desired) :]
                assert record.journal.end_cause == before.journal.end_cause
            assert dataclasses.replace(record, reasons=()).accepted_wall == building.WALL


def test_each_signer_has_an_order_of_its_own() -> None:
    between = applied(command("vm.extend", signer=OTHER))
    assert dict(between.last_commands) == {building.SIGNER: building.WALL, OTHER.subject: LATER}
    assert refused(command("vm.extend", issued=EARLIER), between).type == "superseded"


def test_a_second_kill_gives_up_the_kept_disk() -> None:
    kept = building.record(spec={"keep_s": 600}, desired=Desired.STOP, outcome=Outcome.KILLED, journal=building.ran())
    assert applied(command("vm.kill"), kept).desired is Desired.ABSENT
    assert refused(command("vm.stop"), kept).type == "ended"
