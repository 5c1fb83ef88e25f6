"""What this host's driver lacks, from the frame to the refusal: nothing of it is stored but the refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator

import pytest

from tests.shell.test_loop import started
from tests.support import building
from tests.support.site import Site, start_args
from vmagent.core.drivers import PROFILES
from vmagent.core.policy import Volume
from vmagent.core.snapshotmodel import SnapshotRules

XEN = PROFILES["xen-hvm"]
ABLE: Dict[str, Any] = {name: getattr(XEN, name) for name in ("disk_io", "live_disks", "snapshots", "quiesce")}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    volumes = {"data": Volume("data", "/d", writable=True)}
    made = Site(tmp_path, policy=building.policy(snapshots=SnapshotRules(allowed=True), volumes=volumes))
    made.able = {**ABLE, "guests": ("xen-hvm",)}
    yield made
    made.stop()


@pytest.mark.parametrize(("verb", "args", "capability"), [
    ("vm.limits", {"disk_io": {"read_ops_per_s": 100}}, "disk_io"),
    ("vm.attach", {"volume": "data"}, "live_disks"),
    ("vm.detach", {"volume": "data"}, "live_disks"),
    ("vm.snapshot", {"name": "s"}, "snapshots"),
    ("vm.snapshot", {"name": "s", "kind": "full"}, "snapshots"),
    ("vm.snapshot.delete", {"name": "s"}, "snapshots"),
    ("vm.revert", {"snapshot": "s"}, "snapshots.revert"),
])
def test_nothing_is_stored_of_what_this_host_cannot_do(site: Site, verb: str, args: Any, capability: str) -> None:
    vm = started(site)
    before = site.world.records[vm]
    (reply,) = site.replies(site.send(verb, {"vms": [vm], **args}))
    assert (reply["status"], reply["problem"]["type"]) == ("refused", "not-supported-here")
    assert reply["problem"]["capability"] == capability
    assert site.world.records[vm] == before
    assert not site.world.pending


def test_nor_of_a_start(site: Site) -> None:
    (reply,) = site.replies(site.send("vm.start", start_args(disk_io={"read_ops_per_s": 100})))
    assert (reply["status"], reply["problem"]["capability"]) == ("refused", "disk_io")
    assert not site.world.records


def test_what_it_can_do_it_does(site: Site) -> None:
    vm = started(site)
    (reply,) = site.replies(site.send("vm.limits", {"vms": [vm], "cpu_cap_core_percent": 40}))
    assert reply["status"] == "accepted"
