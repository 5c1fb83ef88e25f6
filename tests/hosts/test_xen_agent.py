"""The main job on Xen: the packaged agent on a booted dom0, a real broker outside, signed commands, guests that boot
Linux and answer.  What issue 1 and 2 promise on KVM, seen from libvirt, Xen and the kernel.
"""

from __future__ import annotations

import json
from typing import Any, Dict, List, Mapping

import pytest

from tests.hosts.conftest import OnHost
from tests.support import bootedxen as xen
from tests.support.agent import vm_of
from tests.support.bootedagent import SUBNET, TABLE, ask, wait
from tests.support.bootedhost import BootedHost
from tests.support.bootedsite import BootedSite
from tests.support.bootedxen import CAP, RATE_KBIT, Guest
from tests.support.waiting import until
from vmagent.core import identity

START_S = 600.0  # a dom0 under emulation: a start takes one to two minutes, a boot of the guest the same
HELD_S = 60.0
END_S = 180.0


_guests: Dict[BootedHost, Guest] = {}


def ready(host: BootedHost, site: BootedSite, **kw: Any) -> Guest:
    """A new guest, started by a signed command."""
    xen.install(host, site)
    vm = vm_of(site.collector.send("vm.start", xen.start_args(**kw)))
    site.collector.wait_phase(vm, "ready", START_S)
    return Guest(host, vm, xen.address(kw.get("place", 10)))


def guest(host: BootedHost, site: BootedSite) -> Guest:
    """The one that several tests share."""
    if host not in _guests:
        _guests[host] = ready(host, site)
    return _guests[host]


def alerts(site: BootedSite, kind: str) -> List[Mapping[str, Any]]:
    return [event["data"] for event in site.collector.events("security.alert") if event["data"]["kind"] == kind]


def reproven(site: BootedSite, vm: str) -> List[Mapping[str, Any]]:
    return [event["data"] for event in site.collector.events("limits.reproven") if event["data"]["vm"] == vm]


def readdressed(mac: str) -> str:
    """Xen's network driver takes another address while it is down only."""
    return f"ip link set eth0 down; ip link set eth0 address {mac}; ip link set eth0 up"


def ended(site: BootedSite, vm: str, outcome: str, seconds: float = END_S) -> Mapping[str, Any]:
    state = site.collector.wait_phase(vm, "stopped", seconds)
    assert state["outcome"] == outcome, state
    return state


def test_from_frame_to_guest(on_xen: OnHost, site: BootedSite) -> None:
    def body(host: BootedHost) -> None:
        one = guest(host, site)
        host.sh(f"ping -c 1 -W 5 {one.address}")
        state = site.collector.states(one.vm)[-1]
        assert set(state["limits"]["proven"]) >= {"cpu", "memory", "bandwidth", "firewall"}
        assert state["limits"]["drift"] == []
        assert "disk_io" not in state["limits"]["proven"]
        told = ask(host, "status")
        assert "xen" in json.dumps(told)

    on_xen(body)


def test_every_limit_is_in_the_kernel_and_in_xen(on_xen: OnHost, site: BootedSite) -> None:
    def body(host: BootedHost) -> None:
        one = guest(host, site)
        assert one.cap() == CAP
        assert one.device in host.sh(f"nft list table bridge {TABLE}")
        shaper = identity.shaper_name(one.device)
        assert "tbf" in host.sh(f"tc qdisc show dev {one.device}") and "tbf" in host.sh(f"tc qdisc show dev {shaper}")
        assert one.device in host.sh("bridge link show")

    on_xen(body)


def test_what_a_guest_pretends_to_be_is_dropped(on_xen: OnHost, site: BootedSite) -> None:
    def body(host: BootedHost) -> None:
        one = guest(host, site)
        other, mac = xen.address(77), "02:00:00:00:00:77"
        one.say(f"ip addr add {other}/24 dev eth0; ping -c 3 -I {other} {SUBNET}.1; echo pinged-{other}-$?")
        assert one.hears(f"pinged-{other}-") == "1"
        assert "lladdr" not in host.sh(f"ip neigh show {other}"), "its address was not believed"
        one.say(f"ip addr del {other}/24 dev eth0; {readdressed(mac)}; ping -c 3 {SUBNET}.1; echo mac-$?")
        assert one.hears("mac-") == "1"
        assert mac not in host.sh("bridge fdb show"), "the bridge did not learn it"
        one.say(f"{readdressed(one.mac)}; ping -c 3 {SUBNET}.1; echo own-$?")
        assert one.hears("own-") == "0", "as itself it may"

    on_xen(body)


def test_rates_hold_both_ways(on_xen: OnHost, site: BootedSite) -> None:
    def body(host: BootedHost) -> None:
        one = guest(host, site)
        out = one.sends()
        inward = one.receives()
        print(f"out {out:.0f} in {inward:.0f} of {RATE_KBIT} kbit/s")
        for measured in (out, inward):
            assert measured == pytest.approx(RATE_KBIT, rel=0.10)

    on_xen(body)


def test_the_cap_holds(on_xen: OnHost, site: BootedSite) -> None:
    def body(host: BootedHost) -> None:
        used = guest(host, site).busy_percent()
        print(f"{used:.1f} of {CAP} percent of a core")
        assert used == pytest.approx(CAP, abs=5)

    on_xen(body)


@pytest.mark.parametrize("how", ["virsh -c xen:///system schedinfo {name} --set cap=0",
                                 "xl sched-credit2 -d {name} -c 0"])  # fmt: skip
def test_a_cap_that_somebody_lifts_is_there_again_and_told(on_xen: OnHost, site: BootedSite, how: str) -> None:
    def body(host: BootedHost) -> None:
        one = guest(host, site)
        before = len(alerts(site, "cpu-drift"))
        host.sh(how.format(name=one.name))
        wait(host, lambda: one.cap() == CAP, HELD_S, "the cap again")
        until(lambda: len(alerts(site, "cpu-drift")) > before, HELD_S, "the alert")

    on_xen(body)


def test_a_killed_agent_comes_back_to_the_same_guest(on_xen: OnHost, site: BootedSite) -> None:
    def body(host: BootedHost) -> None:
        one = guest(host, site)
        number, pid = one.number(), host.sh("systemctl show -p MainPID --value vmagent").strip()
        host.sh(f"kill -9 {pid}; xl sched-credit2 -d {one.name} -c 0")
        host.until(f"[ $(systemctl show -p MainPID --value vmagent) -gt {pid} ]", HELD_S, "systemd starts it again")
        wait(host, lambda: one.cap() == CAP, START_S, "it mends what was done meanwhile")
        assert one.number() == number, "nothing happened to the guest"
        host.sh(f"ping -c 1 -W 5 {one.address}")
        assert site.collector.gaps() == []

    on_xen(body)


def test_a_kill_in_the_middle_of_a_start_starts_once(on_xen: OnHost, site: BootedSite) -> None:
    def body(host: BootedHost) -> None:
        xen.install(host, site)
        vm = vm_of(site.collector.send("vm.start", xen.start_args(place=20)))
        host.until(f"xl list | grep -q vma-{vm}", START_S, "Xen has it")
        host.sh("kill -9 $(systemctl show -p MainPID --value vmagent)")
        site.collector.wait_phase(vm, "ready", START_S)
        one = Guest(host, vm, xen.address(20))
        assert host.sh("virsh -q -c xen:///system list --all").count("vma-" + vm) == 1
        number = one.number()
        site.collector.reply(site.collector.send("vm.kill", {"vms": [vm]}), "done", END_S)
        ended(site, vm, "killed")
        assert host.run(f"xl list {number}").code != 0

    on_xen(body)


def test_a_guest_that_reboots_has_its_limits_again(on_xen: OnHost, site: BootedSite) -> None:
    def body(host: BootedHost) -> None:
        one = guest(host, site)
        number = one.number()
        one.watch_cap()
        one.say("echo b > /proc/sysrq-trigger")
        until(lambda: reproven(site, one.vm), END_S, "told")
        assert one.number() not in (number, -1), "a new domain"
        uncapped_s = one.uncapped_s()
        print(f"without its cap for {uncapped_s:.2f} s")
        host.until(f"ping -c 1 -W 1 {one.address}", START_S, "it is up again")
        assert "tbf" in host.sh(f"tc qdisc show dev {one.device}") and one.cap() == CAP
        assert not [s for s in site.collector.states(one.vm) if s.get("outcome")], "no end"
        assert uncapped_s <= 2.0

    on_xen(body)


@pytest.mark.parametrize("key,outcome,place", [("o", "finished", 30), ("c", "crashed", 31)])
def test_power_off_and_panic_are_told_apart(
    on_xen: OnHost, site: BootedSite, key: str, outcome: str, place: int
) -> None:
    def body(host: BootedHost) -> None:
        one = ready(host, site, place=place)
        one.say(f"echo {key} > /proc/sysrq-trigger")
        ended(site, one.vm, outcome)

    on_xen(body)


def test_a_lease_ends(on_xen: OnHost, site: BootedSite) -> None:
    def body(host: BootedHost) -> None:
        one = ready(host, site, place=40, lifetime_s=90)
        ended(site, one.vm, "expired")
        assert host.run(f"xl list {one.name}").code != 0
        host.until(f"! ip link show {one.device} 2>/dev/null && ! nft list table bridge {TABLE} | grep -q {one.device}",
                   HELD_S, "device and rules are gone")  # fmt: skip

    on_xen(body)


def test_the_golden_image_is_as_it_was(on_xen: OnHost, site: BootedSite) -> None:
    def body(host: BootedHost) -> None:
        guest(host, site)
        host.sh("cmp /srv/guest/try.raw /var/lib/vmagent/images/try.raw")

    on_xen(body)


def test_after_a_power_cut_what_ran_is_lost_and_told(on_xen: OnHost, site: BootedSite) -> None:
    def body(host: BootedHost) -> None:
        one = guest(host, site)
        host.sh("systemctl -q enable vmagent.service; sync")
        _guests.pop(host)
        host.cut()
        host.boot()
        state = ended(site, one.vm, "lost", START_S)
        assert "reboot" in json.dumps(state["reasons"]), state["reasons"]

    on_xen(body)
