"""Which life of the store this is.

An epoch ends when the store may have forgotten something it once knew: its sequences begin again, and commands issued
before its birth are refused.  `verdict` is the whole decision; everything doubtful is a new epoch, since a needless one
costs a controller some retries and a missed one runs commands twice.

Numbers grow per host, whatever was lost: a new one is above every number still known and not below the seconds since
1970, so that even a host installed anew is newer than its former self in the eyes of a collector.
"""

from __future__ import annotations

import sqlite3
import uuid
from dataclasses import dataclass
from typing import Optional

from vmagent.core import walltime
from vmagent.core.changes import Epoch
from vmagent.core.model import Now
from vmagent.store.marker import Mark


@dataclass
class Life:
    """The current epoch and its count of commits; lives in the store's thread."""

    epoch: Epoch
    commits: int

    @property
    def mark(self) -> Mark:
        return Mark(self.epoch.id, self.epoch.number, self.commits)


def verdict(life: Optional[Life], mark: Optional[Mark], damaged: bool) -> Optional[str]:
    """Why a new epoch must begin, or None.  life: what the database says; mark, damaged: the marker."""
    if life is None:
        return "lost" if mark is not None or damaged else "first"
    if mark is None or damaged or mark.epoch != life.epoch.id or mark.commits > life.commits:
        return "restored"
    return None


def current(connection: sqlite3.Connection) -> Optional[Life]:
    """The newest epoch in the file; None when there is none."""
    row = connection.execute(
        "SELECT id, number, born_wall, cause, set_aside, commits FROM epochs ORDER BY number DESC LIMIT 1"
    ).fetchone()
    return None if row is None else Life(Epoch(*row[:5]), row[5])


def begin(
    connection: sqlite3.Connection, now: Now, cause: str, set_aside: str, life: Optional[Life], mark: Optional[Mark]
) -> Life:
    """A new epoch, inside the caller's transaction."""
    known = max(life.epoch.number if life else 0, mark.number if mark else 0)
    number = max(known + 1, int(walltime.seconds(now.wall)))
    epoch = Epoch(str(uuid.uuid4()), number, now.wall, cause, set_aside)
    connection.execute("INSERT INTO epochs VALUES (?, ?, ?, ?, ?, 0)", (number, epoch.id, now.wall, cause, set_aside))
    return Life(epoch, 0)
