"""Whose rights matter beside those of whoever runs the doctor: the agent's user and QEMU's.

What a user may do is not computed from owners, modes, groups and ACLs: it is tried, as that user.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

from vmagent.errors import Fault, FaultKind
from vmagent.local.doctor.findings import SYSTEMD, Facts

UNIT = "vmagent.service"
QEMU_CONF = Path("/etc/libvirt/qemu.conf")
QEMU_USERS = ("qemu", "libvirt-qemu")
_USER = re.compile(rb'^\s*user\s*=\s*"\+?([A-Za-z0-9._-]+)"', re.MULTILINE)
_ROOT = ("0", "root")


def agent_user(facts: Facts) -> str:
    """Whom the unit names; without systemd, the owner of the state directory.  "" = nobody can say."""
    if facts.host.exists(SYSTEMD):
        try:
            named = facts.host.run("systemctl", "show", "--property=User", "--value", UNIT).strip()
        except Fault:
            named = ""
        if named:
            return named
    owned = facts.host.owned(facts.config.directories.state)
    return "" if owned is None else owned.user


def qemu_user(facts: Facts) -> Optional[str]:
    """Whom libvirt runs QEMU as; None = nobody can say, or this process cannot act as him."""
    said = _USER.findall(facts.host.read(QEMU_CONF) or b"")
    names = [said[-1].decode("ascii")] if said else list(QEMU_USERS)
    return next((name for name in names if name in _ROOT or may(facts, name, "d", Path("/"))), None)


def may(facts: Facts, user: str, way: str, path: Path) -> bool:
    """What `test -WAY PATH` says for this user.  Faults: UNKNOWN: it hung, as on a file system that is away."""
    if user in _ROOT:
        return True
    try:
        facts.host.run("runuser", "-u", user, "--", "test", f"-{way}", str(path))
    except Fault as fault:
        if fault.kind is FaultKind.UNKNOWN:
            raise
        return False
    return True
