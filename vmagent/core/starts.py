"""How long a start takes here: from the acceptance of the request to the guest's first instruction (R10).

Measured by every start of the last day that this agent remembers.  Nobody measured = None, never 0.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Sequence

from vmagent.core import walltime
from vmagent.core.model import Now, VmRecord

DAY_S = 86400
MOST = 2000  # starts that are looked at, the newest


def measured(records: Sequence[VmRecord], now: Now, milestone: str = "resumed") -> List[float]:
    """Seconds to this milestone of `timings_ms`, of every start of the last day, ascending."""
    since = walltime.seconds(now.wall) - DAY_S
    lately = [r for r in records[-MOST:] if r.journal.started_wall and walltime.seconds(r.journal.started_wall) > since]
    found = [dict(record.timings_ms).get(milestone) for record in lately]
    return sorted(ms / 1000 for ms in found if ms is not None)


def quantile(ascending: Sequence[float], share: float) -> Optional[float]:
    """By nearest rank: the least value that `share` of all do not exceed; None of nothing."""
    if not ascending:
        return None
    return round(ascending[max(0, math.ceil(share * len(ascending)) - 1)], 3)


def told(records: Sequence[VmRecord], now: Now) -> Dict[str, Any]:
    """`starts` of host.capacity."""
    resumed, ready = measured(records, now), measured(records, now, "ready")
    return {
        "over_s": DAY_S,
        "count": len(resumed),
        "median_s": quantile(resumed, 0.5),
        "p95_s": quantile(resumed, 0.95),
        "ready_median_s": quantile(ready, 0.5),
        "ready_p95_s": quantile(ready, 0.95),
    }


def expected_s(records: Sequence[VmRecord], now: Now, count: int, parallel: int) -> Optional[float]:
    """Seconds until the last of `count` VMs runs, `parallel` of them being started at a time; None = not known."""
    one = quantile(measured(records, now), 0.5)
    return None if one is None else round(one * max(1, math.ceil(count / parallel)), 3)
