"""Until when the files may be used that say who is who: certificates and revocation lists.

Rules: the first of each kind to end is published.  What ends soon or has ended is told with its file and its date,
never with "in N days", so that the text says something new only when something is new.  A revocation list is renewed
every few days by its nature: only one that has ended is worth a word.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from vmagent.core import walltime

DAY_S = 86400.0
BROKER, BROKER_CA, CA, CRL = "broker", "broker-ca", "ca", "crl"
PARTS: Mapping[str, Tuple[str, str]] = {
    BROKER: ("certificate", "renew the host's certificate"),
    BROKER_CA: ("broker-ca", "install the new certificate of the broker's CA"),
    CA: ("ca", "install the CA's new certificate, or remove this one"),
    CRL: ("crl", "fetch a new list; until then its signers are refused"),
}
"""Kind -> (part of host.state's `degraded`, what to do)."""
MOST_NAMED = 3


@dataclass(frozen=True)
class Dated:
    """One certificate or revocation list.  Times: seconds since 1970."""

    kind: str  # of PARTS
    file: str
    name: str  # its subject; of a list, its issuer
    begins_s: float
    ends_s: float


@dataclass(frozen=True)
class Papers:
    """What was read in one look."""

    dated: Tuple[Dated, ...] = ()
    faults: Tuple[Tuple[str, str], ...] = ()  # (kind, why) of files that cannot be used
    renewed: bool = False  # our own towards the broker are others than in the look before, and can be used


def published(dated: Sequence[Dated], now_s: float) -> List[Dict[str, Any]]:
    """`certificates` of host.state."""
    first: Dict[str, Dated] = {}
    for one in sorted(dated, key=lambda one: (one.ends_s, one.file)):
        first.setdefault(one.kind, one)
    return [
        {"kind": kind, "file": one.file, "days_left": math.floor((one.ends_s - now_s) / DAY_S),
         "ends_at": walltime.text(one.ends_s)}
        for kind, one in sorted(first.items())
    ]  # fmt: skip


def troubles(papers: Papers, warn_days: float, now_s: float) -> Dict[str, str]:
    """Part of `degraded` -> what is wrong with which file, the most urgent first."""
    told: Dict[str, List[str]] = {PARTS[kind][0]: [] for kind in PARTS}
    for kind, why in papers.faults:
        told[PARTS[kind][0]].append(why)
    for one in sorted(papers.dated, key=lambda one: (one.ends_s, one.file)):
        word = _word(one, warn_days, now_s)
        if word:
            part, mend = PARTS[one.kind]
            told[part].append(f"{one.file} ({one.name}) {word}: {mend}")
    return {part: _few(texts) for part, texts in told.items() if texts}


def usable(dated: Sequence[Dated], now_s: float) -> bool:
    """Whether all of ours towards the broker are valid now."""
    return all(one.begins_s <= now_s < one.ends_s for one in dated if one.kind == BROKER)


def _word(one: Dated, warn_days: float, now_s: float) -> str:
    if one.ends_s <= now_s:
        return f"expired on {day(one.ends_s)}"
    if one.begins_s > now_s:
        return f"is not valid before {day(one.begins_s)}"
    if one.kind != CRL and one.ends_s - now_s < warn_days * DAY_S:
        return f"expires on {day(one.ends_s)}"
    return ""


def day(at_s: float) -> str:
    """`2026-11-20 12:00 UTC`."""
    text = walltime.text(at_s)
    return f"{text[:10]} {text[11:16]} UTC"


def _few(texts: Sequence[str]) -> str:
    more = len(texts) - MOST_NAMED
    return "; ".join(texts[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
