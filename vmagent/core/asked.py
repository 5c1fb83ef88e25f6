"""What a `vm.start` asks for, with the site's words resolved; and how it compares with a table of maxima.

Admission compares it with the site's maxima, authority with those of the signer's row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Mapping, Optional, Tuple

from vmagent.core.policy import Maxima, Policy
from vmagent.errors import Problem


@dataclass(frozen=True)
class Asked:
    """One VM of the start, `count` times."""

    flavour: str  # "" = sizes were given
    cores: int
    memory_mib: int
    disk_gib: int
    cpu_cap_core_percent: Optional[int]  # the cap it will have: its own, the flavour's, or the site's maximum
    lifetime_s: int
    keep_s: int
    count: int
    networks: Tuple[str, ...]

    def path(self, size: str) -> str:
        """Where in the request `cores`, `memory_mib` or `disk_gib` was decided."""
        return "args.flavour" if self.flavour else f"args.{size}"


@dataclass(frozen=True)
class Excess:
    """One value over its maximum."""

    name: str
    path: str
    needed: int
    maximum: int

    def __str__(self) -> str:
        return f"{self.name} {self.needed}; at most {self.maximum}"


def asked(args: Mapping[str, Any], policy: Policy) -> Asked:
    """The args of a schema-valid start.  Problem: `unknown-flavour`."""
    flavour = args.get("flavour", "")
    sizes: Mapping[str, Any] = args
    cap = policy.maxima.cpu_cap_core_percent
    if flavour:
        named = policy.flavours.get(flavour)
        if named is None:
            known = sorted(policy.flavours)
            detail = f"there is no flavour {flavour}; there is {', '.join(known) or 'none'}"
            raise Problem("unknown-flavour", detail, path="args.flavour", accepted=known)
        sizes = {"cores": named.cores, "memory_mib": named.memory_mib, "disk_gib": named.disk_gib}
        cap = cap if named.cpu_cap_core_percent is None else named.cpu_cap_core_percent
    return Asked(
        flavour=flavour,
        cores=sizes["cores"],
        memory_mib=sizes["memory_mib"],
        disk_gib=sizes["disk_gib"],
        cpu_cap_core_percent=args.get("cpu_cap_core_percent", cap),
        lifetime_s=args["lifetime_s"],
        keep_s=args.get("keep_s", 0),
        count=args.get("count", 1),
        networks=tuple(network["type"] for network in args.get("networks", ())),
    )


def beyond(what: Asked, maxima: Maxima) -> List[Excess]:
    """Everything over its maximum.  A disk may be kept as long as a VM may live; no cap means all the cores."""
    cap = what.cores * 100 if what.cpu_cap_core_percent is None else what.cpu_cap_core_percent
    cap_maximum = cap if maxima.cpu_cap_core_percent is None else maxima.cpu_cap_core_percent
    rows = (
        Excess("cores", what.path("cores"), what.cores, maxima.cores),
        Excess("memory_mib", what.path("memory_mib"), what.memory_mib, maxima.memory_mib),
        Excess("disk_gib", what.path("disk_gib"), what.disk_gib, maxima.disk_gib),
        Excess("cpu_cap_core_percent", "args.cpu_cap_core_percent", cap, cap_maximum),
        Excess("lifetime_s", "args.lifetime_s", what.lifetime_s, maxima.lifetime_s),
        Excess("keep_s", "args.keep_s", what.keep_s, maxima.lifetime_s),
        Excess("count", "args.count", what.count, maxima.count),
    )
    return [row for row in rows if row.needed > row.maximum]
