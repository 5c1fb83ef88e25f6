"""No gap: what is denied stays denied while rules change and for an interface that has none yet; answers survive."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from typing import Callable, Iterator, List, Set, Tuple

import pytest

from tests.support import frames, traffic
from tests.support.frames import Station, ether, mark, marks_of, sent_tcp, sent_udp
from tests.support.traffic import HOST, NEIGHBOUR, A, B, Ground, beyond, with_firewall
from tests.support.traffic_rules import A_RULES, B_RULES, SITE, grounds
from tests.support.waiting import until
from vmagent.core.actions import Do
from vmagent.core.model import Firewall, Rule

pytestmark = pytest.mark.skipif(not traffic.READY, reason=traffic.NEEDED)

INSTANCE = "ztc"
STRANGER = INSTANCE + "nochain"
NOT_KNOWN = Station("06:00:00:00:00:33", "10.77.0.33", "fd77::33")
CHANGES = 50


@pytest.fixture(scope="module")
def kept() -> Iterator[Ground]:
    for made in grounds(INSTANCE, "guarded"):
        made.ports["stranger"] = made.plug(STRANGER)
        yield made


@pytest.fixture
def ground(kept: Ground) -> Ground:
    """As it was at the beginning."""
    kept.firewall.adopt(SITE)
    kept.reactor.settle(kept.firewall.start())
    kept.reactor.settle(kept.firewall.restore(list(kept.specs.values())))
    return kept


def variants(end: str) -> Iterator[Firewall]:
    """The same verdicts for all that is sent here, in other words."""
    rules = {"a": A_RULES, "b": B_RULES}[end]
    for port in itertools.cycle((9000, 9001, 9002)):
        more = Rule("allow", "tcp", ((port, port),), "198.18.77.0/24")
        yield dataclasses.replace(rules, inbound=(more, *rules.inbound), outbound=(more, *rules.outbound))


class Stream:
    """Denied frames of every kind, and now and then one that is allowed, one after another from a thread."""

    def __init__(self, ground: Ground, stranger: traffic.Port) -> None:
        self.rounds = 0
        self.allowed: Set[bytes] = set()
        self.denied: Set[bytes] = set()
        self._ground, self._stranger = ground, stranger
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        ports = self._ground.ports
        denied: List[Tuple[traffic.Port, Callable[[], bytes]]] = [
            (ports["a"], lambda: sent_tcp(A, beyond(1), 40000, 23)),
            (ports["a"], lambda: sent_udp(Station(A.mac, B.v4), NEIGHBOUR, 1, 2)),
            (ports["a"], lambda: ether(A.mac, frames.BROADCAST, 0x88B5, mark())),
            (ports["outside"], lambda: sent_tcp(beyond(1), B, 40000, 22)),
            (ports["outside"], lambda: sent_udp(beyond(1), A, 40000, 53)),
            (ports["host"], lambda: sent_udp(HOST, B, 40000, 54)),
            (self._stranger, lambda: frames.arp(NOT_KNOWN.mac, 1, (NOT_KNOWN.mac, NOT_KNOWN.v4), (B.mac, B.v4))),
            (self._stranger, lambda: sent_tcp(NOT_KNOWN, B, 40000, 80)),
        ]
        while not self._end.is_set():
            for port, make in denied:
                content = make()
                self.denied.update(marks_of(content))
                port.send(content)
            if self.rounds % 10 == 0:
                content = sent_udp(A, beyond(1), 40000, 80)
                self.allowed.update(marks_of(content))
                ports["a"].send(content)
            self.rounds += 1

    def close(self) -> None:
        self._end.set()
        self._thread.join()


def test_nothing_passes_while_rules_change_and_nothing_is_lost(ground: Ground) -> None:
    ground.introduce()
    stream = Stream(ground, ground.ports["stranger"])
    try:
        specs = {end: (spec, variants(end)) for end, spec in ground.specs.items()}
        for number in range(CHANGES):
            before = stream.rounds
            spec, rules = specs["ab"[number % 2]]
            if number % 5:
                ground.perform(Do.APPLY_FIREWALL, with_firewall(spec, next(rules)))
            else:
                changed = [with_firewall(each, next(wanted)) for each, wanted in specs.values()]
                ground.reactor.settle(ground.firewall.restore(changed))
            until(lambda before=before: stream.rounds > before, 10, "the stream goes on")
    finally:
        stream.close()
    assert len(stream.denied) >= CHANGES
    came = {end: ground.arrived(start, end) for start, end in (("a", "outside"), ("a", "host"), ("outside", "a"))}
    came["b"] = ground.arrived("a", "b") | ground.arrived("outside", "b")
    assert {end: seen & stream.denied for end, seen in came.items()} == {end: set() for end in came}
    assert stream.allowed <= came["outside"]


def test_an_interface_without_rules_says_and_hears_nothing(ground: Ground) -> None:
    """Neither while the rules of others change, nor when its own have been removed; without our table it does both."""
    stranger = ground.ports["stranger"]

    def tried() -> Tuple[Set[bytes], Set[bytes]]:
        """(marks that it sent, marks that were sent to it)"""
        heard = [ground.good("outside", "a"), ground.good("host", "a"), sent_tcp(NEIGHBOUR, NOT_KNOWN, 40000, 80)]
        said = [
            frames.arp(NOT_KNOWN.mac, 1, (NOT_KNOWN.mac, NOT_KNOWN.v4), (B.mac, B.v4)),
            sent_udp(NOT_KNOWN, HOST, 1, 2),
            sent_udp(NOT_KNOWN, beyond(1), 1, 2, 6),
            frames.dhcp(NOT_KNOWN, "0.0.0.0", (68, 67), 1),
        ]
        ground.introduce()
        for content in said:
            stranger.send(content)
        for end, content in zip(("outside", "host", "outside"), heard):
            ground.ports[end].send(content)
        return {m for each in said for m in marks_of(each)}, {m for each in heard for m in marks_of(each)}

    said, heard = tried()
    for end in ("a", "b"):
        ground.perform(Do.APPLY_FIREWALL, with_firewall(ground.specs[end], next(variants(end))))
        more_said, more_heard = tried()
        said, heard = said | more_said, heard | more_heard
    for end in ("outside", "host", "b"):
        assert not said & ground.arrived("a", end)
    traffic.ran("nft", "delete", "table", "bridge", f"vmagent_{INSTANCE}")
    good = ground.good("outside", "a")
    ground.ports["outside"].send(good)
    assert not heard & stranger.until(marks_of(good)[-1])
    said, _ = tried()
    assert said & ground.arrived("a", "outside")


def test_a_removed_guest_says_and_hears_nothing(ground: Ground) -> None:
    ground.perform(Do.REMOVE_FIREWALL, ground.specs["a"])
    said = sent_udp(A, beyond(1), 1, 2)
    ground.ports["a"].send(said)
    assert not set(marks_of(said)) & ground.arrived("b", "outside")
    ground.perform(Do.APPLY_FIREWALL, ground.specs["a"])
    said = sent_udp(A, beyond(1), 1, 2)
    ground.ports["a"].send(said)
    assert set(marks_of(said)) <= ground.arrived("a", "outside")


def test_an_answer_comes_after_a_change_of_the_rules(ground: Ground) -> None:
    ground.introduce()
    ground.ports["a"].send(sent_tcp(A, beyond(1, 30), 40000, 80))
    ground.perform(Do.APPLY_FIREWALL, with_firewall(ground.specs["a"], next(variants("a"))))
    answer = sent_tcp(beyond(1, 30), A, 80, 40000, "SA")
    ground.ports["outside"].send(answer)
    assert set(marks_of(answer)) <= ground.arrived("outside", "a")


def test_a_changed_rule_holds_at_once(ground: Ground) -> None:
    def opened(port: int, number: int) -> bool:
        ground.introduce()
        content = sent_tcp(beyond(number, 31), B, 40000, port)
        ground.ports["outside"].send(content)
        return set(marks_of(content)) <= ground.arrived("outside", "b")

    assert (opened(80, 1), opened(22, 1)) == (True, False)
    ground.perform(Do.APPLY_FIREWALL, with_firewall(ground.specs["b"], Firewall((Rule("allow", "tcp", ((22, 22),)),))))
    assert (opened(80, 2), opened(22, 2)) == (False, True)


def test_a_changed_rule_of_the_site_holds_for_all(ground: Ground) -> None:
    def leaves(number: int) -> bool:
        content = sent_udp(A, beyond(number, 32), 40000, 80)
        ground.ports["a"].send(content)
        return set(marks_of(content)) <= ground.arrived("a", "outside")

    assert leaves(1)
    closed = Firewall(outbound=(Rule("deny", cidr="198.18.32.0/24"),))
    ground.firewall.adopt(dataclasses.replace(SITE, rules=closed))
    ground.reactor.settle(ground.firewall.restore(list(ground.specs.values())))
    assert not leaves(2)
