"""What a commit costs: SqliteStore.commit beside a bare sqlite3 loop with the same durability (WAL, FULL).

    python -m bench.store [SECONDS] [DIRECTORY]

A commit here is one VM record, one command, one event and one reply, as an accepted start makes them; the bare loop
inserts one row of as many bytes.  Printed: the median of commits per second over rounds of SECONDS / 5 each, one commit
at a time and with 64 under way (they share transactions), and the ratios to the bare loop.
"""

from __future__ import annotations

import logging
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import List, Tuple, Union

from twisted.internet.defer import Deferred

from tests.support import building as b
from tests.support.lanes import HandTurned, lane
from vmagent.core.changes import Change, CommandRow, Publish, PutCommand, PutVm, SendReply
from vmagent.core.codec import canonical
from vmagent.store.store import SqliteStore

ROUNDS = 5  # the contenders take turns, so that a busy machine hurts all alike


def changes(number: int) -> Tuple[Change, ...]:
    record = b.record(spec={"member": number})
    command = CommandRow(
        f"command-{number}", "d" * 64, "vm.start/1", b.SIGNER, "broker", b.WALL, b.WALL, "", (record.vm,),
        "accepted", {"status": "accepted"}, b.WALL, {"cores": 1},
    )  # fmt: skip
    data = {"phase": "pending", "spec": "s" * 800}
    event = Publish("events", "org.vmagent.vm.state", f"vm/{record.vm}", b.WALL, data)
    return PutVm(record), PutCommand(command), event, SendReply("/queue/replies", {"status": "accepted"})


class Bare:
    """One INSERT of as many bytes per transaction."""

    label = "bare sqlite3, WAL, FULL"

    def __init__(self, directory: Path) -> None:
        self._connection = connection = sqlite3.connect(str(directory / "bare.db"), isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE t (row INTEGER PRIMARY KEY, data TEXT)")
        self._text = canonical(changes(0))

    def commit(self, number: int) -> int:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute("INSERT INTO t (data) VALUES (?)", (self._text,))
        self._connection.execute("COMMIT")
        return 1

    def close(self) -> None:
        self._connection.close()


class Stored:
    """SqliteStore, with so many commits under way."""

    def __init__(self, directory: Path, together: int) -> None:
        self.label = f"store, {together} commits under way"
        self._together = together
        self._reactor = HandTurned()
        self._lanes = lane(self._reactor)
        self._store = SqliteStore(directory / f"store-{together}.db", self._lanes, 10**7, 10**11)
        self._reactor.settle(self._store.open(b.now()))
        self._changes = [changes(n) for n in range(1000)]

    def commit(self, number: int) -> int:
        answers: List[Deferred[None]] = [
            self._store.commit(self._changes[(number + n) % 1000]) for n in range(self._together)
        ]
        for answer in answers:
            self._reactor.settle(answer)
        return self._together

    def close(self) -> None:
        self._reactor.settle(self._store.close())
        self._lanes.stop()


def rate(contender: Union[Bare, Stored], seconds: float) -> float:
    """Commits per second."""
    done, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        done += contender.commit(done)
    return done / (time.perf_counter() - begin)


def main(seconds: float, place: str) -> None:
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(dir=place or None) as name:
        contenders: List[Union[Bare, Stored]] = [Bare(Path(name)), Stored(Path(name), 1), Stored(Path(name), 64)]
        rounds = [[rate(contender, seconds / ROUNDS) for contender in contenders] for _ in range(ROUNDS)]
        base = statistics.median(one[0] for one in rounds)
        for number, contender in enumerate(contenders):
            found = statistics.median(one[number] for one in rounds)
            print(f"{contender.label:30s} {found:8.0f} commits/s   ratio {found / base:5.2f}")
            contender.close()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0, sys.argv[2] if len(sys.argv) > 2 else "")
