"""May this start be taken here, and as what: site limits, capacity, addresses (PROTOCOL 3).

Two kinds of reasons.  What is wrong with the request or the host concerns every member and refuses the whole: all such
reasons are told together.  What runs out (capacity, addresses) concerns members, in order: `atomic` needs room for all,
otherwise as many as fit are admitted and the rest is refused, each with its reasons.

Capacity counts wishes, not processes.  A wish that has not ended holds its cores, its memory and what QEMU takes beside
it; a wish that is not closed holds its whole disk, its scratch disks and what its snapshots may grow to, kept disks
included.  Cores may be promised `cpu_overcommit` times, memory and disk once.  Free on the disk is what is free now,
minus the floor, minus *all* that the disks of open wishes may grow to: what they have written already is counted twice,
unless the caller knows it (`disk_written_gib`), so that a promise is always kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from vmagent.core import addresses, codec, context, disks, identity, imagechoice, request, snapshots
from vmagent.core.asked import Asked, asked, outside
from vmagent.core.commands import Command
from vmagent.core.model import DiskIo, Owner, VmRecord, VmSpec
from vmagent.core.policy import Policy
from vmagent.core.startimage import NONE, Endorsements, StartImage, chosen
from vmagent.errors import Problem, Problems

MOST_PROBLEMS = 20


@dataclass(frozen=True)
class HostRoom:
    """The host as admission sees it."""

    cores: int
    memory_mib: int
    disk_free_gib: int  # free now where overlays live, rounded down
    drained: bool
    emulated_ok: bool  # guests can run: there is hardware virtualisation, or the site allows emulation
    cpu_caps: bool = True  # False = this host's driver cannot limit a guest's CPU
    disk_written_gib: int = 0  # what overlays of open wishes already take, rounded down; 0 = not known
    memory_overhead_mib: int = 0  # what a QEMU was seen to take beside its guest's memory; 0 = not known
    disk_io: bool = True  # False = the driver cannot limit a disk's input and output
    live_disks: bool = True  # False = it cannot attach a disk to a guest that runs
    shaping: bool = True  # False = no qdisc works here: bandwidth cannot be limited
    filtering: bool = True  # False = nft does not work here: no interface can be guarded
    snapshots: Tuple[str, ...] = ()  # kinds that the driver can take


@dataclass(frozen=True)
class Admission:
    """What is taken, and which members are not."""

    specs: Tuple[VmSpec, ...]
    refused: Tuple[Tuple[int, Problem], ...] = ()  # (member, why)


@dataclass(frozen=True)
class _Room:
    """What is left to promise."""

    cores: int
    memory_mib: int
    disk_gib: int
    overhead_mib: int  # memory that each VM takes beside its own

    def minus(self, what: Asked) -> _Room:
        memory_mib = self.memory_mib - what.memory_mib - self.overhead_mib
        return _Room(self.cores - what.cores, memory_mib, self.disk_gib - what.stored_gib, self.overhead_mib)


def admit(
    command: Command,
    policy: Policy,
    records: Sequence[VmRecord],
    room: HostRoom,
    known: Endorsements = NONE,
) -> Admission:
    """Decide a `vm.start`; `records` are all wishes that are not closed, `known` what endorses images.

    Problems when nothing (or, `atomic`, not all) can be taken, all at once: `drained`, `no-virtualisation`,
    `owner-needed`, `context`, `unknown-flavour`, `unknown-network`, `unknown-image`, `image-url`, `rule`, `over-limit`,
    `under-limit`, `disk-too-small`, `address`, `mac`, `address-in-use`, `id-in-use`, `no-capacity`,
    `not-supported-here`, `unknown-volume`, `volume-read-only`, `volume-in-use`, `not-authorised` (a volume of others),
    and those of an image that is not trusted (trust.py).
    """
    problems = _host_problems(command, policy, room) + _name_problems(command, policy)
    what: Optional[Asked] = None
    owner, unowned = _owner(command)
    image = _image(command, policy, known, owner, problems)
    problems += unowned
    try:
        what = asked(command.args, policy)
    except Problems as found:
        problems += found.problems
    left = _left(policy, records, room)
    if what is not None:
        problems += _size_problems(policy, what, image) + _limit_problems(room, what)
        at_once = what.count if command.args.get("atomic") else 1
        problems += _lacking(what, at_once, left, room)
        if owner is not None:
            problems += disks.problems(what.disks, owner, policy, records, what.count, "args.disks[]")
    if problems or what is None or owner is None or image is None:
        raise _all(problems)
    return _members(command, policy, records, room, _Start(what, owner, left, image))


@dataclass(frozen=True)
class _Start:
    what: Asked
    owner: Owner
    left: _Room
    image: StartImage


# ---- reasons that concern the whole ----


def _host_problems(command: Command, policy: Policy, room: HostRoom) -> List[Problem]:
    problems: List[Problem] = []
    if room.drained:
        problems.append(Problem("drained", f"{policy.host} takes no new VMs until it is undrained"))
    if not room.emulated_ok:
        detail = f"{policy.host} has no hardware virtualisation, and the site forbids emulation"
        problems.append(Problem("no-virtualisation", detail))
    if command.args.get("networks") and not room.filtering:
        detail = "nft does not work on this host, so no interface can be guarded: ask for none, or for another host"
        problems.append(Problem("not-supported-here", detail, path="args.networks"))
    return problems


def _limit_problems(room: HostRoom, what: Asked) -> List[Problem]:
    """What will be limited (by the site too) and cannot be here: it would never be proven."""
    shaped = any(nic.bandwidth_in_kbit or nic.bandwidth_out_kbit for nic in what.limits.nics)
    rows = (
        (what.limits.cpu_cap_core_percent is not None and not room.cpu_caps, "args.cpu_cap_core_percent",
         "this host's hypervisor driver cannot limit a guest's CPU"),
        (what.limits.disk_io != DiskIo() and not room.disk_io, "args.disk_io",
         "this host's hypervisor driver cannot limit a disk's input and output"),
        (shaped and not room.shaping, "args.networks", "no queueing discipline works on this host to limit bandwidth"),
    )  # fmt: skip
    return [
        Problem("not-supported-here", f"{detail}: ask for no such limit, or for another host", path=path)
        for lacks, path, detail in rows
        if lacks
    ]


def _name_problems(command: Command, policy: Policy) -> List[Problem]:
    args = command.args
    problems = [
        _unknown("network", network["type"], sorted(policy.networks), f"args.networks[{index}].type")
        for index, network in enumerate(args.get("networks", ()))
        if network["type"] not in policy.networks
    ]
    if args.get("count", 1) > 1:
        problems += addresses.unshareable(args.get("networks", ()), policy)
    return problems


def _owner(command: Command) -> Tuple[Optional[Owner], List[Problem]]:
    """The owner, or why there is none."""
    try:
        return request.owner_of(command), []
    except Problem as problem:
        return None, [problem]


def _image(
    command: Command, policy: Policy, known: Endorsements, owner: Optional[Owner], problems: List[Problem]
) -> Optional[StartImage]:
    """The image, or None after a further problem."""
    image, vo = command.args["image"], owner.vo if owner is not None else None
    try:
        if "url" in image:
            return imagechoice.described(image, policy, known, vo)
        return chosen(image["id"], policy, known, vo)
    except Problem as problem:
        problems.append(problem)
        return None


def _unknown(kind: str, name: str, known: List[str], path: str) -> Problem:
    detail = f"there is no {kind} {name}; there is {', '.join(known) or 'none'}"
    return Problem(f"unknown-{kind}", detail, path=path, accepted=known)


def _size_problems(policy: Policy, what: Asked, image: Optional[StartImage]) -> List[Problem]:
    problems = [one.problem("on this site") for one in outside(what, policy.maxima, policy.minima)]
    if image is not None and what.disk_gib < image.minimum_disk_gib:
        detail = f"image {image.ref.id} needs {image.minimum_disk_gib} GiB; a disk of {what.disk_gib} was asked for"
        path = what.path("disk_gib")
        problems.append(Problem("disk-too-small", detail, path=path, minimum=image.minimum_disk_gib))
    return problems


# ---- capacity ----


def _left(policy: Policy, records: Sequence[VmRecord], room: HostRoom) -> _Room:
    alive = [record.spec for record in records if record.outcome is None and not record.closed]
    open_ones = [record for record in records if not record.closed]
    promised_gib = sum(disks.promised_gib(record.spec) + snapshots.promised_gib(record) for record in open_ones)
    overhead_mib = max(policy.memory_overhead_mib, room.memory_overhead_mib)
    promised_mib = sum(spec.memory_mib + overhead_mib for spec in alive)
    return _Room(
        cores=math.floor(room.cores * policy.cpu_overcommit + 1e-9) - sum(spec.cores for spec in alive),
        memory_mib=room.memory_mib - policy.reserved_memory_mib - promised_mib,
        disk_gib=room.disk_free_gib + room.disk_written_gib - policy.disk_floor_gib - promised_gib,
        overhead_mib=overhead_mib,
    )


def disk_left_gib(policy: Policy, records: Sequence[VmRecord], room: HostRoom) -> int:
    """What is left to promise of the disk, above the floor; below 0 when too much was promised."""
    return _left(policy, records, room).disk_gib


def _lacking(what: Asked, times: int, left: _Room, room: HostRoom) -> List[Problem]:
    """Everything that is too little for `times` such VMs; one VM never has more cores than the host."""
    cores_free = min(left.cores, room.cores) if times == 1 or what.cores > room.cores else left.cores
    beside = f" (QEMU's {left.overhead_mib} for each included)" if left.overhead_mib else ""
    rows = (
        ("cores", what.cores, cores_free, ""),
        ("memory_mib", what.memory_mib + left.overhead_mib, left.memory_mib, beside),
        ("disk_gib", what.stored_gib, left.disk_gib, ""),
    )
    return [
        Problem("no-capacity", f"{name}: {each * times} needed{note}, {max(free, 0)} free on this host",
                path=what.path(name), resource=name, needed=each * times, free=max(free, 0))
        for name, each, free, note in rows
        if each * times > free
    ]  # fmt: skip


# ---- members ----


def _members(
    command: Command, policy: Policy, records: Sequence[VmRecord], room: HostRoom, start: _Start
) -> Admission:
    specs: List[VmSpec] = []
    refused: List[Tuple[int, Problem]] = []
    known = {record.vm for record in records}
    held = addresses.taken(records)
    left = start.left
    for member in range(start.what.count):
        try:
            spec = _member(command, policy, start, member, held, known)
            lacking = _lacking(start.what, 1, left, room)
            if lacking:
                raise Problems(lacking)
        except Problem as problem:
            refused.append((member, problem))
            continue
        specs.append(spec)
        held = held.plus(spec.interfaces)
        left = left.minus(start.what)
    if refused and (not specs or command.args.get("atomic")):
        raise _all([problem for _, problem in refused])
    return Admission(tuple(specs), tuple(refused))


def _member(
    command: Command, policy: Policy, start: _Start, member: int, held: addresses.Taken, known: Any
) -> VmSpec:
    vm = identity.vm_id(command.id, member)
    if vm in known:
        raise Problem("id-in-use", f"VM {vm} exists already on this host; use a new command id", path="id", vm=vm)
    args, what = command.args, start.what
    return VmSpec(
        vm=vm,
        name=args.get("name") or f"vm-{vm[:8]}",
        cores=what.cores,
        memory_mib=what.memory_mib,
        disk_gib=what.disk_gib,
        image=start.image.ref,
        interfaces=addresses.interfaces(vm, args.get("networks", ()), policy, held),
        limits=what.limits,
        owner=start.owner,
        controller=command.signer.subject,
        command=command.id,
        member=member,
        flavour=what.flavour,
        tags=tuple(args.get("tags", ())),
        keep_s=what.keep_s,
        atomic=bool(args.get("atomic", False)),
        count=what.count,
        disks=what.disks,
        restart=args.get("restart", "never"),
        context=context.digest(what.context, command.digest),
        **_patience(args),
    )


def _patience(args: Mapping[str, Any]) -> Dict[str, int]:
    """What the command says; the defaults stand in VmSpec."""
    return {name: args[name] for name in ("start_by_s", "ready_by_s") if name in args}


def _all(problems: Sequence[Problem]) -> Problems:
    """Each reason once: five hundred members without room share one."""
    flat = [one for p in problems for one in (p.problems if isinstance(p, Problems) else (p,))]
    return Problems(list({codec.canonical(problem.as_json()): problem for problem in flat}.values())[:MOST_PROBLEMS])
