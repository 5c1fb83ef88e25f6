"""Named instants at which a test lets the agent die, as `kill -9` would.

VMAGENT_CRASH_AT names one point of POINTS; the first time it is reached the process kills itself with SIGKILL, so
nothing is flushed, closed or told.  Unset (always, outside tests) `reach` is one comparison.
The points stand where a crash has a meaning of its own: around every commit, acknowledgement, send and effect.
"""

from __future__ import annotations

import os
import signal

from vmagent.core.actions import Do

POINTS = (
    "frame-received",  # copied from the broker, nothing decided
    "decided",  # verdict known, nothing stored
    "committed",  # stored, not acknowledged
    "acked",  # acknowledged, nothing done yet
    *(f"before-{do.value}" for do in Do),  # the journal is committed, the effect is not begun
    *(f"after-{do.value}" for do in Do),  # the effect happened, nobody observed it
    "sent",  # handed to the broker, no receipt yet
    "receipted",  # receipt came, the row is still in the outbox
    "fetched",  # an image's bytes are whole, not inspected
    "inspected",  # they are proven, neither converted nor kept
    "converted",  # what was made of them is whole, not inspected and without its name
    "ready",  # `ready` is committed
    "accounts-written",  # a message for the accounting relay is whole on the disk, without its name
    "accounts-archived",  # its copy is in the archive, it is not in the queue
    "accounts-queued",  # it is in the queue, and the store does not know
    "revoked",  # what becomes of guests whose image is distrusted is committed, nothing done yet
)
_chosen = os.environ.get("VMAGENT_CRASH_AT", "")
if _chosen and _chosen not in POINTS:
    raise SystemExit(f"VMAGENT_CRASH_AT={_chosen}: not one of {', '.join(POINTS)}")


def reach(point: str) -> None:
    """Die here if this is the chosen point."""
    if point == _chosen:
        os.kill(os.getpid(), signal.SIGKILL)
