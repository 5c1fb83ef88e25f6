"""Firewall rules as people write them: what they become, and everything that may be wrong with them at once."""

from __future__ import annotations

import json
import random
from typing import Any, Dict, FrozenSet, List, Tuple, cast

import pytest

from vmagent.core import rules, schemas
from vmagent.core.model import Firewall, NicLimits, Rule
from vmagent.errors import Problem, Problems

AT = "args.networks[0].firewall"
V4: FrozenSet[int] = frozenset({4})
V6: FrozenSet[int] = frozenset({6})


def allow(**members: Any) -> Dict[str, Any]:
    return {"action": "allow", **members}


def wrong(*raw: Dict[str, Any], families: FrozenSet[int] = rules.BOTH) -> List[Problem]:
    """All that is wrong with these inbound rules."""
    with pytest.raises(Problems) as caught:
        rules.firewall({"inbound": list(raw)}, AT, families)
    for problem in caught.value.problems:
        json.dumps(problem.as_json()).encode("ascii")
        assert problem.type == "rule" and problem.fields["accepted"]
    return list(caught.value.problems)


def places(*raw: Dict[str, Any], families: FrozenSet[int] = rules.BOTH) -> List[str]:
    return [problem.fields["path"].replace(f"{AT}.inbound", "") for problem in wrong(*raw, families=families)]


# ---- what they become

GOOD: Tuple[Tuple[Dict[str, Any], Rule], ...] = (
    ({"action": "deny"}, Rule("deny", "any", (), "")),
    (allow(protocol="icmp"), Rule("allow", "icmp")),
    (allow(protocol="tcp", ports=[22]), Rule("allow", "tcp", ((22, 22),))),
    (allow(protocol="udp", ports=[1, 65535]), Rule("allow", "udp", ((1, 1), (65535, 65535)))),
    (allow(protocol="tcp", ports=["1-65535"]), Rule("allow", "tcp", ((1, 65535),))),
    (allow(protocol="tcp", ports=["80-80"]), Rule("allow", "tcp", ((80, 80),))),
    (allow(protocol="tcp", ports=["00080-00081"]), Rule("allow", "tcp", ((80, 81),))),
    (allow(protocol="tcp", ports=[443, 80, 80]), Rule("allow", "tcp", ((80, 80), (443, 443)))),
    (allow(protocol="tcp", ports=["10-20", "15-30", 31, 33]), Rule("allow", "tcp", ((10, 31), (33, 33)))),
    (allow(protocol="tcp", ports=["10-99", "20-30", 99]), Rule("allow", "tcp", ((10, 99),))),
    (allow(cidr="192.0.2.0/24"), Rule("allow", "any", (), "192.0.2.0/24")),
    (allow(cidr="192.0.2.7"), Rule("allow", "any", (), "192.0.2.7/32")),
    (allow(cidr="0.0.0.0/0"), Rule("allow", "any", (), "0.0.0.0/0")),
    (allow(cidr="2001:DB8:0:0::/64"), Rule("allow", "any", (), "2001:db8::/64")),
    (allow(protocol="icmp", cidr="192.0.2.0/24"), Rule("allow", "icmp", (), "192.0.2.0/24")),
    (allow(protocol="icmpv6", cidr="::/0"), Rule("allow", "icmpv6", (), "::/0")),
)


@pytest.mark.parametrize(("raw", "rule"), GOOD)
def test_good(raw: Dict[str, Any], rule: Rule) -> None:
    assert rules.firewall({"inbound": [raw], "outbound": []}, AT) == Firewall((rule,))
    assert rules.firewall({"outbound": [raw, raw]}, AT) == Firewall((), (rule, rule))


def test_no_rules_are_no_rules() -> None:
    assert rules.firewall({}, AT) == Firewall()


# ---- what is refused

BAD: Tuple[Tuple[Dict[str, Any], FrozenSet[int], List[str]], ...] = (
    (allow(protocol="tcp", ports=["90-80"]), rules.BOTH, ["[0].ports[0]"]),
    (allow(protocol="tcp", ports=["0-80"]), rules.BOTH, ["[0].ports[0]"]),
    (allow(protocol="tcp", ports=["80-70000"]), rules.BOTH, ["[0].ports[0]"]),
    (allow(protocol="tcp", ports=["99999-99999"]), rules.BOTH, ["[0].ports[0]"]),
    (allow(protocol="udp", ports=[22, "2-1", 80, "0-0"]), rules.BOTH, ["[0].ports[1]", "[0].ports[3]"]),
    (allow(ports=[22]), rules.BOTH, ["[0].ports"]),
    (allow(protocol="icmp", ports=[8]), rules.BOTH, ["[0].ports"]),
    (allow(protocol="icmpv6", ports=["90-80"]), rules.BOTH, ["[0].ports"]),
    (allow(cidr="192.0.2.1/24"), rules.BOTH, ["[0].cidr"]),
    (allow(cidr="2001:db8::1/64"), rules.BOTH, ["[0].cidr"]),
    (allow(cidr="192.0.2.0/33"), rules.BOTH, ["[0].cidr"]),
    (allow(cidr="2001:db8::/129"), rules.BOTH, ["[0].cidr"]),
    (allow(cidr="192.0.2/24"), rules.BOTH, ["[0].cidr"]),
    (allow(cidr="1.2.3.4.5"), rules.BOTH, ["[0].cidr"]),
    (allow(cidr="256.0.0.0/8"), rules.BOTH, ["[0].cidr"]),
    (allow(cidr="010.0.0.0/8"), rules.BOTH, ["[0].cidr"]),
    (allow(cidr="::ffff:"), rules.BOTH, ["[0].cidr"]),
    (allow(cidr="1:2"), rules.BOTH, ["[0].cidr"]),
    (allow(protocol="icmp", cidr="2001:db8::/64"), rules.BOTH, ["[0].cidr"]),
    (allow(protocol="icmpv6", cidr="192.0.2.0/24"), rules.BOTH, ["[0].cidr"]),
    (allow(cidr="2001:db8::/64"), V4, ["[0].cidr"]),
    (allow(cidr="192.0.2.0/24"), V6, ["[0].cidr"]),
    (allow(protocol="any", ports=[1], cidr="192.0.2.1/24"), rules.BOTH, ["[0].ports", "[0].cidr"]),
)


@pytest.mark.parametrize(("raw", "families", "expected"), BAD)
def test_bad(raw: Dict[str, Any], families: FrozenSet[int], expected: List[str]) -> None:
    schemas.check("vm.limits", {"all": True, "networks": [{"firewall": {"inbound": [raw]}}]})  # the shape is right
    assert places(raw, families=families) == expected
    assert places(allow(), raw, allow(), families=families) == [place.replace("[0]", "[1]", 1) for place in expected]


def test_everything_wrong_is_told_at_once_in_both_directions() -> None:
    raw = {"inbound": [allow(ports=[1]), allow(cidr="1.2.3.4/8")], "outbound": [allow(protocol="tcp", ports=["2-1"])]}
    with pytest.raises(Problems) as caught:
        rules.firewall(raw, AT)
    assert [problem.fields["path"] for problem in caught.value.problems] == [
        f"{AT}.inbound[0].ports", f"{AT}.inbound[1].cidr", f"{AT}.outbound[0].ports[0]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "words", "accepted"),
    [
        (allow(cidr="192.0.2.77/24"), "the network is 192.0.2.0/24", "without host bits"),
        (allow(protocol="tcp", ports=["90-80"]), "90 is above 80", "the lower one first"),
        (allow(protocol="tcp", ports=["1-70000"]), "there is no port 70000", "1 to 65535"),
        (allow(protocol="icmp", cidr="::/0"), "icmp is IPv4", "protocol icmpv6"),
        (allow(protocol="icmpv6", cidr="10.0.0.0/8"), "icmpv6 is IPv6", "protocol icmp,"),
        (allow(ports=[1]), "any has no ports", "protocol tcp or udp"),
    ],
)
def test_a_refusal_says_what_would_be_right(raw: Dict[str, Any], words: str, accepted: str) -> None:
    (problem,) = wrong(raw)
    assert words in problem.detail and accepted in problem.fields["accepted"]


def test_link_local_peers_are_reached_without_an_ipv6_address() -> None:
    assert rules.firewall({"inbound": [allow(cidr="fe80::/10")]}, AT, V4).inbound[0].cidr == "fe80::/10"
    assert rules.firewall({"inbound": [allow(cidr="fe80::1")]}, AT, V4).inbound[0].cidr == "fe80::1/128"
    assert places(allow(cidr="fe80::/9"), families=V4) == ["[0].cidr"]


@pytest.mark.parametrize(("inbound", "outbound", "refused"), [(128, 0, 0), (128, 128, 0), (128, 129, 1)])
def test_the_rules_of_one_vm_are_counted_together(inbound: int, outbound: int, refused: int) -> None:
    one = Rule("deny")
    nics = [NicLimits(firewall=Firewall((one,) * inbound)), NicLimits(firewall=Firewall((), (one,) * outbound))]
    found = rules.too_many(nics, "args.networks")
    assert len(found) == refused
    for problem in found:
        assert (problem.type, problem.fields["needed"], problem.fields["maximum"]) == ("over-limit", 257, 256)


def test_ports_never_overlap_and_mean_what_was_said() -> None:
    chance = random.Random(22)
    for _ in range(200):
        said = []
        for _ in range(chance.randrange(1, 12)):
            low = chance.randrange(1, 40)
            high = low + chance.choice([0, 0, 1, 5])
            said.append(low if low == high else f"{low}-{high}")
        (rule,) = rules.firewall({"inbound": [allow(protocol="tcp", ports=said)]}, AT).inbound
        meant = {n for one in said for n in range(int(str(one).split("-")[0]), int(str(one).split("-")[-1]) + 1)}
        assert {port for low, high in rule.ports for port in range(low, high + 1)} == meant
        assert list(rule.ports) == sorted(rule.ports)
        assert all(rule.ports[n][1] + 1 < rule.ports[n + 1][0] for n in range(len(rule.ports) - 1))


# ---- the shape, by the schema

SHAPES: Tuple[Tuple[Any, str], ...] = (
    ({}, "[0].action"),
    ("deny", "[0]"),
    (None, "[0]"),
    ({"action": "drop"}, "[0].action"),
    ({"action": "ALLOW"}, "[0].action"),
    ({"action": None}, "[0].action"),
    (allow(protocol="sctp"), "[0].protocol"),
    (allow(protocol="tcp; flush ruleset"), "[0].protocol"),
    (allow(protocol=6), "[0].protocol"),
    (allow(protocol=None), "[0].protocol"),
    (allow(ports=22), "[0].ports"),
    (allow(ports=[]), "[0].ports"),
    (allow(ports="22"), "[0].ports"),
    (allow(ports=list(range(1, 66))), "[0].ports"),
    *((allow(ports=[port]), "[0].ports[0]") for port in cast("Tuple[Any, ...]", (
        0, -1, 65536, 70000, 10**30, 22.0, True, None, "22", "ssh", "", "-", "22-", "-22", "1-2-3", "1 - 2", "1-2\n",
        "+1-2", "1:2", "0x16-0x17", "1-\u0662", "1-1000000", "1-2; drop", {}, [22],
    ))),
    *((allow(cidr=cidr), "[0].cidr") for cidr in (
        "", " ", "*", "any", "everybody", "10.0.0.0/8 ", "10.0.0.0/8\n", "10.0.0.0/255.0.0.0", "10.0.0.0/-1", "10/8/8",
        "fe80::1%eth0", "10.0.0.0/8, 192.168.0.0/16", "{ 10.0.0.0/8 }", "$local", "@set", "\uff11.2.3.4", "x" * 100,
        10, None, True, ["10.0.0.0/8"],
    )),
    (allow(interface="eth0"), "[0].interface"),
    (allow(ports=[1], port=2), "[0].port"),
    (allow(**{"cidr\n": 1}), '[0]["cidr\\n"]'),
)  # fmt: skip


@pytest.mark.parametrize(("raw", "place"), SHAPES, ids=lambda value: ascii(value)[:40])
def test_bad_shapes_never_get_further_than_the_schema(raw: Any, place: str) -> None:
    start = {"image": {"id": "x"}, "flavour": "f", "lifetime_s": 1}
    for name, value in (
        ("vm.start", {**start, "networks": [{"type": "t", "firewall": {"outbound": [raw]}}]}),
        ("vm.limits", {"all": True, "networks": [{"firewall": {"outbound": [raw]}}]}),
    ):
        with pytest.raises(Problems) as caught:
            schemas.check(name, value, "args")
        assert [one.fields["path"] for one in caught.value.problems] == [f"{AT}.outbound{place}"]


@pytest.mark.parametrize("count", [129, 10_000])
def test_ten_thousand_rules_are_refused_in_one_line(count: int) -> None:
    value = {"all": True, "networks": [{"firewall": {"inbound": [allow()] * count}}]}
    with pytest.raises(Problems) as caught:
        schemas.check("vm.limits", value, "args")
    assert [one.fields["path"] for one in caught.value.problems] == [f"{AT}.inbound"]
    assert "at most 128 items" in caught.value.detail
    assert len(json.dumps(caught.value.as_json())) < 1000


def test_whatever_the_schema_lets_through_is_read_or_refused_with_a_place() -> None:
    chance = random.Random(4711)
    ports: Tuple[Any, ...] = (1, 65535, "1-1", "9-1", "0-9", "00000-99999", "65535-65536")
    cidrs = ("0.0.0.0/0", "::", "1.2.3.4/3", "..", "::::", "a/1", "1.1.1.1/999", "fe80::/9", "::1.2.3.4/97", "ff::/8")
    for _ in range(400):
        raw: Dict[str, Any] = {"action": chance.choice(["allow", "deny"])}
        if chance.random() < 0.8:
            raw["protocol"] = chance.choice(["any", "tcp", "udp", "icmp", "icmpv6"])
        if chance.random() < 0.6:
            raw["ports"] = [chance.choice(ports) for _ in range(chance.randrange(1, 4))]
        if chance.random() < 0.6:
            raw["cidr"] = chance.choice(cidrs)
        limits = {"all": True, "networks": [{"firewall": {"inbound": [raw]}}]}
        try:
            schemas.check("vm.limits", limits)
            (rule,) = rules.firewall({"inbound": [raw]}, AT, chance.choice([V4, V6, rules.BOTH])).inbound
        except Problems:
            continue
        assert all(1 <= low <= high <= 65535 for low, high in rule.ports)
        assert not rule.cidr or str(rules.prefix(rule.cidr)) == rule.cidr
