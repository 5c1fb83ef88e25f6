"""HTTPS for images and lists: Twisted's client with the site's CA and proxy, redirects that stay on https.

Rules

1. Only https.  A redirect goes to https too, at most MOST_REDIRECTS times; nothing is sent along but the
   headers that were asked for.
2. The server's certificate is checked against the site's CA file, or what the host trusts; its name too.
3. Whoever opened an answer closes it: `Answer.abort` ends the connection at once, without waiting for the other side.
4. A Fault says what it means: REFUSED when asking again cannot help (4xx, also of the proxy; a wrong certificate; a
   forbidden redirect; headers without an end), BUSY otherwise.
5. What comes before the body is bounded, for Twisted keeps all headers in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List, Mapping, Optional, Tuple
from urllib.parse import urljoin

from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import Certificate, VerificationError, trustRootFromCertificates
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

import vmagent
from vmagent.core.imagechoice import check_url
from vmagent.errors import Fault, FaultKind
from vmagent.images.gate import LONGEST_HEAD, Gate, Gated
from vmagent.images.tunnel import Tunnel

MOST_REDIRECTS = 5
CONNECT_S = 30.0
_REDIRECTS = (301, 302, 303, 307, 308)
# What a request may fail with: Twisted has no common base for it.
_NO_ANSWER = (Fault, OSError, SSL.Error, ConnectError, ConnectionClosed, RequestTransmissionFailed,
              ResponseFailed)  # fmt: skip
_BEGIN_PEM, _END_PEM = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy that connects through (CONNECT)."""

    host: str
    port: int


class Answer:
    """The headers of an answer; its body is still to come."""

    def __init__(self, response: Any, url: str, abort: Callable[[], None]) -> None:
        self.status = int(response.code)
        self.length = response.length if isinstance(response.length, int) else 0  # bytes of the body; 0 = not told
        self.url = url
        self.abort = abort
        self._response = response

    def header(self, name: str) -> str:
        """The first of that name; "" = none."""
        found = self._response.headers.getRawHeaders(name)
        return str(found[0]) if found else ""

    def deliver(self, take: Callable[[bytes], None]) -> Tuple[Any, Deferred[bool]]:
        """Hand the body over as it comes: (the producer, to pause; what fires at the end).

        The end is True when the server said how long it is, and it was; False when it simply stopped.  Its failure is
        a Fault BUSY.  Cancelling it aborts.
        """
        ended: Deferred[bool] = Deferred(lambda _: self.abort())
        body = _Body(take, ended)
        self._response.deliverBody(body)
        return body.transport, ended


class _Body(Protocol):
    def __init__(self, take: Callable[[bytes], None], ended: Deferred[bool]) -> None:
        self._take = take
        self._ended = ended

    def dataReceived(self, data: bytes) -> None:
        self._take(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._ended.called:
            return
        if isinstance(reason.value, ResponseDone):
            self._ended.callback(True)
        elif isinstance(reason.value, PotentialDataLoss):
            self._ended.callback(False)
        else:
            self._ended.errback(Fault(FaultKind.BUSY, f"the connection broke: {_words(reason.value)}"))


class Web:
    """reactor: Twisted's; ca: a PEM file, None = what the host trusts; proxy: None = straight."""

    def __init__(self, reactor: Any, ca: Optional[Path], proxy: Optional[Proxy]) -> None:
        self._reactor = reactor
        self._ca = ca
        self._proxy = proxy

    def trust(self) -> Any:
        """Whose certificates are believed, as the file says it now.  Blocking.  Faults: REFUSED."""
        policy: Any = BrowserLikePolicyForHTTPS
        roots: Any = trustRootFromCertificates
        if self._ca is None:
            return policy()
        try:
            return policy(roots(_certificates(self._ca.read_bytes())))
        except (OSError, ValueError, SSL.Error) as error:
            raise Fault(FaultKind.REFUSED, f"{self._ca} holds no CA certificate that can be read") from error

    async def open(self, url: str, headers: Mapping[str, str], trust: Any) -> Answer:
        """The final answer, redirects followed.  Faults: REFUSED, BUSY; its status is the caller's to judge."""
        for _ in range(MOST_REDIRECTS + 1):
            answer = await self._ask(url, headers, trust)
            if answer.length < 0:  # Twisted 22 believes it
                answer.abort()
                raise Fault(FaultKind.BUSY, f"the server says that its answer has {answer.length} bytes")
            if answer.status not in _REDIRECTS:
                return answer
            answer.abort()
            url = urljoin(url, answer.header("location"))
            try:
                check_redirect(url)
            except ValueError as error:
                raise Fault(FaultKind.REFUSED, f"redirected to {url[:200]!r}: {error}") from None
        raise Fault(FaultKind.REFUSED, f"redirected more than {MOST_REDIRECTS} times")

    async def _ask(self, url: str, headers: Mapping[str, str], trust: Any) -> Answer:
        ways = _Ways(self._reactor, self._proxy, trust)
        made: Any = Agent
        agent = made.usingEndpointFactory(self._reactor, ways)
        sent = Headers({"User-Agent": [f"vmagent/{vmagent.__version__}"], "Accept-Encoding": ["identity"]})
        for name, value in headers.items():
            sent.setRawHeaders(name, [value])
        try:
            response = await agent.request(b"GET", url.encode("ascii"), sent)
        except CancelledError:
            raise
        except _NO_ANSWER as error:
            ways.abort()
            if any(isinstance(one, CancelledError) for one in _reasons(error)):
                raise CancelledError from error
            raise ways.flooded() or _fault(error) from error
        ways.answered()
        return Answer(response, url, ways.abort)


def check_redirect(url: str) -> None:
    """Only https.  ValueError, saying what is accepted."""
    check_url(url)
    if not url.startswith("https:"):
        raise ValueError("only https: is accepted")


def _certificates(pem: bytes) -> List[Certificate]:
    found = [_BEGIN_PEM + one.split(_END_PEM)[0] + _END_PEM for one in pem.split(_BEGIN_PEM)[1:]]
    if not found:
        raise ValueError("no certificate")
    return [Certificate.loadPEM(one) for one in found]


def _reasons(error: Any) -> List[Any]:
    """What is behind Twisted's wrappings."""
    inner = getattr(error, "reasons", None)
    return [deepest for one in inner for deepest in _reasons(one.value)] if inner else [error]


def _words(error: Any) -> str:
    return "; ".join(dict.fromkeys(str(one) or type(one).__name__ for one in _reasons(error)))


def _fault(error: BaseException) -> Fault:
    reasons = _reasons(error)
    faults = [one for one in reasons if isinstance(one, Fault)]
    if faults:
        return faults[0]
    if any(isinstance(one, (SSL.Error, VerificationError)) for one in reasons):
        return Fault(FaultKind.REFUSED, f"TLS: {_words(error)}")
    return Fault(FaultKind.BUSY, f"no answer: {_words(error)}")


@implementer(IAgentEndpointFactory)
class _Ways:
    """The connections of one request, so that they can be ended."""

    def __init__(self, reactor: Any, proxy: Optional[Proxy], trust: Any) -> None:
        self._reactor = reactor
        self._proxy = proxy
        self._trust = trust
        self._made: List[Gate] = []

    def endpointForURI(self, uri: Any) -> Any:
        host = uri.host.decode("ascii")
        way: Any
        if self._proxy is None:
            way = HostnameEndpoint(self._reactor, host, uri.port, timeout=CONNECT_S)
        else:
            to_proxy = HostnameEndpoint(self._reactor, self._proxy.host, self._proxy.port, timeout=CONNECT_S)
            way = Tunnel(to_proxy, host, uri.port)
        # Below TLS: what is kept can be cut off without a farewell to the other side.
        gated: Any = Gated(way, self._made.append)
        return wrapClientTLS(self._trust.creatorForNetloc(uri.host, uri.port), gated)

    def answered(self) -> None:
        """The headers are complete: from here on the reader bounds what comes."""
        for gate in self._made:
            gate.left = None

    def flooded(self) -> Optional[Fault]:
        """That so much came before an answer that no more was taken."""
        if not any(gate.left == 0 for gate in self._made):
            return None
        return Fault(FaultKind.REFUSED, f"more than {LONGEST_HEAD} bytes came before an answer was complete")

    def abort(self) -> None:
        for gate in self._made:
            gate.abort()
