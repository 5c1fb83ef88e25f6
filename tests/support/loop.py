"""A reactor's clock and door for threaded tests: timers in real time, everything on the test's own thread."""

from __future__ import annotations

import queue
import time
from typing import Any, Callable, Tuple, TypeVar

from twisted.internet import task

T = TypeVar("T")


class RealLoop(task.Clock):  # type: ignore[misc,unused-ignore]
    """callLater, seconds, callFromThread; turns only while a test waits in `until`."""

    def __init__(self) -> None:
        super().__init__()
        # Not a SimpleQueue: up to Python 3.12 its get() with a time-out that runs out half-way waits for ever.
        self._calls: queue.Queue[Tuple[Callable[..., Any], Tuple[Any, ...]]] = queue.Queue()

    def seconds(self) -> float:
        """Goes on while the test does something else: a deadline must not begin in the past."""
        return time.monotonic()

    def callFromThread(self, call: Callable[..., Any], *args: Any) -> None:  # noqa: N802 - Twisted's name
        self._calls.put((call, args))

    def turn(self, wait_s: float = 0.02) -> None:
        """Run what threads handed in and what is due; wait no longer than until something is."""
        due = min((call.getTime() for call in self.calls), default=float("inf")) - time.monotonic()
        try:
            call, args = self._calls.get(timeout=max(0.0, min(wait_s, due)))
            call(*args)
            while not self._calls.empty():
                call, args = self._calls.get()
                call(*args)
        except queue.Empty:
            pass
        self.advance(0.0)

    def until(self, condition: Callable[[], T], seconds: float = 20.0, what: str = "") -> T:
        """The first true value of `condition()`; AssertionError after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s: {what or condition}")
            self.turn()

    def idle(self, seconds: float) -> None:
        """Let real time pass, where only its passing can show something (expiry, silence)."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end, 2 * seconds + 5)

    def result(self, deferred: Any, seconds: float = 20.0) -> Any:
        """What a Deferred fires with; raises what it fails with."""
        fired: list[Any] = []
        deferred.addBoth(fired.append)
        self.until(lambda: fired, seconds, "a Deferred")
        if hasattr(fired[0], "raiseException"):
            fired[0].raiseException()
        return fired[0]
