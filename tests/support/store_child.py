"""A process that commits until it is killed: `store_child.py PATH FIRST`.

Each commit holds one VM, one event and one setting, all with the same number; a number is printed once its commit was
acknowledged.  Three commits are always under way, so that grouped ones are hit too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.support import building as b
from tests.support.lanes import HandTurned, lane
from vmagent.core.changes import Publish, PutSetting, PutVm
from vmagent.store.store import SqliteStore


def main(path: Path, first: int) -> None:
    reactor = HandTurned()
    store = SqliteStore(path, lane(reactor), 1_000_000, 1_000_000_000)
    reactor.settle(store.open(b.now()))

    def commit(number: int) -> None:
        changes = (
            PutVm(b.record(spec={"member": number})),
            Publish("events", "t", "vm/1", b.WALL, {"n": number}),
            PutSetting("last", number),
        )
        store.commit(changes).addCallback(done, number)

    def done(_: None, number: int) -> None:
        os.write(1, f"{number}\n".encode("ascii"))
        commit(number + 3)

    for number in range(first, first + 3):
        commit(number)
    while True:
        reactor.turn()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
