"""The host's own network interfaces, beside those of our guests.

Everything that begins with our prefix is ours: the firewall drops what it has no chain for.  So an interface of the
host with such a name would be cut off, and with it perhaps the host.  That is refused before anything is loaded.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Tuple

from vmagent.core.identity import DEVICE_CHARACTERS
from vmagent.errors import Problem

_DERIVED = re.compile(f"[a-z2-7]{{{DEVICE_CHARACTERS}}}")


def covered(instance: str, sys: Path = Path("/sys")) -> Tuple[str, ...]:
    """Interfaces that begin with `instance` and cannot be a guest's."""
    names = sorted(path.name for path in (sys / "class" / "net").glob("*"))
    return tuple(n for n in names if n.startswith(instance) and not _DERIVED.fullmatch(n[len(instance) :]))


def ours_alone(instance: str, sys: Path = Path("/sys")) -> None:
    """Problem `configuration` when the default drop for this prefix would cut an interface of the host off."""
    others = covered(instance, sys)
    if others:
        detail = (f'instance: "{instance}" would cut off {", ".join(others)}: all that begins with it is dropped; '
                  "accepted: 2 to 4 of a-z 0-9 that no other interface of this host begins with")
        raise Problem("configuration", detail, path="instance", interfaces=list(others))
