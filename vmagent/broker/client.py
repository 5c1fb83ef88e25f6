"""stomp.py, tamed: one TCP connection with its threads as a Session, and the BrokerLink that lives on such sessions.

This is the only importer of stomp.  What stomp.py 7.0 to 9.0 does, and what follows (FACTS F6 and F7, FORMATS 9.3):

  - A listener that raises kills its receiver thread: ours only copy the frame and call the reactor.
  - `send` to a broker that stops reading blocks without limit: one *owner thread* per session does every blocking call,
    off a queue.  `cut` shuts the socket down, which frees the owner wherever it is stuck; it never blocks itself
    (stomp.py's own disconnect waits for the peer's TLS good-bye, for ever).
  - stomp.py's reconnect gives up and forgets subscriptions: it is told to try once, on a fresh Connection per session.
  - Up to 8 its receiver reads before CONNECT is written.  Over TLS 1.3 it then meets the server's tickets while the
    owner writes, and 1 CONNECT in 80 was lost (measured with 7.0 on Python 3.9): ours begins to read afterwards.
  - 8.3 and 9.0 over TLS do not notice the end of the stream and spin: `receive` is watched for it.
  - What is verified over TLS depends on the version: after the handshake, and before the passcode is sent, the socket
    itself is asked whether it verified chain and host name.  Where it did not, there is no link.
  - 7.0 escapes the handshake (a `:` in a passcode becomes `\\c`) when it goes as STOMP: so it goes as CONNECT, with
    `accept-version:1.0,1.1,1.2`.  Our ACK and headers are right in all three.
  - Its log shows passcodes at DEBUG and hides reasons at WARNING: what it logs from WARNING up is
    used for the reasons and shown at our DEBUG only.
"""

from __future__ import annotations

import functools
import logging
import queue
import socket
import ssl
import sys
import threading
from contextlib import suppress
from random import Random
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple
from urllib.parse import urlsplit

import stomp
from stomp.exception import StompException

from vmagent.broker.link import Events, Frame, Link, LinkState, Session, Subscription
from vmagent.broker.profiles import Profile
from vmagent.config import BrokerSettings

__all__ = ["BrokerLink", "Frame", "LinkState", "Session", "StompSession", "Subscription"]

log = logging.getLogger("vmagent.broker")

PLAIN, TLS = "stomp", "stomp+ssl"
HEARTBEAT_GRACE = 2.5  # stomp.py's own detector, in periods; ours is Link's

_reasons = threading.local()


def _keep_reason(record: logging.LogRecord) -> bool:
    """stomp.py logs inside its `except` and then raises something without a cause: keep the cause."""
    log.debug("stomp.py: %s", record.getMessage())
    _reasons.last = sys.exc_info()[1] or getattr(_reasons, "last", None)
    return False


_stomp_log = logging.getLogger("stomp.py")
_stomp_log.setLevel(logging.WARNING)
_stomp_log.addFilter(_keep_reason)


class StompSession:
    """One connection: an owner thread for all that blocks, stomp.py's receiver and heart-beat threads.

    Every event reaches `events` on the reactor's thread, `lost` at least once after `open`.  `connect_headers` are the
    profile's.  A session is used once.
    """

    def __init__(
        self,
        url: str,
        settings: BrokerSettings,
        connect_headers: Mapping[str, str],
        call_in_reactor: Callable[..., Any],
        events: Events,
    ) -> None:
        self._url = url
        self._settings = settings
        self._connect_headers = connect_headers
        self._call = call_in_reactor
        self._events = events
        self._jobs: queue.SimpleQueue[Optional[Tuple[str, Dict[str, str], bytes]]] = queue.SimpleQueue()
        self._cut = threading.Event()
        self._connection: Any = None
        self._from: Any = None  # the receiver's thread

    # on the reactor

    def open(self) -> None:
        threading.Thread(target=self._own, name=f"broker {self._url}", daemon=True).start()

    def post(self, command: str, headers: Mapping[str, str], body: bytes = b"") -> None:
        """Queue a frame.  Its fate is told by its receipt; the queue is bounded by the link's window."""
        self._jobs.put((command, dict(headers), body))

    def cut(self) -> None:
        """End it now, whatever any thread is stuck in.  Idempotent, never blocks."""
        self._cut.set()
        self._jobs.put(None)
        self._shut_down()

    # on the owner thread

    def _own(self) -> None:
        try:
            self._connect()
            while not self._cut.is_set():
                job = self._jobs.get()
                if job is None:
                    break
                self._connection.send_frame(*job)
            why = "cut"
        except (StompException, OSError, ValueError) as error:  # refused, unreachable, broken, bad file
            why = _reason(error, self._url)
        except Exception as error:  # noqa: BLE001 - the thread's edge: stomp.py races with its own clean-up
            log.exception("the owner thread of %s ended", self._url)
            why = f"{type(error).__name__}: {error}"
        self._tell("lost", why)  # before the receiver can only say that it is closed
        self._shut_down()

    def _connect(self) -> None:
        _reasons.last = None
        address, tls = _address(self._url)
        handshake = self._handshake(address[0])
        self._connection = connection = self._new_connection(address, tls)
        connection.set_listener("vmagent", self)
        connection.transport.override_threading(self._receiver)
        connection.transport.start()
        try:
            if self._cut.is_set():  # too late: do not take the client id from our successor
                raise OSError("given up while connecting")
            connection.send_frame("CONNECT", handshake)
        finally:
            self._from.start()  # closes the socket at the end, so it is always started

    def _new_connection(self, address: Tuple[str, int], tls: bool) -> Any:
        """`try_loopback_connect` would try 127.0.0.1 without TLS."""
        beat = int(self._settings.heartbeat_s * 1000)
        connection = stomp.Connection12(
            [address],
            prefer_localhost=False,
            try_loopback_connect=False,
            reconnect_attempts_max=1,
            reconnect_sleep_initial=0,
            timeout=self._settings.receipt_s,
            heartbeats=(beat, beat),
            heart_beat_receive_scale=HEARTBEAT_GRACE,
            auto_decode=False,
            auto_content_length=False,
        )
        transport = connection.transport
        transport.receive = functools.partial(_receive, transport, transport.receive)
        if tls:
            self._use_tls(connection, address)
        return connection

    def _use_tls(self, connection: Any, address: Tuple[str, int]) -> None:
        files = self._settings.tls
        if files is None:
            raise ValueError(f"{self._url} needs broker.tls.ca")
        connection.set_ssl(
            for_hosts=[address],
            ca_certs=str(files.ca),
            cert_file=None if files.certificate is None else str(files.certificate),
            key_file=None if files.key is None else str(files.key),
            cert_validator=functools.partial(_verified, connection.transport),
            ssl_version=ssl.PROTOCOL_TLS_CLIENT,
        )

    def _handshake(self, host: str) -> Dict[str, str]:
        headers = {"accept-version": "1.0,1.1,1.2", "host": self._settings.virtual_host or host}
        headers.update(self._connect_headers)
        if self._settings.login:
            headers["login"] = self._settings.login
        if self._settings.passcode_file is not None:
            headers["passcode"] = self._settings.passcode_file.read_text("utf-8").rstrip("\r\n")
        return headers

    def _receiver(self, loop: Callable[[], None]) -> threading.Thread:
        """Not started yet: `_connect` does it."""
        thread = threading.Thread(target=self._receive_all, args=(loop,), name=f"from {self._url}", daemon=True)
        self._from = thread
        return thread

    # on stomp.py's threads: copy and call, nothing else

    def _receive_all(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except Exception:  # noqa: BLE001 - the thread's edge: what the peer sent was no STOMP
            log.exception("not understood, from %s", self._url)
            self._tell("lost", "the peer does not speak STOMP")

    def on_connected(self, frame: Any) -> None:
        """The connect time-out must not become a read time-out; TLS in 9.0 is non-blocking and stays so."""
        sock = self._connection.transport.socket
        if sock is not None and sock.gettimeout():
            with suppress(OSError):
                sock.settimeout(None)
        self._tell("connected", dict(frame.headers))

    def on_message(self, frame: Any) -> None:
        self._tell("message", dict(frame.headers), bytes(frame.body or b""))

    def on_receipt(self, frame: Any) -> None:
        self._tell("receipt", frame.headers.get("receipt-id", ""))

    def on_error(self, frame: Any) -> None:
        text = frame.headers.get("message") or bytes(frame.body or b"").decode("utf-8", "replace")
        self._tell("error", frame.headers.get("receipt-id", ""), text.strip()[:500])

    def on_heartbeat(self) -> None:
        self._tell("heard")

    def on_heartbeat_timeout(self) -> None:
        self._tell("lost", "no heart-beat from the broker")

    def on_disconnected(self) -> None:
        self._tell("lost", "the connection ended")

    # on any thread

    def _tell(self, event: str, *args: Any) -> None:
        self._call(getattr(self._events, event), self, *args)

    def _shut_down(self) -> None:
        """Wakes a blocked sendall, recv or TLS read; stomp.py's threads then leave and close the socket."""
        transport = getattr(self._connection, "transport", None)
        if transport is None:
            return
        transport.running = False
        sock = transport.socket
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class BrokerLink(Link):
    """A Link whose sessions are stomp.py's.  `reactor` has callLater, seconds and callFromThread."""

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
    ) -> None:
        def open_session(url: str, events: Events) -> Session:
            headers = profile.connect_headers(settings.client_id)
            return StompSession(url, settings, headers, reactor.callFromThread, events)

        super().__init__(
            settings, profile, reactor, wall_s, random, subscriptions, on_frame, on_state, open_session
        )


def _address(url: str) -> Tuple[Tuple[str, int], bool]:
    """((host, port), TLS?) of stomp://host:port or stomp+ssl://host:port.  ValueError for anything else."""
    parts = urlsplit(url)
    if parts.scheme not in (PLAIN, TLS) or not parts.hostname or not parts.port:
        raise ValueError(f"not a broker's address: {url!r}; write {PLAIN}://host:port or {TLS}://host:port")
    return (parts.hostname, parts.port), parts.scheme == TLS


def _reason(error: Exception, url: str) -> str:
    """stomp.py's ConnectFailedException says nothing: what it had caught says it."""
    cause = getattr(_reasons, "last", None) or error
    return f"{url}: {cause}" if str(cause) else f"{url}: {type(cause).__name__}"


def _receive(transport: Any, receive: Callable[[], Optional[bytes]]) -> Optional[bytes]:
    """An empty read is the end of the stream, over TLS too."""
    data = receive()
    if data == b"":
        transport.running = False
    return data


def _verified(transport: Any, certificate: Optional[Mapping[str, Any]], host: str) -> Tuple[bool, str]:
    """stomp.py asks this after the handshake: did the socket really verify?"""
    context = transport.socket.context
    if not certificate or context.verify_mode != ssl.CERT_REQUIRED or not context.check_hostname:
        return False, f"this version of stomp.py does not verify {host}'s certificate"
    return True, ""
