"""Checks of what QEMU's own user must be able to open: the site's data volumes, and the directories of images.

Nobody changes owner and mode of what is the site's, so the site must have given QEMU's user its right.  Whether it has
it is not computed (groups, ACLs, every directory on the way): it is tried, as that user, by `test`.
"""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional

from vmagent.core.policy import Volume
from vmagent.errors import Fault, FaultKind
from vmagent.local.doctor.findings import Check, Facts, Finding, Level, fail, joined, ok, unknown
from vmagent.local.doctor.users import QEMU_CONF, QEMU_USERS, may, qemu_user


def volumes(facts: Facts) -> Finding:
    """Each volume can be opened by QEMU's user, as far as the site says that it may be used."""
    allowed = facts.config.policy.volumes
    if not allowed:
        return ok("no data volumes are offered (setting volumes)")
    if not facts.config.hypervisor.uri.startswith("qemu"):
        return ok(f"{len(allowed)} offered; this hypervisor has no user of its own")
    user = qemu_user(facts)
    if user is None:
        return unknown(f"{len(allowed)} offered; it cannot be tried as QEMU's user",
                       f"run the doctor as root; see `user` in {QEMU_CONF}")
    found = [_tried(facts, user, allowed[name]) for name in sorted(allowed)]
    whole = joined(found, ok(""))
    return ok(f"{len(found)} data volumes, {user} may open them all") if whole.level is Level.OK else whole


def _tried(facts: Facts, user: str, volume: Volume) -> Finding:
    try:
        return _volume(facts, user, volume)
    except Fault as fault:
        return unknown(f"{volume.name}: {fault.detail}", "see whether its file system, or libvirt, hangs")


def _volume(facts: Facts, user: str, volume: Volume) -> Finding:
    where = _of_pool(facts, volume) if volume.pool else Path(volume.path)
    if where is None:
        return fail(f"{volume.name}: libvirt has no volume {volume.volume} in an active storage pool {volume.pool}",
                    f"virsh pool-start {volume.pool}; virsh pool-refresh {volume.pool}; virsh vol-list {volume.pool}")
    if not facts.host.exists(where):
        return fail(f"{volume.name}: {where} does not exist", "make it, or take it out of the setting volumes")
    closed = [folder for folder in reversed(where.parents) if not may(facts, user, "x", folder)]
    if closed:
        return fail(f"{volume.name}: {user} may not pass through {closed[0]}", f"setfacl -m u:{user}:x {closed[0]}")
    lacks = [way for way in ("rw" if volume.writable else "r") if not may(facts, user, way, where)]
    if lacks:
        words = " and ".join({"r": "read", "w": "write"}[way] for way in lacks)
        return fail(f"{volume.name}: {user} may not {words} {where}",
                    f"setfacl -m u:{user}:{'rw' if volume.writable else 'r'} {where}")
    return ok(f"{volume.name} is open to {user}")


def _of_pool(facts: Facts, volume: Volume) -> Optional[Path]:
    try:
        said = facts.host.run("virsh", "-c", facts.config.hypervisor.uri, "vol-path", f"--pool={volume.pool}",
                              f"--vol={volume.volume}")
    except Fault as fault:
        if fault.kind is FaultKind.UNKNOWN:
            raise
        return None
    return Path(said.strip())


def directories(facts: Facts) -> Finding:
    """Directories of images and disks: nobody but root changes them, and QEMU's user passes through them."""
    settings = facts.config.images
    user = qemu_user(facts)
    found = [
        _directory(facts, user, path)
        for path in (settings.directory, settings.overlays, settings.seeds, settings.cache.directory)
        if facts.host.owned(path) is not None  # the agent makes its own; without the images' the check `images` fails
    ]
    whole = joined(found, ok("they are made when the agent starts"))
    return ok(f"{len(found)} directories, all as they should be") if found and whole.level is Level.OK else whole


def _directory(facts: Facts, user: Optional[str], path: Path) -> Finding:
    owned = facts.host.owned(path)
    assert owned is not None
    wrong: List[Finding] = []
    if owned.user in QEMU_USERS:
        wrong.append(fail(f"{path} belongs to {owned.user}, so a guest's QEMU may replace what is in it",
                          f"chown root: {path}"))
    if owned.mode & 0o022:
        wrong.append(fail(f"{path} has mode {owned.mode:o}: others may replace what is in it", f"chmod go-w {path}"))
    passes = may(facts, user, "x", path) if user is not None else bool(owned.mode & 0o001)
    if not passes:
        wrong.append(fail(f"QEMU's user may not pass through {path}", f"chmod o+x {path}"))
    return joined(wrong, ok(f"{path} is as it should be"))


CHECKS = (
    Check("directories", "directories of images and disks", directories),
    Check("volumes", "data volumes are open to QEMU", volumes),
)
