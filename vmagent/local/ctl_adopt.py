"""`vmagentctl adopt` and `disown`: what would be and what was done, in words (docs/operations/adoption.md)."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping

from vmagent.local import protocol, tables
from vmagent.local.ctl_session import Code, Session


def adopt(session: Session) -> int:
    """Without --yes it only says what would be."""
    said = session.said
    args: Dict[str, Any] = {"vm": said.vm, "owner": said.owner, "lifetime_s": said.lease, "dry_run": not said.yes}
    args.update({name: value for name, value in (("fqan", said.fqan), ("cpu_cap_core_percent", said.cpu_cap),
                                                 ("reason", said.reason)) if value})  # fmt: skip
    session.show(session.client.ask(protocol.ADOPT, args), _adopted)
    return Code.OK


def disown(session: Session) -> int:
    args = {"vm": session.said.vm, **({"reason": session.said.reason} if session.said.reason else {})}
    session.show(session.client.ask(protocol.DISOWN, args), _disowned)
    return Code.OK


def _adopted(screen: tables.Screen, answer: Mapping[str, Any]) -> None:
    for line in adopted_lines(answer):
        screen.line(line)


def adopted_lines(answer: Mapping[str, Any]) -> List[str]:
    """For people."""
    owner, vo = answer["owner"]["subject"], answer["owner"]["vo"]
    cap = answer["cpu_cap_core_percent"]
    lines = [
        f"{answer['name']} ({answer['vm']}): {answer['cores']} cores, {answer['memory_mib']} MiB",
        f"owner: {owner}{f' of {vo}' if vo else ''}",
        f"it ends {answer['lifetime_s']} s from now, unless its lease is extended",
        *([f"its CPU is held to {cap} % of a core"] if cap else []),
        *(f"held: {what}" for what in answer["held"]),
        *(f"NOT held: {what}" for what in answer["not_held"]),
        *(f"CAPACITY: {what}" for what in answer["short"]),
    ]
    if answer["dry_run"]:
        return [*lines, "nothing was done; the same with --yes adopts it"]
    return [*lines, "adopted; vmagentctl disown gives it back"]


def _disowned(screen: tables.Screen, answer: Mapping[str, Any]) -> None:
    screen.line(f"{answer['name']} ({answer['vm']}) is given back: it runs on, without a lease, and is foreign again")
