"""Commands of ours in the documents that need no guest, run as they stand there, against one agent and RabbitMQ.

libvirt's own test driver is below it.
"""

from __future__ import annotations

import datetime
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Iterator

import pytest

from tests.support import confined, documentedsite, wires
from tests.support.agent import Agent
from tests.support.documentedsite import VM, Place, faults, prepared, wanted, with_guests
from vmagent.site import pki

pytestmark = pytest.mark.skipif(not wires.READY, reason=wires.NEEDED)
INSTANCE = "zqd"
IMAGE = bytes(512)


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that the agent's own user can pass through."""
    made = Path(tempfile.mkdtemp(prefix="vmagent-documents-", dir="/var/tmp"))
    made.chmod(0o755)
    confined.give(made)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def place(folder: Path, rabbitmq: Any) -> Iterator[Place]:
    pki.init(folder / "trust", "test CA", now := datetime.datetime.now(datetime.timezone.utc))
    pki.issue(folder / "trust", "controller", "client", now)
    (folder / "trusted").mkdir()
    for name in ("ca.pem", "ca.crl"):
        shutil.copy(folder / "trust" / name, folder / "trusted")
    (folder / "passcode").write_text("guest")
    (folder / "images").mkdir()
    (folder / "images" / "one.raw").write_bytes(IMAGE)
    image = {"file": "one.raw", "format": "raw", "sha512": hashlib.sha512(IMAGE).hexdigest()}
    config = documentedsite.config({
        "instance": INSTANCE, "directories": {"state": str(folder / "state"), "run": str(folder / "run")},
        "hypervisor": {"uri": "test:///default", "emulation": "allow"},
        "broker": {"profile": "rabbitmq", "urls": [f"stomp://127.0.0.1:{rabbitmq.port}"], "login": "guest",
                   "passcode_file": str(folder / "passcode"), "reconnect_max_s": 2},
        "security": {"ca_directory": str(folder / "trusted"), "authority": [
            {"signer": "CN=controller", "verbs": ["*"], "vos": ["*"], "scope": "all"}]},
        "networks": {"public": {"bridge": "lo"}}, "images": {"directory": str(folder / "images")},
        "limits": {"lifetime_s": 86400}, "capacity": {"reserved_memory_mib": 256, "disk_floor_gib": 1},
    }, "198.51.100", {"el9-worker": image, "try": image, VM: image})  # fmt: skip
    agent = Agent(folder, config)
    try:
        agent.start()
        made = prepared(folder, agent, rabbitmq.port, folder / "trust")
        yield made
        made.commands.close()
    finally:
        agent.kill9()
        print(agent.text()[-3000:])
        subprocess.run(["nft", "delete", "table", "bridge", f"vmagent_{INSTANCE}"], check=False, capture_output=True)


def test_every_command_that_needs_no_guest_does_what_it_says(place: Place) -> None:
    found = faults(place, [line for line in wanted() if not with_guests(line)])
    assert not found, "\n".join(found)


def test_the_search_finds_what_is_there() -> None:
    texts = {line.text for line in wanted()}
    assert len(texts) > 100
    assert {"vmagentctl doctor", "vmagent-site watch", "vmagentctl images --downloads"} <= texts
