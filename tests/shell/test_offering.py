"""host.capacity as it goes out: at a change, every few minutes, never older than it says, and as admission decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Mapping

from tests.shell.test_loop import started
from tests.support import building
from tests.support.site import Site, again, start_args
from vmagent.core import schemas
from vmagent.core.changes import PutSetting
from vmagent.core.model import Phase
from vmagent.core.policy import Authority
from vmagent.errors import Fault, FaultKind
from vmagent.offering import AGAIN_S


def published(site: Site) -> List[Mapping[str, Any]]:
    """Of the stream capacity alone: nothing of it goes among the events."""
    rows = [row for row in site.rows() if row.type == "org.vmagent.host.capacity"]
    assert {row.stream for row in rows} <= {"capacity"}
    for row in rows:
        schemas.check("event.host.capacity", row.data)
    return [row.data for row in rows]


def changed(site: Site) -> int:
    site.run(site.offering.changed())
    return len(published(site))


def test_a_change_is_published_and_nothing_else_until_it_is_time(site: Site) -> None:
    assert changed(site) == 1
    assert changed(site) == 1, "nothing has changed"
    started(site)
    assert changed(site) == 2
    assert published(site)[1]["vms"]["running"] == 1
    site.reactor.advance(AGAIN_S - 1)
    assert changed(site) == 2, "time alone is no news"
    site.reactor.advance(1)
    assert changed(site) == 3
    site.written_gib = 1
    assert changed(site) == 4


def test_what_is_published_as_possible_is_what_a_start_gets(site: Site) -> None:
    started(site, flavour="small", lifetime_s=7200)
    changed(site)
    (small,) = published(site)[-1]["flavours"]
    args = start_args(count=50, networks=[], lifetime_s=60)
    members = site.replies(site.send("vm.start", {**args, "dry_run": True}))[0]["result"]["members"]
    assert sum(1 for one in members if one["status"] == "done") == small["possible"] == 15
    refused = next(one["problem"] for one in members if one["status"] == "refused")
    assert [one["detail"] for one in small["reasons"]] == [refused["detail"]]


def test_how_long_starts_took_is_measured(site: Site) -> None:
    changed(site)
    assert published(site)[-1]["starts"]["median_s"] is None
    vm = started(site)
    changed(site)
    took = dict(site.world.records[vm].timings_ms)["resumed"] / 1000
    assert published(site)[-1]["starts"]["median_s"] == took


def test_a_restart_of_the_agent_forgets_no_start_of_today(sites: List[Site], tmp_path: Path) -> None:
    vm = started(sites[0])
    changed(sites[0])
    before = published(sites[0])[-1]["starts"]
    sites[0].send("vm.kill", {"vms": [vm]})
    sites[0].settle(lambda: vm not in sites[0].world.records)
    site = again(sites, tmp_path)
    changed(site)
    assert site.world.records == {} and published(site)[-1]["starts"] == before
    assert before["count"] == 1


def test_with_libvirt_away_it_says_what_is_old(site: Site) -> None:
    vm = started(site)
    changed(site)
    assert published(site)[-1]["stale"] == []
    site.host.away = True
    site.reconciler.mark_all()
    site.settle(lambda: site.phase(vm) is Phase.UNKNOWN)
    changed(site)
    data = published(site)[-1]
    assert [one["part"] for one in data["stale"]] == ["vms"]
    assert (data["vms"]["unknown"], data["vms"]["running"]) == (1, 0)


# ---- capacity.query and dry runs


def asked(site: Site, **args: Any) -> Mapping[str, Any]:
    (reply,) = site.replies(site.send("capacity.query", {"flavour": "small", **args}))
    assert reply["status"] == "done"
    return dict(reply["result"])


def test_a_query_is_answered_at_once_and_changes_nothing(site: Site) -> None:
    vm = started(site)
    before = site.world.records[vm]
    answer = asked(site, count=500)
    assert (answer["now"]["possible"], answer["enough"], answer["yours"]["holds"]["vms"]["running"]) == (15, False, 1)
    assert answer["yours"]["vo"] == "vo.example"
    assert site.world.records == {vm: before}


def test_a_query_on_the_topic_to_every_host_is_taken(site: Site) -> None:
    id = "00000000-0000-4000-8000-000000000001"
    site.run(site.intake.frame(site.body("capacity.query", {"flavour": "small"}, id, target="*"), True))
    assert site.replies(id)[0]["result"]["host"] == "wn017.site.example.org"


def test_who_may_not_ask_is_refused(site: Site) -> None:
    site.consequences.policy = building.policy(authority=(Authority(building.SIGNER, ("vm.*",)),))
    (reply,) = site.replies(site.send("capacity.query", {"flavour": "small"}))
    assert (reply["status"], reply["problem"]["type"]) == ("refused", "not-authorised")


def tried(site: Site, **args: Any) -> List[str]:
    (reply,) = site.replies(site.send("vm.start", start_args(dry_run=True, **args)))
    problem = reply.get("problem")
    return [] if problem is None else [one["type"] for one in (problem, *problem.get("also", ()))]


def test_a_dry_run_tells_all_the_reasons_of_authority_and_admission_together(site: Site) -> None:
    rows = (Authority(building.SIGNER, ("vm.start",), networks=("other",)),)
    site.consequences.policy = building.policy(authority=rows)
    site.run(site.world.transact(lambda: drained()))
    assert tried(site) == ["not-authorised", "drained"]
    assert tried(site, networks=[]) == ["drained"]
    real = site.replies(site.send("vm.start", start_args()))[0]["problem"]
    assert (real["type"], "also" in real) == ("not-authorised", False)


async def drained() -> Any:
    return (PutSetting("drained", True),), None


def test_a_stranger_to_the_table_is_told_nothing_of_the_host(site: Site) -> None:
    site.consequences.policy = building.policy(authority=(Authority("CN=somebody else", ("*",)),))
    assert tried(site, image={"id": "no-such"}) == ["not-authorised"]


def test_a_dry_run_that_would_be_taken_starts_nothing(site: Site) -> None:
    assert tried(site) == []
    assert site.world.records == {}


# ---- host.state


def states(site: Site) -> List[Mapping[str, Any]]:
    found = [row.data for row in site.rows() if row.type == "org.vmagent.host.state"]
    for data in found:
        schemas.check("event.host.state", data)
    return found


def test_host_state_says_whether_vms_start_here_and_time_alone_is_no_news(site: Site) -> None:
    site.run(site.announcer.state())
    vm = started(site)
    site.run(site.announcer.changed())
    site.reactor.advance(5.0)
    site.run(site.announcer.changed())
    assert [one["vms"]["running"] for one in states(site)] == [0, 1]
    site.send("host.drain", {})
    assert states(site)[-1]["serving"]["state"] == "draining"
    site.host.away = True
    site.reconciler.mark_all()
    site.settle(lambda: site.phase(vm) is Phase.UNKNOWN)
    site.run(site.announcer.changed())
    assert (states(site)[-1]["vms"]["unknown"], states(site)[-1]["stale"][0]["part"]) == (1, "vms")


# ---- what goes with it


def test_the_share_of_glue_travels_in_host_capacity_and_with_it_in_the_snapshot(site: Site) -> None:
    started(site)
    changed(site)
    (service,) = published(site)[-1]["glue"]["CloudComputingService"]
    assert (service["RunningVM"], service["OtherInfo"]["Hosts"]) == (1, ["wn017.site.example.org"])
    site.send("host.report", {})
    snapshot = [row.data for row in site.rows() if row.type == "org.vmagent.host.snapshot"][-1]
    schemas.check("event.host.snapshot", snapshot)
    assert snapshot["capacity"]["glue"]["CloudComputingService"] == [service]


def test_a_disk_that_cannot_be_read_hides_nothing_else_in_the_snapshot(site: Site) -> None:
    async def blind() -> Any:
        raise Fault(FaultKind.UNKNOWN, "the disk does not answer")

    site.announcer.capacity = blind
    site.run(site.announcer.snapshot())
    snapshot = [row.data for row in site.rows() if row.type == "org.vmagent.host.snapshot"][-1]
    schemas.check("event.host.snapshot", snapshot)
    assert snapshot["capacity"] is None and snapshot["host"]["alive"]


def test_a_query_in_the_words_of_occi(site: Site) -> None:
    vm = started(site)
    (reply,) = site.replies(site.send("vm.query", {"vms": [vm], "occi": True}))
    (resource,) = reply["result"]["resources"]
    assert (resource["id"], resource["attributes"]["occi.compute.state"]) == (vm, "active")
    (reply,) = site.replies(site.send("vm.query", {"vms": [vm], "occi": False}))
    assert [one["vm"] for one in reply["result"]["vms"]] == [vm]
