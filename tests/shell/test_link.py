"""The link's decisions with time by Clock and a session that does what the test says."""

from __future__ import annotations

import inspect
from random import Random
from typing import Any, Dict, List, Mapping, NamedTuple

import pytest
from twisted.internet.task import Clock

from tests.support.fake_link import FakeLink
from tests.support.settings import broker_settings
from vmagent.broker.link import (
    FIRST_RETRY_S,
    GOODBYE_S,
    MOST_WAITING,
    STEADY_S,
    Events,
    Frame,
    Link,
    LinkState,
    Subscription,
)
from vmagent.broker.profiles import PROFILES
from vmagent.errors import Fault, FaultKind


class Posted(NamedTuple):
    command: str
    headers: Mapping[str, str]
    body: bytes


class FakeSession:
    """Records; the test reports to `events`."""

    def __init__(self, url: str, events: Events) -> None:
        self.url = url
        self.events = events
        self.posted: List[Posted] = []
        self.opened = self.was_cut = False

    def open(self) -> None:
        self.opened = True

    def post(self, command: str, headers: Mapping[str, str], body: bytes = b"") -> None:
        assert not self.was_cut
        self.posted.append(Posted(command, headers, body))

    def cut(self) -> None:
        self.was_cut = True

    # what the broker does

    def connected(self, beats: str = "0,0") -> FakeSession:
        self.events.connected(self, {"heart-beat": beats})
        return self

    def confirm(self, count: int = 1000) -> None:
        for posted in list(self.posted)[:count]:
            self.events.receipt(self, posted.headers["receipt"])


class Rig:
    def __init__(self, *subscriptions: Subscription, seed: int = 1, **changes: Any) -> None:
        self.clock = Clock()
        self.sessions: List[FakeSession] = []
        self.frames: List[Frame] = []
        self.states: List[LinkState] = []
        settings = broker_settings(**{"reconnect_max_s": 60.0, **changes})
        self.link = Link(
            settings, PROFILES[settings.profile], self.clock, lambda: 1000.0, Random(seed), subscriptions,
            self.frames.append, self.states.append, self._open,
        )  # fmt: skip

    def _open(self, url: str, events: Events) -> FakeSession:
        self.sessions.append(FakeSession(url, events))
        return self.sessions[-1]

    @property
    def session(self) -> FakeSession:
        return self.sessions[-1]

    def up(self) -> Rig:
        self.link.start()
        self.session.connected().confirm()
        assert self.link.state().up
        return self

    def send(self, body: bytes = b"x") -> List[Any]:
        """What became of it, once it did."""
        fate: List[Any] = []
        self.link.send("/queue/a", body, {}).addCallbacks(fate.append, lambda f: fate.append(f.value.kind))
        return fate

    def lose(self) -> None:
        self.session.events.lost(self.session, "as told")

    def wait_for_session(self) -> float:
        """Seconds until the next attempt."""
        count, before = len(self.sessions), self.clock.seconds()
        while len(self.sessions) == count:
            self.clock.advance(0.01)
        return self.clock.seconds() - before


def test_up_when_every_subscription_is_confirmed() -> None:
    rig = Rig(Subscription("a", "/queue/a"), Subscription("b", "/topic/b", durable=True))
    rig.link.start()
    rig.session.connected()
    assert not rig.link.state().up
    rig.session.confirm(1)
    assert not rig.link.state().up
    rig.session.confirm()
    assert rig.link.state().up
    assert [posted.headers["id"] for posted in rig.session.posted] == ["a", "b"]


def test_subscriptions_are_made_anew_on_each_session() -> None:
    rig = Rig(Subscription("a", "/queue/a")).up()
    rig.lose()
    rig.wait_for_session()
    rig.session.connected()
    assert [posted.command for posted in rig.session.posted] == ["SUBSCRIBE"]


def test_no_connected_in_time() -> None:
    rig = Rig(receipt_s=5.0)
    rig.link.start()
    rig.clock.advance(9.9)
    assert not rig.session.was_cut
    rig.clock.advance(0.2)
    assert rig.sessions[0].was_cut
    assert rig.link.state().failures == 1


def test_a_receipt_in_time_and_one_too_late() -> None:
    rig = Rig(receipt_s=5.0).up()
    early, late, behind = rig.send(b"1"), rig.send(b"2"), rig.send(b"3")
    rig.clock.advance(4.0)
    rig.session.confirm(1)
    assert early == [None]
    rig.clock.advance(1.1)
    assert (late, behind) == ([FaultKind.UNKNOWN], [FaultKind.AWAY])
    assert rig.sessions[0].was_cut
    rig.sessions[0].confirm()  # too late: nothing happens
    assert late == [FaultKind.UNKNOWN]


def test_an_ack_without_a_receipt_is_a_dead_link_too() -> None:
    rig = Rig(Subscription("a", "/queue/a"), receipt_s=5.0).up()
    rig.session.events.message(rig.session, {"ack": "1", "destination": "/queue/a"}, b"{}")
    rig.link.ack(rig.frames[0])
    rig.clock.advance(5.1)
    assert not rig.link.state().up


def test_down_fails_at_once() -> None:
    rig = Rig()
    assert rig.send() == [FaultKind.AWAY]
    rig.up()
    waiting = [rig.send() for _ in range(rig.link._settings.window + 10)]
    rig.lose()
    assert all(fate == [FaultKind.AWAY] for fate in waiting)


def test_down_is_told_before_the_sends_fail() -> None:
    """So that whoever resends knows that it is of no use yet."""
    rig = Rig().up()
    seen: List[bool] = []
    rig.link.send("/queue/a", b"x", {}).addErrback(lambda _: seen.append(rig.states[-1].up))
    rig.lose()
    assert seen == [False]


def test_sending_again_in_the_errback_is_harmless() -> None:
    rig = Rig().up()
    again: List[Any] = []

    def resend(_: Any) -> None:
        again.extend(rig.send())

    rig.link.send("/queue/a", b"x", {}).addErrback(resend)
    rig.lose()
    assert again == [FaultKind.AWAY]


def test_reports_of_an_earlier_session_are_not_listened_to() -> None:
    rig = Rig(Subscription("a", "/queue/a")).up()
    old = rig.session
    rig.lose()
    rig.wait_for_session()
    rig.session.connected().confirm()
    old.events.lost(old, "late")
    old.events.error(old, "", "late")
    old.events.message(old, {"ack": "1"}, b"late")
    old.events.connected(old, {})
    assert rig.link.state().up
    assert rig.frames == []


def test_the_wait_is_fully_jittered_the_first_time_too_and_grows_to_the_cap() -> None:
    first, later = [], []
    for seed in range(60):
        rig = Rig(seed=seed, reconnect_max_s=20.0)
        rig.link.start()
        rig.lose()
        first.append(rig.wait_for_session())
        for _ in range(8):
            rig.lose()
            later.append(rig.wait_for_session())
    assert 0 <= min(first) < 0.2 * FIRST_RETRY_S
    assert 0.8 * FIRST_RETRY_S < max(first) <= FIRST_RETRY_S + 0.02
    assert 15.0 < max(later) <= 20.02


def test_an_accepting_and_throwing_broker_is_not_hammered() -> None:
    """Up for a moment does not make the waits small again; up for long does."""
    rig = Rig().up()
    for count in range(1, 6):
        rig.lose()
        assert rig.link.state().failures == count
        rig.wait_for_session()
        rig.session.connected().confirm()
    rig.clock.advance(STEADY_S)
    rig.lose()
    assert rig.link.state().failures == 1


def test_every_url_is_tried_once_per_round_in_random_order() -> None:
    urls = tuple(f"stomp://h{n}:1" for n in range(4))
    orders = set()
    for seed in range(20):
        rig = Rig(seed=seed, urls=urls)
        rig.link.start()
        for _ in range(7):
            rig.lose()
            rig.wait_for_session()
        tried = [session.url for session in rig.sessions]
        assert sorted(tried[:4]) == sorted(tried[4:8]) == sorted(urls)
        orders.add(tuple(tried[:4]))
    assert len(orders) > 5


def test_an_error_without_a_name_is_about_the_only_frame_under_way() -> None:
    for count, kinds in ((1, [FaultKind.REFUSED]), (2, [FaultKind.AWAY, FaultKind.AWAY])):
        rig = Rig().up()
        fates = [rig.send() for _ in range(count)]
        rig.session.events.error(rig.session, "", "not found")
        assert [fate[0] for fate in fates] == kinds


def test_silence_is_counted_in_periods_and_any_sign_of_life_counts() -> None:
    rig = Rig(heartbeat_s=10.0)
    rig.link.start()
    rig.session.connected("5000,10000").confirm()
    for _ in range(10):
        rig.clock.advance(10.0)
        rig.session.events.heard(rig.session)
    assert rig.link.state().up
    rig.clock.pump([10.0] * 3)
    assert rig.link.state().up
    rig.clock.advance(10.0)
    assert not rig.link.state().up


@pytest.mark.parametrize("beats", ["0,0", "0,10000", "", "x,y"])
def test_a_broker_without_heartbeats_is_not_watched(beats: str) -> None:
    rig = Rig()
    rig.link.start()
    rig.session.connected(beats).confirm()
    rig.clock.pump([10.0] * 100)
    assert rig.link.state().up


def test_expiry_is_reckoned_when_it_is_sent() -> None:
    rig = Rig(profile="activemq").up()
    rig.link.send("/topic/t", b"x", {}, expires_s=60.0)
    assert rig.session.posted[-1].headers["expires"] == "1060000"


def test_too_many_waiting() -> None:
    rig = Rig(window=1).up()
    fates = [rig.send() for _ in range(MOST_WAITING + 2)]
    assert fates[-1] == [FaultKind.BUSY]
    assert not any(fates[:-1])


def test_stop_waits_for_the_goodbye_but_not_long() -> None:
    for polite in (True, False):
        rig = Rig().up()
        stopped: List[Any] = []
        fate = rig.send()
        rig.link.stop().addCallback(stopped.append)
        assert fate == [FaultKind.AWAY]
        assert rig.session.posted[-1].command == "DISCONNECT"
        assert stopped == []
        if polite:
            rig.session.confirm()
        else:
            rig.clock.advance(GOODBYE_S)
        assert stopped == [None]
        assert rig.session.was_cut
        assert rig.clock.getDelayedCalls() == []
        rig.lose()
        assert len(rig.sessions) == 1


def test_stop_while_waiting_for_the_next_attempt() -> None:
    rig = Rig().up()
    rig.lose()
    rig.link.stop()
    rig.clock.advance(1000)
    assert len(rig.sessions) == 1


def test_lost_while_saying_goodbye() -> None:
    rig = Rig().up()
    stopped: List[Any] = []
    rig.link.stop().addCallback(stopped.append)
    rig.lose()
    assert stopped == [None]
    assert rig.clock.getDelayedCalls() == []


def test_every_state_tells_something_new() -> None:
    rig = Rig().up()
    rig.lose()
    rig.wait_for_session()
    assert all(one != other for one, other in zip(rig.states, rig.states[1:]))
    assert [state.up for state in rig.states if state.failures == 0] == [False, True]


def test_the_fake_link_has_the_surface_of_the_real_one() -> None:
    surface: Dict[str, Any] = {
        name: inspect.signature(getattr(Link, name)) for name in ("start", "stop", "state", "send", "ack")
    }
    for name, signature in surface.items():
        assert list(inspect.signature(getattr(FakeLink, name)).parameters) == list(signature.parameters)


def test_a_fault_is_what_a_send_fails_with() -> None:
    rig = Rig()
    failures: List[Any] = []
    rig.link.send("/queue/a", b"", {}).addErrback(failures.append)
    assert isinstance(failures[0].value, Fault)
