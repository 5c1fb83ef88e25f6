"""Issue 4, proof: `kill -9` while an image is proven and converted, or its revocation decided; a newer list."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Sequence

import pytest

from tests.real.conftest import domains, qemu_pids, virsh
from tests.support import imagelists
from tests.support.agent import Agent, Controller, vm_of
from tests.support.idle import IDLE, fetches, offered, started, wanted
from tests.support.imageserver import ImageServer
from tests.support.waiting import until
from vmagent.site import pki

POINTS = ("before-fetch-image", "after-fetch-image", "fetched", "inspected", "converted")
MIB = 2**20
OWNERS = ("/DC=org/DC=example/CN=A User", "/DC=org/DC=example/CN=Another User")


@pytest.fixture
def config(config: Dict[str, Any], source: ImageServer) -> Dict[str, Any]:
    fetches(config, source)
    return config


@pytest.fixture
def image(source: ImageServer, tmp_path: Path) -> Dict[str, str]:
    """As vmdk, which is converted; large enough that it takes a moment."""
    raw, vmdk = tmp_path / "idle.raw", tmp_path / "idle.vmdk"
    raw.write_bytes(IDLE + os.urandom(64 * MIB))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "vmdk", str(raw), str(vmdk)], check=True)
    raw.unlink()
    return offered(source, vmdk.read_bytes(), "vmdk")


def cached(agent: Agent) -> List[str]:
    return sorted(path.suffix for path in (agent.folder / "state" / "cache").iterdir())


def programs(agent: Agent) -> List[int]:
    """Every qemu-img that works on this agent's files, whoever started it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"qemu-img" in words and os.fsencode(agent.folder) in words:
                found.append(int(entry.name))
    return found


def runs_once(agent: Agent, controller: Controller, vm: str) -> None:
    """It came to be ready, and nothing else is left of all that happened on the way."""
    controller.wait_phase(vm, "ready")
    assert list(domains()) == [f"vma-{vm}"] and len(qemu_pids(vm)) == 1
    assert cached(agent) == [".img", ".json"]
    assert programs(agent) == []
    assert controller.gaps() == []


def test_killed_on_the_way_from_a_source_to_a_golden_file(
    agent: Agent, controller: Controller, image: Dict[str, str], source: ImageServer
) -> None:
    """The agent dies at each step of it, one after the other."""
    agent.start(crash_at=POINTS[0])
    command = controller.send("vm.start", wanted(image))
    agent.crashed()
    for point in POINTS[1:]:
        agent.start(crash_at=point, ready=False)
        agent.crashed()
    agent.start()
    runs_once(agent, controller, vm_of(command))
    whole = [headers for _, headers in source.asked if "range" not in headers]
    assert len(whole) <= 2  # `after-fetch-image` may have cut the first one at its beginning


class Caught:
    """A qemu-img of the agent, stopped in the middle of its work."""

    def __init__(self, agent: Agent, work: str) -> None:
        assert agent.process is not None
        self.pid = 0
        tasks = Path(f"/proc/{agent.process.pid}/task")
        until(lambda: self._seen(tasks, work), 60, f"qemu-img {work}")

    def _seen(self, tasks: Path, work: str) -> bool:
        """Many looks: an inspection takes some milliseconds."""
        for _ in range(2000):
            for task in tasks.iterdir():
                for pid in _numbers(task / "children"):
                    words = _words(pid)
                    if words[:1] != [b"setpriv"] and b"qemu-img" in words and work.encode() in words:
                        os.kill(pid, signal.SIGSTOP)
                        self.pid = pid
                        return True
        return False

    def gone(self) -> bool:
        return not _words(self.pid)


def _numbers(path: Path) -> Sequence[int]:
    try:
        return [int(word) for word in path.read_text().split()]
    except OSError:
        return ()


def _words(pid: int) -> List[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


@pytest.mark.parametrize("work", ["info", "convert"])
def test_killed_while_a_child_works_on_it(
    agent: Agent, controller: Controller, image: Dict[str, str], work: str
) -> None:
    agent.start()
    command = controller.send("vm.start", wanted(image))
    caught = Caught(agent, work)
    agent.kill9()
    until(caught.gone, 20, "the child goes with the agent")
    assert programs(agent) == []
    assert ".img" not in cached(agent)
    agent.start()
    runs_once(agent, controller, vm_of(command))


# --- revocation


def alerts(controller: Controller) -> List[Mapping[str, Any]]:
    """Each once, however often it was sent."""
    events = {event["id"]: event["data"] for event in controller.events("security.alert")}
    return [data for data in events.values() if data["kind"] == "image-distrusted"]


def states(vms: Sequence[str]) -> List[str]:
    return [virsh("domstate", f"vma-{vm}").strip() for vm in vms]


def test_killed_between_a_revocation_and_what_it_asks_for(
    agent: Agent, controller: Controller, source: ImageServer
) -> None:
    agent.start()
    image = offered(source)
    vms = started(controller, image, 2)
    agent.stop()
    agent.start(crash_at="revoked")
    command = controller.send("image.revoke", {"sha512": image["sha512"], "action": "kill", "why": "a back door"})
    agent.crashed()
    assert states(vms) == ["running", "running"]
    agent.start()
    for vm in vms:
        assert controller.wait_phase(vm, "stopped")["outcome"] == "killed"
    controller.reply(command, "done")
    until(lambda: not domains(), 30, "both are gone")
    agent.stop()
    agent.start()
    controller.reply(controller.send("capacity.query", {}))
    (alert,) = alerts(controller)
    assert sorted(each["vm"] for each in alert["vms"]) == sorted(vms)
    assert (alert["action"], alert["problem"]) == ("kill", "image-revoked")
    assert controller.gaps() == []


class Listing:
    """An image list in a file, signed by an endorser that the site's CA knows."""

    def __init__(self, folder: Path, trust: Path) -> None:
        self.path = folder / "images.list"
        self._folder = folder
        self._now = datetime.datetime.now(datetime.timezone.utc)
        name = f"endorser {os.path.basename(folder)}"
        self._certificate, self._key = pki.issue(trust, name, "client", self._now)
        self.endorser = f"/CN={name}"

    def write(self, version: int, images: Sequence[Any]) -> None:
        text = imagelists.text(
            version=str(version), images=images, x509={"hv:dn": self.endorser, "hv:ca": "/CN=vmagent test CA"},
            created=self._when(-1), expires=self._when(24),
        )  # fmt: skip
        argv = ["openssl", "cms", "-sign", "-signer", str(self._certificate), "-inkey", str(self._key), "-outform",
                "SMIME"]  # fmt: skip
        signed = subprocess.run(argv, input=text, capture_output=True, check=True).stdout
        fresh = self._folder / "fresh.list"
        fresh.write_bytes(signed)
        fresh.replace(self.path)

    def _when(self, hours: int) -> str:
        return (self._now + datetime.timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture
def listing(config: Dict[str, Any], trust: Path, tmp_path: Path) -> Iterator[Listing]:
    """What the site takes: nothing starts that this list does not endorse, and guests are paused."""
    made = Listing(tmp_path, trust)
    config["images"].update(
        unendorsed="deny", on_revoked="pause",
        lists=[{"identifier": imagelists.IDENTIFIER, "path": str(made.path), "endorsers": [made.endorser]}],
    )  # fmt: skip
    yield made


def test_a_newer_list_without_the_image_reaches_two_owners_guests(
    listing: Listing, agent: Agent, controller: Controller, source: ImageServer
) -> None:
    file, image = offered(source), {"id": "idle"}
    row = imagelists.image("idle", file["sha512"], len(IDLE), **{"hv:uri": file["url"]})
    listing.write(1, [row])
    agent.start()
    vms = [vm for owner in OWNERS for vm in started(controller, image, 1, on_behalf_of={"subject": owner})]
    assert states(vms) == ["running", "running"] and not alerts(controller)
    listing.write(2, [imagelists.image("another", "ab" * 64)])
    for vm in vms:
        controller.wait_phase(vm, "paused", 120)
    assert states(vms) == ["paused", "paused"]
    (alert,) = alerts(controller)
    assert {each["vm"]: each["owner"]["subject"] for each in alert["vms"]} == dict(zip(vms, OWNERS))
    assert (alert["action"], alert["problem"], alert["image"]["sha512"]) == (
        "pause", "image-withdrawn", file["sha512"])  # fmt: skip
    refused = controller.reply(controller.send("vm.start", wanted(image)))
    assert (refused["status"], refused["problem"]["type"]) == ("refused", "unknown-image")  # no list has this name
    assert controller.reply(controller.send("vm.resume", {"vms": [vms[0]]}))["status"] == "refused"
    listing.write(3, [row])
    until(lambda: controller.reply(controller.send("vm.resume", {"vms": vms}))["status"] != "refused", 120, "trust")
    until(lambda: states(vms) == ["running", "running"], 30, "both go on")
    controller.send("vm.kill", {"vms": vms})
    until(lambda: not domains(), 60, "both are gone")
