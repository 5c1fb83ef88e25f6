"""What the kernel tells of interfaces and qdiscs, and what is made of it."""

from __future__ import annotations

import subprocess
from typing import Iterator

import pytest

from tests.support import shaped
from tests.support.shaped import IFB, PEER, SCRATCH, TAP, sh
from tests.support.wires import Wires
from vmagent.host.linknews import LinkNews

pytestmark = pytest.mark.skipif(not shaped.READY, reason=shaped.NEEDED)


@pytest.fixture
def news() -> Iterator[LinkNews]:
    """Asked about TAP and IFB; of those only TAP exists, and somebody else's PEER."""
    wires, made = Wires(shaped.BRIDGE), LinkNews()
    try:
        for device in (TAP, PEER):
            wires.plug(device)
        made.open()
        made.asked([TAP, IFB])
        yield made
    finally:
        made.close()
        wires.close()
        for device in (IFB, SCRATCH):
            subprocess.run(["ip", "link", "del", device], capture_output=True)


def alias(device: str, times: int) -> None:
    lines = "".join(f"link set dev {device} alias a{number}\n" for number in range(times))
    subprocess.run(["ip", "-b", "-"], input=lines.encode(), check=True, capture_output=True)


def test_others_changes_are_no_news(news: LinkNews) -> None:
    alias(PEER, 5)
    sh(f"tc qdisc add dev {PEER} root pfifo; ip link add name {SCRATCH} type ifb; ip link del {SCRATCH}")
    assert not news.stale()
    alias(TAP, 1)
    assert news.stale() and news.touched([TAP]) and not news.touched([IFB])


def test_a_look_answers_for_what_it_looked_at(news: LinkNews) -> None:
    sh(f"ip link add name {IFB} type ifb; tc qdisc add dev {TAP} root pfifo")
    news.asked([IFB])
    assert news.touched([TAP]) and not news.touched([IFB])
    news.asked([TAP])
    assert not news.stale()


def test_what_is_gone_and_not_asked_about_any_more_is_forgotten(news: LinkNews) -> None:
    sh(f"ip link add name {IFB} type ifb")
    news.asked([TAP, IFB])
    sh(f"ip link del {IFB}")
    assert news.stale()
    news.asked([TAP])
    assert not news.stale()


def test_lost_news_mean_that_everything_may_have_changed(news: LinkNews) -> None:
    alias(PEER, 3000)
    assert news.stale() and news.touched([TAP])
    news.asked([TAP, IFB])
    while news.touched([TAP]):  # what was still in the buffer
        news.asked([TAP, IFB])
    alias(TAP, 1)
    assert news.stale()


def test_without_a_socket_everything_may_have_changed() -> None:
    deaf = LinkNews()
    deaf.asked([TAP])
    assert deaf.stale() and deaf.touched([TAP])


