"""The one place where a command is decided, for both routes (PROTOCOL 3).

In this order: size, strict JSON, schema, signature and chain, target, seen before, freshness, authority, admission.
Then one commit holds the command, the wishes it changes and the reply.  A refusal is a verdict too: it is stored,
answered, audited and published.  What cannot be authenticated is answered only to the default replies queue, at a
bounded rate, kept in a bounded ring, and published in sums per source, problem and minute.
"""

from __future__ import annotations

import dataclasses
import logging
from contextlib import suppress
from typing import Any, Awaitable, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from vmagent import ports
from vmagent.consequences import Consequences
from vmagent.core import (
    abilities,
    admission,
    attaching,
    authority,
    context,
    events,
    request,
    snapshots,
    strictjson,
    verbs,
    walltime,
)
from vmagent.core.changes import Change, CommandRow, Publish, PutAudit, PutCommand, PutContext, PutSetting, SendReply
from vmagent.core.commands import VERBS, Command, Signer
from vmagent.core.model import Desired, Journal, Now, Reason, VmRecord, VmSpec
from vmagent.core.policy import Policy
from vmagent.core.room import disk_left_gib
from vmagent.core.startimage import Endorsements
from vmagent.crashpoint import reach
from vmagent.errors import Fault, Problem, Problems, reasons
from vmagent.imagecommands import ImageCommands
from vmagent.questions import CAPACITY, Questions
from vmagent.world import World

log = logging.getLogger("vmagent.intake")
UNAUTHENTICATED_REPLIES_A_MINUTE = 10
"""More than these are counted, not answered: nobody can make the agent flood the replies queue."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the intake needs of the configuration."""

    max_bytes: int
    signed: bool


class Intake:
    """Decides commands."""

    def __init__(
        self,
        world: World,
        store: ports.Store,
        verifier: ports.Verifier,
        room: Callable[[], Any],
        consequences: Consequences,
        limits: Limits,
        clock: ports.Clock,
        mark: Callable[[str], None],
        report: Callable[[Mapping[str, Any], Now], Awaitable[List[Change]]],
        host_changed: Callable[[], Awaitable[None]],
        images: ImageCommands,
        questions: Questions,
    ) -> None:
        self._world = world
        self._store = store
        self._verifier = verifier
        self._room = room  # -> Deferred[admission.HostRoom]
        self._consequences = consequences
        self._limits = limits
        self._clock = clock
        self._mark = mark
        self._report = report  # -> what host.report publishes
        self._host_changed = host_changed
        self._images = images
        self._questions = questions
        self._strangers: Dict[Tuple[str, str], int] = {}
        self._answered = 0

    @property
    def policy(self) -> Policy:
        return self._consequences.policy

    # -- the two routes

    async def frame(self, raw: bytes, from_topic: bool) -> None:
        """One frame from the broker; when this returns it may be acknowledged.  Faults: the store's."""
        reach("frame-received")
        try:
            body, digest, signer = self._authenticate(raw)
        except Problem as problem:
            await self._stranger(problem, raw)
            return
        try:
            payload = strictjson.loads(body, self._limits.max_bytes)
            command = request.parse(payload, digest, signer, "broker")
            request.for_us(command, self.policy.host, from_topic)
        except Problem as problem:
            await self._malformed(problem, body, signer)
            return
        await self.take(command)
        reach("committed")

    async def local(self, payload: Mapping[str, Any], signer: Signer) -> Mapping[str, Any]:
        """One command from the local socket, already authorised by its peer's credentials; returns the reply."""
        digest = request.payload_digest(payload)
        command = request.parse(payload, digest, signer, "local")
        request.for_us(command, self.policy.host, False)
        return await self.take(command)

    async def oversized(self, size: int) -> None:
        """A frame beyond the size limit: counted, told, never parsed."""
        limit = self._limits.max_bytes
        await self._stranger(Problem("too-large", f"a command has at most {limit} bytes; this one has {size}",
                                     needed=size, limit=limit), b"")

    def _authenticate(self, raw: bytes) -> Tuple[bytes, str, Signer]:
        """(the payload's bytes, digest of the body, who says so)."""
        if not self._limits.signed:
            return raw, request.digest(raw), self._verifier.unsigned()
        envelope = request.envelope(raw, self._limits.max_bytes)
        body, signer = self._verifier.verify(envelope, walltime.seconds(self._clock.now().wall))
        return body, envelope.digest, signer

    # -- deciding

    async def take(self, command: Command) -> Mapping[str, Any]:
        """Decide, commit, answer.  A command seen before gets its stored reply again."""
        room = await (self._questions.ground() if command.verb == CAPACITY else self._room())
        if command.verb.startswith("image."):
            await self._images.look()
        row, marks = await self._world.transact(lambda: self._decide(command, room))
        for vm in marks:
            self._mark(vm)
        if command.verb.startswith("image.") and VERBS[command.verb].changes:
            await self._images.after(command.verb)
            with suppress(Fault):  # told within the minute at the latest
                await self._host_changed()
        if command.verb.startswith("host."):
            await self._host_changed()
        return row.reply

    async def _decide(self, command: Command, room: Any) -> Tuple[Sequence[Change], Tuple[CommandRow, Sequence[str]]]:
        now = self._clock.now()
        known = await self._store.command(command.id)
        if known is not None:
            await self._catch_up(known)
            return self._seen_before(command, known, now)
        try:
            self._fresh(command, now)
            changes, row, marks = await self._effect(command, room, now)
        except Problem as problem:
            return self._refuse(command, problem, now)
        audit = _audit(command, row, now, "")
        reply = [SendReply(row.reply_to, row.reply)] if command.route == "broker" else []
        reach("decided")
        return [PutCommand(row), *changes, audit, *reply], (row, marks)

    def _fresh(self, command: Command, now: Now) -> None:
        born = walltime.seconds(self._world.epoch.born_wall)
        first = self._world.epoch.cause == "first"
        request.answerable(command, self.policy)
        request.fresh(command, walltime.seconds(now.wall), self.policy.clock_skew_s, None if first else born)

    async def _catch_up(self, known: CommandRow) -> None:
        """A commit whose outcome we did not learn landed after all: remember what it holds."""
        for vm in known.members:
            if self._world.find(vm) is None:
                self._world.learn(known, await self._store.records(vm))

    def _seen_before(
        self, command: Command, known: CommandRow, now: Now
    ) -> Tuple[Sequence[Change], Tuple[CommandRow, Sequence[str]]]:
        if known.digest == command.digest:
            again = [SendReply(known.reply_to, known.reply)] if command.route == "broker" else []
            return again, (known, known.members)
        problem = Problem("id-reused", f"command {command.id} was seen before with other content; use a new id")
        row = self._row(command, (), "refused", _reply(command, "refused", problem=problem), now)
        return self._told(command, row, problem, now), (row, ())

    def _refuse(
        self, command: Command, problem: Problem, now: Now
    ) -> Tuple[Sequence[Change], Tuple[CommandRow, Sequence[str]]]:
        row = self._row(command, (), "refused", _reply(command, "refused", problem=problem), now)
        return [PutCommand(row), *self._told(command, row, problem, now)], (row, ())

    def _told(self, command: Command, row: CommandRow, problem: Problem, now: Now) -> List[Change]:
        """A refusal of somebody we know: answered, audited, published, logged."""
        alert = events.security_alert(kind="command-refused", detail=str(problem), now=now, who=command.signer.subject,
                                      command=command.id, problem=problem.type)
        changes: List[Change] = [_audit(command, row, now, str(problem)),
                                 Publish("events", "org.vmagent.security.alert", "host", now.wall, alert)]
        if command.route == "broker":
            changes.append(SendReply(row.reply_to, row.reply))
        return changes

    # -- effects on the wishes

    async def _effect(self, command: Command, room: Any, now: Now) -> Tuple[List[Change], CommandRow, Sequence[str]]:
        if command.verb == "vm.start":
            return self._start(command, room, now)
        if VERBS[command.verb].selects:
            return self._on_vms(command, room, now)
        authority.authorise(command, self.policy, (), ())
        if command.verb.startswith("image."):
            effect = self._images.effect(command, now)
            reply = _reply(command, effect.status, result=effect.result)
            return list(effect.changes), self._row(command, (), effect.status, reply, now), ()
        if command.verb == CAPACITY:
            return [], self._done(command, (), self._questions.of_capacity(command, room), now), ()
        if command.verb == "host.report":
            told = await self._report(command.args, now)
            result = {"periods": len(told)} if "usage" in command.args else {}
            return told, self._done(command, (), result, now), ()
        drained = command.verb == "host.drain"
        changes: List[Change] = [PutSetting("drained", True if drained else None)]
        return changes, self._done(command, (), {"drained": drained}, now), ()

    def _start(self, command: Command, room: Any, now: Now) -> Tuple[List[Change], CommandRow, Sequence[str]]:
        admitted = self._admitted(command, room, now)
        refused = [{"member": index, "status": "refused", "problem": problem.as_json()}
                   for index, problem in admitted.refused]
        if command.args.get("dry_run"):
            would = [{"member": s.member, "vm": s.vm, "status": "done"} for s in admitted.specs]
            return [], self._done(command, (), {"dry_run": True, "members": would + refused}, now), ()
        given = context.context(command.args)
        changes: List[Change] = [] if given == context.NOTHING else [PutContext(command.id, given)]
        for spec in admitted.specs:
            record = self._wish(command, spec, now)
            changes += self._consequences.of_record(None, record, now)
        ids = tuple(spec.vm for spec in admitted.specs)
        members = [{"member": s.member, "vm": s.vm, "status": "accepted"} for s in admitted.specs]
        reply = _reply(command, "accepted", result={"members": members + refused})
        return changes, self._row(command, ids, "accepted", reply, now), ids

    def _admitted(self, command: Command, room: Any, now: Now) -> admission.Admission:
        """Authority, then admission.  Who only tries is told the reasons of both, if the table knows him at all."""
        found: List[Problem] = []
        try:
            authority.authorise(command, self.policy, (), ())
        except Problem as problem:
            if not command.args.get("dry_run") or not authority.known(command.signer, self.policy):
                raise
            found += reasons(problem)
        try:
            admitted = admission.admit(command, self.policy, tuple(self._world.records.values()), room,
                                       Endorsements(self._world.lists, now.wall))
            self._trusted(admitted.specs, now)
        except Problem as problem:
            found += reasons(problem)
        if found:
            raise Problems(found)
        return admitted

    def _trusted(self, specs: Sequence[VmSpec], now: Now) -> None:
        """Nothing starts, or starts anew, from an image that is not trusted: Problems, each reason once."""
        found = [self._consequences.distrust(spec, now) for spec in specs]
        reasons = {one.cause: one.problem for one in found if one is not None}
        if reasons:
            raise Problems(list(reasons.values()))

    def _wish(self, command: Command, spec: VmSpec, now: Now) -> VmRecord:
        return VmRecord(
            spec=spec, generation=1, desired=Desired.RUN, lifetime_s=int(command.args["lifetime_s"]),
            accepted_at=now.at, accepted_boot=now.boot_id, accepted_wall=now.wall,
            journal=Journal(grace_s=self.policy.grace_s),
            reasons=(Reason(command.signer.subject, command.reason or command.verb, now.wall),),
            last_commands=((command.signer.subject, command.issued_wall),),
        )

    def _on_vms(self, command: Command, room: Any, now: Now) -> Tuple[List[Change], CommandRow, Sequence[str]]:
        chosen = verbs.select(command, tuple(self._world.records.values()))
        authority.authorise(command, self.policy, chosen, ())
        if not VERBS[command.verb].changes:
            return [], self._done(command, (), self._questions.of_vms(command, chosen, now), now), ()
        self._able(abilities.of_command(command, room))
        if command.verb == "vm.snapshot":
            free_gib = disk_left_gib(self.policy, tuple(self._world.records.values()), room)
            snapshots.admit(command, self.policy, chosen, room.snapshots, free_gib)
        if command.verb == "vm.attach":
            attaching.admit(command, chosen, tuple(self._world.records.values()), self.policy)
        if VERBS[command.verb].anew:
            self._trusted([record.spec for record in chosen], now)
        after = [(record, verbs.apply(command, record, self.policy, now)) for record in chosen]
        if command.verb == "vm.limits":
            self._able([one for _, record in after for one in abilities.of_limits(record.spec.limits, room)])
        ids = tuple(record.vm for record in chosen)
        members = [{"vm": vm, "status": "accepted"} for vm in ids]
        row = self._row(command, ids, "accepted", _reply(command, "accepted", result={"members": members}), now)
        changes: List[Change] = []
        for before, record in after:
            changes += self._consequences.of_record(before, record, now)
        return changes, row, ids

    def _able(self, lacking: Sequence[Problem]) -> None:
        """Nothing is stored that this host cannot do: Problems, each once."""
        if lacking:
            raise Problems(list({str(one): one for one in lacking}.values()))

    # -- rows

    def _done(self, command: Command, members: Tuple[str, ...], result: Mapping[str, Any], now: Now) -> CommandRow:
        return self._row(command, members, "done", _reply(command, "done", result=result), now)

    def _row(
        self, command: Command, members: Tuple[str, ...], status: str, reply: Mapping[str, Any], now: Now
    ) -> CommandRow:
        return CommandRow(
            id=command.id, digest=command.digest, schema=command.schema, signer=command.signer.subject,
            route=command.route, issued_wall=command.issued_wall, valid_until_wall=command.valid_until_wall,
            reply_to=self._allowed_reply(command.reply_to), members=members, status=status, reply=reply,
            received_wall=now.wall, args=context.public(command.args),
        )

    def _allowed_reply(self, asked: str) -> str:
        """Where a reply may go: what the signed body asks for under the site's prefixes, else the default."""
        allowed = bool(asked) and request.reply_allowed(asked, self.policy.reply_prefixes)
        return asked if allowed else self.policy.default_reply

    # -- strangers, and friends who cannot be understood

    async def _malformed(self, problem: Problem, body: bytes, signer: Signer) -> None:
        """Authentic, but not a command for us: answered where its sender asked if that is allowed."""
        now = self._clock.now()
        alert = events.security_alert(kind="command-refused", detail=str(problem), now=now, who=signer.subject,
                                      problem=problem.type)
        command = request.claimed(body, "id")
        reply = {"command": command, "status": "refused", "problem": problem.as_json()}
        await self._record([
            PutAudit(now.wall, signer.subject, "broker", request.claimed(body, "schema"), "", "refused", str(problem),
                     command),
            Publish("events", "org.vmagent.security.alert", "host", now.wall, alert),
            SendReply(self._allowed_reply(request.claimed(body, "reply_to")), reply),
        ])

    async def _record(self, changes: Sequence[Change]) -> None:
        async def decide() -> Tuple[Sequence[Change], None]:
            return changes, None

        await self._world.transact(decide)

    async def _stranger(self, problem: Problem, raw: bytes) -> None:
        """Somebody we cannot authenticate: bounded in every way, and never in the way of the queue."""
        now = self._clock.now()
        who = str(problem.fields.get("signer", "unknown"))
        key = (who, problem.type)
        self._strangers[key] = self._strangers.get(key, 0) + 1
        audit = PutAudit(now.wall, who, "broker", "?", "", "refused", str(problem), bounded=True)
        changes: List[Change] = [audit]
        if self._answered < UNAUTHENTICATED_REPLIES_A_MINUTE:
            self._answered += 1
            body = {"command": request.claimed(raw, "id"), "status": "refused", "problem": problem.as_json()}
            changes.append(SendReply(self.policy.default_reply, body))
        await self._record(changes)

    async def minute(self) -> None:
        """Publish the sums of what strangers were refused, and answer strangers again.  Called once a minute."""
        self._answered = 0
        strangers, self._strangers = self._strangers, {}
        if not strangers:
            return
        now = self._clock.now()
        alerts = tuple(
            Publish("events", "org.vmagent.security.alert", "host", now.wall,
                    events.security_alert(kind="frames-refused", detail=f"{count} frames refused in a minute: {type}",
                                          now=now, who=who, problem=type, count=count))
            for (who, type), count in sorted(strangers.items())
        )
        try:
            await self._record(alerts)
        except Fault as fault:
            log.error("cannot publish refused frames: %s", fault)


def _reply(
    command: Command, status: str, problem: Optional[Problem] = None, result: Optional[Mapping[str, Any]] = None
) -> Mapping[str, Any]:
    body: Dict[str, Any] = {"command": command.id, "status": status}
    if problem is not None:
        body["problem"] = problem.as_json()
    if result is not None:
        body["result"] = result
    return body


def _audit(command: Command, row: CommandRow, now: Now, why: str) -> PutAudit:
    subject = ",".join(row.members[:20]) or "host"
    return PutAudit(now.wall, command.signer.subject, command.route, command.verb, subject, row.status, why, command.id)
