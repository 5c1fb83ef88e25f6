"""One libvirtd, one RabbitMQ, one golden image and one bridge for the whole level; one agent per test."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

import pytest

from tests.support import brokers, confined, libvirtd
from tests.support.agent import HOST, ROOT, SITE, Agent, Controller
from tests.support.imageserver import Certificates, ImageServer
from tests.support.smalldisk import Small
from vmagent.site import pki

LINE = int(os.environ.get("VMAGENT_TEST_LINE", "0"))
"""Lines of tests run beside one another: each has a bridge, networks and an instance of its own."""
BRIDGE = f"vtestbr{LINE}"
SUBNET = f"198.18.{150 + LINE}"
SUBNET6 = f"2001:db8:5{LINE}:"
INSTANCE = f"vma{'tuvw'[LINE]}"
PINGABLE = {"inbound": [{"protocol": "icmp", "action": "allow"}, {"protocol": "icmpv6", "action": "allow"}]}
_uri = ""  # of the session's own libvirtd


@pytest.fixture(scope="session")
def base() -> Iterator[Path]:
    """A folder that QEMU's own user can pass through; pytest's own is closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="vmagent-real-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tmp_path(base: Path) -> Path:
    folder = Path(tempfile.mkdtemp(dir=base))
    folder.chmod(0o755)
    confined.give(folder)
    return folder


@pytest.fixture(scope="session")
def libvirt() -> Iterator[libvirtd.Private]:
    """A libvirtd of our own: a test may kill or freeze it, and no guest of anybody else is near."""
    global _uri
    folder = Path(tempfile.mkdtemp(prefix="vmalv-", dir="/var/tmp"))
    folder.chmod(0o755)
    private = libvirtd.Private(folder)
    private.start()
    _uri = private.uri
    try:
        yield private
    finally:
        private.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def hypervisor(libvirt: libvirtd.Private) -> str:
    if not libvirtd.answers(libvirt.uri):
        libvirt.start()
    return libvirt.uri


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with brokers.started(brokers.RabbitMQ(tmp_path_factory.mktemp("rabbitmq"))) as broker:
        yield broker


@pytest.fixture
def activemq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with brokers.started(brokers.ActiveMQ(tmp_path_factory.mktemp("activemq"))) as broker:
        yield broker


@pytest.fixture(scope="session")
def golden(base: Path) -> Tuple[Path, Dict[str, Any]]:
    """(image directory, catalogue entry) of a small Linux that boots from disk and answers."""
    folder = base / "golden"
    folder.mkdir(mode=0o755)
    made = subprocess.run([sys.executable, str(ROOT / "share" / "build-try-image"), str(folder)],
                          check=True, capture_output=True, text=True)
    return folder, json.loads(made.stdout)


@pytest.fixture(scope="session")
def bridge() -> Iterator[str]:
    subprocess.run(["ip", "link", "del", BRIDGE], check=False, capture_output=True)  # of a run that was killed
    subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "addr", "add", f"{SUBNET}.1/24", "dev", BRIDGE], check=True)
        subprocess.run(["ip", "-6", "addr", "add", f"{SUBNET6}:1/64", "dev", BRIDGE, "nodad"], check=True)
        subprocess.run(["ip", "link", "set", BRIDGE, "up"], check=True)
        yield BRIDGE
    finally:
        subprocess.run(["ip", "link", "del", BRIDGE], check=False)


@pytest.fixture(scope="session")
def trust(base: Path) -> Path:
    folder = base / "pki"
    folder.mkdir(mode=0o755)
    now = datetime.datetime.now(datetime.timezone.utc)
    pki.init(folder, "vmagent test CA", now)
    pki.issue(folder, "controller", "client", now)
    (folder / "trust").mkdir()
    for name in ("ca.pem", "ca.crl"):
        shutil.copy(folder / name, folder / "trust")
    return folder


@pytest.fixture
def config(hypervisor: str, rabbitmq: Any, golden: Any, bridge: str, trust: Path, tmp_path: Path) -> Dict[str, Any]:
    directory, image = golden
    if not rabbitmq.alive():  # a test that failed may have left it dead
        rabbitmq.start()
    (tmp_path / "passcode").write_text("guest")
    return {
        "site": SITE, "host": HOST, "instance": INSTANCE,
        "directories": {"state": str(tmp_path / "state"), "run": str(tmp_path / "run")},
        "hypervisor": {"uri": hypervisor, "emulation": "allow"},
        "broker": {"profile": "rabbitmq", "urls": [f"stomp://127.0.0.1:{rabbitmq.port}"], "login": "guest",
                   "passcode_file": str(tmp_path / "passcode"), "reconnect_max_s": 2},
        "security": {"ca_directory": str(trust / "trust"), "clock_skew_s": 2, "authority": [
            {"signer": "CN=controller", "verbs": ["*"], "vos": ["*"], "scope": "all"}]},
        "networks": {"public": {"bridge": bridge, "addressing": "controller",
                                "subnets": [f"{SUBNET}.0/24", f"{SUBNET6}:/64"]}},
        "flavours": {"tiny": {"cores": 1, "memory_mib": 128, "disk_gib": 1}},
        "images": {"directory": str(directory), "catalogue": {"try": {
            "file": image["file"], "format": image["format"], "sha512": image["sha512"]}}},
        "limits": {"cores": 2, "memory_mib": 1024, "disk_gib": 2, "lifetime_s": 86400, "count": 30},
        "capacity": {"reserved_memory_mib": 256, "disk_floor_gib": 1, "cpu_overcommit": 16},
        "lease": {"warn_before_s": [20, 5], "grace_s": 6},
    }


@pytest.fixture
def source(tmp_path: Path) -> Iterator[ImageServer]:
    """A server of images."""
    server = ImageServer(Certificates(tmp_path))
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def agent(config: Dict[str, Any], tmp_path: Path) -> Iterator[Agent]:
    one = Agent(tmp_path, config)
    try:
        yield one
    finally:
        one.kill9()
        print(one.text()[-8000:])  # shown when the test failed
        clean()


@pytest.fixture
def controller(rabbitmq: Any, trust: Path) -> Iterator[Controller]:
    one = Controller(rabbitmq.port, (trust / "controller.key").read_bytes(), (trust / "controller.pem").read_bytes())
    yield one
    for frame in one.link.messages()[-20:]:
        print(frame.body.decode()[:300])
    one.close()


@pytest.fixture
def small(tmp_path: Path, hypervisor: str, libvirt: libvirtd.Private) -> Iterator[Small]:
    """For overlays; guests on it are ended before it is taken away."""
    if not Path("/dev/loop-control").exists():
        pytest.skip("needs loop devices")
    made = Small(tmp_path, libvirt)
    try:
        yield made
    finally:
        clean()
        made.remove()


def domains() -> Dict[str, str]:
    """vma- domains of this libvirt, name -> state."""
    names = virsh("list", "--all", "--name").split()
    return {n: virsh("domstate", n).strip() for n in names if n.startswith("vma-")}


def virsh(*argv: str) -> str:
    return subprocess.run(["virsh", "-c", _uri, *argv], capture_output=True, text=True, check=False,
                          timeout=60).stdout


def clean() -> None:
    """Whatever a failed test left."""
    for name in domains():
        uuid = name[len("vma-"):]
        for pid in qemu_pids(uuid):
            subprocess.run(["kill", "-CONT", str(pid)], check=False)
        virsh("destroy", name)
        virsh("undefine", name, "--managed-save", "--snapshots-metadata")
    subprocess.run(["nft", "delete", "table", "bridge", f"vmagent_{INSTANCE}"], check=False, capture_output=True)
    for path in Path("/sys/class/net").glob(f"{INSTANCE}*"):  # an agent that was killed sweeps no more
        subprocess.run(["ip", "link", "del", path.name], check=False, capture_output=True)


def qemu_pids(uuid: str) -> Tuple[int, ...]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words and b"qemu" in words[0] and uuid.encode() in words:
                found.append(int(entry.name))
    return tuple(found)


def start_args(**kw: Any) -> Dict[str, Any]:
    """A start of one tiny VM with an address."""
    args: Dict[str, Any] = {
        "flavour": "tiny", "image": {"id": "try"}, "lifetime_s": 600, "name": "guest",
        "networks": [{"type": "public", "addresses": [f"{SUBNET}.10", f"{SUBNET6}:10"], "firewall": PINGABLE}],
    }
    args.update(kw)
    return {k: v for k, v in args.items() if v is not None}


def pings(address: str) -> bool:
    return subprocess.run(["ping", "-c", "1", "-W", "1", address], capture_output=True, check=False).returncode == 0
