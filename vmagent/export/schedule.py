"""When accounting is published: every so many hours, and shortly before and after each month's edge.  Pure.

A month's use that no record tells near its end is booked in the next month (FORMATS 1.4), so the last period of a month
is sent as soon as it is closed.
"""

from __future__ import annotations

from vmagent.render import usage

BEFORE_EDGE_S = 600
AFTER_EDGE_S = 300  # the last period is closed by then


def next_at(now_s: float, every_s: int, offset_s: int) -> float:
    """The first time after `now_s`.  offset_s: this host's own, so that not all hosts send at once; a day's use is
    counted from 00:00 UTC.
    """
    regular = now_s - (now_s - offset_s) % every_s + every_s
    edge = usage.month_bounds(usage.month_of(int(now_s)))
    edges = (edge[0] + AFTER_EDGE_S, edge[1] - BEFORE_EDGE_S, edge[1] + AFTER_EDGE_S)
    return min([regular, *(at for at in edges if at > now_s)])
