"""The table of brokers, row by row (FORMATS 9.2).  Artemis is not at hand: its rows stand on its manual."""

from __future__ import annotations

import pytest

from vmagent.broker.profiles import PREFETCH_FRAMES, PROFILES

ALL = sorted(PROFILES)


def test_the_three_brokers() -> None:
    assert ALL == ["activemq", "artemis", "rabbitmq"]
    assert all(PROFILES[name].name == name for name in ALL)


@pytest.mark.parametrize("name", ALL)
def test_what_every_broker_needs(name: str) -> None:
    profile = PROFILES[name]
    send = profile.send_headers("/queue/a.b", {"vma-id": "1"}, None, 0.0)
    assert send["persistent"] == "true"
    assert send["vma-id"] == "1"
    assert not {"expires", "expiration", "message-id", "type"} & set(send)
    subscribe = profile.subscribe_headers("/queue/a.b", "a", False, "c", 1024)
    assert subscribe["ack"] == "client-individual"
    assert subscribe["id"] == "a"
    assert profile.connect_headers("") == {}


@pytest.mark.parametrize("name", ALL)
def test_our_own_headers_cannot_replace_the_brokers(name: str) -> None:
    send = PROFILES[name].send_headers("/topic/t", {"destination": "/queue/x", "persistent": "false"}, None, 0.0)
    assert send["destination"] != "/queue/x"
    assert send["persistent"] == "true"


@pytest.mark.parametrize(
    ("name", "header", "value"),
    [
        ("rabbitmq", "expiration", "90500"),
        ("activemq", "expires", "1090500"),
        ("artemis", "expires", "1090500"),
    ],
)
def test_expiry(name: str, header: str, value: str) -> None:
    assert PROFILES[name].send_headers("/topic/t", {}, 90.5, 1000.0)[header] == value


@pytest.mark.parametrize(
    ("name", "queue", "topic"),
    [
        ("rabbitmq", "/queue/a", "/topic/a"),
        ("activemq", "/queue/a", "/topic/a"),
        ("artemis", "a", "a"),
    ],
)
def test_names(name: str, queue: str, topic: str) -> None:
    assert PROFILES[name].destination("/queue/a") == queue
    assert PROFILES[name].destination("/topic/a") == topic
    assert PROFILES[name].destination("/reply-queue/x") == "/reply-queue/x"


def test_artemis_is_told_the_kind_of_an_address() -> None:
    """Its default is MULTICAST: a command sent so to an address without a queue would be lost."""
    profile = PROFILES["artemis"]
    assert profile.send_headers("/queue/a", {}, None, 0.0)["destination-type"] == "ANYCAST"
    assert profile.send_headers("/topic/a", {}, None, 0.0)["destination-type"] == "MULTICAST"
    assert profile.subscribe_headers("/queue/a", "a", False, "c", 1)["subscription-type"] == "ANYCAST"
    assert profile.subscribe_headers("/topic/a", "a", True, "c", 1)["subscription-type"] == "MULTICAST"


@pytest.mark.parametrize(
    ("name", "connect", "subscribe"),
    [
        ("rabbitmq", {}, {"durable": "true", "auto-delete": "false", "x-queue-name": "all"}),
        ("activemq", {"client-id": "vma.s.h"}, {"activemq.subscriptionName": "all"}),
        ("artemis", {"client-id": "vma.s.h"}, {"durable-subscription-name": "all"}),
    ],
)
def test_durable_subscriptions(name: str, connect: object, subscribe: object) -> None:
    profile = PROFILES[name]
    plain = profile.subscribe_headers("/topic/a", "all", False, "vma.s.h", 1)
    durable = profile.subscribe_headers("/topic/a", "all", True, "vma.s.h", 1)
    assert profile.connect_headers("vma.s.h") == connect
    assert {header: value for header, value in durable.items() if header not in plain} == subscribe


@pytest.mark.parametrize(
    ("name", "header", "value"),
    [
        ("rabbitmq", "prefetch-count", PREFETCH_FRAMES),
        ("activemq", "activemq.prefetchSize", PREFETCH_FRAMES),
        ("artemis", "consumer-window-size", PREFETCH_FRAMES * 65536),
    ],
)
def test_prefetch_is_bounded(name: str, header: str, value: int) -> None:
    assert PROFILES[name].subscribe_headers("/queue/a", "a", False, "c", 65536)[header] == str(value)
