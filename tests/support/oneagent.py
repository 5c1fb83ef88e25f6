"""A broker and one agent in one, behind a real socket: as much as a controller's process can see of either.

Every command is checked by the agents' schemas; a start goes through its phases at once, a stop ends it.  Frames are
those of STOMP 1.2.  `refuse` makes it refuse every command; `silent` makes it answer none; of `deaf` verbs it says
`accepted` and nothing more.
"""

from __future__ import annotations

import base64
import functools
import json
from typing import Any, Dict, List, Mapping, Optional, Sequence

from tests.support.building import now
from tests.support.controlled import EPOCH, HOST, STATE, WALL, host_state
from tests.support.peer import Peer, Sent, Talk
from vmagent.core import events, identity, request
from vmagent.core.changes import Epoch, OutboxRow
from vmagent.core.commands import Command, Signer


class OneAgent:
    """Use `with OneAgent() as agent:`; `agent.url` is its broker."""

    def __init__(self, refuse: Optional[Mapping[str, Any]] = None, silent: bool = False,
                 deaf: Sequence[str] = ()) -> None:
        self.commands: List[Command] = []
        self.subscriptions: Dict[str, str] = {}  # destination -> id, of the connection that came last
        self.phases: Dict[str, str] = {}
        self._refuse = refuse
        self._silent = silent
        self._deaf = tuple(deaf)
        self._sequence = 0
        self._messages = 0
        self._peer = Peer(self._serve)
        self.url = self._peer.url()

    def __enter__(self) -> OneAgent:
        self._peer.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._peer.__exit__()

    def publish_state(self, phase: str) -> None:
        """An event out of the blue, on the connection that came last."""
        self._event(self._peer.talks[-1], "vm.state", {**STATE, "phase": phase})

    def _serve(self, talk: Talk) -> None:
        talk.connect()
        self.subscriptions = {}
        while True:
            frame = talk.read()
            if frame.command == "SUBSCRIBE":
                self.subscriptions[frame.headers["destination"]] = frame.headers["id"]
            if "receipt" in frame.headers:
                talk.receipt(frame)
            if frame.command == "SEND" and not self._silent:
                self._command(talk, frame)

    def _tell(self, talk: Talk, destination: str, body: Mapping[str, Any]) -> None:
        self._messages += 1
        raw = json.dumps(body).encode()
        id = str(self._messages)
        headers = {"subscription": self.subscriptions[destination], "message-id": id, "ack": id,
                   "destination": destination, "content-length": str(len(raw))}
        talk.write("MESSAGE", headers, raw)

    def _event(self, talk: Talk, kind: str, data: Mapping[str, Any]) -> None:
        self._sequence += 1
        row = OutboxRow(self._sequence, "events", self._sequence, EPOCH, 1, "", f"org.vmagent.{kind}", "host", WALL,
                        data)
        self._tell(talk, "/topic/vmagent.S.events", events.cloud_event(row, f"//S/{HOST}"))

    def _command(self, talk: Talk, frame: Sent) -> None:
        envelope = request.envelope(frame.body, 1 << 20)
        payload = json.loads(base64.urlsafe_b64decode(envelope.payload + "=="))
        command = request.parse(payload, envelope.digest, Signer("CN=x"), "broker")
        self.commands.append(command)

        def reply(status: str, **more: Any) -> None:
            self._tell(talk, command.reply_to, {"command": command.id, "status": status, **more})

        if self._refuse is not None:
            reply("refused", problem=self._refuse)
        elif command.verb == "host.report":
            states = [{**STATE, "vm": vm, "phase": phase} for vm, phase in self.phases.items()]
            data = events.host_snapshot(host_state(HOST), states, (), {}, Epoch(EPOCH, 1, WALL, "first"), now())
            self._event(talk, "host.snapshot", data)
            reply("done", result={})
        else:
            self._on_vms(command, reply, functools.partial(self._event, talk))

    def _on_vms(self, command: Command, reply: Any, event: Any) -> None:
        start = command.verb == "vm.start"
        count = command.args.get("count", 1)
        vms = [identity.vm_id(command.id, n) for n in range(count)] if start else list(command.args["vms"])
        reply("accepted", result={"members": [_member(n, vm, "accepted") for n, vm in enumerate(vms)]})
        if command.verb in self._deaf:
            return
        for phase in ("pending", "starting", "running", "ready") if start else ("stopping", "stopped"):
            for vm in vms:
                self.phases[vm] = phase
                event("vm.state", {**STATE, "vm": vm, "phase": phase, "closed": phase == "stopped"})
        reply("done", result={"members": [_member(n, vm, "done") for n, vm in enumerate(vms)]})


def _member(member: int, vm: str, status: str) -> Mapping[str, Any]:
    return {"member": member, "vm": vm, "status": status}
