"""One connection of the local socket: lines in, lines out, within bounds.

Rules: a peer without any right gets one refusal and is closed.  At most REQUESTS requests of one client are under way.
What a client does not read is kept up to PENDING bytes; beyond that the client is cut off, so that a reader that
stalls costs neither memory nor anybody else's time.  A stream ends with its connection.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import Any, Callable, Deque, List, Mapping, Optional, Set

from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from vmagent.core.commands import Signer
from vmagent.errors import Fault, Problem
from vmagent.local import protocol
from vmagent.local.feed import LiveFeed
from vmagent.local.peers import Access, Peer, Right

log = logging.getLogger("vmagent.local")
CLIENTS = 64
REQUESTS = 16
PENDING = 4 * 2**20
_SHOWN_EVENTS = 50

Queries = Mapping[str, Callable[[Mapping[str, Any]], "Deferred[Any]"]]
Commands = Callable[[Mapping[str, Any], Signer], "Deferred[Mapping[str, Any]]"]
Deeds = Mapping[str, Commands]


@dataclass(frozen=True)
class Services:
    """What stands behind every connection."""

    access: Access
    identify: Callable[[Any], Peer]  # a connected transport -> its peer; OSError when the kernel cannot say
    commands: Commands  # a complete payload -> the reply
    queries: Queries
    feed: LiveFeed
    fill: Callable[[Mapping[str, Any]], Mapping[str, Any]]  # completes a payload: target and times
    deeds: Deeds  # verbs that must know who asks: (args, signer) -> the result


class Session(LineOnlyReceiver):
    """The agent's end of one connection; its own push producer (Twisted's IPushProducer)."""

    delimiter = b"\n"
    MAX_LENGTH = protocol.LONGEST_REQUEST
    transport: Any  # Twisted's, of a UNIX server connection

    def __init__(self, services: Services, sessions: Set[Session]) -> None:
        self._services = services
        self._sessions = sessions
        self._right = Right.NONE
        self._signer = Signer("local:?")
        self._waiting: Deque[bytes] = deque()
        self._waiting_bytes = 0
        self._paused = False
        self._ended = False
        self._under_way = 0
        self._endings: List[Callable[[], None]] = []

    # -- the connection

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)
        refusal = self._admit()
        if refusal is not None:
            log.warning("local socket: %s", refusal)
            self._finish(protocol.problem(None, refusal))
            return
        self._sessions.add(self)

    def _admit(self) -> Optional[Problem]:
        access = self._services.access
        try:
            peer = self._services.identify(self.transport)
        except OSError as error:
            return Problem("not-authorised", f"the kernel does not say who you are: {error}")
        self._right = access.right(peer)
        self._signer = access.signer(peer)
        if self._right is Right.NONE:
            return Problem("not-authorised", "only root, the administrators' group and the readers' group may use this "
                           "socket (settings socket.admin_group and socket.reader_group)", who=self._signer.subject)
        if len(self._sessions) >= CLIENTS + (peer.uid == 0):  # one place is kept for root
            return Problem("busy", f"{CLIENTS} clients are connected already; close one", limit=CLIENTS)
        return None

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._ended = True
        self._sessions.discard(self)
        for ending in self._endings:
            ending()
        self._endings.clear()
        self._waiting.clear()

    def lineLengthExceeded(self, line: bytes) -> None:
        limit = protocol.LONGEST_REQUEST
        self._finish(protocol.problem(None, Problem("too-large", f"a request has at most {limit} bytes", limit=limit)))

    def _finish(self, last: bytes) -> None:
        self._ended = True
        self.transport.write(last)
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def close(self) -> None:
        """The agent stops."""
        self._ended = True
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    # -- requests

    def lineReceived(self, line: bytes) -> None:
        if self._ended or not line.strip():
            return
        try:
            request = protocol.request(line)
            self._allow(request)
        except Problem as problem:
            self._send(protocol.problem(protocol.claimed_id(line), problem))
            return
        self._under_way += 1
        answer = self._answer(request)
        answer.addCallbacks(
            lambda value: self._send(protocol.result(request.id, value)),
            lambda failure: self._send(protocol.problem(request.id, _refusal(failure, request.verb))),
        )
        answer.addErrback(lambda failure: log.error("an answer could not be written", exc_info=failure.value))
        answer.addBoth(self._done)

    def _done(self, _ignored: Any) -> None:
        self._under_way -= 1

    def _allow(self, request: protocol.Request) -> None:
        known = {protocol.COMMAND, protocol.EVENTS, *self._services.queries, *self._services.deeds}
        if request.verb not in known:
            raise Problem("unknown-verb", f"there is no {request.verb!r}; known are {', '.join(sorted(known))}",
                          path="verb", accepted=sorted(known))
        if request.changes and self._right < Right.CHANGE:
            raise Problem("not-authorised", "your group may look, not change", who=self._signer.subject)
        if self._under_way >= REQUESTS:
            raise Problem("busy", f"{REQUESTS} requests of this connection are under way; wait for one", limit=REQUESTS)

    def _answer(self, request: protocol.Request) -> Deferred[Any]:
        try:
            if request.verb == protocol.EVENTS:
                return self._events(request)
            if request.verb == protocol.COMMAND:
                return self._services.commands(self._services.fill(request.args), self._signer)
            if request.verb in self._services.deeds:
                return self._services.deeds[request.verb](request.args, self._signer)
            return self._services.queries[request.verb](request.args)
        except Problem as problem:
            refused: Deferred[Any] = Deferred()
            refused.errback(problem)
            return refused

    def _events(self, request: protocol.Request) -> Deferred[Any]:
        """args: `limit` (how many past events, default 50), `follow` (go on with new ones, default false)."""
        limit = request.args.get("limit", _SHOWN_EVENTS)
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
            raise Problem("schema", "a number of events, 0 or more, is expected", path="args.limit")

        def show(entry: Mapping[str, Any]) -> None:
            self._send(protocol.result(request.id, entry, more=True))

        for entry in self._services.feed.recent(limit):
            show(entry)
        if request.args.get("follow") is not True:
            return succeed(None)
        self._endings.append(self._services.feed.watch(show))
        return Deferred()  # fires never: the connection's end is the stream's

    # -- a client that does not read

    def _send(self, line: bytes) -> None:
        if self._ended:
            return
        if not self._paused:
            self.transport.write(line)
            return
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        if self._waiting_bytes > PENDING:
            log.warning("local socket: %s does not read, %d bytes wait: cut off", self._signer.subject,
                        self._waiting_bytes)
            self._ended = True
            self._waiting.clear()
            self.transport.unregisterProducer()
            self.transport.abortConnection()

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        while self._waiting and not self._paused:
            line = self._waiting.popleft()
            self._waiting_bytes -= len(line)
            self.transport.write(line)

    def stopProducing(self) -> None:
        self._waiting.clear()


def _refusal(failure: Failure, verb: str) -> Problem:
    """Every failure as something the wire can say."""
    error = failure.value
    if isinstance(error, Problem):
        return error
    if isinstance(error, Fault):
        return Problem("fault", str(error), kind=error.kind.value)
    log.error("local socket: %s failed", verb, exc_info=error)
    return Problem("internal", f"{verb} failed inside the agent; its log has the details")


class Sessions(Factory):
    """Makes a session for each connection and knows those that are open."""

    noisy = False

    def __init__(self, services: Services) -> None:
        self._services = services
        self.open: Set[Session] = set()

    def buildProtocol(self, addr: Any) -> Session:
        return Session(self._services, self.open)
