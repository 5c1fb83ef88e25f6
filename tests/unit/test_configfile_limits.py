"""The configuration of limits and of the site's own firewall."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.test_configfile import HOST, main_file, places, read, write
from vmagent import configfile
from vmagent.core.model import Firewall, Rule


def test_limits_a_number_is_the_maximum_and_a_mapping_says_more(tmp_path: Path) -> None:
    text = """
limits:
  cores: 8
  memory_mib: {minimum: 64}
  cpu_cap_core_percent: {minimum: 5, default: 50, maximum: 400}
  cpu_weight: {maximum: 1000}
  bandwidth_in_kbit: 1000000
  bandwidth_out_kbit: {default: 100000}
  disk_read_ops_per_s: null
flavours: {f: {cores: 1, memory_mib: 64, disk_gib: 1, cpu_weight: 7, bandwidth_out_kbit: 64}}
"""
    policy = read(tmp_path, text).policy
    assert (policy.maxima.cores, policy.minima.cores) == (8, None)
    assert (policy.maxima.memory_mib, policy.minima.memory_mib) == (65536, 64)
    of_cap = [of.cpu_cap_core_percent for of in (policy.minima, policy.defaults, policy.maxima)]
    assert of_cap == [5, 50, 400]
    assert (policy.defaults.cpu_weight, policy.maxima.cpu_weight) == (100, 1000)
    assert (policy.defaults.bandwidth_in_kbit, policy.maxima.bandwidth_in_kbit) == (None, 1000000)
    assert (policy.defaults.bandwidth_out_kbit, policy.maxima.bandwidth_out_kbit) == (100000, None)
    assert policy.maxima.disk_read_ops_per_s is None
    assert (policy.flavours["f"].cpu_weight, policy.flavours["f"].bandwidth_out_kbit) == (7, 64)
    assert (policy.maxima.lifetime_s, policy.maxima.count) == (604800, 100)


def test_a_drop_in_adds_a_minimum_to_the_maximum_of_the_main_file(tmp_path: Path) -> None:
    main_file(tmp_path, "limits: {cores: 8, cpu_weight: 500}\n")
    write(tmp_path / "vmagent.d/a.yaml", "limits: {cores: {minimum: 2}, cpu_weight: null}\n")
    config = configfile.read(tmp_path / "vmagent.yaml", HOST)
    assert (config.policy.minima.cores, config.policy.maxima.cores) == (2, 8)
    assert config.policy.maxima.cpu_weight is None
    assert config.sources["limits.cores.maximum"] == f"{tmp_path}/vmagent.yaml:3"
    assert config.sources["limits.cores.minimum"] == f"{tmp_path}/vmagent.d/a.yaml:1"


BAD_LIMITS = (
    ("cores: 0", "limits.cores.maximum"),
    ("cores: null", "limits.cores.maximum"),
    ("cores: -1", "limits.cores.maximum"),
    ("cores: 2.5", "limits.cores.maximum"),
    ("cores: '4'", "limits.cores.maximum"),
    ("cores: [4]", "limits.cores.maximum"),
    ("cores: true", "limits.cores.maximum"),
    ("cores: 0x10", "limits.cores"),
    ("cores: {most: 4}", "limits.cores.most"),
    ("cores: {default: 4}", "limits.cores.default"),
    ("count: {maximum: 4}", "limits.count"),
    ("cpu_cap_core_percent: {minimum: 0}", "limits.cpu_cap_core_percent.minimum"),
    ("cpu_weight: {default: null}", "limits.cpu_weight.default"),
    ("cpu_weight: 10001", "limits.cpu_weight.maximum"),
    ("bandwidth_in_kbit: 63", "limits.bandwidth_in_kbit.maximum"),
    ("bandwidth_in_kbit: 400000001", "limits.bandwidth_in_kbit.maximum"),
    ("bandwidth_in_kbit: 10mbit", "limits.bandwidth_in_kbit.maximum"),
    ("disk_read_bytes_per_s: 1", "limits.disk_read_bytes_per_s.maximum"),
    ("disk_io: {}", "limits.disk_io"),
)


@pytest.mark.parametrize(("text", "place"), BAD_LIMITS)
def test_bad_limits(tmp_path: Path, text: str, place: str) -> None:
    assert places(main_file(tmp_path, f"limits: {{{text}}}\n")) == [place]


def test_the_sites_firewall(tmp_path: Path) -> None:
    text = """
firewall:
  inbound:
  - {action: deny, protocol: tcp, ports: [135-139, 25, 26, 24-25]}
  outbound: [{action: deny, cidr: 198.51.100.0/24}, {action: allow, protocol: icmpv6}]
  local: [10.0.0.0/8, 10.1.0.0/16, "2001:db8::/32", 192.0.2.0/25, 192.0.2.128/25]
  on_failure: report
networks: {n: {bridge: br0, addressing: controller, subnets: [192.0.2.0/24], new_connections_per_s: 50,
               destinations_per_minute: 100}}
capacity: {memory_overhead_mib: 128}
"""
    policy = read(tmp_path, text).policy
    assert policy.firewall.rules == Firewall(
        (Rule("deny", "tcp", ((24, 26), (135, 139))),),
        (Rule("deny", "any", (), "198.51.100.0/24"), Rule("allow", "icmpv6")),
    )
    assert policy.firewall.local == ("10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32")
    assert policy.firewall.on_failure == "report"
    network = policy.networks["n"]
    assert (network.new_connections_per_s, network.destinations_per_minute) == (50, 100)
    assert policy.memory_overhead_mib == 128


BAD_FIREWALLS = (
    ("inbound: {}", "firewall.inbound"),
    ("inbound: [deny]", "firewall.inbound[0]"),
    ("inbound: [{}]", "firewall.inbound[0].action"),
    ("inbound: [{action: drop}]", "firewall.inbound[0].action"),
    ("inbound: [{action: deny, port: 22}]", "firewall.inbound[0].port"),
    ("inbound: [{action: deny, protocol: tcp, ports: 22}]", "firewall.inbound[0].ports"),
    ("inbound: [{action: deny, protocol: tcp, ports: []}]", "firewall.inbound[0].ports"),
    ("inbound: [{action: deny, protocol: tcp, ports: [0]}]", "firewall.inbound[0].ports[0]"),
    ("inbound: [{action: deny, protocol: tcp, ports: [70000]}]", "firewall.inbound[0].ports[0]"),
    ("inbound: [{action: deny, protocol: tcp, ports: [ssh]}]", "firewall.inbound[0].ports[0]"),
    ("inbound: [{action: deny, protocol: sctp}]", "firewall.inbound[0].protocol"),
    ("inbound: [{action: deny, cidr: everybody}]", "firewall.inbound[0].cidr"),
    ("inbound: [{action: deny, cidr: 1.2.3.4/24}]", "firewall.inbound[0].cidr"),
    ("outbound: [{action: deny, protocol: icmp, cidr: '2001:db8::/32'}]", "firewall.outbound[0].cidr"),
    ("on_failure: ignore", "firewall.on_failure"),
    ("local: 10.0.0.0/8", "firewall.local"),
    ("rules: []", "firewall.rules"),
)


@pytest.mark.parametrize(("text", "place"), BAD_FIREWALLS)
def test_bad_firewalls(tmp_path: Path, text: str, place: str) -> None:
    assert places(main_file(tmp_path, f"firewall: {{{text}}}\n")) == [place]
