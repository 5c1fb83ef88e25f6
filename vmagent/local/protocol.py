"""The local socket's wire (PROTOCOL 4), pure: JSON lines, one request or one reply per line.

    request   {"id": 1, "verb": "list", "args": {...}}
    answer    {"id": 1, "result": ...}                      the last word on that id
    part      {"id": 1, "result": ..., "more": true}        a stream: more lines with this id follow
    refusal   {"id": 1, "problem": {"type": ..., ...}}      nothing was done

`id` is an integer or a short string, chosen by the client.  A refusal with `"id": null` concerns the connection itself,
which is then closed.  The verb `command` carries a payload of PROTOCOL 3, unsigned.  Every other verb only looks, but
those of `DEEDS`: `resend` writes accounting messages again, `adopt` and `disown` make a guest ours and give it back.
With `"dry_run": true` in their args `resend` and `adopt` only look, too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Union

from vmagent.core import strictjson
from vmagent.core.commands import VERBS
from vmagent.errors import Problem

LONGEST_REQUEST = 2**20
"""Bytes of one request line; a longer one ends the connection."""

LONGEST_ANSWER = 64 * 2**20
"""Bytes of one answer line that the client accepts."""

COMMAND = "command"
RESEND, ADOPT, DISOWN = "resend", "adopt", "disown"
DEEDS = (RESEND, ADOPT, DISOWN)
EVENTS = "events"
VALID_FOR_S = 300
"""How long a local command without `valid_until` is valid."""

_LONGEST_ID = 64
Id = Union[int, str, None]


@dataclass(frozen=True)
class Request:
    """One request, well formed; whether its verb exists and may be used is decided later."""

    id: Id
    verb: str
    args: Mapping[str, Any]

    @property
    def changes(self) -> bool:
        """Whether only an administrator may ask this.  An unknown command verb is taken as one that changes."""
        if self.verb != COMMAND:
            return self.verb in DEEDS and (self.verb == DISOWN or self.args.get("dry_run") is not True)
        verb = VERBS.get(str(self.args.get("schema", "")).split("/")[0])
        return verb is None or verb.changes


def request(line: bytes) -> Request:
    """Read one line.  Problems: `json`, `too-large`, `schema`."""
    raw = strictjson.loads(line, LONGEST_REQUEST)
    if not isinstance(raw, dict):
        raise Problem("schema", 'a request is an object: {"id": 1, "verb": "list", "args": {}}', path="")
    unknown = sorted(set(raw) - {"id", "verb", "args"})
    if unknown:
        raise Problem("schema", "a request has the members id, verb and args only", path=unknown[0])
    return Request(_id(raw), _verb(raw), _args(raw))


def claimed_id(line: bytes) -> Id:
    """The id of a line that `request` refused, or None: so that the refusal finds its request."""
    try:
        raw = strictjson.loads(line, LONGEST_REQUEST)
        return _id(raw) if isinstance(raw, dict) else None
    except Problem:
        return None


def _id(raw: Mapping[str, Any]) -> Id:
    value = raw.get("id")
    if isinstance(value, str) and 0 < len(value) <= _LONGEST_ID:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise Problem("schema", f"an integer or a string of 1 to {_LONGEST_ID} characters is expected", path="id")


def _verb(raw: Mapping[str, Any]) -> str:
    value = raw.get("verb")
    if not isinstance(value, str) or not value:
        raise Problem("schema", "the name of a verb is expected", path="verb")
    return value


def _args(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    value = raw.get("args", {})
    if not isinstance(value, dict):
        raise Problem("schema", "an object is expected", path="args")
    return value


def line(body: Mapping[str, Any]) -> bytes:
    """One JSON line."""
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def result(id: Id, value: Any, more: bool = False) -> bytes:
    body: Dict[str, Any] = {"id": id, "result": value}
    if more:
        body["more"] = True
    return line(body)


def problem(id: Id, refusal: Problem) -> bytes:
    return line({"id": id, "problem": refusal.as_json()})


def filled(payload: Mapping[str, Any], target: str, issued_wall: str, valid_until_wall: str) -> Dict[str, Any]:
    """The payload with what a local client may leave out; its `id` it must choose itself, so that a retry is one."""
    defaults: Dict[str, Optional[Any]] = {"issued_at": issued_wall, "valid_until": valid_until_wall, "target": target}
    return {**defaults, **payload}
