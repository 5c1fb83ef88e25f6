"""Snapshots as values: what was asked for, how far it is, and what the site allows.

Theory.  A snapshot of a disk is a layer: what the guest writes from then on goes to a new qcow2 file, the file below it
stays as it was.  The layers of a VM stand in the order in which they were made,

    golden image <- overlay <- layer of the 1st snapshot <- layer of the 2nd ...  (the guest writes to the last)

and the state that a snapshot holds is the chain *below* its layer.  To delete one, its layer is committed into the file
below.  libvirt's own list of snapshots forgets with the definition, so these records are the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Tuple


class SnapshotState(str, Enum):
    """How far a snapshot is.  `creating` and `deleting` are committed before the first call that has an effect."""

    WANTED = "wanted"  # asked for, nothing was done yet
    CREATING = "creating"
    THERE = "there"
    DELETING = "deleting"  # with a `problem`: what was begun is undone
    GONE = "gone"
    FAILED = "failed"


LAYERED = (SnapshotState.CREATING, SnapshotState.THERE, SnapshotState.DELETING)
"""States in which a file of it may exist."""
OVER = (SnapshotState.GONE, SnapshotState.FAILED)
KINDS = ("disk", "full")


OVERLAY, LAYER, MEMORY = ".qcow2", ".snap-{}.qcow2", ".snap-{}.mem"
"""How the files of a VM end: its overlay, a snapshot's layer, the memory of a full one."""


def layer_file(overlay: str, name: str) -> str:
    """Path of a snapshot's layer, beside the overlay."""
    return overlay[: -len(OVERLAY)] + LAYER.format(name)


def memory_file(overlay: str, name: str) -> str:
    """Path of the memory of a full snapshot."""
    return overlay[: -len(OVERLAY)] + MEMORY.format(name)


def layer_word(name: str) -> str:
    """What a look at the disk says when there are files of this snapshot."""
    return f"layer:{name}"


def is_file(word: str) -> bool:
    """Whether this word of a look at the host is about a file on the disk, or one that is on its way there."""
    return word in ("overlay", "scratch", "seed", "download") or word.startswith("layer:")


@dataclass(frozen=True)
class Snapshot:
    """One snapshot of one VM, from the wish to its end; those that are over are kept for accounting."""

    name: str  # 1 to 32 of a-z 0-9 -, unique among those of its VM that are not over
    command: str  # id of the command that asked for it
    kind: str  # "disk" | "full": with the guest's memory
    quiesce: str  # "required" | "if_possible" | "no"
    keep_s: int  # counted from the acceptance
    gib: int  # what it may grow to, rounded up: promised when it was accepted
    asked_at: float
    asked_boot: str
    asked_wall: str
    state: SnapshotState = SnapshotState.WANTED
    created_wall: str = ""
    ended_wall: str = ""
    quiesced: bool = False  # its file systems were frozen through the guest agent
    size_bytes: int = 0  # what its files took when that was last seen: after taking, and before deleting
    percent: int = 0  # of the job under way, in tens
    problem: str = ""  # type of the problem for which it was given up
    why: str = ""  # the same in words

    @property
    def over(self) -> bool:
        return self.state in OVER


@dataclass(frozen=True)
class SnapshotRules:
    """The site's word on snapshots."""

    allowed: bool = False
    maximum_per_vm: int = 3
    maximum_gib: int = 100  # that all snapshots of one VM may grow to
    default_keep_s: int = 86400
    longest_keep_s: int = 604800
    job_s: int = 1800  # taking or deleting one that takes longer is aborted
    revert: str = "deny"  # "allow" | "deny"


@dataclass(frozen=True)
class Job:
    """What an action on a snapshot needs to know: layers are the names of all snapshots with a file, oldest first."""

    snapshot: Snapshot
    layers: Tuple[str, ...]
    deadline_s: float


@dataclass(frozen=True)
class JobDone:
    """What a job found out."""

    quiesced: bool = False
    size_bytes: int = 0
