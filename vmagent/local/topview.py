"""The query `top`: every guest in short, how fast it goes, and what it may take at most.  A pure function.

    {at, age_s (of the reading; null = none yet), vms: [{...row of views.py, limits, pace, paces}]}
    limits: {cpu_cap_core_percent, bandwidth_in_kbit, bandwidth_out_kbit}, of all its interfaces; null = none
    pace: members of paces.Pace, of the newest reading; paces: {member: [oldest ... newest]} for sparklines
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Sequence

from vmagent.core import codec
from vmagent.core.limitmodel import Limits
from vmagent.core.model import Now, Observed, VmRecord
from vmagent.core.paces import MEMBERS, Pace, Paces
from vmagent.local import views


def top(records: Sequence[VmRecord], observed: Mapping[str, Observed], paces: Paces, now: Now) -> Dict[str, Any]:
    alive = [record for record in records if record.outcome is None]
    return {
        "at": now.wall,
        "age_s": None if paces.at is None else round(max(0.0, now.at - paces.at), 1),
        "vms": [_row(record, observed, paces.of(record.vm), now) for record in alive],
    }


def _row(record: VmRecord, observed: Mapping[str, Observed], kept: Sequence[Pace], now: Now) -> Dict[str, Any]:
    newest = kept[-1] if kept else Pace()
    return {
        **views.row(record, observed, now),
        "limits": _limits(record.spec.limits),
        "pace": codec.plain(newest),
        "paces": {name: [getattr(one, name) for one in kept] for name in MEMBERS},
    }


def _limits(limits: Limits) -> Dict[str, Optional[int]]:
    return {
        "cpu_cap_core_percent": limits.cpu_cap_core_percent,
        "bandwidth_in_kbit": _sum([nic.bandwidth_in_kbit for nic in limits.nics]),
        "bandwidth_out_kbit": _sum([nic.bandwidth_out_kbit for nic in limits.nics]),
    }


def _sum(rates: Sequence[Optional[int]]) -> Optional[int]:
    """One interface without a limit: none at all."""
    return sum(rate for rate in rates if rate) if rates and all(rates) else None
