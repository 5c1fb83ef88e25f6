"""A guest that others started becomes ours, and is given back (docs/design/0009): what is asked, refused and wished.

Theory.  Adoption is one commit of a wish, then our tag in the domain.  The wish names nothing that we would make or
remove: no image, disk or interface.  So all that is held is the lease, the guest's place in capacity and accounts, and
a cap of its CPU where one was asked for.  Its definition stays an administrator's: all that is ever changed in it is
our tag, and the cap is set in the live guest alone, so that the definition says what the cap was before.

Pure: what was seen of the domain and what was asked in, a wish or Problems out.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

from vmagent.core import limits, quota, schemas
from vmagent.core.commands import Command
from vmagent.core.model import Desired, ImageRef, Journal, Limits, Now, Owner, Reason, Seen, VmRecord, VmSpec
from vmagent.core.policy import Policy
from vmagent.core.room import Left
from vmagent.errors import Problem, Problems

NOT_OURS = frozenset({
    "vm.restart", "vm.revert", "vm.attach", "vm.detach", "vm.snapshot", "vm.snapshot.delete", "vm.snapshot.cancel",
})  # fmt: skip
"""Verbs that need a golden image, an overlay or a definition of ours."""

NOT_HELD: Tuple[str, ...] = (
    "network rules, anti-spoofing and bandwidth: its interfaces were made by others",
    "its disks' input and output, its memory and its CPU weight",
    "its image: nobody knows what it was started from",
)
"""What everybody who adopts a guest is told."""

NO_IMAGE = ImageRef("", "", "")


@dataclass(frozen=True)
class Candidate:
    """What libvirt says of a domain that is not ours."""

    vm: str
    name: str
    seen: Seen
    why: str  # as ForeignSeen.reason; "" = it is ours
    autostart: bool = False
    saved: bool = False
    persistent: bool = True  # it has a definition beside its life
    cores: int = 1
    memory_mib: int = 1
    devices: Tuple[str, ...] = ()  # host-side interface names
    disks: Tuple[str, ...] = ()  # target names


def asked(args: Mapping[str, Any]) -> None:
    """The args of `adopt`.  Problems `schema`."""
    schemas.check("adopt", args, "args")


def asked_back(args: Mapping[str, Any]) -> None:
    """The args of `disown`.  Problems `schema`."""
    schemas.check("disown", args, "args")


def refusals(candidate: Candidate, args: Mapping[str, Any], policy: Policy, cpu_caps: bool) -> List[Problem]:
    """Every reason why this domain cannot be adopted like this; cpu_caps: whether the driver can limit a CPU.

    Problems: `not-adoptable` (its `why` is a word), `over-limit`, `under-limit`, `not-supported-here`.
    """
    found: List[Problem] = []

    def refuse(holds: bool, why: str, detail: str) -> None:
        if holds:
            found.append(Problem("not-adoptable", f"{candidate.name}: {detail}", vm=candidate.vm, why=why))

    others = {"other-instance": "another agent's tag is in it: only that agent can give it back",
              "uuid-mismatch": "it is a copy of a guest of ours, with its tag; take the tag away first",
              "bad-tag": "a tag is in it that cannot be read; take it away first"}
    refuse(candidate.why == "", "ours", "it is ours already")
    refuse(candidate.why in others, candidate.why, others.get(candidate.why, ""))
    refuse(candidate.seen is not Seen.RUNNING, "not-running",
           f"it is {candidate.seen.value}; only a guest that runs is adopted")
    refuse(candidate.autostart, "autostart", "libvirt starts it at every boot, behind the agent's back; clear that "
           f"with: virsh autostart --disable {candidate.vm}")
    refuse(candidate.saved, "saved", "there is a saved run of it; remove that with: "
           f"virsh managedsave-remove {candidate.vm}")
    if args["lifetime_s"] > policy.maxima.lifetime_s:
        most = policy.maxima.lifetime_s
        found.append(Problem("over-limit", f"lifetime_s {args['lifetime_s']}; at most {most} on this site",
                             path="args.lifetime_s", needed=args["lifetime_s"], maximum=most))
    return found + _of_cap(args.get(quota.CAP), candidate, policy, cpu_caps)


def _of_cap(cap: Optional[int], candidate: Candidate, policy: Policy, cpu_caps: bool) -> List[Problem]:
    if cap is None:
        return []
    if not cpu_caps:
        detail = "this host's hypervisor driver cannot limit a guest's CPU"
        return [Problem("not-supported-here", detail, path=f"args.{quota.CAP}")]
    paths = {quota.CAP: f"args.{quota.CAP}"}
    beyond = limits.outside(Limits(cpu_cap_core_percent=cap), policy.maxima, candidate.cores, policy.minima, paths)
    return [one.problem("on this site") for one in beyond]


def wish(
    candidate: Candidate, args: Mapping[str, Any], who: str, incarnation: int, policy: Policy, now: Now
) -> VmRecord:
    """What is committed.  who: as an audit names him; incarnation: greater than of every earlier wish of this VM.

    Its lease begins now; so does its account, without what it used before.  Its cap is a change of limits like any
    other: what cannot be put in force is taken back.
    """
    cap = args.get(quota.CAP)
    spec = VmSpec(
        vm=candidate.vm, name=candidate.name, cores=candidate.cores, memory_mib=candidate.memory_mib, disk_gib=0,
        image=NO_IMAGE, interfaces=(), owner=Owner(args["owner"], args.get("fqan", "")), controller=who,
        command=str(uuid.uuid5(uuid.UUID(candidate.vm), f"adopted {incarnation} {now.wall}")), member=0,
        limits=Limits(cpu_cap_core_percent=cap, sources=((quota.CAP, "request"),) if cap is not None else ()),
        incarnation=incarnation, adopted=True,
    )  # fmt: skip
    journal = Journal(
        attempt_boot=now.boot_id, may_have_run=True, started_at=now.at, started_boot=now.boot_id,
        started_wall=now.wall, grace_s=policy.grace_s, renew_wanted=incarnation,
        limits_before=None if cap is None else Limits(), limits_since=0 if cap is None else 1,
    )  # fmt: skip
    return VmRecord(
        spec=spec, generation=1, desired=Desired.RUN, lifetime_s=args["lifetime_s"], accepted_at=now.at,
        accepted_boot=now.boot_id, accepted_wall=now.wall, journal=journal,
        reasons=(Reason(who, args.get("reason") or "adopted", now.wall),),
    )  # fmt: skip


def known_already(candidate: Candidate, record: Optional[VmRecord]) -> List[Problem]:
    """Nothing, or why this uuid is taken: it is being adopted, or a wish of ours met a domain of others."""
    if record is None or candidate.why == "":
        return []
    detail = f"{candidate.name}: the agent has a VM with this uuid; look at it with: vmagentctl show {candidate.vm}"
    return [Problem("not-adoptable", detail, vm=candidate.vm, why="known")]


def not_returnable(record: VmRecord) -> List[Problem]:
    """Nothing, or why it cannot be given back.  Problems: `not-adopted`, `ended`, `paused-by-us`."""
    if not record.spec.adopted:
        detail = f"VM {record.vm} was started by the agent, not adopted; stop or kill ends it"
        return [Problem("not-adopted", detail, vm=record.vm)]
    if record.outcome is not None:
        return [Problem("ended", f"VM {record.vm}: it has ended: {record.outcome.value}", vm=record.vm)]
    if record.desired is Desired.PAUSED:
        detail = f"VM {record.vm} is paused by the agent and would stay so; resume it first"
        return [Problem("paused-by-us", detail, vm=record.vm)]
    return []


def unsupported(command: Command, record: VmRecord) -> Iterator[Problem]:
    """Why this verb is not for this VM.  Problem `not-supported-here`."""
    if not record.spec.adopted:
        return
    if command.verb in NOT_OURS:
        detail = f"VM {record.vm} was adopted: its image, disks and definition are not ours, so no {command.verb}"
        yield Problem("not-supported-here", detail, vm=record.vm)
    for name in sorted(set(command.args) & {"cpu_weight", "disk_io", "networks"}):
        detail = f"VM {record.vm} was adopted: of its limits only {quota.CAP} is held"
        yield Problem("not-supported-here", detail, vm=record.vm, path=f"args.{name}", accepted=[quota.CAP])


def told(candidate: Candidate, record: VmRecord, left: Left) -> Dict[str, Any]:
    """What a person sees before he says yes, and after.  left: of the host, with this wish; it is only told, for the
    guest runs already.
    """
    short = (("cores", left.cores), ("memory_mib", left.memory_mib))
    return {
        "vm": candidate.vm, "name": candidate.name, "cores": candidate.cores, "memory_mib": candidate.memory_mib,
        "owner": {"subject": record.spec.owner.subject, "fqan": record.spec.owner.fqan, "vo": record.spec.owner.vo},
        "lifetime_s": record.lifetime_s, quota.CAP: record.spec.limits.cpu_cap_core_percent,
        "devices": list(candidate.devices), "disks": list(candidate.disks),
        "held": ["the lease, with its warnings and its end", "its place in capacity and accounts, from now on"]
        + (["a cap of its CPU"] if record.spec.limits.cpu_cap_core_percent is not None else []),
        "not_held": list(NOT_HELD),
        "short": [f"{name}: {-free} more promised than this host has to give" for name, free in short if free < 0],
    }  # fmt: skip


def raised(problems: List[Problem]) -> None:
    """All of them at once, if there are any."""
    if problems:
        raise Problems(problems)
