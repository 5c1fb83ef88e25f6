"""The table: what is desired x what is observed -> the next step (DESIGN 6).

`TABLE` has one step for each of the 40 cells.  The numbered notes of the design refine a cell by `Facts`, in `NOTES`: a
step that stands there is looked up once more with the facts; every other step is final.  `step` is total.

Theory.  At most once (note 1) makes OFF and MISSING of a VM that may have run an END, whatever is desired; only after
its outcome is written down does the rest of the row apply.  Nothing is concluded from a MISSING that was seen once (but
for the definition of what was never started, which harms nobody), nor while a QEMU with this uuid is alive although
libvirt knows of none.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import Callable, Mapping, Tuple

from vmagent.core.model import Desired, Seen


class Step(str, Enum):
    """Every step there is."""

    REST = "rest"  # as desired: "-"
    WAIT = "wait"  # something must be seen first
    REPORT = "report"  # told once, not touched
    REFUSE = "refuse"  # not ours: told once, never touched
    DEFINE = "define"
    START = "start"  # always paused: nothing runs before it is proven
    DISCARD = "discard"  # a saved run
    HOLD = "hold"  # limits, tag, a reboot that is owed
    PROVE = "prove"  # paused by us, a limit is not yet as wanted
    RESUME = "resume"  # paused by us, all limits read back
    PAUSE = "pause"
    SHUTDOWN = "shutdown"
    STOP_PAUSED = "stop-paused"  # note 4; never a final step
    DESTROY = "destroy"
    UNDEFINE = "undefine"
    CLEAN_UP = "clean-up"
    CLOSE = "close"
    END = "end"  # write down how it ended
    RENEW = "renew"  # nothing is left of this incarnation: the next one begins
    CLAIM = "claim"  # adopted: the tag is put into a domain that has none
    UNTAG = "untag"  # adopted: the tag is taken away, and nothing else


@dataclass(frozen=True)
class Facts:
    """The notes' conditions.  Which note each serves stands in brackets."""

    has_run: bool = False  # (1) the journal says it may have run
    ended: bool = False  # (1) its outcome is written down
    missing_twice: bool = True  # (5) over a healthy connection
    process: bool = False  # (1, 5) a QEMU with this uuid is alive
    unproven: bool = False  # (1) RUNNING without our resume
    paused_by_us: bool = False  # (2) by the journal and by libvirt's reason
    proven: bool = False  # (2, 4) every limit just read back is as wanted
    io_error: bool = False  # (4) paused by an I/O error or a crash
    grace_over: bool = False  # (3)
    left: bool = False  # (5) overlay, seed, rules or interface are still there
    attempted: bool = False  # (1) a start was committed once
    renew: bool = False  # (6) a fresh incarnation is wanted
    held: bool = False  # (6) not yet
    adopted: bool = False  # (7) it ran before it was ours
    unclaimed: bool = False  # (7) its tag was never there, and there is no other one


_Cells = Mapping[Tuple[Desired, Seen], Step]


def _row(desired: Desired, *steps: Step) -> _Cells:
    return {(desired, seen): step for seen, step in zip(Seen, steps)}


_S = Step
TABLE: _Cells = {
    # MISSING, OFF, SAVED, RUNNING, PAUSED, STOPPING, CRASHED, STUCK, FOREIGN, UNKNOWN
    **_row(Desired.RUN, _S.DEFINE, _S.START, _S.DISCARD, _S.HOLD, _S.RESUME,
           _S.WAIT, _S.DESTROY, _S.REPORT, _S.REFUSE, _S.WAIT),
    **_row(Desired.PAUSED, _S.DEFINE, _S.START, _S.REST, _S.PAUSE, _S.REST,
           _S.WAIT, _S.DESTROY, _S.REPORT, _S.REFUSE, _S.WAIT),
    **_row(Desired.STOP, _S.REST, _S.REST, _S.DISCARD, _S.SHUTDOWN, _S.STOP_PAUSED,
           _S.WAIT, _S.DESTROY, _S.DESTROY, _S.REFUSE, _S.WAIT),
    **_row(Desired.ABSENT, _S.CLEAN_UP, _S.UNDEFINE, _S.DISCARD, _S.DESTROY, _S.DESTROY,
           _S.DESTROY, _S.DESTROY, _S.DESTROY, _S.REFUSE, _S.WAIT),
}  # fmt: skip


def _gone(desired: Desired, seen: Seen, facts: Facts) -> Step:
    """OFF and MISSING, notes 1 and 5."""
    cell = TABLE[desired, seen]
    once = seen is Seen.MISSING and not facts.missing_twice
    harmless = cell is Step.DEFINE and not facts.attempted and not facts.has_run
    if facts.process or (once and not harmless):
        return Step.WAIT
    if not facts.ended and (facts.has_run or desired in (Desired.STOP, Desired.ABSENT)):
        return Step.END
    if facts.ended and cell in (Step.DEFINE, Step.START):
        return Step.REST
    if cell is Step.CLEAN_UP and not facts.left:
        return Step.CLOSE
    return cell


def _running(desired: Desired, seen: Seen, facts: Facts) -> Step:
    """RUNNING, notes 1 and 3: a guest that we did not let run is suspended until proven; an ended one must not run."""
    cell = TABLE[desired, seen]
    if facts.ended:
        return Step.DESTROY
    if cell is Step.SHUTDOWN and (facts.unproven or facts.grace_over):
        return Step.DESTROY
    if cell is Step.HOLD and facts.unproven:
        return Step.PAUSE
    return cell


def _paused(desired: Desired, seen: Seen, facts: Facts) -> Step:
    """PAUSED, notes 2 and 4."""
    cell = TABLE[desired, seen]
    if facts.ended:
        return Step.DESTROY
    if cell is Step.STOP_PAUSED:
        mendable = facts.has_run and facts.proven and not facts.io_error and not facts.grace_over
        return Step.RESUME if mendable else Step.DESTROY
    if cell is Step.RESUME:
        if not facts.paused_by_us:
            return Step.REPORT
        return Step.RESUME if facts.proven else Step.PROVE
    return cell


def _stopping(desired: Desired, seen: Seen, facts: Facts) -> Step:
    """STOPPING, note 3: waiting has an end once a stop is wanted."""
    cell = TABLE[desired, seen]
    over = desired is Desired.STOP and (facts.grace_over or facts.ended)
    return Step.DESTROY if over else cell


def _foreign(desired: Desired, seen: Seen, facts: Facts) -> Step:
    """FOREIGN: never touched; a wish that never began over it is over once written down, and leaves nothing of ours."""
    if facts.attempted or facts.has_run:
        return Step.REFUSE
    if not facts.ended:
        return Step.END
    return Step.CLOSE if desired is Desired.ABSENT and not facts.left else Step.REFUSE


def _renewing(seen: Seen, facts: Facts) -> Step:
    """Note 6: this incarnation is ended as if STOP were desired; definition and files go, then the next one begins."""
    if seen not in (Seen.MISSING, Seen.OFF):
        return step(Desired.STOP, seen, dataclasses.replace(facts, renew=False))
    if facts.process or (seen is Seen.MISSING and not facts.missing_twice):
        return Step.WAIT
    if seen is Seen.OFF:
        return Step.UNDEFINE
    if facts.left:
        return Step.CLEAN_UP
    return Step.WAIT if facts.held else Step.RENEW


NOTES: Mapping[Seen, Callable[[Desired, Seen, Facts], Step]] = {
    Seen.MISSING: _gone,
    Seen.OFF: _gone,
    Seen.RUNNING: _running,
    Seen.PAUSED: _paused,
    Seen.STOPPING: _stopping,
    Seen.FOREIGN: _foreign,
}


def _adopted(desired: Desired, seen: Seen, facts: Facts) -> Step:
    """Note 7: it is held and ended as any other, but nothing is made of it and nothing removed: what others made stays.

    Once its outcome is written down it is theirs again, running or not: all that is taken away is our tag.
    """
    if facts.ended:
        return _GIVEN_BACK.get(seen, Step.UNTAG) if seen is not Seen.MISSING or _proven_gone(facts) else Step.WAIT
    if seen is Seen.FOREIGN:
        return Step.CLAIM if facts.unclaimed else Step.REFUSE
    at = Seen.OFF if seen is Seen.SAVED else seen  # whoever saved it may restore it, as theirs
    ours = dataclasses.replace(facts, adopted=False, has_run=True, unproven=False, left=False, renew=False)
    return step(desired, at, ours)


_GIVEN_BACK = {Seen.MISSING: Step.CLOSE, Seen.FOREIGN: Step.CLOSE, Seen.UNKNOWN: Step.WAIT, Seen.STUCK: Step.REPORT}


def _proven_gone(facts: Facts) -> bool:
    return facts.missing_twice and not facts.process


def step(desired: Desired, seen: Seen, facts: Facts) -> Step:
    """The next step of one VM.  Total; never STOP_PAUSED."""
    if facts.adopted:
        return _adopted(desired, seen, facts)
    if facts.renew and not facts.ended and desired in (Desired.RUN, Desired.PAUSED):
        return _renewing(seen, facts)
    note = NOTES.get(seen)
    return TABLE[desired, seen] if note is None else note(desired, seen, facts)
