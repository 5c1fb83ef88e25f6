"""The answer to capacity.query: how many such VMs can start here, now and at a time, why not more, and how many of them
the asker may have (R9, R10, I10).

Rules

1. Numbers and reasons are capacity's, and so admission's: an answer promises nothing, but a start that came at once
   would get what it says.
2. What the asker may have is told by the authority table that would decide his start: row by row, because a start must
   be granted by one row alone.
3. On the local socket nobody is limited by the authority table, and without an owner there is no VO to tell about.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Mapping, Optional, Tuple

from vmagent.core import authority, capacity, census, disks, request, starts, walltime
from vmagent.core.asked import asked
from vmagent.core.capacity import Here
from vmagent.core.commands import Command
from vmagent.core.model import Owner
from vmagent.core.policy import Authority
from vmagent.errors import Problem, Problems, reasons

Json = Dict[str, Any]
EVERYTHING = Authority("", ("*",), scope="all")
OWN = ("count", "from", "for_s")  # members of the query that a start has not


def answer(command: Command, here: Here, parallel: int) -> Json:
    """`result` of the reply.  parallel: how many VMs are started at a time."""
    args, now = command.args, here.now
    count, owner = int(args.get("count", 1)), _owner(command)
    shape = {**{name: value for name, value in args.items() if name not in OWN}, "lifetime_s": args.get("for_s", 1)}
    in_s = _in_s(args, here)
    now_possible = _at(shape, here, owner, 0.0)
    then = _at(shape, here, owner, in_s) if in_s > 0 else now_possible
    later = [_at(shape, here, owner, float(one)) for one in capacity.LATER_S]
    return {
        "site": here.policy.site,
        "host": here.policy.host,
        "at": now.wall,
        "valid_until": walltime.text(walltime.seconds(now.wall) + capacity.VALID_S),
        "stale": [dict(one) for one in here.stale],
        "asked": {"count": count, "from": args.get("from"), "for_s": args.get("for_s")},
        "enough": then["possible"] >= count,
        "enough_in_s": next((one["in_s"] for one in (now_possible, *later) if one["possible"] >= count), None),
        "now": now_possible,
        "then": then,
        "later": [{name: one[name] for name in ("in_s", "at", "possible")} for one in later],
        "start_s": _start_s(here, count, parallel),
        "yours": None if owner is None else _yours(command, owner, shape, here, then["possible"]),
    }


def _in_s(args: Mapping[str, Any], here: Here) -> float:
    """Seconds from now to `from`; 0 when that has passed."""
    if "from" not in args:
        return 0.0
    return max(0.0, walltime.seconds(args["from"]) - walltime.seconds(here.now.wall))


def _owner(command: Command) -> Optional[Owner]:
    try:
        return request.owner_of(command)
    except Problem:
        return None  # local, and nobody was named


def _at(shape: Mapping[str, Any], here: Here, owner: Optional[Owner], in_s: float) -> Json:
    then = here.at(in_s) if in_s > 0 else here
    possible, lacking = capacity.how_many(shape, then)
    most, volumes = _volumes(shape, then, owner)
    told = [*([] if most is None or possible < most else volumes), *lacking]
    return {
        "in_s": round(in_s),
        "at": walltime.text(walltime.seconds(here.now.wall) + in_s),
        "possible": possible if most is None else min(possible, most),
        "reasons": capacity.plain(told),
    }


def _volumes(shape: Mapping[str, Any], here: Here, owner: Optional[Owner]) -> Tuple[Optional[int], List[Problem]]:
    """(how many VMs may have the volumes that are asked for, None = any number; why no more)."""
    if owner is None:
        return None, []
    try:
        wanted = asked(shape, here.policy).disks
    except Problems:
        return None, []
    for count in (1, 2):
        found = disks.problems(wanted, owner, here.policy, here.records, count, "args.disks[]")
        if found:
            return count - 1, found
    return None, []


def _start_s(here: Here, count: int, parallel: int) -> Json:
    """Seconds from a request to the first instruction; null when no start of the last day was measured."""
    measured = starts.resumed_s(here.starts)
    return {
        "median": starts.quantile(measured, 0.5),
        "p95": starts.quantile(measured, 0.95),
        "all": starts.expected_s(here.starts, count, parallel),
        "measured": len(measured),
    }


# ---- what the asker may have


def _yours(command: Command, owner: Owner, shape: Mapping[str, Any], here: Here, possible: int) -> Json:
    refused = _refused(command, shape, here)
    held = [record for record in here.records if record.spec.owner.vo == owner.vo]
    rows = [EVERYTHING] if command.signer.local else authority.starting(command, here.policy)
    return {
        "subject": owner.subject,
        "vo": owner.vo,
        "holds": {"vms": census.vms(held, here.phases), **census.held(held)},
        "may_start": not refused,
        "reasons": capacity.plain(refused),
        "possible": 0 if refused else possible,
        "grants": [_grant(row, here) for row in rows],
    }


def _refused(command: Command, shape: Mapping[str, Any], here: Here) -> List[Problem]:
    """Why a start of one such VM would not be granted."""
    start = dataclasses.replace(command, verb="vm.start", schema="vm.start/1", args={**shape, "count": 1})
    try:
        authority.authorise(start, here.policy, (), ())
    except Problem as problem:
        return list(reasons(problem))
    return []


def _grant(row: Authority, here: Here) -> Json:
    """One row: how much of what is free it opens."""
    maxima, site, size = row.maxima, here.policy.maxima, capacity.largest(here)
    if size is not None and maxima is not None:
        size = {name: min(most, getattr(maxima, name)) for name, most in size.items()}
    policy = here.policy
    return {
        "networks": [name for name in sorted(policy.networks) if authority.matches(name, row.networks)],
        "flavours": [name for name in sorted(policy.flavours) if authority.matches(name, row.flavours)],
        "own_sizes": authority.matches("", row.flavours),
        "largest": size,
        "count": min(site.count, maxima.count) if maxima else site.count,
        "lifetime_s": min(site.lifetime_s, maxima.lifetime_s) if maxima else site.lifetime_s,
    }
