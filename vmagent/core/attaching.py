"""Data volumes of VMs that run: `vm.attach`, `vm.detach`, and since when who has which (A7).

A command changes the wish (`VmSpec.disks`); the planner compares it with the disks of the live domain and asks for one
change at a time.  What is attached stands in the journal with its times, from the first look that saw it to the first
that did not: a guest may be slow to let go, and until then the volume is its.
"""

from __future__ import annotations

import dataclasses
from typing import Optional, Sequence, Tuple

from vmagent.core import disks
from vmagent.core.actions import Do
from vmagent.core.commands import Command
from vmagent.core.ending import journaled
from vmagent.core.model import CDROM, VOLUME, Disk, Now, Observed, Seen, VmRecord, VolumeUse
from vmagent.core.policy import Policy
from vmagent.errors import Problem, Problems

MOST_USES = 100  # of one VM that are remembered


# -- commands


def admit(command: Command, chosen: Sequence[VmRecord], records: Sequence[VmRecord], policy: Policy) -> None:
    """May this vm.attach be taken?  Problems: those of disks.problems."""
    disk = _wanted(command, disks.FIRST_PLACE)
    ids = {record.vm for record in chosen}
    others = [record for record in records if record.vm not in ids]
    found = [
        problem
        for owner in dict.fromkeys(record.spec.owner for record in chosen)
        for problem in disks.problems((disk,), owner, policy, others, len(chosen), "args.volume")
    ]
    if found:
        raise Problems(found)


def attached(command: Command, record: VmRecord, policy: Policy, now: Now) -> VmRecord:
    """The wish with this volume.  Problems: `volume-in-use` (it has it in another way), `over-limit`."""
    same = next((disk for disk in record.spec.disks if disk.volume == command.args["volume"]), None)
    wanted = _wanted(command, same.place if same else _free_place(record))
    if same is not None and same != wanted:
        detail = f"VM {record.vm} has volume {same.volume} in another way; detach it first"
        raise Problem("volume-in-use", detail, path="args.volume", vm=record.vm)
    asked_for = record.spec.disks if same is not None else (*record.spec.disks, wanted)
    return journaled(_with(record, asked_for), attach_failed="")


def detached(command: Command, record: VmRecord, policy: Policy, now: Now) -> VmRecord:
    """The wish without this volume; that it has none is as wished.  Problem `not-supported-here`: it is a CD."""
    name = command.args["volume"]
    if any(disk.volume == name and disk.kind == CDROM for disk in record.spec.disks):
        detail = f"VM {record.vm} has volume {name} as a CD, which stays until its end"
        raise Problem("not-supported-here", detail, path="args.volume", vm=record.vm)
    kept = tuple(disk for disk in record.spec.disks if disk.volume != name)
    return journaled(_with(record, kept), attach_failed="")


def _wanted(command: Command, place: int) -> Disk:
    read_only = bool(command.args.get("read_only", False))
    return Disk(VOLUME, place, volume=command.args["volume"], read_only=read_only)


def _with(record: VmRecord, asked_for: Tuple[Disk, ...]) -> VmRecord:
    return dataclasses.replace(record, spec=dataclasses.replace(record.spec, disks=asked_for))


def _free_place(record: VmRecord) -> int:
    taken = {disk.place for disk in (*record.spec.disks, *disks.held(record))}
    for place in range(disks.FIRST_PLACE, disks.FIRST_PLACE + disks.MOST):
        if place not in taken:
            return place
    detail = f"VM {record.vm} has {disks.MOST} disks beside its own, which is the most"
    raise Problem("over-limit", detail, path="args.volume", vm=record.vm, maximum=disks.MOST)


# -- the plan


def seen(record: VmRecord, observed: Observed, now: Now, policy: Policy) -> VmRecord:
    """Times of what was attached, and of what is gone; what nobody remembers asking for counts as well."""
    domain = observed.domain
    if domain.seen not in (Seen.RUNNING, Seen.PAUSED) or not record.journal.may_have_run:
        return record
    uses = tuple(
        use if use.detached_wall or disks.attached(use.disk, domain)
        else dataclasses.replace(use, detached_wall=now.wall)
        for use in record.journal.volumes
    )
    known = {use.disk for use in uses if not use.detached_wall}
    fresh = tuple(
        VolumeUse(disk, now.wall)
        for disk in (*record.spec.disks, *disks.unasked(domain, record.spec, policy.volumes))
        if disk.volume and disk not in known and disks.attached(disk, domain)
    )
    return journaled(record, volumes=(*uses, *fresh)[-MOST_USES:])


def due(record: VmRecord, observed: Observed) -> Optional[Tuple[Do, Disk]]:
    """The next change of a running guest's disks; None = they are as wished."""
    for disk in disks.held(record):
        if disk not in record.spec.disks:
            return Do.DETACH_DISK, disk
    for disk in record.spec.disks:
        if disk.kind == VOLUME and not disks.attached(disk, observed.domain):
            return Do.ATTACH_DISK, disk
    return None


def settled(record: VmRecord) -> bool:
    """Whether it has the volumes that it should have, and no other."""
    return set(disks.held(record)) == {disk for disk in record.spec.disks if disk.volume}
