"""Folders with the mode that they are meant to have, whatever the umask is; and in words what keeps the agent out.

The agent runs as a user of its own: a folder that an administrator or an earlier version made may be root's.
"""

from __future__ import annotations

import errno
import os
import pwd
from pathlib import Path


def made(folder: Path, mode: int) -> bool:
    """Make it, and what is missing above it, with this mode; whether it was not there.  Errors: OSError."""
    if folder.is_dir():
        return False
    if not folder.parent.is_dir():
        made(folder.parent, mode)
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    folder.chmod(mode)
    return True


def held(folder: Path, mode: int) -> None:
    """Make it, or bring it to this mode if it is ours; one that is not must be writable.  Errors: OSError, in words."""
    if made(folder, mode):
        return
    status = folder.stat()
    if os.geteuid() in (0, status.st_uid):
        if status.st_mode & 0o7777 != mode:
            folder.chmod(mode)
    else:
        writable(folder)


def writable(path: Path) -> None:
    """PermissionError, saying whose it is and how to mend it, unless this process may write the file or the folder."""
    if not os.access(path, os.W_OK | (os.X_OK if path.is_dir() else os.R_OK)):
        us = user(os.geteuid())
        said = f"{path} belongs to {user(path.stat().st_uid)} and the agent runs as {us}: chown {us}: {path}"
        raise PermissionError(errno.EACCES, said, str(path))


def user(uid: int) -> str:
    """Its name; the number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
