"""A gate in a connection, below TLS: it can be shut at once, and lets only so much in before there is an answer.

Twisted's HTTP client keeps every header that a server sends, and has no bound for them.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

LONGEST_HEAD = 1 << 20
"""Bytes that may come before an answer's headers are complete: those of TLS, the status, the headers."""


@implementer(IStreamClientEndpoint)
class Gated:
    """An endpoint with a gate in each of its connections; keep(gate): told of each."""

    def __init__(self, way: Any, keep: Callable[[Gate], None]) -> None:
        self._way = way
        self._keep = keep

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        def made(gate: Gate) -> Any:
            self._keep(gate)
            return gate.inner

        connecting: Deferred[Gate] = self._way.connect(_Gates(protocolFactory))
        return connecting.addCallback(made)


class _Gates(Factory):
    """Makes the one gate, and what is behind it."""

    noisy = False

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def buildProtocol(self, addr: Optional[IAddress]) -> Gate:
        return Gate(self._inner.buildProtocol(addr))


class Gate(Protocol):
    """Hands everything on to `inner`; left: bytes that may still come, None = any number."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.left: Optional[int] = LONGEST_HEAD

    def connectionMade(self) -> None:
        self.inner.makeConnection(self.transport)

    def dataReceived(self, data: bytes) -> None:
        if self.left is not None:
            self.left = max(0, self.left - len(data))
            if not self.left:
                self.abort()
                return
        self.inner.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.inner.connectionLost(reason)

    def abort(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()
