"""The closed set of effects.  A plan holds at most one per VM; each is idempotent and keyed by its VM.

Which port performs it stands in `port`; `deadline_s` is owned by the lane that runs it and means "outcome unknown".
`safe` actions (DESIGN 1.9) are performed even when the commit before them failed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import Enum
from typing import List, Optional, Sequence, Tuple

from vmagent.core.model import CpuLimit, Disk, Tag, VmSpec
from vmagent.core.snapshotmodel import Job


class Do(str, Enum):
    """Every kind of effect there is."""

    FETCH_IMAGE = "fetch-image"  # ask for the golden image's download; it goes on by itself
    MAKE_OVERLAY = "make-overlay"  # verify the golden image, make scratch disks and the overlay on it
    MAKE_SEED = "make-seed"
    APPLY_FIREWALL = "apply-firewall"  # chains and counters of every interface, before the device exists
    WATCH_NETWORK = "watch-network"  # count frames from assigned addresses anew, from zero
    DEFINE = "define"
    START_PAUSED = "start-paused"
    SHAPE = "shape"  # bandwidth both ways and the guard of the bridge port, on the live interface
    APPLY_CPU = "apply-cpu"  # cap and weight
    APPLY_DISK_IO = "apply-disk-io"
    ATTACH_DISK = "attach-disk"  # to the live guest
    DETACH_DISK = "detach-disk"  # asked of it; it may take its time
    TELL_SYSTEMD = "tell-systemd"  # the cap, to the unit that owns the guest's cgroup
    RESUME = "resume"  # the tag follows: whatever has a definition of ours may have run
    PAUSE = "pause"
    SHUTDOWN = "shutdown"  # ACPI
    REBOOT = "reboot"
    DESTROY = "destroy"
    DISCARD_SAVED = "discard-saved"
    UNDEFINE = "undefine"
    WRITE_TAG = "write-tag"
    CLAIM = "claim"  # write the tag into a running domain that has none: it is ours from then on
    UNTAG = "untag"  # take the tag away, and the cap if it was held: the domain is its maker's again
    CLEAN_UP = "clean-up"  # overlay, scratch disks, seed and the wait for a download
    UNSHAPE = "unshape"  # what shaping leaves when the interface is gone
    REMOVE_FIREWALL = "remove-firewall"
    ISOLATE = "isolate"  # its interfaces down: nothing in, nothing out
    REJOIN = "rejoin"  # and up again
    CUT_BACK = "cut-back"  # seed and every layer that is not in `layers`; overlay and scratch disks stay
    MAKE_LAYER = "make-layer"  # the last of `layers`, empty, on what is below it
    TAKE_SNAPSHOT = "take-snapshot"
    DELETE_SNAPSHOT = "delete-snapshot"  # its layer committed into the file below; what never came about is undone


@dataclass(frozen=True)
class _Row:
    port: str  # "hypervisor" | "images" | "firewall" | "shaper" | "cgroups" | "jobs": beside the loop's steps
    deadline_s: float
    safe: bool = False


TABLE = {
    Do.FETCH_IMAGE: _Row("images", 60),
    Do.MAKE_OVERLAY: _Row("images", 600),
    Do.MAKE_SEED: _Row("images", 60),
    Do.APPLY_FIREWALL: _Row("firewall", 20, safe=True),
    Do.WATCH_NETWORK: _Row("firewall", 20),
    Do.DEFINE: _Row("hypervisor", 30),
    Do.START_PAUSED: _Row("hypervisor", 120),
    Do.SHAPE: _Row("shaper", 20, safe=True),
    Do.APPLY_CPU: _Row("hypervisor", 30, safe=True),
    Do.APPLY_DISK_IO: _Row("hypervisor", 30, safe=True),
    Do.ATTACH_DISK: _Row("hypervisor", 30),
    Do.DETACH_DISK: _Row("hypervisor", 30),
    Do.TELL_SYSTEMD: _Row("cgroups", 20, safe=True),
    Do.RESUME: _Row("hypervisor", 30),
    Do.PAUSE: _Row("hypervisor", 30, safe=True),
    Do.SHUTDOWN: _Row("hypervisor", 30, safe=True),
    Do.REBOOT: _Row("hypervisor", 30),
    Do.DESTROY: _Row("hypervisor", 60, safe=True),
    Do.DISCARD_SAVED: _Row("hypervisor", 30),
    Do.UNDEFINE: _Row("hypervisor", 30),
    Do.WRITE_TAG: _Row("hypervisor", 30),
    Do.CLAIM: _Row("hypervisor", 30),
    Do.UNTAG: _Row("hypervisor", 30),
    Do.CLEAN_UP: _Row("images", 60),
    Do.UNSHAPE: _Row("shaper", 20),
    Do.REMOVE_FIREWALL: _Row("firewall", 20),
    Do.ISOLATE: _Row("shaper", 20, safe=True),
    Do.REJOIN: _Row("shaper", 20),
    Do.CUT_BACK: _Row("images", 60),
    Do.MAKE_LAYER: _Row("images", 60),
    Do.TAKE_SNAPSHOT: _Row("jobs", 1800),
    Do.DELETE_SNAPSHOT: _Row("jobs", 1800),
}


_ABREAST = {(Do.APPLY_FIREWALL, Do.DEFINE), (Do.START_PAUSED, Do.SHAPE)}
"""What follows each other in a chain and need not wait for its end.  Rules and definition work on names, no device
exists yet.  An interface can be shaped as soon as it is in its bridge (ports.Processes.plugged), long before its QEMU
is up."""


@dataclass(frozen=True)
class Action:
    """One effect on one VM."""

    do: Do
    spec: VmSpec
    tag: Optional[Tag] = None  # DEFINE, WRITE_TAG, CLAIM: what to write; MAKE_SEED: what is told of the lease
    cpu: Optional[CpuLimit] = None  # DEFINE, APPLY_CPU, TELL_SYSTEMD: the effective cap
    then: Optional[Action] = None  # performed right after this one, without another look in between
    job: Optional[Job] = None  # TAKE_SNAPSHOT, DELETE_SNAPSHOT
    layers: Tuple[str, ...] = ()  # DEFINE, CUT_BACK, MAKE_LAYER: names of snapshots, oldest first
    disk: Optional[Disk] = None  # ATTACH_DISK, DETACH_DISK

    @property
    def chain(self) -> Tuple[Action, ...]:
        """This one and all that follow it, in their order."""
        return (self, *self.then.chain) if self.then else (self,)

    @property
    def safe_chain(self) -> Tuple[Action, ...]:
        """What of the chain may be performed without the commit: up to the first that is not safe."""
        return tuple(itertools.takewhile(lambda each: each.safe, self.chain))

    @property
    def vm(self) -> str:
        return self.spec.vm

    @property
    def port(self) -> str:
        return TABLE[self.do].port

    @property
    def deadline_s(self) -> float:
        return TABLE[self.do].deadline_s if self.job is None else self.job.deadline_s

    @property
    def safe(self) -> bool:
        return TABLE[self.do].safe


def abreast(chain: Sequence[Action]) -> List[Tuple[Action, ...]]:
    """The chain in its order; what stands in one tuple may be performed at the same time."""
    rows: List[Tuple[Action, ...]] = []
    for each in chain:
        if rows and all((before.do, each.do) in _ABREAST for before in rows[-1]):
            rows[-1] = (*rows[-1], each)
        else:
            rows.append((each,))
    return rows
