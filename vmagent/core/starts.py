"""How long a start takes here: from the acceptance of the request to the guest's first instruction (R10).

Measured by every start of the last day, the newest MOST of them.  They are read off the wishes and kept as a setting in
the store, so that neither a restart of the agent nor the end of a VM forgets them.  Nobody measured = None, never 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Optional, Sequence

from vmagent.core import walltime
from vmagent.core.model import Now, VmRecord

DAY_S = 86400
MOST = 300
SETTING = "starts"


@dataclass(frozen=True)
class Start:
    """One first start.  Milliseconds since the acceptance; ready_ms None = it is not ready (yet)."""

    vm: str
    wall: str  # of the first instruction
    resumed_ms: int
    ready_ms: Optional[int] = None


def lately(kept: Any, records: Iterable[VmRecord], now: Now) -> List[Start]:
    """The starts of the last day, oldest first: those that were kept and those of these wishes.

    kept: the setting; what is not understood of it is left out.
    """
    found = {start.vm: start for start in (_kept(kept) + [one for record in records for one in _of(record)])}
    since = walltime.seconds(now.wall) - DAY_S
    young = [start for start in found.values() if walltime.seconds(start.wall) > since]
    return sorted(young, key=lambda start: (start.wall, start.vm))[-MOST:]


def setting(starts: Sequence[Start]) -> List[List[Any]]:
    """What is kept of them."""
    return [[start.vm, start.wall, start.resumed_ms, start.ready_ms] for start in starts]


def _kept(kept: Any) -> List[Start]:
    return [Start(*row) for row in kept] if isinstance(kept, list) else []


def _of(record: VmRecord) -> List[Start]:
    timings, wall = dict(record.timings_ms), record.journal.started_wall
    return [Start(record.vm, wall, timings["resumed"], timings.get("ready"))] if wall and "resumed" in timings else []


def quantile(ascending: Sequence[float], share: float) -> Optional[float]:
    """By nearest rank: the least value that `share` of all do not exceed; None of nothing."""
    if not ascending:
        return None
    return round(ascending[max(0, math.ceil(share * len(ascending)) - 1)], 3)


def resumed_s(starts: Iterable[Start]) -> List[float]:
    """Seconds to the first instruction, ascending."""
    return sorted(start.resumed_ms / 1000 for start in starts)


def told(starts: Sequence[Start]) -> Dict[str, Any]:
    """`starts` of host.capacity."""
    resumed = resumed_s(starts)
    ready = sorted(start.ready_ms / 1000 for start in starts if start.ready_ms is not None)
    return {
        "over_s": DAY_S,
        "count": len(resumed),
        "median_s": quantile(resumed, 0.5),
        "p95_s": quantile(resumed, 0.95),
        "ready_median_s": quantile(ready, 0.5),
        "ready_p95_s": quantile(ready, 0.95),
    }


def expected_s(starts: Sequence[Start], count: int, parallel: int) -> Optional[float]:
    """Seconds until the last of `count` VMs runs, `parallel` of them being started at a time; None = not known."""
    one = quantile(resumed_s(starts), 0.5)
    return None if one is None else round(one * max(1, math.ceil(count / parallel)), 3)
