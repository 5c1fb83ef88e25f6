"""Taking and deleting snapshots, as whole jobs on one thread of the jobs connection.

Rules

1. A job looks first: what is in the live domain's chain decides, never what was told before.  So doing it again after
   a crash finishes what was begun, and deleting what never came about only takes its files away.
2. libvirt keeps no record of ours (NO_METADATA): it would forget it with the definition, and it would be in the way of
   an undefine.  The built-in test driver knows nothing but its own, internal snapshots.
3. A job on a snapshot that asks for frozen file systems, and is not known to be there, needs a thaw that is answered
   (freezing.py): taking one does not begin without, undoing one is not over before.
4. Waiting is by looking every `LOOK_S`; `stop` ends it: the block job is aborted, and the chain is whole, because QEMU
   leaves the layer in place until the very end.
5. The files of a layer are made and removed here, and only after the chain was read: a file in the chain is in use.
"""

from __future__ import annotations

import contextlib
import os
import threading
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, List, Optional, Sequence, Tuple

import libvirt

from vmagent.core.actions import Action, Do
from vmagent.core.domainxml import parts_of
from vmagent.core.drivers import Profile
from vmagent.core.snapshotmodel import Job, JobDone, Snapshot, layer_file, memory_file
from vmagent.core.snapshotxml import snapshot_xml
from vmagent.errors import Fault, FaultKind
from vmagent.hypervisor.freezing import freeze, thaw

LOOK_S = 0.25
_EMPTY_LAYER = 2**20  # bytes: a new layer takes about 200 KiB


@dataclass(frozen=True)
class Watch:
    """What a job is told while it runs, and tells.  stop: set = end it; percent: 0 to 100."""

    stop: threading.Event
    why: Callable[[], str]
    percent: Callable[[int], None]

    def pause(self) -> None:
        """Wait a little.  Fault UNKNOWN once it is to end."""
        if self.stop.wait(LOOK_S):
            raise Fault(FaultKind.UNKNOWN, self.why())


def perform(domain: libvirt.virDomain, action: Action, profile: Profile, overlay: str, watch: Watch) -> JobDone:
    """Do the job of this action, idempotently.  Faults: GONE when the guest is off, REFUSED, FULL, UNKNOWN, BUSY."""
    job = action.job
    if job is None:
        raise Fault(FaultKind.REFUSED, f"{action.do.value} without a snapshot")
    if job.snapshot.kind not in profile.snapshots:
        raise Fault(FaultKind.REFUSED, f"the {profile.name} driver takes no {job.snapshot.kind} snapshots")
    if not domain.isActive():
        raise Fault(FaultKind.GONE, "the guest does not run")
    if "disk" not in profile.snapshots:
        return _internal(domain, action.do, job.snapshot)
    disk = profile.disk_names[0]
    freezes = job.snapshot.quiesce != "no" and not job.snapshot.created_wall
    if action.do is Do.TAKE_SNAPSHOT:
        return _take(domain, disk, job, overlay, freezes)
    return _undo(domain, disk, job, overlay, watch) if freezes else _delete(domain, disk, job, overlay, watch)


# -- the test driver


def _internal(domain: libvirt.virDomain, do: Do, snapshot: Snapshot) -> JobDone:
    known = {one.getName(): one for one in domain.listAllSnapshots()}
    if do is Do.TAKE_SNAPSHOT and snapshot.name not in known:
        domain.snapshotCreateXML(snapshot_xml(snapshot.name), 0)
    elif do is Do.DELETE_SNAPSHOT and snapshot.name in known:
        known[snapshot.name].delete()
    return JobDone()


# -- taking


def _take(domain: libvirt.virDomain, disk: str, job: Job, overlay: str, freezes: bool) -> JobDone:
    snapshot = job.snapshot
    if layer_file(overlay, snapshot.name) in chain(domain, disk):
        if freezes:
            thaw(domain)
        return JobDone(False, _size(overlay, snapshot))
    _remove(overlay, snapshot)
    quiesced = freezes and _froze(domain, snapshot)
    try:
        domain.snapshotCreateXML(*_asked(domain, snapshot, disk, overlay))
    except libvirt.libvirtError as error:
        full = _full(overlay, error)
        if quiesced:
            with contextlib.suppress(Fault):  # the next job of this guest begins there
                thaw(domain)
        raise full or error from error
    if quiesced:
        thaw(domain)
    return JobDone(quiesced, _size(overlay, snapshot))


def _full(overlay: str, error: libvirt.libvirtError) -> Optional[Fault]:
    """FULL, when what may be behind this error is a disk without room: QEMU's own errors have no number for it."""
    folder = os.path.dirname(overlay)
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize >= _EMPTY_LAYER:
        return None
    return Fault(FaultKind.FULL, f"no space left in {folder}: libvirt: {error.get_error_message()}")


def _asked(domain: libvirt.virDomain, snapshot: Snapshot, disk: str, overlay: str) -> Tuple[str, int]:
    """The XML and the flags.  Only our first disk has a snapshot: scratch disks and data volumes are the user's own."""
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    if snapshot.kind == "full":
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE
        memory = memory_file(overlay, snapshot.name)
    else:
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        memory = ""
    others = [target for target in parts_of(domain.XMLDesc(0)).disks if target != disk]
    return snapshot_xml(snapshot.name, disk, layer_file(overlay, snapshot.name), memory, others), flags


def _froze(domain: libvirt.virDomain, snapshot: Snapshot) -> bool:
    """Whether the guest's file systems are frozen now.  Faults: REFUSED: they must be and cannot; or nobody knows."""
    try:
        thaw(domain)
    except Fault as silent:
        raise Fault(FaultKind.REFUSED, silent.detail) from silent
    why = freeze(domain)
    if why and snapshot.quiesce == "required":
        raise Fault(FaultKind.REFUSED, f"its file systems cannot be frozen: {why}")
    return not why


# -- deleting


def _undo(domain: libvirt.virDomain, disk: str, job: Job, overlay: str, watch: Watch) -> JobDone:
    """Delete one that a freeze belonged to: the guest goes first, and it is not over before its agent has answered."""
    with contextlib.suppress(Fault):
        thaw(domain)
    done = _delete(domain, disk, job, overlay, watch)
    thaw(domain)
    return done


def _delete(domain: libvirt.virDomain, disk: str, job: Job, overlay: str, watch: Watch) -> JobDone:
    layer = layer_file(overlay, job.snapshot.name)
    size = _size(overlay, job.snapshot)
    _settled(domain, disk, watch)
    while layer in chain(domain, disk):
        _commit(domain, disk, layer)
        _settled(domain, disk, watch)
        if layer in chain(domain, disk):
            raise Fault(FaultKind.UNKNOWN, f"the layer {layer} is still in use after it was committed")
    _remove(overlay, job.snapshot)
    return JobDone(size_bytes=size)


def _commit(domain: libvirt.virDomain, disk: str, layer: str) -> None:
    """Begin to write this layer into the file below it."""
    files = chain(domain, disk)
    at = files.index(layer)
    if at + 1 >= len(files):
        raise Fault(FaultKind.REFUSED, f"there is nothing below the layer {layer}")
    active = at == 0
    flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE if active else 0
    domain.blockCommit(disk, files[at + 1], None if active else layer, 0, flags)


def _settled(domain: libvirt.virDomain, disk: str, watch: Watch) -> None:
    """Wait until no block job is left on the disk: finish one that can be finished.  Aborts it on the way out."""
    try:
        while True:
            info = domain.blockJobInfo(disk, 0)
            if not info:
                return
            if info["end"]:
                watch.percent(100 * info["cur"] // info["end"])
            if _ready(domain, disk):
                domain.blockJobAbort(disk, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
            else:
                watch.pause()
    except Fault:
        with contextlib.suppress(libvirt.libvirtError):
            domain.blockJobAbort(disk, 0)
        raise


def _ready(domain: libvirt.virDomain, disk: str) -> bool:
    """Whether the active commit has caught up, so that the guest can go over to the file below."""
    found = _disk(domain, disk).find("mirror")
    return found is not None and found.get("ready") == "yes"


# -- files


def chain(domain: libvirt.virDomain, disk: str) -> List[str]:
    """Paths of a live disk, the file that the guest writes to first."""
    found: List[str] = []
    node: Optional[ElementTree.Element] = _disk(domain, disk)
    while node is not None:
        source = node.find("source")
        if source is not None:
            found.append(source.get("file", ""))
        node = node.find("backingStore")
    return found


def _disk(domain: libvirt.virDomain, disk: str) -> ElementTree.Element:
    root = ElementTree.fromstring(domain.XMLDesc(0))
    for node in root.iterfind("devices/disk"):
        target = node.find("target")
        if target is not None and target.get("dev") == disk:
            return node
    raise Fault(FaultKind.GONE, f"the guest has no disk {disk}")


def _files(overlay: str, snapshot: Snapshot) -> Sequence[Path]:
    return (Path(layer_file(overlay, snapshot.name)), Path(memory_file(overlay, snapshot.name)))


def _remove(overlay: str, snapshot: Snapshot) -> None:
    """Of a layer that is in no chain."""
    for path in _files(overlay, snapshot):
        path.unlink(missing_ok=True)


def _size(overlay: str, snapshot: Snapshot) -> int:
    """What they take on the disk now."""
    size = 0
    for path in _files(overlay, snapshot):
        with contextlib.suppress(OSError):
            size += os.stat(path).st_blocks * 512
    return size


