"""Effective limits: from request, flavour and site, with their sources; and what a vm.limits makes of them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Dict, List, Mapping, Optional, Tuple

import pytest

from tests.support import building
from vmagent.core import codec, limits, schemas
from vmagent.core.model import DiskIo, Firewall, Limits, NicLimits, Rule, VmSpec
from vmagent.core.policy import Defaults, Flavour, Maxima, Minima, NetworkType, Policy
from vmagent.errors import Problems

PUBLIC: NetworkType = building.network(new_connections_per_s=50)
OLD = building.network("old", subnets=("198.51.100.0/24",), pools=("198.51.100.10-198.51.100.20",), gateways=(), dns=(),
                       destinations_per_minute=9)  # fmt: skip
NO: Mapping[str, Any] = {}
SSH = {"action": "allow", "protocol": "tcp", "ports": [22]}
WEB = {"action": "allow", "protocol": "tcp", "ports": ["80-81"]}
SSH_RULE, WEB_RULE = Rule("allow", "tcp", ((22, 22),)), Rule("allow", "tcp", ((80, 81),))


def policy(maxima: Mapping[str, Any] = NO, minima: Mapping[str, Any] = NO, defaults: Mapping[str, Any] = NO,
           flavour: Optional[Mapping[str, Any]] = None) -> Policy:  # fmt: skip
    return building.policy(
        networks={"public": PUBLIC, "old": OLD},
        flavours={} if flavour is None else {"small": Flavour(1, 512, 2, **flavour)},
        maxima=building.maxima(**maxima),
        minima=Minima(**minima),
        defaults=Defaults(**defaults),
    )


def effective(args: Dict[str, Any], of: Policy) -> Limits:
    return limits.effective(args, of.flavours.get("small"), of)


# ---- which of the four says it

NAMES = [("cpu_cap_core_percent", "cpu_cap_core_percent"), ("bandwidth_in_kbit", "networks[0].bandwidth_in_kbit"),
         ("bandwidth_out_kbit", "networks[0].bandwidth_out_kbit"),
         ("disk_read_bytes_per_s", "disk_io.read_bytes_per_s"), ("disk_write_bytes_per_s", "disk_io.write_bytes_per_s"),
         ("disk_read_ops_per_s", "disk_io.read_ops_per_s"),
         ("disk_write_ops_per_s", "disk_io.write_ops_per_s")]  # fmt: skip
CHAIN = [
    # request, flavour, default, maximum -> value, source
    (None, None, None, None, None, "none"),
    (None, None, None, 400, 400, "site"),
    (None, None, 300, None, 300, "site"),
    (None, None, 300, 400, 300, "site"),
    (None, 200, 300, 400, 200, "flavour"),
    (100, 200, 300, 400, 100, "request"),
    (100, None, None, None, 100, "request"),
    (999, None, None, 400, 999, "request"),  # refused by `outside`, never bent
]


def asking(name: str, value: Optional[int]) -> Dict[str, Any]:
    """A start on one network that says this."""
    args: Dict[str, Any] = {"networks": [{"type": "public"}]}
    if value is None:
        return args
    if name.startswith("disk_"):
        return {**args, "disk_io": {name[len("disk_") :]: value}}
    if name.startswith("bandwidth"):
        return {"networks": [{"type": "public", name: value}]}
    return {**args, name: value}


def at(found: Limits, place: str) -> Any:
    parts = place.replace("networks[0]", "nics").split(".")
    value: Any = found
    for part in parts:
        value = getattr(value, part)
        value = value[0] if isinstance(value, tuple) else value
    return value


@pytest.mark.parametrize(("name", "place"), NAMES)
@pytest.mark.parametrize(("said", "flavour", "default", "maximum", "value", "source"), CHAIN)
def test_the_first_that_says_something(
    name: str, place: str, said: Any, flavour: Any, default: Any, maximum: Any, value: Any, source: str
) -> None:
    of = policy({name: maximum}, {}, {name: default}, {name: flavour})
    found = effective(asking(name, said), of)
    assert (at(found, place), dict(found.sources)[place]) == (value, source)


@pytest.mark.parametrize(
    ("args", "flavour", "default", "weight", "source"),
    [({}, None, {}, 100, "site"), ({}, None, {"cpu_weight": 50}, 50, "site"), ({}, 70, {}, 70, "flavour"),
     ({"cpu_weight": 2}, 70, {"cpu_weight": 50}, 2, "request")],
)  # fmt: skip
def test_there_is_always_a_weight(args: Any, flavour: Any, default: Any, weight: int, source: str) -> None:
    found = effective(args, policy({"cpu_weight": 10_000}, {}, default, {"cpu_weight": flavour}))
    assert (found.cpu_weight, dict(found.sources)["cpu_weight"]) == (weight, source)


def test_every_number_that_policy_knows_is_decided_here() -> None:
    """A limit that is forgotten in one of the tables would silently do nothing."""
    known = {field.name for field in dataclasses.fields(Defaults)}
    assert known == {limits._name(place) for place in limits._numbers(Limits(nics=(NicLimits(),)))}
    for cls in (Flavour, Minima, Maxima):
        assert known <= {field.name for field in dataclasses.fields(cls)}
    asked = {**schemas.schema("vm.start")["properties"]["networks"]["items"]["properties"],
             **{f"disk_{name}": one for name, one in
                schemas.schema("vm.start")["properties"]["disk_io"]["properties"].items()},
             **schemas.schema("vm.start")["properties"]}  # fmt: skip
    config = schemas.schema("config")["properties"]
    for name in known:
        ranges = {
            (rules["minimum"], rules["maximum"])
            for rules in (
                asked[name], config["limits"]["properties"][name]["properties"]["maximum"],
                config["flavours"]["additionalProperties"]["properties"][name],
                config["security"]["properties"]["authority"]["items"]["properties"]["maxima"]["properties"][name],
            )
        }  # fmt: skip
        assert len(ranges) == 1, f"{name} has other ranges in another place: {ranges}"


def test_interfaces_in_order_each_with_its_own() -> None:
    args = {"networks": [
        {"type": "old", "bandwidth_in_kbit": 100, "firewall": {"inbound": [SSH]}},
        {"type": "public", "bandwidth_out_kbit": 200},
        {"type": "public", "firewall": {"outbound": [{"action": "deny", "cidr": "2001:db8:9::/48"}]}},
    ]}  # fmt: skip
    found = effective(args, policy(defaults={"bandwidth_out_kbit": 64}))
    assert found.nics == (
        NicLimits(100, 64, Firewall((SSH_RULE,)), None, 9),
        NicLimits(None, 200, Firewall(), 50, None),
        NicLimits(None, 64, Firewall((), (Rule("deny", "any", (), "2001:db8:9::/48"),)), 50, None),
    )
    sources = dict(found.sources)
    assert sources["networks[0].firewall"] == "request" and sources["networks[1].firewall"] == "none"
    assert sources["networks[0].destinations_per_minute"] == "site"
    assert sources["networks[0].new_connections_per_s"] == "none"
    assert sources["networks[1].bandwidth_out_kbit"] == "request"


def test_they_travel_in_a_tag_and_come_back_the_same() -> None:
    args = {"cpu_weight": 5, "disk_io": {"read_ops_per_s": 100},
            "networks": [{"type": "public", "firewall": {"inbound": [SSH, WEB]}}]}  # fmt: skip
    found = effective(args, policy({"cpu_cap_core_percent": 80}))
    assert codec.limits_from_json(json.loads(codec.canonical(found))) == found


RULES: Tuple[Tuple[Dict[str, Any], List[str]], ...] = (
    ({"type": "old", "firewall": {"inbound": [{**SSH, "cidr": "2001:db8::/64"}]}}, ["firewall.inbound[0].cidr"]),
    ({"type": "old", "firewall": {"inbound": [{**SSH, "cidr": "10.0.0.0/8"}]}}, []),
    ({"type": "public", "firewall": {"inbound": [{**SSH, "cidr": "2001:db8::/64"}]}}, []),
    ({"type": "public", "addresses": ["192.0.2.7"], "firewall": {"inbound": [{**SSH, "cidr": "2001:db8::/64"}]}},
     ["firewall.inbound[0].cidr"]),
    ({"type": "public", "addresses": ["2001:db8::7"], "firewall": {"outbound": [{**SSH, "cidr": "10.0.0.0/8"}]}},
     ["firewall.outbound[0].cidr"]),
    ({"type": "public", "addresses": ["no address"], "firewall": {"inbound": [{**SSH, "cidr": "10.0.0.0/8"}]}}, []),
    ({"type": "unknown", "firewall": {"inbound": [{**SSH, "cidr": "10.0.0.1/8"}]}}, ["firewall.inbound[0].cidr"]),
)  # fmt: skip


@pytest.mark.parametrize(("network", "expected"), RULES)
def test_rules_are_read_for_the_addresses_that_the_interface_will_have(network: Any, expected: List[str]) -> None:
    args = {"networks": [{"type": "public"}, network]}
    try:
        effective(args, policy())
        found = []
    except Problems as problems:
        found = [one.fields["path"] for one in problems.problems]
    assert found == [f"args.networks[1].{place}" for place in expected]


def test_too_many_rules_on_all_interfaces_together() -> None:
    each = {"type": "public", "firewall": {"inbound": [SSH] * 128}}
    effective({"networks": [each] * 2}, policy())
    with pytest.raises(Problems) as caught:
        effective({"networks": [each] * 3}, policy())
    assert [(one.type, one.fields["path"]) for one in caught.value.problems] == [("over-limit", "args.networks")]


# ---- bounds

BOUNDS: Tuple[Tuple[Dict[str, Any], Dict[str, Any], Dict[str, Any], List[str]], ...] = (
    ({}, {}, {}, []),
    ({"cpu_cap_core_percent": 100}, {"cpu_cap_core_percent": 100}, {"cpu_cap_core_percent": 100}, []),
    ({"cpu_cap_core_percent": 101}, {"cpu_cap_core_percent": 100}, {}, ["over args.cpu_cap_core_percent"]),
    ({"cpu_cap_core_percent": 4}, {}, {"cpu_cap_core_percent": 5}, ["under args.cpu_cap_core_percent"]),
    ({}, {}, {"cpu_cap_core_percent": 500}, []),  # no cap is not less than a cap
    ({"cpu_weight": 11}, {"cpu_weight": 10}, {}, ["over args.cpu_weight"]),
    ({}, {"cpu_weight": 10}, {}, ["over args.cpu_weight"]),  # the default, where somebody sets both wrong
    ({"disk_io": {"write_ops_per_s": 9}}, {}, {"disk_write_ops_per_s": 10}, ["under args.disk_io.write_ops_per_s"]),
    (
        {"networks": [{"type": "old", "bandwidth_in_kbit": 64}, {"type": "public", "bandwidth_in_kbit": 2000}]},
        {"bandwidth_in_kbit": 1000}, {"bandwidth_in_kbit": 100},
        ["under args.networks[0].bandwidth_in_kbit", "over args.networks[1].bandwidth_in_kbit"],
    ),
)  # fmt: skip


@pytest.mark.parametrize(("args", "most", "least", "expected"), BOUNDS)
def test_bounds(args: Dict[str, Any], most: Dict[str, Any], least: Dict[str, Any], expected: List[str]) -> None:
    of = policy(most, least)
    found = [one.problem("here") for one in limits.outside(effective(args, of), of.maxima, 2, of.minima)]
    assert [f"{one.type.partition('-')[0]} {one.fields['path']}" for one in found] == expected
    for one in found:
        assert {"over-limit": "maximum", "under-limit": "minimum"}[one.type] in one.fields
        assert "needed" in one.fields and "here" in one.detail


def test_nothing_at_all_is_more_than_any_maximum() -> None:
    """The row of a signer may be stricter than the site, which limits nothing."""
    found = effective({"networks": [{"type": "old"}]}, policy())
    row = building.maxima(bandwidth_in_kbit=1000, cpu_cap_core_percent=150)
    assert [(one.path, one.needed) for one in limits.outside(found, row, 2)] == [
        ("args.cpu_cap_core_percent", 200), ("args.networks[0].bandwidth_in_kbit", None),
    ]  # fmt: skip
    assert str(limits.outside(found, row, 1)[0]) == "bandwidth_in_kbit without a limit; at most 1000"


# ---- changes

SPEC: VmSpec = building.spec(
    flavour="small",
    interfaces=(
        building.interface("x", 0, network="public", addresses=("192.0.2.7/24", "2001:db8::7/64")),
        building.interface("x", 1, network="old", addresses=("198.51.100.7/24",)),
        building.interface("x", 2, network="old", addresses=("198.51.100.8/24",)),
    ),
    limits=Limits(
        80, 100, DiskIo(read_ops_per_s=500, write_ops_per_s=500),
        (NicLimits(1000, 2000, Firewall((SSH_RULE,), (WEB_RULE,)), 7), NicLimits(3000), NicLimits(4000)),
        (("cpu_cap_core_percent", "request"), ("cpu_weight", "site")),
    ),
)  # fmt: skip


def changed(args: Dict[str, Any], of: Optional[Policy] = None, spec: VmSpec = SPEC) -> limits.Change:
    schemas.check("vm.limits", {"all": True, **args})
    return limits.changed(args, spec, of or policy(flavour={}))


def test_what_is_not_named_stays() -> None:
    change = changed({"cpu_weight": 50})
    assert dataclasses.replace(change.limits, cpu_weight=100, sources=()) == dataclasses.replace(
        SPEC.limits, sources=()
    )
    assert dict(change.limits.sources) == {"cpu_cap_core_percent": "request", "cpu_weight": "request"}
    assert change.paths == {"cpu_weight": "args.cpu_weight"}


def test_disks() -> None:
    assert changed({"disk_io": {"read_ops_per_s": 100}}).limits.disk_io == DiskIo(None, None, 100, 500)
    assert changed({"disk_io": {"read_ops_per_s": None}}).limits.disk_io == DiskIo(None, None, None, 500)
    assert changed({"disk_io": None}).limits.disk_io == DiskIo()
    site = policy(defaults={"disk_read_bytes_per_s": 10**6}, maxima={"disk_write_ops_per_s": 99})
    assert changed({"disk_io": None}, site).limits.disk_io == DiskIo(10**6, None, None, 99)


def test_null_goes_back_to_the_flavour_then_the_site() -> None:
    null = {"cpu_cap_core_percent": None}
    assert changed(null).limits.cpu_cap_core_percent is None
    for of, value, source in (
        (policy(flavour={"cpu_cap_core_percent": 30}, defaults={"cpu_cap_core_percent": 40}), 30, "flavour"),
        (policy(flavour={}, defaults={"cpu_cap_core_percent": 40}, maxima={"cpu_cap_core_percent": 60}), 40, "site"),
        (policy(flavour={}, maxima={"cpu_cap_core_percent": 60}), 60, "site"),
        (policy(), None, "none"),  # the flavour is gone from the configuration
    ):
        found = changed(null, of).limits
        assert (found.cpu_cap_core_percent, dict(found.sources)["cpu_cap_core_percent"]) == (value, source)
    assert changed({"cpu_weight": None}, policy(defaults={"cpu_weight": 33})).limits.cpu_weight == 33


def test_interfaces_all_or_of_one_network() -> None:
    rates = [nic.bandwidth_in_kbit for nic in changed({"networks": [{"bandwidth_in_kbit": 64}]}).limits.nics]
    assert rates == [64, 64, 64]
    change = changed({"networks": [{"type": "old", "bandwidth_in_kbit": 64, "bandwidth_out_kbit": None}]})
    assert [(n.bandwidth_in_kbit, n.bandwidth_out_kbit) for n in change.limits.nics] == [
        (1000, 2000), (64, None), (64, None),
    ]  # fmt: skip
    assert change.paths["networks[2].bandwidth_in_kbit"] == "args.networks[0].bandwidth_in_kbit"
    later = changed({"networks": [{"bandwidth_in_kbit": 64}, {"type": "public", "bandwidth_in_kbit": 65}]})
    assert [nic.bandwidth_in_kbit for nic in later.limits.nics] == [65, 64, 64]
    assert [nic.new_connections_per_s for nic in later.limits.nics] == [7, None, None]


FIREWALLS: Tuple[Tuple[List[Dict[str, Any]], Firewall], ...] = (
    ([{"firewall": {"inbound": [WEB]}}], Firewall((WEB_RULE,), (WEB_RULE,))),
    ([{"firewall": {"inbound": []}}], Firewall((), (WEB_RULE,))),
    ([{"firewall": {"outbound": [SSH]}}], Firewall((SSH_RULE,), (SSH_RULE,))),
    ([{"firewall": {"inbound": [], "outbound": []}}], Firewall()),
    ([{"firewall": None}], Firewall()),
    ([{"firewall": {"inbound": [WEB]}}, {"type": "public", "firewall": {"outbound": []}}], Firewall((WEB_RULE,))),
    ([{"type": "old", "firewall": None}], Firewall((SSH_RULE,), (WEB_RULE,))),
)


@pytest.mark.parametrize(("networks", "expected"), FIREWALLS)
def test_a_direction_is_replaced_as_a_whole(networks: List[Dict[str, Any]], expected: Firewall) -> None:
    assert changed({"networks": networks}).limits.nics[0].firewall == expected


REFUSED: Tuple[Tuple[Dict[str, Any], List[Tuple[str, str]]], ...] = (
    ({"networks": [{"type": "dmz", "bandwidth_in_kbit": 64}]}, [("unknown-network", "args.networks[0].type")]),
    ({"networks": [{"type": "public", "firewall": {"inbound": [{**SSH, "ports": ["9-1"]}]}}]},
     [("rule", "args.networks[0].firewall.inbound[0].ports[0]")]),
    ({"networks": [{"type": "old", "firewall": {"inbound": [{"action": "deny", "cidr": "2001:db8::/64"}]}}]},
     [("rule", "args.networks[0].firewall.inbound[0].cidr")]),
    ({"cpu_weight": 10_000, "disk_io": {"read_ops_per_s": 10}, "networks": [{"type": "x", "bandwidth_in_kbit": 64}]},
     [("unknown-network", "args.networks[0].type"), ("over-limit", "args.cpu_weight"),
      ("under-limit", "args.disk_io.read_ops_per_s")]),
    ({"networks": [{"firewall": {"inbound": [SSH] * 100}}]}, [("over-limit", "args.networks")]),
    ({"cpu_cap_core_percent": None}, [("over-limit", "args.cpu_cap_core_percent")]),  # a flavour over the maximum
)


@pytest.mark.parametrize(("args", "expected"), REFUSED)
def test_refused_all_at_once_with_the_place_in_the_request(args: Dict[str, Any], expected: Any) -> None:
    strict = policy({"cpu_weight": 1000, "cpu_cap_core_percent": 90}, {"disk_read_ops_per_s": 20}, {},
                    {"cpu_cap_core_percent": 95})  # fmt: skip
    with pytest.raises(Problems) as caught:
        changed(args, strict)
    assert list(dict.fromkeys((one.type, one.fields["path"]) for one in caught.value.problems)) == expected


def test_a_vm_without_interfaces_has_none_to_change() -> None:
    bare = building.spec(interfaces=())
    with pytest.raises(Problems) as caught:
        changed({"networks": [{"bandwidth_in_kbit": 64}]}, spec=bare)
    assert caught.value.problems[0].fields["path"] == "args.networks[0]"


def test_only_what_is_named_is_compared_with_the_bounds() -> None:
    """A site that became stricter does not forbid an unrelated change; the old number is not named."""
    strict = policy({"bandwidth_in_kbit": 500})
    assert changed({"cpu_weight": 50}, strict).limits.cpu_weight == 50
    with pytest.raises(Problems):
        changed({"networks": [{"bandwidth_in_kbit": 501}]}, strict)


# ---- absurd numbers, by the schema

ABSURD: Tuple[Tuple[str, Tuple[Any, ...]], ...] = (
    ("cpu_cap_core_percent", (0, -1, 102_401, 10**30, 1.5, 50.0, "50", True, [], {})),
    ("cpu_weight", (0, -100, 10_001, 10**30, 1.0, "100", False, [100])),
    ("bandwidth_in_kbit", (0, -1, 63, 400_000_001, 10**30, 1e3, "10mbit", True)),
    ("bandwidth_out_kbit", (0, -1, 63, 400_000_001, 10**30, 1e3, "10mbit", True)),
    ("disk_read_bytes_per_s", (0, -1, 65_535, 10**12 + 1, 1e6, "1mb", True)),
    ("disk_write_bytes_per_s", (0, -1, 65_535, 10**12 + 1, 1e6, "1mb", True)),
    ("disk_read_ops_per_s", (0, -1, 9, 10**7 + 1, 1e3, "100", True)),
    ("disk_write_ops_per_s", (0, -1, 9, 10**7 + 1, 1e3, "100", True)),
)


@pytest.mark.parametrize(("name", "values"), ABSURD)
def test_absurd_numbers_are_refused_at_their_place(name: str, values: Tuple[Any, ...]) -> None:
    start = {"image": {"id": "x"}, "flavour": "f", "lifetime_s": 1}
    place = dict([*NAMES, ("cpu_weight", "cpu_weight")])[name]
    for value in values:
        for schema, rest in (("vm.start", start), ("vm.limits", {"all": True})):
            args = {**asking(name, 0), **asking(name, value)} if value is not None else {}
            if schema == "vm.limits" and not name.startswith("bandwidth"):
                args.pop("networks", None)
            with pytest.raises(Problems) as caught:
                schemas.check(schema, {**rest, **args}, "args")
            assert [one.fields["path"] for one in caught.value.problems] == [f"args.{place}"], (schema, value)
    if name != "cpu_weight":
        with pytest.raises(Problems):
            schemas.check("vm.start", {**start, **asking(name, 100), name: None})


BAD_SHAPES: Tuple[Tuple[Any, List[str]], ...] = (
    ({}, [""]),
    ({"cpu_weight": 2, "surprise": 1}, ["surprise"]),
    ({"cores": 2}, ["", "cores"]),
    ({"memory_mib": 100}, ["", "memory_mib"]),
    ({"disk_io": {}}, ["disk_io"]),
    ({"disk_io": []}, ["disk_io"]),
    ({"disk_io": {"bytes": 1}}, ["disk_io.bytes"]),
    ({"networks": []}, ["networks"]),
    ({"networks": None}, ["networks"]),
    ({"networks": {}}, ["networks"]),
    ({"networks": [{}]}, ["networks[0]"]),
    ({"networks": [{"type": "public"}]}, ["networks[0]"]),
    ({"networks": [{"type": "../x", "bandwidth_in_kbit": 64}]}, ["networks[0].type"]),
    ({"networks": [{"type": None, "bandwidth_in_kbit": 64}]}, ["networks[0].type"]),
    ({"networks": [{"device": "eth0", "bandwidth_in_kbit": 64}]}, ["networks[0].device"]),
    ({"networks": [{"mac": "02:00:00:00:00:01", "firewall": None}]}, ["networks[0].mac"]),
    ({"networks": [{"firewall": {}}]}, ["networks[0].firewall"]),
    ({"networks": [{"firewall": []}]}, ["networks[0].firewall"]),
    ({"networks": [{"firewall": {"inbound": None}}]}, ["networks[0].firewall.inbound"]),
    ({"networks": [{"firewall": {"forward": []}}]}, ["networks[0].firewall.forward"]),
    ({"networks": [{"bandwidth_in_kbit": 64}] * 17}, ["networks"]),
)


@pytest.mark.parametrize(("args", "paths"), BAD_SHAPES)
def test_bad_shapes_of_vm_limits(args: Dict[str, Any], paths: List[str]) -> None:
    with pytest.raises(Problems) as caught:
        schemas.check("vm.limits", {"all": True, **args})
    assert [one.fields["path"] for one in caught.value.problems] == paths
    with pytest.raises(Problems):
        schemas.check("vm.limits", {"cpu_weight": 2, **args})  # no selector
