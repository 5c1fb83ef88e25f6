"""What this host can take, now and later: the data of host.capacity (R9, R10, R19, I1, I4, I6).

Rules

1. Free is what admission would accept: the numbers come from room.py, the reasons from admission's own functions.
2. Physical cores are irrelevant (I6): `total` is what may be sold, the reserve and the overcommitment stand beside it.
3. What nobody could measure is null, never 0.  `free` is never below 0.
4. "Later" counts what is certain only (forecast.py): it is a lower bound, and says nothing of what comes meanwhile.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from vmagent.core import addresses, admission, census, codec, forecast, starts, walltime
from vmagent.core import room as rooms
from vmagent.core.asked import Asked, asked
from vmagent.core.context import NOTHING
from vmagent.core.model import Limits, Now, Phase, VmRecord
from vmagent.core.policy import Flavour, NetworkType, Policy
from vmagent.core.room import HostRoom, Left
from vmagent.core.starts import Start
from vmagent.errors import Problem, Problems

VALID_S = 300
"""The longest that any information about the host is believed (I5)."""
LATER_S = (600, 3600, 21600)
LEAST = {"cores": 1, "memory_mib": 16, "disk_gib": 1}  # as vm.start's schema
Json = Dict[str, Any]


@dataclass(frozen=True)
class Device:
    """A PCI device that a guest might be given: displays, 3D controllers, accelerators."""

    address: str  # "0000:3b:00.0"
    kind: str  # display | 3d | accelerator
    vendor: str  # "0x10de"
    device: str
    driver: Optional[str] = None  # None = no driver has it; "vfio-pci" = it is set aside for guests
    iommu_group: Optional[int] = None  # None = it has none: it cannot be passed through


@dataclass(frozen=True)
class Around:
    """What the host's kernel says of what lies around the guests.  None = it does not say."""

    links_kbit: Mapping[str, Optional[int]] = field(default_factory=dict)  # speed of each bridge's uplink
    devices: Optional[Tuple[Device, ...]] = None
    cpu_model: Optional[str] = None
    cpu_mhz: Optional[int] = None  # at most, where the host says so


@dataclass(frozen=True)
class Here:
    """Everything that capacity is reckoned from.  phases: by VM id; starts: of the last day."""

    policy: Policy
    records: Sequence[VmRecord]
    phases: Mapping[str, Phase]
    room: HostRoom
    around: Around
    now: Now
    starts: Sequence[Start] = ()
    stale: Sequence[Mapping[str, Any]] = ()  # parts that are older than this message: {part, since, why}

    def at(self, in_s: float) -> Here:
        """The same when those who end by then have ended."""
        records, room = forecast.later(self.records, self.phases, self.now, in_s, self.room)
        return dataclasses.replace(self, records=records, room=room)

    @cached_property
    def left(self) -> Left:
        return rooms.left(self.policy, self.records, self.room)

    @cached_property
    def taken(self) -> addresses.Taken:
        return addresses.taken(self.records)


def published(here: Here) -> Json:
    """The data of host.capacity, without the renderings that go with it."""
    now = here.now
    return {
        **standing(here),
        "at": now.wall,
        "valid_until": walltime.text(walltime.seconds(now.wall) + VALID_S),
        "later": [_later(here, in_s) for in_s in LATER_S],
        "kernel": {"descriptors_free": _floor(here.left.descriptors), "tasks_free": _floor(here.left.tasks)},
        "starts": starts.told(here.starts),
    }


def standing(here: Here) -> Json:
    """What of it changes only with what is promised or given: not by itself, nor with every start."""
    policy = here.policy
    smallest = _smallest(policy, here.left)
    reasons = plain([*admission.host_problems({}, policy, here.room), *_lacking(smallest, here)])
    return {
        "site": policy.site,
        "host": policy.host,
        "boot_id": here.now.boot_id,
        "stale": [dict(one) for one in here.stale],
        **sums(here),
        "vms": census.vms(here.records, here.phases),
        "vos": census.vos(here.records, here.phases),
        "flavours": [_flavour(name, flavour, here) for name, flavour in sorted(policy.flavours.items())],
        "largest": largest(here),
        "instance": _instance(here),
        "full": bool(reasons),
        "reasons": reasons,
        "networks": [network(here, one) for _, one in sorted(policy.networks.items())],
        "cpu": {"model": here.around.cpu_model, "mhz": here.around.cpu_mhz,
                "benchmark": codec.plain(policy.accounting.benchmark)},
        "devices": None if here.around.devices is None else [codec.plain(one) for one in here.around.devices],
    }


# ---- sums


def sums(here: Here) -> Json:
    """{cores, memory_mib, disk_gib: {total, reserved, overcommit, promised, free}}."""
    policy, room, left = here.policy, here.room, here.left
    held = rooms.promised(policy, here.records, room)
    learned = room.memory_overhead_mib or None
    return {
        "cores": {"host": room.cores, **_sum(left.cores, held.cores, 0, policy.cpu_overcommit)},
        "memory_mib": {
            "host": room.memory_mib, **_sum(left.memory_mib, held.memory_mib, policy.reserved_memory_mib, 1.0),
            "overhead": {"counted": left.overhead_mib, "learned": learned},
        },
        "disk_gib": {"host": None, **_sum(left.disk_gib, held.disk_gib, policy.disk_floor_gib, 1.0)},
    }  # fmt: skip


def _sum(left: int, held: int, reserved: int, overcommit: float) -> Json:
    return {"total": max(0, left + held), "reserved": reserved, "overcommit": overcommit, "promised": held,
            "free": max(0, left)}


def _floor(free: Optional[int]) -> Optional[int]:
    return None if free is None else max(0, free)


# ---- how many, how large


def _flavour(name: str, flavour: Flavour, here: Here) -> Json:
    count, reasons = how_many({"flavour": name, "lifetime_s": 1}, here)
    return {"flavour": name, "cores": flavour.cores, "memory_mib": flavour.memory_mib, "disk_gib": flavour.disk_gib,
            "possible": count, "reasons": plain(reasons)}


def how_many(args: Mapping[str, Any], here: Here) -> Tuple[int, List[Problem]]:
    """(how many more VMs of such a start fit, all the reasons why not one more).

    args: as of vm.start, `image` and `count` left out.
    """
    policy, room = here.policy, here.room
    problems = admission.host_problems(args, policy, room) + admission.name_problems(args, policy)
    try:
        what = asked(args, policy)
    except Problems as found:
        return 0, [*problems, *found.problems]
    problems += admission.unfit(what, policy, room)
    count = 0 if problems else min(rooms.possible(what, here.left, policy), _addressed(what, here))
    too_little = rooms.lacking(what, 1, here.left.minus(what, policy, count), policy)
    return count, [*problems, *too_little, *_addresses_lacking(what, here, count)]


def _addressed(what: Asked, here: Here) -> int:
    """How many of them get addresses."""
    free = [addresses.free(network, here.taken) for network in _networks(what, here.policy)]
    each = [one // what.networks.count(network.name) for one, network in zip(free, _networks(what, here.policy))
            if one is not None]
    return min(each, default=rooms.MOST)


def _networks(what: Asked, policy: Policy) -> List[NetworkType]:
    return [policy.networks[name] for name in dict.fromkeys(what.networks) if name in policy.networks]


def _addresses_lacking(what: Asked, here: Here, count: int) -> List[Problem]:
    problems = []
    for network in _networks(what, here.policy):
        each, free = what.networks.count(network.name), addresses.free(network, here.taken)
        if free is not None and free < each * (count + 1):
            detail = f"addresses of {network.name}: {each} needed, {free - each * count} free on this host"
            problems.append(Problem("no-capacity", detail, path="args.networks", resource="addresses", needed=each,
                                    free=free - each * count))
    return problems


def largest(here: Here) -> Optional[Json]:
    """The largest VM that would be taken now, size by size; None when none is."""
    left, maxima = here.left, here.policy.maxima
    size = {
        "cores": min(left.cores, left.host_cores, maxima.cores),
        "memory_mib": min(left.memory_mib - left.overhead_mib, maxima.memory_mib),
        "disk_gib": min(left.disk_gib, maxima.disk_gib),
    }
    if left.tasks is not None:
        size["cores"] = min(size["cores"], left.tasks - rooms.TASKS)
    small = any(size[name] < least for name, least in _least(here.policy).items())
    short = left.descriptors is not None and left.descriptors < rooms.DESCRIPTORS
    return None if small or short or admission.host_problems({}, here.policy, here.room) else size


def _least(policy: Policy) -> Dict[str, int]:
    return {name: getattr(policy.minima, name) or least for name, least in LEAST.items()}


def _instance(here: Here) -> Json:
    """The sizes that a VM may have here at all: what the site allows and this host, were it empty, could give."""
    room, policy = here.room, here.policy
    held = rooms.promised(policy, here.records, room)
    empty = {
        "cores": room.cores,
        "memory_mib": here.left.memory_mib + held.memory_mib - here.left.overhead_mib,
        "disk_gib": here.left.disk_gib + held.disk_gib,
    }
    least = _least(policy)
    most = {name: max(least[name], min(getattr(policy.maxima, name), empty[name])) for name in LEAST}
    return {"minimum": least, "maximum": most}


def _smallest(policy: Policy, left: Left) -> Asked:
    """The smallest VM that the site takes, with an interface where it has most room for one."""
    known = [one for one in policy.networks.values() if one.bridge in left.ports]
    roomy = sorted(known, key=lambda one: (-left.ports[one.bridge], one.name))[:1]
    only = len(known) == len(policy.networks)  # else there is one that nobody counts the ports of
    names = tuple(one.name for one in roomy) if only else ()
    least = _least(policy)
    return Asked("", least["cores"], least["memory_mib"], least["disk_gib"], Limits(), 1, 0, 1, names, NOTHING)


def _lacking(what: Asked, here: Here) -> List[Problem]:
    return rooms.lacking(what, 1, here.left, here.policy)


def _later(here: Here, in_s: int) -> Json:
    then = here.at(in_s)
    alive = sum(1 for record in then.records if record.outcome is None)
    return {
        "in_s": in_s,
        "at": walltime.text(walltime.seconds(here.now.wall) + in_s),
        "ending": sum(1 for record in here.records if record.outcome is None) - alive,
        "free": {name: one["free"] for name, one in sums(then).items()},
        "largest": largest(then),
        "flavours": {
            name: how_many({"flavour": name, "lifetime_s": 1}, then)[0] for name in sorted(here.policy.flavours)
        },
    }


# ---- networks


def network(here: Here, one: NetworkType) -> Json:
    """What is sold of a network, and what its uplink carries.

    guarantee: `hard-cap`: the kernel holds every interface to a limit that it cannot be without, so nobody's burst
    takes more than was sold; `shared`: some interface may take what is there.
    """
    nics = [nic for record in here.records if record.outcome is None and not record.closed
            for interface, nic in zip(record.spec.interfaces, record.spec.limits.nics) if interface.network == one.name]
    sold = {way: [getattr(nic, f"bandwidth_{way}_kbit") for nic in nics] for way in ("in", "out")}
    link = here.around.links_kbit.get(one.bridge)
    maxima = here.policy.maxima
    bound = None not in (maxima.bandwidth_in_kbit, maxima.bandwidth_out_kbit) and here.room.shaping
    capped = bound and all(None not in each for each in sold.values())
    return {
        "type": one.name,
        "interfaces": len(nics),
        "unlimited": sum(1 for nic in nics if None in (nic.bandwidth_in_kbit, nic.bandwidth_out_kbit)),
        **{f"bandwidth_sold_{way}_kbit": sum(kbit or 0 for kbit in each) for way, each in sold.items()},
        **{f"bandwidth_free_{way}_kbit": _unsold(link, each) for way, each in sold.items()},
        "bandwidth_link_kbit": link,
        "guarantee": "hard-cap" if capped else "shared",
        "addresses_free": addresses.free(one, here.taken),
        "ports_free": _floor(here.left.ports.get(one.bridge)),
    }


def _unsold(link: Optional[int], sold: Sequence[Optional[int]]) -> Optional[int]:
    """What is left of the uplink; None when it is not known, or somebody has no limit."""
    limits = [kbit for kbit in sold if kbit is not None]
    return None if link is None or len(limits) < len(sold) else max(0, link - sum(limits))


def plain(problems: Sequence[Problem]) -> List[Json]:
    return [problem.as_json() for problem in problems[: admission.MOST_PROBLEMS]]
