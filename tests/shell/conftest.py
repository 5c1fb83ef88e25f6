"""What stands once in a process: Twisted's one reactor, in a thread of its own, and an HTTPS server's certificates."""

from __future__ import annotations

from typing import Any, Iterator

import pytest

from tests.support.imageserver import Certificates, Turning


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: Any) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def turning() -> Iterator[Turning]:
    turning = Turning()
    yield turning
    turning.stop()
