"""How many VMs run here, by what they do and by VO: the counts that information systems ask for.

Rules: a VM counts in exactly one of the four.  `suspended`: its vCPUs do not turn and its memory is kept.  `halted`: it
is not started yet, or has ended and its disk is kept.  `unknown`: nobody can see it now; it is in no other count, so a
sum over the others is a lower bound only.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Mapping

from vmagent.core.model import Phase, VmRecord

COUNTS = ("running", "suspended", "halted", "unknown")
_WORDS: Mapping[Phase, str] = {
    Phase.RUNNING: "running", Phase.READY: "running", Phase.STOPPING: "running", Phase.STUCK: "running",
    Phase.PAUSED: "suspended", Phase.UNKNOWN: "unknown", Phase.FOREIGN: "unknown",
}  # fmt: skip


def vms(records: Iterable[VmRecord], phases: Mapping[str, Phase]) -> Dict[str, int]:
    """{total, running, suspended, halted, unknown} of wishes that are not closed.  phases: by VM id."""
    counts = dict.fromkeys(("total", *COUNTS), 0)
    for record in records:
        if not record.closed:
            counts["total"] += 1
            counts[_WORDS.get(phases.get(record.vm, Phase.UNKNOWN), "halted")] += 1
    return counts


def vos(records: Iterable[VmRecord], phases: Mapping[str, Phase]) -> List[Dict[str, Any]]:
    """The same VO by VO, with what their VMs hold; "" = owners without a VO."""
    of: Dict[str, List[VmRecord]] = {}
    for record in records:
        if not record.closed:
            of.setdefault(record.spec.owner.vo, []).append(record)
    return [{"vo": vo, "vms": vms(those, phases), **held(those)} for vo, those in sorted(of.items())]


def held(records: Iterable[VmRecord]) -> Dict[str, int]:
    """What these wishes hold of the host: cores and memory until the end, disks until they are gone."""
    open_ones = [record for record in records if not record.closed]
    alive = [record for record in open_ones if record.outcome is None]
    return {
        "cores": sum(record.spec.cores for record in alive),
        "memory_mib": sum(record.spec.memory_mib for record in alive),
        "disk_gib": sum(record.spec.disk_gib for record in open_ones),
    }
