"""What each sub-command of vmagentctl does: ask the agent, show the answer, return the exit code.

`COMMANDS` is the whole list.  A function gets a Session and returns an exit code of `Code`; Problems and Unreachable go
up to ctl.py, which turns them into codes 3 and 4.
"""

from __future__ import annotations

import argparse
import json
import uuid
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Callable, Dict, Mapping, TextIO, Tuple

from vmagent import givenfiles
from vmagent.core import asking
from vmagent.errors import Problem
from vmagent.local import handles, imagetables, limittables, protocol, tables
from vmagent.local.ctl_client import Client


class Code(IntEnum):
    """Exit codes; the help says the same."""

    OK = 0
    NO = 1
    USAGE = 2
    UNKNOWN = 2
    REFUSED = 3
    UNREACHABLE = 4


@dataclass(frozen=True)
class Session:
    """One run of vmagentctl."""

    said: argparse.Namespace
    client: Client
    out: TextIO
    screen: tables.Screen
    ask: Callable[[str], bool]  # a question to the person -> yes?

    def show(self, answer: Any, draw: Callable[[tables.Screen, Any], None]) -> None:
        if self.said.json:
            self.out.write(json.dumps(answer, indent=2) + "\n")
        else:
            draw(self.screen, answer)


def _looker(verb: str, draw: Callable[[tables.Screen, Any], None]) -> Callable[[Session], int]:
    """A sub-command that asks one query without arguments and shows the answer."""

    def look(session: Session) -> int:
        session.show(session.client.ask(verb), draw)
        return Code.OK

    return look


def listing(session: Session) -> int:
    session.show(session.client.ask("list", {"all": session.said.ended}), tables.listing)
    return Code.OK


def show(session: Session) -> int:
    session.show(session.client.ask("show", {"vm": session.said.vm}), tables.show)
    return Code.OK


def events(session: Session) -> int:
    args = {"limit": session.said.limit, "follow": session.said.follow}
    for entry in session.client.stream(protocol.EVENTS, args):
        if session.said.json:
            session.out.write(json.dumps(entry) + "\n")
        else:
            tables.event(session.screen, entry)
        session.out.flush()
    return Code.OK


def audit(session: Session) -> int:
    args = {"limit": session.said.limit, "subject": session.said.subject}
    session.show(session.client.ask("audit", args), tables.audit)
    return Code.OK


def images(session: Session) -> int:
    session.show(session.client.ask("images"), imagetables.running if session.said.running else imagetables.images)
    return Code.OK


def over(session: Session) -> int:
    answer = session.client.ask("over", {"handle": session.said.handle})
    session.show(answer, tables.over)
    if answer["over"]:
        return Code.OK
    return Code.UNKNOWN if answer["unknown"] else Code.NO


# -- commands


def _command(session: Session, verb: str, args: Mapping[str, Any], **members: Any) -> int:
    payload: Dict[str, Any] = {"schema": f"{verb}/1", "id": str(uuid.uuid4()), "args": dict(args), **members}
    if session.said.reason:
        payload["reason"] = session.said.reason
    reply = session.client.ask(protocol.COMMAND, payload)
    session.show(reply, tables.reply)
    return {"refused": Code.REFUSED, "failed": Code.NO}.get(reply["status"], Code.OK)


def start(session: Session) -> int:
    owner = {"subject": session.said.owner, "fqan": session.said.fqan}
    args = asking.start_args(vars(session.said), givenfiles.content)
    return _command(session, "vm.start", args, on_behalf_of=owner)


def on_vms(session: Session) -> int:
    """stop, kill, reboot, restart, revert, pause, resume, extend."""
    said = session.said
    args = _chosen(session)
    if getattr(said, "grace", None) is not None:
        args["grace_s"] = said.grace
    if getattr(said, "to", None) is not None:
        args["snapshot"] = said.to
    args.update(getattr(said, "volume", None) or {})
    if said.verb == "extend":
        args["lifetime_s"] = said.lifetime
    return _command(session, f"vm.{said.verb}", args)


def _chosen(session: Session) -> Dict[str, Any]:
    """The selector, and a yes where it may concern several VMs."""
    said = session.said
    args = asking.selector_args(vars(said), _ids(session))
    if "vms" not in args and not said.yes and not session.ask(f"{said.verb} every VM that matches {args}?"):
        raise Problem("usage", "not done: it may concern several VMs, and nobody said yes (use --yes)")
    return args


def limits(session: Session) -> int:
    """Without an option that changes something it only looks."""
    said = session.said
    if asking.changes_limits(vars(said)):
        changes = asking.limits_args(vars(said))
        return _command(session, "vm.limits", {**_chosen(session), **changes})
    if not said.vms:
        raise Problem("usage", "name the VMs whose limits are to be shown, or say what to change")
    answers = [session.client.ask("limits", {"vm": vm}) for vm in said.vms]
    session.show({"vms": answers}, limittables.limits)
    return Code.OK


def snapshot(session: Session) -> int:
    """Without an option it only looks."""
    verb, args = asking.snapshot_args(vars(session.said))
    return _command(session, verb, {**_chosen(session), **args})


def _ids(session: Session) -> Tuple[str, ...]:
    if not session.said.vms:
        return ()
    known = [(row["vm"], row["name"]) for row in session.client.ask("list")["vms"]]
    return tuple(handles.pick(text, known) for text in session.said.vms)


def revoke(session: Session) -> int:
    said = session.said
    strict = said.action in ("pause", "stop", "kill")
    if strict and not said.yes and not session.ask(f"{said.action} every VM that runs on {said.image}?"):
        raise Problem("usage", "not done: it may concern several VMs, and nobody said yes (use --yes)")
    return _command(session, "image.revoke", asking.revocation_args(vars(said)))


def drain(session: Session) -> int:
    if session.said.check is None:
        return _command(session, "host.drain", {})
    answer = session.client.ask("drain_check", {"minutes": session.said.check / 60})
    session.show(answer, tables.drain_check)
    return Code.OK if answer["yes"] else Code.NO


def undrain(session: Session) -> int:
    return _command(session, "host.undrain", {})


COMMANDS: Mapping[str, Callable[[Session], int]] = {
    "list": listing,
    "show": show,
    "who": _looker("who", tables.who),
    "status": _looker("status", tables.status),
    "capacity": _looker("capacity", tables.capacity),
    "events": events,
    "audit": audit,
    "images": images,
    "revoke": revoke,
    "over": over,
    "start": start,
    "stop": on_vms,
    "kill": on_vms,
    "reboot": on_vms,
    "attach": on_vms,
    "detach": on_vms,
    "restart": on_vms,
    "revert": on_vms,
    "snapshot": snapshot,
    "pause": on_vms,
    "resume": on_vms,
    "extend": on_vms,
    "limits": limits,
    "drain": drain,
    "undrain": undrain,
}
