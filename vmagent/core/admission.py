"""May this start be taken here, and as what: site limits, capacity, addresses (PROTOCOL 3).

Two kinds of reasons.  What is wrong with the request or the host concerns every member and refuses the whole: all such
reasons are told together.  What runs out (capacity, addresses) concerns members, in order: `atomic` needs room for all,
otherwise as many as fit are admitted and the rest is refused, each with its reasons.

Capacity (room.py) counts wishes, not processes.  Free on the disk is what is free now, minus the floor, minus *all*
that the disks of open wishes may grow to but what they have written already (`disk_written_gib`; not known, it counts
twice), so that a promise is always kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from vmagent.core import abilities, addresses, codec, context, disks, identity, imagechoice, request
from vmagent.core.asked import Asked, asked, outside
from vmagent.core.commands import Command
from vmagent.core.model import Owner, VmRecord, VmSpec
from vmagent.core.policy import Policy
from vmagent.core.room import HostRoom, Left, lacking, left
from vmagent.core.startimage import NONE, Endorsements, StartImage, chosen
from vmagent.errors import Problem, Problems

MOST_PROBLEMS = 20


@dataclass(frozen=True)
class Admission:
    """What is taken, and which members are not."""

    specs: Tuple[VmSpec, ...]
    refused: Tuple[Tuple[int, Problem], ...] = ()  # (member, why)


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
    problems = host_problems(command.args, policy, room) + name_problems(command.args, policy)
    what: Optional[Asked] = None
    owner, unowned = _owner(command)
    image = _image(command, policy, known, owner, problems)
    problems += unowned
    try:
        what = asked(command.args, policy)
    except Problems as found:
        problems += found.problems
    free = left(policy, records, room)
    problems += _kind_problems(image, room)
    if what is not None and image is not None:
        problems += abilities.of_disks(image.ref, what.disks, room)
    if what is not None:
        problems += unfit(what, policy, room) + _image_problems(what, image)
        at_once = what.count if command.args.get("atomic") else 1
        problems += lacking(what, at_once, free, policy)
        if owner is not None:
            problems += disks.problems(what.disks, owner, policy, records, what.count, "args.disks[]")
    if problems or what is None or owner is None or image is None:
        raise _all(problems)
    return _members(command, policy, records, room, _Start(what, owner, free, image))


@dataclass(frozen=True)
class _Start:
    what: Asked
    owner: Owner
    left: Left
    image: StartImage


# ---- reasons that concern the whole ----


def host_problems(args: Mapping[str, Any], policy: Policy, room: HostRoom) -> List[Problem]:
    """Why this host takes no start with these args, whatever its size."""
    problems: List[Problem] = []
    if room.drained:
        problems.append(Problem("drained", f"{policy.host} takes no new VMs until it is undrained"))
    if not room.emulated_ok:
        detail = f"{policy.host} has no hardware virtualisation, and the site forbids emulation"
        problems.append(Problem("no-virtualisation", detail))
    if args.get("networks") and not room.filtering:
        detail = "nft does not work on this host, so no interface can be guarded: ask for none, or for another host"
        problems.append(Problem("not-supported-here", detail, path="args.networks", capability="firewall"))
    return problems


def unfit(what: Asked, policy: Policy, room: HostRoom) -> List[Problem]:
    """Why no VM of this size and with these limits is ever taken here, however much is free."""
    beyond = [one.problem("on this site") for one in outside(what, policy.maxima, policy.minima)]
    return beyond + abilities.of_limits(what.limits, room)


def name_problems(args: Mapping[str, Any], policy: Policy) -> List[Problem]:
    """Networks that the site does not have, and addresses that several VMs cannot share."""
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


def _kind_problems(image: Optional[StartImage], room: HostRoom) -> List[Problem]:
    found = None if image is None else abilities.of_image(image.ref, room)
    return [] if found is None else [found]


def _image_problems(what: Asked, image: Optional[StartImage]) -> List[Problem]:
    if image is None or what.disk_gib >= image.minimum_disk_gib:
        return []
    detail = f"image {image.ref.id} needs {image.minimum_disk_gib} GiB; a disk of {what.disk_gib} was asked for"
    return [Problem("disk-too-small", detail, path=what.path("disk_gib"), minimum=image.minimum_disk_gib)]


# ---- members ----


def _members(
    command: Command, policy: Policy, records: Sequence[VmRecord], room: HostRoom, start: _Start
) -> Admission:
    specs: List[VmSpec] = []
    refused: List[Tuple[int, Problem]] = []
    known = {record.vm for record in records}
    held = addresses.taken(records)
    free = start.left
    for member in range(start.what.count):
        try:
            spec = _member(command, policy, start, member, held, known)
            too_little = lacking(start.what, 1, free, policy)
            if too_little:
                raise Problems(too_little)
        except Problem as problem:
            refused.append((member, problem))
            continue
        specs.append(spec)
        held = held.plus(spec.interfaces)
        free = free.minus(start.what, policy)
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


def _patience(args: Mapping[str, Any]) -> Dict[str, Any]:
    """What the command says; the defaults stand in VmSpec."""
    return {name: args[name] for name in ("start_by_s", "ready_by_s") if name in args}


def _all(problems: Sequence[Problem]) -> Problems:
    """Each reason once: five hundred members without room share one."""
    flat = [one for p in problems for one in (p.problems if isinstance(p, Problems) else (p,))]
    return Problems(list({codec.canonical(problem.as_json()): problem for problem in flat}.values())[:MOST_PROBLEMS])
