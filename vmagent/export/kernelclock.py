"""How far the kernel believes its clock may be off: ntp_adjtime(2), which anybody may read.

The kernel's own bound (`maxerror`) grows by 500 ppm while nobody corrects the clock, up to 16 s; whoever disciplines it
(chronyd, ntpd, systemd-timesyncd) sets it back.  So no other clock is asked.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Optional

TIME_ERROR = 5  # <sys/timex.h>: not synchronised
_TIMEX_BYTES = 512  # more than struct timex has anywhere
_MAXERROR = struct.Struct("l")


def max_error_s() -> Optional[float]:
    """Seconds that the clock may be off; None when the kernel does not tell."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        buffer = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes = 0: only look
        if libc.ntp_adjtime(buffer) < 0:
            return None
    except (OSError, AttributeError):
        return None
    before = 3 * _MAXERROR.size  # modes (padded to a long), offset, freq
    return float(_MAXERROR.unpack_from(buffer.raw, before)[0]) / 1e6
