"""Data volumes under ports.Hypervisor: from the start and live, of a path and of a storage pool; who excludes whom."""

from __future__ import annotations

import dataclasses
import subprocess
import uuid
from typing import Any, Iterator, Tuple

import pytest

from tests.support import bootsector, hypervisor, libvirtd
from vmagent.core import disks
from vmagent.core.actions import Do
from vmagent.core.model import Disk, DiskSeen, Seen, VmSpec
from vmagent.errors import Fault, FaultKind

WITH_PORTS = ["fake", pytest.param("qemu", marks=libvirtd.needed)]
live = pytest.mark.parametrize("rig", WITH_PORTS, indirect=True)
"""Drivers that attach a disk to a guest that runs."""


@pytest.fixture
def ejecting(request: Any) -> Iterator[Any]:
    """Guests that let go of a device when they are asked to."""
    uri = request.getfixturevalue("qemu_uri") if request.param == "qemu" else ""
    yield from hypervisor.begun(hypervisor.qemu(uri, boot=bootsector.EJECTS) if uri else hypervisor.fake())


def wish(spec: VmSpec, *disks: Disk) -> VmSpec:
    """The same VM, with these volumes."""
    return dataclasses.replace(spec, disks=disks)


def running(rig: Any, *disks: Disk) -> VmSpec:
    spec = wish(rig.spec(), *disks)
    rig.begin(spec, Do.RESUME)
    return spec


def attached(rig: Any, spec: VmSpec, disk: Disk) -> VmSpec:
    spec = wish(spec, *spec.disks, disk)
    rig.do(Do.ATTACH_DISK, spec, disk=disk)
    return spec


def fault(rig: Any, do: Do, spec: VmSpec, disk: Any = None) -> Fault:
    with pytest.raises(Fault) as caught:
        rig.do(do, spec, disk=disk)
    return caught.value


def path(rig: Any, disk: Disk) -> str:
    return str(rig.volumes.sources[disk.volume].path)


@pytest.mark.parametrize("ejecting", WITH_PORTS, indirect=True)
def test_it_comes_and_goes_each_twice_as_once(ejecting: Any) -> None:
    rig, disk = ejecting, ejecting.volume("data", 4)
    spec = running(rig)
    for _ in range(2):
        spec = wish(spec)
        attached(rig, spec, disk)
        assert rig.see(spec).disks == ("vda", "vdb", "vde")
    for _ in range(2):
        rig.loop.until(lambda: let_go(rig, spec, disk), 30, "the guest lets go")
        assert rig.see(spec).disks == ("vda", "vdb")
    attached(rig, running(rig), disk)  # and another guest gets it


def let_go(rig: Any, spec: VmSpec, disk: Disk) -> bool:
    """Asked for once more; True when it is gone."""
    try:
        rig.do(Do.DETACH_DISK, spec, disk=disk)
    except Fault as told:
        assert told.kind is FaultKind.UNKNOWN
        return False
    return True


@live
def test_a_guest_that_does_not_let_go_is_an_outcome_nobody_knows(rig: Any) -> None:
    """It has no operating system that could: what was asked for is told as not done, and asked again."""
    disk = rig.volume("data")
    spec = attached(rig, running(rig), disk)
    if rig.disks is None:
        rig.port.deaf.add(spec.vm)
    for _ in range(2):
        assert fault(rig, Do.DETACH_DISK, spec, disk).kind is FaultKind.UNKNOWN
        assert rig.see(spec).disks == ("vda", "vdb", "vdc")
    assert (rig.see(spec).seen, rig.port.stuck()) == (Seen.RUNNING, frozenset())
    rig.do(Do.DESTROY, spec)
    rig.do(Do.DETACH_DISK, spec, disk=disk)  # nobody has it any more


@live
@pytest.mark.parametrize("read_only", [True, False])
def test_read_only_is_read_only_for_qemu_itself(rig: Any, read_only: bool) -> None:
    first, second = rig.volume("first", 2, read_only), rig.volume("second", 3, read_only)
    spec = attached(rig, running(rig, first), second)
    for disk in (first, second):
        ways = rig.outside.opened(spec.vm, path(rig, disk))
        assert ways and set(ways) == {read_only}, disk.volume


@live
@pytest.mark.parametrize(("holder", "asker"), [(False, False), (False, True), (True, False)])
def test_who_writes_has_it_alone_even_when_nobody_asked_the_agent(rig: Any, holder: bool, asker: bool) -> None:
    """The last line of defence: QEMU holds a lock.  It is not there, nothing happened to the one who has it."""
    has = running(rig, rig.volume("data", 2, holder))
    wants = rig.volume("data", 2, asker)
    other = running(rig)
    assert fault(rig, Do.ATTACH_DISK, wish(other, wants), wants).kind is FaultKind.REFUSED
    assert rig.see(other).disks == ("vda", "vdb")
    third = wish(rig.spec(), wants)
    rig.do(Do.DEFINE, third)
    assert fault(rig, Do.START_PAUSED, third).kind is not FaultKind.REFUSED  # asked again: the other one may end
    assert rig.see(third).seen is Seen.OFF
    assert (rig.see(has).seen, rig.see(other).seen) == (Seen.RUNNING, Seen.RUNNING)
    rig.do(Do.DESTROY, has)
    rig.do(Do.START_PAUSED, third)
    assert rig.see(third).disks == ("vda", "vdb", "vdc")


@live
def test_readers_share(rig: Any) -> None:
    disk = rig.volume("data", 2, True)
    running(rig, disk)
    attached(rig, running(rig), disk)


def test_what_is_in_it_is_told_with_its_serial(rig: Any) -> None:
    spec = running(rig, rig.volume("writes", 2), rig.volume("reads", 3, True))
    assert rig.see(spec).disks_seen[2:] == (DiskSeen("vdc", "writes"), DiskSeen("vdd", "reads", True))


@live
def test_a_place_that_somebody_else_took_is_not_taken_and_stays(rig: Any) -> None:
    theirs, ours = rig.volume("theirs"), rig.volume("ours")
    spec = running(rig, theirs)
    assert fault(rig, Do.ATTACH_DISK, wish(spec, ours), ours).kind is FaultKind.REFUSED
    rig.do(Do.DETACH_DISK, wish(spec), disk=ours)
    assert rig.see(spec).disks == ("vda", "vdb", "vdc")


@libvirtd.needed
@pytest.mark.parametrize("rig", ["qemu"], indirect=True)
def test_what_qemu_s_user_may_not_open_is_refused_and_tells_why(rig: Any) -> None:
    if subprocess.run(["id", "-u", "libvirt-qemu"], capture_output=True, check=False).returncode:
        pytest.skip("QEMU may run as root here")
    disk = rig.volume("closed", mode=0o600)
    spec = running(rig)
    told = fault(rig, Do.ATTACH_DISK, wish(spec, disk), disk)
    assert told.kind is FaultKind.REFUSED and "Permission denied" in told.detail
    assert rig.see(spec).disks == ("vda", "vdb")


@libvirtd.needed
@pytest.mark.parametrize("rig", ["qemu"], indirect=True)
def test_what_is_not_wished_for_any_more_is_not_attached(rig: Any) -> None:
    spec, disk = running(rig), rig.volume("data")
    assert fault(rig, Do.ATTACH_DISK, spec, disk).kind is FaultKind.UNKNOWN
    assert rig.see(spec).disks == ("vda", "vdb")


@libvirtd.needed
@pytest.mark.parametrize("rig", ["qemu"], indirect=True)
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_there_is_a_place_for_every_disk_that_may_be_attached(rig: Any, machine: str) -> None:
    hypervisor.on_machine(rig, machine)
    spec = running(rig)
    for place in range(disks.FIRST_PLACE, disks.FIRST_PLACE + disks.MOST):
        spec = attached(rig, spec, rig.volume(f"v{place}", place))
    assert len(rig.see(spec).disks) == 2 + disks.MOST


# -- of storage pools


def pool(rig: Any, **kw: Any) -> Tuple[str, Disk]:
    """A pool with one volume in it, and that volume as the site names it."""
    name = f"vmagent-test-{uuid.uuid4()}"
    rig.outside.pool(name, "v.raw", **kw)
    return name, rig.pool_volume("pooled", name, "v.raw")


def test_a_volume_of_a_pool_from_the_start(rig: Any) -> None:
    _, disk = pool(rig)
    spec = running(rig, disk)
    assert rig.see(spec).disks == ("vda", "vdb", "vdc")


@live
def test_a_volume_of_a_pool_live(rig: Any) -> None:
    _, disk = pool(rig)
    spec = attached(rig, running(rig), disk)
    assert rig.see(spec).disks == ("vda", "vdb", "vdc")


def test_a_pool_that_is_not_active_or_not_there_or_lacks_it_is_said_by_name(rig: Any) -> None:
    name, asleep = pool(rig, active=False)
    other, _ = pool(rig)
    disks = (asleep, rig.pool_volume("lost", other, "gone.raw"), rig.pool_volume("nowhere", "no-such-pool", "v.raw"))
    rig.volumes.sources["pooled"] = dataclasses.replace(rig.volumes.sources["pooled"], pool=name)
    for disk in disks:
        spec = wish(rig.spec(), disk)
        told = fault(rig, Do.DEFINE, spec)
        assert (told.kind, disk.volume in told.detail) == (FaultKind.REFUSED, True)
        assert rig.see(spec).seen is Seen.MISSING


@live
def test_the_same_told_of_a_guest_that_runs(rig: Any) -> None:
    _, disk = pool(rig, active=False)
    spec = running(rig)
    assert fault(rig, Do.ATTACH_DISK, wish(spec, disk), disk).kind is FaultKind.REFUSED
    assert rig.see(spec).disks == ("vda", "vdb")
