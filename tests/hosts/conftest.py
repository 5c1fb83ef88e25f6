"""One booted host of each kind, with the checkout in it, for the whole level; a fresh one, once per test, when it is
lost.

`on_host` and `on_xen` hand out whatever host there is, which may have the agent on it; `on_fresh_host` is for a module
whose first test must find one that has never seen it.  Every test makes for itself what it needs of what came before.
"""

from __future__ import annotations

import subprocess
from typing import Callable, Iterator, Optional

import pytest

from tests.support import bootedhost_image
from tests.support.bootedhost import BootedHost, Lost
from tests.support.bootedsite import BootedSite
from tests.support.brokers import RabbitMQ
from tests.support.package import ROOT

CHECKOUT = "/opt/vmagent"  # not below /root: QEMU's user passes through
OnHost = Callable[[Callable[[BootedHost], None]], None]


class Keeper:
    """Hands out the host; boots it when there is none."""

    def __init__(self, xen: bool) -> None:
        self._xen = xen
        self._host: Optional[BootedHost] = None

    def __call__(self, body: Callable[[BootedHost], None]) -> None:
        """Do this on the host; on a fresh one a second time if the first is lost meanwhile."""
        try:
            body(self._booted())
        except Lost as why:
            print(f"lost the host, a second try on a fresh one: {why}")
            self.close()
            body(self._booted())

    def close(self) -> None:
        if self._host is not None:
            self._host.close()
            self._host = None

    def _booted(self) -> BootedHost:
        if self._host is None:
            host = self._host = BootedHost(bootedhost_image.image(), xen=self._xen)
            host.boot()
            listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True,
                                     capture_output=True, text=True, timeout=60)  # fmt: skip
            host.put_tree(ROOT, listing.stdout.splitlines(), CHECKOUT)
            print(f"booted in {host.boots[-1]:.0f} s")
        return self._host


def kept(xen: bool) -> Iterator[Keeper]:
    """For a fixture."""
    lacking = bootedhost_image.missing()
    if lacking:
        pytest.skip(f"no booted host without {', '.join(lacking)}")
    keeper = Keeper(xen)
    try:
        yield keeper
    finally:
        keeper.close()


@pytest.fixture(scope="session")
def on_host() -> Iterator[Keeper]:
    """KVM."""
    yield from kept(xen=False)


@pytest.fixture(scope="module")
def on_fresh_host(on_host: Keeper) -> Iterator[OnHost]:
    """KVM, booted anew for this module, and gone with it."""
    on_host.close()
    yield on_host
    on_host.close()


@pytest.fixture(scope="session")
def on_xen() -> Iterator[OnHost]:
    """A Xen dom0."""
    yield from kept(xen=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedSite]:
    """A site of the module's own: broker, CA, controller, collector."""
    if not RabbitMQ.installed():
        pytest.skip("no rabbitmq here")
    one = BootedSite(tmp_path_factory.mktemp("site"))
    try:
        yield one
    finally:
        one.close()
