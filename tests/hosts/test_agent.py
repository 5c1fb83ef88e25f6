"""The packaged agent under its own unit, sandbox and all, on a host with systemd: a guest, its limits, and their drift.

Everything an administrator's command takes away is back within the period, and told.  The period is 3 s here; the
deadline is wide, because this host is an emulated one on two shared cores.
"""

from __future__ import annotations

import json
import shlex
from typing import Callable, Dict, NamedTuple

import pytest

from tests.hosts.conftest import CHECKOUT, OnHost
from tests.support.bootedagent import CAP, RATE, SUBNET, TABLE, ask, events, install, wait
from tests.support.bootedhost import BootedHost
from tests.support.hardening import sandbox
from vmagent.core import identity

START_S = 300.0  # libvirt probes QEMU first, which alone takes half a minute in there
HELD_S = 60.0
ASKED = (
    "--owner '/DC=org/DC=example/CN=A User' --image busy --flavour tiny --lifetime 30m --name held "
    f"--network public={SUBNET}.9 --bandwidth-in {RATE} --bandwidth-out {RATE}"
)
SCOPE = "/sys/fs/cgroup/machine.slice/$(ls /sys/fs/cgroup/machine.slice | grep '^machine-qemu')"
OWN = f"'{CAP * 1000} 100000'"
LEARNED = b"""import sqlite3, sys
store = sqlite3.connect("/var/lib/vmagent/vmagent.db")
sys.exit(not store.execute("SELECT value FROM settings WHERE name = 'memory_overhead_mib'").fetchone())
"""
CAPPED = f'[ "$(cat {SCOPE}/libvirt/cpu.max)" = {OWN} ]'
TOLD = f'[ "$(cat {SCOPE}/cpu.max)" = {OWN} ]'


class Guest(NamedTuple):
    """The one guest of this file."""

    vm: str
    device: str


_guests: Dict[BootedHost, Guest] = {}


def guest(host: BootedHost) -> Guest:
    """The guest that runs, started now if this host has none."""
    if host not in _guests:
        install(host)
        host.sh("systemctl start vmagent.service", START_S)
        if not ask(host, "list")["vms"]:
            host.sh(f"vmagentctl start {ASKED}", START_S)
        vm = ask(host, "list")["vms"][0]["vm"]
        wait(host, lambda: ask(host, "show", vm=vm)["state"]["phase"] in ("running", "ready"), START_S, "it runs")
        _guests[host] = Guest(vm, identity.device_name("vma", vm, 0))
    assert host.run("systemctl is-active vmagent.service").code == 0, host.sh("journalctl -b -u vmagent | tail -50")
    return _guests[host]


def test_the_unit_gives_the_agent_all_it_needs(on_host: OnHost) -> None:
    """Under its sandbox: nft, tc, ip, systemctl as children, netlink, the guests' cgroups and processes."""

    def body(host: BootedHost) -> None:
        one = guest(host)
        limits = ask(host, "show", vm=one.vm)["state"]["limits"]
        assert limits["drift"] == []
        assert {"cpu", "memory", "bandwidth", "firewall"} <= set(limits["proven"])
        assert one.device in host.sh(f"nft list table bridge {TABLE}")
        assert "tbf" in host.sh(f"tc qdisc show dev {one.device}")
        host.sh(CAPPED)
        host.until(TOLD, HELD_S, "systemd was told too")
        pid = host.sh("systemctl show -p MainPID --value vmagent").strip()
        assert host.sh(f"ps -o user= -p {pid}").strip() == "vmagent"
        assert host.sh(f"grep CapEff /proc/{pid}/status").split()[1].lstrip("0") == "1000", "CAP_NET_ADMIN alone"
        refused = host.run("journalctl -b -u vmagent -u vmagent-guard -o cat | "
                           "grep -iE 'not permitted|permission denied|read-only file system|traceback'")  # fmt: skip
        assert refused.text == ""

    on_host(body)


def test_what_reads_an_image_has_no_network_under_the_unit(on_host: OnHost) -> None:
    """The words that our code puts before such a program, found and used within the unit's own sandbox."""
    code = "import subprocess; from vmagent.images import inspection; " \
           "print(subprocess.check_output([*inspection._offline(), 'cat', '/proc/net/dev']).decode())"

    def body(host: BootedHost) -> None:
        install(host)
        host.sh("systemd-tmpfiles --create vmagent.conf")
        words = " ".join(f"-p {shlex.quote(each)}" for each in sandbox())
        run = f"systemd-run -q --wait --pipe -E PYTHONPATH={CHECKOUT} {words} python3 -c {shlex.quote(code)}"
        found = [line.split(":")[0].strip() for line in host.sh(run, START_S).splitlines() if ":" in line]
        assert found == ["lo"]

    on_host(body)


def test_this_kernel_tracks_connections_and_says_so(on_host: OnHost) -> None:
    def body(host: BootedHost) -> None:
        guest(host)
        capabilities = events(host, "host.state")[-1]["capabilities"]
        assert capabilities["firewall"]["tracking"] == "conntrack"
        assert capabilities["bandwidth"]["qdisc"] in ("tbf+fq_codel", "tbf+sfq")
        assert capabilities["cgroup"] == 2

    on_host(body)


class Disturbance(NamedTuple):
    """What somebody does, and when it is mended: both in shell.  kind: a word of the alert's."""

    does: str
    mended: str
    kind: str


DISTURBANCES: Dict[str, Callable[[Guest], Disturbance]] = {
    "nft flush ruleset": lambda one: Disturbance("nft flush ruleset", _filtered(one), "firewall"),
    "nft flush table": lambda one: Disturbance(f"nft flush table bridge {TABLE}", _filtered(one), "firewall"),
    "tc qdisc del": lambda one: Disturbance(f"tc qdisc del dev {one.device} root", _shaped(one), "bandwidth"),
    "tc ingress del": lambda one: Disturbance(
        f"tc qdisc del dev {one.device} ingress", f"tc qdisc show dev {one.device} | grep -q ingress", "bandwidth"
    ),
    "virsh schedinfo": lambda one: Disturbance(_lifted(one), CAPPED, "cpu"),
    "cgroup write": lambda one: Disturbance(f"echo max 100000 > {SCOPE}/libvirt/cpu.max", CAPPED, "cpu"),
}


def _filtered(one: Guest) -> str:
    """As much stands in the table as before."""
    return f"[ $(nft list table bridge {TABLE} 2>/dev/null | wc -l) -ge $(cat /var/tmp/lines) ]"


def _shaped(one: Guest) -> str:
    return f"tc qdisc show dev {one.device} | grep -q tbf"


def _lifted(one: Guest) -> str:
    return f"virsh -q schedinfo vma-{one.vm} --live global_quota=-1"


@pytest.mark.parametrize("name", DISTURBANCES)
def test_drift_is_mended_and_told(on_host: OnHost, name: str) -> None:
    def body(host: BootedHost) -> None:
        one = guest(host)
        does, mended, kind = DISTURBANCES[name](one)
        host.sh(f"nft list table bridge {TABLE} | wc -l > /var/tmp/lines")
        assert host.run(mended).code == 0
        before = len(events(host, "security.alert"))
        gone = host.run(f"{does}; {mended}")  # at once, before anybody can have seen it
        assert gone.code != 0, "it took something away"
        host.until(mended, HELD_S, name)
        wait(host, lambda: kind in json.dumps(events(host, "security.alert")[before:]), HELD_S, "it is told")

    on_host(body)


def test_a_daemon_reload_takes_nothing_away(on_host: OnHost) -> None:
    def body(host: BootedHost) -> None:
        guest(host)
        host.until(TOLD, HELD_S, "systemd was told")
        host.sh("systemctl daemon-reload")
        assert host.sh(f"cat {SCOPE}/cpu.max {SCOPE}/libvirt/cpu.max").split() == [f"{CAP * 1000}", "100000"] * 2

    on_host(body)


def test_what_qemu_takes_beside_its_guest_is_learned(on_host: OnHost) -> None:
    """Of the process of another user, once a minute, without the capability to look into it."""

    def body(host: BootedHost) -> None:
        guest(host)
        host.put({"/var/tmp/learned.py": LEARNED})
        host.until("python3 -I /var/tmp/learned.py", 60 + HELD_S, "a value in the store")

    on_host(body)


def test_a_stopped_agent_comes_back_to_what_was_done_meanwhile(on_host: OnHost) -> None:
    def body(host: BootedHost) -> None:
        one = guest(host)
        host.sh("systemctl stop vmagent.service", START_S)
        assert "running" in host.sh(f"virsh domstate vma-{one.vm}"), "stopping the agent stops no guest"
        host.sh(f"nft flush ruleset; tc qdisc del dev {one.device} root; {_lifted(one)}")
        assert host.run(CAPPED).code != 0
        host.sh("systemctl start vmagent.service", START_S)
        for mended in (_filtered(one), _shaped(one), CAPPED):
            host.until(mended, HELD_S, mended)

    on_host(body)


def test_the_end_leaves_nothing(on_host: OnHost) -> None:
    def body(host: BootedHost) -> None:
        one = guest(host)
        host.sh(f"vmagentctl kill --yes {one.vm}", START_S)
        host.until(f"! ip link show {one.device} 2>/dev/null && ! nft list table bridge {TABLE} | grep -q {one.device}",
                   HELD_S, "device and rules are gone")  # fmt: skip
        host.until("[ -z \"$(ip -br link show type ifb)\" ]", HELD_S, "so is what shaped it")
        assert host.sh("ls /var/lib/vmagent/overlays /var/lib/vmagent/seeds | grep -c . || true").strip() in ("0", "2")

    on_host(body)
