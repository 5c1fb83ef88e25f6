"""Intake, loop and recovery together, over a real store: from a frame to a final reply, and what crashes leave."""

from __future__ import annotations

import dataclasses
import uuid
from pathlib import Path
from typing import Any, List, Optional, Sequence

import pytest
from twisted.internet.defer import succeed

from tests.support import building, imagelists
from tests.support.memory_store import FailingStore, full, never
from tests.support.site import Site, again, start_args
from tests.support.world import LOOSE
from vmagent.core import schemas
from vmagent.core.actions import Do
from vmagent.core.changes import Change, PutVm
from vmagent.core.identity import vm_id
from vmagent.core.imagelist import parse
from vmagent.core.model import Phase, Seen
from vmagent.core.policy import ListSource, TrustPolicy
from vmagent.core.trust import VerifiedList
from vmagent.errors import Fault, FaultKind


def started(site: Site, **kw: Any) -> str:
    id = site.send("vm.start", start_args(**kw))
    vm = vm_id(id, 0)
    site.settle(lambda: site.phase(vm) is Phase.READY and site.world.records[vm].phase == "ready")  # and stored
    return vm


def test_start_to_ready_and_to_the_end(site: Site) -> None:
    id = site.send("vm.start", start_args())
    vm = vm_id(id, 0)
    assert site.replies(id)[0]["status"] == "accepted"
    site.settle(lambda: len(site.replies(id)) == 2)
    assert site.replies(id)[1]["status"] == "done"
    phases = [s["phase"] for s in site.states(vm)]
    assert phases[0] == "pending" and phases[-1] == "ready" and "starting" in phases
    assert {n for n, _ in site.world.records[vm].timings_ms} == {"fetched", "defined", "proven", "resumed", "ready"}
    stop = site.send("vm.stop", {"vms": [vm]})
    site.settle(lambda: vm not in site.world.records)
    assert site.replies(stop)[-1]["status"] == "done"
    assert site.states(vm)[-1]["outcome"] == "killed"
    world = site.host.worlds[vm]
    assert world.boots == 1 and not world.broken and not world.left and world.seen is Seen.MISSING


def test_sequences_have_no_hole(site: Site) -> None:
    started(site)
    numbers = [row.sequence for row in site.rows() if row.stream == "events"]
    assert numbers == list(range(1, len(numbers) + 1))


def test_all_that_goes_out_has_its_schema(site: Site) -> None:
    vm = started(site, lifetime_s=100)
    site.send("host.report", {})
    site.send("vm.kill", {"vms": [str(uuid.uuid4())]})
    site.settle(lambda: vm not in site.world.records, 200)
    for row in site.rows():
        if row.stream == "replies":
            schemas.check("reply", dict(row.data))
        else:
            schemas.check("event." + row.type[len("org.vmagent."):], dict(row.data))


def test_the_same_frame_again_has_the_same_reply_and_no_effect(site: Site) -> None:
    id = str(uuid.uuid4())
    body = site.body("vm.start", start_args(), id)
    site.run(site.intake.frame(body, False))
    vm = vm_id(id, 0)
    site.settle(lambda: len(site.replies(id)) == 2)
    site.run(site.intake.frame(body, False))
    assert site.replies(id)[2] == site.replies(id)[1]
    assert site.host.worlds[vm].boots == 1


def test_an_id_used_for_something_else_is_refused(site: Site) -> None:
    id = site.send("vm.start", start_args())
    site.send("vm.start", start_args(name="other"), id=id)
    assert site.replies(id)[-1]["problem"]["type"] == "id-reused"
    assert len(site.world.records) == 1


def test_bulk_with_one_bad_member_is_rolled_back_when_atomic(site: Site) -> None:
    site.host.fail[Do.MAKE_OVERLAY] = [Fault(FaultKind.REFUSED, "no such image")]
    id = site.send("vm.start", start_args(count=3, atomic=True))
    site.settle(lambda: len(site.replies(id)) == 2)
    last = site.replies(id)[-1]
    assert last["status"] == "failed"
    site.settle(lambda: not site.world.records)
    assert all(w.seen is Seen.MISSING for w in site.host.worlds.values())


def test_a_transient_fault_is_tried_again(site: Site) -> None:
    site.host.fail[Do.START_PAUSED] = [Fault(FaultKind.UNKNOWN, "deadline"), Fault(FaultKind.BUSY, "busy")]
    vm = started(site)
    assert site.host.worlds[vm].boots == 1


def test_libvirt_away_is_unknown_never_off(site: Site) -> None:
    vm = started(site)
    site.host.away = True
    site.reconciler.mark_all()
    site.settle(lambda: site.phase(vm) is Phase.UNKNOWN)
    site.host.away = False
    site.reconciler.mark_all()
    site.settle(lambda: site.phase(vm) is Phase.READY)
    assert [s["outcome"] for s in site.states(vm)][-1] is None
    assert site.host.worlds[vm].boots == 1


def test_one_hanging_effect_delays_nobody_else(site: Site) -> None:
    sick = started(site, name="sick")
    site.host.hang = {Do.REBOOT}
    site.send("vm.reboot", {"vms": [sick]})
    site.settle(lambda: bool(site.host.hung))
    well = started(site, name="well")
    assert site.phase(well) is Phase.READY and site.host.hung


def test_an_interface_is_shaped_while_its_guest_is_made(site: Site) -> None:
    site.host.hang = {Do.START_PAUSED}
    vm = vm_id(site.send("vm.start", start_args()), 0)
    site.settle(lambda: bool(site.host.hung))
    assert (vm, Do.SHAPE) not in site.host.done, "there is no interface yet"
    (making,) = site.host.hung
    site.host._performed(making[0])  # QEMU is there, and libvirt has not answered yet
    site.settle(lambda: (vm, Do.SHAPE) in site.host.done)
    assert (vm, Do.RESUME) not in site.host.done
    making[1].callback(None)
    site.settle(lambda: site.phase(vm) is Phase.READY)


def test_without_a_guest_no_interface_is_waited_for(site: Site) -> None:
    site.host.hang = {Do.START_PAUSED}
    vm = vm_id(site.send("vm.start", start_args()), 0)
    site.settle(lambda: bool(site.host.hung))
    site.host.hang = set()
    site.host.hung[0][1].errback(Fault(FaultKind.REFUSED, "no"))
    site.settle(lambda: vm not in site.world.records)
    assert (vm, Do.SHAPE) not in site.host.done


def test_the_lease_ends_it_and_warns_before(site: Site) -> None:
    vm = started(site, lifetime_s=200)
    site.settle(lambda: vm not in site.world.records, 300)
    assert site.states(vm)[-1]["outcome"] == "expired"
    warned = [r.data["before_s"] for r in site.rows() if r.type.endswith("lease.warning")]
    assert warned == [60]


@pytest.mark.parametrize("turns", range(0, 40, 3))
def test_a_crash_anywhere_starts_nothing_twice(sites: List[Site], tmp_path: Path, turns: int) -> None:
    site = sites[0]
    id = str(uuid.uuid4())
    body = site.body("vm.start", start_args(), id)
    site.run(site.intake.frame(body, False))
    vm = vm_id(id, 0)
    for _ in range(turns):
        site.reactor.advance(0.05)
        site._drain()
    site = again(sites, tmp_path)
    site.run(site.intake.frame(body, False))
    site.settle(lambda: site.phase(vm) is Phase.READY)
    site.settle(lambda: any(r["status"] == "done" for r in site.replies(id)))
    world = site.host.worlds[vm]
    assert world.boots == 1 and not world.broken


def test_the_store_lost_under_a_running_guest(sites: List[Site], tmp_path: Path) -> None:
    site = sites[0]
    vm = started(site, tags=["batch"])
    before = site.world.records[vm]
    site.reconciler.stop()
    site.wait(site.store.close())
    for path in tmp_path.glob("vmagent.db*"):
        path.unlink()
    sites.append(Site(tmp_path, site.host))
    site = sites[-1]
    site.settle(lambda: site.phase(vm) is Phase.READY)
    after = site.world.records[vm]
    assert after.spec == before.spec and after.lifetime_s == before.lifetime_s
    assert after.journal.started_at == before.journal.started_at
    assert site.stored.epoch.number > sites[0].stored.epoch.number and site.stored.epoch.cause == "lost"
    old = site.body("vm.start", start_args(), before.spec.command)
    site.run(site.intake.frame(old, False))
    assert site.replies(before.spec.command)[-1]["problem"]["type"] == "before-epoch"


def test_a_full_disk_ends_leases_and_takes_no_command(site: Site) -> None:
    vm = started(site, lifetime_s=130)
    store = FailingStore(site.store, full)
    site.world._store = store
    with pytest.raises(Fault):
        site.send("vm.start", start_args())
    assert len(site.world.records) == 1
    site.settle(lambda: site.host.worlds[vm].seen in (Seen.OFF, Seen.MISSING), 200)
    store.fails = never
    site.settle(lambda: vm not in site.world.records, 200)
    assert site.states(vm)[-1]["outcome"] == "expired"


def test_rules_that_fail_are_told_and_nothing_is_begun_though_it_was_defined_beside_them(site: Site) -> None:
    site.host.fail[Do.APPLY_FIREWALL] = [Fault(FaultKind.BUSY, "the kernel is busy")]
    vm = vm_id(site.send("vm.start", start_args()), 0)
    site.settle(lambda: (vm, Do.DEFINE) in site.host.done)
    assert (vm, Do.START_PAUSED) not in site.host.done
    site.settle(lambda: site.phase(vm) is Phase.READY)
    order = [do for one, do in site.host.done if one == vm]
    assert order.index(Do.DEFINE) < order.index(Do.APPLY_FIREWALL) < order.index(Do.START_PAUSED)
    assert any("the kernel is busy" in each["why"] for each in site.states(vm)[-1]["reasons"])


def test_what_follows_a_safe_step_waits_for_its_commit(site: Site) -> None:
    """The rules are applied without one; the start that would follow in the same go is not begun."""
    def attempts(changes: Sequence[Change]) -> Optional[FaultKind]:
        tried = any(isinstance(each, PutVm) and each.record.journal.attempt_boot for each in changes)
        return FaultKind.FULL if tried else None

    store = FailingStore(site.store, attempts)
    site.world._store = store
    vm = vm_id(site.send("vm.start", start_args()), 0)
    site.settle(lambda: len(store.failed) > 2)
    assert (vm, Do.APPLY_FIREWALL) in site.host.done
    assert not {(vm, Do.DEFINE), (vm, Do.START_PAUSED)} & set(site.host.done)
    store.fails = never
    site.settle(lambda: site.phase(vm) is Phase.READY)


BAD = (
    (b"\xff\xfe", "json"), (b"{", "json"), (b'{"a": 1, "a": 2}', "json"), (b"[]", "schema"),
    (b'{"protected": "e30", "payload": "e30", "signature": "AAAA"}', "signature"),
)


@pytest.mark.parametrize("raw, type", BAD)
def test_strangers_are_answered_counted_and_kept_in_the_ring(site: Site, raw: bytes, type: str) -> None:
    site.run(site.intake.frame(raw, False))
    replies = [row for row in site.rows() if row.stream == "replies"]
    assert replies[-1].destination == building.policy().default_reply
    assert replies[-1].data["problem"]["type"] == type
    assert site.wait(site.store.audit(10, ""))[0]["verdict"] == "refused"
    assert not site.alerts()
    site.run(site.intake.minute())
    assert site.alerts()[-1]["count"] == 1 and site.alerts()[-1]["problem"] == type


def test_strangers_cannot_flood_the_replies_queue(site: Site) -> None:
    for _ in range(50):
        site.run(site.intake.frame(b"{", False))
    assert len([row for row in site.rows() if row.stream == "replies"]) == 10
    site.run(site.intake.minute())
    assert site.alerts()[-1]["count"] == 50


REFUSED = (
    ("vm.start", {"flavour": "huge"}, {}, "unknown-flavour"),
    ("vm.start", {"image": {"id": "other"}}, {}, "unknown-image"),
    ("vm.start", {"networks": [{"type": "other"}]}, {}, "unknown-network"),
    ("vm.start", {"lifetime_s": 10**7}, {}, "over-limit"),
    ("vm.start", {}, {"target": "other.example.org"}, "wrong-target"),
    ("vm.start", {"name": "../../etc/passwd"}, {}, "schema"),
    ("vm.start", {"name": "<domain/>"}, {}, "schema"),
    ("vm.start", {}, {"valid_until": "2026-11-20T12:00:00Z", "issued_at": "2026-11-20T11:00:00Z"}, "stale-command"),
    ("vm.start", {}, {"issued_at": "2026-11-20T13:00:00.000Z"}, "future-command"),
    ("vm.start", {}, {"reply_to": "/queue/elsewhere"}, "reply-to"),
    ("vm.start", {}, {"schema": "vm.explode/1"}, "unknown-verb"),
)


@pytest.mark.parametrize("verb, args, members, type", REFUSED)
def test_bad_commands_are_refused_told_and_change_nothing(
    site: Site, verb: str, args: Any, members: Any, type: str
) -> None:
    id = site.send(verb, start_args(**args), **members)
    assert site.replies(id)[-1]["status"] == "refused"
    assert site.replies(id)[-1]["problem"]["type"] == type
    assert site.alerts()[-1]["problem"] == type
    row = site.wait(site.store.audit(10, ""))[0]
    assert row["verdict"] == "refused" and row["why"]
    assert not site.world.records and not site.host.worlds
    started(site)  # the queue goes on


def test_a_start_from_an_image_list_is_decided_by_the_list(site: Site) -> None:
    lst = parse(imagelists.text(images=[imagelists.image("listed", building.SHA512)], version="42"))
    source = ListSource(lst.identifier, path="/x", endorsers=(lst.endorser,))
    site.consequences.policy = dataclasses.replace(site.consequences.policy, trust=TrustPolicy(lists=(source,)))
    image = {"image": {"id": "listed"}}
    assert site.replies(site.send("vm.start", start_args(**image)))[-1]["problem"]["type"] == "unknown-image"
    site.world.lists = {lst.identifier: VerifiedList(lst, imagelists.NOW, lst.endorser)}
    vm = started(site, **image)
    told = site.states(vm)[-1]["image"]
    assert (told["endorser"], told["list"], told["list_version"]) == (lst.endorser, lst.identifier, "42")
    newer = parse(imagelists.text(images=[], version="43"))
    site.world.lists = {lst.identifier: VerifiedList(newer, imagelists.NOW, lst.endorser)}
    assert site.replies(site.send("vm.start", start_args(**image)))[-1]["problem"]["type"] == "unknown-image"


def test_what_is_not_ours_is_not_found(site: Site) -> None:
    id = site.send("vm.kill", {"vms": [str(uuid.uuid4())]})
    assert site.replies(id)[-1]["problem"]["type"] == "not-found"


def test_drain_dry_run_and_query(site: Site) -> None:
    dry = site.send("vm.start", start_args(dry_run=True))
    assert site.replies(dry)[-1]["status"] == "done" and not site.world.records
    site.send("host.drain", {})
    assert site.world.drained
    assert [r.data["drained"] for r in site.rows() if r.type.endswith("host.state")][-1] is True
    id = site.send("vm.start", start_args())
    assert site.replies(id)[-1]["problem"]["type"] == "drained"
    site.send("host.undrain", {})
    vm = started(site)
    query = site.send("vm.query", {"all": True})
    assert [v["vm"] for v in site.replies(query)[-1]["result"]["vms"]] == [vm]


def test_an_effect_that_does_not_stick_is_not_tried_in_a_hot_loop(site: Site) -> None:
    vm = started(site)
    site.host.worlds[vm].cpu = LOOSE
    before = len(site.host.done)
    site.host.perform = _shrug(site)  # type: ignore[method-assign]
    site.reconciler.mark(vm)
    begun = site.reactor.seconds()
    site.settle(lambda: site.reactor.seconds() > begun + 60)
    assert 3 < len(site.host.done) - before < 20


def _shrug(site: Site) -> Any:
    """Every effect succeeds and changes nothing."""

    def perform(action: Any) -> Any:
        site.host.done.append((action.vm, action.do))
        return succeed(None)

    return perform
