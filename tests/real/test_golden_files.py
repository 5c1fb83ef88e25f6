"""Golden files while a guest runs on them, and after it: root's, and not to be had by QEMU's own user (FACTS F19)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from tests.real.conftest import domains, qemu_pids
from tests.support import confined
from tests.support.agent import Agent, Controller
from tests.support.idle import IDLE, fetches, offered, started
from tests.support.imageserver import ImageServer
from tests.support.waiting import until

ATTEMPTS = """
import os, sys
path, user, *groups = sys.argv[1], *map(int, sys.argv[2:])
os.setgroups(groups)
os.setgid(groups[0])
os.setuid(user)
folder, name = os.path.split(path)
ways = {
    "read": lambda: os.close(os.open(path, os.O_RDONLY)),
    "write": lambda: os.open(path, os.O_WRONLY),
    "append": lambda: os.open(path, os.O_RDWR | os.O_APPEND),
    "truncate": lambda: os.truncate(path, 0),
    "own": lambda: os.chown(path, os.getuid(), os.getgid()),
    "mode": lambda: os.chmod(path, 0o666),
    "times": lambda: os.utime(path, (0, 0)),
    "attribute": lambda: os.setxattr(path, "user.x", b"y"),
    "remove": lambda: os.unlink(path),
    "rename": lambda: os.rename(path, path + ".old"),
    "beside": lambda: os.open(path + ".new", os.O_WRONLY | os.O_CREAT),
    "link over": lambda: os.symlink("/etc/passwd", path + ".link"),
    "hard link": lambda: os.link(path, path + ".hard"),
    "list": lambda: os.listdir(folder),
}
for way, attempt in ways.items():
    try:
        attempt()
    except OSError:
        continue
    print(way)
"""


@pytest.fixture
def config(config: Dict[str, Any], source: ImageServer) -> Dict[str, Any]:
    fetches(config, source)
    return config


def user_of(pid: int) -> Tuple[int, List[int]]:
    """The user id of a process, and all its groups."""
    words = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        words[name] = [int(word) for word in value.split()] if name in ("Uid", "Gid", "Groups") else []
    return words["Uid"][1], sorted({words["Gid"][1], *words["Groups"]})


def achieved(path: Path, user: int, groups: List[int]) -> List[str]:
    """What this user can do to the file or beside it."""
    argv = [sys.executable, "-I", "-c", ATTEMPTS, str(path), *map(str, (user, *groups))]
    done = subprocess.run(argv, text=True, check=True, capture_output=True)
    return done.stdout.split("\n")[:-1]


def open_modes(pid: int, path: Path) -> List[int]:
    """How a process has the file open: O_RDONLY, O_WRONLY or O_RDWR of each descriptor."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(link) == str(path):
                flags = (link.parent.parent / "fdinfo" / link.name).read_text().split("flags:")[1].split()[0]
                found.append(int(flags, 8) & os.O_ACCMODE)
        except FileNotFoundError:
            continue
    return found


def kept(path: Path) -> Tuple[Any, ...]:
    """What must stay as it is, whoever runs on it."""
    seen = path.stat()
    return (seen.st_uid, seen.st_gid, seen.st_mode, seen.st_ino, seen.st_mtime_ns, seen.st_ctime_ns,
            sorted(os.listxattr(path)), hashlib.sha512(path.read_bytes()).hexdigest())  # fmt: skip


def test_qemu_s_own_user_reads_them_and_can_do_nothing_else(
    agent: Agent, controller: Controller, source: ImageServer, golden: Any
) -> None:
    directory, entry = golden
    catalogue = directory / entry["file"]
    never_used = kept(catalogue)
    agent.start()
    image = offered(source)
    (fetched,) = started(controller, image, 1)
    (catalogued,) = started(controller, {"id": "try"}, 1)
    cache = agent.folder / "state" / "cache" / f"{image['sha512']}.img"
    places = {fetched: cache, catalogued: catalogue}
    before = {path: kept(path) for path in places.values()}
    assert before[catalogue] == never_used
    assert before[cache][:2] == (confined.uid(), confined.gid()) and before[cache][2] & 0o777 == 0o444
    assert before[cache][-1] == hashlib.sha512(IDLE).hexdigest()
    for vm, path in places.items():
        (pid,) = qemu_pids(vm)
        user, groups = user_of(pid)
        assert user != 0, "QEMU runs as root here"
        assert set(open_modes(pid, path)) == {os.O_RDONLY}
        assert achieved(path, user, groups)[:1] == ["read"]
        assert set(achieved(path, user, groups)) <= {"read", "list"}
        assert kept(path) == before[path]
    assert "list" not in achieved(cache, user, groups)
    controller.send("vm.kill", {"vms": list(places)})
    until(lambda: not domains(), 60, "both are gone")
    for path in before:
        assert kept(path) == before[path]
        assert set(achieved(path, user, groups)) <= {"read", "list"}
        assert not [name for name in os.listxattr(path) if "libvirt" in name]
