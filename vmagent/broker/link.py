"""One wish, "be connected", held against a broker that comes and goes: the reactor's side of the link.

Rules
  - Nothing here blocks and nothing here knows stomp.py: one *session* (one TCP connection with its owner thread, see
    client.py) lives at a time; when it is lost it is cut and forgotten, and its late reports are not listened to.
  - Every frame that matters (SEND, ACK, SUBSCRIBE, DISCONNECT) asks for a receipt.  A receipt that is not there within
    `receipt_s` means a dead link, whatever TCP says (FACTS F7).  The second detector is the heart-beat: when the
    broker promised some, three periods of silence mean the same.
  - At most `window` SENDs are under way; the next wait here.  When the link goes, all of them fail at once.
  - The link is *up* when the broker has confirmed every subscription.
  - Reconnecting waits a random part (full jitter, the first time too) of a time that doubles up to `reconnect_max_s`.
    It starts small again only after a link that stayed up for STEADY_S, so a broker that accepts and then throws us
    out is not hammered.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import Any, Callable, Deque, Dict, List, Mapping, Optional, Protocol, Sequence

from twisted.internet.defer import Deferred, fail, succeed

from vmagent.broker.profiles import Profile
from vmagent.config import BrokerSettings
from vmagent.errors import Fault, FaultKind

log = logging.getLogger("vmagent.broker")

FIRST_RETRY_S = 2.0
STEADY_S = 30.0
GOODBYE_S = 5.0  # for the broker to confirm our DISCONNECT
SILENT_PERIODS = 3
MOST_WAITING = 10_000  # SENDs beyond the window


@dataclass(frozen=True)
class Subscription:
    """Where frames come from.  The id of a durable one is its name at the broker, so it must be unique per host."""

    id: str
    destination: str
    durable: bool = False


@dataclass(frozen=True)
class Frame:
    """A MESSAGE.  Headers are hints, never trusted.  `token` is the link's own business."""

    destination: str
    headers: Mapping[str, str]
    body: bytes
    token: object = None


@dataclass(frozen=True)
class LinkState:
    """What is known of the link.  since: when `up` last changed, on the reactor's clock; failures: in a row."""

    up: bool = False
    url: str = ""
    since: float = 0.0
    why: str = "not started"
    failures: int = 0


class Session(Protocol):
    """One connection.  No method blocks; after `cut` nothing more is sent."""

    def open(self) -> None: ...

    def post(self, command: str, headers: Mapping[str, str], body: bytes = b"") -> None: ...

    def cut(self) -> None: ...


class Events(Protocol):
    """What a session reports, on the reactor."""

    def connected(self, session: Session, headers: Mapping[str, str]) -> None: ...

    def heard(self, session: Session) -> None: ...

    def message(self, session: Session, headers: Mapping[str, str], body: bytes) -> None: ...

    def receipt(self, session: Session, id: str) -> None: ...

    def error(self, session: Session, receipt: str, text: str) -> None: ...

    def lost(self, session: Session, why: str) -> None: ...


@dataclass
class _Sending:
    """A SEND, waiting or under way."""

    destination: str
    body: bytes
    headers: Mapping[str, str]
    expires_s: Optional[float]
    done: Deferred[None] = field(default_factory=Deferred)


@dataclass
class _Owed:
    """A receipt that the broker owes us."""

    what: str
    deadline: Any
    on_receipt: Callable[[], None]
    sending: Optional[_Sending] = None


class Link:
    """Connects, keeps, subscribes, sends, acknowledges.  All calls and callbacks on the reactor's thread.

    on_frame(frame): a message came; acknowledge it when its effect is on disk.  on_state(state): something changed.
    wall_s() is the wall clock (absolute expiry headers); reactor has callLater and seconds.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        profile: Profile,
        reactor: Any,
        wall_s: Callable[[], float],
        random: Random,
        subscriptions: Sequence[Subscription],
        on_frame: Callable[[Frame], None],
        on_state: Callable[[LinkState], None],
        open_session: Callable[[str, Events], Session],
    ) -> None:
        self._settings = settings
        self._profile = profile
        self._reactor = reactor
        self._wall_s = wall_s
        self._random = random
        self._subscriptions = tuple(subscriptions)
        self._on_frame = on_frame
        self._on_state = on_state
        self._open_session = open_session
        self._state = LinkState(since=reactor.seconds())
        self._session: Optional[Session] = None
        self._timers: Dict[str, Any] = {}  # "retry" | "attempt" | "watch" -> delayed call
        self._owed: Dict[str, _Owed] = {}  # receipt id -> what it is for
        self._waiting: Deque[_Sending] = deque()
        self._last_receipt = 0
        self._urls: List[str] = []
        self._silent = 0
        self._stopped: Optional[Deferred[None]] = None

    # what the others call

    def start(self) -> None:
        """Connect now, and again whenever the link is lost, until `stop`."""
        self._attempt()

    def stop(self) -> Deferred[None]:
        """Say good-bye, at most GOODBYE_S long.  Everything under way fails with AWAY; the broker redelivers."""
        if self._stopped is not None:
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        self._stopped = stopped
        polite = self._state.up
        self._change(up=False, why="stopped")
        self._fail_all(Fault(FaultKind.AWAY, "the agent stops"))
        self._cancel("retry", "attempt", "watch")
        if self._session is None or not polite:
            self._end()
        else:
            self._timers["attempt"] = self._reactor.callLater(GOODBYE_S, self._end)
            self._post("DISCONNECT", {}, self._end)
        return stopped

    def renew(self, why: str) -> None:
        """Lose a link that is up: the next one reads the files of TLS anew, and what was under way is sent again."""
        if self._state.up:
            self._lose(why)

    def state(self) -> LinkState:
        return self._state

    def send(
        self, destination: str, body: bytes, headers: Mapping[str, str], expires_s: Optional[float] = None
    ) -> Deferred[None]:
        """Fires when the broker has *processed* it.

        Faults: AWAY (no link, or it went), UNKNOWN (no receipt in time), REFUSED (the broker's ERROR is about this very
        frame), BUSY (too many wait).  After each of them the message may still have arrived.
        """
        if not self._state.up:
            return fail(Fault(FaultKind.AWAY, f"no link to the broker: {self._state.why}"))
        if len(self._waiting) >= MOST_WAITING:
            return fail(Fault(FaultKind.BUSY, f"{MOST_WAITING} messages wait for the broker already"))
        sending = _Sending(destination, body, headers, expires_s)
        self._waiting.append(sending)
        self._fill()
        return sending.done

    def ack(self, frame: Frame) -> None:
        """The frame's effect is on disk.  A frame of an earlier session is left to the broker's redelivery."""
        session = frame.token
        if session is not None and session is self._session and self._stopped is None:
            self._post("ACK", _ack_headers(frame.headers))

    # connecting

    def _attempt(self) -> None:
        if not self._urls:
            self._urls = self._random.sample(self._settings.urls, len(self._settings.urls))
        url = self._urls.pop()
        self._timers["attempt"] = self._reactor.callLater(
            2 * self._settings.receipt_s, self._lose, "no CONNECTED in time"
        )
        self._session = self._open_session(url, self)
        self._session.open()
        self._change(url=url)

    def connected(self, session: Session, headers: Mapping[str, str]) -> None:
        if session is not self._session or self._stopped is not None:
            return
        self._cancel("attempt")
        self._watch(headers.get("heart-beat", "0,0"))
        for subscription in self._subscriptions:
            self._post("SUBSCRIBE", self._subscribe_headers(subscription), self._subscribed)
        self._subscribed()

    def _subscribe_headers(self, subscription: Subscription) -> Dict[str, str]:
        return self._profile.subscribe_headers(
            subscription.destination,
            subscription.id,
            subscription.durable,
            self._settings.client_id,
            self._settings.max_command_kib * 1024,
        )

    def _subscribed(self) -> None:
        if not any(owed.what == "SUBSCRIBE" for owed in self._owed.values()):
            self._change(up=True, why="connected")

    def _watch(self, promise: str) -> None:
        """Count the periods in which nothing is heard, if the broker promised heart-beats."""
        period_s = _promised_s(promise, self._settings.heartbeat_s)
        self._silent = 0
        if period_s > 0:
            self._timers["watch"] = self._reactor.callLater(period_s, self._tick, period_s)

    def _tick(self, period_s: float) -> None:
        self._silent += 1
        if self._silent > SILENT_PERIODS:
            self._lose(f"the broker was silent for {SILENT_PERIODS} heart-beats")
        else:
            self._timers["watch"] = self._reactor.callLater(period_s, self._tick, period_s)

    # losing

    def lost(self, session: Session, why: str) -> None:
        if session is self._session:
            self._lose(why)

    def error(self, session: Session, receipt: str, text: str) -> None:
        """An ERROR frame.  Its text is for people.  It is about the frame that its receipt-id names; without one
        (RabbitMQ, when its channel closes) about the only one under way, if it is the only one."""
        if session is not self._session:
            return
        log.warning("the broker said ERROR: %s", text)
        culprit = next(iter(self._owed)) if not receipt and len(self._owed) == 1 else receipt
        self._lose(f"the broker said: {text}", culprit, FaultKind.REFUSED)

    def _lose(self, why: str, culprit: str = "", kind: FaultKind = FaultKind.AWAY) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.cut()
        self._cancel("attempt", "watch")
        if self._stopped is not None:
            self._end()
            return
        now = self._reactor.seconds()
        steady = self._state.up and now - self._state.since >= STEADY_S
        self._change(up=False, why=why, failures=1 if steady else self._state.failures + 1)
        log.warning("no link to %s (%d in a row): %s", self._state.url, self._state.failures, why)
        self._timers["retry"] = self._reactor.callLater(self._delay_s(), self._attempt)
        self._fail_all(Fault(FaultKind.AWAY, why), culprit, Fault(kind, why))

    def _delay_s(self) -> float:
        rounds = (self._state.failures - 1) // len(self._settings.urls)
        most = min(self._settings.reconnect_max_s, FIRST_RETRY_S * 2.0 ** min(rounds, 30))
        return self._random.uniform(0.0, most)

    def _fail_all(self, fault: Fault, culprit: str = "", its_fault: Optional[Fault] = None) -> None:
        owed, self._owed = self._owed, {}
        waiting, self._waiting = self._waiting, deque()
        for id, one in owed.items():
            if one.deadline.active():
                one.deadline.cancel()
            if one.sending is not None:
                one.sending.done.errback(its_fault if its_fault and id == culprit else fault)
        for sending in waiting:
            sending.done.errback(fault)

    def _end(self) -> None:
        """The last step of `stop`."""
        self._cancel("attempt")
        session, self._session = self._session, None
        if session is not None:
            session.cut()
        self._fail_all(Fault(FaultKind.AWAY, "the agent stops"))
        if self._stopped is not None and not self._stopped.called:
            self._stopped.callback(None)

    def _cancel(self, *names: str) -> None:
        for name in names:
            timer = self._timers.pop(name, None)
            if timer is not None and timer.active():
                timer.cancel()

    def _change(self, **members: Any) -> None:
        before = self._state
        moved = members.get("up", before.up) != before.up
        since = self._reactor.seconds() if moved else before.since
        self._state = LinkState(**{**before.__dict__, "since": since, **members})
        if self._state != before:
            self._on_state(self._state)

    # sending and receiving

    def _fill(self) -> None:
        """Hand waiting SENDs to the session while the window has room."""
        under_way = sum(1 for owed in self._owed.values() if owed.sending is not None)
        while self._waiting and under_way < self._settings.window:
            sending = self._waiting.popleft()
            headers = self._profile.send_headers(
                sending.destination, sending.headers, sending.expires_s, self._wall_s()
            )
            headers["content-length"] = str(len(sending.body))
            self._post("SEND", headers, self._fill, sending.body, sending)
            under_way += 1

    def _post(
        self,
        command: str,
        headers: Mapping[str, str],
        on_receipt: Callable[[], None] = lambda: None,
        body: bytes = b"",
        sending: Optional[_Sending] = None,
    ) -> None:
        assert self._session is not None
        self._last_receipt += 1
        id = f"vma-{self._last_receipt}"
        deadline = self._reactor.callLater(self._settings.receipt_s, self._overdue, id)
        self._owed[id] = _Owed(command, deadline, on_receipt, sending)
        self._session.post(command, {**headers, "receipt": id}, body)

    def _overdue(self, id: str) -> None:
        what = self._owed[id].what
        self._lose(f"no receipt for {what} within {self._settings.receipt_s:g} s", id, FaultKind.UNKNOWN)

    def heard(self, session: Session) -> None:
        if session is self._session:
            self._silent = 0

    def receipt(self, session: Session, id: str) -> None:
        """A receipt of an earlier session, or one that nobody waits for, changes nothing."""
        self.heard(session)
        owed = self._owed.pop(id, None) if session is self._session else None
        if owed is None:
            return
        owed.deadline.cancel()
        if owed.sending is not None:
            owed.sending.done.callback(None)
        owed.on_receipt()

    def message(self, session: Session, headers: Mapping[str, str], body: bytes) -> None:
        self.heard(session)
        if session is self._session and self._stopped is None:
            self._on_frame(Frame(headers.get("destination", ""), headers, body, session))


def _ack_headers(headers: Mapping[str, str]) -> Dict[str, str]:
    """STOMP 1.2 wants `id`, 1.1 `message-id` and `subscription`, 1.0 `message-id`."""
    if "ack" in headers:
        return {"id": headers["ack"]}
    return {name: headers[name] for name in ("message-id", "subscription") if name in headers}


def _promised_s(promise: str, wanted_s: float) -> float:
    """Seconds between the broker's heart-beats, of its CONNECTED header "can,wants" in ms; 0 = it sends none."""
    can = promise.partition(",")[0].strip()
    return max(int(can) / 1000, wanted_s) if can.isdigit() and int(can) > 0 else 0.0
