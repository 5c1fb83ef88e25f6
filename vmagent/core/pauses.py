"""Whose pause it is, and who may end it.

A pause of ours has three journals (`paused_by`).  "start": not proven; such a guest found RUNNING was let run by
somebody else and is paused again.  "command": a controller's pause; before its resume the frame counters are watched
anew, because ready means a frame seen after the last resume, and the proof is made anew.  "resume": proven, and the
resume was committed; the first RUNNING seen after it clears it.

All other pauses are somebody else's, and nobody is resumed out of them; but one has no somebody: QEMU itself pauses a
guest whose disk cannot be written.  Mending that is an administrator's work, going on is a command: `vm.resume` is one
leave to resume (`resume_asked`), used up by the resume, and void as soon as it has nothing to be for.
"""

from __future__ import annotations

from vmagent.core.ending import journaled
from vmagent.core.model import Desired, DomainSeen, Journal, Seen, VmRecord

RESUMABLE = ("", "unknown", "user")
"""libvirt's reasons of a pause that can be ours; all others (ioerror, snapshot, save, dump...) are somebody else's."""
IO_ERROR = "ioerror"
BROKEN = (IO_ERROR, "crashed")


def ours(journal: Journal, domain: DomainSeen) -> bool:
    """Whether this pause may be ended by us, once all is proven."""
    if journal.resume_asked and domain.reason == IO_ERROR:
        return True
    return journal.paused_by != "" and domain.reason in RESUMABLE


def seen(record: VmRecord, domain: DomainSeen) -> VmRecord:
    """What a look at the domain settles of its pauses."""
    journal = record.journal
    if domain.seen is Seen.RUNNING:
        overruled = journal.paused_by == "command" and record.desired is Desired.RUN
        mine = "" if overruled or journal.paused_by == "resume" else journal.paused_by
        return journaled(record, paused_by=mine, resume_asked=False)
    if domain.seen is not Seen.PAUSED:
        return record
    if domain.reason != IO_ERROR:
        return journaled(record, resume_asked=False)
    if journal.paused_by == "resume":
        return journaled(record, paused_by="")  # it ran: only a guest that runs meets an error
    return record
