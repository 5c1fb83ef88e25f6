"""What certificates cannot take away: the local socket, and a word about each of them."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from tests.support.agent import Agent
from tests.support.certificates import authority
from tests.support.waiting import until


def test_without_a_usable_certificate_the_socket_answers_and_each_is_named(agent: Agent, tmp_path: Path) -> None:
    day, today = datetime.timedelta(days=1), datetime.datetime.now(datetime.timezone.utc)
    above = authority()
    old = above.issue("host", begins=today - 9 * day, ends=today - 2 * day)
    (tmp_path / "host.pem").write_bytes(old.pem)
    (tmp_path / "host.key").write_bytes(old.key_pem)
    files = {"ca": "missing.pem", "certificate": "host.pem", "key": "host.key"}
    tls = {name: str(tmp_path / file) for name, file in files.items()}
    agent.config["broker"].update(urls=["stomp+ssl://127.0.0.1:1"], tls=tls)
    agent.config["security"]["ca_directory"] = str(tmp_path / "nothing")
    agent.start()
    status = until(lambda: _told(agent), 20, "what is degraded")
    assert f"{tmp_path}/host.pem" in status["degraded"]["certificate"]
    assert f"expired on {(today - 2 * day).date()}" in status["degraded"]["certificate"]
    assert f"{tmp_path}/missing.pem" in status["degraded"]["broker-ca"]
    assert f"{tmp_path}/host.pem" in agent.text()
    assert agent.ask("list")["vms"] == []


def _told(agent: Agent) -> Any:
    status = agent.ask("status")
    return status if "certificate" in (status or {}).get("degraded", ()) else None
