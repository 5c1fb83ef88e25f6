"""What host.state says beyond the host itself: whom it serves, with what, for how long this may be believed (I2 to I9).

Rules: who may instantiate is told as the authority table says it, without naming the signers: VO and FQAN patterns,
networks, flavours, the most that may be asked for.  Policies are the site's; what a hypervisor cannot do stands in
`capabilities`.
"""

from __future__ import annotations

import ipaddress
from fnmatch import fnmatchcase
from typing import Any, Dict, List, Mapping, Optional, Sequence

from vmagent.core import addresses, census, walltime
from vmagent.core.capacity import VALID_S
from vmagent.core.imagemodel import FORMATS
from vmagent.core.model import HypervisorInfo, Now, Phase, VmRecord
from vmagent.core.policy import PRIVATE, Authority, NetworkType, Policy

Json = Dict[str, Any]
SIZES = ("cores", "memory_mib", "disk_gib")


def served(
    info: HypervisorInfo, policy: Policy, records: Sequence[VmRecord], phases: Mapping[str, Phase], now: Now,
    drained: bool, stale: Sequence[Mapping[str, Any]],
) -> Json:
    """Members of host.state.  phases: by VM id; stale: parts that are older than this message."""
    return {
        "valid_until": walltime.text(walltime.seconds(now.wall) + VALID_S),
        "stale": [dict(one) for one in stale],
        "serving": serving(info, records, drained),
        "vms": census.vms(records, phases),
        "vos": census.vos(records, phases),
        "formats": {"image": list(FORMATS), "disk": ["qcow2"], "volume": ["raw", "qcow2"]},
        "policies": _policies(policy),
        "access": access(policy),
        "networks": [network(one) for _, one in sorted(policy.networks.items())],
    }


def serving(info: HypervisorInfo, records: Sequence[VmRecord], drained: bool) -> Json:
    """`production`: VMs start here; `draining`: no more, some are still here; `closed`: nothing starts and, drained,
    nothing is here."""
    alive = sum(1 for record in records if record.outcome is None and not record.closed)
    if drained and alive:
        return {"state": "draining", "reason": f"an administrator drains this host; {alive} VMs are still here"}
    if drained:
        return {"state": "closed", "reason": "an administrator has drained this host"}
    if not info.connected:
        return {"state": "closed", "reason": f"libvirt is away, what is asked for waits: {info.why}"}
    if not info.startable:
        return {"state": "closed", "reason": f"no guest can be started here: {info.why}"}
    return {"state": "production", "reason": ""}


def _policies(policy: Policy) -> Json:
    maxima, rules = policy.maxima, policy.snapshots
    return {
        "lifetime_maximum_s": maxima.lifetime_s,
        "count_maximum": maxima.count,
        "size_maximum": {name: getattr(maxima, name) for name in SIZES},
        "size_minimum": {name: getattr(policy.minima, name) for name in SIZES},
        "bandwidth_maximum_in_kbit": maxima.bandwidth_in_kbit,
        "bandwidth_maximum_out_kbit": maxima.bandwidth_out_kbit,
        "cpu_cap_maximum_core_percent": maxima.cpu_cap_core_percent,
        "image_unendorsed": policy.trust.unendorsed,
        "image_distrusted": policy.on_revoked,
        "image_requests": bool(policy.image_requests),
        "snapshots": {"allowed": rules.allowed, "longest_keep_s": rules.longest_keep_s,
                      "maximum_per_vm": rules.maximum_per_vm},
        "unprotected_guest": policy.firewall.on_failure,
    }  # fmt: skip


def access(policy: Policy) -> List[Json]:
    """Who may have VMs started here: each way once, by the rows of the authority table that grant vm.start."""
    rows = [_access(row) for row in policy.authority if any(fnmatchcase("vm.start", verb) for verb in row.verbs)]
    return [row for index, row in enumerate(rows) if row not in rows[:index]]


def _access(row: Authority) -> Json:
    maxima: Optional[Json] = None
    if row.maxima is not None:
        names = (*SIZES, "lifetime_s", "count")
        maxima = {name: getattr(row.maxima, name) for name in names}
    return {"vos": list(row.vos), "networks": list(row.networks), "flavours": list(row.flavours), "scope": row.scope,
            "maxima": maxima}


def network(one: NetworkType) -> Json:
    """A network that is offered.  kind: `private` when none of its addresses is routed on the internet."""
    subnets = [ipaddress.ip_network(subnet) for subnet in one.subnets]
    own = [ipaddress.ip_network(prefix) for prefix in PRIVATE]
    private = all(any(s.version == p.version and s.subnet_of(p) for p in own) for s in subnets)  # type: ignore[arg-type]
    versions = addresses.families(one, ()) or {subnet.version for subnet in subnets}
    return {
        "type": one.name,
        "addressing": one.addressing,
        "kind": "private" if private else "public",
        "families": sorted(versions),
        "mtu": one.mtu,
        "new_connections_per_s": one.new_connections_per_s,
        "destinations_per_minute": one.destinations_per_minute,
    }
