"""What stands once in a process: Twisted's one reactor, in a thread of its own, and an HTTPS server's certificates;
and the runs of an agent, ended with their test."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator, List

import pytest

from tests.support import site as agents
from tests.support.fetching import Host
from tests.support.imageserver import Certificates, Turning


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: Any) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def turning() -> Iterator[Turning]:
    turning = Turning()
    yield turning
    turning.stop()


@pytest.fixture
def host(tmp_path: Path, certificates: Certificates, turning: Turning) -> Iterator[Host]:
    """The images of one host, over a server of its own."""
    made = Host(tmp_path, certificates, turning)
    yield made
    made.close()


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[List[agents.Site]]:
    yield from agents.lives(tmp_path)


@pytest.fixture
def site(sites: List[agents.Site]) -> agents.Site:
    return sites[0]
