"""Frames in: one at a time, in order, acknowledged after their effect is on disk.

`take(raw, from_topic, headers)` parses, verifies, commits and replies.  It never fails but by a Fault, when the store
could not commit: then nothing is acknowledged, the same frame is held and tried again, with growing pauses, and nothing
behind it is touched, so the order holds.  There is no NACK: the brokers mean different things by it (FORMATS 9.2).

Poison never stops the queue and never comes back for ever: a frame over `max_bytes` goes to `refuse_oversized`, which
records it, and is acknowledged; a frame that is itself a reply is acknowledged and not answered; a frame on which
`take` raises anything but a Fault is a bug of ours: logged with traceback, counted, acknowledged.

When the link goes, frames that wait are forgotten: the broker hands them out again.  The one being taken is finished;
its acknowledgement comes too late, and its redelivery is found by its command id.  The queue is bounded by the
prefetch that the profile asks for.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from typing import Any, Callable, Deque, FrozenSet, Mapping, Optional, Protocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from vmagent.broker.link import Frame, LinkState
from vmagent.crashpoint import reach
from vmagent.errors import Fault

log = logging.getLogger("vmagent.broker")

KIND_HEADER = "vma-kind"
REPLY = "reply"
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0

Take = Callable[[bytes, bool, Mapping[str, str]], "Deferred[None]"]


class Acknowledges(Protocol):
    """The part of the link that is needed here."""

    def ack(self, frame: Frame) -> None: ...


class Inbox:
    """topics: ids of the subscriptions whose frames go to every host; reactor: callLater.

    `link.on_frame` is `received`, and `link.on_state` calls `link_changed`.
    """

    def __init__(
        self,
        link: Acknowledges,
        reactor: Any,
        take: Take,
        refuse_oversized: Callable[[int], Deferred[None]],
        topics: FrozenSet[str],
        max_bytes: int,
    ) -> None:
        self._link = link
        self._reactor = reactor
        self._take = take
        self._refuse_oversized = refuse_oversized
        self._topics = topics
        self._max_bytes = max_bytes
        self._waiting: Deque[Frame] = deque()
        self._current: Optional[Frame] = None
        self._retry: Any = None
        self._pause_s = FIRST_PAUSE_S
        self._stopped = False
        self.counts: Counter[str] = Counter()  # received, done, oversized, replies, retried, poison

    def received(self, frame: Frame) -> None:
        """A frame from the link."""
        self.counts["received"] += 1
        self._waiting.append(frame)
        self._next()

    def link_changed(self, state: LinkState) -> None:
        """Down: what waits here will come again."""
        if not state.up:
            self._waiting.clear()

    def stop(self) -> None:
        """Begin nothing new; what is being taken is finished by whoever takes it."""
        self._stopped = True
        self._waiting.clear()
        if self._retry is not None and self._retry.active():
            self._retry.cancel()

    def _next(self) -> None:
        if self._current is None and self._waiting and not self._stopped:
            self._current = self._waiting.popleft()
            self._try(self._current)

    def _try(self, frame: Frame) -> None:
        maybeDeferred(self._handle, frame).addCallbacks(
            self._done, self._failed, callbackArgs=(frame,), errbackArgs=(frame,)
        )

    def _handle(self, frame: Frame) -> Optional[Deferred[None]]:
        if len(frame.body) > self._max_bytes:
            return self._refuse_oversized(len(frame.body))
        if frame.headers.get(KIND_HEADER) == REPLY:
            self.counts["replies"] += 1
            return None
        return self._take(frame.body, frame.headers.get("subscription") in self._topics, frame.headers)

    def _done(self, _: object, frame: Frame) -> None:
        self.counts["oversized" if len(frame.body) > self._max_bytes else "done"] += 1
        self._finish(frame)

    def _failed(self, failure: Failure, frame: Frame) -> None:
        if not isinstance(failure.value, Fault):
            log.error("a frame of %d bytes cannot be taken: %s", len(frame.body), failure.getTraceback())
            self.counts["poison"] += 1
            self._finish(frame)
            return
        log.warning("a frame waits, not acknowledged, for %g s: %s", self._pause_s, failure.value)
        self.counts["retried"] += 1
        if not self._stopped:
            self._retry = self._reactor.callLater(self._pause_s, self._try, frame)
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _finish(self, frame: Frame) -> None:
        self._pause_s = FIRST_PAUSE_S
        self._current = None
        self._link.ack(frame)
        reach("acked")
        self._next()
