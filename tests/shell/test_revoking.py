"""Revocation reaches running VMs (N3): starts refused at once, guests by policy, once each, whatever crashes."""

from __future__ import annotations

import dataclasses
import uuid
from pathlib import Path
from typing import Any, Iterator, List, Mapping

import pytest

from tests.shell.test_loop import started
from tests.support import building, imagelists
from tests.support.memory_store import FailingStore, MemoryStore, full, never
from tests.support.site import Site, again, lives, start_args
from vmagent.core import imagelist, schemas, walltime
from vmagent.core.actions import Do
from vmagent.core.identity import vm_id
from vmagent.core.model import Desired, Outcome, Phase, Seen
from vmagent.core.policy import Authority, Endorser, ListSource, Policy, TrustPolicy
from vmagent.core.trust import VerifiedList
from vmagent.errors import Problem


def policy(**kw: Any) -> Policy:
    """Whose signer may act on everybody's VMs."""
    return building.policy(authority=(Authority(building.SIGNER, ("*",), scope="all"),), **kw)


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[List[Site]]:
    yield from lives(tmp_path, policy=policy())


def with_policy(site: Site, **kw: Any) -> None:
    site.consequences.policy = policy(**kw)


def told(site: Site) -> List[Mapping[str, Any]]:
    return [row.data for row in site.rows()
            if row.type.endswith("security.alert") and row.data["kind"] == "image-distrusted"]


def listed(site: Site, expires: str = imagelists.EXPIRES, **members: Any) -> None:
    """The list as last verified."""
    made = imagelist.parse(imagelists.text(expires=expires, **members))
    site.world.lists = {made.identifier: VerifiedList(made, imagelists.NOW, made.endorser)}


def endorsing(**kw: Any) -> Policy:
    """No image without this list."""
    source = ListSource(imagelists.IDENTIFIER, endorsers=(imagelists.ENDORSER,))
    return policy(trust=TrustPolicy("deny", (source,)), **kw)


def on_a_listed_image(site: Site, **kw: Any) -> str:
    site.consequences.policy = endorsing(**kw)
    listed(site, images=[imagelists.image("golden", building.SHA512)])
    return started(site)


def revoke(site: Site, **args: Any) -> Mapping[str, Any]:
    id = site.send("image.revoke", args or {"id": "tiny"}, reason="CVE-2026-0001")
    return site.replies(id)[-1]


def test_a_start_is_refused_at_once_and_says_who_revoked_and_why(site: Site) -> None:
    assert revoke(site)["status"] == "done"
    reply = site.replies(site.send("vm.start", start_args()))[-1]
    assert reply["status"] == "refused" and reply["problem"]["type"] == "image-revoked"
    assert "CVE-2026-0001" in reply["problem"]["detail"] and building.SIGNER in reply["problem"]["detail"]


def test_by_its_bytes_whatever_its_name(site: Site) -> None:
    revoke(site, sha512=building.SHA512)
    assert site.replies(site.send("vm.start", start_args()))[-1]["problem"]["type"] == "image-revoked"
    assert revoke(site, sha512="cd" * 64)["result"]["vms"] == []


def test_a_start_under_way_never_runs(site: Site) -> None:
    id = site.send("vm.start", start_args())
    vm = vm_id(id, 0)
    site.settle(lambda: site.phase(vm) is Phase.STARTING)
    revoke(site)
    site.settle(lambda: vm not in site.world.records)
    record = site.world.find(vm)
    assert record is not None and record.outcome is Outcome.FAILED and site.host.worlds[vm].boots == 0
    final = site.replies(id)[-1]
    assert final["status"] == "failed" and not site.host.worlds[vm].left
    assert any("not trusted" in reason["why"] for reason in site.states(vm)[-1]["reasons"])


def test_running_guests_are_named_with_their_owners_and_left_by_default(site: Site) -> None:
    vms = {started(site), started(site)}
    reply = revoke(site)
    assert {one["vm"] for one in reply["result"]["vms"]} == vms
    (alert,) = told(site)
    schemas.check("event.security.alert", alert)
    assert {one["vm"] for one in alert["vms"]} == vms
    assert all(one["owner"]["subject"] == building.USER for one in alert["vms"])
    assert alert["image"]["id"] == "tiny" and alert["problem"] == "image-revoked" and "CVE-2026-0001" in alert["detail"]
    site.run(site.revoker.look())
    assert len(told(site)) == 1
    for vm in vms:
        assert site.phase(vm) is Phase.READY
        assert "not trusted any more" in site.states(vm)[-1]["reason"]


@pytest.mark.parametrize(("on_revoked", "asked", "phase"), [
    ("pause", "forbid", Phase.PAUSED), ("report", "pause", Phase.PAUSED),
    ("report", "stop", None), ("stop", "forbid", None), ("kill", "pause", None), ("pause", "kill", None),
])  # fmt: skip
def test_the_stricter_of_policy_and_command_decides(site: Site, on_revoked: str, asked: str, phase: Any) -> None:
    with_policy(site, on_revoked=on_revoked)
    vm = started(site)
    revoke(site, id="tiny", action=asked)
    if phase is not None:
        site.settle(lambda: site.phase(vm) is phase)
        assert site.world.records[vm].outcome is None
        return
    site.settle(lambda: vm not in site.world.records, 300)
    ended = site.world.find(vm)
    assert ended is not None and ended.outcome is Outcome.KILLED and ended.journal.end_cause == "image"
    shutdowns = site.host.worlds[vm].done.count(Do.SHUTDOWN)
    assert (shutdowns > 0) == ("kill" not in (on_revoked, asked))


def test_a_deaf_guest_is_stopped_after_its_grace_time(site: Site) -> None:
    with_policy(site, on_revoked="stop", grace_s=30)
    vm = started(site)
    site.host.worlds[vm].deaf = True
    revoke(site)
    site.settle(lambda: vm not in site.world.records, 60)


def test_report_only_asks_and_takes_back(site: Site) -> None:
    with_policy(site, on_revoked="pause")
    vm = started(site)
    assert [one["vm"] for one in revoke(site, id="tiny", action="report")["result"]["vms"]] == [vm]
    assert site.phase(vm) is Phase.READY and not told(site)
    revoke(site, id="tiny")
    site.settle(lambda: site.phase(vm) is Phase.PAUSED)
    refused = site.replies(site.send("vm.resume", {"vms": [vm]}))[-1]
    assert refused["problem"]["type"] == "image-revoked"
    revoke(site, id="tiny", action="report")
    assert site.phase(vm) is Phase.PAUSED, "nothing is undone by itself"
    site.send("vm.resume", {"vms": [vm]})
    site.settle(lambda: site.phase(vm) is Phase.READY)


def test_an_older_version_is_refused_and_the_same_again_changes_nothing(site: Site) -> None:
    revoke(site, id="tiny", version=7, action="stop")
    reply = revoke(site, id="tiny", version=6, action="report")
    assert reply["status"] == "refused" and reply["problem"]["type"] == "superseded"
    assert revoke(site, id="tiny", version=7, action="stop")["status"] == "done"
    assert revoke(site, id="other")["result"]["revocation_version"] == 8


def test_a_stricter_demand_later_is_done_too_and_a_laxer_one_undoes_nothing(site: Site) -> None:
    vm = started(site)
    revoke(site, id="tiny")
    revoke(site, id="tiny", action="pause")
    site.settle(lambda: site.phase(vm) is Phase.PAUSED)
    revoke(site, id="tiny", action="forbid")
    assert [alert["action"] for alert in told(site)] == ["forbid", "pause", "pause"]
    assert site.world.records[vm].desired is Desired.PAUSED


def test_policy_that_becomes_stricter_reaches_those_that_were_told(site: Site) -> None:
    vm = started(site)
    revoke(site)
    with_policy(site, on_revoked="kill")
    site.run(site.revoker.look())
    site.settle(lambda: vm not in site.world.records)


def test_it_is_taken_from_the_topic_for_every_host(site: Site) -> None:
    id = str(uuid.uuid4())
    site.run(site.intake.frame(site.body("image.revoke", {"id": "tiny"}, id, target="*"), True))
    assert site.replies(id)[-1]["status"] == "done"


def test_killed_between_the_revocation_and_the_decision_it_is_decided_at_start(
    sites: List[Site], tmp_path: Path
) -> None:
    vm = started(sites[0])

    async def dead(verb: str) -> None:
        """The process ended here."""

    sites[0].intake._images.after = dead  # type: ignore[method-assign]
    revoke(sites[0], id="tiny", action="stop")
    assert not told(sites[0])
    second = again(sites, tmp_path)
    assert [alert["action"] for alert in told(second)] == ["stop"]
    second.settle(lambda: vm not in second.world.records, 300)
    assert second.host.worlds[vm].boots == 1 and len(told(second)) == 1
    assert second.replies(second.send("vm.start", start_args()))[-1]["problem"]["type"] == "image-revoked"


def test_killed_between_the_decision_and_the_deed_it_is_done_and_not_told_again(
    sites: List[Site], tmp_path: Path
) -> None:
    vm = started(sites[0])
    sites[0].reconciler.stop()
    revoke(sites[0], id="tiny", action="stop")
    assert len(told(sites[0])) == 1 and sites[0].host.worlds[vm].seen is Seen.RUNNING
    second = again(sites, tmp_path)
    second.settle(lambda: vm not in second.world.records, 300)
    ended = second.world.find(vm)
    assert ended is not None and ended.journal.end_cause == "image" and len(told(second)) == 1


def test_a_store_that_fails_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    store = FailingStore(MemoryStore(), never)
    site = Site(tmp_path, policy=policy(on_revoked="kill"), store=store)
    vm = started(site)
    real = site.intake._images.after

    async def on_a_full_disk(verb: str) -> None:
        store.fails = full
        await real(verb)

    site.intake._images.after = on_a_full_disk  # type: ignore[method-assign]
    revoke(site)
    assert site.host.worlds[vm].seen is Seen.RUNNING and not told(site), "nothing before its record"
    store.fails = never
    site.settle(lambda: vm not in site.world.records)
    assert len(told(site)) == 1
    site.stop()


def test_image_list_knows_what_is_revoked_trusted_and_run(site: Site) -> None:
    started(site)
    revoke(site)
    revoke(site, sha512="cd" * 64)
    answer = site.replies(site.send("image.list", {}))[-1]["result"]
    (tiny,) = [one for one in answer["images"] if one["id"] == "tiny"]
    assert tiny["running"] == 1 and not tiny["trusted"] and tiny["problem"]["type"] == "image-revoked"
    assert tiny["revoked"]["by"] == building.SIGNER and tiny["revoked"]["why"] == "CVE-2026-0001"
    assert [one["version"] for one in answer["revocations"]] == [2, 1] and answer["revocation_version"] == 2


def test_an_image_that_nobody_tells_of_any_more_is_listed_while_it_runs(site: Site) -> None:
    started(site)
    with_policy(site, images={})
    (tiny,) = site.replies(site.send("image.list", {}))[-1]["result"]["images"]
    assert tiny["source"] == "gone" and tiny["running"] == 1


def test_the_journal_names_what_it_was(site: Site) -> None:
    """A revocation without a why is told as one."""
    site.send("image.revoke", {"id": "tiny"})
    with pytest.raises(Problem) as caught:
        distrust = site.consequences.distrust(building.spec(), site.host.now())
        assert distrust is not None
        raise distrust.problem
    assert "no reason was given" in caught.value.detail


@pytest.mark.parametrize("verb", ["vm.restart", "vm.revert"])
def test_a_fresh_life_from_it_is_refused(site: Site, verb: str) -> None:
    vm = started(site)
    revoke(site)
    assert site.replies(site.send(verb, {"vms": [vm]}))[-1]["problem"]["type"] == "image-revoked"
    assert site.phase(vm) is Phase.READY


def test_what_would_be_made_anew_by_itself_ends_instead(site: Site) -> None:
    vm = started(site, restart="always")
    revoke(site)
    site.host.worlds[vm].off("shutdown")
    site.reconciler.mark(vm)
    site.settle(lambda: vm not in site.world.records)
    ended = site.world.find(vm)
    assert ended is not None and ended.outcome is Outcome.FINISHED and ended.spec.incarnation == 0


def test_a_restart_under_way_ends_instead(site: Site) -> None:
    vm = started(site)
    site.host.worlds[vm].deaf = True
    site.send("vm.restart", {"vms": [vm]})
    site.settle(lambda: Do.SHUTDOWN in site.host.worlds[vm].done)
    revoke(site)
    site.settle(lambda: vm not in site.world.records, 200)
    assert site.host.worlds[vm].boots == 1


# ---- endorsement that ends


def test_an_image_that_a_newer_list_no_longer_has_reaches_who_runs_on_it(site: Site) -> None:
    vm = on_a_listed_image(site, on_revoked="stop")
    listed(site, version="2", images=[imagelists.image("golden", "cd" * 64)])
    site.run(site.revoker.look())
    site.settle(lambda: vm not in site.world.records, 300)
    (alert,) = told(site)
    assert alert["problem"] == "image-withdrawn" and alert["vms"][0]["vm"] == vm
    assert site.replies(site.send("vm.start", start_args()))[-1]["status"] == "refused"


def test_a_list_that_expires_wakes_nobody_before_and_is_told_then(site: Site) -> None:
    """No news come: the instant itself is waited for, by the clock of the list."""
    vm = on_a_listed_image(site, on_revoked="pause")
    wall = site.host.now().wall
    soon = walltime.text(walltime.seconds(wall) + 100)[:19] + "Z"
    listed(site, expires=soon, images=[imagelists.image("golden", building.SHA512)])
    site.run(site.revoker.look())
    ends = site.reactor.seconds() + 90
    site.settle(lambda: site.reactor.seconds() >= ends)
    assert not told(site) and site.phase(vm) is Phase.READY
    site.settle(lambda: site.phase(vm) is Phase.PAUSED, 60)
    assert [alert["action"] for alert in told(site)] == ["pause"]


def test_renewed_in_time_nothing_happens_and_renewed_late_it_is_trusted_again(site: Site) -> None:
    vm = on_a_listed_image(site, on_revoked="pause")
    good = site.world.lists
    site.world.lists = {}
    site.run(site.revoker.look())
    assert not told(site), "a list of which no copy is here yet says nothing"
    listed(site, version="2", images=[])
    site.run(site.revoker.look())
    site.settle(lambda: site.phase(vm) is Phase.PAUSED)
    site.world.lists = good
    site.run(site.revoker.look())
    assert site.states(vm)[-1]["reason"] == "its image is trusted again"
    site.send("vm.resume", {"vms": [vm]})
    site.settle(lambda: site.phase(vm) is Phase.READY)


def test_an_endorser_who_is_denied_reaches_who_runs_on_his_images(site: Site) -> None:
    vm = on_a_listed_image(site)
    before = site.consequences.policy
    denied = dataclasses.replace(before.trust, endorsers=(Endorser(imagelists.ENDORSER, "deny"),))
    site.consequences.policy = dataclasses.replace(before, trust=denied, on_revoked="kill")
    site.run(site.revoker.look())
    site.settle(lambda: vm not in site.world.records)
    assert [alert["problem"] for alert in told(site)] == ["endorser-denied"]


def test_what_changes_about_an_image_is_published_once_and_stands_in_the_snapshot(site: Site) -> None:
    def published() -> List[Mapping[str, Any]]:
        return [row.data for row in site.rows() if row.type == "org.vmagent.image.state"]

    site.run(site.announcer.snapshot())
    started(site)
    site.run(site.announcer.changed())
    assert published() == [], "how many run on it is no news"
    revoke(site, id="tiny", version=7)
    site.run(site.announcer.changed())
    (told_of,) = published()
    schemas.check("event.image.state", told_of)
    assert (told_of["id"], told_of["trusted"], told_of["revoked"]["version"]) == ("tiny", False, 7)
    site.run(site.announcer.snapshot())
    snapshot = [row.data for row in site.rows() if row.type == "org.vmagent.host.snapshot"][-1]
    schemas.check("event.host.snapshot", snapshot)
    assert [one["trusted"] for one in snapshot["images"]] == [False]
    assert snapshot["host"]["revocation_version"] == 7
