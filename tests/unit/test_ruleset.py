"""The rules as values: what is made of a wish, what is refused, how a difference is told, how netlink packs it."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any, List, Tuple

import pytest

from tests.support import building
from vmagent.core import antispoofing, ruledrift, ruleset, tracking
from vmagent.core import expressions as ex
from vmagent.core.attributes import attribute, number, number64, parsed, text, walk
from vmagent.core.frames import link_local
from vmagent.core.model import Firewall, NicLimits, Rule
from vmagent.core.policy import SiteFirewall
from vmagent.core.ruledrift import Found
from vmagent.core.ruleset import DeviceRules

INSTANCE = "va"
DEVICE = "vaaaaaaaaaaaa"
NIC = building.interface(
    "df94171b-8be8-508b-bca2-882e0ffbcd1f", device=DEVICE, mac="06:00:00:00:00:01",
    addresses=("10.77.0.5/24", "2001:db8::5/64"),
)  # fmt: skip
NOTHING = SiteFirewall(local=())


def made(
    nic: NicLimits = NicLimits(), site: SiteFirewall = NOTHING, mode: str = tracking.SETS, **kw: Any  # noqa: B008
) -> DeviceRules:
    return ruleset.device_rules(INSTANCE, dataclasses.replace(NIC, **kw), nic, site, mode)


def chain(name: str, **kw: Any) -> List[str]:
    return [ex.words(rule) for rule in made(**kw).chains[f"{name}_{DEVICE}"]]


def inbound(*rules: Rule) -> NicLimits:
    return NicLimits(firewall=Firewall(inbound=rules))


def between(nic: NicLimits) -> List[str]:
    """Inbound rules of this guest alone: those that it has not without them."""
    usual = chain("inbound")
    return [rule.split(" goto ")[0] for rule in chain("inbound", nic=nic) if rule not in usual]


# -- what is made


def test_the_end_of_every_way() -> None:
    assert chain("source")[-1] == f"counter spoofed_{DEVICE} drop"
    assert chain("outbound")[-1] == f"goto passed_out_{DEVICE}"
    assert chain("inbound")[-1] == f"counter dropped_in_{DEVICE} drop"
    assert chain("passed_out")[-1] == f"counter out_external_{DEVICE} accept"
    assert chain("passed_in")[-1] == f"counter in_external_{DEVICE} accept"


def test_the_first_thing_that_is_asked_is_the_mac() -> None:
    assert chain("source")[0] == f"@ll,48,48 != 060000000001 counter spoofed_{DEVICE} drop"


def test_each_range_of_ports_is_one_rule_and_there_is_no_anonymous_set() -> None:
    assert len(between(inbound(Rule("allow", "tcp", ((22, 22), (80, 90)))))) == 2


@pytest.mark.parametrize(
    "rule, words",
    [
        (Rule("allow", "tcp", ((22, 22),)), "meta == 06 @th,16,16 == 0016"),
        (Rule("allow", "udp", ((1, 65535),)), "meta == 11 @th,16,16 range"),
        (Rule("allow", "icmp"), "@ll,96,16 == 0800 meta == 01"),
        (Rule("allow", "icmpv6"), "@ll,96,16 == 86dd meta == 3a"),
        (Rule("allow", cidr="10.0.0.0/8"), "@ll,96,16 == 0800 @nh,96,32 bitwise == 0a000000"),
        (Rule("allow", cidr="10.0.0.1/32"), "@ll,96,16 == 0800 @nh,96,32 == 0a000001"),
        (Rule("allow", cidr="0.0.0.0/0"), "@ll,96,16 == 0800"),
        (Rule("allow", "tcp", cidr="::/0"), "@ll,96,16 == 86dd meta == 06"),
        (Rule("allow", "tcp"), "meta == 06"),
    ],
)
def test_a_rule_in_the_kernel_s_words(rule: Rule, words: str) -> None:
    assert between(inbound(rule)) == [words]


def test_a_rule_without_any_condition_is_a_verdict() -> None:
    assert f"goto passed_in_{DEVICE}" in chain("inbound", nic=inbound(Rule("allow")))
    assert chain("inbound", nic=inbound(Rule("deny")))[-2:] == [f"counter dropped_in_{DEVICE} drop"] * 2


def test_inbound_looks_at_the_source_and_outbound_at_the_destination() -> None:
    rule = Rule("deny", cidr="198.51.100.0/24")
    both = NicLimits(firewall=Firewall((rule,), (rule,)))
    assert any("@nh,96,32 bitwise == c6336400" in words for words in chain("inbound", nic=both))
    assert any("@nh,128,32 bitwise == c6336400" in words for words in chain("outbound", nic=both))


@pytest.mark.parametrize("mode", [tracking.SETS, tracking.CONNTRACK])
@pytest.mark.parametrize("way", ["inbound", "outbound"])
def test_the_site_comes_before_replies_and_replies_before_the_guest(way: str, mode: str) -> None:
    site = Rule("deny", cidr="198.51.100.0/24")
    own = Rule("allow", cidr="203.0.113.0/24")
    rules = chain(
        way, nic=NicLimits(firewall=Firewall((own,), (own,))), site=SiteFirewall(Firewall((site,), (site,))), mode=mode
    )
    first = next(at for at, words in enumerate(rules) if "c6336400" in words)
    replies = [at for at, words in enumerate(rules) if "lookup @flows" in words or words.startswith("ct ")]
    last = next(at for at, words in enumerate(rules) if "cb007100" in words)
    assert replies and first < min(replies) and max(replies) < last


def test_caps_come_after_the_guest_s_rules_and_need_a_set_per_family() -> None:
    nic = NicLimits(new_connections_per_s=5, destinations_per_minute=10, firewall=Firewall((), (Rule("deny", "udp"),)))
    rules = chain("outbound", nic=nic)
    deny = next(at for at, words in enumerate(rules) if words.startswith("meta == 11 counter dropped_out"))
    assert rules[deny + 1] == f"limit counter capped_{DEVICE} drop"
    assert [each.name for each in made(nic).sets if each.size == 10] == [f"destinations{v}_{DEVICE}" for v in (4, 6)]
    assert len(rules) == deny + 7


def test_conntrack_needs_no_sets_and_counts_only_what_is_not_confirmed() -> None:
    nic = NicLimits(new_connections_per_s=5)
    assert made(nic, mode=tracking.CONNTRACK).sets == ()
    rules = chain("outbound", nic=nic, mode=tracking.CONNTRACK)
    assert any(words.startswith("ct bitwise == 00000000 limit") for words in rules)


@pytest.mark.parametrize("addresses, sets", [(("10.0.0.1/24",), ["flows4"]), (("fd00::1/64",), ["flows6"]), ((), [])])
def test_a_family_without_an_address_has_no_set(addresses: Tuple[str, ...], sets: List[str]) -> None:
    assert [each.name for each in made(addresses=addresses).sets] == [f"{name}_{DEVICE}" for name in sets]


def test_one_guest_s_flows_are_bounded() -> None:
    assert {each.size for each in made().sets} == {tracking.FLOWS}


def test_the_link_local_address_comes_from_the_mac() -> None:
    assert str(link_local("52:54:00:ab:cd:ef")) == "fe80::5054:ff:feab:cdef"


def test_every_assigned_address_may_speak() -> None:
    rules = antispoofing.source_rules(dataclasses.replace(NIC, addresses=("10.0.0.1/8", "10.0.0.2/8")), "s", "seen")
    for address in ("0a000001", "0a000002"):
        assert any(f"@nh,96,32 == {address} counter seen accept" in ex.words(rule) for rule in rules)
        assert any(f"@nh,112,32 == {address} counter seen accept" in ex.words(rule) for rule in rules)


# -- local prefixes


@pytest.mark.parametrize(
    "prefixes, elements",
    [
        ((), []),
        (("10.0.0.0/8",), [("0a000000", False), ("0b000000", True)]),
        (("10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16"), [("0a000000", False), ("0b000000", True)]),
        (("0.0.0.0/0",), [("00000000", False)]),
        (("255.0.0.0/8",), [("ff000000", False)]),
        (("10.0.0.0/8", "12.0.0.0/8"), [(f"{n:02x}000000", n % 2 == 1) for n in (10, 11, 12, 13)]),
        (("10.0.0.0/8", "11.0.0.0/16"), [("0a000000", False), ("0b010000", True)]),
    ],
)
def test_prefixes_become_intervals(prefixes: Tuple[str, ...], elements: List[Tuple[str, bool]]) -> None:
    made = ruleset.local_elements(SiteFirewall(local=prefixes))
    assert [(key.hex(), end) for key, end in made["local4"]] == elements
    assert made["local6"] == ()


# -- what is refused


@pytest.mark.parametrize(
    "wrong",
    [
        {"device": "eth0"},
        {"device": "va"},
        {"device": "vax; flush ruleset"},
        {"device": "vaaaaaaaaaaaaaaa"},
        {"device": 'va"'},
        {"device": ""},
        {"mac": "06:00:00:00:00:01 accept"},
        {"mac": "06:00:00:00:00"},
        {"addresses": ("10.0.0.1/24 } ; flush ruleset",)},
        {"addresses": ("fe80::1%x/64",)},
        {"addresses": ("",)},
    ],
)
def test_wrong_values_never_become_rules(wrong: Any) -> None:
    with pytest.raises(ValueError):
        made(**wrong)


@pytest.mark.parametrize(
    "rule",
    [
        Rule("accept"),
        Rule("allow", "sctp"),
        Rule("allow", "tcp", ((0, 22),)),
        Rule("allow", "tcp", ((22, 70000),)),
        Rule("allow", "tcp", ((90, 80),)),
        Rule("allow", "icmp", ((1, 2),)),
        Rule("allow", "any", ((1, 2),)),
        Rule("allow", cidr="10.0.0.1/8"),
        Rule("allow", cidr="everybody"),
    ],
)
def test_wrong_rules_are_refused(rule: Rule) -> None:
    with pytest.raises(ValueError):
        made(inbound(rule))


@pytest.mark.parametrize("instance", ["", "a", "toolong", "a b", "A1"])
def test_a_wrong_instance_names_no_table(instance: str) -> None:
    with pytest.raises(ValueError):
        ruleset.table_name(instance)


# -- what differs


def as_wanted(of: DeviceRules) -> Found:
    found = Found({name: list(rules) for name, rules in of.chains.items()})
    found.sets = {each.name: ruledrift.make(each) for each in of.sets}
    found.maps = {base: {ruleset.map_key(DEVICE): ruleset.map_verdict(base, DEVICE)} for base in ruleset.BASES}
    return found


def test_what_is_as_wanted_does_not_differ() -> None:
    of = made()
    assert ruledrift.differences(of, as_wanted(of)) == []
    assert ruledrift.differences(of, Found()) == ["none of its rules is there"]


def test_each_difference_is_told() -> None:
    of, source = made(), f"source_{DEVICE}"
    usual = len(of.chains[source])
    for harm, words in (
        (lambda f: f.chains.pop(source), f"chain {source} is missing"),
        (lambda f: f.chains[source].pop(), f"chain {source} has {usual - 1} rules, not {usual}"),
        (lambda f: f.chains[source].insert(0, ex.verdict(ex.ACCEPT)), f"rule 1 of {source} is (accept), not ("),
        (lambda f: f.chains[source].append(b""), f"chain {source} has {usual + 1} rules, not {usual}"),
        (lambda f: f.maps["inbound"].clear(), "map inbound has no entry for it"),
        (lambda f: f.maps["inbound"].update({ruleset.map_key(DEVICE): b""}), "map inbound leads it elsewhere"),
        (lambda f: f.sets.pop(f"flows4_{DEVICE}"), "set flows4_vaaaaaaaaaaaa is missing"),
        (lambda f: f.sets.update({f"flows4_{DEVICE}": (0, 0, 0, 0, 0)}), "set flows4_vaaaaaaaaaaaa is made otherwise"),
    ):
        found = as_wanted(of)
        harm(found)
        said = ruledrift.differences(of, found)
        assert len(said) == 1 and said[0].startswith(words), said


def base() -> Found:
    chains = {**ruleset.base_rules(INSTANCE), **ruleset.shared_rules()}
    return Found(
        {name: list(rules) for name, rules in chains.items()},
        hooks={name: (*where, ex.ACCEPT) for name, where in ruleset.BASES.items()},
        local={"local4": (), "local6": ()},
    )


def test_the_base_too() -> None:
    assert ruledrift.base_differences(INSTANCE, NOTHING, base()) == []
    for harm, words in (
        (lambda f: f.chains.clear(), "table vmagent_va has no base chains"),
        (lambda f: f.hooks.update(source=(0, -210, ex.DROP)), "base chain source has"),
        (lambda f: f.hooks.pop("inbound"), "base chain inbound has (hook, priority, policy) None"),
        (lambda f: f.chains["inbound"].pop(), "chain inbound has 1 rules, not 2"),
        (lambda f: f.chains.pop("asking"), "chain asking is missing"),
        (lambda f: f.local.update(local6=((bytes(16), False),)), "set local6 holds other prefixes"),
    ):
        found = base()
        harm(found)
        said = ruledrift.base_differences(INSTANCE, NOTHING, found)
        assert len(said) == 1 and said[0].startswith(words), said


def test_a_kernel_that_says_more_or_in_another_order_says_the_same() -> None:
    rule = ex.equals(ex.IN_NAME, b"x" * 16) + ex.counted("c")
    data = [parsed(parsed(each)[2]) for _, each in walk(ex.counted("c"))][0]
    turned = b"".join(attribute(kind, value) for kind, value in reversed([*data.items(), (77, b"new")]))
    other = ex.equals(ex.IN_NAME, b"x" * 16) + attribute(1, text(1, "objref") + attribute(2, turned))
    assert other != rule
    assert ex.same(rule, other)
    assert not ex.same(rule, ex.equals(ex.IN_NAME, b"x" * 16) + ex.counted("d"))
    assert not ex.same(rule, rule + ex.verdict(ex.DROP))
    assert not ex.same(rule + ex.verdict(ex.DROP), rule + ex.verdict(ex.ACCEPT))


# -- netlink


def test_attributes_are_padded_and_found_again() -> None:
    packed = attribute(3, b"abc") + text(1, "name") + number(2, -210) + number64(4, 1 << 40)
    assert packed.startswith(struct.pack("=HH", 7, 3) + b"abc\0")
    numbers = [(2, b"\xff\xff\xff\x2e"), (4, (1 << 40).to_bytes(8, "big"))]
    assert list(walk(packed)) == [(3, b"abc"), (1, b"name\0"), *numbers]


@pytest.mark.parametrize("cut", [b"\x03", b"\x03\x00\x01\x00", b"\xff\xff\x01\x00"])
def test_what_is_cut_short_ends_it(cut: bytes) -> None:
    assert list(walk(text(1, "a") + cut)) == [(1, b"a\0")]


