"""A SqliteStore with its reactor turned by hand: answers are plain values, failures are raised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support import building as b
from tests.support.lanes import HandTurned, lane
from vmagent.core.changes import Change, Epoch
from vmagent.core.model import Now
from vmagent.store.store import SqliteStore


class OpenedStore:
    """Opened when made; `close` also ends its lane."""

    def __init__(self, path: Path, now: Now = b.now(), rows: int = 100_000, bytes: int = 10**9) -> None:  # noqa: B008
        self.reactor = HandTurned()
        self.lanes = lane(self.reactor)
        self.store = SqliteStore(path, self.lanes, rows, bytes)
        self.stored = self.ask("open", now)
        self.epoch: Epoch = self.stored.epoch

    def ask(self, method: str, *args: Any) -> Any:
        return self.reactor.settle(getattr(self.store, method)(*args))

    def commit(self, *changes: Change) -> None:
        self.ask("commit", changes)

    def close(self) -> None:
        self.ask("close")
        self.lanes.stop()

    def __enter__(self) -> OpenedStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
