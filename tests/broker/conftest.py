"""Links to peers and brokers, ended with the test."""

from __future__ import annotations

import datetime
from pathlib import Path
from random import Random
from typing import Any, Callable, Iterator, List, Sequence

import pytest

from tests.support.brokers import ActiveMQ, RabbitMQ, started
from tests.support.loop import RealLoop
from tests.support.settings import broker_settings
from vmagent.broker.client import BrokerLink, Frame, LinkState, Subscription
from vmagent.broker.profiles import PROFILES
from vmagent.config import Tls
from vmagent.site import pki

WALL_S = 1_790_000_000.0


class Linked:
    """A real link, its loop and what it told."""

    def __init__(self, loop: RealLoop, urls: Sequence[str], subscriptions: Sequence[Subscription], **changes: Any):
        wall_s = changes.pop("wall_s", lambda: WALL_S)
        self.loop = loop
        self.frames: List[Frame] = []
        self.states: List[LinkState] = []
        self.on_state: Callable[[LinkState], None] = lambda state: None
        settings = broker_settings(urls=tuple(urls), **changes)
        self.link = BrokerLink(
            settings,
            PROFILES[settings.profile],
            loop,
            wall_s,
            Random(1),
            subscriptions,
            self.frames.append,
            self._state,
        )
        self.link.start()

    def _state(self, state: LinkState) -> None:
        self.states.append(state)
        self.on_state(state)

    def up(self, seconds: float = 20.0) -> Linked:
        self.loop.until(lambda: self.link.state().up, seconds, f"link up: {self.link.state()}")
        return self

    def down(self, seconds: float = 20.0) -> Linked:
        self.loop.until(lambda: not self.link.state().up and self.link.state().failures, seconds, "link down")
        return self

    def send(self, destination: str, body: bytes, **headers: str) -> None:
        """Send and wait for the receipt."""
        self.loop.result(self.link.send(destination, body, headers))

    def take(self, count: int, seconds: float = 20.0) -> List[Frame]:
        """Wait for so many frames, and hand them out once."""
        self.loop.until(lambda: len(self.frames) >= count, seconds, f"{count} frames, got {len(self.frames)}")
        taken, self.frames[:] = self.frames[:count], self.frames[count:]
        return taken

    def stop(self) -> None:
        self.loop.result(self.link.stop())


@pytest.fixture
def loop() -> RealLoop:
    return RealLoop()


@pytest.fixture
def linked(loop: RealLoop) -> Iterator[Callable[..., Linked]]:
    links: List[Linked] = []

    def make(urls: Any, *subscriptions: Subscription, **changes: Any) -> Linked:
        links.append(Linked(loop, [urls] if isinstance(urls, str) else urls, subscriptions, **changes))
        return links[-1]

    yield make
    for one in links:
        one.stop()


@pytest.fixture
def passcode_file(tmp_path: Path) -> Path:
    path = tmp_path / "passcode"
    path.write_text("guest\n")
    return path


@pytest.fixture(scope="session")
def ca(tmp_path_factory: Any) -> Path:
    """A CA with a server's, a client's and the other names' certificates."""
    directory = tmp_path_factory.mktemp("ca")
    now = datetime.datetime.now(datetime.timezone.utc)
    pki.init(directory, "test CA", now)
    pki.issue(directory, "server", "server", now, san=("localhost", "127.0.0.1"))
    pki.issue(directory, "elsewhere", "server", now, san=("elsewhere.example.org",))
    pki.issue(directory, "client", "client", now)
    return directory


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: Any, ca: Path) -> Iterator[RabbitMQ]:
    if not RabbitMQ.installed():
        pytest.skip("rabbitmq-server is not installed")
    broker = RabbitMQ(tmp_path_factory.mktemp("rabbitmq"), Tls(ca / "ca.pem", ca / "server.pem", ca / "server.key"))
    with started(broker):
        yield broker


@pytest.fixture(scope="session")
def activemq(tmp_path_factory: Any) -> Iterator[ActiveMQ]:
    if not ActiveMQ.installed():
        pytest.skip("activemq is not installed")
    broker = ActiveMQ(tmp_path_factory.mktemp("activemq"))
    with started(broker):
        yield broker


@pytest.fixture(params=["rabbitmq", "activemq"])
def broker(request: Any) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def connect(
    linked: Callable[..., Linked], broker: Any, passcode_file: Path
) -> Callable[..., Linked]:
    """A link to the real broker."""

    def make(*subscriptions: Subscription, **changes: Any) -> Linked:
        members = {"profile": broker.profile, "login": "guest", "passcode_file": passcode_file, **changes}
        return linked(broker.url, *subscriptions, **members)

    return make
