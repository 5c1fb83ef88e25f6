"""What each sub-command of vmagentctl does: ask the agent, show the answer, return the exit code.

`COMMANDS` is the whole list.  A function gets a Session and returns an exit code of `Code`; Problems and Unreachable go
up to ctl.py, which turns them into codes 3 and 4.
"""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, Mapping, Tuple

from vmagent import givenfiles
from vmagent.core import asking, capacityasking, imageasking
from vmagent.errors import Problem
from vmagent.local import (
    capacitytables,
    ctl_accounting,
    ctl_adopt,
    ctl_images,
    ctl_top,
    handles,
    limittables,
    protocol,
    tables,
    telemetrytables,
    usagetables,
)
from vmagent.local.ctl_session import Code, Session, code_of, command, payload_of


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
    if session.said.occi:
        told = session.client.ask("show", {"vm": session.said.vm, "occi": True})["occi"]
        lines = [json.dumps(told["resource"], indent=2)] if session.said.json else told["lines"]
        session.out.write("\n".join(lines) + "\n")
        return Code.OK
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


def usage(session: Session) -> int:
    said = session.said
    asked = {"vm": said.vm, "since": said.since, "until": said.until}
    session.show(session.client.ask("usage", asked), usagetables.usage)
    return Code.OK


def capacity(session: Session) -> int:
    """With an option that describes VMs it asks how many of them can start: no exit code 0 unless there is room."""
    said = session.said
    if not capacityasking.asks(vars(said)):
        session.show(session.client.ask("capacity"), capacitytables.capacity)
        return Code.OK
    args = capacityasking.query_args(vars(said), givenfiles.content)
    owner = {"on_behalf_of": {"subject": said.owner, "fqan": said.fqan}} if said.owner else {}
    reply = session.client.ask(protocol.COMMAND, payload_of(session, "capacity.query", args, **owner))
    if reply["status"] != "done":
        session.show(reply, tables.reply)
        return code_of(reply)
    session.show(reply["result"], capacitytables.answer)
    return Code.OK if reply["result"]["enough"] else Code.NO


def glue(session: Session) -> int:
    """JSON whatever was asked for: it is made for programs."""
    session.out.write(json.dumps(session.client.ask("glue"), indent=2) + "\n")
    return Code.OK


def over(session: Session) -> int:
    answer = session.client.ask("over", {"handle": session.said.handle})
    session.show(answer, tables.over)
    if answer["over"]:
        return Code.OK
    return Code.UNKNOWN if answer["unknown"] else Code.NO


def telemetry(session: Session) -> int:
    said = session.said
    args = {**({"vm": said.vm} if said.vm else {}), **({"as": "cloudwatch"} if said.cloudwatch else {})}
    session.show(session.client.ask("telemetry", args), telemetrytables.telemetry)
    return Code.OK


# -- commands


def start(session: Session) -> int:
    owner = {"subject": session.said.owner, "fqan": session.said.fqan}
    args = asking.start_args(vars(session.said), givenfiles.content)
    return command(session, "vm.start", args, on_behalf_of=owner)


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
    return command(session, f"vm.{said.verb}", args)


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
        return command(session, "vm.limits", {**_chosen(session), **changes})
    if not said.vms:
        raise Problem("usage", "name the VMs whose limits are to be shown, or say what to change")
    answers = [session.client.ask("limits", {"vm": vm}) for vm in said.vms]
    session.show({"vms": answers}, limittables.limits)
    return Code.OK


def snapshot(session: Session) -> int:
    """Without an option it only looks."""
    verb, args = asking.snapshot_args(vars(session.said))
    return command(session, verb, {**_chosen(session), **args})


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
    return command(session, "image.revoke", imageasking.revocation_args(vars(said)))


def drain(session: Session) -> int:
    if session.said.check is None:
        return command(session, "host.drain", {})
    answer = session.client.ask("drain_check", {"minutes": session.said.check / 60})
    session.show(answer, tables.drain_check)
    return Code.OK if answer["yes"] else Code.NO


def undrain(session: Session) -> int:
    return command(session, "host.undrain", {})


COMMANDS: Mapping[str, Callable[[Session], int]] = {
    "list": listing,
    "show": show,
    "who": _looker("who", tables.who),
    "status": _looker("status", tables.status),
    "capacity": capacity,
    "telemetry": telemetry,
    "top": ctl_top.top,
    "glue": glue,
    "events": events,
    "audit": audit,
    "usage": usage,
    "accounting": ctl_accounting.accounting,
    "images": ctl_images.images,
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
    "adopt": ctl_adopt.adopt,
    "disown": ctl_adopt.disown,
    "drain": drain,
    "undrain": undrain,
}
