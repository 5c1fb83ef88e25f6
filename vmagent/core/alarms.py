"""What people are told about a VM, once each: conditions that begin, last, and end.

A condition that holds is an alarm.  The journal remembers the alarms that were told until they are over, in the same
commit as the telling; so each is told once per time that it happens, crash or not, and never again while it lasts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import FrozenSet, List, Mapping, Tuple

from vmagent.core import proof
from vmagent.core.model import Observed, Seen, VmRecord
from vmagent.core.transitions import Facts, Step

ALARMS: Mapping[str, str] = {
    "stuck": "its QEMU does not answer",
    "foreign": "a domain that is not ours has this VM's uuid",
    "paused-by-others": "paused, but not by us: it is not resumed",
    "saved-by-others": "its run was saved by somebody else",
    "started-by-others": "found running although it has ended or was never let run",
    "ran-unproven": "found running before its limits were proven: paused until they are",
    "cpu-drift": "its CPU limit was not as wanted while it ran: set again",
    "cpu-unseen": "its CPU limit cannot be read back while it runs",
    "disk-io-drift": "its disk limits were not as wanted while it ran: set again",
    "memory-drift": "its memory is not what was agreed, and cannot be changed while it runs",
    "process-left": "libvirt says it is off, but a QEMU with its uuid is alive",
}
"""What a Note's kind can be, and what it means in words."""


@dataclass(frozen=True)
class Note:
    """Something to tell people once: a security.alert and a log line."""

    kind: str  # one of ALARMS
    detail: str


def alarms(record: VmRecord, observed: Observed, facts: Facts, following: Step) -> FrozenSet[str]:
    """The conditions that hold now.  Nothing can be said about what cannot be seen: then they stay as they are."""
    seen = observed.domain.seen
    if seen is Seen.UNKNOWN:
        return frozenset(record.journal.alarms)
    found: List[Tuple[str, bool]] = [
        ("stuck", seen is Seen.STUCK),
        ("foreign", seen is Seen.FOREIGN and (following is Step.REFUSE or not facts.adopted)),
        ("saved-by-others", seen is Seen.SAVED),
        ("paused-by-others", seen is Seen.PAUSED and following is Step.REPORT),
        ("process-left", seen in (Seen.OFF, Seen.MISSING) and facts.process and facts.attempted),
    ]
    if seen is Seen.RUNNING:
        found += _running(record, observed, facts, following)
    return frozenset(kind for kind, holds in found if holds)


def _running(record: VmRecord, observed: Observed, facts: Facts, following: Step) -> List[Tuple[str, bool]]:
    held = following in (Step.HOLD, Step.SHUTDOWN)
    # vm.limits: what differs is what is being changed; of a domain made by a reboot, nobody took anything away.
    asked = record.journal.limits_before is not None or record.journal.reborn_at is not None
    differs = {one.what for one in proof.drift(record.spec, observed)} if held and not asked else set()
    readable = observed.domain.cpu is not None
    return [
        ("started-by-others", following is Step.DESTROY and (facts.ended or facts.unproven)),
        ("ran-unproven", following is Step.PAUSE and facts.unproven),
        ("cpu-drift", bool(differs & {"cpu", "weight"}) and readable),
        ("cpu-unseen", "cpu" in differs and not readable),
        ("disk-io-drift", "disk-io" in differs),
        ("memory-drift", "memory" in differs),
    ]


def fresh_notes(before: VmRecord, raised: FrozenSet[str], observed: Observed) -> Tuple[Note, ...]:
    """What is to be told now: raised, and not told yet; a limit that drifted with what was found instead."""
    return tuple(_note(kind, before, observed) for kind in sorted(raised - set(before.journal.alarms)))


def _note(kind: str, record: VmRecord, observed: Observed) -> Note:
    subject, _, drifted = kind.rpartition("-")
    found = [one.found for one in proof.drift(record.spec, observed) if drifted == "drift" and one.what == subject]
    tail = "; ".join(found) or observed.domain.reason
    return Note(kind, ALARMS[kind] + (f" ({tail})" if tail else ""))
