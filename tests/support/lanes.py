"""A reactor whose turns the test makes: time by Clock, calls from threads drained on demand."""

from __future__ import annotations

from queue import Empty, Queue
from typing import Any, Callable, List, Tuple

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from vmagent.lanes import Lanes


class HandTurned(Clock):
    """`task.Clock` that also keeps what threads hand over until the test lets it in."""

    def __init__(self) -> None:
        super().__init__()
        self._handed: Queue[Tuple[Callable[..., Any], Tuple[Any, ...]]] = Queue()

    def callFromThread(self, call: Callable[..., Any], *args: Any) -> None:
        self._handed.put((call, args))

    def handed_over(self) -> bool:
        """Whether a thread's call waits for the next turn."""
        return not self._handed.empty()

    def turn(self, seconds: float = 20.0) -> None:
        """Wait for one call from a thread and make it."""
        try:
            call, args = self._handed.get(timeout=seconds)
        except Empty:
            raise AssertionError(f"no thread handed anything over within {seconds} s") from None
        call(*args)

    def settle(self, answer: Deferred[Any], seconds: float = 20.0) -> Any:
        """The result of `answer`, turning until it is there; its failure is raised."""
        got: List[Any] = []
        answer.addBoth(got.append)
        while not got:
            self.turn(seconds)
        if isinstance(got[0], Failure):
            got[0].raiseException()
        return got[0]


def lane(reactor: HandTurned, name: str = "test") -> Lanes:
    """One thread, as a store wants it."""
    return Lanes(name, 1, reactor)
