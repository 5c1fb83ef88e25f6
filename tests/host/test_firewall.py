"""The adapter on the real kernel: what counts as seen, what is held, what survives a change, what is not touched."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path
from typing import Dict, Iterator, List, Sequence

import pytest

from tests.support import building, wires
from tests.support.lanes import HandTurned
from tests.support.waiting import until
from tests.support.wires import Wires
from vmagent.core import expressions as ex
from vmagent.core import identity, ruleset
from vmagent.core.actions import Action, Do
from vmagent.core.attributes import text
from vmagent.core.model import Drift, Firewall, NicLimits, Rule, VmSpec
from vmagent.core.policy import SiteFirewall
from vmagent.errors import Fault, FaultKind
from vmagent.host import firewall as subject
from vmagent.host import nfnetlink
from vmagent.host.firewall import NftFirewall
from vmagent.host.nfnetlink import Message, Refused, Tables
from vmagent.host.rulereading import RuleReader
from vmagent.host.rulewriting import RuleWriter
from vmagent.lanes import Lanes

pytestmark = pytest.mark.skipif(not wires.READY, reason=wires.NEEDED)

INSTANCE = "zth"
TABLE = f"vmagent_{INSTANCE}"
FOREIGN = "zthforeign"
BRIDGE = "ztbr0"
FORWARDING = "3"
V4, V6, NOT_OURS, NOT_OURS6 = "192.0.2.10", "2001:db8::10", "192.0.2.99", "2001:db8::99"
OTHER_MAC = "06:00:00:00:00:99"
SITE = SiteFirewall(local=("192.0.2.0/24", "198.18.0.0/15", "fc00::/7"))
RICH = NicLimits(
    firewall=Firewall((Rule("allow", "tcp", ((22, 22), (80, 90)), "10.0.0.0/8"),), (Rule("deny", "udp"),)),
    new_connections_per_s=50,
    destinations_per_minute=20,
)


def nft(*argv: str) -> str:
    return subprocess.run(["nft", *argv], check=True, capture_output=True).stdout.decode()


def guest(member: int = 0, nic: NicLimits = NicLimits(), *addresses: str) -> VmSpec:  # noqa: B008
    of = building.spec(member=member)
    device = identity.device_name(INSTANCE, of.vm, 0)
    given = addresses or (f"{V4}/24", f"{V6}/64")
    own = building.interface(of.vm, bridge=BRIDGE, addresses=given, device=device)
    return dataclasses.replace(of, interfaces=(own,), limits=dataclasses.replace(of.limits, nics=(nic,)))


class Rules:
    """The adapter, started, its answers as plain values."""

    def __init__(self, site: SiteFirewall = SITE) -> None:
        self.reactor = HandTurned()
        self.firewall = NftFirewall(INSTANCE, Lanes("nft", 2, self.reactor), site)
        self.reactor.settle(self.firewall.start())

    def do(self, do: Do, of: VmSpec) -> None:
        self.reactor.settle(self.firewall.perform(Action(do, of)))

    def drift(self, *specs: VmSpec) -> Dict[str, Sequence[Drift]]:
        return dict(self.reactor.settle(self.firewall.drift(specs)))

    def words(self, of: VmSpec) -> str:
        return " ".join(each.found for each in self.drift(of)[of.vm])

    def restore(self, *specs: VmSpec) -> None:
        self.reactor.settle(self.firewall.restore(specs))


@pytest.fixture
def rules() -> Iterator[Rules]:
    try:
        yield Rules()
    finally:
        for table in (TABLE, FOREIGN):
            subprocess.run(["nft", "delete", "table", "bridge", table], capture_output=True)


@pytest.fixture
def foreign(rules: Rules) -> str:
    """Somebody else's table."""
    nft("add", "table", "bridge", FOREIGN)
    nft("add", "chain", "bridge", FOREIGN, "theirs")
    return FOREIGN


def device_of(of: VmSpec) -> str:
    return of.interfaces[0].device


# -- what the kernel says is what we said


def test_an_independent_reader_finds_the_rules_that_were_meant(rules: Rules) -> None:
    """`nft` decodes them by itself: our bytes say what our comments say."""
    of = guest(0, RICH)
    rules.do(Do.APPLY_FIREWALL, of)
    device, mac = device_of(of), of.interfaces[0].mac
    listed = [line.strip() for line in nft("list", "table", "bridge", TABLE).splitlines()]
    new = "ct status ! confirmed " if rules.firewall.info().tracking == "conntrack" else ""
    for line in (
        "type filter hook prerouting priority filter - 10; policy accept;",
        "iifname vmap @source",
        f'iifname "{INSTANCE}*" counter name "unclaimed" drop',
        f'elements = {{ "{device}" : goto inbound_{device} }}',
        "elements = { 192.0.2.0/24, 198.18.0.0/15 }",
        f'ether saddr != {mac} counter name "spoofed_{device}" drop',
        f'ip saddr {V4} counter name "seen_{device}" accept',
        f'ip6 saddr {V6} counter name "seen_{device}" accept',
        f"ip saddr 10.0.0.0/8 tcp dport 80-90 goto passed_in_{device}",
        f'meta l4proto udp counter name "dropped_out_{device}" drop',
        f'{new}limit rate over 50/second burst 50 packets counter name "capped_{device}" drop',
        f'ip daddr @local4 counter name "out_local_{device}" accept',
        f'counter name "in_external_{device}" accept',
    ):
        assert line in listed, line


def test_every_rule_is_given_back_byte_by_byte(rules: Rules) -> None:
    """Else every comparison would take the slow way."""
    of = guest(0, RICH)
    rules.do(Do.APPLY_FIREWALL, of)
    mode = rules.firewall.info().tracking
    wanted = ruleset.device_rules(INSTANCE, of.interfaces[0], RICH, SITE, mode)
    with Tables() as tables:
        found = RuleReader(INSTANCE).read_device(tables, device_of(of))
    assert {name: list(each) for name, each in wanted.chains.items()} == found.chains


# -- held


HARM = {
    "a flushed chain": "flush chain bridge {table} source_{device}",
    "an extra rule": "insert rule bridge {table} inbound_{device} accept",
    "a rule at the end": "add rule bridge {table} outbound_{device} accept",
    "a map without the interface": 'delete element bridge {table} inbound {{ "{device}" }}',
    "a base chain without rules": "flush chain bridge {table} outbound",
    "a base chain that drops": "chain bridge {table} inbound {{ policy drop ; }}",
    "another local prefix": "add element bridge {table} local4 {{ 10.0.0.0/8 }}",
    "no local prefix": "flush set bridge {table} local6",
    "a shared chain": "flush chain bridge {table} asking",
    "the whole table": "delete table bridge {table}",
}


@pytest.mark.parametrize("harm", HARM)
def test_whatever_somebody_does_is_told_and_mended(rules: Rules, harm: str) -> None:
    of = guest(0, RICH)
    rules.do(Do.APPLY_FIREWALL, of)
    assert rules.words(of) == ""
    assert not rules.firewall.stale()
    nft(*HARM[harm].format(table=TABLE, device=device_of(of)).split())
    assert rules.firewall.stale()
    assert rules.words(of) != ""
    rules.restore(of)
    assert rules.words(of) == ""
    assert not rules.firewall.stale()


def test_an_entry_that_leads_elsewhere(rules: Rules) -> None:
    of = guest()
    rules.do(Do.APPLY_FIREWALL, of)
    key = f'{{ "{device_of(of)}" }}'
    nft("delete", "element", "bridge", TABLE, "source", key)
    nft("add", "element", "bridge", TABLE, "source", key.replace(" }", " : accept }"))
    assert "map source leads it elsewhere" in rules.words(of)
    rules.restore(of)
    assert rules.words(of) == ""


def test_a_base_chain_that_hangs_nowhere(rules: Rules) -> None:
    of = guest()
    rules.do(Do.APPLY_FIREWALL, of)
    nft("delete", "chain", "bridge", TABLE, "inbound")
    nft("add", "chain", "bridge", TABLE, "inbound")
    assert "base chain inbound has (hook, priority, policy) None" in rules.words(of)
    rules.restore(of)
    assert rules.words(of) == ""


def test_many_are_compared_by_one_listing_and_the_same_is_found(rules: Rules) -> None:
    specs = [guest(member) for member in range(12)]
    rules.restore(*specs)
    assert not any(rules.drift(*specs).values())
    nft("flush", "chain", "bridge", TABLE, f"source_{device_of(specs[7])}")
    found = rules.drift(*specs)
    assert [vm for vm, drift in found.items() if drift] == [specs[7].vm]
    assert found == rules.drift(*specs)
    rules.restore(*specs)
    assert not any(rules.drift(*specs).values())


def test_one_wish_looked_at_alone_does_not_hide_what_happened_to_another(rules: Rules) -> None:
    one, other = guest(0), guest(1)
    rules.restore(one, other)
    rules.drift(one, other)
    nft("flush", "chain", "bridge", TABLE, f"source_{device_of(other)}")
    assert rules.drift(one)[one.vm] == ()
    assert rules.firewall.stale()
    assert rules.drift(one, other)[other.vm] != ()
    assert not rules.firewall.stale()


def test_our_own_change_makes_its_own_interface_stale_only(rules: Rules) -> None:
    one, other = guest(0), guest(1)
    rules.do(Do.APPLY_FIREWALL, one)
    rules.drift(one)
    rules.do(Do.APPLY_FIREWALL, other)
    assert rules.firewall.stale()
    assert rules.drift(other)[other.vm] == ()
    assert not rules.firewall.stale()


def test_a_wish_repeated_changes_nothing(rules: Rules) -> None:
    of = guest(0, RICH)
    rules.do(Do.APPLY_FIREWALL, of)
    with Tables() as tables:
        before = tables.generation()
        rules.do(Do.APPLY_FIREWALL, of)
        rules.restore(of)
        assert tables.generation() == before


# -- what stays


def counter(name: str, table: str = TABLE) -> int:
    said = re.search(r"packets (\d+)", nft("list", "counter", "bridge", table, name))
    assert said
    return int(said.group(1))


def test_a_counter_outlives_every_change_but_the_removal(rules: Rules) -> None:
    of = guest()
    rules.do(Do.APPLY_FIREWALL, of)
    name = f"spoofed_{device_of(of)}"
    nft("reset", "counter", "bridge", TABLE, name)
    handle = re.compile(rf"counter {name}.*# handle (\d+)")
    before = handle.search(nft("-a", "list", "table", "bridge", TABLE))
    rules.do(Do.APPLY_FIREWALL, guest(0, RICH))
    rules.restore(guest(0, RICH))
    Rules()
    after = handle.search(nft("-a", "list", "table", "bridge", TABLE))
    assert before and after and before.group(1) == after.group(1)


def test_another_cap_makes_a_new_set_and_lifting_it_takes_it_away(rules: Rules) -> None:
    device = device_of(guest())
    for most in (20, 30, None):
        nic = NicLimits(destinations_per_minute=most)
        of = guest(0, nic)
        rules.do(Do.APPLY_FIREWALL, of)
        assert rules.words(of) == ""
        listed = nft("list", "table", "bridge", TABLE)
        assert (f"set destinations4_{device}" in listed) == (most is not None)
        assert (f"size {most}" in listed) == (most is not None)


def test_a_rule_change_keeps_the_flows(rules: Rules) -> None:
    of = guest()
    rules.do(Do.APPLY_FIREWALL, of)
    flows = f"flows4_{device_of(of)}"
    if rules.firewall.info().tracking == "conntrack":  # the kernel's own, which our table does not hold
        assert flows not in nft("list", "table", "bridge", TABLE)
        return
    nft("add", "element", "bridge", TABLE, flows, "{ 10.0.0.1 . 192.0.2.10 . tcp . 80 . 4000 }")
    rules.do(Do.APPLY_FIREWALL, guest(0, RICH))
    assert "10.0.0.1" in nft("list", "set", "bridge", TABLE, flows)


def test_a_new_agent_on_the_same_host_disturbs_nothing(rules: Rules) -> None:
    of = guest()
    rules.do(Do.APPLY_FIREWALL, of)
    before = nft("-a", "list", "table", "bridge", TABLE)
    again = Rules()
    assert again.drift(of)[of.vm] == ()
    assert nft("-a", "list", "table", "bridge", TABLE) == before


def test_the_guard_drops_by_default_and_leaves_what_is_there(rules: Rules) -> None:
    nft("delete", "table", "bridge", TABLE)
    subject.guard(INSTANCE)
    assert f'oifname "{INSTANCE}*" counter name "unclaimed" drop' in nft("list", "table", "bridge", TABLE)
    rules = Rules()
    of = guest()
    rules.do(Do.APPLY_FIREWALL, of)
    before = nft("list", "table", "bridge", TABLE)
    subject.guard(INSTANCE)
    assert nft("list", "table", "bridge", TABLE) == before
    nft("flush", "chain", "bridge", TABLE, "inbound")
    subject.guard(INSTANCE)
    assert nft("list", "table", "bridge", TABLE) == before


def test_other_people_s_tables_are_neither_touched_nor_read_as_ours(rules: Rules, foreign: str) -> None:
    before = nft("-a", "list", "table", "bridge", foreign)
    of = guest()
    nft("add", "chain", "bridge", foreign, f"source_{INSTANCE}stranger")
    nft("add", "counter", "bridge", foreign, f"seen_{INSTANCE}stranger")
    rules.do(Do.APPLY_FIREWALL, of)
    assert rules.reactor.settle(rules.firewall.devices()) == {device_of(of)}
    assert rules.reactor.settle(rules.firewall.watched()) == {device_of(of): 0}
    rules.do(Do.REMOVE_FIREWALL, of)
    after = nft("-a", "list", "table", "bridge", foreign)
    assert set(before.splitlines()) <= set(after.splitlines())
    nft("delete", "table", "bridge", TABLE)
    assert rules.reactor.settle(rules.firewall.devices()) == frozenset()
    assert rules.reactor.settle(rules.firewall.watched()) == {}


def test_somebody_s_other_chain_in_our_table_stays(rules: Rules) -> None:
    nft("add", "chain", "bridge", TABLE, "mine")
    of = guest()
    rules.do(Do.APPLY_FIREWALL, of)
    rules.do(Do.REMOVE_FIREWALL, of)
    said = nft("list", "table", "bridge", TABLE)
    assert "chain mine" in said
    assert device_of(of) not in said


def test_what_is_left_of_an_interface_is_found_and_forgotten(rules: Rules) -> None:
    """Whatever of it: a counter alone, a chain alone."""
    one, other = f"{INSTANCE}one", f"{INSTANCE}an-other"
    nft("add", "counter", "bridge", TABLE, f"in_local_{one}")
    nft("add", "chain", "bridge", TABLE, f"passed_out_{other}")
    assert rules.reactor.settle(rules.firewall.devices()) == {one, other}
    rules.reactor.settle(rules.firewall.forget([one, other]))
    assert rules.reactor.settle(rules.firewall.devices()) == frozenset()


# -- all or nothing


def test_a_transaction_that_fails_changes_nothing_and_says_where(rules: Rules) -> None:
    of = guest()
    rules.do(Do.APPLY_FIREWALL, of)
    before = nft("list", "table", "bridge", TABLE)
    writer = RuleWriter(INSTANCE)
    with Tables() as tables:
        found = RuleReader(INSTANCE).read_device(tables, device_of(of))
        broken = writer.scratch("tried", ex.verdict(ex.GOTO, "nowhere"))
        with pytest.raises(Refused) as caught:
            tables.commit([*writer.removal(device_of(of), found), *broken])
    assert caught.value.kind is FaultKind.REFUSED
    assert "adding rule 1 of tried (goto nowhere): No such file or directory" in caught.value.detail
    assert nft("list", "table", "bridge", TABLE) == before


def test_without_the_right_to_do_it_the_kernel_s_words_are_told() -> None:
    message = Message(nfnetlink.DEL_TABLE, text(1, "vmagent_no_such"), "deleting what is not there")
    with Tables() as tables, pytest.raises(Refused) as caught:
        tables.commit([message])
    assert "deleting what is not there: No such file or directory" in str(caught.value)


def test_an_adapter_that_was_not_started_proves_and_applies_nothing() -> None:
    reactor = HandTurned()
    made = NftFirewall(INSTANCE, Lanes("nft", 1, reactor), SITE)
    assert made.info().tracking == "none"
    assert made.stale()
    with pytest.raises(Fault) as caught:
        reactor.settle(made.perform(Action(Do.APPLY_FIREWALL, guest())))
    assert caught.value.kind is FaultKind.REFUSED


def test_five_hundred_rules_go_in_at_once(rules: Rules) -> None:
    allow: List[Rule] = [Rule("allow", "tcp", ((port, port),)) for port in range(1, 501)]
    of = guest(0, NicLimits(firewall=Firewall(inbound=tuple(allow))))
    rules.do(Do.APPLY_FIREWALL, of)
    assert rules.words(of) == ""


# -- seen from outside


class World(Rules):
    """One guest on a bridge of its own, watched."""

    def __init__(self) -> None:
        super().__init__()
        self.wires = Wires(BRIDGE, "192.0.2.1/24", "2001:db8::1/64")
        self.spec = guest()
        self.device, self.mac = device_of(self.spec), self.spec.interfaces[0].mac
        self.do(Do.APPLY_FIREWALL, self.spec)
        self.do(Do.WATCH_NETWORK, self.spec)
        self.plug(self.device)

    def plug(self, device: str) -> None:
        """On the bridge, and the bridge has taken notice: until then it drops what comes in."""
        self.wires.plug(device)
        state = Path("/sys/class/net", device, "brport", "state")
        until(lambda: state.read_text().strip() == FORWARDING, 5, f"{device} forwards")

    def frames(self) -> int:
        return int(self.reactor.settle(self.firewall.watched())[self.device])

    def counted(self, content: bytes) -> int:
        """How many more frames are counted once this one and, behind it, a known good one went by."""
        before = self.frames()
        self.wires.send(self.device, content)
        self.wires.send(self.device, wires.arp(self.mac, V4))
        until(lambda: self.frames() > before, 5, "the good frame is counted")
        return self.frames() - before - 1


@pytest.fixture
def world(rules: Rules) -> Iterator[World]:
    made = World()
    try:
        yield made
    finally:
        made.wires.close()


def test_a_guest_that_says_nothing_counts_nothing(world: World) -> None:
    assert world.frames() == 0


def test_assigned_addresses_count_in_all_three_protocols(world: World) -> None:
    assert world.counted(wires.arp(world.mac, V4)) == 1
    assert world.counted(wires.udp4(world.mac, V4)) == 1
    assert world.counted(wires.packet6(world.mac, V6)) == 1


def test_other_addresses_do_not_count(world: World) -> None:
    assert world.counted(wires.arp(world.mac, NOT_OURS)) == 0
    assert world.counted(wires.arp(world.mac, "0.0.0.0")) == 0
    assert world.counted(wires.udp4(world.mac, NOT_OURS)) == 0
    for address in (NOT_OURS6, "::", "fe80::10"):
        assert world.counted(wires.packet6(world.mac, address)) == 0


def test_another_mac_does_not_count(world: World) -> None:
    assert world.counted(wires.arp(world.mac, V4, sender_mac=OTHER_MAC)) == 0
    assert world.counted(wires.udp4(OTHER_MAC, V4)) == 0
    assert world.counted(wires.packet6(OTHER_MAC, V6)) == 0


def test_what_does_not_pass_is_counted_as_spoofed(world: World) -> None:
    world.counted(wires.arp(world.mac, NOT_OURS))
    world.counted(wires.udp4(OTHER_MAC, V4))
    counters = world.reactor.settle(world.firewall.counters())[world.device]
    assert counters.spoofed_packets == 2


def test_an_interface_without_rules_says_nothing(world: World) -> None:
    world.plug(f"{INSTANCE}norules")
    before = counter("unclaimed")
    world.wires.send(f"{INSTANCE}norules", wires.arp(world.mac, V4))
    until(lambda: counter("unclaimed") > before, 5, "it is dropped")
    assert world.frames() == 0


def test_watching_again_starts_from_zero_and_counts_each_frame_once(world: World) -> None:
    world.counted(wires.arp(world.mac, V4))
    world.do(Do.WATCH_NETWORK, world.spec)
    assert world.frames() == 0
    assert world.counted(wires.arp(world.mac, V4)) == 1


def test_a_rule_change_leaves_the_count_alone(world: World) -> None:
    world.counted(wires.arp(world.mac, V4))
    before = world.frames()
    world.do(Do.APPLY_FIREWALL, guest(0, RICH))
    other = guest(1)
    world.do(Do.APPLY_FIREWALL, other)
    world.do(Do.REMOVE_FIREWALL, other)
    assert world.frames() == before


def test_a_silent_guest_answers_a_nudge(world: World) -> None:
    world.wires.guest(world.device, world.mac, f"{V4}/24", f"{V6}/64")
    world.do(Do.WATCH_NETWORK, world.spec)
    for address in (f"{V4}/24", f"{V6}/64"):
        before = world.frames()
        world.firewall.nudge(BRIDGE, (address,))
        until(lambda before=before: world.frames() > before, 5, f"{address} answers")


def test_a_nudge_for_an_address_out_of_the_bridge_s_subnets_sends_nothing(world: World) -> None:
    world.wires.guest(world.device, world.mac, "198.51.100.5/24")
    world.do(Do.APPLY_FIREWALL, guest(0, NicLimits(), "198.51.100.5/24"))
    world.do(Do.WATCH_NETWORK, world.spec)
    world.firewall.nudge(BRIDGE, ("198.51.100.5/24",))
    world.reactor.turn()
    assert world.frames() == 0
    neighbours = subprocess.run(["ip", "neigh", "show", "dev", BRIDGE], capture_output=True).stdout
    assert b"198.51.100.5" not in neighbours
