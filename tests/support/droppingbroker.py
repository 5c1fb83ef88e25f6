"""A broker that keeps what was not acknowledged, and drops connections in the middle of frames, and ACKs."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any, Callable, Dict, List, Mapping, Sequence, Set, Tuple

from tests.support.peer import Peer, Talk

PREFETCH = 8
Answer = Callable[[Mapping[str, Any]], Sequence[Tuple[str, Mapping[str, Any]]]]  # a command -> (destination, event)s


class DroppingBroker:
    """`with DroppingBroker(cuts, answer) as broker`.

    cuts: connection n ends in the middle of its cuts[n]-th MESSAGE; later ones stay.  answer: what a command that
    somebody sends puts into the queues.  Every third ACK of a connection that will be cut is confirmed and forgotten:
    that message comes again, though it was acknowledged.
    """

    def __init__(self, cuts: Sequence[int], answer: Answer = lambda command: ()) -> None:
        self.kept: Dict[str, Tuple[str, bytes]] = {}
        self.delivered: List[str] = []
        self.commands: List[Mapping[str, Any]] = []
        self._cuts = list(cuts)
        self._answer = answer
        self._last = 0
        self._peer = Peer(self._serve)
        self.url = self._peer.url()

    def __enter__(self) -> DroppingBroker:
        self._peer.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._peer.__exit__()

    def put(self, destination: str, event: Mapping[str, Any]) -> None:
        """A message for whoever subscribes to it; before anybody is connected, or from `answer`."""
        self._last += 1
        self.kept[str(self._last)] = (destination, json.dumps(event).encode())

    @property
    def connections(self) -> int:
        return len(self._peer.talks)

    def _serve(self, talk: Talk) -> None:
        cut = self._cuts.pop(0) if self._cuts else 0
        talk.connect()
        subscriptions: Dict[str, str] = {}
        flight: Set[str] = set()
        acks = written = 0
        while True:
            frame = talk.read()
            if frame.command == "SUBSCRIBE":
                subscriptions[frame.headers["destination"]] = frame.headers["id"]
            elif frame.command == "ACK":
                acks += 1
                flight.discard(frame.headers["id"])
                if not cut or acks % 3:
                    self.kept.pop(frame.headers["id"], None)
            elif frame.command == "SEND":
                command = json.loads(base64.urlsafe_b64decode(json.loads(frame.body)["payload"] + "=="))
                self.commands.append(command)
                for destination, event in self._answer(command):
                    self.put(destination, event)
            if "receipt" in frame.headers:
                talk.receipt(frame)
            for id, (destination, body) in list(self.kept.items()):
                if len(flight) >= PREFETCH or destination not in subscriptions or id in flight:
                    continue
                written += 1
                if cut and written >= cut:
                    with contextlib.suppress(OSError):
                        talk.socket.sendall(b"MESSAGE\nsubscription:events\nmessage-id:x\n\n" + body[: len(body) // 2])
                    return
                flight.add(id)
                self.delivered.append(id)
                talk.write("MESSAGE", {"subscription": subscriptions[destination], "message-id": id, "ack": id,
                                       "destination": destination, "content-length": str(len(body))}, body)
