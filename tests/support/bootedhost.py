"""A whole hypervisor host, booted under plain emulation: what only a real kernel with systemd can show.

Every command has a deadline.  A host that misses one, or whose ssh breaks, is `Lost`: emulated SVM now and then stops
an emulated kernel (one in ten boots of a Linux guest did), so the fixture gives a fresh one and one second try.
The disk is an overlay in a folder of its own: it outlives a power cut and goes with `close`.  QEMU dies with us even
when we are killed (parent-death signal), and is otherwise ended by its pid.

The same disk boots Linux itself, or Xen with that Linux as its dom0.  Xen is loaded by multiboot, on a processor of
the kind that it starts on under emulation: with SMAP it crashes while it makes dom0, and without VME, which emulation
hides, libvirt's driver finds no CPU model and its daemon ends.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Optional

from tests.support.bootedhost_image import Image

BOOT_S = 300.0  # 15 to 20 s when the machine is ours alone
COMMAND_S = 60.0
CORES, MEMORY_MIB = 2, 2048
KERNEL = (  # hpet: on a busy machine the processor's counter is measured wrong at boot, and that host's day is shorter
    "clocksource=hpet root=/dev/vda rw net.ifnames=0 mitigations=off audit=0 apparmor=0 loglevel=4 nokaslr "
    "systemd.show_status=0 tsc=reliable no_timer_check random.trust_cpu=on"
)
DOM0_MIB = 1024  # the other half is for guests
GUEST_CORES = 1
"""Xen's beside dom0's.  Emulated nested virtualisation goes wrong where a PVH guest shares a core with a busy dom0:
ten of twelve such boots ended in a triple fault, after one of the instructions that Xen sees to.
"""
XEN = (
    f"console=com1 com1=115200,8n1 dom0_mem={DOM0_MIB}M,max:{DOM0_MIB}M dom0_max_vcpus={CORES} dom0_vcpus_pin "
    "loglvl=warning spec-ctrl=no sched=credit2"
)
SSH_FAILED = 255  # ssh's own word for "no connection"; no command of ours ends with it


class Lost(Exception):
    """The host does not answer any more."""


class Done(NamedTuple):
    """How a command ended; `text` is what it said on both outputs."""

    code: int
    text: str


class BootedHost:
    """See the module.  `with BootedHost(image()) as host:` boots it; xen: as a Xen dom0."""

    def __init__(self, image: Image, memory_mib: int = MEMORY_MIB, xen: bool = False) -> None:
        self._image = image
        self.xen = xen
        self._memory_mib = memory_mib
        self.folder = Path(tempfile.mkdtemp(prefix="vmagent-booted-"))
        self._disk = self.folder / "disk.qcow2"
        self._port = 0
        self._qemu: Optional[subprocess.Popen[bytes]] = None
        self.boots: List[float] = []  # seconds that each took
        _checked(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(image.disk), str(self._disk)])

    def __enter__(self) -> BootedHost:
        try:
            self.boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def boot(self) -> None:
        """From power on until systemd has settled.  Lost: it did not, with the end of its console."""
        begun = time.monotonic()
        self._port = _free_port()
        with open(self.folder / "qemu.log", "ab") as log:
            self._qemu = subprocess.Popen(self._argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while not self._settled():
            if self._qemu.poll() is not None or time.monotonic() - begun > BOOT_S:
                raise Lost(f"no boot within {BOOT_S:.0f} s: {self.console()[-2000:]}")
            time.sleep(0.3)
        self.boots.append(time.monotonic() - begun)

    def cut(self) -> None:
        """The power fails; what was flushed is on the disk."""
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait(20)
            self._qemu = None
        (self.folder / "ssh").unlink(missing_ok=True)

    def close(self) -> None:
        with contextlib.suppress(Lost):
            self._ssh(["-O", "exit"], b"", 5)
        self.cut()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, command: str, seconds: float = COMMAND_S, stdin: bytes = b"") -> Done:
        """One line of shell, as root.  Lost: no answer within `seconds`."""
        done = self._ssh([command], stdin, seconds)
        if done.code == SSH_FAILED:
            raise Lost(f"ssh: {done.text[-500:]}; console: {self.console()[-1000:]}")
        return done

    def sh(self, command: str, seconds: float = COMMAND_S, stdin: bytes = b"") -> str:
        """The same for one that must work; what it said."""
        done = self.run(command, seconds, stdin)
        assert done.code == 0, f"{command[:300]}: {done.code}: {done.text[-3000:]}"
        return done.text

    def until(self, condition: str, seconds: float, what: str = "") -> None:
        """Wait in there until the shell says yes, asking five times a second."""
        loop = f"end=$((SECONDS+{seconds:.0f})); until {condition}; do [ $SECONDS -lt $end ] || exit 9; sleep 0.2; done"
        done = self.run(f"bash -c {_quoted(loop)} 2>&1 | tail -c 1500; exit ${{PIPESTATUS[0]}}", seconds + COMMAND_S)
        assert done.code == 0, f"not within {seconds:.0f} s: {what or condition}: {done.text}"

    def put(self, files: Dict[str, bytes], mode: int = 0o644) -> None:
        """Write these files, by absolute path."""
        with io.BytesIO() as packed:
            with tarfile.open(fileobj=packed, mode="w") as tar:
                for name, content in files.items():
                    member = tarfile.TarInfo(name.lstrip("/"))
                    member.size, member.mode = len(content), mode
                    tar.addfile(member, io.BytesIO(content))
            self.sh("tar -C / -x", stdin=packed.getvalue())

    def put_tree(self, root: Path, names: Iterable[str], target: str) -> None:
        """Those files below `root`, by relative name, into `target`."""
        with io.BytesIO() as packed:
            with tarfile.open(fileobj=packed, mode="w") as tar:
                for name in names:
                    if (root / name).exists():  # git still knows those that were just removed
                        tar.add(root / name, name, recursive=False)
            self.sh(f"mkdir -p {target} && tar -C {target} -x --no-same-owner", stdin=packed.getvalue())

    def console(self) -> str:
        with contextlib.suppress(OSError):
            return (self.folder / "console").read_text(errors="replace")
        return ""

    # -- how

    def _settled(self) -> bool:
        try:
            done = self._ssh(["systemctl is-system-running --wait"], b"", BOOT_S)
        except Lost:
            return False
        return done.text.strip() in ("running", "degraded")

    def _ssh(self, what: List[str], stdin: bytes, seconds: float) -> Done:
        """One connection is kept for all commands: a hand-shake takes half a second in there."""
        argv = ["ssh", "-q", "-i", str(self._image.key), "-p", str(self._port), "-o", f"ControlPath={self.folder}/ssh",
                "-o", "ControlMaster=auto", "-o", "ControlPersist=300", "-o", "StrictHostKeyChecking=no",
                "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=5", "-o", "BatchMode=yes", "-F", "none",
                "-o", "Ciphers=aes128-gcm@openssh.com", "root@127.0.0.1", *what]  # fmt: skip
        try:
            done = subprocess.run(
                argv, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired as late:
            said = (late.stdout or b"").decode(errors="replace")
            raise Lost(f"no answer within {seconds:.0f} s to {what[-1][:200]}: {said[-1500:]}") from late
        return Done(done.returncode, done.stdout.decode(errors="replace"))

    def _argv(self) -> List[str]:
        return [
            "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-no-user-config", "-nodefaults",
            "-display", "none", "-name", "vmagent-booted", "-machine", "pc,usb=off",
            "-accel", "tcg,thread=multi,tb-size=512",
            *self._boots(), "-smp", str(CORES + GUEST_CORES * self.xen), "-m", str(self._memory_mib),
            "-drive", f"file={self._disk},if=virtio,cache=unsafe,format=qcow2", "-device", "virtio-rng-pci",
            "-netdev", f"user,id=n,hostfwd=tcp:127.0.0.1:{self._port}-:22",
            "-device", "virtio-net-pci,netdev=n,romfile=", "-serial", f"file:{self.folder}/console",
        ]  # fmt: skip

    def _boots(self) -> List[str]:
        kernel, initrd = str(self._image.kernel), str(self._image.initrd)
        if self.xen:
            cpu = "qemu64,+svm,+npt,+vme,x-force-features=on"
            return ["-cpu", cpu, "-kernel", str(self._image.xen), "-append", XEN,
                    "-initrd", f"{kernel} {KERNEL} console=hvc0,{initrd}"]  # fmt: skip
        return ["-cpu", "max,la57=off", "-kernel", kernel, "-initrd", initrd, "-append", f"{KERNEL} console=ttyS0"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _checked(argv: List[str]) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=COMMAND_S)
