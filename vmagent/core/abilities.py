"""What a host may lack beyond running guests: who asks for it, and how that is refused (`not-supported-here`).

Rules

1. One row per capability.  Whether this host has it stands in HostRoom, which has it from the driver's profile and from
   the kernel; where it is published, in `capabilities` of host.state, it has the same name.
2. It is settled before anything is stored: by the limits that will be in force, those of the site's too, and by the
   arguments of a command.  What would never be proven is never begun.
3. Every action that some profile cannot do is behind a row (`GUARDS`).
4. Of a host whose driver nobody has talked to yet nothing is known, and nothing is refused for it: the wish waits.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from vmagent.core import disks, drivers
from vmagent.core.actions import Do
from vmagent.core.commands import Command
from vmagent.core.imagemodel import HVM
from vmagent.core.model import Disk, DiskIo, ImageRef, Limits
from vmagent.core.room import HostRoom
from vmagent.errors import Problem

NORMAL_WEIGHT = 100
_Row = Tuple[Callable[[HostRoom], bool], str]
TABLE: Mapping[str, _Row] = {
    "cpu_cap": (lambda room: room.cpu_caps, "this host's hypervisor driver cannot limit a guest's CPU: ask for no such "
                "limit, or for another host"),
    "disk_io": (lambda room: room.disk_io, "this host's hypervisor driver cannot limit a disk's input and output: ask "
                "for no such limit, or for another host"),
    "bandwidth": (lambda room: room.shaping, "no queueing discipline works on this host to limit bandwidth: ask for no "
                  "such limit, or for another host"),
    "live_disks": (lambda room: room.live_disks, "this host's hypervisor driver cannot change the disks of a running "
                   "guest: name them in vm.start"),
    "snapshots": (lambda room: bool(room.snapshots), "this host's hypervisor driver takes no snapshots"),
    "snapshots.quiesce": (lambda room: room.quiesce, "on this host no guest's file systems can be frozen: ask for "
                          "quiesce if_possible, or no"),
    "snapshots.revert": (lambda room: "disk" in room.snapshots, "on this host no guest can go back to a snapshot; "
                         "without one named, vm.revert goes back to the golden image"),
}
"""Capability -> (whether a host has it, what to tell who asks for it there)."""

GUARDS: Mapping[Do, str] = {
    Do.APPLY_CPU: "cpu_cap",
    Do.APPLY_DISK_IO: "disk_io",
    Do.ATTACH_DISK: "live_disks",
    Do.DETACH_DISK: "live_disks",
    Do.TAKE_SNAPSHOT: "snapshots",
    Do.DELETE_SNAPSHOT: "snapshots",
}
"""Action -> the capability without which no command asks for it."""

_Needs = Iterator[Tuple[str, str]]  # (capability, path of what asks for it)


def of_command(command: Command, room: HostRoom) -> List[Problem]:
    """Why this host cannot do what a command on VMs asks for, whatever VMs it means."""
    needs = _NEEDS.get(command.verb)
    return [] if needs is None else _lacking(needs(command.args), room)


def of_limits(limits: Limits, room: HostRoom) -> List[Problem]:
    """Why these limits cannot be held here."""
    return _lacking(_by_limits(limits), room)


def of_image(image: ImageRef, room: HostRoom) -> Optional[Problem]:
    """Why no guest of this image can be started here: of that kind, or without a kernel; None = it can."""
    kinds = drivers.rows(room.guests)
    if not room.known or not kinds:
        return None
    kind = drivers.kind(kinds, image.boot)
    if kind is None:
        wanted, able = image.boot.guest if image.boot else HVM, [row.guest for row in kinds]
        detail = f"image {image.id} makes a guest of kind {wanted}; this host starts {', '.join(able)}"
        return Problem("not-supported-here", detail, path="args.image.id", capability="guests", accepted=able)
    if kind.firmware or room.bootloader or (image.boot is not None and image.boot.kernel is not None):
        return None
    detail = f"image {image.id} names no kernel, and none may be looked for on a guest's disk here (hypervisor.pygrub)"
    return Problem("not-supported-here", detail, path="args.image.id", capability="bootloader")


def of_disks(image: ImageRef, wanted: Sequence[Disk], room: HostRoom) -> List[Problem]:
    """Why a guest of this image cannot have these disks here: not every kind has one that can only be read."""
    kind = drivers.kind(drivers.rows(room.guests), image.boot)
    if not room.known or kind is None:
        return []
    most = disks.read_only_most(kind)
    where = f"among the first {most} only" if most else "not at all"
    detail = f"a guest of kind {kind.name} can have disks that it can only read {where}"
    return [
        Problem("not-supported-here", detail, path=f"args.disks[{index}]", capability="read_only_volumes", maximum=most)
        for index, disk in enumerate(wanted) if disk.read_only and disk.place >= kind.read_only_below
    ]


def _lacking(needs: _Needs, room: HostRoom) -> List[Problem]:
    if not room.known:
        return []
    return [Problem("not-supported-here", TABLE[name][1], path=path, capability=name)
            for name, path in needs if not TABLE[name][0](room)]


def _by_limits(limits: Limits) -> _Needs:
    if limits.cpu_cap_core_percent is not None:
        yield "cpu_cap", "args.cpu_cap_core_percent"
    if limits.cpu_weight != NORMAL_WEIGHT:
        yield "cpu_cap", "args.cpu_weight"
    if limits.disk_io != DiskIo():
        yield "disk_io", "args.disk_io"
    if any(nic.bandwidth_in_kbit or nic.bandwidth_out_kbit for nic in limits.nics):
        yield "bandwidth", "args.networks"


def _by_volume(args: Mapping[str, Any]) -> _Needs:
    yield "live_disks", "args.volume"


def _by_snapshot(args: Mapping[str, Any]) -> _Needs:
    yield "snapshots", "args.name"
    if args.get("quiesce") == "required":
        yield "snapshots.quiesce", "args.quiesce"


def _by_name(args: Mapping[str, Any]) -> _Needs:
    yield "snapshots", "args.name"


def _by_revert(args: Mapping[str, Any]) -> _Needs:
    if "snapshot" in args:
        yield "snapshots.revert", "args.snapshot"


_NEEDS: Dict[str, Callable[[Mapping[str, Any]], _Needs]] = {
    "vm.attach": _by_volume,
    "vm.detach": _by_volume,
    "vm.snapshot": _by_snapshot,
    "vm.snapshot.delete": _by_name,
    "vm.snapshot.cancel": _by_name,
    "vm.revert": _by_revert,
}
