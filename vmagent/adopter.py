"""`vmagentctl adopt` and `disown` (docs/design/0009): an administrator's word becomes a wish, committed with its audit.

Rules

1. On the local socket alone, and there for those who may change something; no verb of a controller's.
2. What is committed is a wish; the loop puts the tag in and takes it away.  So a crash between the two needs nothing
   but the next look.  Asked again, the answer is that it is ours already.
3. Who asked, what became of it and why stands in the audit, refusals included; a dry run leaves no trace.
"""

from __future__ import annotations

import logging
from typing import Any, Awaitable, Callable, Dict, List, Mapping, Sequence, Tuple

from vmagent import ports
from vmagent.consequences import Consequences
from vmagent.core import adopting, room
from vmagent.core.adopting import Candidate
from vmagent.core.changes import Change, PutAudit
from vmagent.core.commands import Signer
from vmagent.core.ending import given_back
from vmagent.core.model import Outcome, VmRecord
from vmagent.errors import Fault, FaultKind, Problem
from vmagent.world import World

log = logging.getLogger("vmagent.adopter")
Json = Dict[str, Any]
ADOPT, DISOWN = "adopt", "disown"


class Adopter:
    """host_room: what admission sees of the host; mark(vm): the loop looks at it; pick(text, [(id, name)]): the id of
    who is meant.
    """

    def __init__(
        self, world: World, store: ports.Store, hypervisor: ports.Hypervisor, consequences: Consequences,
        host_room: Callable[[], Awaitable[room.HostRoom]], clock: ports.Clock, mark: Callable[[str], None],
        pick: Callable[[str, Sequence[Tuple[str, str]]], str],
    ) -> None:
        self._world = world
        self._store = store
        self._hypervisor = hypervisor
        self._consequences = consequences
        self._host_room = host_room
        self._clock = clock
        self._mark = mark
        self._pick = pick

    async def adopt(self, args: Mapping[str, Any], signer: Signer) -> Json:
        """args: schema `adopt`.  Problems: `schema`, `not-found`, `ambiguous` and those of adopting.refusals."""
        adopting.asked(args)
        try:
            vm = await self._meant(args["vm"])
            candidate = await self._candidate(vm)
            told = await self._adopted(candidate, args, signer)
        except Problem as problem:
            if not args.get("dry_run"):
                await self._refused(ADOPT, args["vm"], signer, problem)
            raise
        if not args.get("dry_run"):
            self._world.foreign = tuple(one for one in self._world.foreign if one.uuid != vm)
            self._mark(vm)
        return told

    async def disown(self, args: Mapping[str, Any], signer: Signer) -> Json:
        """args: `vm`, `reason`.

        Problems: `schema`, `not-found`, `ambiguous`, `not-adopted`, `ended`, `paused-by-us`.
        """
        adopting.asked_back(args)

        async def decide() -> Tuple[Sequence[Change], VmRecord]:
            ours = [(one.vm, one.spec.name) for one in self._world.records.values()]
            record = self._world.records[self._pick(args["vm"], ours)]
            adopting.raised(adopting.not_returnable(record))
            now = self._clock.now()
            why = args.get("reason") or "given back; it runs on"
            after = given_back(record, Outcome.RETURNED, signer.subject, why, now)
            audit = PutAudit(now.wall, signer.subject, "local", DISOWN, record.vm, "done", why, "")
            return [*self._consequences.of_record(record, after, now), audit], after

        try:
            record = await self._world.transact(decide)
        except Problem as problem:
            await self._refused(DISOWN, args["vm"], signer, problem)
            raise
        self._mark(record.vm)
        return {"vm": record.vm, "name": record.spec.name}

    async def _meant(self, text: str) -> str:
        """Among the domains of this host as they are now.  Those of ours are known too, to be told so."""
        seen = await self._hypervisor.observe_all()
        known = [(one.uuid, one.name) for one in seen.foreign] + [(one.vm, one.name) for one in seen.domains.values()]
        return self._pick(text, known)

    async def _candidate(self, vm: str) -> Candidate:
        try:
            return await self._hypervisor.candidate(vm)
        except Fault as fault:
            if fault.kind is not FaultKind.GONE:
                raise
            raise Problem("not-found", f"the domain {vm} has just gone") from None

    async def _adopted(self, candidate: Candidate, args: Mapping[str, Any], signer: Signer) -> Json:
        host = await self._host_room()
        earlier = await self._store.records(candidate.vm)

        async def decide() -> Tuple[Sequence[Change], Json]:
            now, policy = self._clock.now(), self._consequences.policy
            problems = adopting.refusals(candidate, args, policy, host.cpu_caps)
            adopting.raised(problems + adopting.known_already(candidate, self._world.records.get(candidate.vm)))
            life = max((one.spec.incarnation + 1 for one in earlier), default=0)
            record = adopting.wish(candidate, args, signer.subject, life, policy, now)
            left = room.left(policy, [*self._world.records.values(), record], host)
            told = {**adopting.told(candidate, record, left), "dry_run": bool(args.get("dry_run"))}
            if told["dry_run"]:
                return (), told
            audit = PutAudit(now.wall, signer.subject, "local", ADOPT, record.vm, "done", record.reasons[-1].why, "")
            changes: List[Change] = self._consequences.of_record(None, record, now)
            return [*changes, audit], told

        return await self._world.transact(decide)

    async def _refused(self, verb: str, meant: str, signer: Signer, problem: Problem) -> None:
        """An administrator's word that came to nothing is in the audit as well; a store that fails hides nothing."""
        now = self._clock.now()
        audit = PutAudit(now.wall, signer.subject, "local", verb, str(problem.fields.get("vm", meant)), "refused",
                         str(problem), "")  # fmt: skip

        async def decide() -> Tuple[Sequence[Change], None]:
            return (audit,), None

        try:
            await self._world.transact(decide)
        except Fault as fault:
            log.warning("a refused %s could not be recorded: %s", verb, fault)
