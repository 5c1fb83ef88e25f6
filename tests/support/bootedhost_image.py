"""A whole hypervisor host as a disk image: Debian 12 with systemd, libvirt, QEMU, Xen and the agent's libraries.

Made once, from the distribution's packages alone, and kept below the system's temporary directory in a folder named by
a digest of everything that goes in; another digest is another folder, so nothing is ever changed in place.  An image is
either whole or not there: it is made under another name and renamed.  Two builds at once: the second one waits.  A
build removes images that were not used for a week.

The kernel is Debian's own (systemd, cgroup v2, conntrack for bridges, every qdisc).  It boots directly, without a boot
loader, with an initrd of busybox and the four modules that find the disk: the distribution's own takes ten seconds to
unpack under emulation.  The same disk boots as a Xen dom0: then the boot loader loads Xen, and Xen that kernel.

In `GUEST` of the host's disk lies a Linux for guests, made of the same kernel: a disk (try.raw), and kernel and
initramfs as files of their own, which is how Xen starts a PV guest.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, Sequence

from tests.support.package import ROOT

TOOLS = ("mmdebstrap", "mke2fs", "cpio", "ssh", "ssh-keygen", "tar", "setpriv", "qemu-system-x86_64", "qemu-img",
         "syslinux", "mformat")  # fmt: skip
RELEASE = "bookworm"
PACKAGES = (
    "systemd-sysv dbus udev kmod linux-image-amd64 busybox-static openssh-server e2fsprogs procps iproute2 nftables "
    "netbase iputils-ping iperf3 firewalld rpm libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils "
    "xorriso xen-system-amd64 libvirt-daemon-driver-xen qemu-system-xen "
    "python3-libvirt python3-twisted python3-stomp python3-jwcrypto python3-openssl python3-cryptography "
    "python3-jsonschema python3-psutil python3-yaml python3-systemd python3-rich python3-service-identity "
    "python3-pytest"
).split()
GUEST = "/srv/guest"
TRY_IMAGE = ROOT / "share" / "build-try-image"
SIZE = "8G"  # sparse; about an eighth of it is used
BUILD_S = 900.0
UNUSED_S = 7 * 86400.0
MASKED = (
    "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service "
    "firewalld.service fstrim.timer "
    "getty@tty1.service serial-getty@ttyS0.service modprobe@drm.service modprobe@efi_pstore.service ssh.socket "
    "sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount systemd-networkd-wait-online.service "
    "systemd-pstore.service systemd-timesyncd.service systemd-update-utmp.service "
    "systemd-update-utmp-runlevel.service"
).split()
FILES: Dict[str, str] = {
    "etc/hostname": "booted\n",
    "etc/hosts": "127.0.0.1 localhost booted\n",
    "etc/fstab": "/dev/vda / ext4 rw,noatime 0 0\n",
    "etc/resolv.conf": "",
    "etc/systemd/network/eth0.network": "[Match]\nName=eth0\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n"
    "IPv6AcceptRA=no\n",
    "etc/ssh/sshd_config.d/test.conf": "UseDNS no\nUsePAM no\nPermitRootLogin prohibit-password\n",
    "etc/systemd/journald.conf.d/test.conf": "[Journal]\nStorage=persistent\nForwardToConsole=no\n",
}
INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc p /proc
/bin/busybox mount -t devtmpfs d /dev
for each in $(/bin/busybox cat /modules/order); do /bin/busybox insmod /modules/$each; done
until [ -b /dev/vda ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 -o rw,noatime /dev/vda /new
/bin/busybox umount /proc
/bin/busybox mount --move /dev /new/dev
exec /bin/busybox switch_root /new /lib/systemd/systemd
"""


def missing() -> List[str]:
    """What this machine lacks to make and boot a host; [] = nothing."""
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0:
        lacking.append("root")
    if shutil.which("mmdebstrap") and not _sources():
        lacking.append("an apt source of Debian")
    return lacking


class Image:
    """The files of a finished image: `disk` (raw, never written again), `kernel`, `initrd`, `xen` (the hypervisor),
    `key` (ssh, of root).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk, self.kernel, self.initrd = (folder / name for name in ("disk.raw", "vmlinuz", "initrd"))
        self.xen, self.key = folder / "xen", folder / "id"


def image() -> Image:
    """The image; made now if it is not there (minutes).  AssertionError with the tool's words if it cannot be made."""
    base = Path(tempfile.gettempdir()) / "vmagent-hosts"
    base.mkdir(mode=0o700, exist_ok=True)
    folder = base / _digest()
    with open(base / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _sweep(base)
            part = folder.with_suffix(".part")
            part.mkdir()
            _build(part)
            part.rename(folder)
        os.utime(folder)
    return Image(folder)


def _sweep(base: Path) -> None:
    """Builds that were cut off (the lock says that nobody is at it), and what nobody uses any more."""
    for old in (path for path in base.iterdir() if path.is_dir()):
        if old.suffix == ".part" or time.time() - old.stat().st_mtime > UNUSED_S:
            shutil.rmtree(old)


def _sources() -> List[str]:
    """The machine's own apt sources of Debian: whatever mirror its administrator chose."""
    found = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*.sources")]
    return [str(path) for path in found if path.exists() and f" {RELEASE}" in path.read_text()]


def _digest() -> str:
    said = repr((RELEASE, PACKAGES, SIZE, MASKED, sorted(FILES.items()), INIT))
    done = [inspect.getsource(step) for step in (_build, _configure, _initrd)]
    given = [Path(path).read_text() for path in (*_sources(), TRY_IMAGE)]
    return hashlib.sha256("\0".join([said, *done, *given]).encode()).hexdigest()[:16]


def _run(argv: Sequence[str], **kw: object) -> str:
    done = subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=BUILD_S, text=True, check=False, **kw
    )  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(argv)[:300]}: {done.stdout[-3000:]}"
    return str(done.stdout)


def _build(folder: Path) -> None:
    root = folder / "root"
    without = [f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("doc", "man", "locale")]
    aptopt = '--aptopt=Apt::Install-Recommends "false"'
    _run(["mmdebstrap", "--mode=root", "--variant=minbase", aptopt, *without, f"--include={','.join(PACKAGES)}",
          RELEASE, str(root), *_sources()])  # fmt: skip
    _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "id")])
    _configure(root, (folder / "id.pub").read_text())
    version = next((root / "lib/modules").iterdir()).name
    shutil.copy(root / "boot" / f"vmlinuz-{version}", folder / "vmlinuz")
    (folder / "xen").write_bytes(gzip.decompress(next((root / "boot").glob("xen-*.gz")).read_bytes()))
    _initrd(root, version, folder)
    _run([sys.executable, str(TRY_IMAGE), "--format=raw", "--parts", f"--kernel={root}", f"{root}{GUEST}"])
    _run(["mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=1,nodiscard", "-O", "^metadata_csum",
          "-d", str(root), str(folder / "disk.raw"), SIZE])  # fmt: skip
    shutil.rmtree(root)


def _configure(root: Path, public_key: str) -> None:
    for name, text in {**FILES, "root/.ssh/authorized_keys": public_key}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
    (root / "root/.ssh").chmod(0o700)
    _run(["chroot", str(root), "systemctl", "-q", "enable", "systemd-networkd"])
    _run(["chroot", str(root), "systemctl", "-q", "mask", *MASKED])


def _initrd(root: Path, version: str, folder: Path) -> None:
    tree = folder / "tree"
    for name in ("bin", "dev", "proc", "new", "modules"):
        (tree / name).mkdir(parents=True)
    shutil.copy(root / "bin/busybox", tree / "bin")
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    order: List[str] = []
    for module in ("virtio_pci", "virtio_blk", "ext4"):
        shown = _run(["chroot", str(root), "modprobe", "--show-depends", "-S", version, module])
        for path in (line.split()[1] for line in shown.splitlines() if line.startswith("insmod ")):
            if Path(path).name not in order:
                order.append(Path(path).name)
                shutil.copy(root / path.lstrip("/"), tree / "modules")
    (tree / "modules/order").write_text("\n".join(order))
    with open(folder / "initrd", "wb") as packed:
        names = subprocess.run(["find", "."], cwd=tree, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=tree, input=names, stdout=packed, check=True)
    shutil.rmtree(tree)
