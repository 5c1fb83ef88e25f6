"""Disks beside a VM's own: which may be had, what they take, and that ready needs them (A7, R13)."""

from __future__ import annotations

import dataclasses
from typing import Any, List

import pytest

from tests.support import building as b
from tests.unit.test_admission import ROOM, start
from vmagent.core import codec, disks, events, schemas
from vmagent.core.admission import admit
from vmagent.core.model import Disk, Outcome, Seen
from vmagent.core.policy import Volume
from vmagent.errors import Problems

VOLUMES = {
    "data": Volume("data", "/srv/data.raw", writable=True),
    "ref": Volume("ref", "/srv/ref.raw"),
    "theirs": Volume("theirs", "/srv/theirs.raw", vos=("other.*",)),
}
POLICY = b.policy(volumes=VOLUMES)
WRITES, READS = Disk("volume", 2, volume="data"), Disk("volume", 2, volume="data", read_only=True)


def wish(*asked: Disk, **kw: Any):
    return b.record(spec=b.spec(command="0b6f4c1e-2222-4222-8333-444455556666", disks=asked, interfaces=()), **kw)


def admitted(asked: List[Any], records: Any = (), **kw: Any):
    return admit(start(disks=asked, **kw), POLICY, records, ROOM).specs


def types(asked: List[Any], records: Any = (), **kw: Any) -> List[str]:
    with pytest.raises(Problems) as caught:
        admitted(asked, records, **kw)
    return sorted(problem.type for problem in caught.value.problems)


def test_each_disk_has_its_place_and_its_serial() -> None:
    asked = [{"scratch_gib": 3}, {"volume": "ref", "read_only": True}, {"cdrom": "data"}]
    schemas.check("vm.start", {"image": {"id": "tiny"}, "flavour": "small", "lifetime_s": 60, "disks": asked})
    (spec,) = admitted(asked)
    assert spec.disks == (
        Disk("scratch", 2, size_gib=3), Disk("volume", 3, volume="ref", read_only=True),
        Disk("cdrom", 4, volume="data", read_only=True),
    )  # fmt: skip
    assert [disks.serial(disk) for disk in spec.disks] == ["scratch-c", "ref", "data"]
    assert codec.spec_from_json(codec.plain(spec)) == spec


@pytest.mark.parametrize(("asked", "problem"), [
    ({"volume": "none"}, "unknown-volume"),
    ({"cdrom": "none"}, "unknown-volume"),
    ({"volume": "ref"}, "volume-read-only"),
    ({"volume": "theirs", "read_only": True}, "not-authorised"),
])
def test_what_the_site_does_not_give(asked: Any, problem: str) -> None:
    assert types([asked]) == [problem]
    with pytest.raises(Problems) as caught:
        admitted([{"scratch_gib": 1}, asked])
    assert caught.value.problems[0].fields["path"] == "args.disks[1]"


@pytest.mark.parametrize(("held", "asked", "free"), [
    (READS, {"volume": "data", "read_only": True}, True),
    (READS, {"cdrom": "data"}, True),
    (READS, {"volume": "data"}, False),
    (WRITES, {"volume": "data", "read_only": True}, False),
    (WRITES, {"volume": "data"}, False),
])
def test_read_by_many_written_by_one(held: Disk, asked: Any, free: bool) -> None:
    other = wish(held)
    if free:
        assert admitted([asked], (other,))
    else:
        assert types([asked], (other,)) == ["volume-in-use"]
    assert admitted([asked], (dataclasses.replace(other, outcome=Outcome.FINISHED),))


def test_one_volume_twice_or_for_many_writers() -> None:
    assert types([{"volume": "data"}, {"volume": "data"}]) == ["volume-in-use"]
    assert types([{"volume": "data"}], count=2) == ["volume-in-use"]
    assert len(admitted([{"volume": "data", "read_only": True}], count=2)) == 2


def test_scratch_counts_against_what_is_free_and_what_is_allowed() -> None:
    with pytest.raises(Problems) as caught:
        admit(start(disks=[{"scratch_gib": 60}]), POLICY, (wish(Disk("scratch", 2, 50)),),
              dataclasses.replace(ROOM, disk_free_gib=100))
    (problem,) = caught.value.problems
    assert (problem.type, problem.fields["needed"]) == ("no-capacity", 62)
    assert problem.fields["free"] == 100 - POLICY.disk_floor_gib - 52
    assert types([{"scratch_gib": 99}]) == ["no-capacity", "over-limit"]


def test_a_kept_scratch_disk_is_still_promised() -> None:
    kept = dataclasses.replace(wish(Disk("scratch", 2, 50)), outcome=Outcome.FINISHED)
    room = dataclasses.replace(ROOM, disk_free_gib=60)
    with pytest.raises(Problems, match="no-capacity"):
        admit(start(disks=[{"scratch_gib": 10}]), POLICY, (kept,), room)


@pytest.mark.parametrize(("targets", "ready"), [
    (("vda", "vdb"), False), (("vda", "vdb", "vdc"), False), (("vda", "vdb", "vdc", "sdd"), True),
    (("xvda", "xvdb", "xvdc", "xvdd"), True),
])
def test_ready_needs_every_disk_in_the_live_domain(targets: Any, ready: bool) -> None:
    spec = b.spec(interfaces=(), disks=(Disk("scratch", 2, 1), Disk("cdrom", 3, volume="ref", read_only=True)))
    record = b.record(spec=spec, journal=b.ran())
    assert events.is_ready(record, b.observed(Seen.RUNNING, spec, disks=targets)) is ready


def test_its_state_names_them_and_no_path() -> None:
    spec = b.spec(disks=(WRITES, Disk("scratch", 3, 5)))
    data = events.vm_state(b.record(spec=spec), b.observed(Seen.RUNNING, spec), b.now(), POLICY)
    schemas.check("event.vm.state", data)
    assert data["disks"] == [
        {"kind": "volume", "size_gib": 0, "volume": "data", "read_only": False, "serial": "data"},
        {"kind": "scratch", "size_gib": 5, "volume": "", "read_only": False, "serial": "scratch-d"},
    ]
    assert "/srv" not in codec.canonical(data)
