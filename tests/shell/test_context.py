"""What a user gives a guest, from the frame to the seed and to its end: nothing is lost, and nothing comes out."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path
from typing import Any, Dict, List

import pytest
from twisted.internet.defer import succeed

from tests.support.site import Site, again, start_args
from vmagent.core.codec import canonical
from vmagent.core.identity import vm_id
from vmagent.core.model import Phase

SECRET = b"hunter2-hunter2-hunter2"
DATA = b"#cloud-config\n# " + SECRET * 1500  # several pages of the store
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO3B0yC6l0yX8pQ3ZVtCzXb5b7m8m7l6pY8m4bJ8m2bJ secret-comment"
GIVEN: Dict[str, Any] = {"user_data": base64.b64encode(DATA).decode(), "ssh_keys": [KEY],
                         "meta_data": {"pin": "secret-pin"}}  # fmt: skip
# 23 bytes in a row: every alignment of base64 of the repeated secret is in the first 64 characters of one period
NEEDLES = [SECRET, GIVEN["user_data"][200:264].encode(), b"secret-comment", b"secret-pin", KEY.split()[1].encode()]


def ready(site: Site, vm: str) -> None:
    site.settle(lambda: site.phase(vm) is Phase.READY)


def ended(site: Site, vm: str) -> None:
    site.send("vm.kill", {"vms": [vm]})
    site.settle(lambda: vm not in site.world.records)


def on_disk(folder: Path) -> List[bytes]:
    """What of the needles any file of the store holds."""
    content = b"".join(file.read_bytes() for file in folder.iterdir())
    return [needle for needle in NEEDLES if needle in content]


def test_a_crash_before_the_seed_loses_nothing(sites: List[Site], tmp_path: Path) -> None:
    id = sites[-1].send("vm.start", start_args(**GIVEN))
    vm = vm_id(id, 0)
    assert vm not in sites[-1].host.seeds
    site = again(sites, tmp_path)
    ready(site, vm)
    files = site.host.seeds[vm]
    assert files["user-data"] == DATA
    assert KEY.encode() in files["meta-data"] and b"secret-pin" in files["meta-data"]
    assert b"lease_s 3600\n" in files["facts"]


def test_every_member_gets_it(sites: List[Site]) -> None:
    site = sites[-1]
    id = site.send("vm.start", start_args(count=3, **GIVEN))
    for member in range(3):
        ready(site, vm_id(id, member))
        assert site.host.seeds[vm_id(id, member)]["user-data"] == DATA


def test_made_anew_it_gets_the_same_again_as_another_instance(sites: List[Site]) -> None:
    site = sites[-1]
    id = site.send("vm.start", start_args(**GIVEN))
    vm = vm_id(id, 0)
    ready(site, vm)
    before = site.host.seeds.pop(vm)
    site.send("vm.restart", {"vms": [vm]})
    site.settle(lambda: vm in site.host.seeds and site.phase(vm) is Phase.READY)
    after = site.host.seeds[vm]
    assert after["user-data"] == before["user-data"] == DATA
    ids = [json.loads(files["meta-data"])["instance-id"] for files in (before, after)]
    assert ids == [vm, f"{vm}-1"]
    assert b"lease_began_at" in after["facts"] and b"lease_began_at" not in before["facts"]


def told(site: Site, id: str) -> str:
    """Everything that anybody could read of a command, beside the store's own row."""
    feed = site.feed
    row = site.wait(site.store.command(id))
    tags = [world.tag for world in site.host.worlds.values()]
    records = [*site.world.records.values(), *site.world.recent.values()]
    audit = site.wait(site.store.audit(1000, ""))
    return canonical([[r.data for r in site.rows()], audit, row, tags, records, feed.recent(500)]) + repr(records)


def test_nothing_secret_comes_out_and_nothing_is_left(
    sites: List[Site], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    site = sites[-1]
    id = site.send("vm.start", start_args(count=2, **GIVEN))
    first, second = vm_id(id, 0), vm_id(id, 1)
    for vm in (first, second):
        ready(site, vm)
    site.send("vm.query", {"vms": [first]})
    site.send("host.report", {})
    assert NEEDLES[1] in on_disk(tmp_path), "the search finds what is there"
    ended(site, first)
    assert NEEDLES[1] in on_disk(tmp_path), "the second guest may need it yet"
    ended(site, second)
    assert on_disk(tmp_path) == []
    assert site.wait(site.store.context(id)) is None
    text = told(site, id) + caplog.text
    assert [needle for needle in NEEDLES if needle.decode() in text] == []


def test_a_refused_start_leaves_no_secret_either(
    sites: List[Site], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    site = sites[-1]
    wrong = [
        {"image": {"id": "none"}},
        {"ssh_keys": [KEY, "secret-comment"]},
        {"user_data": "secret-comment"},
        {"meta_data": {"instance-id": "secret-pin"}},
        {"user_data": 5, "meta_data": {"pin": ["secret-pin"]}},
        {"dry_run": True},
    ]
    for more in wrong:
        id = site.send("vm.start", start_args(**{**GIVEN, **more}))
        assert site.replies(id)[-1]["status"] == ("done" if "dry_run" in more else "refused")
        text = canonical([[r.data for r in site.rows()], site.wait(site.store.audit(1000, ""))]) + caplog.text
        assert [needle for needle in NEEDLES if needle.decode() in text] == []
        assert on_disk(tmp_path) == []


def test_a_crash_after_the_end_is_scrubbed_at_the_next_start(sites: List[Site], tmp_path: Path) -> None:
    """The commit that forgot it is there, the emptying of the log is not."""
    site = sites[-1]
    database: Any = site.store._database
    scrub, database._scrub = database._scrub, lambda: None
    id = site.send("vm.start", start_args(**GIVEN))
    ready(site, vm_id(id, 0))
    ended(site, vm_id(id, 0))
    assert on_disk(tmp_path) != []
    database._scrub = scrub
    again(sites, tmp_path)
    assert on_disk(tmp_path) == []


def test_without_its_context_a_guest_is_not_started(sites: List[Site]) -> None:
    site = sites[-1]
    site.host.contexts = lambda command: succeed(None)
    id = site.send("vm.start", start_args(**GIVEN))
    site.settle(lambda: len(site.replies(id)) == 2)
    assert site.replies(id)[1]["status"] == "failed"
    assert site.host.worlds[vm_id(id, 0)].boots == 0
