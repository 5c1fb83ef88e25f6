"""What systemd hears: readiness, watchdog, reload, stop.  An outage outside never starves the watchdog."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any, Iterator, List

import pytest

from tests.real.conftest import start_args
from tests.support import confined
from tests.support.agent import Agent, Controller, vm_of
from tests.support.waiting import until


class Notified:
    """The service manager's end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        path.chmod(0o777)
        self._socket.setblocking(False)
        self._heard: List[str] = []

    def heard(self) -> List[str]:
        while True:
            try:
                self._heard += self._socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return self._heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Notified]:
    one = Notified(tmp_path / "notify")
    yield one
    one.close()


def surroundings(manager: Notified) -> Any:
    return {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "1500000"}


def beats(manager: Notified) -> int:
    return manager.heard().count("WATCHDOG=1")


@pytest.mark.skipif(not confined.wanted(), reason="root may do all of it")
@pytest.mark.parametrize("theirs", ["state", "state/vmagent.db", "group"])
def test_an_agent_that_lacks_a_right_says_which_and_ends(agent: Agent, theirs: str) -> None:
    """A state directory or a restored store that is root's; a group for the socket that its user is not in."""
    (agent.folder / "state").mkdir()
    (agent.folder / "state").chmod(0o711)
    if theirs == "group":
        confined.give(agent.folder / "state")
        agent.config["socket"] = {"admin_group": "daemon"}
        said = "usermod -aG daemon 60900"
    else:
        if theirs != "state":
            confined.give(agent.folder / "state")
            (agent.folder / theirs).touch(0o600)
        said = f"{agent.folder / theirs} belongs to root and the agent runs as 60900: chown 60900:"
    agent.start(ready=False)
    until(lambda: not agent.alive(), 60, "its end")
    assert agent.process is not None and agent.process.returncode == 1
    assert said in agent.text() and "Traceback" not in agent.text(), agent.text()


def test_ready_watchdog_reload_stop(agent: Agent, manager: Notified) -> None:
    agent.start(env=surroundings(manager))
    until(lambda: "READY=1" in manager.heard(), 20, "READY=1")
    until(lambda: beats(manager) >= 3, 10, "three beats")
    assert agent.process is not None
    ready = manager.heard().count("READY=1")
    agent.process.send_signal(signal.SIGHUP)
    until(lambda: manager.heard().count("READY=1") > ready, 10, "READY=1 after the reload")
    assert "RELOADING=1" in manager.heard()
    assert agent.stop() == 0
    assert "STOPPING=1" in manager.heard()


def test_outages_outside_do_not_starve_the_watchdog(
    agent: Agent, manager: Notified, controller: Controller, libvirt: Any, rabbitmq: Any
) -> None:
    agent.start(env=surroundings(manager))
    vm = vm_of(controller.send("vm.start", start_args(networks=None)))
    controller.wait_phase(vm, "ready")
    rabbitmq.kill()
    os.kill(libvirt.process.pid, signal.SIGSTOP)
    try:
        before = beats(manager)
        until(lambda: beats(manager) > before + 20, 30, "beats during the outage")
        assert {"broker"} <= set(agent.ask("status")["degraded"])
    finally:
        os.kill(libvirt.process.pid, signal.SIGCONT)
        rabbitmq.start()
    # From here on nobody reads the socket: a manager that hangs must not freeze the agent.
    controller.reconnect()
    controller.reply(controller.send("vm.kill", {"all": True}), "done", 90)
