"""When what runs here will have ended, as far as anybody knows: the host at a later time (R9, M12).

Rules: only what is certain counts.  A lease that runs ends, a VM that is being stopped ends; one that has not run yet,
cannot be seen or is stuck may be here for ever.  A kept disk goes when its time is over.
"""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from vmagent.core import lease, renewal
from vmagent.core.model import Desired, Now, Outcome, Phase, VmRecord
from vmagent.core.room import DESCRIPTORS, TASKS, HostRoom


def left_s(record: VmRecord, now: Now) -> Optional[int]:
    """Seconds of lease left, not below 0; None before the first resume and after the end."""
    end = lease.ends_at(record)
    if end is None or record.outcome is not None or lease.run_boot(record.journal) != now.boot_id:
        return None
    return max(0, round(end - now.at))


def ends_in_s(record: VmRecord, phase: Phase, now: Now) -> Tuple[Optional[int], str]:
    """(seconds until it has ended, None = cannot be told; why)."""
    journal = record.journal
    if phase is Phase.STUCK:
        return None, "its QEMU is stuck: a kill may not work"
    if phase is Phase.UNKNOWN:
        return None, "it cannot be seen now"
    stopping = journal.stop_at is not None and journal.stop_boot == now.boot_id
    if stopping and not renewal.wanted(record):  # a restart stops it, too
        return max(0, round(lease.destroy_at(record) - now.at)), "it is being stopped"
    left = left_s(record, now)
    if left is None:
        return None, "it has not run yet: its lease begins with its first run"
    return left, "its lease ends then"


def later(
    records: Sequence[VmRecord], phases: Mapping[str, Phase], now: Now, in_s: float, room: HostRoom
) -> Tuple[List[VmRecord], HostRoom]:
    """The wishes that will be left in `in_s` seconds, and the host with what the ended ones give back.

    phases: by VM id; one that is missing cannot be seen.
    """
    kept: List[VmRecord] = []
    gone: List[VmRecord] = []
    for record in records:
        over = _over_at(record, phases.get(record.vm, Phase.UNKNOWN), now)
        if over is None or over > in_s:
            kept.append(record)
            continue
        if record.outcome is None:
            gone.append(record)
        if over + record.spec.keep_s > in_s:
            kept.append(dataclasses.replace(record, outcome=record.outcome or Outcome.EXPIRED))
    return kept, _given_back(room, gone)


def _over_at(record: VmRecord, phase: Phase, now: Now) -> Optional[float]:
    """Seconds from now at which it has ended; below 0 when it has; None = cannot be told."""
    if record.outcome is None:
        return ends_in_s(record, phase, now)[0]
    journal = record.journal
    if record.desired is Desired.ABSENT or journal.ended_at is None or not journal.may_have_run:
        return -float(record.spec.keep_s)  # whatever is left of it is being removed
    return -lease.elapsed(journal.ended_at, journal.ended_boot, now)


def _given_back(room: HostRoom, gone: Sequence[VmRecord]) -> HostRoom:
    """With what the kernel counts for guests that run now and will not then."""
    ran = [record.spec for record in gone if record.journal.may_have_run]
    ports: Dict[str, int] = dict(room.ports_free)
    for interface in (one for spec in ran for one in spec.interfaces if one.bridge in ports):
        ports[interface.bridge] += 1
    return dataclasses.replace(
        room, ports_free=ports,
        descriptors_free=None if room.descriptors_free is None else room.descriptors_free + DESCRIPTORS * len(ran),
        tasks_free=None if room.tasks_free is None else room.tasks_free + sum(TASKS + spec.cores for spec in ran),
    )  # fmt: skip
