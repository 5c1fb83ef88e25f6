"""A small text by https, whole or not at all: an image list."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from vmagent.errors import Fault, FaultKind
from vmagent.images.fetch import Flow, late
from vmagent.images.httpstatus import refused_status
from vmagent.images.web import Answer, Web
from vmagent.lanes import Lanes

_TRUST_S = 20.0


class UrlReader:
    """stall_s: without a byte; deadline_s: for all of it; longest: bytes."""

    def __init__(
        self, web: Web, lanes: Lanes, reactor: Any, stall_s: float, deadline_s: float, longest: int
    ) -> None:
        self._web = web
        self._lanes = lanes
        self._reactor = reactor
        self._stall_s = stall_s
        self._deadline_s = deadline_s
        self._longest = longest

    def read(self, url: str) -> Deferred[bytes]:
        """Faults: REFUSED, BUSY, as of web.py; REFUSED for a text that is too long; BUSY for one that broke off."""
        reading = Deferred.fromCoroutine(self._read(url))
        return reading.addTimeout(self._deadline_s, self._reactor, late("not whole"))

    async def _read(self, url: str) -> bytes:
        trust = await self._lanes.run("trust", _TRUST_S, self._web.trust)
        asking = Deferred.fromCoroutine(self._web.open(url, {}, trust))
        answer = await asking.addTimeout(self._stall_s, self._reactor, late("no answer"))
        try:
            return await self._body(answer)
        finally:
            answer.abort()

    async def _body(self, answer: Answer) -> bytes:
        if answer.status != 200:
            raise refused_status(answer.status)
        text, flow = b"", Flow()
        flow.begin(answer)
        while True:
            chunks = await flow.next().addTimeout(self._stall_s, self._reactor, late("no byte came"))
            text += b"".join(chunks)
            if len(text) > self._longest:
                raise Fault(FaultKind.REFUSED, f"more than {self._longest} bytes came")
            if not chunks:
                break
        if not flow.sure:
            raise Fault(FaultKind.BUSY, "it ended where the server had not said that it would")
        return text
