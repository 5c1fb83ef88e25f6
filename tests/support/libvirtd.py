"""A libvirtd for tests: the running one, or one of our own that ends with the test; by pid, never by name.

As root and without systemd: `virtlogd`, then `libvirtd` (or `virtqemud` where that is what the host has).  /dev/kvm
must be group kvm, mode 660, or libvirt probes QEMU anew at each start (FACTS 2); that is the machine's business.

`Private` is a second, complete system libvirtd in a mount name space of its own, so that a test may stop, kill or
freeze it while others use the machine's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Iterator, List, Optional

import libvirt
import pytest

from tests.support import confined
from tests.support.waiting import until

URI = "qemu:///system"
START_S = 60.0  # the first start probes every QEMU binary


def answers(uri: str = URI) -> bool:
    """Whether libvirt answers there."""
    libvirt.registerErrorHandler(lambda context, error: None, None)
    try:
        conn = libvirt.open(uri)
        conn.getLibVersion()
        conn.close()
    except libvirt.libvirtError:
        return False
    return True


def can_run() -> bool:
    """Root, and a daemon is installed."""
    return os.geteuid() == 0 and _daemon() is not None


def _daemon() -> Optional[str]:
    return shutil.which("libvirtd") or shutil.which("virtqemud")


needed = pytest.mark.skipif(not can_run(), reason="needs root and libvirtd")

@contextlib.contextmanager
def running() -> Iterator[str]:
    """The URI of a libvirt that answers."""
    if answers():
        yield URI
        return
    daemon = _daemon()
    assert daemon is not None and os.geteuid() == 0, "needs root and libvirtd or virtqemud"
    started: List[subprocess.Popen[bytes]] = []
    try:
        logger = shutil.which("virtlogd")
        if logger and not Path("/run/libvirt/virtlogd-sock").exists():
            started.append(_start([logger]))
        started.append(_start([daemon]))
        until(answers, START_S, "libvirtd answers")
        yield URI
    finally:
        for process in reversed(started):
            end(process)


def _start(argv: List[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGCONT)
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(20)


_SETUP = """
set -e
for folder in /run/libvirt /var/lib/libvirt /etc/libvirt/qemu; do
  mkdir -p $folder; mount -t tmpfs -o mode=755 none $folder
done
mkdir -p "$2"; mount --bind "$2" /run/libvirt
mkdir -p "$1/lib-libvirt"; mount --bind "$1/lib-libvirt" /var/lib/libvirt
for kind in passwd group; do
  mount --bind "$1/$kind" /etc/$kind
done
[ -e "$1/virtlogd.pid" ] || virtlogd -d -p "$1/virtlogd.pid"
exec libvirtd -f "$1/libvirtd.conf" -p "$1/libvirtd.pid"
"""


class Private:
    """See the module.  folder: short (socket paths have 107 characters), reachable for QEMU's user.

    Its /run is in memory as on every host with systemd: libvirt syncs a file there at each change of a guest's state.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"qemu:///system?socket={folder}/libvirt-sock"
        memory = Path("/dev/shm")
        self._run = Path(tempfile.mkdtemp(prefix="vmalv-", dir=memory if os.access(memory, os.W_OK) else folder))
        self._run.chmod(0o755)
        self.qemu = self._run / "qemu"  # pid files
        self.process: Optional[subprocess.Popen[bytes]] = None
        for kind, line in confined.ACCOUNT.items():  # libvirt wants to know everybody by name
            (folder / kind).write_text(Path("/etc", kind).read_text(encoding="utf-8") + line, encoding="utf-8")
        (folder / "libvirtd.conf").write_text(
            f'unix_sock_dir = "{folder}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
            f'unix_sock_group = "+{confined.gid()}"\nunix_sock_rw_perms = "0770"\n'
            f'log_outputs = "3:file:{folder}/libvirtd.log"\n',
            encoding="utf-8",
        )

    def start(self) -> None:
        """Start it (again): guests of a former life are found through the kept run directory."""
        self.process = _start(["unshare", "--mount", "sh", "-c", _SETUP, "sh", str(self.folder), str(self._run)])
        until(lambda: answers(self.uri), START_S, "the private libvirtd answers")

    def kill(self) -> None:
        """As if it crashed; its guests go on, and so does virtlogd, which holds their stderr."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(20)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            end(self.process)
        self._end_logger()
        shutil.rmtree(self._run, ignore_errors=True)

    def _end_logger(self) -> None:
        pid = self.folder / "virtlogd.pid"
        if pid.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid.read_text()), signal.SIGTERM)
            pid.unlink(missing_ok=True)


@contextlib.contextmanager
def isolated() -> Iterator[str]:
    """The URI of a libvirt that nobody else uses, where that can be had; else of the running one."""
    if not shutil.which("libvirtd") or not shutil.which("unshare"):
        with running() as uri:
            yield uri
        return
    folder = Path(tempfile.mkdtemp(prefix="vmalv-"))
    folder.chmod(0o755)
    private = Private(folder)
    try:
        private.start()
        yield private.uri
    finally:
        private.stop()
        shutil.rmtree(folder, ignore_errors=True)
