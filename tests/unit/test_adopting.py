"""A guest that others started: what is refused, what is wished, what the planner does with it (docs/design/0009)."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Tuple

import pytest

from tests.support import building as b
from tests.support.world import LIVE, World, settle, turn
from vmagent import adoption
from vmagent.core import adopting, codec, events, imageviews, lease, proof, room, schemas, verbs
from vmagent.core.actions import Do
from vmagent.core.adopting import Candidate
from vmagent.core.commands import VERBS, Command, Signer
from vmagent.core.ending import gave_up, given_back
from vmagent.core.model import CgroupSeen, CpuLimit, Desired, DiskSeen, Outcome, Seen, VmRecord
from vmagent.core.plan import plan, tag_of
from vmagent.errors import Problem, Problems
from vmagent.local import views

VM = "3b6f4c1e-1111-4222-8333-444455556666"
ARGS: Dict[str, Any] = {"vm": VM, "owner": b.USER, "fqan": "/vo.example/Role=NULL", "lifetime_s": 3600}
DB1 = Candidate(VM, "db1", Seen.RUNNING, "no-tag", cores=2, memory_mib=512, devices=("vnet0",), disks=("sda",))
THEIR_CAP = CpuLimit(100_000, 70_000)


def wish(incarnation: int = 0, **kw: Any) -> VmRecord:
    return adopting.wish(DB1, {**ARGS, **kw}, "local:root", incarnation, b.policy(), b.now())


def theirs(record: VmRecord) -> World:
    """Their guest: with a cap, a weight and a balloon of its own, and disks that nobody knows."""
    world = World(record.spec, Seen.RUNNING)
    world.others, world.left, world.boots = True, set(), 1
    world.cpu, world.defined_cpu, world.weight, world.memory_mib = THEIR_CAP, THEIR_CAP, 7, 300
    return world


def ours(**kw: Any) -> Tuple[World, VmRecord]:
    """Adopted, and at rest."""
    record = wish(**kw)
    world = theirs(record)
    record, done = settle(world, record, b.policy())
    assert done[0] is Do.CLAIM
    return world, record


# -- refused


@pytest.mark.parametrize(("change", "why"), [
    ({"seen": Seen.OFF}, "not-running"), ({"seen": Seen.PAUSED}, "not-running"), ({"autostart": True}, "autostart"),
    ({"saved": True}, "saved"), ({"why": "other-instance"}, "other-instance"), ({"why": "bad-tag"}, "bad-tag"),
    ({"why": "uuid-mismatch"}, "uuid-mismatch"), ({"why": ""}, "ours"),
])  # fmt: skip
def test_what_cannot_be_adopted_says_why(change: Dict[str, Any], why: str) -> None:
    (problem,) = adopting.refusals(dataclasses.replace(DB1, **change), ARGS, b.policy(), True)
    assert (problem.type, problem.fields["why"], problem.fields["vm"]) == ("not-adoptable", why, VM)


def test_all_the_reasons_at_once() -> None:
    candidate = dataclasses.replace(DB1, seen=Seen.OFF, autostart=True)
    found = adopting.refusals(candidate, {**ARGS, "lifetime_s": 10**7, "cpu_cap_core_percent": 10**5}, b.policy(), True)
    assert [one.type for one in found] == ["not-adoptable", "not-adoptable", "over-limit"]
    capped = {**ARGS, "cpu_cap_core_percent": 50}
    assert adopting.refusals(DB1, capped, b.policy(), False)[0].type == "not-supported-here"
    assert adopting.refusals(DB1, ARGS, b.policy(), False) == []


def test_a_cap_is_within_the_sites_limits() -> None:
    policy = b.policy(maxima=b.maxima(cpu_cap_core_percent=200))
    assert adopting.refusals(DB1, {**ARGS, "cpu_cap_core_percent": 200}, policy, True) == []
    (problem,) = adopting.refusals(DB1, {**ARGS, "cpu_cap_core_percent": 201}, policy, True)
    assert (problem.type, problem.fields["path"]) == ("over-limit", "args.cpu_cap_core_percent")


@pytest.mark.parametrize("args", [{}, {**ARGS, "lifetime_s": 0}, {**ARGS, "x": 1}, {**ARGS, "owner": ""},
                                  {**ARGS, "cpu_cap_core_percent": 0}])  # fmt: skip
def test_what_is_asked_has_its_schema(args: Dict[str, Any]) -> None:
    with pytest.raises(Problems):
        adopting.asked(args)


# -- the wish


def test_the_wish_names_nothing_that_we_would_make_or_remove() -> None:
    spec = wish().spec
    assert (spec.vm, spec.name, spec.cores, spec.memory_mib) == (VM, "db1", 2, 512)
    assert (spec.interfaces, spec.disks, spec.disk_gib, spec.image.id, spec.keep_s) == ((), (), 0, "", 0)
    assert spec.adopted and spec.restart == "never"
    assert codec.spec_from_json(codec.plain(spec)) == spec


def test_its_lease_counts_from_the_adoption() -> None:
    record = wish()
    assert lease.ends_at(record) == b.now().at + 3600
    assert record.journal.began_at is None  # so that its account says that what was before is not known


def test_it_counts_in_capacity_and_what_is_too_much_is_told() -> None:
    host = room.HostRoom(cores=1, memory_mib=600, disk_free_gib=100, drained=False, emulated_ok=True)
    record = wish()
    told = adopting.told(DB1, record, room.left(b.policy(), (record,), host))
    assert any(text.startswith("cores: 1 more") for text in told["short"])
    assert room.promised(b.policy(), (record,), host).cores == 2


def test_its_state_has_its_schema_and_proves_only_what_is_held() -> None:
    for kw, proven in (({}, set()), ({"cpu_cap_core_percent": 50}, {"cpu"})):
        world, record = ours(**kw)
        data = events.vm_state(record, world.look(), b.now(), b.policy())
        schemas.check("event.vm.state", data)
        assert data["adopted"] and data["phase"] == "ready" and set(data["limits"]["proven"]) == proven


# -- what the planner does


def test_it_gets_its_tag_and_is_left_alone() -> None:
    world, record = ours()
    assert world.done == [Do.CLAIM] and world.tag == tag_of(record, b.INSTANCE)
    assert (world.cpu, world.weight, world.memory_mib, world.boots) == (THEIR_CAP, 7, 300, 1)
    assert record.journal.alarms == ()


def test_a_cap_that_was_asked_for_is_held_and_nothing_else_of_it() -> None:
    world, record = ours(cpu_cap_core_percent=50)
    assert world.cpu == CpuLimit(100_000, 50_000) and world.weight == 7
    world.cpu = CpuLimit(100_000, -1)
    planned = turn(world, record, b.policy())
    assert planned.action is not None and planned.action.do is Do.APPLY_CPU
    assert [note.kind for note in planned.notes] == ["cpu-drift"]
    assert world.cpu == CpuLimit(100_000, 50_000)


def test_a_cap_comes_with_vm_limits_and_what_else_there_is_does_not() -> None:
    world, record = ours()
    record = verbs.apply(command("vm.limits", cpu_cap_core_percent=30), record, b.policy(), b.now(1001.0))
    record, _ = settle(world, record, b.policy())
    assert world.cpu == CpuLimit(100_000, 30_000) and record.journal.limits_before is None
    with pytest.raises(Problem) as caught:
        verbs.apply(command("vm.limits", cpu_weight=10), record, b.policy(), b.now(1002.0))
    assert (caught.value.type, caught.value.fields["path"]) == ("not-supported-here", "args.cpu_weight")


def test_given_back_it_runs_on_with_what_its_definition_says() -> None:
    for kw in ({}, {"cpu_cap_core_percent": 50}):
        world, record = ours(**kw)
        world.done.clear()
        record, done = settle(world, given_back(record, Outcome.RETURNED, "local:root", "", b.now()), b.policy())
        assert done == ([Do.UNTAG, Do.TELL_SYSTEMD] if kw else [Do.UNTAG])
        assert record.closed and record.outcome is Outcome.RETURNED and record.journal.alarms == ()
        assert (world.seen, world.tag, world.cpu, world.boots, world.broken) == (Seen.RUNNING, None, THEIR_CAP, 1, [])


def test_its_lease_ends_it_and_its_definition_stays() -> None:
    world, record = ours()
    world.deaf = True
    for _ in range(4000):
        world.at += 1.0
        record = turn(world, record, b.policy()).record
        if record.closed:
            break
    assert record.closed and record.outcome is Outcome.EXPIRED
    assert world.seen is Seen.OFF and world.tag is None and not world.broken
    assert set(world.done) == {Do.CLAIM, Do.SHUTDOWN, Do.DESTROY, Do.UNTAG}


@pytest.mark.parametrize(("seen", "reason", "outcome"), [
    (Seen.OFF, "shutdown", Outcome.FINISHED), (Seen.OFF, "crashed", Outcome.CRASHED), (Seen.SAVED, "saved", None),
    (Seen.MISSING, "", Outcome.LOST),
])  # fmt: skip
def test_an_end_that_it_comes_to_itself_is_written_down_and_undone_by_nobody(
    seen: Seen, reason: str, outcome: Any
) -> None:
    world, record = ours()
    world.seen, world.reason, saved = seen, reason, seen
    world.done.clear()
    record, _ = settle(world, record, b.policy())
    assert record.closed and (outcome is None or record.outcome is outcome)
    assert set(world.done) <= {Do.UNTAG} and world.seen is saved and not world.broken


def test_whoever_starts_it_again_after_the_host_was_booted_has_it_back() -> None:
    world, record = ours()
    world.boot_id, world.at = b.OTHER_BOOT, 50.0
    world.done.clear()
    record, done = settle(world, record, b.policy())
    assert done == [Do.UNTAG] and world.seen is Seen.RUNNING
    assert record.closed and record.outcome is Outcome.LOST


def test_a_tag_that_somebody_takes_away_is_not_put_back() -> None:
    world, record = ours()
    world.tag = None
    world.done.clear()
    record, done = settle(world, record, b.policy())
    assert done == [] and record.journal.alarms == ("foreign",) and not record.closed
    record, done = settle(world, given_back(record, Outcome.RETURNED, "local:root", "", b.now()), b.policy())
    assert done == [] and record.closed


def test_a_tag_that_cannot_be_put_in_ends_the_wish_and_nothing_else() -> None:
    record = wish()
    world = theirs(record)
    planned = plan(record, world.look(), b.now(), b.policy())
    assert planned.action is not None
    record, done = settle(world, gave_up(planned.record, planned.action, "autostart", b.now()), b.policy())
    assert record.closed and record.outcome is Outcome.FAILED and done == [] and world.seen is Seen.RUNNING


def test_killed_between_commit_and_tag_the_next_look_puts_it_in() -> None:
    """The same record and the same observation: the same action, however often it is planned."""
    record = wish()
    world = theirs(record)
    first = plan(record, world.look(), b.now(), b.policy())
    again = plan(first.record, world.look(), b.now(), b.policy())
    assert first.action == again.action and first.action is not None and first.action.do is Do.CLAIM
    assert not [note for note in first.notes if note.kind == "foreign"]


def test_a_lost_store_is_rebuilt_from_its_tag_and_holds_the_same() -> None:
    world, record = ours(cpu_cap_core_percent=50)
    assert world.tag is not None
    rebuilt = adoption.from_tag(world.look().domain, world.tag, b.now(2000.0), b.policy())
    assert rebuilt.spec == record.spec and lease.ends_at(rebuilt) == lease.ends_at(record)
    world.done.clear()
    _, done = settle(world, rebuilt, b.policy())
    assert done == []


def test_an_older_copy_of_the_store_claims_nothing() -> None:
    """It may have been given back since."""
    record = wish()
    assert adoption.doubtful(record)
    world = theirs(record)
    _, done = settle(world, adoption.distrusted(record), b.policy())
    assert done == []


def test_adopted_once_more_it_is_another_wish() -> None:
    world, record = ours()
    newer = wish(1, owner="/CN=Other")
    world.tag = tag_of(newer, b.INSTANCE)
    after = adoption.caught_up(record, world.tag, b.now(1500.0))
    assert after is not None and after.spec == newer.spec and not lease.expiring(after, b.now(1500.0), b.policy())


def test_a_domain_with_an_old_tag_of_ours_is_not_ended() -> None:
    """Somebody defined it from a copy of its XML that he made meanwhile."""
    world, record = ours()
    record, _ = settle(world, given_back(record, Outcome.RETURNED, "local:root", "", b.now()), b.policy())
    world.tag = tag_of(record, b.INSTANCE)
    world.done.clear()
    record, done = settle(world, adoption.came_back(record, b.now()), b.policy())
    assert done == [Do.UNTAG] and world.seen is Seen.RUNNING and record.closed


# -- beside the planner


def test_nobody_judges_its_image_or_its_disks() -> None:
    record = wish()
    assert imageviews.users([record]) == []
    world = theirs(record)
    observed = world.look()
    domain = dataclasses.replace(observed.domain, seen=Seen.RUNNING, disks_seen=(DiskSeen("vdc", "reference-data"),))
    policy = dataclasses.replace(b.policy(), volumes={"reference-data": object()})  # type: ignore[dict-item]
    planned = plan(record, dataclasses.replace(observed, domain=domain), b.now(), policy)
    assert planned.record.journal.volumes == ()


def test_a_cgroup_says_nothing_of_a_cap_that_nobody_asked_for() -> None:
    record = wish()
    observed = dataclasses.replace(theirs(record).look(), cgroup=CgroupSeen(2, THEIR_CAP, "machine.scope", THEIR_CAP))
    assert proof.mended(record.spec, observed) is None and proof.drift(record.spec, observed) == ()


def command(verb: str, **args: Any) -> Command:
    return Command(b.COMMAND, verb, f"{verb}/1", b.WALL, b.WALL, "h", "", None, None, "", {"vms": [VM], **args},
                   "d" * 64, Signer(b.SIGNER), "broker")  # fmt: skip


@pytest.mark.parametrize("verb", sorted(adopting.NOT_OURS))
def test_what_needs_a_golden_image_or_a_definition_is_refused(verb: str) -> None:
    assert VERBS[verb].selects
    with pytest.raises(Problem) as caught:
        verbs.apply(command(verb, name="s", volume="v"), wish(), b.policy(), b.now())
    assert caught.value.type == "not-supported-here"


def test_the_other_verbs_are_for_it_too() -> None:
    for verb in ("vm.stop", "vm.kill", "vm.pause", "vm.reboot", "vm.extend"):
        world, record = ours()
        record = verbs.apply(command(verb, lifetime_s=7200), record, b.policy(), b.now(1001.0))
        record, _ = settle(world, record, b.policy())
        assert not world.broken, verb
        if verb in ("vm.stop", "vm.kill"):
            assert record.closed and record.outcome is Outcome.KILLED and world.seen not in LIVE


def test_who_can_be_given_back() -> None:
    assert adopting.not_returnable(wish()) == []
    assert adopting.not_returnable(b.record())[0].type == "not-adopted"
    paused = dataclasses.replace(wish(), desired=Desired.PAUSED)
    assert adopting.not_returnable(paused)[0].type == "paused-by-us"
    over = given_back(wish(), Outcome.RETURNED, "x", "", b.now())
    assert adopting.not_returnable(over)[0].type == "ended"


@pytest.mark.parametrize(("outcome", "over"),
                         [(Outcome.EXPIRED, True), (Outcome.RETURNED, False), (Outcome.LOST, False)])
def test_what_ended_is_over_although_its_definition_is_there_and_what_was_given_back_is_not(
    outcome: Outcome, over: bool
) -> None:
    record = dataclasses.replace(given_back(wish(), outcome, "x", "", b.now()), closed=True)
    foreign = theirs(record).look()
    told = views.over(VM, [record], {VM: foreign}, b.now())
    assert (told["over"], told["unknown"]) == (over, not over)
    assert views.over(VM, [record], {}, b.now())["over"] is (outcome is not Outcome.RETURNED)
