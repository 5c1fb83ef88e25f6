"""`adopt` and `disown` over a real store and a fake host: the commit, the tag, the audit, crashes and a lost store."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import pytest

from tests.support import building as b
from tests.support.site import Site, again, lives
from vmagent.adopter import Adopter
from vmagent.core import schemas
from vmagent.core.actions import Do
from vmagent.core.commands import Signer
from vmagent.core.model import CpuLimit, Outcome, Phase, Seen
from vmagent.core.policy import TrustPolicy
from vmagent.errors import Fault, FaultKind, Problem
from vmagent.local import handles

VM = "3b6f4c1e-1111-4222-8333-444455556666"
ROOT = Signer("local:root")
ARGS: Dict[str, Any] = {"vm": "db1", "owner": b.USER, "lifetime_s": 3600}


def adopter(site: Site) -> Adopter:
    return Adopter(site.world, site.store, site.host, site.consequences, site._room, site.host, site.reconciler.mark,
                   handles.pick)


def adopt(site: Site, **kw: Any) -> Any:
    return site.run(adopter(site).adopt({**ARGS, **kw}, ROOT))


def disown(site: Site, vm: str = "db1") -> Any:
    return site.run(adopter(site).disown({"vm": vm}, ROOT))


def audit(site: Site) -> List[Any]:
    return [(row["verb"], row["who"], row["route"], row["verdict"], row["subject"])
            for row in site.wait(site.store.audit(100, ""))]


@pytest.fixture
def theirs(site: Site) -> Any:
    return site.host.theirs(VM, "db1")


def is_ready(site: Site) -> bool:
    record = site.world.records.get(VM)
    return record is not None and record.phase == "ready" and site.phase(VM) is Phase.READY


def test_the_first_start_adopts_nothing(tmp_path: Path, sites: List[Site]) -> None:
    """Guests that run, and one that is off: no wish, no tag, no effect, however often it looks."""
    site = sites[0]
    site.host.theirs(VM, "db1")
    off = site.host.theirs("4b6f4c1e-1111-4222-8333-444455556666", "db2")
    off.seen = Seen.OFF
    first = again(sites, tmp_path)
    for _ in range(3):
        first.run(first.recovery.resync())
        first.run(first.holder.hold(whole=True))
    assert first.world.records == {} and first.host.done == []
    assert {one.name for one in first.world.foreign} == {"db1", "db2"}
    assert not [row for row in first.rows() if row.type.endswith("vm.state")]
    assert all(world.tag is None for world in first.host.worlds.values())


def test_adopted_it_is_ready_told_and_in_the_audit(site: Site, theirs: Any) -> None:
    site.run(site.recovery.resync())
    assert [one.name for one in site.world.foreign] == ["db1"]
    told = adopt(site)
    assert (told["vm"], told["dry_run"], told["devices"]) == (VM, False, ["vnet0"])
    site.settle(lambda: is_ready(site))
    assert [do for _, do in site.host.done] == [Do.CLAIM]
    assert theirs.tag.spec.adopted and theirs.tag.instance == b.INSTANCE
    states = site.states(VM)
    for data in states:
        schemas.check("event.vm.state", dict(data))
    assert states[-1]["adopted"] and states[-1]["owner"]["subject"] == b.USER and site.alerts() == []
    assert audit(site) == [("adopt", "local:root", "local", "done", VM)]
    assert site.world.foreign == ()


def test_a_dry_run_leaves_no_trace(site: Site, theirs: Any) -> None:
    told = adopt(site, dry_run=True)
    assert told["dry_run"] and told["not_held"]
    site.run(site.recovery.resync())
    assert site.world.records == {} and audit(site) == [] and theirs.tag is None and site.host.done == []


def test_a_refusal_is_in_the_audit_and_changes_nothing(site: Site, theirs: Any) -> None:
    theirs.autostart = True
    with pytest.raises(Problem) as caught:
        adopt(site)
    assert (caught.value.type, caught.value.fields["why"]) == ("not-adoptable", "autostart")
    with pytest.raises(Problem) as unknown:
        adopt(site, vm="nobody")
    assert unknown.value.type == "not-found"
    assert audit(site) == [("adopt", "local:root", "local", "refused", "nobody"),
                           ("adopt", "local:root", "local", "refused", VM)]
    assert site.world.records == {} and site.host.done == []


def test_asked_twice_it_is_ours_already(site: Site, theirs: Any) -> None:
    adopt(site)
    with pytest.raises(Problem) as before_its_tag:
        adopt(site)
    assert before_its_tag.value.fields["why"] == "known"
    site.settle(lambda: is_ready(site))
    with pytest.raises(Problem) as after:
        adopt(site)
    assert after.value.fields["why"] == "ours"
    assert site.world.records[VM].generation == 1


def test_killed_between_the_commit_and_the_tag(tmp_path: Path, sites: List[Site]) -> None:
    site = sites[0]
    theirs = site.host.theirs(VM, "db1")
    adopt(site)  # committed; the loop has not turned
    assert theirs.tag is None
    after = again(sites, tmp_path)
    after.settle(lambda: is_ready(after))
    assert theirs.tag is not None and theirs.boots == 1
    assert [do for _, do in after.host.done] == [Do.CLAIM]


def test_the_store_is_lost_and_rebuilt_from_the_tag(tmp_path: Path, sites: List[Site]) -> None:
    site = sites[0]
    theirs = site.host.theirs(VM, "db1")
    adopt(site, cpu_cap_core_percent=50)
    site.settle(lambda: is_ready(site) and theirs.cpu == CpuLimit(100_000, 50_000))
    spec, ends = site.world.records[VM].spec, site.world.records[VM].journal.started_at
    site.host.done.clear()
    after = again(sites, lost(tmp_path))
    after.settle(lambda: is_ready(after))
    record = after.world.records[VM]
    assert record.spec == spec and record.journal.started_at == ends
    assert after.host.done == [] and theirs.boots == 1
    disown(after)
    after.settle(lambda: VM not in after.world.records)
    assert theirs.seen is Seen.RUNNING and theirs.tag is None


def lost(folder: Path) -> Path:
    (folder / "new").mkdir()
    return folder / "new"


def test_its_lease_ends_it_with_warnings_and_its_definition_stays(site: Site, theirs: Any) -> None:
    adopt(site, lifetime_s=100)
    site.settle(lambda: VM not in site.world.records, 200)
    record = site.world.find(VM)
    assert record is not None and record.outcome is Outcome.EXPIRED and record.closed
    assert theirs.seen is Seen.OFF and theirs.tag is None and not theirs.broken
    assert {do for _, do in site.host.done} <= {Do.CLAIM, Do.SHUTDOWN, Do.DESTROY, Do.UNTAG}
    site.run(site.recovery.resync())
    assert [one.name for one in site.world.foreign] == ["db1"]


def test_given_back_it_runs_on(site: Site, theirs: Any) -> None:
    adopt(site, cpu_cap_core_percent=50)
    site.settle(lambda: is_ready(site) and theirs.cpu == CpuLimit(100_000, 50_000))
    assert disown(site) == {"vm": VM, "name": "db1"}
    site.settle(lambda: VM not in site.world.records)
    assert (theirs.seen, theirs.tag, theirs.cpu, theirs.boots) == (Seen.RUNNING, None, theirs.defined_cpu, 1)
    assert site.states(VM)[-1]["outcome"] == "returned" and site.states(VM)[-1]["closed"]
    assert audit(site)[0] == ("disown", "local:root", "local", "done", VM)
    assert not theirs.broken and site.alerts() == []


def test_killed_between_giving_back_and_the_tag(tmp_path: Path, sites: List[Site]) -> None:
    site = sites[0]
    theirs = site.host.theirs(VM, "db1")
    adopt(site)
    site.settle(lambda: is_ready(site))
    disown(site)  # committed; the loop has not turned
    after = again(sites, tmp_path)
    after.settle(lambda: VM not in after.world.records)
    assert theirs.seen is Seen.RUNNING and theirs.tag is None and theirs.boots == 1


def test_adopted_again_its_account_is_another(site: Site, theirs: Any) -> None:
    def segments() -> List[str]:
        return [row.segment for row in site.wait(site.store.usage(0, 100, vm=VM))]

    for _ in range(2):
        known = len(segments())
        adopt(site)
        site.settle(lambda: is_ready(site))
        disown(site)
        site.settle(lambda before=known: VM not in site.world.records and len(segments()) > before)
    assert len(set(segments())) == 2
    ended = [row.data for row in site.rows() if row.type.endswith("vm.usage")]
    for data in ended:
        schemas.check("event.vm.usage", dict(data))
    assert {data["outcome"] for data in ended if data["final"]} == {"returned"}
    assert all("cpu" in data["vanished"] for data in ended)  # what it used before is nobody's


def test_a_cap_that_somebody_lifts_is_set_again(site: Site, theirs: Any) -> None:
    adopt(site, cpu_cap_core_percent=50)
    site.settle(lambda: is_ready(site) and site.world.records[VM].journal.limits_before is None)
    assert theirs.cpu == CpuLimit(100_000, 50_000)
    theirs.cpu = CpuLimit(100_000, -1)
    site.run(site.holder.hold())
    site.settle(lambda: theirs.cpu == CpuLimit(100_000, 50_000))
    assert [alert["kind"] for alert in site.alerts()] == ["cpu-drift"]


def test_without_one_its_own_cap_is_nobodys_business(site: Site, theirs: Any) -> None:
    theirs.cpu = CpuLimit(100_000, 70_000)
    adopt(site)
    site.settle(lambda: is_ready(site))
    site.host.done.clear()
    steps = site.reconciler.steps
    for _ in range(3):
        site.run(site.holder.hold(whole=True))
        site.settle(lambda: site.reconciler.idle())
    assert site.host.done == [] and site.reconciler.steps == steps


def test_what_cannot_be_tagged_is_foreign_again(site: Site, theirs: Any) -> None:
    site.host.fail[Do.CLAIM] = [Fault(FaultKind.REFUSED, "libvirt starts it at every boot")]
    adopt(site)
    site.settle(lambda: VM not in site.world.records)
    record = site.world.find(VM)
    assert record is not None and record.outcome is Outcome.FAILED
    assert "every boot" in record.reasons[-1].why and theirs.seen is Seen.RUNNING


def test_who_was_not_adopted_is_not_given_back(site: Site) -> None:
    with pytest.raises(Problem) as caught:
        disown(site, "nobody")
    assert caught.value.type == "not-found"
    assert audit(site)[0][:4] == ("disown", "local:root", "local", "refused")


def test_with_libvirt_away_nothing_is_promised(site: Site, theirs: Any) -> None:
    site.host.away = True
    with pytest.raises(Fault) as caught:
        adopt(site)
    assert caught.value.kind is FaultKind.AWAY and site.world.records == {}


def test_a_site_that_denies_what_nobody_endorsed_does_not_end_it(tmp_path: Path) -> None:
    """Nobody knows what it was started from."""
    policy = b.policy(trust=TrustPolicy(unendorsed="deny"), on_revoked="kill")
    for sites in lives(tmp_path, policy=policy):
        site = sites[0]
        theirs = site.host.theirs(VM, "db1")
        adopt(site)
        site.settle(lambda at=site: is_ready(at))
        record = site.world.records[VM]
        site.run(site.revoker.look())
        site.reconciler.mark(VM)
        site.settle(site.reconciler.idle)
        assert site.world.records[VM] == record and site.alerts() == []
        assert site.consequences.distrust(record.spec, site.host.now()) is None and theirs.seen is Seen.RUNNING
