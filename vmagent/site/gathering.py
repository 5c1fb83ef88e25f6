"""`vmagent-site collect`: every event of the site into the book, acknowledged after the commit.

Rules
  - A frame is acknowledged when its batch is committed, and not before; what is not acknowledged comes again.  Frames
    of a link that went are forgotten: the broker has them.
  - A batch that fails because the database is away is tried again every AGAIN_S.  One that it refuses, or that shows a
    defect of ours, is taken frame by frame; what still fails is set aside, so that it does not stop the others.
  - Missing states are healed by asking that host for a snapshot (host.report), after a short random wait, for the
    missing may only be late, and then at growing intervals as long as it does not come.
  - The durable subscription, the client id and the queue of replies are the collector's own: names of the
    configuration with `.collector` behind, so that a controller with the same file loses nothing to it.
All calls on the reactor's thread; the database has a lane of its own.
"""

from __future__ import annotations

import dataclasses
import logging
from random import Random
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from vmagent.broker.client import BrokerLink, Frame, LinkState, Subscription
from vmagent.broker.profiles import PROFILES
from vmagent.errors import Fault, FaultKind
from vmagent.lanes import Lanes
from vmagent.site.book import Book, Heard
from vmagent.site.controller import EVERY_HOST, Controller, Link, OpenLink
from vmagent.site.settings import Site

log = logging.getLogger("vmagent.site")
OWN = ".collector"
BATCH = 200  # frames in one transaction
COMMIT_S = 60.0
AGAIN_S = 5.0
SETTLE_S = (1.0, 5.0)  # a hole may close by itself within
REPORT_S = 60.0  # between two requests to one host, doubling
LONGEST_REPORT_S = 900.0
REPLIES = "replies"


class Gatherer:
    """The service.  open_book: opens the database, called on the lane's thread, again after each failure."""

    def __init__(
        self,
        site: Site,
        reactor: Any,
        wall_s: Callable[[], float],
        open_book: Callable[[], Tuple[Book, Callable[[], None]]],
        random: Optional[Random] = None,
        open_link: Optional[OpenLink] = None,
    ) -> None:
        self._site = own(site)
        self._reactor = reactor
        self._wall_s = wall_s
        self._random = random or Random()
        self._open_book = open_book
        self._book: Optional[Book] = None
        self._close_book: Callable[[], None] = lambda: None
        self._lanes = Lanes("collector", 1, reactor)
        self._pending: List[Frame] = []
        self._busy = False
        self._life = 0  # of the link
        self._retry: Any = None
        self._asking: Dict[str, Any] = {}  # host -> delayed call
        self._asked: Dict[str, Tuple[float, float]] = {}  # host -> (when last, interval until the next)
        self.lacking: Tuple[str, ...] = ()
        self.heard = Heard()
        self.active_at = reactor.seconds()
        self.stopped = False
        self._controller = Controller(self._site, reactor, wall_s, self._random, self._shared)
        opened = open_link or self._broker_link
        self._link: Link = opened(self._subscriptions(), self._frame, self._state)

    # -- begin and end

    def open(self) -> Deferred[bool]:
        """Open the database; whether nothing was ever heard.  Problems and Faults as database.py says."""
        return self._lanes.run("database", COMMIT_S, self._open)

    def connect(self, anew: bool) -> Deferred[None]:
        """Connect and stay connected; fires when the subscriptions stand.  anew: ask every host for a snapshot."""
        connected = self._controller.connect()
        connected.addCallback(lambda _: self._ask(EVERY_HOST) if anew else None)
        return connected

    async def stop(self) -> None:
        """Say good-bye after the commit that is under way.  What was not acknowledged comes again."""
        if self.stopped:
            return
        self.stopped = True
        for timer in (self._retry, *self._asking.values()):
            if timer is not None and timer.active():
                timer.cancel()
        self._pending.clear()
        try:
            await self._lanes.run("database", COMMIT_S, self._shut)
        except Fault as fault:
            log.warning("the database was not closed: %s", fault)
        await self._controller.close()
        self._lanes.stop()

    @property
    def why(self) -> str:
        """What is known of the link, in words."""
        return self._controller.link.why

    @property
    def idle(self) -> bool:
        """Whether everything that came is committed and acknowledged."""
        return not self._busy and not self._pending

    # -- on the lane's thread

    def _open(self) -> bool:
        if self._book is None:
            self._book, self._close_book = self._open_book()
        return self._book.empty()

    def _shut(self) -> None:
        self._book = None
        self._close_book()
        self._close_book = lambda: None

    def _commit(self, bodies: Sequence[bytes]) -> Tuple[Heard, Tuple[str, ...]]:
        self._open()
        assert self._book is not None
        try:
            heard = self._commit_each(self._book, bodies)
            return heard, self._book.lacking()
        except Fault:
            self._shut()  # whatever is wrong with this connection, the next one is a fresh one
            raise

    def _commit_each(self, book: Book, bodies: Sequence[bytes]) -> Heard:
        try:
            return book.take(bodies)
        except Exception as error:  # noqa: BLE001 - edge: a frame that cannot be taken must not stop all others
            if isinstance(error, Fault) and error.kind is not FaultKind.REFUSED:
                raise
            if len(bodies) == 1:
                log.warning("this frame is set aside", exc_info=error)
                book.set_aside(bodies[0], f"{type(error).__name__}: {error}")
                return Heard(aside=[str(error)])
        return _sum([self._commit_each(book, [body]) for body in bodies])

    # -- the link

    def _subscriptions(self) -> Sequence[Subscription]:
        broker = self._site.broker
        return (
            Subscription(REPLIES, self._site.replies),
            Subscription(self._site.subscription, broker.events, durable=True),
            Subscription("usage", broker.usage),
            Subscription("capacity", broker.capacity),
            Subscription("telemetry", broker.telemetry),
        )

    def _broker_link(
        self, subscriptions: Sequence[Subscription], on_frame: Callable[[Frame], None],
        on_state: Callable[[LinkState], None],
    ) -> Link:
        broker = self._site.broker
        return BrokerLink(broker, PROFILES[broker.profile], self._reactor, self._wall_s, self._random, subscriptions,
                          on_frame, on_state)

    def _shared(
        self, _: Sequence[Subscription], on_frame: Callable[[Frame], None], on_state: Callable[[LinkState], None]
    ) -> Link:
        """The controller that sends our commands uses our link."""
        self._on_reply, self._on_state = on_frame, on_state
        return _Shared(self)

    def _state(self, state: LinkState) -> None:
        if not state.up:
            self._life += 1
            self._pending.clear()
        self._on_state(state)

    def _frame(self, frame: Frame) -> None:
        self.active_at = self._reactor.seconds()
        if frame.headers.get("subscription") == REPLIES:
            self._on_reply(frame)
            return
        self._pending.append(frame)
        self._pump()

    # -- batches

    def _pump(self) -> None:
        waits = self._retry is not None and self._retry.active()
        if self._busy or self.stopped or waits or not self._pending:
            return
        self._busy = True
        batch, self._pending = self._pending[:BATCH], self._pending[BATCH:]
        done = self._lanes.run("database", COMMIT_S, self._commit, [frame.body for frame in batch])
        done.addCallbacks(self._committed, self._failed, callbackArgs=(batch,), errbackArgs=(batch, self._life))
        done.addErrback(lambda failure: log.error("this is a defect", exc_info=failure.value))

    def _committed(self, outcome: Tuple[Heard, Tuple[str, ...]], batch: Sequence[Frame]) -> None:
        heard, self.lacking = outcome
        self._busy = False
        for frame in batch:
            self._link.ack(frame)
        self.active_at = self._reactor.seconds()
        self.heard = _sum([self.heard, heard])
        for why in heard.aside:
            log.warning("set aside: %s", why)
        self._heal()
        self._pump()

    def _failed(self, failure: Failure, batch: Sequence[Frame], life: int) -> None:
        self._busy = False
        if life == self._life:
            self._pending[:0] = batch
        if not isinstance(failure.value, Fault):
            failure.raiseException()
        log.warning("nothing is acknowledged, again in %g s: %s", AGAIN_S, failure.value)
        if not self.stopped:
            self._retry = self._reactor.callLater(AGAIN_S, self._again)

    def _again(self) -> None:
        self._retry = None
        self._pump()

    # -- healing

    def _heal(self) -> None:
        for host in [one for one in self._asking if one not in self.lacking]:
            timer = self._asking.pop(host)
            if timer.active():
                timer.cancel()
            log.warning("%s: nothing is missing any more", host)
        now = self._reactor.seconds()
        for host in self.lacking:
            if host not in self._asking:
                last, interval = self._asked.get(host, (float("-inf"), 0.0))
                wait = max(0.0, last + interval - now) + self._random.uniform(*SETTLE_S)
                log.warning("%s: states are missing; asked for its snapshot in %.0f s", host, wait)
                self._asking[host] = self._reactor.callLater(wait, self._ask, host)

    def _ask(self, host: str) -> None:
        now = self._reactor.seconds()
        last, interval = self._asked.get(host, (float("-inf"), 0.0))
        again = interval > 0.0 and now - last < 4 * LONGEST_REPORT_S  # long ago is another story
        interval = min(2 * interval, LONGEST_REPORT_S) if again else REPORT_S
        self._asked[host] = (now, interval)
        handle = self._controller.command(host, "host.report", {}, valid_s=interval)
        handle.done.addErrback(lambda failure: log.warning("%s does not report: %s", host, failure.value))
        if host != EVERY_HOST:
            wait = interval + self._random.uniform(*SETTLE_S)
            self._asking[host] = self._reactor.callLater(wait, self._ask, host)


class _Shared:
    """Our link as the controller sees it: it may send and acknowledge, begin and end it."""

    def __init__(self, gatherer: Gatherer) -> None:
        self._gatherer = gatherer

    def start(self) -> None:
        self._gatherer._link.start()

    def stop(self) -> Deferred[None]:
        return self._gatherer._link.stop()

    def send(self, *args: Any, **kw: Any) -> Deferred[None]:
        return self._gatherer._link.send(*args, **kw)

    def ack(self, frame: Frame) -> None:
        self._gatherer._link.ack(frame)


def own(site: Site) -> Site:
    """The same site with names that nobody else uses."""
    name = f"{site.subscription or 'vmagent.' + site.name}{OWN}"
    broker = dataclasses.replace(site.broker, client_id=name)
    return dataclasses.replace(site, broker=broker, subscription=name, replies=site.replies + OWN)


def _sum(parts: Sequence[Heard]) -> Heard:
    return Heard(sum(p.new for p in parts), sum(p.duplicates for p in parts), sum(p.healed for p in parts),
                 [why for p in parts for why in p.aside][-100:])
