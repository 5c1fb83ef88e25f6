"""Checks of what the agent's own user may do: it is no administrator, so each right must have been given to it.

Whether it has one is not computed from groups, modes and polkit's rules: it is tried, as that user.
"""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, List, Tuple

from vmagent.config import Config
from vmagent.errors import Fault, FaultKind
from vmagent.local.doctor.findings import Check, Facts, Finding, fail, joined, ok, unknown
from vmagent.local.doctor.users import agent_user, may


def rights(facts: Facts) -> Finding:
    """Files, groups and libvirt, as the user that the unit names; without systemd, as the state directory's owner."""
    user = agent_user(facts)
    if user in ("", "root"):
        return ok("the agent runs as root, which may do all of it")
    if not may(facts, user, "d", Path("/")):
        return unknown(f"it cannot be tried what {user} may do", "run the doctor as root")
    found = [*_files(facts, user), *_groups(facts, user), *_libvirt(facts, user)]
    return joined(found, ok(f"{user} may do all that is asked of it"))


def _files(facts: Facts, user: str) -> Iterator[Finding]:
    for path in _written(facts.config):
        if facts.host.exists(path) and not (may(facts, user, "w", path) and may(facts, user, "x", path)):
            yield fail(f"{user} may not write in {path}", f"chown {user}: {path}")
    for path in _read(facts.config):
        if facts.host.exists(path) and not may(facts, user, "r", path):
            yield fail(f"{user} may not read {path}",
                       f"chgrp {user} {path} && chmod g+r {path}, and see the folders above it")
    volumes = [Path(volume.path) for volume in facts.config.policy.volumes.values() if volume.path]
    for path in volumes:
        if facts.host.exists(path) and not may(facts, user, "e", path):
            yield fail(f"{user} may not pass through to {path}", f"setfacl -m u:{user}:x {path.parent}")


def _written(config: Config) -> Tuple[Path, ...]:
    images = config.images
    return (config.directories.state, images.overlays, images.seeds, images.cache.directory)


def _read(config: Config) -> List[Path]:
    """What is opened for reading."""
    tls, security = config.broker.tls, config.security
    named = [config.broker.passcode_file, *((tls.ca, tls.certificate, tls.key) if tls else ())]
    folders = [config.images.directory, *([security.ca_directory] if security.commands == "signed" else [])]
    return [*folders, *(Path(path) for path in named if path is not None)]


def _groups(facts: Facts, user: str) -> Iterator[Finding]:
    """A file can be given to a group by its members alone."""
    settings = facts.config.socket
    group = settings.admin_group or settings.reader_group
    if not group:
        return
    try:
        member = group in facts.host.run("id", "-nG", user).split()
    except Fault as fault:
        yield unknown(f"the groups of {user} are not known: {fault.detail}", f"see `id {user}`")
        return
    if not member:
        yield fail(f"{user} is not in group {group}, which it gives its socket to",
                   f"usermod -aG {group} {user}, then restart the agent")


def _libvirt(facts: Facts, user: str) -> Iterator[Finding]:
    uri = facts.config.hypervisor.uri
    try:
        facts.host.run("runuser", "-u", user, "--", "virsh", "-c", uri, "version")
    except Fault as fault:
        if fault.kind is FaultKind.UNKNOWN or not facts.host.exists(Path("/usr/bin/virsh")):
            return  # the check `libvirt` tells that
        yield fail(f"{uri} does not let {user} in: {fault.detail}",
                   f"usermod -aG libvirt {user}, or the polkit rule of the package; then restart the agent")


CHECKS = (Check("rights", "what the agent's user may do", rights),)
