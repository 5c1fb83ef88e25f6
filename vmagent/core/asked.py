"""What a `vm.start` asks for, with the site's words resolved; and how it compares with minima and maxima.

Admission compares it with the site's, authority with the maxima of the signer's row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Mapping, Optional, Tuple

from vmagent.core import limits
from vmagent.core.context import NOTHING, Context, context
from vmagent.core.disks import asked_for, scratch_gib
from vmagent.core.limits import Outside
from vmagent.core.model import Disk, Limits
from vmagent.core.policy import Maxima, Minima, Policy
from vmagent.errors import Problem, Problems

SIZES = ("cores", "memory_mib", "disk_gib")


@dataclass(frozen=True)
class Asked:
    """One VM of the start, `count` times."""

    flavour: str  # "" = sizes were given
    cores: int
    memory_mib: int
    disk_gib: int
    limits: Limits
    lifetime_s: int
    keep_s: int
    count: int
    networks: Tuple[str, ...]
    context: Context
    disks: Tuple[Disk, ...] = ()  # beside its own

    @property
    def stored_gib(self) -> int:
        """What it takes of this host's own disk."""
        return self.disk_gib + scratch_gib(self.disks)

    def path(self, size: str) -> str:
        """Where in the request `cores`, `memory_mib` or `disk_gib` was decided."""
        return "args.flavour" if self.flavour else f"args.{size}"


def asked(args: Mapping[str, Any], policy: Policy) -> Asked:
    """The args of a schema-valid start.

    Problems, all at once: `unknown-flavour`, `rule`, `over-limit` (too many rules), `context`.
    """
    flavour = policy.flavours.get(args.get("flavour", ""))
    problems = [_no_flavour(args["flavour"], policy)] if "flavour" in args and flavour is None else []
    effective, given = Limits(), NOTHING
    try:
        effective = limits.effective(args, flavour, policy)
    except Problems as found:
        problems += found.problems
    try:
        given = context(args)
    except Problems as found:
        problems += found.problems
    if problems:
        raise Problems(problems)
    sizes = {name: args[name] if flavour is None else getattr(flavour, name) for name in SIZES}
    return Asked(
        **sizes,
        flavour=args.get("flavour", ""),
        limits=effective,
        lifetime_s=args["lifetime_s"],
        keep_s=args.get("keep_s", 0),
        count=args.get("count", 1),
        context=given,
        disks=asked_for(args),
        networks=tuple(network["type"] for network in args.get("networks", ())),
    )


def _no_flavour(name: str, policy: Policy) -> Problem:
    known = sorted(policy.flavours)
    detail = f"there is no flavour {name}; there is {', '.join(known) or 'none'}"
    return Problem("unknown-flavour", detail, path="args.flavour", accepted=known)


def outside(what: Asked, maxima: Maxima, minima: Optional[Minima] = None) -> List[Outside]:
    """Everything over its maximum or under its minimum.  A disk may be kept as long as a VM may live."""
    sizes = [(name, what.path(name), getattr(what, name), getattr(maxima, name)) for name in SIZES]
    rows = (
        *sizes,
        *([("disk_gib", "args.disks", what.stored_gib, maxima.disk_gib)] if what.stored_gib > what.disk_gib else []),
        ("lifetime_s", "args.lifetime_s", what.lifetime_s, maxima.lifetime_s),
        ("keep_s", "args.keep_s", what.keep_s, maxima.lifetime_s),
        ("count", "args.count", what.count, maxima.count),
        ("context_bytes", "args.user_data", what.context.size, maxima.context_bytes),
    )
    found = [Outside(name, path, needed, most) for name, path, needed, most in rows if needed > most]
    for name, path, needed, _ in sizes:
        least = getattr(minima, name, None)
        if least is not None and needed < least:
            found.append(Outside(name, path, needed, least, below=True))
    return found + limits.outside(what.limits, maxima, what.cores, minima)
