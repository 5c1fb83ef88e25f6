"""The boot guard on a host that really boots: the default drop is there before libvirt, and it really drops."""

from __future__ import annotations

from typing import Dict

from tests.hosts.conftest import OnHost
from tests.support.bootedagent import BRIDGE, INSTANCE, SUBNET, TABLE, install
from tests.support.bootedhost import BootedHost

GUEST = f"{SUBNET}.9"


def times(host: BootedHost, unit: str) -> Dict[str, int]:
    """When it began and was there, in microseconds since this boot began; 0 = never."""
    text = host.sh(f"systemctl show {unit} -p InactiveExitTimestampMonotonic -p ActiveEnterTimestampMonotonic")
    return {name: int(value) for name, _, value in (line.partition("=") for line in text.split())}


def plug(host: BootedHost, device: str) -> None:
    """A guest's end on the bridge, behind `device`, with an address."""
    host.sh(
        f"ip netns add g-{device} && ip link add {device} type veth peer name g0 netns g-{device} && "
        f"ip link set {device} master {BRIDGE} up && "
        f"ip -n g-{device} addr add {GUEST}/24 dev g0 && ip -n g-{device} link set g0 up"
    )


def unplug(host: BootedHost, device: str) -> None:
    host.sh(f"ip link del {device}; ip netns del g-{device}")


def passes(host: BootedHost, device: str) -> bool:
    """Whether a ping gets through both ways."""
    return host.run(f"ip netns exec g-{device} ping -c 1 -W 3 {SUBNET}.1").code == 0


def test_after_a_boot_the_default_drop_is_there_before_any_guest(on_host: OnHost) -> None:
    def body(host: BootedHost) -> None:
        install(host)
        host.sh("systemctl -q enable vmagent-guard.service && systemctl -q disable vmagent.service && "
                "systemctl -q enable vmagent-guard.service libvirtd.service && sync")  # fmt: skip
        host.cut()
        host.boot()
        guard, libvirt = times(host, "vmagent-guard.service"), times(host, "libvirtd.service")
        assert 0 < guard["ActiveEnterTimestampMonotonic"] <= libvirt["InactiveExitTimestampMonotonic"]
        assert times(host, "vmagent.service")["InactiveExitTimestampMonotonic"] == 0, "only the guard was at work"
        assert INSTANCE in host.sh(f"nft list table bridge {TABLE}")
        cycles = host.run("journalctl -b -o cat | grep -iE 'ordering cycle|Job .* deleted to break'").text
        assert cycles == ""
        plug(host, "other0")
        assert passes(host, "other0"), "the bridge itself works"
        unplug(host, "other0")
        plug(host, f"{INSTANCE}unknown0")
        assert not passes(host, f"{INSTANCE}unknown0"), "nothing passes for ours that has no rules yet"
        host.sh(f"nft delete table bridge {TABLE}")
        assert passes(host, f"{INSTANCE}unknown0"), "it was the guard's table that dropped it"
        unplug(host, f"{INSTANCE}unknown0")
        host.sh("systemctl restart vmagent-guard.service")
        assert host.run(f"nft list table bridge {TABLE}").code == 0

    on_host(body)


def test_enabling_the_agent_enables_the_guard(on_host: OnHost) -> None:
    def body(host: BootedHost) -> None:
        install(host)
        host.sh("systemctl -q disable vmagent-guard.service; systemctl -q enable vmagent.service")
        assert host.sh("systemctl is-enabled vmagent-guard.service").strip() == "enabled"
        host.sh("systemctl -q disable vmagent.service")
        verdict = host.run("systemd-analyze verify vmagent.service vmagent-guard.service 2>&1 | grep vmagent")
        assert verdict.text == ""

    on_host(body)
