"""A closed period as the world reads it: the `data` of vm.usage, and what of it the host's balance says.

The shape stands in vmagent/schema/event.vm.usage.json.  Seconds are those of the ledger; a number that nobody could
measure is null and its part stands in `vanished`.
"""

from __future__ import annotations

import ipaddress
import math
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from vmagent.core import codec, disks, usage
from vmagent.core.ledger import wall_text
from vmagent.core.model import VmRecord, VmSpec
from vmagent.core.policy import Policy
from vmagent.core.usagemodel import (
    DISK,
    NETWORK,
    Account,
    AccountingRules,
    Closed,
    Counts,
    Footprint,
    Kind,
    Use,
)


def public_addresses(spec: VmSpec, public: Sequence[str]) -> Tuple[str, ...]:
    """Of the VM's addresses those that count as public: in these prefixes, or without any, globally routable."""
    nets = [ipaddress.ip_network(prefix) for prefix in public]
    found: List[str] = []
    for text in (address for interface in spec.interfaces for address in interface.addresses):
        address = ipaddress.ip_interface(text).ip
        counts = any(address in net for net in nets if net.version == address.version) if nets else address.is_global
        found += [str(address)] if counts else []
    return tuple(found)


def footprint(spec: VmSpec, rules: AccountingRules) -> Footprint:
    """What this wish is promised."""
    return Footprint(
        spec.cores, spec.memory_mib, disks.promised_gib(spec), spec.limits.cpu_cap_core_percent,
        public_addresses(spec, rules.public), rules.benchmark,
    )  # fmt: skip


def seconds(ms: int) -> float:
    return ms / 1000


def _counts(names: Iterable[str], counts: Counts) -> Dict[str, int]:
    return dict(zip(names, counts))


def _use(use: Use, what: Footprint, known: Sequence[str]) -> Dict[str, Any]:
    """One of `used` and `total`.  known: parts that were measured."""
    span = use.wall_ms + use.suspended_ms
    return {
        "wall_s": seconds(use.wall_ms),
        "suspended_s": seconds(use.suspended_ms),
        "core_s": seconds(what.cores * span),
        "cpu_s": seconds(use.cpu_ms) if "cpu" in known else None,
        "memory_mib_s": seconds(what.memory_mib * span),
        "disk_gib_s": seconds(what.disk_gib * span),
        "network": _counts(NETWORK, use.network) if "network" in known else None,
        "disk": _counts(DISK, use.disk) if "disk" in known else None,
    }


def _status(closed: Closed) -> str:
    if closed.final:
        return "completed"
    return "suspended" if closed.account.suspended else "started"


def data(closed: Closed, record: VmRecord, policy: Policy) -> Dict[str, Any]:
    """The `data` of vm.usage; record: the VM as it is now, or was when it closed."""
    account, spec = closed.account, record.spec
    sampled = max((at for at in (account.cpu_ms_at, account.disk_ms_at) if at is not None), default=None)
    return {
        **_period(closed),
        "site": policy.site,
        "host": policy.host,
        "name": spec.name,
        "command": spec.command,
        "tags": list(spec.tags),
        "owner": {"subject": spec.owner.subject, "fqan": spec.owner.fqan, "vo": spec.owner.vo},
        "controller": spec.controller,
        "flavour": spec.flavour,
        "image": codec.plain(spec.image),
        "footprint": codec.plain(account.footprint),
        "used": _use(usage.used(account), account.footprint, account.measured),
        "total": _use(account.total, account.footprint, account.ever),
        "memory_mib": account.memory_mib,
        "disk_used_gib": account.disk_used_gib,
        "volumes": _volumes(record, account),
        "snapshots": _snapshots(record),
        "sampled_at": None if sampled is None else wall_text(sampled),
        "tail_uncertain_s": seconds(usage.uncertain_ms(closed)),
        "vanished": list(usage.unmeasured(account)),
        "clock_step_s": seconds(closed.clock_step_ms),
    }


def _period(closed: Closed) -> Dict[str, Any]:
    account = closed.account
    return {
        "vm": account.vm,
        "segment": account.segment,
        "incarnation": account.incarnation,
        "number": account.number,
        "period": account.period,
        "from": wall_text(account.period_ms),
        "to": wall_text(account.until_ms),
        "seconds": seconds(account.until_ms - account.period_ms),
        "status": _status(closed),
        "final": closed.final,
        "started_at": wall_text(account.began_ms),
        "ended_at": wall_text(account.until_ms) if closed.final else None,
        "outcome": closed.outcome or None,
    }


def _volumes(record: VmRecord, account: Account) -> List[Dict[str, Any]]:
    """Those that it had in this period, whatever segment they were attached in."""
    begins = wall_text(account.period_ms)
    return [
        {"volume": use.disk.volume, "read_only": use.disk.read_only, "attached_at": use.attached_wall,
         "detached_at": use.detached_wall or None}
        for use in record.journal.volumes
        if account.kind is Kind.RUN and (not use.detached_wall or use.detached_wall >= begins)
    ]  # fmt: skip


def _snapshots(record: VmRecord) -> List[Dict[str, Any]]:
    return [
        {"name": one.name, "kind": one.kind, "taken_at": one.created_wall, "gone_at": one.ended_wall or None,
         "bytes": one.size_bytes}
        for one in record.snapshots
        if one.created_wall
    ]  # fmt: skip


def imbalance(accounts: Iterable[Account], cores: int, memory_mib: int, policy: Policy) -> str:
    """In words how the open accounts exceed what the host gives; "" = they do not.  cores, memory_mib: of the host."""
    found = list(accounts)
    gives = (("cores", math.floor(cores * policy.cpu_overcommit + 1e-9)),
             ("memory_mib", memory_mib - policy.reserved_memory_mib))
    promised: Mapping[str, int] = {
        "cores": sum(one.footprint.cores for one in found),
        "memory_mib": sum(one.footprint.memory_mib for one in found),
    }
    wrong = [f"{name}: {promised[name]} accounted, {most} given" for name, most in gives if promised[name] > most]
    twice = _twice(found)
    return "; ".join([*wrong, *([f"two open segments of {twice}"] if twice else [])])


def _twice(accounts: Sequence[Account]) -> Optional[str]:
    vms = sorted(account.vm for account in accounts)
    return next((one for one, other in zip(vms, vms[1:]) if one == other), None)
