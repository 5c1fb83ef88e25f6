"""`vmagentctl limits` for people: limits wanted and proven, rules, and what the kernel has counted."""

from __future__ import annotations

from typing import Any, Mapping

from vmagent.core import limitwords
from vmagent.local.tables import Screen, span


def limits(screen: Screen, answer: Mapping[str, Any]) -> None:
    """One VM after the other."""
    for index, one in enumerate(answer["vms"]):
        if index:
            screen.line()
        _of_one(screen, one)


def _of_one(screen: Screen, one: Mapping[str, Any]) -> None:
    found = one["limits"]
    age = "never seen" if one["age_s"] is None else f"seen {span(one['age_s'])} ago"
    screen.line(f"{one['vm']}  {one['name']}  {one['phase']} since {one['since']}, {age}")
    if one["started_at"]:
        screen.line(f"first run {one['started_at']}")
    screen.table(limitwords.HEADER, limitwords.rows(found))
    for source in limitwords.sources(found):
        screen.line(f"by {source}")
    if found["wanted"]["interfaces"]:
        screen.line()
        screen.table(limitwords.RULES_HEADER, limitwords.rules(found))
        screen.line()
        _counters(screen, one)


def _counters(screen: Screen, one: Mapping[str, Any]) -> None:
    if one["counters_why"]:
        screen.line(f"counters cannot be read now: {one['counters_why']}", "yellow")
    else:
        screen.table(limitwords.COUNTERS_HEADER, limitwords.counters(one["counters"]), "nothing is counted yet")
