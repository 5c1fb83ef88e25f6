"""What an error of sqlite3 or of the file system means (DESIGN 1.9: a full disk is told apart from the rest).

FULL and BUSY and REFUSED: nothing was stored.  UNKNOWN: nothing should have been, but only reading tells.
Python before 3.11 hides SQLite's result code; its fixed English name for SQLITE_FULL then stands for the code.
"""

from __future__ import annotations

import errno
import sqlite3

from vmagent.errors import Fault, FaultKind

_SQLITE_BUSY, _SQLITE_FULL = 5, 13
_NAMES = {"database or disk is full": _SQLITE_FULL, "database is locked": _SQLITE_BUSY}
_KINDS = {_SQLITE_FULL: FaultKind.FULL, _SQLITE_BUSY: FaultKind.BUSY}
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NEVER = (
    ValueError,
    TypeError,
    ArithmeticError,
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
)


def fault(error: Exception) -> Fault:
    """The Fault that this error is."""
    if isinstance(error, Fault):
        return error
    return Fault(_kind(error), f"store: {type(error).__name__}: {error}")


def _kind(error: Exception) -> FaultKind:
    if isinstance(error, _NEVER):
        return FaultKind.REFUSED  # these changes can never be stored
    if isinstance(error, sqlite3.OperationalError):
        code = getattr(error, "sqlite_errorcode", None)
        return _KINDS.get(_NAMES.get(str(error), 0) if code is None else code & 0xFF, FaultKind.UNKNOWN)
    if isinstance(error, OSError):
        return FaultKind.FULL if error.errno in _NO_SPACE else FaultKind.AWAY
    return FaultKind.UNKNOWN


def is_damage(error: Exception) -> bool:
    """SQLITE_CORRUPT and SQLITE_NOTADB alone arrive as DatabaseError itself; its subclasses are other troubles."""
    return type(error) is sqlite3.DatabaseError
