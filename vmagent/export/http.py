"""One page over HTTP, /metrics, for who scrapes this host: bounded in everything, because it is open to a network.

Rules

1. GET and HEAD of /metrics, nothing else; no body is read, no connection is kept.
2. At most MOST connections; more are closed at once.  Whoever has not read its answer DEADLINE_S after it connected is
   cut, however slowly it reads.
3. With a certificate it speaks TLS 1.2 or newer and nothing else.  Files that were changed count for the next
   connection; while they cannot be read, the ones that were read last do.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Callable, Optional, Set, Tuple

from OpenSSL import SSL
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IOpenSSLContextFactory
from twisted.internet.protocol import ServerFactory
from twisted.web.http import HTTPChannel, Request
from zope.interface import implementer

from vmagent.errors import Fault, FaultKind

log = logging.getLogger("vmagent.export")
PATH = b"/metrics"
_TEXT = b"text/plain; charset=utf-8"
MOST = 16
DEADLINE_S = 10.0
BACKLOG = 16


class _Request(Request):
    """Rule 1."""

    def gotLength(self, length: Optional[int]) -> None:  # noqa: N802 - Twisted's name
        """None = in pieces of any length."""
        transport: Any = self.channel.transport
        if length != 0:
            transport.abortConnection()
        super().gotLength(0)  # type: ignore[no-untyped-call]

    def process(self) -> None:
        """HEAD: Twisted leaves the body out."""
        code, kind, body = self.channel.factory.answer(self.method, self.path)
        answer: Any = self
        answer.setResponseCode(code)
        answer.setHeader(b"content-type", kind)
        answer.setHeader(b"content-length", str(len(body)).encode("ascii"))
        answer.write(body)
        answer.finish()


class _OneRequest(HTTPChannel):
    """Closed after its answer."""

    requestFactory = _Request  # noqa: N815 - Twisted's name

    def checkPersistence(self, request: Any, version: Any) -> bool:  # noqa: N802 - Twisted's name
        return False


class _Door(ServerFactory):
    """Rule 2.  Not Twisted's HTTPFactory: that wakes the process each second for the time in its log."""

    protocol = _OneRequest
    noisy = False

    def __init__(self, reactor: Any, render: Callable[[], str], content_type: str) -> None:
        self._reactor = reactor
        self._render = render
        self._type = content_type.encode("ascii")
        self._open: Set[Any] = set()

    def answer(self, method: bytes, path: bytes) -> Tuple[int, bytes, bytes]:
        """Code, content type, body."""
        if path != PATH:
            return 404, _TEXT, b"only /metrics is here\n"
        if method not in (b"GET", b"HEAD"):
            return 405, _TEXT, b"only GET and HEAD\n"
        try:
            return 200, self._type, self._render().encode("utf-8")
        except Exception:  # noqa: BLE001 - edge: who scrapes is not told how we are made
            log.exception("/metrics cannot be rendered")
            return 500, _TEXT, b"see the journal of vmagent\n"

    def buildProtocol(self, addr: Any) -> Any:  # noqa: N802 - Twisted's name
        if len(self._open) >= MOST:
            return None
        channel: Any = super().buildProtocol(addr)
        channel.callLater, channel.timeOut = self._reactor.callLater, DEADLINE_S
        self._open.add(channel)
        lost = channel.connectionLost
        timer = self._reactor.callLater(DEADLINE_S, self._cut, channel)

        def gone(reason: Any) -> None:
            self._open.discard(channel)
            if timer.active():
                timer.cancel()
            lost(reason)

        channel.connectionLost = gone
        return channel

    def log(self, request: Any) -> None:
        """Who scrapes us every 15 s is no news."""

    def _cut(self, channel: Any) -> None:
        log.info("a reader of /metrics took longer than %g s: cut", DEADLINE_S)
        channel.transport.abortConnection()


@implementer(IOpenSSLContextFactory)
class _Tls:
    """Rule 3."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._context = self._load()
        self._stamps = self._seen()

    def getContext(self) -> SSL.Context:  # noqa: N802 - Twisted's name
        try:
            stamps = self._seen()
            if stamps != self._stamps:
                self._context, self._stamps = self._load(), stamps
        except (OSError, SSL.Error) as error:
            log.warning("the certificate of /metrics cannot be read again: %s", error)
        return self._context

    def _seen(self) -> Tuple[int, ...]:
        return tuple(path.stat().st_mtime_ns for path in self._files)

    def _load(self) -> SSL.Context:
        context = SSL.Context(SSL.SSLv23_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.use_certificate_chain_file(str(self._files[0]))
        context.use_privatekey_file(str(self._files[1]))
        context.check_privatekey()
        return context


class MetricsServer:
    """listen: (address, port), port 0 = any free one; tls: (certificate with its chain, key), None = plain."""

    def __init__(
        self, listen: Tuple[str, int], tls: Optional[Tuple[Path, Path]], reactor: Any, render: Callable[[], str],
        content_type: str,
    ) -> None:
        self._listen = listen
        self._tls = tls
        self._reactor = reactor
        self._door = _Door(reactor, render, content_type)
        self._port: Any = None

    def start(self) -> int:
        """The port it listens on.  Faults: REFUSED (the address, or the certificate, cannot be used)."""
        address, port = self._listen
        try:
            if self._tls is None:
                self._port = self._reactor.listenTCP(port, self._door, BACKLOG, address)
            else:
                self._port = self._reactor.listenSSL(port, self._door, _Tls(*self._tls), BACKLOG, address)
        except (CannotListenError, OSError, SSL.Error) as error:
            raise Fault(FaultKind.REFUSED, f"/metrics cannot be offered on {address} port {port}: {error}") from error
        return int(self._port.getHost().port)

    def stop(self) -> Deferred[Any]:
        """No new reader; those that are there have their deadline."""
        port, self._port = self._port, None
        return maybeDeferred(port.stopListening) if port is not None else maybeDeferred(lambda: None)
