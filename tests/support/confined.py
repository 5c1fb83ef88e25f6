"""A process as systemd would start it by our unit: user, capabilities and umask, read out of the unit's own text.

The user is a number without an account, so nothing is added to the machine; group membership is what the caller says.
Where the interpreter or the checkout is in a folder that is closed to this user (a pyenv in root's home), it is put
into view in a mount name space of the process's own, which sees later mounts of the machine's all the same.
VMAGENT_TEST_AS_ROOT=1 runs as whoever runs the tests instead.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Dict, List, Optional, Sequence

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "systemd/vmagent.service"
NUMBER = 60900  # systemd and distributions give this one to nobody
ACCOUNT = {"passwd": f"vmagent-test:x:{NUMBER}:{NUMBER}::/:/usr/sbin/nologin\n", "group": f"vmagent-test:x:{NUMBER}:\n"}
"""For who looks it up in a mount name space of his own; the file is to be extended by the line."""


def settings(section: str, unit: Path = UNIT) -> Dict[str, List[str]]:
    """Every value of every setting of a section, in order."""
    found: Dict[str, List[str]] = {}
    inside = ""
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            inside = line.strip("[]")
        elif inside == section and "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def wanted() -> bool:
    """Whether agents run confined here: the tests are root's, and nobody said otherwise."""
    return os.geteuid() == 0 and bool(shutil.which("setpriv")) and os.environ.get("VMAGENT_TEST_AS_ROOT") != "1"


def uid() -> int:
    """Of the agents that are started."""
    return NUMBER if wanted() else os.geteuid()


def gid() -> int:
    return NUMBER if wanted() else os.getegid()


def words(groups: Sequence[int] = ()) -> List[str]:
    """To be put before a command; [] = it runs as root.  groups: numbers, beside its own."""
    if not wanted():
        return []
    service = settings("Service")
    assert service["User"] != ["root"], "the unit has a user of its own"
    ambient = _capabilities(service["AmbientCapabilities"])
    most = _capabilities(service["CapabilityBoundingSet"])
    member = ",".join(map(str, (NUMBER, *groups)))
    return [*_in_view(), "setpriv", f"--reuid={NUMBER}", f"--regid={NUMBER}", f"--groups={member}",
            f"--inh-caps={ambient}", f"--ambient-caps={ambient}", f"--bounding-set={most}", "--no-new-privs", "--"]


def _in_view() -> List[str]:
    """Words that make what the process needs passable for it; [] = it is."""
    wanted = {Path(path).resolve() for path in (sys.base_prefix, sys.prefix, ROOT)}
    closed = {path: top for path, top in ((path, _closed(path)) for path in sorted(wanted)) if top is not None}
    if not closed:
        return []
    script = ["set -e", "before=$(umask)", "umask 022", "mount -t tmpfs none /mnt"]
    for number, path in enumerate(closed):
        script += [f"mkdir /mnt/{number}", f"mount --bind {shlex.quote(str(path))} /mnt/{number}"]
    script += [f"mount -t tmpfs -o mode=755 none {shlex.quote(str(top))}" for top in sorted(set(closed.values()))]
    for number, path in enumerate(closed):
        script += [f"mkdir -p {shlex.quote(str(path))}", f"mount --bind /mnt/{number} {shlex.quote(str(path))}"]
    script += ["umount --lazy /mnt", "umask $before", 'exec "$@"']
    return ["unshare", "--mount", "--propagation=slave", "sh", "-c", "\n".join(script), "sh"]


def _closed(path: Path) -> Optional[Path]:
    """The outermost folder on the way that lets no stranger pass."""
    return next((folder for folder in [*reversed(path.parents), path] if not folder.stat().st_mode & 0o001), None)


def umask() -> int:
    """For subprocess: -1 = as it is."""
    return int(settings("Service")["UMask"][0], 8) if wanted() else -1


def give(folder: Path) -> None:
    """This folder is the agent's."""
    os.chown(folder, uid(), gid())


def _capabilities(said: Sequence[str]) -> str:
    """As setpriv takes them."""
    names = " ".join(said).split()
    assert names and all(name.startswith("CAP_") for name in names), said
    return ",".join(["-all", *("+" + name[len("CAP_"):].lower() for name in names)])
