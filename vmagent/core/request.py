"""From the bytes of a body to a Command, and the checks that need no knowledge of VMs (PROTOCOL 3).

The order is the caller's: `envelope` (size, strict JSON, schema) -> signature -> `parse` (schema of payload and args)
-> `for_us` -> seen before? -> `fresh` -> authority -> admission.

Freshness.  A replay within one epoch is found by its id, so `fresh` only has to refuse what the store may have
forgotten: ids are kept until `valid_until` plus skew, and what was issued before this epoch's birth may have had its
effect in the last one.  A sender's clock may be ahead by the skew, therefore birth *plus* skew.  A command of the
local socket is issued where and when it is taken and is never redelivered: the epoch does not concern it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set

from vmagent.core import codec, dn, schemas, strictjson, walltime
from vmagent.core.commands import VERBS, Command, Signer
from vmagent.core.model import Owner
from vmagent.core.policy import Policy
from vmagent.errors import Problem, Problems

LONGEST_VALIDITY_S = 24 * 3600
ACCEPTED: Mapping[str, str] = {f"{name}/1": name for name in VERBS}
"""`schema` of a command -> verb: what host.state publishes and `unknown-verb` lists."""

_CLAIM_LIMIT = 1 << 20
_NAME_ENDS = "./-"


@dataclass(frozen=True)
class Envelope:
    """A signed body before anything in it is believed; the three parts are base64url."""

    protected: str
    payload: str
    signature: str
    digest: str  # SHA-256 (hex) of the body's bytes


def digest(raw: bytes) -> str:
    """What tells a repeated body from another one with the same id."""
    return hashlib.sha256(raw).hexdigest()


def payload_digest(payload: Mapping[str, Any]) -> str:
    """The same for a command that came as a value (local socket): of its canonical form."""
    return codec.digest(payload)


def envelope(raw: bytes, limit: int) -> Envelope:
    """A body of at most `limit` bytes.  Problems: `too-large`, `json`, `schema`."""
    value = strictjson.loads(raw, limit)
    schemas.check("jws", value)
    return Envelope(value["protected"], value["payload"], value["signature"], digest(raw))


def parse(payload: Any, digest: str, signer: Signer, route: str) -> Command:
    """A payload as a Command; `route` is "broker" or "local".

    Problems, all at once: `unknown-verb` (with `accepted`), `schema` (each with `path` and `accepted`).
    """
    problems = _problems_of("command", payload, "")
    if isinstance(payload, dict):
        problems = _verb_problems(payload) + problems
        problems += _time_problems(payload, {problem.fields["path"] for problem in problems})
    if problems:
        raise Problems(problems)
    verb = ACCEPTED[payload["schema"]]
    return Command(
        id=payload["id"],
        verb=verb,
        schema=payload["schema"],
        issued_wall=payload["issued_at"],
        valid_until_wall=payload["valid_until"],
        target=payload["target"],
        reply_to=payload.get("reply_to") or "",
        owner=_owner(payload.get("on_behalf_of")),
        if_generation=payload.get("if_generation"),
        reason=payload.get("reason", ""),
        args=payload["args"],
        digest=digest,
        signer=signer,
        route=route,
    )


def for_us(command: Command, host: str, from_topic: bool) -> None:
    """The target is this host; `*`, and anything on the topic to every host, only for verbs made for it.

    Problem: `wrong-target`.
    """
    every = VERBS[command.verb].topic
    if command.target != host and not (command.target == "*" and from_topic and every):
        raise Problem("wrong-target", f"this host is {host}", path="target", accepted=host)
    if from_topic and not every:
        on_topic = sorted(name for name, verb in VERBS.items() if verb.topic)
        detail = f"{command.verb} is not taken from the topic to every host; send it to the host's own queue"
        raise Problem("wrong-target", detail, path="schema", accepted=on_topic)


def fresh(command: Command, now_s: float, skew_s: float, born_s: Optional[float]) -> None:
    """`now_s` and `born_s` are wall seconds; born_s None = nothing can have been forgotten (a host's first epoch).

    Problems, all at once: `validity-too-long`, `stale-command`, `future-command`, `before-epoch`.
    """
    issued, until = walltime.seconds(command.issued_wall), walltime.seconds(command.valid_until_wall)
    problems: List[Problem] = []
    if until - issued > LONGEST_VALIDITY_S:
        detail = f"valid for {until - issued:.0f} s; at most {LONGEST_VALIDITY_S} s (24 h) are accepted"
        problems.append(Problem("validity-too-long", detail, path="valid_until", maximum=LONGEST_VALIDITY_S))
    if now_s > until:
        detail = f"was valid until {command.valid_until_wall}; it is {walltime.text(now_s)} here; issue it anew"
        problems.append(Problem("stale-command", detail, path="valid_until", now=walltime.text(now_s)))
    if issued > now_s + skew_s:
        detail = f"issued at {command.issued_wall}; it is {walltime.text(now_s)} here; set the sender's clock"
        problems.append(Problem("future-command", detail, path="issued_at", now=walltime.text(now_s)))
    if born_s is not None and command.route == "broker" and issued < born_s + skew_s:
        after = walltime.text(born_s + skew_s)
        detail = f"this host's memory begins at {after}: an earlier command may have run already; issue it anew"
        problems.append(Problem("before-epoch", detail, path="issued_at", accepted=f"from {after} on"))
    if problems:
        raise Problems(problems)


def answerable(command: Command, policy: Policy) -> None:
    """Problem `reply-to` when the reply is wanted where this site sends none."""
    if command.reply_to and not reply_allowed(command.reply_to, policy.reply_prefixes):
        accepted = list(policy.reply_prefixes)
        raise Problem("reply-to", "replies are sent below the site's prefixes only", path="reply_to", accepted=accepted)


def reply_allowed(destination: str, prefixes: Sequence[str]) -> bool:
    """Whether it is one of `prefixes` or below one.  Names end whole: `/queue/a` is no prefix of `/queue/ab`."""
    return any(prefix and destination.startswith(prefix) and _ends(prefix, destination) for prefix in prefixes)


def _ends(prefix: str, destination: str) -> bool:
    rest = destination[len(prefix) :]
    return not rest or rest[0] in _NAME_ENDS or prefix[-1] in _NAME_ENDS


def owner_of(command: Command) -> Owner:
    """On whose behalf; without `on_behalf_of` the signer itself, without a VO.  Problem: `owner-needed` (local)."""
    if command.owner is not None:
        return command.owner
    if command.signer.local:
        raise Problem("owner-needed", "say on whose behalf: a start on the local socket has no signer to fall back on",
                      path="on_behalf_of", accepted="an object with subject and fqan")
    return Owner(dn.slash(dn.without_proxy(command.signer.rdns)) or command.signer.subject)


def claimed(raw: bytes, name: str) -> str:
    """What a body that was refused says of itself in `id`, `schema` or `reply_to`, if well-formed; else "".

    For answering and counting only: nothing of it is proven.
    """
    try:
        value = strictjson.loads(raw, _CLAIM_LIMIT)
        if isinstance(value, dict) and isinstance(value.get("payload"), str):
            value = strictjson.loads(_base64url(value["payload"]), _CLAIM_LIMIT)
    except (Problem, ValueError):
        return ""
    word = value.get(name) if isinstance(value, dict) else None
    pattern = schemas.schema("command")["properties"][name]["pattern"]
    return word if isinstance(word, str) and re.fullmatch(pattern[1:-1], word) else ""


def _base64url(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise ValueError("not base64url") from None


# ---- parts of parse ----


def _problems_of(name: str, value: Any, at: str) -> List[Problem]:
    try:
        schemas.check(name, value, at)
    except Problems as found:
        return list(found.problems)
    return []


def _verb_problems(payload: Dict[str, Any]) -> List[Problem]:
    named = payload.get("schema")
    if not isinstance(named, str):
        return []
    verb = ACCEPTED.get(named)
    if verb is None:
        accepted = sorted(ACCEPTED)
        return [Problem("unknown-verb", f"this host takes {', '.join(accepted)}", path="schema", accepted=accepted)]
    problems = _problems_of(verb, payload["args"], "args") if isinstance(payload.get("args"), dict) else []
    if payload.get("if_generation") is not None and not VERBS[verb].selects:
        problems.append(_wrong("if_generation", f"{verb} does not act on existing VMs", "null"))
    return problems


def _time_problems(payload: Dict[str, Any], told: Set[str]) -> List[Problem]:
    """What the pattern of a time cannot say: the 30th of February, and an end before the beginning."""
    problems: List[Problem] = []
    args = payload.get("args")
    times = {"issued_at": payload.get("issued_at"), "valid_until": payload.get("valid_until")}
    times.update({f"args.{name}": args.get(name) for name in ("until", "from")} if isinstance(args, dict) else {})
    known = {path: _seconds(path, text, problems) for path, text in times.items()
             if isinstance(text, str) and path not in told}  # fmt: skip
    issued, until = known.get("issued_at"), known.get("valid_until")
    if issued is not None and until is not None and until <= issued:
        problems.append(_wrong("valid_until", "it is not after issued_at", "a time after issued_at"))
    return problems


def _seconds(path: str, text: str, problems: List[Problem]) -> Optional[float]:
    try:
        return walltime.seconds(text)
    except ValueError:
        problems.append(_wrong(path, "there is no such time", "a time in UTC like 2026-11-20T12:00:00.123Z"))
        return None


def _wrong(path: str, what: str, accepted: str) -> Problem:
    return Problem("schema", f"at {path}: {what}", path=path, accepted=accepted)


def _owner(asserted: Optional[Mapping[str, Any]]) -> Optional[Owner]:
    return None if asserted is None else Owner(asserted["subject"], asserted.get("fqan", ""))
