"""A link without a broker: the test says what the broker does.  Same surface as broker.link.Link, checked in
tests/shell/test_link.py against the real one's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, List, Mapping, Optional

from twisted.internet.defer import Deferred, fail, succeed

from vmagent.broker.link import Frame, LinkState
from vmagent.errors import Fault, FaultKind


@dataclass
class Sent:
    """A message on its way; the test decides its fate."""

    destination: str
    body: bytes
    headers: Mapping[str, str]
    expires_s: Optional[float]
    done: Deferred[None] = field(default_factory=Deferred)
    over: bool = False


class FakeLink:
    """Up or down as told.  `auto`: receipts come at once."""

    def __init__(self, on_state: Callable[[LinkState], None] = lambda state: None, auto: bool = False) -> None:
        self.on_state = on_state
        self.auto = auto
        self.sent: List[Sent] = []  # everything ever handed over
        self.acked: List[Frame] = []
        self._state = LinkState()

    def start(self) -> None:
        self.up()

    def stop(self) -> Deferred[None]:
        self.down()
        return succeed(None)

    def state(self) -> LinkState:
        return self._state

    def send(
        self, destination: str, body: bytes, headers: Mapping[str, str], expires_s: Optional[float] = None
    ) -> Deferred[None]:
        if not self._state.up:
            return fail(Fault(FaultKind.AWAY, "down"))
        sent = Sent(destination, body, headers, expires_s)
        self.sent.append(sent)
        if self.auto:
            self.receipt(sent)
        return sent.done

    def ack(self, frame: Frame) -> None:
        self.acked.append(frame)

    # what the test says

    def under_way(self) -> List[Sent]:
        return [sent for sent in self.sent if not sent.over]

    def receipt(self, sent: Sent) -> None:
        sent.over = True
        sent.done.callback(None)

    def refuse(self, sent: Sent, kind: FaultKind) -> None:
        sent.over = True
        sent.done.errback(Fault(kind, "as told"))

    def up(self) -> None:
        self._change(LinkState(up=True, url="fake", why="connected"))

    def down(self, culprit: Any = None) -> None:
        """As the real one: told first, then everything under way fails; `culprit` is refused."""
        lost = self.under_way()
        self._change(LinkState(url="fake", why="as told", failures=1))
        for sent in lost:
            self.refuse(sent, FaultKind.REFUSED if sent is culprit else FaultKind.AWAY)

    def _change(self, state: LinkState) -> None:
        self._state = state
        self.on_state(state)
