"""A damaged database is kept for people to look at, never deleted and never opened again."""

from __future__ import annotations

import os
from pathlib import Path

from vmagent.store.marker import sync_directory


def set_aside(path: Path, wall: str) -> str:
    """Move the file with its -wal and -shm to `NAME.corrupt-<wall time>`; the new path."""
    plain_wall = wall.replace(":", "")
    target = path.with_name(f"{path.name}.corrupt-{plain_wall}")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.corrupt-{plain_wall}-{number}")
    for suffix in ("-wal", "-shm", ""):  # the file last: a crash in between leaves it to be found damaged again
        part = Path(f"{path}{suffix}")
        if part.exists():
            os.rename(part, f"{target}{suffix}")
    sync_directory(path.parent)
    return str(target)
