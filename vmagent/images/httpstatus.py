"""What an HTTP status that is no success means: asking again may help (BUSY), or cannot (REFUSED)."""

from __future__ import annotations

from vmagent.errors import Fault, FaultKind

_AGAIN = (408, 425, 429)  # what asking later may change, beside 5xx


def refused_status(status: int, who: str = "the server") -> Fault:
    """The Fault for an answer of `who` that is no success."""
    again = status in _AGAIN or status >= 500
    return Fault(FaultKind.BUSY if again else FaultKind.REFUSED, f"{who} says {status}")
