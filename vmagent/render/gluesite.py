"""A site's GLUE document, made from its hosts' shares (FORMATS 4.4).

Rules

1. Objects of one class and ID are one: numbers of SUMS are added, of MAXIMA and MINIMA the greatest and least is taken,
   lists are united, the words of texts that differ stand side by side.  HealthState is the worst, ServingState the
   best: a site serves while one of its hosts does.
2. A number that one host does not know is not known of the site: it is left out, never taken for 0.
3. A share is believed until its own validity is over, and MOST_S at the longest; older ones are left out and named.
4. The document is as old as its oldest part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

from vmagent.core import walltime

Json = Dict[str, Any]
Data = Mapping[str, Any]
Document = Mapping[str, Sequence[Data]]

MOST_S = 300
SUMS = ("TotalVM", "RunningVM", "SuspendedVM", "HaltedVM", "TotalCPUs", "TotalRAM", "Number", "AllocatedCPUs",
        "AllocatedRAM", "FreeCPUs", "FreeRAM", "FreeDisk", "PossibleNow", "CachedHosts", "SetAside")
MAXIMA = ("InstanceMaxCPU", "InstanceMaxRAM", "StartSecondsMedian", "StartSecondsP95")
MINIMA = ("InstanceMinCPU", "InstanceMinRAM")
AGREED = ("DefaultNetworkType",)  # said only when all say the same
NEEDED = (*SUMS, *MINIMA, *AGREED)  # of these a host that does not know hides the others; a maximum is one all the same
HEALTH = ("ok", "other", "downtime", "unknown", "warning", "critical")  # the worst last
SERVING = ("closed", "queueing", "draining", "production")  # the best last
SERVICE = "CloudComputingService"


@dataclass(frozen=True)
class Site:
    """document: {} when no share is young enough; dropped: host -> seconds since it was told."""

    document: Mapping[str, List[Json]]
    hosts: Tuple[str, ...]
    dropped: Mapping[str, int]


def site(shares: Mapping[str, Document], now_s: float) -> Site:
    """shares: by host; now_s: wall time."""
    ages = {host: now_s - _told_s(share) for host, share in shares.items()}
    young = [host for host in sorted(shares) if ages[host] <= _valid_s(shares[host])]
    document = merged([shares[host] for host in young])
    dropped = {host: round(age) for host, age in sorted(ages.items()) if host not in young}
    return Site(document, tuple(young), dropped)


def _told_s(share: Document) -> float:
    return walltime.seconds(share[SERVICE][0]["CreationTime"])


def _valid_s(share: Document) -> float:
    return min(float(share[SERVICE][0]["Validity"]), MOST_S)


def merged(shares: Sequence[Document]) -> Dict[str, List[Json]]:
    """One document of many."""
    found: Dict[str, Dict[str, List[Data]]] = {}
    for share in shares:
        for kind, objects in share.items():
            of = found.setdefault(kind, {})
            for one in objects:
                of.setdefault(one["ID"], []).append(one)
    document = {kind: [_one(objects) for objects in of.values()] for kind, of in found.items()}
    for service in document.get(SERVICE, ()):
        service["Complexity"] = f"endpointType=1,share={len(document.get('Share', ()))}"
    return document


def _one(objects: Sequence[Data]) -> Json:
    """Several objects of one ID as one."""
    names = list(dict.fromkeys(name for one in objects for name in one))
    made: Json = {}
    for name in names:
        values = _said(objects, name)
        if name in NEEDED and len(values) < len(objects):
            continue
        made[name] = _RULES.get(name, _same)(values)
    return {name: value for name, value in made.items() if name not in AGREED or value in _said(objects, name)}


def _said(objects: Sequence[Data], name: str) -> List[Any]:
    """What these say of it."""
    return [one[name] for one in objects if name in one]


def _same(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        return _one(values)
    if isinstance(first, (list, tuple)):
        return sorted({str(one) for value in values for one in value})
    distinct = list(dict.fromkeys(values))
    if len(distinct) == 1:
        return first
    if all(isinstance(one, bool) for one in distinct):
        return False  # not everywhere
    return ", ".join(sorted({word for one in distinct for word in str(one).split(", ")}))


_RULES: Mapping[str, Callable[[Sequence[Any]], Any]] = {
    **dict.fromkeys(SUMS, sum),
    **dict.fromkeys(MAXIMA, max),
    **dict.fromkeys(MINIMA, min),
    "CreationTime": min,
    "Validity": min,
    "HealthState": lambda values: max(values, key=HEALTH.index),
    "ServingState": lambda values: max(values, key=SERVING.index),
}
