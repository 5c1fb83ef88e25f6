"""Links to peers and brokers, ended with the test."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any, Callable, Iterator, List, Sequence

import pytest

from tests.support.loop import RealLoop
from tests.support.settings import broker_settings
from vmagent.broker.client import BrokerLink, Frame, LinkState, Subscription
from vmagent.broker.profiles import PROFILES

WALL_S = 1_790_000_000.0


class Linked:
    """A real link, its loop and what it told."""

    def __init__(self, loop: RealLoop, urls: Sequence[str], subscriptions: Sequence[Subscription], **changes: Any):
        self.loop = loop
        self.frames: List[Frame] = []
        self.states: List[LinkState] = []
        settings = broker_settings(urls=tuple(urls), **changes)
        self.link = BrokerLink(
            settings,
            PROFILES[settings.profile],
            loop,
            lambda: WALL_S,
            Random(1),
            subscriptions,
            self.frames.append,
            self.states.append,
        )
        self.link.start()

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
