"""Checks of what lies on disk, and of the agent itself: space, images, store, socket."""

from __future__ import annotations

from typing import Iterator, List, Mapping

from vmagent.local.doctor.findings import Check, Facts, Finding, Level, fail, joined, ok, unknown, warn
from vmagent.local.doctor.users import QEMU_USERS


def space(facts: Facts) -> Finding:
    where, floor = facts.config.images.overlays, facts.config.policy.disk_floor_gib
    free = facts.host.free_gib(where)
    if free is None:
        return fail(f"{where} cannot be looked at", "make the directory, or correct images.overlays")
    if free <= floor:
        return fail(f"{free:.1f} GiB free at {where}, the floor is {floor}: no VM can start", "make room there")
    if free < 2 * floor:
        return warn(f"{free:.1f} GiB free at {where}, the floor is {floor}", "make room there soon")
    return ok(f"{free:.1f} GiB free at {where}")


def images(facts: Facts) -> Finding:
    """A golden image must be readable for QEMU's user and belong to nobody who could change it (FACTS F19)."""
    found = [_image(facts, image) for image in sorted(facts.config.policy.images)]
    booted = [one for image in sorted(facts.config.policy.images) for one in _booted(facts, image)]
    nothing = warn("the catalogue is empty: nothing can be started", "describe images in images.catalogue")
    whole = joined([*found, *booted], nothing)
    return ok(f"{len(found)} golden images, all in place") if whole.level is Level.OK else whole


def _image(facts: Facts, image: str) -> Finding:
    entry = facts.config.policy.images[image]
    if entry.url:
        return ok(f"{image} is fetched when it is wanted")
    path = facts.config.images.directory / entry.file
    owned = facts.host.owned(path)
    if owned is None:
        return fail(f"{image}: {path} is missing", "put the file there, or take the image out of images.catalogue")
    if owned.user in QEMU_USERS:
        return fail(f"{image}: {path} belongs to {owned.user}, so a guest's QEMU may write it", f"chown root: {path}")
    if owned.mode & 0o022:
        return fail(f"{image}: {path} has mode {owned.mode:o}", f"chmod go-w {path}")
    if not owned.mode & 0o044:
        return fail(f"{image}: QEMU's user may not read {path}", f"chmod 644 {path}")
    return ok(f"{image} is in place")


def _booted(facts: Facts, image: str) -> Iterator[Finding]:
    """Kernel and initial RAM disk of its `boot`: root of dom0 reads them."""
    boot = facts.config.policy.images[image].boot
    for file in boot.files if boot is not None else ():
        path = facts.config.images.directory / file.file
        owned = facts.host.owned(path)
        if owned is None:
            yield fail(f"{image}: {path} is missing", "put the file there, or correct the image's boot")
        elif owned.user in QEMU_USERS or owned.mode & 0o022:
            yield fail(f"{image}: {path} can be changed by others than root", f"chown root: {path}; chmod go-w {path}")


def store(facts: Facts) -> Finding:
    state = facts.config.directories.state
    if not facts.host.exists(state):
        return fail(f"{state} does not exist", f"systemd-tmpfiles --create, or mkdir -m 711 {state}")
    if not facts.host.writable(state):
        return fail(f"{state} is not writable for this user", "mount it writable; run as the agent's user")
    if facts.live is None:
        return unknown(f"{state} is writable; the epoch is known only to the running agent", "see the check `agent`")
    epoch = facts.live.get("epoch")
    number = epoch.get("number") if isinstance(epoch, Mapping) else None
    return ok(f"{state} is writable" + (f"; epoch {number}" if number is not None else ""))


def socket(facts: Facts) -> Finding:
    settings = facts.config.socket
    owned = facts.host.owned(settings.path)
    if owned is None:
        return fail(f"{settings.path} does not exist", "see the check `agent`")
    if settings.admin_group and owned.group != settings.admin_group:
        mend = "restart the agent after a change of socket.admin_group"
        return warn(f"{settings.path} belongs to group {owned.group}, not {settings.admin_group}", mend)
    return ok(f"{settings.path}, group {owned.group}, mode {owned.mode:o}")


def agent(facts: Facts) -> Finding:
    """What the agent says of itself."""
    if facts.live is None:
        return fail("the agent does not answer on its socket", "systemctl start vmagent; journalctl -u vmagent")
    parts = facts.live.get("degraded") or {}
    told: List[Finding] = [
        warn(f"{part} is degraded: {why}", "see the other checks and journalctl -u vmagent")
        for part, why in sorted(parts.items() if isinstance(parts, dict) else ((p, "") for p in parts))
    ]
    if facts.live.get("drained"):
        told.append(warn("the host is drained: it takes no new VMs", "vmagentctl undrain"))
    return joined(told, ok("running, nothing is degraded"))


CHECKS = (
    Check("agent", "the agent runs", agent),
    Check("socket", "the local socket", socket),
    Check("store", "the store", store),
    Check("disk", "disk space", space),
    Check("images", "golden images", images),
)
