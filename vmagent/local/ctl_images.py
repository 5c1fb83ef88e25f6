"""What `vmagentctl images` and its actions do: look, fetch, evict, pin.

A fetch with --wait, and an eviction, are followed to their end: the command is sent again, byte for byte the same, and
is answered with the newest of its replies (PROTOCOL 3: seen before).  So a lost answer costs nothing, here too.
"""

from __future__ import annotations

import uuid
from typing import Any, Callable, Dict, Mapping

from vmagent.core import imageasking, walltime
from vmagent.errors import Problem
from vmagent.local import imagetables, protocol, tables
from vmagent.local.ctl_session import Code, Session, code_of, command, payload_of
from vmagent.local.fetchbars import Bars

LOOK_S = 1.0
VALID_S = 3600


def images(session: Session) -> int:
    """Without an action it only looks."""
    does = session.said.does
    return _DOES[does](session) if does else _look(session)


def _look(session: Session) -> int:
    said = session.said
    if said.follow and not said.downloads:
        raise Problem("usage", "--follow goes with --downloads")
    if said.follow:
        return _follow(session)
    if said.downloads:
        session.show(session.client.ask("downloads"), imagetables.downloads)
    else:
        session.show(session.client.ask("images"), imagetables.running if said.running else imagetables.images)
    return Code.OK


def _follow(session: Session) -> int:
    """Until nothing is fetched any more, or interrupted."""
    with Bars(session.out) as bars:
        while True:
            under_way = session.client.ask("downloads")["downloads"]
            bars.show({one["id"]: one for one in under_way})
            if not under_way:
                return Code.OK
            session.pause(LOOK_S)


def _fetch(session: Session) -> int:
    args = imageasking.fetch_args(vars(session.said))
    if not session.said.wait:
        return command(session, "image.fetch", args)
    with Bars(session.out) as bars:
        reply = _followed(session, "image.fetch", args, lambda told: bars.show(_how_far(told)))
    session.show(reply, tables.reply)
    return code_of(reply)


def _how_far(reply: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    result = reply["result"]
    return {result["image"]["id"]: result["fetch"]} if result.get("fetch") else {}


def _evict(session: Session) -> int:
    reply = _followed(session, "image.evict", imageasking.named_args(vars(session.said)), lambda told: None)
    session.show(reply, tables.reply)
    return code_of(reply)


def _followed(
    session: Session, verb: str, args: Mapping[str, Any], shown: Callable[[Mapping[str, Any]], None]
) -> Mapping[str, Any]:
    """The last reply; every other one is `shown`."""
    issued = str(session.client.ask("status")["wall"])
    payload: Dict[str, Any] = {
        **payload_of(session, verb, args), "id": str(uuid.uuid4()), "issued_at": issued,
        "valid_until": walltime.text(walltime.seconds(issued) + VALID_S),
    }  # fmt: skip
    while True:
        reply: Mapping[str, Any] = session.client.ask(protocol.COMMAND, payload)
        if reply["status"] != "accepted":
            return reply
        shown(reply)
        session.pause(LOOK_S)


def _simply(verb: str) -> Callable[[Session], int]:
    return lambda session: command(session, verb, imageasking.named_args(vars(session.said)))


_DOES: Mapping[str, Callable[[Session], int]] = {
    "fetch": _fetch, "evict": _evict, "pin": _simply("image.pin"), "unpin": _simply("image.unpin"),
}  # fmt: skip
