"""Answers come back, in both directions and both families; what only looks like an answer does not.

Each row: frames that go ahead (a conversation), then the frame in question.  Every conversation has a peer of its own,
so that no row lives on what another one opened.
"""

from __future__ import annotations

import itertools
from typing import Iterator, List, Sequence, Tuple

import pytest

from tests.support import frames, traffic
from tests.support.frames import Station, carry, ip, mark, sent_ping, sent_protocol, sent_tcp, sent_udp
from tests.support.traffic import A2, HOST, NEIGHBOUR, A, B, Case, Ground, beyond
from tests.support.traffic_rules import WAYS, checked, grounds, judge

pytestmark = pytest.mark.skipif(not traffic.READY, reason=traffic.NEEDED)

_PEERS = itertools.count(1)
FAMILIES = (4, 6)
FLOOD = 9000  # more than one guest may have flows
MINE = 41000  # the port of whoever opens


def peer(network: int = 20) -> Station:
    return beyond(next(_PEERS), network)


def row(id: str, passes: bool, start: str, to: str, frame: bytes, *before: Tuple[str, bytes]) -> Case:
    return Case(f"{'allowed' if passes else 'denied'}-{id}", start, to, frame, passes, before)


def inward(id: str, passes: bool, frame: bytes, *before: bytes) -> Case:
    """To guest "a" from the outside, after what "a" sent."""
    return row(id, passes, "outside", "a", frame, *(("a", each) for each in before))


def in_turn(*talk: bytes) -> List[Tuple[str, bytes]]:
    """Guest "a" begins and the outside answers."""
    return [(("a", "outside")[index % 2], each) for index, each in enumerate(talk)]


def of_tcp(family: int) -> Sequence[Case]:
    p, q, r, s, t, u, v = (peer() for _ in range(7))
    return (
        inward(f"tcp{family}-answer", True, sent_tcp(p, A, 80, MINE, "SA", family),
               sent_tcp(A, p, MINE, 80, "S", family)),
        row(f"tcp{family}-more", True, "outside", "a", sent_tcp(q, A, 80, MINE, "PA", family), *in_turn(
            sent_tcp(A, q, MINE, 80, "S", family), sent_tcp(q, A, 80, MINE, "SA", family),
            sent_tcp(A, q, MINE, 80, "A", family))),
        row(f"tcp{family}-onwards", True, "a", "outside", sent_tcp(A, r, MINE, 80, "A", family), *in_turn(
            sent_tcp(A, r, MINE, 80, "S", family), sent_tcp(r, A, 80, MINE, "SA", family))),
        inward(f"tcp{family}-reset", True, sent_tcp(v, A, 80, MINE, "RA", family),
               sent_tcp(A, v, MINE, 80, "S", family)),
        inward(f"tcp{family}-unasked", False, sent_tcp(s, A, 80, MINE, "SA", family)),
        inward(f"tcp{family}-unasked-data", False, sent_tcp(s, A, 80, MINE, "PA", family)),
        inward(f"tcp{family}-to-another-port", False, sent_tcp(t, A, 80, MINE + 1, "SA", family),
               sent_tcp(A, t, MINE, 80, "S", family)),
        inward(f"tcp{family}-from-another-port", False, sent_tcp(t, A, 81, MINE, "SA", family),
               sent_tcp(A, t, MINE, 80, "S", family)),
        inward(f"tcp{family}-from-another-peer", False, sent_tcp(u, A, 80, MINE, "SA", family),
               sent_tcp(A, t, MINE, 80, "S", family)),
        inward(f"tcp{family}-to-second-address", False, sent_tcp(t, A2, 80, MINE, "SA", family),
               sent_tcp(A, t, MINE, 80, "S", family)),
        inward(f"tcp{family}-by-udp", False, sent_udp(t, A, 80, MINE, family), sent_tcp(A, t, MINE, 80, "S", family)),
    )  # fmt: skip


def of_udp(family: int) -> Sequence[Case]:
    p, q, r = (peer() for _ in range(3))
    asked = sent_udp(A, q, MINE, 53, family)
    return (
        inward(f"udp{family}-answer", True, sent_udp(p, A, 53, MINE, family), sent_udp(A, p, MINE, 53, family)),
        inward(f"udp{family}-unasked", False, sent_udp(r, A, 53, MINE, family)),
        inward(f"udp{family}-to-another-port", False, sent_udp(q, A, 53, MINE + 1, family), asked),
        inward(f"udp{family}-from-another-port", False, sent_udp(q, A, 54, MINE, family), asked),
        inward(f"udp{family}-from-another-peer", False, sent_udp(r, A, 53, MINE, family), asked),
        inward(f"udp{family}-to-second-address", False, sent_udp(q, A2, 53, MINE, family), asked),
        inward(f"udp{family}-by-tcp", False, sent_tcp(q, A, 53, MINE, "SA", family), asked),
        inward(f"udp{family}-then-ping", False, sent_ping(q, A, 3, family=family), asked),
        inward(f"udp{family}-then-gre", False, sent_protocol(q, A, 47, family), asked),
    )  # fmt: skip


def of_ping(family: int) -> Sequence[Case]:
    p, q, r = (peer() for _ in range(3))
    asked = sent_ping(A, q, 9, family=family)
    return (
        inward(f"ping{family}-answer", True, sent_ping(p, A, 9, True, family), sent_ping(A, p, 9, family=family)),
        inward(f"ping{family}-unasked", False, sent_ping(r, A, 9, True, family)),
        inward(f"ping{family}-from-another-peer", False, sent_ping(r, A, 9, True, family), asked),
        inward(f"ping{family}-asked-back", False, sent_ping(q, A, 9, family=family), asked),
        inward(f"ping{family}-then-udp", False, sent_udp(q, A, 53, MINE, family), asked),
    )


def never_opened(family: int) -> Sequence[Case]:
    """What was denied or spoofed opens nothing."""
    p, q, r = (peer() for _ in range(3))
    as_b = Station(A.mac, B.v4, B.v6)
    return (
        inward(f"tcp{family}-after-denied", False, sent_tcp(p, A, 23, MINE, "SA", family),
               sent_tcp(A, p, MINE, 23, "S", family)),
        inward(f"udp{family}-after-denied", False, sent_udp(p, A, 1500, MINE, family),
               sent_udp(A, p, MINE, 1500, family)),
        row(f"tcp{family}-after-spoofed", False, "outside", "b", sent_tcp(q, B, 90, MINE, "SA", family),
            ("a", sent_tcp(as_b, q, MINE, 90, "S", family))),
        row(f"udp{family}-after-unasked", False, "outside", "a", sent_udp(r, A, 53, MINE, family),
            ("outside", sent_udp(r, A, 53, MINE, family))),
    )  # fmt: skip


def of_services(family: int) -> Sequence[Case]:
    """Guest "b" answers those whom it lets in, also where it may not go by itself."""
    p, q, r, s = peer(5), peer(5), peer(5), peer()
    return (
        row(f"service-tcp{family}-answers", True, "b", "outside", sent_tcp(B, p, 80, MINE, "SA", family),
            ("outside", sent_tcp(p, B, MINE, 80, "S", family))),
        row(f"service-tcp{family}-is-answered", True, "outside", "b", sent_tcp(p, B, MINE, 80, "A", family),
            ("outside", sent_tcp(p, B, MINE, 80, "S", family)), ("b", sent_tcp(B, p, 80, MINE, "SA", family))),
        row(f"service-udp{family}-answers", True, "b", "outside", sent_udp(B, q, 30000, MINE, family),
            ("outside", sent_udp(q, B, MINE, 30000, family))),
        row(f"service-tcp{family}-begins", False, "b", "outside", sent_tcp(B, r, MINE, 80, "S", family)),
        row(f"service-udp{family}-begins", False, "b", "outside", sent_udp(B, r, 30000, MINE, family)),
        row(f"service-tcp{family}-unasked-answer", False, "b", "outside", sent_tcp(B, r, 80, MINE, "SA", family)),
        row(f"service-tcp{family}-another-port", False, "b", "outside", sent_tcp(B, p, MINE, 22, "S", family),
            ("outside", sent_tcp(p, B, MINE, 80, "S", family))),
        row(f"service-tcp{family}-refused-then-answers", False, "b", "outside", sent_tcp(B, r, 22, MINE, "SA", family),
            ("outside", sent_tcp(r, B, MINE, 22, "S", family))),
        row(f"service-elsewhere-{family}", True, "b", "outside", sent_tcp(B, s, MINE, 80, "S", family)),
    )  # fmt: skip


def between_guests(family: int) -> Sequence[Case]:
    return (
        row(f"guests-tcp{family}-answer", True, "b", "a", sent_tcp(B, A, 80, 42000, "SA", family),
            ("a", sent_tcp(A, B, 42000, 80, "S", family))),
        row(f"guests-tcp{family}-onwards", True, "a", "b", sent_tcp(A, B, 42001, 80, "A", family),
            ("a", sent_tcp(A, B, 42001, 80, "S", family)), ("b", sent_tcp(B, A, 80, 42001, "SA", family))),
        row(f"guests-udp{family}-answer", True, "b", "a", sent_udp(B, A, 53, 42000, family),
            ("a", sent_udp(A, B, 42000, 53, family))),
        row(f"guests-tcp{family}-unasked", False, "b", "a", sent_tcp(B, A, 80, 42002, "SA", family)),
        row(f"guests-udp{family}-unasked", False, "b", "a", sent_udp(B, A, 53, 42002, family)),
    )  # fmt: skip


def with_host(family: int) -> Sequence[Case]:
    """What the host's own stack answers: see test_traffic_live.  Conntrack does not see frames made by hand there."""
    return (
        row(f"host-udp{family}-unasked", False, "host", "a", sent_udp(HOST, A, 53, 43001, family)),
        row(f"host-service-tcp{family}", True, "b", "host", sent_tcp(B, HOST, 80, 43000, "SA", family),
            ("host", sent_tcp(HOST, B, 43000, 80, "S", family))),
    )  # fmt: skip


def of_the_site(family: int) -> Sequence[Case]:
    """The site's rules come before replies."""
    p = peer(102)
    return (
        row(f"site-way-out-{family}", True, "a", "outside", sent_tcp(A, p, MINE, 80, "S", family)),
        inward(f"site-tcp{family}-answer", False, sent_tcp(p, A, 80, MINE, "SA", family),
               sent_tcp(A, p, MINE, 80, "S", family)),
        inward(f"site-udp{family}-answer", False, sent_udp(p, A, 53, MINE, family), sent_udp(A, p, MINE, 53, family)),
    )  # fmt: skip


def error(source: Station, sent: bytes, family: int) -> bytes:
    """The router's word that a packet of guest "a" was too big."""
    quoted = sent[14:][:64] + mark()
    if family == 4:
        message = frames.icmp(3, 4, b"\0\0\x05\x14" + quoted)
        return carry(source, A, ip(source.v4, A.v4, frames.ICMP, message))
    message = frames.icmp6(source.v6, A.v6, 2, 0, b"\0\0\x05\x14" + quoted)
    return carry(source, A, ip(source.v6, A.v6, frames.ICMP6, message))


def of_errors(family: int) -> Sequence[Case]:
    p, q, r, s, t = (peer() for _ in range(5))
    to_p, to_q, to_r = (sent_udp(A, each, MINE, 53, family, 100) for each in (p, q, r))
    by_tcp = sent_tcp(A, s, MINE, 80, "S", family)
    return (
        inward(f"error{family}-of-the-peer", True, error(p, to_p, family), to_p),
        inward(f"error{family}-of-a-router", True, error(peer(), to_q, family), to_q),
        inward(f"error{family}-about-tcp", True, error(t, by_tcp, family), by_tcp),
        inward(f"error{family}-unasked", False, error(peer(), to_r, family)),
    )


def in_pieces(family: int) -> Sequence[Case]:
    p, q = peer(), peer()

    first, last = frames.in_two(p, A, 53, MINE, family, 51)
    unasked_first, unasked_last = frames.in_two(q, A, 53, MINE, family, 51)
    return (
        row(f"pieces{family}-of-an-answer", True, "outside", "a", last,
            ("a", sent_udp(A, p, MINE, 53, family)), ("outside", first)),
        row(f"pieces{family}-unasked", False, "outside", "a", unasked_last, ("outside", unasked_first)),
    )  # fmt: skip


KINDS = (
    of_tcp, of_udp, of_ping, never_opened, of_services, between_guests, with_host, of_the_site, of_errors, in_pieces,
)  # fmt: skip
CASES = checked(
    (
        *(case for kind in KINDS for family in FAMILIES for case in kind(family)),
        inward("neighbour-udp4-answer", True, sent_udp(NEIGHBOUR, A, 53, MINE), sent_udp(A, NEIGHBOUR, MINE, 53)),
    )
)


@pytest.fixture(scope="module", params=WAYS)
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    yield from grounds("zty", request.param)


@pytest.fixture
def way(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["ground"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_answers_come_back_and_nothing_else(ground: Ground, way: str, case: Case) -> None:
    judge(ground, way, case)


def test_one_guest_s_many_flows_hurt_no_other(ground: Ground, way: str) -> None:
    ground.introduce()
    for number in range(FLOOD):
        ground.ports["a"].send(sent_udp(A, NEIGHBOUR, MINE, 10000 + number))
    answer = sent_udp(beyond(1, 70), B, 53, MINE)
    ground.ports["b"].send(sent_udp(B, beyond(1, 70), MINE, 53))
    ground.ports["outside"].send(answer)
    assert frames.marks_of(answer)[-1] in ground.arrived("outside", "b")
