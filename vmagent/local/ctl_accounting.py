"""`vmagentctl accounting`: how publishing to the grid's accounting stands, and a month told again."""

from __future__ import annotations

from typing import Any, List, Mapping

from vmagent.local import protocol, tables
from vmagent.local.ctl_session import Code, Session


def accounting(session: Session) -> int:
    if session.said.does == "status":
        session.show(session.client.ask("accounting"), _status)
        return Code.OK
    args = {"month": session.said.month, "dry_run": session.said.dry_run}
    answer = session.client.ask(protocol.RESEND, args)
    session.show(answer, _resent)
    return Code.NO if answer["wrong"] else Code.OK


def _status(screen: tables.Screen, answer: Mapping[str, Any]) -> None:
    for line in status_lines(answer):
        screen.line(line)


def status_lines(answer: Mapping[str, Any]) -> List[str]:
    """For people."""
    apel = answer["apel"]
    if apel is None:
        return ["no accounting is published here (setting accounting.apel)"]
    return [
        f"published for {apel['site_name']}: {apel['published_at'] or 'not since the agent began'};"
        f" next: {apel['next_at'] or 'within a minute'}",
        f"not published yet: {_since(apel['unexported_since'])}",
        f"in the spool: {apel['waiting']} messages{_oldest(apel['waiting_since'])}",
        *([f"TROUBLE: {apel['trouble']}"] if apel["trouble"] else []),
    ]


def _since(wall: Any) -> str:
    return f"periods from {wall} on" if wall else "nothing"


def _oldest(wall: Any) -> str:
    return f", the oldest from {wall}" if wall else ""


def _resent(screen: tables.Screen, answer: Mapping[str, Any]) -> None:
    for line in resent_lines(answer):
        screen.line(line)


def resent_lines(answer: Mapping[str, Any]) -> List[str]:
    """For people."""
    does = "would be written" if answer["dry_run"] else "written"
    lines = [f"{answer['month']}: {answer['records']} records in {answer['messages']} messages {does}"]
    return lines + [f"in no record: {text}" for text in answer["wrong"]]
