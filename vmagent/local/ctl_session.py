"""One run of vmagentctl: what was said, whom to ask, where to show it; and how a command is sent."""

from __future__ import annotations

import argparse
import json
import time
import uuid
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Callable, Dict, Mapping, TextIO

from vmagent.local import protocol, tables
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
    pause: Callable[[float], None] = time.sleep  # between two looks of who waits

    def show(self, answer: Any, draw: Callable[[tables.Screen, Any], None]) -> None:
        if self.said.json:
            self.out.write(json.dumps(answer, indent=2) + "\n")
        else:
            draw(self.screen, answer)


def payload_of(session: Session, verb: str, args: Mapping[str, Any], **members: Any) -> Dict[str, Any]:
    """A command as the local socket takes it: target and times are left to the agent."""
    payload: Dict[str, Any] = {"schema": f"{verb}/1", "id": str(uuid.uuid4()), "args": dict(args), **members}
    if getattr(session.said, "reason", ""):
        payload["reason"] = session.said.reason
    return payload


def command(session: Session, verb: str, args: Mapping[str, Any], **members: Any) -> int:
    """Send it, show the first reply; the exit code."""
    reply = session.client.ask(protocol.COMMAND, payload_of(session, verb, args, **members))
    session.show(reply, tables.reply)
    return code_of(reply)


def code_of(reply: Mapping[str, Any]) -> int:
    """What a reply means as an exit code."""
    return {"refused": Code.REFUSED, "failed": Code.NO}.get(reply["status"], Code.OK)
