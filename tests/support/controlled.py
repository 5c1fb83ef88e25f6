"""A controller without a broker, and the agents it speaks to: they check every command by the agents' own schemas."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from random import Random
from typing import Any, Dict, List, Mapping, Optional, Sequence

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.support.building import WALL, now, observed, policy, ran, record
from tests.support.certificates import NOW_S, authority
from tests.support.fake_link import FakeLink, Sent
from vmagent.broker.link import Frame
from vmagent.core import events, hostview, limitviews, request, schemas
from vmagent.core.changes import Epoch, OutboxRow
from vmagent.core.commands import Command, Signer
from vmagent.core.model import FirewallInfo, HypervisorInfo, ShaperInfo
from vmagent.core.snapshotmodel import SnapshotRules
from vmagent.site.controller import Controller
from vmagent.site.settings import Site, load

EPOCH = "11111111-2222-4333-8444-555555555555"
HOST = "wn1.example.org"
CONFIG = {"site": "S", "urls": ["stomp://127.0.0.1:1"], "key": "c.key", "chain": "c.pem",
          "owner": {"subject": "/CN=A User", "fqan": "/vo.example"}}


def site(folder: Path, **changes: Any) -> Site:
    """A site configuration in `folder`, written and read back."""
    holder = authority().issue("controller")
    (folder / "c.key").write_bytes(holder.key_pem)
    (folder / "c.pem").write_bytes(holder.chain_pem)
    (folder / "site.yaml").write_text(json.dumps({**CONFIG, **changes}))
    return load(folder / "site.yaml")


def host_state(host: str, **changes: Any) -> Mapping[str, Any]:
    """The data of a real host.state."""
    info = HypervisorInfo("test:///default", "TEST", "test", "x86_64", "9.0", "7.2", 4, 4096, True, 1.0)
    data = events.host_state(
        info, policy(host=host), now(), epoch=Epoch(EPOCH, 1, WALL, "first"), version="0", drained=False, degraded={},
        commands=["vm.start/1"], security="signed", certificates=(),
        capabilities=limitviews.capabilities(
            info, FirewallInfo("sets", ""), ShaperInfo("tbf", ""), None, SnapshotRules()), lists={},
    )
    return {**data, **hostview.served(info, policy(host=host), (), {}, now(), False, ()), **changes}


class World:
    """One controller, its clock and its link."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.clock = Clock()
        self.numbers: Dict[str, int] = {}
        self.frames: List[Frame] = []
        self.controller = Controller(site, self.clock, self.wall_s, Random(1), self._open)

    def wall_s(self) -> float:
        return NOW_S + self.clock.seconds()

    def _open(self, subscriptions: Sequence[Any], on_frame: Any, on_state: Any) -> FakeLink:
        self.subscriptions = subscriptions
        self.on_frame = on_frame
        self.link = FakeLink(on_state, auto=True)
        return self.link

    def commands(self, verb: str = "") -> List[Command]:
        """Every command that went out, in order; repeated ones again."""
        parsed = [self.parsed(sent) for sent in self.link.sent]
        return [one for one in parsed if not verb or one.verb == verb]

    def parsed(self, sent: Sent) -> Command:
        envelope = request.envelope(sent.body, 1 << 20)
        payload = json.loads(base64.urlsafe_b64decode(envelope.payload + "=="))
        return request.parse(payload, envelope.digest, Signer("CN=x"), "broker")

    def frame(self, body: Any, destination: str = "/queue/x") -> Frame:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        frame = Frame(destination, {}, raw)
        self.on_frame(frame)
        return frame

    def reply(self, command: str, status: str, result: Optional[Mapping[str, Any]] = None,
              problem: Optional[Mapping[str, Any]] = None) -> None:
        body: Dict[str, Any] = {"command": command, "status": status}
        body.update({name: value for name, value in (("result", result), ("problem", problem)) if value is not None})
        schemas.check("reply", body)
        self.frame(body)

    def event(self, kind: str, data: Mapping[str, Any], host: str = HOST, skip: int = 0) -> Mapping[str, Any]:
        """Publish one event of a host; `skip` numbers before it are lost on the way."""
        number = self.numbers[host] = self.numbers.get(host, 0) + 1 + skip
        row = OutboxRow(number, "events", number, EPOCH, 1, "", f"org.vmagent.{kind}", f"vm/{data.get('vm', '')}",
                        WALL, data)
        body = events.cloud_event(row, f"//S/{host}")
        schemas.check("cloudevent", body)
        schemas.check(f"event.{kind}", data)
        self.frame(body)
        return body

    def state(self, vm: str, phase: str, host: str = HOST, **more: Any) -> None:
        self.event("vm.state", {**STATE, "vm": vm, "phase": phase, **more}, host)

    def snapshot(self, *states: Mapping[str, Any], host: str = HOST) -> None:
        data = events.host_snapshot(host_state(host), states, (), {"events": 1}, Epoch(EPOCH, 1, WALL, "first"), now())
        self.event("host.snapshot", data, host)


STATE: Dict[str, Any] = events.vm_state(
    record(journal=ran(1000.0, ready_at=1010.0)), observed(), now(1020.0), policy(host=HOST)
)
"""A real vm.state, of a VM that is ready."""


def fired(waiting: Any) -> Any:
    """What a Deferred or a coroutine has come to by now; its failure is raised."""
    got: List[Any] = []
    deferred = waiting if isinstance(waiting, Deferred) else ensureDeferred(waiting)
    deferred.addBoth(got.append)
    assert got, "nothing has come yet"
    if isinstance(got[0], Failure):
        got[0].raiseException()
    return got[0]


def waits(waiting: Any) -> bool:
    """Whether nothing has come yet."""
    got: List[Any] = []
    waiting.addBoth(got.append)
    return not got
