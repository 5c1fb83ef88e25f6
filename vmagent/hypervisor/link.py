"""One connection to libvirt for one purpose, with its own lanes; it wants to be connected and says whether it is.

Rules

1. Everything that can block (open, calls, close) runs on a thread that is not the reactor's; all book-keeping is on the
   reactor.  Opening has a thread of its own, so a libvirtd that hangs holds back nothing but the reconnect.
2. A call takes the connection that is current when it begins, not when it was asked for.
3. A lost connection (close callback, keepalive, or a call that says so) is opened again after a wait of full jitter,
   which is drawn for the first retry too (FACTS 4.10).
4. At `REPLACE_AT` calls past their deadline, or when such calls hold every thread, the connection is replaced by a
   fresh one with fresh threads, because at five stuck calls libvirt gives up a whole connection (FACTS F3).  The old
   one drains, and is closed when its last call has returned; at most `GENERATIONS` drain at once.
5. No libvirt object leaves a thread: outcomes are values, so no traceback keeps a connection alive on the reactor,
   where its destructor would block.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from dataclasses import dataclass, field
from typing import Any, Callable, Generic, List, Optional, TypeVar, Union

import libvirt
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from vmagent.errors import Fault, FaultKind
from vmagent.hypervisor.faults import NOT_BUILT, closed, fault
from vmagent.lanes import Lanes, Reactor

log = logging.getLogger("vmagent.hypervisor")
T = TypeVar("T")
F = TypeVar("F")
CONNECT_DEADLINE_S = 120.0  # libvirtd probes every QEMU binary before its first answer
RETRY_FIRST_S = 1.0
KEEPALIVE_S, KEEPALIVE_COUNT = 5, 3
REPLACE_AT = 2
GENERATIONS = 8


@dataclass(frozen=True)
class Retry:
    """Waits between attempts: jitter() in 0..1 times min(longest_s, RETRY_FIRST_S x 2^n)."""

    longest_s: float
    jitter: Callable[[], float]

    def wait_s(self, attempts: int) -> float:
        return self.jitter() * min(self.longest_s, RETRY_FIRST_S * 2.0 ** min(attempts, 20))


@dataclass(eq=False)
class Opened(Generic[F]):
    """An open connection; `facts` is what `prepare` found out over it, `callbacks` what must be deregistered."""

    conn: libvirt.virConnect
    facts: Optional[F] = None
    callbacks: List[int] = field(default_factory=list)
    closed: bool = False  # libvirt said so


@dataclass(frozen=True)
class _Failed:
    """A Fault on its way from a thread."""

    kind: FaultKind
    detail: str
    on: int = 0  # id() of the connection it happened on


class Link(Generic[F]):
    """See the module's rules.  Every method is called on the reactor's thread.

    prepare(opened) runs on a thread right after the open and may register callbacks; what it returns goes to
    on_up(facts).  on_down(why): the connection is lost, or could not be opened.  on_late(key): a call past its deadline
    has returned.
    """

    def __init__(
        self,
        name: str,
        uri: str,
        threads: int,
        reactor: Reactor,
        retry: Retry,
        prepare: Callable[[Opened[F]], F],
        on_up: Callable[[F], None],
        on_down: Callable[[str], None],
        on_late: Callable[[str], None],
    ) -> None:
        self._name = name
        self._uri = uri
        self._reactor = reactor
        self._retry = retry
        self._replace_at = min(REPLACE_AT, threads)
        self._prepare = prepare
        self._on_up = on_up
        self._on_down = on_down
        self._on_late = on_late
        self._lanes = Lanes(f"libvirt-{name}", threads, reactor, self._late)
        self._opener = Lanes(f"libvirt-{name}-open", 1, reactor)
        self._current: Optional[Opened[F]] = None
        self._draining: List[Opened[F]] = []
        self._attempts = 0
        self._opening = False
        self._replacing = False
        self._timer: Any = None
        self._stopped = False
        self.not_built = False  # by the last attempt to open: this libvirt has no driver for the URI

    @property
    def connected(self) -> bool:
        return self._current is not None

    @property
    def draining(self) -> int:
        """Connections that were replaced and still have calls under way."""
        return len(self._draining)

    def start(self) -> None:
        self._open()

    def run(self, key: str, deadline_s: float, call: Callable[..., T], *args: Any) -> Deferred[T]:
        """`call(connection, *args)` on a lane.  Faults: AWAY, UNKNOWN, BUSY, and what libvirt's error means."""
        if self._current is None:
            return fail(Fault(FaultKind.AWAY, f"libvirt ({self._name}) is not connected"))
        answer: Deferred[Any] = self._lanes.run(key, deadline_s, self._call, call, *args)
        answer.addCallbacks(self._told, self._untold)
        return answer

    def overdue(self) -> List[str]:
        """Keys with a call past its deadline that has not returned."""
        return [late.key for late in self._lanes.overdue()]

    def busy(self, key: str) -> bool:
        """Whether a call on it is under way or waits."""
        return self._lanes.busy(key)

    @property
    def idle(self) -> bool:
        """Connected, and no call is under way or waits."""
        return self.connected and self._lanes.idle

    def stop(self) -> List[threading.Thread]:
        """Accept nothing more; the threads that close what is open, already started."""
        self._stopped = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._lanes.stop()
        self._opener.stop()
        left = [*self._draining, *([self._current] if self._current else [])]
        self._current, self._draining = None, []
        return [_close(opened) for opened in left]

    # -- calls

    def _call(self, call: Callable[..., T], *args: Any) -> Union[T, _Failed]:
        """On a thread."""
        opened = self._current
        if opened is None:
            return _Failed(FaultKind.AWAY, f"libvirt ({self._name}) is not connected")
        try:
            return call(opened.conn, *args)
        except libvirt.libvirtError as error:
            return _failed(fault(error), opened)
        except Fault as error:
            return _failed(error, opened)

    def _told(self, outcome: Any) -> Any:
        self._drained()
        if not isinstance(outcome, _Failed):
            return outcome
        if outcome.kind is FaultKind.AWAY and self._current is not None and outcome.on == id(self._current):
            self._lost(outcome.detail)
        raise Fault(outcome.kind, outcome.detail)

    def _untold(self, failure: Failure) -> Failure:
        """The lane's own verdicts: a deadline passed, or nothing can be expected any more."""
        if not self._stopped and not self._replacing and self._stuck_calls() >= self._replace_at:
            self._replace()
        return failure

    def _stuck_calls(self) -> int:
        return len(self._lanes.overdue()) - self._lanes.abandoned()

    def _late(self, key: str) -> None:
        self._drained()
        self._on_late(key)

    # -- the connection

    def _replace(self) -> None:
        if len(self._draining) >= GENERATIONS:
            log.error("libvirt (%s): %d replaced connections still drain; not replaced again", self._name, GENERATIONS)
            return
        log.warning("libvirt (%s): calls are stuck; going on with a fresh connection", self._name)
        self._replacing = True
        self._open()

    def _drained(self) -> None:
        if self._draining and self._lanes.abandoned() == 0:
            for opened in self._draining:
                _close(opened)
            self._draining = []

    def _open(self) -> None:
        self._timer = None
        if self._opening or self._stopped or (self._current is not None and not self._replacing):
            return
        self._opening = True
        self._opener.run("open", CONNECT_DEADLINE_S, self._opened_on_thread).addCallbacks(
            self._open_told, lambda failure: self._open_told(_Failed(FaultKind.UNKNOWN, failure.getErrorMessage()))
        )

    def _opened_on_thread(self) -> Optional[_Failed]:
        """Hands the connection over by itself, so that one which comes after the deadline is not lost."""
        try:
            opened: Opened[F] = Opened(libvirt.open(self._uri))
        except libvirt.libvirtError as error:
            self.not_built = error.get_error_code() in NOT_BUILT
            return _Failed(FaultKind.AWAY, closed(error) or fault(error).detail)
        self.not_built = False
        try:
            _keep_alive(opened.conn)
            opened.conn.registerCloseCallback(self._closed_on_thread, opened)
            opened.facts = self._prepare(opened)
        except (libvirt.libvirtError, ValueError, OSError) as error:
            _close(opened)
            return _Failed(FaultKind.AWAY, str(error))
        self._reactor.callFromThread(self._take, opened)
        return None

    def _closed_on_thread(self, conn: libvirt.virConnect, reason: int, opened: Opened[F]) -> None:
        self._reactor.callFromThread(self._closed, opened, reason)

    def _closed(self, opened: Opened[F], reason: int) -> None:
        opened.closed = True
        if opened is self._current:
            self._lost(f"libvirt closed the connection (reason {reason})")

    def _open_told(self, outcome: Optional[_Failed]) -> None:
        self._opening = False
        if outcome is None or self._stopped:
            return
        if self._current is None:
            self._on_down(outcome.detail)
        self._again()

    def _take(self, opened: Opened[F]) -> None:
        wanted = self._current is None or self._replacing
        if self._stopped or opened.closed or not wanted:
            _close(opened)
            if not self._stopped and wanted:
                self._again()
            return
        old, self._current = self._current, opened
        self._attempts = 0
        if old is not None:
            self._draining.append(old)
            self._lanes.replace_threads()
        self._replacing = False
        if old is None and opened.facts is not None:
            self._on_up(opened.facts)

    def _lost(self, why: str) -> None:
        lost, self._current = self._current, None
        if lost is not None:
            _close(lost)
        log.warning("libvirt (%s): %s", self._name, why)
        self._on_down(why)
        self._again()

    def _again(self) -> None:
        if self._timer is None and not self._stopped:
            wait_s = self._retry.wait_s(self._attempts)
            self._attempts += 1
            self._timer = self._reactor.callLater(wait_s, self._open)


def _failed(told: Fault, opened: Opened[Any]) -> _Failed:
    return _Failed(told.kind, told.detail, id(opened))


def _keep_alive(conn: libvirt.virConnect) -> None:
    """A peer that stops answering closes the connection; drivers without a peer do not know it."""
    try:
        conn.setKeepAlive(KEEPALIVE_S, KEEPALIVE_COUNT)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise


def _close(opened: Opened[Any]) -> threading.Thread:
    """Close on a thread of its own: the peer may hang."""

    def close() -> None:
        for callback in opened.callbacks:
            with contextlib.suppress(libvirt.libvirtError):
                opened.conn.domainEventDeregisterAny(callback)
        with contextlib.suppress(libvirt.libvirtError):
            opened.conn.unregisterCloseCallback()
        with contextlib.suppress(libvirt.libvirtError):
            opened.conn.close()

    thread = threading.Thread(target=close, name="libvirt-close", daemon=True)
    thread.start()
    return thread
