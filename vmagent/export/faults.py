"""What an error of the file system means to whoever puts something there."""

from __future__ import annotations

import errno

from vmagent.errors import Fault, FaultKind

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fault(error: OSError) -> Fault:
    """FULL: nothing more fits; AWAY: the place is not there or does not let us; it may do so later."""
    return Fault(FaultKind.FULL if error.errno in _NO_SPACE else FaultKind.AWAY, str(error))
