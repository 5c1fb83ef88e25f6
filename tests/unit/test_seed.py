"""What a guest is told: exact files, in a form that cloud-init and a busybox shell can read."""

from __future__ import annotations

import base64
import dataclasses
import json

import pytest
import yaml

from tests.support import building
from vmagent.core import seed
from vmagent.core.context import Context
from vmagent.core.model import DiskIo, Limits, NicLimits, VmSpec

MAC = "06:11:22:33:44:55"


def spec_with(**kw: object) -> VmSpec:
    of = building.spec()
    return dataclasses.replace(of, interfaces=(building.interface(of.vm, mac=MAC, **kw),))


def ethernet(**kw: object) -> dict:
    config = yaml.safe_load(seed.seed_files(spec_with(**kw))["network-config"])
    assert config["version"] == 2
    return config["ethernets"]["net0"]


def test_the_files_that_nocloud_needs() -> None:
    of = building.spec()
    files = seed.seed_files(of)
    assert set(files) == {"meta-data", "user-data", "vendor-data", "network-config", "addresses", "facts"}
    assert yaml.safe_load(files["meta-data"]) == {"instance-id": of.vm, "local-hostname": "worker"}
    assert files["user-data"].startswith(b"#cloud-config\n")
    assert yaml.safe_load(files["user-data"]) == {}


def test_the_instance_id_follows_the_id_and_not_the_name() -> None:
    one, other = building.spec(name="one"), building.spec(name="other")
    ids = [json.loads(seed.seed_files(s)["meta-data"])["instance-id"] for s in (one, other)]
    assert ids == [one.vm, one.vm]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("worker", "worker"),
        ("Worker_07.example", "worker-07-example"),
        ("--x--", "x"),
        ("a" * 62 + "-b", "a" * 62),
        ("\u00fc\u4e2d", "vm-" + building.spec().vm[:8]),
        ("a\n#cloud-config: {x}", "a-cloud-config-x"),
        ("", "vm-" + building.spec().vm[:8]),
    ],
)
def test_a_name_becomes_a_dns_label(name: str, expected: str) -> None:
    assert seed.hostname(building.spec(name=name)) == expected


def test_both_families_with_gateways_dns_and_mtu() -> None:
    got = ethernet(
        addresses=("192.0.2.10/24", "2001:db8::5/64"),
        gateways=("192.0.2.1", "2001:db8::1"),
        dns=("192.0.2.53", "2001:db8::53"),
        mtu=1400,
    )
    assert got == {
        "match": {"macaddress": MAC},
        "set-name": "net0",
        "mtu": 1400,
        "dhcp4": False,
        "dhcp6": False,
        "accept-ra": False,
        "addresses": ["192.0.2.10/24", "2001:db8::5/64"],
        "routes": [{"to": "0.0.0.0/0", "via": "192.0.2.1"}, {"to": "::/0", "via": "2001:db8::1"}],
        "nameservers": {"addresses": ["192.0.2.53", "2001:db8::53"]},
    }


def test_a_router_is_looked_for_only_where_ipv6_has_no_gateway() -> None:
    assert ethernet(addresses=("2001:db8::5/64",), gateways=())["accept-ra"] is True
    assert ethernet(addresses=("192.0.2.10/24",), gateways=())["accept-ra"] is False


def test_a_gateway_outside_the_subnet_is_on_link_and_a_link_local_one_needs_no_word() -> None:
    outside = ethernet(addresses=("192.0.2.10/32",), gateways=("198.51.100.1",))
    assert outside["routes"] == [{"to": "0.0.0.0/0", "via": "198.51.100.1", "on-link": True}]
    local = ethernet(addresses=("2001:db8::5/64",), gateways=("fe80::1",))
    assert local["routes"] == [{"to": "::/0", "via": "fe80::1"}]


def test_a_gateway_of_a_family_without_address_is_not_told() -> None:
    assert "routes" not in ethernet(addresses=("192.0.2.10/24",), gateways=("2001:db8::1",))


def test_plain_lines_for_small_guests() -> None:
    of = spec_with(addresses=("192.0.2.10/24", "2001:DB8::5/64"), gateways=("2001:db8::1",), mtu=1400)
    assert seed.seed_files(of)["addresses"].decode().splitlines() == [
        f"{MAC} 192.0.2.10/24 - 1400",
        f"{MAC} 2001:db8::5/64 2001:db8::1 1400",
    ]


def test_every_interface_is_told() -> None:
    of = building.spec()
    of = dataclasses.replace(of, interfaces=(building.interface(of.vm, 0), building.interface(of.vm, 1)))
    files = seed.seed_files(of)
    ethernets = yaml.safe_load(files["network-config"])["ethernets"]
    assert [e["match"]["macaddress"] for e in ethernets.values()] == [i.mac for i in of.interfaces]
    assert list(ethernets) == ["net0", "net1"]
    assert len(files["addresses"].splitlines()) == 2


def test_no_interface_is_a_valid_wish_too() -> None:
    files = seed.seed_files(building.spec(interfaces=()))
    assert yaml.safe_load(files["network-config"]) == {"version": 2, "ethernets": {}}
    assert files["addresses"] == b""


@pytest.mark.parametrize(
    "wrong",
    [
        {"mac": "06:11:22:33:44"},
        {"mac": "06:11:22:33:44:55\n"},
        {"addresses": ("192.0.2.300/24",)},
        {"addresses": ("192.0.2.10/24\n06:11:22:33:44:55 192.0.2.11/24",)},
        {"gateways": ("gateway",)},
        {"dns": ("192.0.2.53 ; reboot",)},
        {"addresses": ("fe80::5%x\n06:11:22:33:44:55/64",)},
        {"gateways": ("fe80::1% ; reboot",)},
        {"mtu": 10},
    ],
)
def test_what_is_no_address_never_becomes_text(wrong: dict) -> None:
    of = building.spec()
    bad = dataclasses.replace(of, interfaces=(building.interface(of.vm, **{"mac": MAC, **wrong}),))
    with pytest.raises(ValueError):
        seed.seed_files(bad)


def test_everything_is_ascii() -> None:
    for content in seed.seed_files(building.spec(name="\u00fcber")).values():
        content.decode("ascii")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_what_the_user_gives_and_what_the_agent_says() -> None:
    of = building.spec()
    data = b"#!/bin/sh\r\necho \"'$x'\" \x00\xff\n"
    given = Context(b64(data), ("ssh-ed25519 AAAA me",), (("role", "a: b # c"), ("n", 7)))
    files = seed.seed_files(of, building.tag(), given)
    assert files["user-data"] == data
    assert yaml.safe_load(files["meta-data"]) == {
        "instance-id": of.vm, "local-hostname": "worker", "public-keys": ["ssh-ed25519 AAAA me"], "role": "a: b # c",
        "n": 7,
    }


def test_meta_data_replaces_nothing_that_the_agent_says() -> None:
    files = seed.seed_files(building.spec(), None, Context(meta_data=(("instance-id", "x"), ("local-hostname", "y"))))
    assert yaml.safe_load(files["meta-data"])["instance-id"] == building.spec().vm
    assert yaml.safe_load(files["meta-data"])["local-hostname"] == "worker"


HOSTILE = ["a\nb: c", "'", '"', "{{ x }}", "!!python/object:x", "&a *a", "- x", "yes", "0x10", "%",
           "\u2028", "<x>", "\\"]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_value_stays_one_value(value: str) -> None:
    files = seed.seed_files(building.spec(), None, Context(ssh_keys=(value,), meta_data=(("x", value),)))
    found = yaml.safe_load(files["meta-data"])
    assert (found["x"], found["public-keys"]) == (value, [value])


def test_the_facts_that_a_guest_may_know() -> None:
    nics = (NicLimits(bandwidth_in_kbit=1000),)
    of = dataclasses.replace(spec_with(), limits=Limits(50, disk_io=DiskIo(write_ops_per_s=100), nics=nics))
    files = seed.seed_files(of, building.tag())
    assert files["facts"].decode().splitlines() == [
        f"vm {of.vm}", "lease_s 3600", f"accepted_at {building.WALL}", "cores 1", "memory_mib 512", "disk_gib 2",
        "cpu_cap_core_percent 50", "disk_write_ops_per_s 100", f"bandwidth {MAC} 1000 -",
    ]  # fmt: skip
    vendor = files["vendor-data"].decode()
    assert vendor.startswith("#cloud-config\n")
    (file,) = yaml.safe_load(vendor)["write_files"]
    assert (file["path"], file["permissions"]) == (seed.FACTS, "0444")
    assert json.loads(file["content"]) == seed.facts(of, building.tag())
    assert "lease_s" not in seed.facts(of)


def test_made_anew_it_knows_when_its_lease_began() -> None:
    began = "2026-11-20T11:00:00.000Z"
    files = seed.seed_files(building.spec(incarnation=1), building.tag(started_wall=began))
    assert f"lease_began_at {began}\n".encode() in files["facts"]
    assert b"lease_began_at" not in seed.seed_files(building.spec(), building.tag())["facts"]
