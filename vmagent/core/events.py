"""What is published (PROTOCOL 2): phases, full states, warnings, alerts, and their CloudEvents envelope.

Rules: a `vm.state` is the whole truth about one VM, never a delta.  Every datum carries its age; members that change by
themselves with time (`VOLATILE`) are left out of the digest that decides whether a state is published again.
The shape of each `data` stands in `vmagent/schema/event.<type>.json`; readers ignore members that they do not know.
"""

from __future__ import annotations

import copy
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from vmagent.core import codec, disks, lease, limitviews, renewal, snapshots, trustview, walltime
from vmagent.core.changes import Epoch, OutboxRow
from vmagent.core.drivers import PROFILES
from vmagent.core.model import (
    Desired,
    ForeignSeen,
    HypervisorInfo,
    Now,
    Observed,
    Owner,
    Phase,
    Seen,
    VmRecord,
    VmSpec,
)
from vmagent.core.policy import Policy
from vmagent.core.rebirth import Reproven
from vmagent.core.trust import VerifiedList

PREFIX = "org.vmagent."
TYPES: Mapping[str, int] = {
    "vm.state": 1,
    "vm.lease.warning": 1,
    "limits.reproven": 1,
    "vm.usage": 1,
    "host.state": 1,
    "host.snapshot": 1,
    "host.capacity": 1,
    "host.telemetry": 1,
    "security.alert": 1,
    "image.state": 1,
    "stream.gap": 1,
}
"""Every published type and the version of its schema."""

VOLATILE: Tuple[Tuple[str, ...], ...] = (
    ("observed_at",),
    ("age_s",),
    ("lease", "used_s"),
    *(("limits", "proven", name, "proven_at") for name in limitviews.PROVEN),
)
PROVING: Tuple[Tuple[str, ...], ...] = (("limits", "proven"), ("limits", "drift"))
"""Left out of the digest as well while a VM starts: its limits are proven one by one, and only the end is news."""

HELD: Mapping[str, str] = {
    "firewall-drift": "its rules in nftables were not as wanted while it ran",
    "bandwidth-drift": "its bandwidth limits were not as wanted while it ran",
    "port-drift": "the guard of its bridge port was off while it ran",
    "isolated": "its limits could not be restored: its interfaces are down",
    "rejoined": "its limits are proven again: its interfaces are up",
    "spoofed": "it sent frames with addresses that are not its own: dropped",
    "capped": "it opened more connections than it may, or to more destinations: dropped",
}
"""Kinds of security.alert about the network limits of running VMs, and what they mean in words."""

OF_THE_HOST: Mapping[str, str] = {
    "accounting-imbalance": "more is accounted for than the host gives: an error in its books",
}
"""Kinds of security.alert about the host itself."""

OF_IMAGES: Mapping[str, str] = {
    "image-distrusted": "guests run on an image that is not trusted any more",
}
"""Kinds of security.alert about images."""

ROOT_DISKS = frozenset(profile.disk_names[0] for profile in PROFILES.values())


# -- phases


def is_ready(record: VmRecord, observed: Observed) -> bool:
    """Running, proven, all its disks attached, and on every interface a frame from an assigned address was seen.

    Without interfaces storage alone decides; of an adopted guest, whose disks are not ours, that it runs.
    """
    domain, journal = observed.domain, record.journal
    running = domain.seen is Seen.RUNNING and journal.may_have_run and journal.paused_by != "start"
    stored = bool(ROOT_DISKS.intersection(domain.disks))
    stored = record.spec.adopted or (stored and all(disks.attached(disk, domain) for disk in record.spec.disks))
    spoken = {i.device for i in record.spec.interfaces if i.addresses} <= set(observed.network_seen)
    return running and stored and spoken


def _phase_off(record: VmRecord, observed: Observed) -> Phase:
    """No live domain."""
    if record.outcome is not None:
        return Phase.STOPPED
    if renewal.wanted(record):
        return Phase.PENDING if observed.domain.seen is Seen.MISSING else Phase.STOPPING
    if record.journal.may_have_run or record.desired in (Desired.STOP, Desired.ABSENT):
        return Phase.STOPPING
    fetched = "overlay" in observed.leftovers or observed.domain.seen is not Seen.MISSING
    return Phase.STARTING if fetched else Phase.FETCHING


def _phase_running(record: VmRecord, observed: Observed) -> Phase:
    if not record.journal.may_have_run or record.journal.paused_by == "start":
        return Phase.STARTING
    told = record.journal.ready_at is not None
    return Phase.READY if told or is_ready(record, observed) else Phase.RUNNING


def _phase_paused(record: VmRecord) -> Phase:
    starting = record.desired is Desired.RUN and record.journal.paused_by in ("start", "resume")
    return Phase.STARTING if starting else Phase.PAUSED


def phase(record: VmRecord, observed: Observed) -> Phase:
    """The word people see.  What cannot be seen is `unknown`, except what we know without looking."""
    seen = observed.domain.seen
    if record.closed:
        return Phase.STOPPED
    if seen is Seen.UNKNOWN:
        begun = record.journal.attempt_boot or record.journal.may_have_run or record.outcome is not None
        return Phase.UNKNOWN if begun else Phase.PENDING
    if seen in (Seen.FOREIGN, Seen.STUCK):
        return Phase(seen.value)
    if seen in (Seen.MISSING, Seen.OFF, Seen.CRASHED):
        return _phase_off(record, observed)
    ending = record.desired in (Desired.STOP, Desired.ABSENT) or renewal.wanted(record)
    if record.outcome is not None or ending or seen is Seen.STOPPING:
        return Phase.STOPPING
    if seen is Seen.RUNNING:
        return _phase_running(record, observed)
    return Phase.PAUSED if seen is Seen.SAVED else _phase_paused(record)


# -- vm.state


def vm_state(record: VmRecord, observed: Observed, now: Now, policy: Policy) -> Dict[str, Any]:
    """The `data` of vm.state.  `since` is the record's: whoever stores a change of phase sets it first."""
    spec, domain = record.spec, observed.domain
    last = record.reasons[-1] if record.reasons else None
    data: Dict[str, Any] = {
        "vm": spec.vm,
        "host": policy.host,
        "name": spec.name,
        "generation": record.generation,
        "desired": record.desired.value,
        "phase": phase(record, observed).value,
        "since": record.since_wall or record.accepted_wall,
        "observed_at": ago(domain.at, now),
        "age_s": round(max(0.0, now.at - domain.at), 3),
        "reason": last.why if last else "",
        "reasons": [{"who": r.who, "why": r.why, "when": r.when_wall} for r in record.reasons],
        "hypervisor": {"state": domain.seen.value, "reason": domain.reason},
        "outcome": record.outcome.value if record.outcome else None,
        "closed": record.closed,
        "lease": _lease(record, now),
        "limits": limits(spec, observed, now),
        "timings_ms": dict(record.timings_ms),
        "alarms": list(record.journal.alarms),
        "volumes": [
            {"volume": use.disk.volume, "read_only": use.disk.read_only, "attached_at": use.attached_wall,
             "detached_at": use.detached_wall or None}
            for use in record.journal.volumes
        ],
        "snapshots": snapshots.told(record),
        "fetch": codec.plain(observed.fetching),
    }
    data.update(_asked(spec))
    return data


def _asked(spec: VmSpec) -> Dict[str, Any]:
    """The part of a state that the wish says."""
    return {
        "owner": _owner(spec.owner),
        "controller": spec.controller,
        "command": spec.command,
        "member": spec.member,
        "image": codec.plain(spec.image),
        "flavour": spec.flavour,
        "cores": spec.cores,
        "memory_mib": spec.memory_mib,
        "disk_gib": spec.disk_gib,
        "cpu_cap_core_percent": spec.limits.cpu_cap_core_percent,
        "interfaces": [
            {"mac": i.mac, "addresses": list(i.addresses), "network": i.network, "device": i.device}
            for i in spec.interfaces
        ],
        "tags": list(spec.tags),
        "disks": [disks.plain(disk) for disk in spec.disks],
        "restart": spec.restart,
        "incarnation": spec.incarnation,
        "adopted": spec.adopted,
    }


def _owner(owner: Owner) -> Dict[str, str]:
    return {"subject": owner.subject, "fqan": owner.fqan, "vo": owner.vo}


def ago(at: float, now: Now) -> Optional[str]:
    """Boot time `at` of this boot as wall time; None when it was never."""
    if at <= 0.0:
        return None
    return walltime.text(walltime.seconds(now.wall) - max(0.0, now.at - at))


def _lease(record: VmRecord, now: Now) -> Dict[str, Any]:
    """`ends_at` is for people: reckoned from the wall time of the first resume, so it does not move."""
    started = record.journal.started_wall
    ends = walltime.text(walltime.seconds(started) + record.lifetime_s) if started else None
    return {
        "granted_s": record.lifetime_s,
        "used_s": int(lease.used_s(record, now)),
        "started_at": started or None,
        "ends_at": ends,
    }


def limits(spec: VmSpec, observed: Observed, now: Now) -> Dict[str, Any]:
    """`limits` of vm.state: what is wanted, what was read back as wanted and when, and what differs."""
    drift = limitviews.drift(spec, observed)
    proven = {
        name: {**value, "proven_at": ago(limitviews.seen_at(name, observed), now)}
        for name, value in limitviews.proven(spec, observed, drift).items()
    }
    return {"wanted": limitviews.wanted(spec), "proven": proven, "drift": codec.plain(drift)}


def state_digest(data: Mapping[str, Any]) -> str:
    """SHA-256 of a vm.state without what changes by itself."""
    kept = copy.deepcopy(dict(data))
    for path in (*VOLATILE, *(PROVING if kept.get("phase") == Phase.STARTING.value else ())):
        _drop(kept, path)
    return codec.digest(kept)


def _drop(tree: Dict[str, Any], path: Sequence[str]) -> None:
    for name in path[:-1]:
        if not isinstance(tree.get(name), dict):
            return
        tree = tree[name]
    tree.pop(path[-1], None)


# -- the other messages


def _whose(record: VmRecord) -> Dict[str, Any]:
    """Which VM a message is about, and whose it is."""
    spec = record.spec
    return {"vm": record.vm, "name": spec.name, "generation": record.generation, "owner": _owner(spec.owner),
            "controller": spec.controller, "command": spec.command, "tags": list(spec.tags)}


def lease_warning(record: VmRecord, now: Now, before_s: int) -> Dict[str, Any]:
    """The `data` of vm.lease.warning: the threshold that was passed, and what is really left."""
    end = lease.ends_at(record)
    return {
        **_whose(record),
        "before_s": before_s,
        "remaining_s": max(0, int((end if end is not None else now.at) - now.at)),
        "lease": _lease(record, now),
    }


def limits_reproven(record: VmRecord, told: Reproven, now: Now) -> Dict[str, Any]:
    """The `data` of limits.reproven: a guest rebooted, that made a new domain, and its limits hold again."""
    return {
        **_whose(record),
        "domain": {"before": told.before, "now": told.number},
        "unproven_s": round(told.unproven_s, 3),
        "proven_at": now.wall,
    }


def host_state(
    info: HypervisorInfo,
    policy: Policy,
    now: Now,
    *,
    epoch: Epoch,
    version: str,
    drained: bool,
    degraded: Mapping[str, str],
    commands: Sequence[str],
    security: str,
    certificates: Sequence[Mapping[str, Any]],
    capabilities: Mapping[str, Any],
    lists: Mapping[str, VerifiedList],
) -> Dict[str, Any]:
    """The `data` of host.state.

    degraded: part -> why; commands: schemas accepted ("vm.start/1"); security: "signed" | "broker";
    certificates: validity.published; capabilities: limitviews.capabilities; lists: as verified.
    """
    return {
        "site": policy.site,
        "host": policy.host,
        "instance": policy.instance,
        "version": version,
        "alive": True,
        "at": now.wall,
        "boot_id": now.boot_id,
        "up_s": int(now.at),
        "drained": drained,
        "degraded": [{"part": part, "why": why} for part, why in sorted(degraded.items())],
        "epoch": {"id": epoch.id, "number": epoch.number, "born_at": epoch.born_wall, "cause": epoch.cause},
        "hypervisor": {
            **codec.plain(info), "domain_type": info.domain_type or "unknown", "since": ago(info.since, now)
        },
        "commands": sorted(commands),
        "security": security,
        "certificates": [dict(one) for one in certificates],
        "capabilities": codec.plain(capabilities),
        "flavours": sorted(policy.flavours),
        "volumes": _volumes(policy),
        "image_trust": trustview.published(policy.trust, lists),
        "images": [{"id": i.id, "sha512": i.sha512, "format": i.format} for _, i in sorted(policy.images.items())],
    }


def _volumes(policy: Policy) -> List[Dict[str, Any]]:
    return [{"name": v.name, "writable": v.writable, "vos": list(v.vos)} for _, v in sorted(policy.volumes.items())]


def host_snapshot(
    host: Mapping[str, Any],
    states: Sequence[Mapping[str, Any]],
    foreign: Sequence[ForeignSeen],
    sequences: Mapping[str, int],
    epoch: Epoch,
    now: Now,
    images: Sequence[Mapping[str, Any]] = (),
    capacity: Optional[Mapping[str, Any]] = None,
) -> Dict[str, Any]:
    """The `data` of host.snapshot: host.state, every vm.state and image.state, host.capacity (None = it cannot be told
    now), and the last sequence of each stream before this."""
    return {
        "at": now.wall,
        "host": dict(host),
        "vms": [dict(state) for state in states],
        "foreign": [codec.plain(f) for f in foreign],
        "images": [dict(image) for image in images],
        "capacity": None if capacity is None else dict(capacity),
        "epoch": epoch.id,
        "epochnumber": epoch.number,
        "sequences": dict(sorted(sequences.items())),
    }


def security_alert(*, kind: str, detail: str, now: Now, **fields: Any) -> Dict[str, Any]:
    """The `data` of security.alert; `fields` as the kind has them: vm, who, command, problem, count;
    of HELD: vm, devices, found (in words, one for each difference), count (frames), repaired.
    """
    return {"kind": kind, "detail": detail, "at": now.wall, **codec.plain(fields)}


def stream_gap(stream: str, first: int, last: int, why: str, now: Now) -> Dict[str, Any]:
    """The `data` of stream.gap: sequences `first` to `last` of `stream` will never come."""
    return {"stream": stream, "first": first, "last": last, "count": last - first + 1, "why": why, "at": now.wall}


# -- the envelope


def cloud_event(row: OutboxRow, source: str) -> Dict[str, Any]:
    """The row as a CloudEvents 1.0 message in structured mode; `source` is "//SITE/HOST"."""
    name = row.type[len(PREFIX) :] if row.type.startswith(PREFIX) else row.type
    sequence = f"{row.sequence:012d}"
    return {
        "specversion": "1.0",
        "id": f"{row.epoch}-{row.stream}-{sequence}",
        "source": source,
        "type": row.type,
        "subject": row.subject,
        "time": row.time_wall,
        "datacontenttype": "application/json",
        "dataschema": f"urn:vmagent:schema:{name}:{TYPES.get(name, 1)}",
        "stream": row.stream,
        "sequence": sequence,
        "epoch": row.epoch,
        "epochnumber": row.epoch_number,
        "data": dict(row.data),
    }
