"""What people see on the local socket: pure functions of wishes and observations.

Rules: nothing is looked up, nothing is remembered; every answer is plain JSON.  What was not observed is told as
unknown, never as absent (DESIGN 1.4).  Units are in the names; `age_s` is the age of the observation.
A `row` is one VM in short:

    vm name phase desired outcome owner vo controller cores memory_mib disk_gib image addresses tags
    left_s (of the lease; null before the first resume and after the end) since (wall) age_s (null = never seen) why
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from vmagent.core import codec, events
from vmagent.core.changes import Epoch
from vmagent.core.forecast import ends_in_s, left_s
from vmagent.core.model import (
    DomainSeen,
    ForeignSeen,
    HypervisorInfo,
    NicCounters,
    Now,
    Observed,
    Outcome,
    Seen,
    VmRecord,
)
from vmagent.core.policy import Policy
from vmagent.core.snapshotmodel import is_file
from vmagent.errors import Problem
from vmagent.local import handles

Json = Dict[str, Any]
LIVE = (Seen.RUNNING, Seen.PAUSED, Seen.STOPPING, Seen.CRASHED, Seen.STUCK)
BLIND = (Seen.UNKNOWN, Seen.FOREIGN)
SEEN_TO_END = (Outcome.EXPIRED, Outcome.KILLED, Outcome.FINISHED, Outcome.CRASHED)


def seen_of(record: VmRecord, observed: Mapping[str, Observed]) -> Observed:
    """The observation of this VM, or one that says that there is none."""
    return observed.get(record.vm) or Observed(DomainSeen(record.vm, Seen.UNKNOWN, "not observed yet"))


def age_s(one: Observed, now: Now) -> Optional[float]:
    """Seconds since the observation; None when there never was one in this boot."""
    at = one.domain.at
    return None if at <= 0.0 else round(max(0.0, now.at - at), 1)


def row(record: VmRecord, observed: Mapping[str, Observed], now: Now) -> Json:
    """One VM in short, as in the module's head."""
    spec = record.spec
    one = seen_of(record, observed)
    return {
        "vm": record.vm,
        "name": spec.name,
        "phase": events.phase(record, one).value,
        "desired": record.desired.value,
        "outcome": record.outcome.value if record.outcome else None,
        "owner": spec.owner.subject,
        "vo": spec.owner.vo,
        "controller": spec.controller,
        "cores": spec.cores,
        "memory_mib": spec.memory_mib,
        "disk_gib": spec.disk_gib,
        "image": spec.image.id,
        "addresses": [address for interface in spec.interfaces for address in interface.addresses],
        "tags": list(spec.tags),
        "left_s": left_s(record, now),
        "since": record.since_wall,
        "age_s": age_s(one, now),
        "why": record.reasons[-1].why if record.reasons else "",
    }


def listing(
    records: Sequence[VmRecord], observed: Mapping[str, Observed], foreign: Sequence[ForeignSeen], now: Now
) -> Json:
    """`list` -> {vms: [row], foreign: [{uuid, name, seen, why}]}, in the order of acceptance.

    args: `all`: ended VMs that are remembered, too.
    """
    return {
        "vms": [row(record, observed, now) for record in _in_order(records)],
        "foreign": [_foreign(one) for one in foreign],
    }


def _in_order(records: Sequence[VmRecord]) -> List[VmRecord]:
    return sorted(records, key=lambda record: (record.accepted_wall, record.spec.command, record.spec.member))


def _foreign(one: ForeignSeen) -> Json:
    return {"uuid": one.uuid, "name": one.name, "seen": one.seen.value, "why": one.reason}


def find(text: str, records: Sequence[VmRecord]) -> VmRecord:
    """The record that a person means: a VM that is over only if no other one is meant, for a name may be taken again.

    Problems: `not-found`, `ambiguous` (see handles.py).
    """
    by_id = {record.vm: record for record in records}
    pairs = [(record.vm, record.spec.name) for record in records]
    try:
        return by_id[handles.pick(text, [pair for pair in pairs if not by_id[pair[0]].closed])]
    except Problem as problem:
        if problem.type != "not-found":
            raise
    return by_id[handles.pick(text, pairs)]


def show(record: VmRecord, observed: Mapping[str, Observed], now: Now, policy: Policy) -> Json:
    """`show` -> {row, state: the data of vm.state, seen: {domain, reason, age_s, leftovers, network_seen}}."""
    one = seen_of(record, observed)
    return {
        "row": row(record, observed, now),
        "state": dict(events.vm_state(record, one, now, policy)),
        "seen": {
            "domain": one.domain.seen.value,
            "reason": one.domain.reason,
            "age_s": age_s(one, now),
            "leftovers": sorted(one.leftovers),
            "network_seen": list(one.network_seen),
        },
    }


def limits(
    record: VmRecord, observed: Mapping[str, Observed], now: Now, counters: Mapping[str, NicCounters], why: str
) -> Json:
    """`limits` -> {vm, name, phase, since, started_at, age_s, limits: of vm.state, counters, counters_why}.

    counters: {device: {in_local_bytes, ...}} of its interfaces, as far as they are counted; counters_why: why they
    cannot be read now, "" when they can.
    """
    one = seen_of(record, observed)
    devices = [interface.device for interface in record.spec.interfaces]
    return {
        "vm": record.vm,
        "name": record.spec.name,
        "phase": events.phase(record, one).value,
        "since": record.since_wall,
        "started_at": record.journal.started_wall or None,
        "age_s": age_s(one, now),
        "limits": events.limits(record.spec, one, now),
        "counters": {device: codec.plain(counters[device]) for device in devices if device in counters},
        "counters_why": why,
    }


def who(records: Sequence[VmRecord], observed: Mapping[str, Observed], now: Now) -> Json:
    """`who` -> {owners: [{owner, vo, count, cores, memory_mib, disk_gib, vms: [row]}]}, of VMs that have not ended."""
    owners: Dict[Tuple[str, str], List[Json]] = {}
    for record in _in_order(records):
        if record.outcome is None:
            owner = record.spec.owner
            owners.setdefault((owner.subject, owner.vo), []).append(row(record, observed, now))
    return {"owners": [_share(subject, vo, rows) for (subject, vo), rows in sorted(owners.items())]}


def _share(subject: str, vo: str, rows: List[Json]) -> Json:
    sums = {what: sum(one[what] for one in rows) for what in ("cores", "memory_mib", "disk_gib")}
    return {"owner": subject, "vo": vo, "count": len(rows), **sums, "vms": rows}


# -- over: the proof that something has ended (M9)


def over(handle: str, records: Sequence[VmRecord], observed: Mapping[str, Observed], now: Now) -> Json:
    """`over` -> {handle, over, unknown, members: [entry]}.

    entry: {vm, name, phase, outcome, process, interface, disk, domain, age_s}.  Each of process, interface, disk and
    domain is true (there is one), false (proven: there is none) or null (not known).  over: every member has ended and
    all four are proven false.  unknown: the answer may still be either, also because nothing was ever started here
    under this handle.
    """
    members = [_member(record, observed, now) for record in _in_order(records)]
    facts = [[member[what] for what in ("process", "interface", "disk", "domain")] for member in members]
    here = any(True in fact for fact in facts) or any(member["outcome"] is None for member in members)
    blind = not members or any(None in fact for fact in facts)
    return {"handle": handle, "over": not here and not blind, "unknown": blind and not here, "members": members}


def _member(record: VmRecord, observed: Mapping[str, Observed], now: Now) -> Json:
    one = seen_of(record, observed)
    return {
        "vm": record.vm,
        "name": record.spec.name,
        "phase": events.phase(record, one).value,
        "outcome": record.outcome.value if record.outcome else None,
        **_remains(record, observed.get(record.vm)),
        "age_s": age_s(one, now),
    }


def _remains(record: VmRecord, one: Optional[Observed]) -> Json:
    unseen = one is None or one.domain.seen is Seen.UNKNOWN
    left_to_others = record.spec.adopted and record.outcome in SEEN_TO_END
    if record.closed and (unseen or left_to_others) and record.outcome is not Outcome.RETURNED:
        # Closing is the proof: a wish is closed only after two observations found nothing of it (DESIGN 6, note 5).
        # What is there of an adopted guest that has ended was never ours.
        return {"process": False, "interface": False, "disk": False, "domain": False}
    if one is None or one.domain.seen in BLIND:
        return {"process": None, "interface": None, "disk": None, "domain": None}
    live = one.domain.seen in LIVE
    gone = one.domain.seen is Seen.MISSING
    return {
        "process": live or "process" in one.leftovers,
        "interface": live or "interface" in one.leftovers,
        "disk": live or any(is_file(word) for word in one.leftovers),
        "domain": False if gone and one.missing_twice else None if gone else True,
    }


# -- drain_check: "can this host go down in ten minutes?" (M12)


def drain_check(
    records: Sequence[VmRecord],
    observed: Mapping[str, Observed],
    foreign: Sequence[ForeignSeen],
    now: Now,
    minutes: float,
    drained: bool,
) -> Json:
    """`drain_check` -> {minutes, yes, drained, empty_in_s, ending: [entry], staying: [entry], foreign: [{uuid, ...}]}.

    entry: {vm, name, owner, phase, ends_in_s (null = cannot be told), why}.  yes: everything that is here will have
    ended by then and nothing foreign runs; unless the host is drained, new VMs may still come.  empty_in_s: when the
    last one ends; null when that cannot be told.
    """
    entries = [_entry(record, observed, now) for record in _in_order(records) if record.outcome is None]
    limit = minutes * 60
    ending = [one for one in entries if one["ends_in_s"] is not None and one["ends_in_s"] <= limit]
    staying = [one for one in entries if one not in ending]
    running = [_foreign(one) for one in foreign if one.seen in (*LIVE, Seen.UNKNOWN)]
    known = all(one["ends_in_s"] is not None for one in entries) and not running
    return {
        "minutes": minutes,
        "yes": not staying and not running,
        "drained": drained,
        "empty_in_s": max((one["ends_in_s"] for one in entries), default=0) if known else None,
        "ending": ending,
        "staying": staying,
        "foreign": running,
    }


def _entry(record: VmRecord, observed: Mapping[str, Observed], now: Now) -> Json:
    phase = events.phase(record, seen_of(record, observed))
    ends, why = ends_in_s(record, phase, now)
    return {
        "vm": record.vm,
        "name": record.spec.name,
        "owner": record.spec.owner.subject,
        "phase": phase.value,
        "ends_in_s": ends,
        "why": why,
    }


# -- the host as a whole


def status(
    records: Sequence[VmRecord],
    observed: Mapping[str, Observed],
    policy: Policy,
    info: HypervisorInfo,
    epoch: Epoch,
    facts: Mapping[str, Any],
) -> Json:
    """`status` -> {host, site, epoch, hypervisor, phases: {phase: count}, ended: {outcome: count}, ...facts}.

    facts (of the daemon): drained: bool, degraded: {part: why}, broker: {up: bool, ...}, version, and how it fares
    (health: condition.py).
    """
    phases: Dict[str, int] = {}
    ended: Dict[str, int] = {outcome.value: 0 for outcome in Outcome}
    for record in records:
        if record.outcome is not None:
            ended[record.outcome.value] += 1
        else:
            word = events.phase(record, seen_of(record, observed)).value
            phases[word] = phases.get(word, 0) + 1
    return {
        "host": policy.host,
        "site": policy.site,
        "instance": policy.instance,
        "epoch": {"id": epoch.id, "number": epoch.number, "born": epoch.born_wall, "cause": epoch.cause},
        "hypervisor": {
            "uri": info.uri,
            "domain_type": info.domain_type,
            "connected": info.connected,
            "version": info.hypervisor_version,
            "libvirt": info.libvirt_version,
            "why": info.why,
        },
        "phases": phases,
        "ended": {word: count for word, count in ended.items() if count},
        **facts,
    }
