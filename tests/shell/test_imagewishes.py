"""What is wanted of the image cache: fetched, evicted, pinned, each by command, with one answer, whatever crashes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping

import pytest

from tests.shell.test_loop import started
from tests.support import building
from tests.support.site import Site, again, lives, start_args
from vmagent.core import imageviews, imagewishes, schemas
from vmagent.core.commands import Signer
from vmagent.core.identity import vm_id
from vmagent.core.model import Phase
from vmagent.core.policy import Authority, CatalogueImage, Policy, TrustPolicy
from vmagent.errors import Fault, FaultKind
from vmagent.imagekeeping import LOOK_S
from vmagent.imageparts import wished
from vmagent.reconciler import OWED_LOOK_S

FAR, OTHER = "cd" * 64, "ef" * 64
FROM = "https://images.example.org/"
GIB = 2**30


def policy(**kw: Any) -> Policy:
    """Two images of the site's own are fetched, and what a request names below one place."""
    known = building.policy()
    images = {**known.images, **{id: CatalogueImage(id, "", "qcow2", sha512, url=f"{FROM}{id}", size=GIB)
                                 for id, sha512 in (("far", FAR), ("other", OTHER))}}
    members: Dict[str, Any] = {"authority": (Authority(building.SIGNER, ("*",), scope="all"),), "images": images,
                               "trust": TrustPolicy("request"), "image_requests": (FROM,), **kw}
    return building.policy(**members)


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[List[Site]]:
    yield from lives(tmp_path, policy=policy())


@pytest.fixture
def site(sites: List[Site]) -> Site:
    sites[0].host.fetches = True
    return sites[0]


def replies(site: Site, id: str) -> List[Mapping[str, Any]]:
    found = site.replies(id)
    for reply in found:
        schemas.check("reply", reply)
    return found


def last(site: Site, id: str) -> Mapping[str, Any]:
    return replies(site, id)[-1]


def fetched(site: Site, **args: Any) -> Mapping[str, Any]:
    """Asked for, and here."""
    id = site.send("image.fetch", args or {"id": "far"})
    site.host.shelf.fetched(args.get("sha512", FAR))
    site.settle(lambda: last(site, id)["status"] == "done")
    return last(site, id)


def listed(site: Site, id: str) -> Mapping[str, Any]:
    (found,) = [one for one in last(site, site.send("image.list", {}))["result"]["images"] if one["id"] == id]
    schemas.check("event.image.state", found)
    return dict(found)


def refused(site: Site, verb: str, **args: Any) -> Mapping[str, Any]:
    reply = last(site, site.send(verb, args))
    assert reply["status"] == "refused", reply
    return dict(reply["problem"])


def passes(site: Site, seconds: float) -> None:
    """Boot time goes by."""
    ends = site.reactor.seconds() + seconds
    site.settle(lambda: site.reactor.seconds() >= ends)


# -- fetching


def test_a_fetch_is_accepted_tells_how_far_it_is_and_ends_when_the_file_is_here(site: Site) -> None:
    id = site.send("image.fetch", {"id": "far"})
    shelf = site.host.shelf
    assert shelf.downloads()[0].waiting == (id,)
    for share in (5, 31, 34, 99):
        shelf.progress[FAR] = GIB * share // 100 + 1
        passes(site, 2 * LOOK_S)
    shelf.fetched(FAR)
    site.settle(lambda: last(site, id)["status"] == "done")
    told = [(one["status"], (one["result"].get("fetch") or {}).get("percent")) for one in replies(site, id)]
    assert told == [("accepted", None), ("accepted", 0), ("accepted", 30), ("accepted", 90), ("done", None)]
    result = last(site, id)["result"]
    assert (result["image"]["id"], result["image"]["sha512"], result["cached"]["size"]) == ("far", FAR, GIB)
    assert site.keeper._waiting is None and id not in site.world.pending
    assert not shelf.asking


def test_what_is_here_already_and_a_file_of_the_site_s_own_are_done_at_once(site: Site) -> None:
    fetched(site)
    assert last(site, site.send("image.fetch", {"id": "far"}))["result"]["cached"]["sha512"] == FAR
    own = last(site, site.send("image.fetch", {"id": "tiny"}))
    assert (own["status"], own["result"]["cached"]) == ("done", None)
    assert site.host.shelf.downloads() == ()


def test_an_image_that_the_command_describes(site: Site) -> None:
    described = {"url": f"{FROM}x", "sha512": "12" * 64, "format": "raw", "size": 4096}
    assert fetched(site, **described)["result"]["image"]["url"] == f"{FROM}x"
    kept = listed(site, f"sha512-{'12' * 8}")
    assert (kept["source"], kept["cached"]["size"]) == ("gone", GIB)
    assert refused(site, "image.fetch", **{**described, "url": "https://elsewhere.example.org/x"})["path"] == "args.url"


def test_what_cannot_be_had_fails_with_its_reason(site: Site) -> None:
    id = site.send("image.fetch", {"id": "far"})
    site.host.shelf.fetched(FAR, Fault(FaultKind.REFUSED, "image-digest: other bytes than were asked for"))
    site.settle(lambda: last(site, id)["status"] == "failed")
    assert last(site, id)["problem"]["type"] == "image-not-fetched"
    assert "other bytes" in last(site, id)["problem"]["detail"]
    assert site.keeper._waiting is None


def test_what_may_pass_is_tried_again_and_told_meanwhile(site: Site) -> None:
    id = site.send("image.fetch", {"id": "far"})
    site.host.shelf.fetched(FAR, Fault(FaultKind.BUSY, "the server says 503"))
    site.settle(lambda: last(site, id)["result"].get("why") == "the server says 503")
    assert last(site, id)["status"] == "accepted"
    site.settle(lambda: bool(site.host.shelf.downloads()))
    site.host.shelf.fetched(FAR)
    site.settle(lambda: last(site, id)["status"] == "done")


def test_it_is_bounded_in_time_and_number(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    id = site.send("image.fetch", {"id": "far", "fetch_by_s": 30})
    site.settle(lambda: last(site, id)["status"] == "failed", 40)
    assert last(site, id)["problem"]["type"] == "image-late"
    assert site.host.shelf.downloads() == ()
    monkeypatch.setattr(imagewishes, "MOST_FETCHES", 1)
    site.send("image.fetch", {"id": "far"})
    assert refused(site, "image.fetch", id="other")["maximum"] == 1


def test_an_image_that_is_not_trusted_is_refused_and_one_that_loses_its_trust_is_given_up(site: Site) -> None:
    id = site.send("image.fetch", {"id": "far"})
    site.send("image.revoke", {"id": "far"}, reason="a back door")
    site.settle(lambda: last(site, id)["status"] == "failed")
    assert last(site, id)["problem"]["type"] == "image-revoked"
    assert site.host.shelf.downloads() == ()
    assert refused(site, "image.fetch", id="far")["type"] == "image-revoked"
    site.consequences.policy = policy(trust=TrustPolicy("deny"))
    assert refused(site, "image.fetch", id="other")["type"] == "image-unendorsed"
    assert refused(site, "image.fetch", id="nowhere")["path"] == "args.id"


@pytest.mark.parametrize("args", [
    {}, {"id": "far", "sha512": FAR}, {"url": f"{FROM}x"}, {"url": "http://a/b", "sha512": FAR, "format": "raw"},
    {"id": "far", "fetch_by_s": 0}, {"id": "far", "pin": True},
])  # fmt: skip
def test_what_makes_no_sense_is_refused(site: Site, args: Mapping[str, Any]) -> None:
    assert refused(site, "image.fetch", **args)["type"] == "schema"


def test_killed_while_it_fetches_its_successor_goes_on_and_answers(sites: List[Site], site: Site,
                                                                   tmp_path: Path) -> None:
    id = site.send("image.fetch", {"id": "far"})
    site.host.shelf.fetching.clear()  # the process died, and with it the download
    site.host.shelf.asking.clear()
    second = again(sites, tmp_path, policy=policy())
    assert second.host.shelf.downloads()[0].waiting == (id,)
    assert FAR in wished(second.world), "nobody evicts it before that is told"
    second.host.shelf.fetched(FAR)
    second.settle(lambda: last(second, id)["status"] == "done")
    assert FAR not in wished(second.world)


def test_killed_before_its_answer_it_is_answered_once(sites: List[Site], site: Site, tmp_path: Path) -> None:
    id = site.send("image.fetch", {"id": "far"})
    site.keeper.stop()
    site.host.shelf.fetched(FAR)
    second = again(sites, tmp_path, policy=policy())
    second.settle(lambda: last(second, id)["status"] == "done")
    second.run(second.keeper.work())
    assert [one["status"] for one in replies(second, id)].count("done") == 1


def test_sent_again_it_is_told_how_far_it_is(site: Site) -> None:
    id = "6f1c2f9e-0000-4000-8000-000000000001"
    body = site.body("image.fetch", {"id": "far"}, id)
    site.run(site.intake.frame(body, False))
    site.host.shelf.progress[FAR] = GIB // 2
    site.settle(lambda: (last(site, id)["result"].get("fetch") or {}).get("percent") == 50)
    told = last(site, id)
    site.run(site.intake.frame(body, False))
    assert replies(site, id)[-2:] == [told, told]


def test_a_start_tells_how_far_its_image_is_in_tens(site: Site) -> None:
    site.send("image.pin", {"id": "far"})
    vm = vm_id(site.send("vm.start", start_args(image={"id": "far"})), 0)
    site.settle(lambda: bool(site.host.shelf.downloads()))
    for share in (5, 31, 34, 99):
        site.host.shelf.progress[FAR] = GIB * share // 100 + 1
        passes(site, 2 * OWED_LOOK_S)
    site.host.shelf.fetched(FAR)
    site.settle(lambda: site.phase(vm) is Phase.READY)
    told = site.states(vm)
    for one in told:
        schemas.check("event.vm.state", one)
    assert [one["fetch"]["percent"] for one in told if one["fetch"]] == [0, 30, 90]
    assert all(one["phase"] == "fetching" for one in told if one["fetch"]) and told[-1]["fetch"] is None


def test_one_download_for_a_vm_and_a_command(site: Site) -> None:
    vm = vm_id(site.send("vm.start", start_args(image={"id": "far"})), 0)
    id = site.send("image.fetch", {"id": "far"})
    site.settle(lambda: site.host.shelf.downloads()[0].waiting == tuple(sorted([vm, id])))
    seen = imageviews.downloads(site.host.shelf.downloads(), site.world.records, site.world.pending, site.host.now())
    (view,) = seen["downloads"]
    assert (view["id"], view["total"], view["percent"], view["step"]) == ("far", GIB, 0, "fetching")
    whom = [{"vm": vm, "name": "worker", "owner": building.USER}, {"command": id, "by": building.SIGNER}]
    assert sorted(view["for"], key=str) == sorted(whom, key=str)
    site.host.shelf.fetched(FAR)
    site.settle(lambda: last(site, id)["status"] == "done" and site.phase(vm) is Phase.READY)


def test_on_the_local_socket_the_same_command_again_tells_the_newest_reply(site: Site) -> None:
    """What `vmagentctl images fetch --wait` lives on."""
    wall = site.host.now().wall
    payload = {"schema": "image.fetch/1", "id": "6f1c2f9e-0000-4000-8000-000000000002", "args": {"id": "far"},
               "issued_at": wall, "valid_until": "2026-11-20T13:30:00.000Z", "target": site.consequences.policy.host}

    def asked() -> Mapping[str, Any]:
        reply: Mapping[str, Any] = site.run(site.intake.local(payload, Signer("local:root")))
        return reply

    assert asked()["status"] == "accepted"
    site.host.shelf.progress[FAR] = GIB // 2
    site.settle(lambda: (asked()["result"].get("fetch") or {}).get("percent") == 50)
    site.host.shelf.fetched(FAR)
    site.settle(lambda: asked()["status"] == "done")
    assert asked()["result"]["cached"]["size"] == GIB
    assert replies(site, payload["id"]) == [], "who asks locally is answered locally"


# -- evicting


def test_a_file_is_evicted_and_that_is_published(site: Site) -> None:
    site.run(site.announcer.snapshot())
    fetched(site)
    id = site.send("image.evict", {"id": "far"})
    site.settle(lambda: last(site, id)["status"] == "done")
    assert [one["status"] for one in replies(site, id)] == ["accepted", "done"]
    assert not site.host.shelf.cached and listed(site, "far")["cached"] is None
    assert refused(site, "image.evict", sha512=FAR)["type"] == "image-not-cached"
    told = [row.data for row in site.rows() if row.type == "org.vmagent.image.state"]
    assert [(one["id"], one["cached"] is not None) for one in told] == [("far", True), ("far", False)]


def test_not_while_a_vm_uses_it_which_is_named(site: Site) -> None:
    fetched(site)
    vm = vm_id(site.send("vm.start", start_args(image={"id": "far"})), 0)
    site.settle(lambda: site.phase(vm) is Phase.READY)
    problem = refused(site, "image.evict", id="far")
    assert problem["type"] == "image-in-use" and vm in problem["detail"]
    assert problem["vms"] == [{"vm": vm, "name": "worker", "owner": building.USER}]
    site.send("vm.kill", {"vms": [vm]})
    site.settle(lambda: vm not in site.world.records)
    id = site.send("image.evict", {"id": "far"})
    site.settle(lambda: last(site, id)["status"] == "done")


def test_a_file_that_something_unknown_stands_on_stays(site: Site) -> None:
    fetched(site)
    busy = Fault(FaultKind.BUSY, "a VM stands on it")
    site.host.shelf.evict_faults = [busy]
    id = site.send("image.evict", {"id": "far"})
    site.settle(lambda: last(site, id)["status"] == "failed")
    assert last(site, id)["problem"]["type"] == "image-in-use"


def test_an_eviction_takes_back_a_fetch(site: Site) -> None:
    fetch = site.send("image.fetch", {"id": "far"})
    evict = site.send("image.evict", {"id": "far"})
    site.settle(lambda: last(site, evict)["status"] == "done")
    assert (last(site, fetch)["status"], last(site, fetch)["problem"]["type"]) == ("failed", "superseded")
    assert site.host.shelf.downloads() == ()


def test_what_was_taken_back_is_not_answered_again(site: Site) -> None:
    """The look that found the file and the eviction that came first: one last reply."""
    fetch = site.send("image.fetch", {"id": "far"})
    (row,) = site.world.pending.values()
    site.keeper.stop()
    site.send("image.evict", {"id": "far"})
    site.host.shelf.fetched(FAR)
    assert site.run(site.keeper._settle(row, imagewishes.done(row, site.host.shelf.cached[FAR]))) is False
    assert [one["status"] for one in replies(site, fetch) if one["status"] != "accepted"] == ["failed"]


def test_killed_before_it_was_evicted_its_successor_does_it(sites: List[Site], site: Site, tmp_path: Path) -> None:
    fetched(site)
    site.keeper.stop()
    id = site.send("image.evict", {"id": "far"})
    assert site.host.shelf.cached
    second = again(sites, tmp_path, policy=policy())
    second.settle(lambda: last(second, id)["status"] == "done")
    assert not second.host.shelf.cached


# -- pinning


def test_a_pin_outlives_a_restart_and_keeps_the_file(sites: List[Site], site: Site, tmp_path: Path) -> None:
    fetched(site)
    assert last(site, site.send("image.pin", {"id": "far"}, reason="every morning"))["status"] == "done"
    second = again(sites, tmp_path, policy=policy())
    pinned = listed(second, "far")["pinned"]
    assert (pinned["by"], pinned["why"]) == (building.SIGNER, "every morning")
    assert FAR in wished(second.world)
    problem = refused(second, "image.evict", id="far")
    assert problem["type"] == "image-pinned" and "every morning" in problem["detail"]
    again_pinned = last(second, second.send("image.pin", {"sha512": FAR}, reason="another"))
    assert again_pinned["result"]["pinned"]["why"] == "every morning"
    assert last(second, second.send("image.unpin", {"sha512": FAR}))["status"] == "done"
    assert listed(second, "far")["pinned"] is None and FAR not in wished(second.world)
    assert last(second, second.send("image.unpin", {"sha512": FAR}))["status"] == "done"


def test_a_pin_may_come_before_its_file_but_not_for_what_nobody_knows(site: Site) -> None:
    assert last(site, site.send("image.pin", {"id": "far"}))["status"] == "done"
    assert refused(site, "image.pin", sha512="34" * 64)["type"] == "unknown-image"
    assert refused(site, "image.pin", id="tiny")["type"] == "image-not-cached"
    site.consequences.policy = dataclasses.replace(policy(), images={})
    assert listed(site, "far")["source"] == "gone", "a pin is told of as long as it holds"


def test_pins_are_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagewishes, "MOST_PINS", 1)
    site.send("image.pin", {"id": "far"})
    assert refused(site, "image.pin", id="other")["type"] == "image-limit"


def test_one_name_for_several_images_is_asked_back(site: Site) -> None:
    started_from = vm_id(site.send("vm.start", start_args(image={"id": "far"})), 0)
    site.consequences.policy = policy(images={"far": CatalogueImage("far", "", "qcow2", OTHER, url=f"{FROM}far")})
    assert started_from in site.world.records
    assert refused(site, "image.pin", id="far")["accepted"] == [FAR, OTHER]


def test_who_may_not_act_on_everybody_s_may_fetch_and_not_evict(site: Site) -> None:
    site.consequences.policy = policy(authority=(Authority(building.SIGNER, ("*",), scope="own"),))
    assert last(site, site.send("image.fetch", {"id": "far"}))["status"] == "accepted"
    for verb in ("image.evict", "image.pin", "image.unpin"):
        assert refused(site, verb, id="far")["type"] == "not-authorised"


def test_the_last_use_of_a_file_is_shown_and_publishes_nothing(site: Site) -> None:
    fetched(site)
    site.run(site.announcer.snapshot())
    before = len(site.rows())
    shelf = site.host.shelf
    shelf.cached[FAR] = dataclasses.replace(shelf.cached[FAR], last_used_wall=building.WALL)
    assert listed(site, "far")["cached"]["last_used"] == building.WALL
    site.run(site.announcer.changed())
    assert [row for row in site.rows()[before:] if row.type == "org.vmagent.image.state"] == []
    assert started(site)
