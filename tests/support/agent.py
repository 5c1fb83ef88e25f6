"""The whole agent as a process, and a site around it: what the tests of level `real` stand on.

Everything stands under one temporary folder; what is started is ended by pid; the bridge is made and removed here.
The agent runs with the rights that its unit gives it and no others (confined.py).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import yaml

from tests.support import confined
from tests.support.stompsocket import StompSocket
from tests.support.waiting import until
from vmagent.core import identity, walltime

ROOT = Path(__file__).resolve().parents[2]
HOST = "wn001.test.example.org"
SITE = "TEST"


class Agent:
    """One agent's process."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self.config_file = folder / "vmagent.yaml"
        self.config = json.loads(json.dumps(config))
        self.process: Optional[subprocess.Popen[bytes]] = None
        self.log = folder / "agent.log"

    def start(self, crash_at: str = "", env: Optional[Mapping[str, str]] = None, ready: bool = True) -> None:
        self.config_file.write_text(yaml.safe_dump(self.config))
        surroundings = dict(os.environ, PYTHONPATH=str(ROOT), HOME=str(self.folder), VMAGENT_CRASH_AT=crash_at)
        # `env`: what is said for the agent (LD_PRELOAD) is not for the programs that confine it.
        argv = [*confined.words(), "env", *(f"{name}={value}" for name, value in (env or {}).items()),
                sys.executable, "-m", "vmagent", "--config", str(self.config_file)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                argv, cwd=str(ROOT), env=surroundings, stdout=log, stderr=log, start_new_session=True,
                umask=confined.umask(),
            )
        if ready:
            until(lambda: not self.alive() or self.ask("status"), 40, f"the agent's socket; see {self.log}")
            if not crash_at:
                assert self.alive(), self.log.read_text()[-3000:]

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill9(self) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGKILL)
            self.process.wait(20)

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def crashed(self, seconds: float = 60) -> None:
        """Wait until it killed itself at its crash point."""
        assert self.process is not None
        until(lambda: not self.alive(), seconds, "the crash point")
        assert self.process.returncode == -signal.SIGKILL, self.log.read_text()[-3000:]

    def ask(self, verb: str, **args: Any) -> Any:
        """One query on the local socket; None while it does not answer."""
        path = str(self.folder / "run" / "vmagent.sock")
        try:
            with socket.socket(socket.AF_UNIX) as link:
                link.settimeout(10)
                link.connect(path)
                link.sendall(json.dumps({"id": 1, "verb": verb, "args": args}).encode() + b"\n")
                text = b""
                while not text.endswith(b"\n"):
                    piece = link.recv(65536)
                    if not piece:
                        return None
                    text += piece
        except OSError:
            return None
        answer = json.loads(text)
        return answer.get("result", answer)

    def text(self) -> str:
        return self.log.read_text(errors="replace")


class Controller:
    """A controller and a collector: signs, sends, and keeps every frame that came."""

    def __init__(self, broker_port: int, key: bytes, chain: bytes) -> None:
        self._port = broker_port
        self._key, self._chain = key, chain
        self.link = self._connect()

    def _connect(self) -> StompSocket:
        link = StompSocket(self._port)
        link.subscribe(f"/topic/vmagent.{SITE}.events")
        link.subscribe(f"/queue/vmagent.{SITE}.replies")
        return link

    def reconnect(self) -> None:
        """After the broker was away; what was received so far is kept."""
        frames = self.link.frames
        self.link.close()
        self.link = self._connect()
        self.link.frames[:0] = frames

    def close(self) -> None:
        self.link.close()

    def body(self, verb: str, args: Mapping[str, Any], id: str = "", **members: Any) -> bytes:
        from vmagent.broker import signing

        now = time.time()
        payload: Dict[str, Any] = {
            "schema": f"{verb}/1", "id": id or str(uuid.uuid4()), "issued_at": walltime.text(now),
            "valid_until": walltime.text(now + 3600), "target": HOST,
            "on_behalf_of": {"subject": "/DC=org/DC=example/CN=A User", "fqan": "/vo.example/Role=NULL"},
            "args": dict(args), **members,
        }
        return signing.sign(json.dumps(payload).encode(), self._key, self._chain)

    def post(self, body: bytes) -> None:
        self.link.send(f"/queue/vmagent.{SITE}.{HOST}.commands", body)

    def send(self, verb: str, args: Mapping[str, Any], id: str = "", **members: Any) -> str:
        id = id or str(uuid.uuid4())
        self.post(self.body(verb, args, id=id, **members))
        return id

    # -- what came

    def replies(self, id: str) -> List[Mapping[str, Any]]:
        bodies = [json.loads(f.body) for f in self.link.messages("replies")]
        return [b for b in bodies if b.get("command") == id]

    def reply(self, id: str, status: str = "", seconds: float = 60) -> Mapping[str, Any]:
        """The first reply (with this status) to the command."""
        def find() -> Optional[Mapping[str, Any]]:
            return next((r for r in self.replies(id) if not status or r["status"] == status), None)

        found = until(find, seconds, f"reply {status} to {id}; got {self.replies(id)}")
        assert found is not None
        return found

    def events(self, type: str = "") -> List[Mapping[str, Any]]:
        bodies = [json.loads(f.body) for f in self.link.messages("events")]
        return [b for b in bodies if not type or b["type"] == f"org.vmagent.{type}"]

    def states(self, vm: str) -> List[Mapping[str, Any]]:
        return [e["data"] for e in self.events("vm.state") if e["data"].get("vm") == vm]

    def phases(self, vm: str) -> List[str]:
        phases: List[str] = []
        for state in self.states(vm):
            if not phases or phases[-1] != state["phase"]:
                phases.append(state["phase"])
        return phases

    def wait_phase(self, vm: str, phase: str, seconds: float = 90) -> Mapping[str, Any]:
        until(lambda: phase in self.phases(vm), seconds, f"{phase} of {vm}; saw {self.phases(vm)}")
        return next(s for s in reversed(self.states(vm)) if s["phase"] == phase)

    def gaps(self) -> List[str]:
        """Holes and repetitions with other content in the event stream, per epoch."""
        seen: Dict[str, Dict[int, str]] = {}
        faults: List[str] = []
        for event in self.events():
            text = json.dumps(event, sort_keys=True)
            numbers = seen.setdefault(event["epoch"], {})
            number = int(event["sequence"])
            if numbers.setdefault(number, text) != text:
                faults.append(f"{event['id']} came with two contents")
        for epoch, numbers in seen.items():
            missing = set(range(min(numbers), max(numbers) + 1)) - set(numbers)
            faults += [f"{epoch}: {n} is missing" for n in sorted(missing)]
        return faults


def vm_of(command: str, member: int = 0) -> str:
    return identity.vm_id(command, member)
