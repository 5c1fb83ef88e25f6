"""One body for everything that implements ports.Jobs: the fake, and real QEMU; libvirt's test driver takes only full
snapshots.  On QEMU the chain is looked at from outside.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid
from pathlib import Path
from typing import Any, List

import pytest

from tests.support import building, hypervisor, libvirtd
from tests.support.waiting import until
from vmagent.core.actions import Action, Do
from vmagent.core.model import Seen
from vmagent.core.snapshotmodel import Job, JobDone, SnapshotState, layer_file, memory_file
from vmagent.errors import Fault, FaultKind
from vmagent.hypervisor import layers
from vmagent.images.layers import cut_back, make_layer

TAKE, DELETE = Do.TAKE_SNAPSHOT, Do.DELETE_SNAPSHOT
REAL_KINDS = [pytest.param("qemu", kind, marks=libvirtd.needed) for kind in ("disk", "full")]


@pytest.fixture
def real(qemu_uri):
    yield from hypervisor.begun(hypervisor.qemu(qemu_uri))


def job(rig, do: Do, spec: Any, name: str = "a", deadline_s: float = 30.0, **kw: Any) -> Action:
    kind = kw.pop("kind", rig.port.info().snapshots[0])
    wanted = building.snapshot(name, SnapshotState.CREATING, kind=kind, **kw)
    return Action(do, spec, job=Job(wanted, (name,), deadline_s))


def done(rig, *args: Any, **kw: Any) -> JobDone:
    result: JobDone = rig.result(rig.port.jobs.run(job(rig, *args, **kw)))
    return result


def refused(rig, *args: Any, **kw: Any) -> FaultKind:
    with pytest.raises(Fault) as caught:
        done(rig, *args, **kw)
    return caught.value.kind


def running(rig):
    spec = rig.spec()
    rig.begin(spec, Do.RESUME)
    return spec


def chain(rig, spec: Any) -> List[str]:
    """Names of the layers in the live chain, oldest first; [] = flat."""
    if rig.disks is None:
        return []
    overlay = rig.disks.paths(spec).overlay
    files = layers.chain(rig.outside.domain(spec.vm), "vda")
    assert files[-2:] == [overlay, rig.disks.paths(spec).golden]
    return [Path(file).name.split(".snap-")[1].rpartition(".")[0] for file in reversed(files[:-2])]


def left(rig, spec: Any) -> List[str]:
    """Files of snapshots on the disk."""
    return [] if rig.disks is None else sorted(path.name for path in rig.disks.folder.glob(f"{spec.vm}.snap-*"))


def test_it_says_which_kinds_it_can_take(rig) -> None:
    assert set(rig.port.info().snapshots) <= {"disk", "full"} and "full" in rig.port.info().snapshots


@pytest.mark.parametrize(
    ("rig", "kind"), [("fake", "disk"), ("fake", "full"), ("test driver", "full"), *REAL_KINDS], indirect=["rig"]
)
def test_taken_and_deleted_each_twice_as_once(rig, kind: str) -> None:
    spec = running(rig)
    for _ in range(2):
        done(rig, TAKE, spec, kind=kind)
        assert rig.see(spec).seen is Seen.RUNNING
    if rig.disks is not None:
        assert chain(rig, spec) == ["a"]
    for _ in range(2):
        done(rig, DELETE, spec, kind=kind)
        assert chain(rig, spec) == [] and left(rig, spec) == []
    assert rig.see(spec).seen is Seen.RUNNING


def test_a_paused_guest_has_snapshots_too_and_stays_paused(rig) -> None:
    spec = running(rig)
    rig.do(Do.PAUSE, spec)
    done(rig, TAKE, spec)
    done(rig, DELETE, spec)
    assert rig.see(spec).seen is Seen.PAUSED


def test_only_a_live_guest_of_ours(rig) -> None:
    off, missing, foreign = rig.spec(), rig.spec(), rig.spec()
    rig.do(Do.DEFINE, off)
    rig.outside.foreign(foreign.vm, f"theirs-{foreign.vm[:8]}")
    for do in (TAKE, DELETE):
        assert refused(rig, do, off) is FaultKind.GONE
        assert refused(rig, do, missing) is FaultKind.GONE
        assert refused(rig, do, foreign) is FaultKind.REFUSED


@pytest.mark.parametrize("rig", ["fake", pytest.param("qemu", marks=libvirtd.needed)], indirect=True)
def test_what_must_be_frozen_and_has_no_agent_is_refused_and_leaves_nothing(rig) -> None:
    spec = running(rig)
    assert refused(rig, TAKE, spec, quiesce="required") is FaultKind.REFUSED
    assert chain(rig, spec) == [] and left(rig, spec) == []
    assert not done(rig, TAKE, spec, quiesce="if_possible").quiesced


def test_there_is_no_job_once_it_is_done(rig) -> None:
    spec = running(rig)
    done(rig, TAKE, spec)
    assert rig.port.jobs.percent(spec.vm) is None
    rig.port.jobs.abort(spec.vm)  # nothing happens
    done(rig, DELETE, spec)


# -- real QEMU


@libvirtd.needed
@pytest.mark.parametrize("order", ["abc", "cba", "bac", "bca"])
def test_layers_are_committed_in_any_order_and_the_chain_is_flat(real, order: str) -> None:
    spec = running(real)
    for name in "abc":
        assert done(real, TAKE, spec, name).size_bytes > 0
    assert chain(real, spec) == ["a", "b", "c"]
    for gone, name in enumerate(order, 1):
        done(real, DELETE, spec, name)
        assert chain(real, spec) == [one for one in "abc" if one not in order[:gone]]
    assert left(real, spec) == []
    real.do(Do.DESTROY, spec)
    overlay, golden = real.disks.paths(spec).overlay, real.disks.paths(spec).golden
    subprocess.run(["qemu-img", "check", "-q", overlay], check=True)
    info = subprocess.run(["qemu-img", "info", "--backing-chain", "--output=json", overlay], check=True,
                          stdout=subprocess.PIPE).stdout
    assert [one["filename"] for one in json.loads(info)] == [overlay, golden]


@libvirtd.needed
def test_the_definition_follows_so_that_nothing_is_forgotten(real) -> None:
    spec = running(real)
    done(real, TAKE, spec)
    inactive = real.outside.domain(spec.vm).XMLDesc(hypervisor.libvirt.VIR_DOMAIN_XML_INACTIVE)
    assert layer_file(real.disks.paths(spec).overlay, "a") in inactive
    assert real.outside.domain(spec.vm).snapshotNum() == 0  # libvirt keeps no record of it


@libvirtd.needed
def test_a_file_of_an_earlier_attempt_is_not_in_the_way_and_one_in_use_is_not_touched(real) -> None:
    spec = running(real)
    overlay = real.disks.paths(spec).overlay
    Path(layer_file(overlay, "a")).write_bytes(b"half")
    Path(memory_file(overlay, "a")).write_bytes(b"half")
    done(real, TAKE, spec)
    assert left(real, spec) == [Path(layer_file(overlay, "a")).name]
    inode = os.stat(layer_file(overlay, "a")).st_ino
    done(real, TAKE, spec)
    assert os.stat(layer_file(overlay, "a")).st_ino == inode


@libvirtd.needed
def test_a_name_that_is_undone_without_ever_being_there_leaves_the_others(real) -> None:
    spec = running(real)
    done(real, TAKE, spec, "a")
    done(real, DELETE, spec, "never")
    assert chain(real, spec) == ["a"]


@libvirtd.needed
def test_limits_of_disks_stay_over_taking_and_deleting(real) -> None:
    from vmagent.core.model import DiskIo

    spec = real.spec(disk_io=DiskIo(4_000_000, 2_000_000, 400, 200))
    real.begin(spec, Do.RESUME)
    for do in (TAKE, DELETE):
        done(real, do, spec)
        assert real.see(spec).disk_io == spec.limits.disk_io


@libvirtd.needed
def test_an_interrupted_deletion_is_taken_up_again(real) -> None:
    """As after kill -9 of the agent: QEMU's block job goes on, and whoever comes next finds it."""
    spec = running(real)
    for name in "ab":
        done(real, TAKE, spec, name)
    domain = real.outside.domain(spec.vm)
    below, top = (layer_file(real.disks.paths(spec).overlay, name) for name in "ab")
    domain.blockCommit("vda", below, None, 0, hypervisor.libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    assert top in layers.chain(domain, "vda")
    done(real, DELETE, spec, "b")
    assert chain(real, spec) == ["a"]


@libvirtd.needed
def test_a_frozen_qemu_is_given_up_in_time_and_what_it_does_later_is_found(real) -> None:
    spec = running(real)
    other = running(real)
    pid = _qemu(spec.vm)
    os.kill(pid, signal.SIGSTOP)
    try:
        begun = real.loop.seconds()
        assert refused(real, TAKE, spec, deadline_s=2.0) is FaultKind.UNKNOWN
        assert real.loop.seconds() - begun < 60
        done(real, TAKE, other)  # the other lane is free
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: not real.port.jobs._link.overdue() or real.loop.turn(), 60, "the late call returns")
    done(real, DELETE, spec)
    assert chain(real, spec) == [] and left(real, spec) == []
    assert real.see(spec).seen is Seen.RUNNING


def _qemu(vm: str) -> int:
    """The process whose arguments name this VM."""
    found = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline")
             if path.exists() and f"guest=vma-{vm}".encode() in path.read_bytes()]
    assert len(found) == 1
    return found[0]


def test_names_are_files_beside_the_overlay() -> None:
    vm = str(uuid.uuid4())
    assert layer_file(f"/o/{vm}.qcow2", "a-1") == f"/o/{vm}.snap-a-1.qcow2"
    assert memory_file(f"/o/{vm}.qcow2", "a-1") == f"/o/{vm}.snap-a-1.mem"


@libvirtd.needed
def test_back_to_a_snapshot_the_guest_runs_on_an_empty_layer_over_what_was(real) -> None:
    """What the planner does in steps: destroy, undefine, cut back, make the layer anew, define on it, start."""
    spec = running(real)
    overlay = real.disks.paths(spec).overlay
    for name in "abc":
        done(real, TAKE, spec, name)
    real.do(Do.DESTROY, spec)
    real.do(Do.UNDEFINE, spec)
    below = Path(layer_file(overlay, "a")).read_bytes()
    cut_back(overlay, f"{overlay}.none", [Path(layer_file(overlay, name)) for name in "abc"], ["a"])
    make_layer(spec, overlay, ["a", "b"], Path(f"{overlay}.part"))
    real.do(Do.DEFINE, spec, layers=("a", "b"))
    real.do(Do.START_PAUSED, spec)
    real.do(Do.RESUME, spec)
    assert chain(real, spec) == ["a", "b"] and real.see(spec).seen is Seen.RUNNING
    assert Path(layer_file(overlay, "a")).read_bytes() == below
    for name in "ba":
        done(real, DELETE, spec, name)
    assert chain(real, spec) == []
    golden = os.stat(real.disks.paths(spec).golden)
    assert (golden.st_uid, golden.st_gid) == (0, 0)  # over all layers libvirt has not taken it over
