"""A way through an HTTP proxy: CONNECT (RFC 9110, 9.3.6), then whatever the two ends say to one another."""

from __future__ import annotations

import re
from typing import Any, Optional

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from vmagent.errors import Fault, FaultKind
from vmagent.images.httpstatus import refused_status

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])( .*)?")
_LONGEST_HEAD = 16 * 1024
_END = b"\r\n\r\n"


@implementer(IStreamClientEndpoint)
class Tunnel:
    """To host:port by way of the proxy behind `to_proxy`.

    Connecting fails with a Fault when the proxy says no (httpstatus.py: it has no login, so 407 is REFUSED), and with
    BUSY when it says nothing that makes sense.
    """

    def __init__(self, to_proxy: Any, host: str, port: int) -> None:
        self._to_proxy = to_proxy
        self._target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        digging = _Digging(self._target, protocolFactory)
        connecting: Deferred[Any] = self._to_proxy.connect(digging)
        connecting.addCallback(lambda digger: digger.through)
        return connecting


class _Digging(Factory):
    """Makes the one protocol that asks the proxy."""

    noisy = False

    def __init__(self, target: str, inner: Any) -> None:
        self._target = target
        self._inner = inner

    def buildProtocol(self, addr: Optional[IAddress]) -> _Digger:
        return _Digger(self._target, self._inner, addr)


class _Digger(Protocol):
    """Asks, waits for 2xx, then hands everything to the protocol behind it."""

    def __init__(self, target: str, inner: Any, address: Any) -> None:
        self._target = target
        self._factory = inner
        self._address = address
        self._head = b""
        self._inner: Any = None
        self.through: Deferred[Any] = Deferred(lambda _: self._abort())

    def connectionMade(self) -> None:
        self._write(f"CONNECT {self._target} HTTP/1.1\r\nHost: {self._target}\r\n\r\n".encode("ascii"))

    def dataReceived(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.dataReceived(data)
            return
        self._head += data
        if _END in self._head:
            self._answered()
        elif len(self._head) > _LONGEST_HEAD:
            self._refuse(Fault(FaultKind.BUSY, "the proxy's answer to CONNECT has no end"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._inner is not None:
            self._inner.connectionLost(reason)
        elif not self.through.called:
            self.through.errback(Fault(FaultKind.BUSY, "the proxy closed the connection"))

    def _answered(self) -> None:
        head, _, rest = self._head.partition(_END)
        said = _STATUS.fullmatch(head.split(b"\r\n", 1)[0])
        if said is None:
            self._refuse(Fault(FaultKind.BUSY, "the proxy speaks no HTTP"))
            return
        if not said.group(1).startswith(b"2"):
            self._refuse(refused_status(int(said.group(1)), "the proxy"))
            return
        self._inner = self._factory.buildProtocol(self._address)
        self._inner.makeConnection(self.transport)
        self.through.callback(self._inner)
        if rest:
            self._inner.dataReceived(rest)

    def _refuse(self, fault: Fault) -> None:
        if not self.through.called:
            self.through.errback(fault)
        self._abort()

    def _write(self, data: bytes) -> None:
        transport: Any = self.transport
        transport.write(data)

    def _abort(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()
