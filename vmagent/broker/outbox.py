"""Rows out: what the store holds is sent in order, and leaves the store only on the broker's receipt.

Rules
  - At least once: a row without a receipt is sent again, after a new link from the oldest on.  The same row always
    has the same body and `vma-id`, so readers drop duplicates.
  - In order: rows are read oldest first and handed to the link in that order; at most `window` are under way.
  - A receipt first, the store second: rows whose receipt came while the store cannot forget them are kept in mind and
    not sent again by this process; after a crash they are, which their readers can tell.
  - A row that the broker itself refuses must not stop the others, for every ERROR costs the link, and not every broker
    says what its ERROR is about.  So rows that were under way when a link went are *suspects*, sent one by one on the
    next: an ERROR is then about that one.  Refused twice, a reply to a place that cannot be goes to the site's own
    replies destination instead; any other row is set aside and tried again later.  Nothing is dropped.
  - A row that cannot be rendered is a bug of ours: logged with traceback, counted, left in the store, passed over until
    the next link.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, Callable, Dict, List, Mapping, Optional, Protocol, Sequence, Set, Tuple

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from vmagent.broker.inbox import KIND_HEADER, REPLY
from vmagent.broker.link import LinkState
from vmagent.core.changes import OutboxRow
from vmagent.crashpoint import reach
from vmagent.errors import Fault, FaultKind

log = logging.getLogger("vmagent.broker")

REPLIES = "replies"  # the stream whose rows carry their own destination
EXPIRY_S: Mapping[str, float] = {"capacity": 300.0, "telemetry": 300.0}  # streams that are worthless when old
AGAIN_S = 2.0  # after the store failed
ASIDE_S = 60.0  # until a refused row is tried again
REFUSALS = 2  # an ERROR may come by chance while a row is under way, hardly twice


class Rows(Protocol):
    """The part of ports.Store that is needed here."""

    def outbox(self, after: int, limit: int) -> Deferred[Tuple[OutboxRow, ...]]: ...

    def delivered(self, rows: Sequence[int]) -> Deferred[None]: ...


class Sends(Protocol):
    """The part of the link that is needed here."""

    def send(
        self, destination: str, body: bytes, headers: Mapping[str, str], expires_s: Optional[float] = None
    ) -> Deferred[None]: ...

    def state(self) -> LinkState: ...


class Outbox:
    """Implements ports.Outbox.  `link.on_state` calls `link_changed`; `wake` says that something was committed.

    source: `//site/host`, as in the events; destinations: stream -> destination, with "replies" for the default one;
    render(row): the body's bytes, the same every time; window: rows under way; reactor: callLater, seconds.
    """

    def __init__(
        self,
        store: Rows,
        link: Sends,
        reactor: Any,
        source: str,
        destinations: Mapping[str, str],
        render: Callable[[OutboxRow], bytes],
        window: int,
    ) -> None:
        self._store = store
        self._link = link
        self._reactor = reactor
        self._source = source
        self._destinations = destinations
        self._render = render
        self._window = window
        self._life = 0  # of the link; what belongs to an earlier one is not listened to
        self._cursor = 0  # last row handed to the link in this life
        self._more = True  # rows above the cursor may be there
        self._reading = False
        self._flight: Set[int] = set()
        self._suspects: Set[int] = set()  # under way when a link went
        self._refusals: Counter[int] = Counter()
        self._receipted: Set[int] = set()  # not forgotten by the store yet
        self._forgetting = False
        self._aside: Set[int] = set()  # refused by the broker
        self._diverted: Set[int] = set()  # replies that go to the default destination
        self._timers: Dict[str, Any] = {}
        self.counts: Counter[str] = Counter()  # sent, receipted, refused, unrendered
        self.published_at: Optional[float] = None  # of the last receipt, on the reactor's clock

    def wake(self) -> None:
        self._more = True
        self._pump()

    def link_changed(self, state: LinkState) -> None:
        """Down: what has no receipt is sent again from the oldest on, when the link is up."""
        if state.up:
            self._pump()
        else:
            self._restart()

    def stop(self) -> None:
        """Send nothing more; what is in the store stays there."""
        self._restart()
        self._window = 0
        for timer in self._timers.values():
            if timer.active():
                timer.cancel()

    def _restart(self) -> None:
        self._life += 1
        self._cursor, self._more, self._reading = 0, True, False
        self._suspects |= self._flight
        self._flight.clear()

    # reading and sending

    def _pump(self) -> None:
        window = min(1, self._window) if self._suspects else self._window
        room = window - len(self._flight)
        worth_it = not self._flight or 4 * room >= window  # few rows per read cost the store more than the wait
        if room > 0 and worth_it and self._more and not self._reading and self._link.state().up:
            self._reading, self._more = True, False
            reading = self._store.outbox(self._cursor, room)
            reading.addCallbacks(
                self._read, self._unread, callbackArgs=(self._life, room), errbackArgs=(self._life,)
            )

    def _read(self, rows: Sequence[OutboxRow], life: int, asked: int) -> None:
        """`_reading` holds until the last one is sent: a receipt in between must not start rows behind them."""
        self._more = self._more or len(rows) >= asked
        for row in rows:
            if life != self._life:
                return
            self._cursor = row.row
            if not any(row.row in known for known in (self._flight, self._receipted, self._aside)):
                self._send(row)
        if life == self._life:
            self._reading = False
            if not self._more and not self._flight:
                self._suspects.clear()  # the store has none of them any more
            self._pump()

    def _unread(self, failure: Failure, life: int) -> None:
        if life == self._life:
            log.warning("the outbox cannot be read, again in %g s: %s", AGAIN_S, _told(failure))
            self._reading = False
            self._later("read", AGAIN_S, self._again)

    def _send(self, row: OutboxRow) -> None:
        try:
            body = self._render(row)
        except Exception:  # noqa: BLE001 - the edge of the sending loop: one bad row must not stop all others
            log.exception("row %d (%s) cannot be rendered", row.row, row.type)
            self.counts["unrendered"] += 1
            return
        self._flight.add(row.row)
        self.counts["sent"] += 1
        sending = self._link.send(self._destination(row), body, self._headers(row), EXPIRY_S.get(row.stream))
        reach("sent")
        about = (row, self._life)
        sending.addCallbacks(self._sent, self._unsent, callbackArgs=about, errbackArgs=about)

    def _destination(self, row: OutboxRow) -> str:
        if row.stream == REPLIES and row.row not in self._diverted:
            return row.destination or self._destinations[REPLIES]
        return self._destinations[row.stream]

    def _headers(self, row: OutboxRow) -> Mapping[str, str]:
        """Hints for brokers and people; the body says it all."""
        reply = row.stream == REPLIES
        number = row.row if reply else row.sequence
        return {
            "content-type": "application/json" if reply else "application/cloudevents+json",
            "vma-id": f"{row.epoch}-{row.stream}-{number:012d}",
            "vma-source": self._source,
            KIND_HEADER: REPLY if reply else row.type,
        }

    # what became of it

    def _sent(self, _: object, row: OutboxRow, life: int) -> None:
        """A receipt counts, of whatever life."""
        reach("receipted")
        self._receipted.add(row.row)
        self.counts["receipted"] += 1
        self.published_at = self._reactor.seconds()
        for about in (self._diverted, self._suspects):
            about.discard(row.row)
        self._refusals.pop(row.row, None)
        if life == self._life:
            self._flight.discard(row.row)
        self._forget()
        self._pump()

    def _unsent(self, failure: Failure, row: OutboxRow, life: int) -> None:
        fault = failure.value
        if isinstance(fault, Fault) and fault.kind is FaultKind.REFUSED:
            self._refused(row, fault)
        if life == self._life:  # the link lives, but not for this one
            log.warning("row %d is sent again in %g s: %s", row.row, AGAIN_S, _told(failure))
            self._flight.discard(row.row)
            self._later("read", AGAIN_S, self._again)

    def _again(self) -> None:
        """From the oldest on, without those that are under way."""
        self._cursor = 0
        self.wake()

    def _refused(self, row: OutboxRow, fault: Fault) -> None:
        self.counts["refused"] += 1
        self._refusals[row.row] += 1
        destination = self._destination(row)
        log.error("the broker refuses row %d to %s: %s", row.row, destination, fault.detail)
        if self._refusals[row.row] < REFUSALS:
            return
        del self._refusals[row.row]
        self._suspects.discard(row.row)
        if row.stream == REPLIES and destination != self._destinations[REPLIES]:
            self._diverted.add(row.row)
        else:
            self._aside.add(row.row)
            self._later("aside", ASIDE_S, self._bring_back)

    def _bring_back(self) -> None:
        self._aside.clear()
        self._again()

    def _forget(self) -> None:
        """Tell the store, one batch at a time."""
        if self._receipted and not self._forgetting:
            self._forgetting = True
            rows = sorted(self._receipted)
            self._store.delivered(rows).addCallbacks(self._forgotten, self._unforgotten, callbackArgs=(rows,))

    def _forgotten(self, _: object, rows: List[int]) -> None:
        self._forgetting = False
        self._receipted.difference_update(rows)
        self._forget()

    def _unforgotten(self, failure: Failure) -> None:
        self._forgetting = False
        log.warning("delivered rows stay in the store, again in %g s: %s", AGAIN_S, _told(failure))
        self._later("forget", AGAIN_S, self._forget)

    def _later(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        """At most one of each name."""
        timer = self._timers.get(name)
        if timer is None or not timer.active():
            self._timers[name] = self._reactor.callLater(seconds, call)


def _told(failure: Failure) -> str:
    """A Fault in a word; anything else is a bug and is told whole."""
    return str(failure.value) if isinstance(failure.value, Fault) else failure.getTraceback()
