"""Every address known before the start, valid on its network, and held once."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import Any, Dict, List, Optional, Tuple

import pytest

from tests.support import building
from vmagent.core import addresses, identity
from vmagent.core.addresses import Taken
from vmagent.core.model import Interface, Outcome
from vmagent.core.policy import Policy
from vmagent.errors import Problem, Problems

VM = identity.vm_id(building.COMMAND, 0)
POLICY = building.policy(
    networks={
        "pool": building.network("pool"),
        "own": building.network("own", addressing="controller", pools=()),
        "slaac": building.network("slaac", addressing="slaac-eui64", subnets=("2001:db8:1::/64",), pools=(),
                                  gateways=("2001:db8:1::1",), dns=()),
        "tiny": building.network("tiny", subnets=("198.51.100.0/30",), pools=("198.51.100.0-198.51.100.3",),
                                 gateways=("198.51.100.1",), dns=(), mtu=9000),
        "pair": building.network("pair", subnets=("198.51.100.8/31",), pools=("198.51.100.8-198.51.100.9",),
                                 gateways=(), dns=()),
        "single": building.network("single", subnets=("203.0.113.0/24",), pools=("203.0.113.7", "203.0.113.9"),
                                   gateways=(), dns=()),
        "broken": building.network("broken", addressing="slaac-eui64", subnets=("192.0.2.0/24", "2001:db8::/48")),
        "astray": building.network("astray", pools=("10.0.0.1-10.0.0.9",)),
        "vast": building.network("vast", pools=("2001:db8::-2001:db8::ffff:ffff:ffff:ffff",)),
    }
)  # fmt: skip

NOTHING = Taken()


def made(*networks: Dict[str, Any], held: Taken = NOTHING, policy: Policy = POLICY) -> Tuple[Interface, ...]:
    return addresses.interfaces(VM, networks, policy, held)


def refusals(*networks: Dict[str, Any], held: Taken = NOTHING) -> List[Tuple[str, Optional[str]]]:
    with pytest.raises(Problems) as caught:
        made(*networks, held=held)
    return [(problem.type, problem.fields.get("path")) for problem in caught.value.problems]


def holding(*texts: str, mac: str = "02:00:00:00:00:01") -> Taken:
    interface = building.interface(VM, mac=mac, addresses=texts)
    return addresses.taken([building.record(spec={"interfaces": (interface,)})])


def test_first_free_of_each_family() -> None:
    (interface,) = made({"type": "pool"})
    assert interface.addresses == ("192.0.2.100/24", "2001:db8::100/64")
    assert interface.gateways == ("192.0.2.1", "2001:db8::1")
    assert interface.mac == identity.mac_address(VM, 0)
    assert interface.device == identity.device_name(building.INSTANCE, VM, 0)
    assert (interface.network, interface.bridge, interface.dns) == ("pool", building.BRIDGE, ("192.0.2.53",))
    (interface,) = made({"type": "pool"}, held=holding("192.0.2.100/24", "192.0.2.101/24", "2001:db8::100/64"))
    assert interface.addresses == ("192.0.2.102/24", "2001:db8::101/64")
    assert made({"type": "pool"}) == made({"type": "pool"})


def test_two_interfaces_of_one_vm_differ() -> None:
    first, second = made({"type": "pool"}, {"type": "pool"})
    assert second.addresses == ("192.0.2.101/24", "2001:db8::101/64")
    assert len({first.mac, second.mac, first.device, second.device}) == 4


def test_allocation_leaves_out_what_is_nobodys() -> None:
    (interface,) = made({"type": "tiny"})
    assert (interface.addresses, interface.mtu) == (("198.51.100.2/30",), 9000)
    full = refusals({"type": "tiny"}, held=holding("198.51.100.2/30"))
    assert full == [("no-capacity", "args.networks[0].addresses")]
    assert made({"type": "pair"})[0].addresses == ("198.51.100.8/31",)
    assert made({"type": "single"}, held=holding("203.0.113.7/24"))[0].addresses == ("203.0.113.9/24",)


def test_a_vast_pool_costs_no_more_than_what_is_held() -> None:
    many = Taken(frozenset((6, int(ipaddress.ip_address("2001:db8::")) + n) for n in range(5000)))
    assert made({"type": "vast"}, held=many)[0].addresses == ("2001:db8::1388/64",)


def test_slaac_is_computed_from_the_mac() -> None:
    (interface,) = made({"type": "slaac", "mac": "02:12:34:56:78:9A"})
    assert interface.mac == "02:12:34:56:78:9a"
    assert interface.addresses == ("2001:db8:1:0:12:34ff:fe56:789a/64",)
    same = {"type": "slaac", "mac": "02:12:34:56:78:9a", "addresses": ["2001:DB8:1::12:34ff:fe56:789a"]}
    assert made(same) == (interface,)
    other = {"type": "slaac", "mac": "02:12:34:56:78:9b", "addresses": ["2001:db8:1::12:34ff:fe56:789a"]}
    assert refusals(other) == [("address", "args.networks[0].addresses[0]")]


def test_named_addresses_are_written_in_one_way() -> None:
    (interface,) = made({"type": "own", "addresses": ["2001:DB8:0::00AB", "192.0.2.7"]})
    assert interface.addresses == ("2001:db8::ab/64", "192.0.2.7/24")
    (interface,) = made({"type": "own", "addresses": ["192.0.2.7"]})
    assert interface.gateways == ("192.0.2.1",)


BAD: Tuple[Tuple[Dict[str, Any], List[Tuple[str, str]]], ...] = (
    ({"type": "own"}, [("address", "addresses")]),
    ({"type": "broken"}, [("address", "addresses")]),
    ({"type": "astray"}, [("address", "addresses")]),
    *(
        ({"type": "own", "addresses": [text]}, [("address", "addresses[0]")])
        for text in (
            "192.0.3.7", "192.0.2.0", "192.0.2.255", "192.0.2.1", "192.0.2.53", "2001:db8::", "2001:db8::1",
            "2001:db8:0:1::7", "fe80::1", "::1", "127.0.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "ff02::1",
            "::ffff:192.0.2.7", "192.0.2", "192.0.2.07", "1.2.3.4.5", "192.0.2.256", ":::", "c0.0.2.7", "3221225991",
        )
    ),
    ({"type": "pool", "addresses": ["192.0.2.99"]}, [("address", "addresses[0]")]),
    ({"type": "pool", "addresses": ["192.0.2.151", "2001:db8::99", "192.0.2.120"]},
     [("address", "addresses[0]"), ("address", "addresses[1]")]),
    ({"type": "own", "addresses": ["192.0.2.7", "192.0.2.7"]}, [("address", "addresses[1]")]),
    ({"type": "own", "addresses": ["2001:db8::7", "2001:DB8:0:0::7"]}, [("address", "addresses[1]")]),
    *(
        ({"type": "pool", "mac": mac}, [("mac", "mac")])
        for mac in ("01:00:00:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "fe:00:00:00:00:01",
                    "33:33:00:00:00:01", "FE:12:34:56:78:90", "02:00:00:00:00", "02-00-00-00-00-01", "02000000000a")
    ),
)  # fmt: skip


@pytest.mark.parametrize(("network", "expected"), BAD)
def test_refused(network: Dict[str, Any], expected: List[Tuple[str, str]]) -> None:
    assert refusals(network) == [(type, f"args.networks[0].{path}") for type, path in expected]


def test_held_on_this_host() -> None:
    held = holding("192.0.2.7/24", "2001:db8::7/64")
    asked = {"type": "own", "addresses": ["192.0.2.7", "2001:db8:0::0007"], "mac": "02:00:00:00:00:02"}
    assert refusals(asked, held=held) == [
        ("address-in-use", "args.networks[0].addresses[0]"),
        ("address-in-use", "args.networks[0].addresses[1]"),
    ]
    assert refusals({"type": "pool", "mac": "02:00:00:00:00:01"}, held=held) == [
        ("address-in-use", "args.networks[0].mac")
    ]
    twice = {"type": "own", "addresses": ["192.0.2.8"]}
    assert refusals(twice, twice) == [("address-in-use", "args.networks[1].addresses[0]")]
    same_mac = {"type": "pool", "mac": "02:00:00:00:00:09"}
    assert refusals(same_mac, same_mac) == [("address-in-use", "args.networks[1].mac")]


def test_all_the_reasons() -> None:
    found = refusals(
        {"type": "own"},
        {"type": "pool"},
        {"type": "own", "addresses": ["x", "192.0.2.1"]},
        {"type": "pool", "mac": "01"},
    )
    assert found == [
        ("address", "args.networks[0].addresses"),
        ("address", "args.networks[2].addresses[0]"),
        ("address", "args.networks[2].addresses[1]"),
        ("mac", "args.networks[3].mac"),
    ]


def test_what_has_ended_holds_nothing() -> None:
    record = building.record()
    assert addresses.taken([record]).macs
    assert addresses.taken([dataclasses.replace(record, outcome=Outcome.EXPIRED)]) == Taken()


def test_what_several_vms_cannot_share() -> None:
    def paths(*networks: Dict[str, Any]) -> List[Tuple[str, Any]]:
        return [(problem.type, problem.fields["path"]) for problem in addresses.unshareable(networks, POLICY)]

    assert paths({"type": "pool"}, {"type": "slaac"}, {"type": "no such"}) == []
    assert paths({"type": "own"}) == [("address", "args.networks[0].addresses")]
    assert paths({"type": "pool"}, {"type": "pool", "addresses": ["192.0.2.120"], "mac": "02:00:00:00:00:01"}) == [
        ("address", "args.networks[1].addresses"),
        ("mac", "args.networks[1].mac"),
    ]


def test_the_refusals_are_problems_with_words() -> None:
    with pytest.raises(Problem) as caught:
        made({"type": "own", "addresses": ["10.0.0.1"]})
    assert caught.value.as_json() == {
        "type": "address",
        "title": "address",
        "detail": "10.0.0.1 is not on own",
        "path": "args.networks[0].addresses[0]",
        "accepted": ["192.0.2.0/24", "2001:db8::/64"],
    }


# ---- how many are left


def test_free_counts_what_interfaces_would_hand_out() -> None:
    pools = ("192.0.2.0-192.0.2.6", "192.0.2.4-192.0.2.9")  # one overlaps; the network's own, the gateway
    network = building.network(subnets=("192.0.2.0/24",), pools=pools, dns=("192.0.2.2",))
    policy = building.policy(networks={"public": network})
    held, given = Taken(), 0
    assert addresses.free(network, held) == 7
    while addresses.free(network, held):
        made = addresses.interfaces(f"0b6f4c1e-1111-4222-8333-{given:012d}", [{"type": "public"}], policy, held)
        held, given = held.plus(made), given + 1
    assert given == 7
    with pytest.raises(Problems):
        addresses.interfaces("0b6f4c1e-1111-4222-8333-999999999999", [{"type": "public"}], policy, held)


def test_the_shorter_family_decides_and_a_long_pool_is_not_walked_through() -> None:
    network = building.network(pools=("192.0.2.100-192.0.2.101", "2001:db8::1-2001:db8::ffff:ffff:ffff:ffff"))
    assert addresses.free(network, Taken()) == 2
    assert addresses.free(building.network(pools=()), Taken()) == 0
    assert addresses.free(building.network(addressing="slaac-eui64"), Taken()) is None
