"""The package's life on a host: installed, started, its daemon restarted, killed, upgraded, downgraded, the power cut,
removed.  One guest that a controller started over a broker runs through all of it but the power cut, and never notices.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Dict, NamedTuple

from tests.hosts.conftest import OnHost
from tests.support import bootedagent, bootedguest
from tests.support.agent import HOST
from tests.support.bootedagent import CAP, TABLE, ask, user, wait
from tests.support.bootedhost import BootedHost
from tests.support.bootedsite import BootedSite
from tests.support.oldstores import OVER
from tests.support.waiting import until
from vmagent.__main__ import USAGE
from vmagent.core import identity
from vmagent.store import schema

STORES = Path(__file__).resolve().parents[1] / "data" / "stores"
OLDER, NEWER = "0.0.1", "99.0.0"
START_S = 300.0
BEAT_S = 20
"""WatchdogSec= here: the shipped minute would be waited for, and a turn of the agent's takes long in there."""
STATE = "/var/lib/vmagent"
SCOPE = "/sys/fs/cgroup/machine.slice/$(ls /sys/fs/cgroup/machine.slice | grep '^machine-qemu')"
UNITS = "vmagent.service vmagent-guard.service"
PRESET = "/etc/systemd/system-preset/00-none.preset"


class Installed(NamedTuple):
    """What was seen right after the installation."""

    enabled: str
    active: str
    made: str  # tables, domains, interfaces, sockets
    left_alone: bool  # libvirtd is the same process


_installed: Dict[BootedHost, Installed] = {}
_guests: Dict[BootedHost, str] = {}


def installed(host: BootedHost) -> Installed:
    """Packages of an older version, on a host whose distribution enables nothing by itself (EL does not)."""
    if host not in _installed:
        bootedagent.bridge(host)
        host.put({PRESET: b"disable *\n"})
        libvirtd = host.sh("systemctl start libvirtd.service; systemctl show -p MainPID libvirtd.service")
        bootedagent.rpm(host, "-i", OLDER)
        _installed[host] = Installed(
            host.run(f"systemctl is-enabled {UNITS}").text, host.run(f"systemctl is-active {UNITS}").text,
            host.sh("nft list tables; virsh -q list --all; ip -br link; ls /run/vmagent/*.sock 2>/dev/null || true"),
            libvirtd.strip().endswith(host.sh("systemctl show -p MainPID libvirtd.service").strip()),
        )  # fmt: skip
    return _installed[host]


def guest(host: BootedHost, site: BootedSite) -> str:
    """The name of the domain, which a controller started now if there is none."""
    if host not in _guests:
        installed(host)
        site.admit(host)
        host.sh(f"systemctl start {UNITS}", START_S)
        _guests[host] = identity.domain_name(started(site))
    return _guests[host]


def started(site: BootedSite) -> str:
    """The id of a VM that is ready now."""
    said = site.command("start", HOST, "--image", "speaks", "--flavour", "tiny", "--lifetime", "1h", "--name", "life",
                        "--wait", "--timeout", f"{START_S:.0f}s")  # fmt: skip
    return str(said["members"][0]["vm"])


def vm_of(name: str) -> str:
    return name.split("-", 1)[1]


def phase(host: BootedHost, name: str) -> str:
    """"" while the agent does not answer yet, or does not know the VM yet."""
    query = json.dumps({"id": 1, "verb": "show", "args": {"vm": vm_of(name)}})
    found = host.run(f"python3 -IS /var/tmp/ask.py {shlex.quote(query)}")
    answer = json.loads(found.text) if found.code == 0 and found.text else {}
    return str(answer.get("result", {}).get("state", {}).get("phase", ""))


def ready(host: BootedHost, name: str) -> None:
    """The agent has it, and it is as it should be."""
    host.until("systemctl is-active -q vmagent.service", START_S, "active")
    wait(host, lambda: phase(host, name) == "ready", START_S, "ready")


def show(host: BootedHost, name: str) -> str:
    return host.sh(f"systemctl show -p {name} --value vmagent.service").strip()


def said(host: BootedHost, words: str) -> bool:
    return host.run(f"journalctl -b -u vmagent -o cat | grep -qF {shlex.quote(words)}").code == 0


# -- installed


def test_installing_starts_nothing_and_touches_nothing(on_fresh_host: OnHost) -> None:
    def body(host: BootedHost) -> None:
        seen = installed(host)
        assert seen.enabled.split() == ["disabled", "disabled"]
        assert seen.active.split() == ["inactive", "inactive"]
        assert "vma" not in seen.made and TABLE not in seen.made
        assert seen.left_alone, "libvirt was not restarted"

    on_fresh_host(body)


def test_users_groups_and_modes_are_the_package_s(on_fresh_host: OnHost) -> None:
    def body(host: BootedHost) -> None:
        installed(host)
        assert host.run("rpm -V --nodeps python3-vmagent vmagent | grep -v vmagent.yaml").text == ""
        who = host.sh(f"id {user(host)}; getent group vmagent-admin vmagent-reader")
        host.sh("systemd-sysusers vmagent.conf")
        assert host.sh(f"id {user(host)}; getent group vmagent-admin vmagent-reader") == who, "two ways, one user"
        assert host.run("systemd-tmpfiles --create vmagent.conf").text == ""

    on_fresh_host(body)


# -- at work


def test_a_controller_s_command_over_the_broker_starts_a_guest(on_fresh_host: OnHost, site: BootedSite) -> None:
    def body(host: BootedHost) -> None:
        name = guest(host, site)
        assert "type='kvm'" in host.sh(f"virsh dumpxml {name} | head -1")
        bootedguest.answers(host, name)
        until(lambda: [one for one in site.published(vm_of(name)) if one["phase"] == "ready"], 60, "it is published")
        owner = host.sh(f"ps -o user= -p {show(host, 'MainPID')}").strip()
        assert owner == user(host)
        assert host.sh(f"stat -c '%U %a' {STATE}/vmagent.db").split() == [owner, "600"]
        assert host.sh(f"stat -c %U {STATE} /run/vmagent").split() == [owner, owner]

    on_fresh_host(body)


def test_its_limits_stand_in_cgroup_v2(on_fresh_host: OnHost, site: BootedSite) -> None:
    def body(host: BootedHost) -> None:
        name = guest(host, site)
        host.until(f'[ "$(cat {SCOPE}/cpu.max)" = "{CAP * 1000} 100000" ]', START_S, "systemd was told")
        assert host.sh(f"cat {SCOPE}/libvirt/cpu.max").split() == [f"{CAP * 1000}", "100000"]
        limits = ask(host, "show", vm=vm_of(name))["state"]["limits"]
        assert limits["drift"] == [] and {"cpu", "memory"} <= set(limits["proven"])

    on_fresh_host(body)


def test_a_restart_goes_unnoticed(on_fresh_host: OnHost, site: BootedSite) -> None:
    def body(host: BootedHost) -> None:
        name = guest(host, site)
        before, agent = bootedguest.same(host, name), show(host, "MainPID")
        host.sh("systemctl restart vmagent.service", START_S)
        assert show(host, "MainPID") != agent
        ready(host, name)
        assert bootedguest.same(host, name) == before
        bootedguest.answers(host, name)

    on_fresh_host(body)


def test_the_watchdog_replaces_a_frozen_agent_and_no_guest(on_fresh_host: OnHost, site: BootedSite) -> None:
    def body(host: BootedHost) -> None:
        name = guest(host, site)
        host.put({"/run/systemd/system/vmagent.service.d/beat.conf": f"[Service]\nWatchdogSec={BEAT_S}\n".encode()})
        host.sh("systemctl daemon-reload && systemctl restart vmagent.service", START_S)
        ready(host, name)
        before, agent = bootedguest.same(host, name), show(host, "MainPID")
        host.sh(f"kill -STOP {agent}")
        host.until('[ "$(systemctl show -p NRestarts --value vmagent)" = 1 ]', START_S, "started again")
        assert said(host, "Watchdog timeout") and said(host, "SIGABRT")
        ready(host, name)
        assert show(host, "MainPID") != agent and bootedguest.same(host, name) == before
        bootedguest.answers(host, name)
        host.sh("rm -r /run/systemd/system/vmagent.service.d && systemctl daemon-reload")

    on_fresh_host(body)


# -- another version


def replaced(host: BootedHost, number: int) -> None:
    """The running agent's store is now a file of this schema; what it had is moved away."""
    kept = {kind: (STORES / f"schema-{number}{kind}").read_bytes() for kind in (".db", ".epoch")}
    host.put({f"/var/tmp/old/vmagent{kind}": content for kind, content in kept.items()}, 0o600)
    host.sh(f"mkdir -p /var/tmp/was && mv {STATE}/vmagent.db* {STATE}/vmagent.epoch /var/tmp/was/ && "
            f"chown {user(host)} /var/tmp/old/* && cp -p /var/tmp/old/* {STATE}/")  # fmt: skip


def version(host: BootedHost, new: str = "") -> int:
    """The schema of the store there; new: to be another."""
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); print(c.execute(sys.argv[2]).fetchall())"
    pragma = f"PRAGMA user_version{new and ' = ' + new}"
    found = host.sh(f"python3 -ISc {shlex.quote(code)} {STATE}/vmagent.db {shlex.quote(pragma)}").strip("[](),\n")
    return int(found or new)


def test_an_upgrade_over_an_old_store_goes_unnoticed(on_fresh_host: OnHost, site: BootedSite) -> None:
    """The store is of the first schema: what it says is taken over, and the guest that it does not know is known by its
    tag."""

    def body(host: BootedHost) -> None:
        name = guest(host, site)
        before, agent = bootedguest.same(host, name), show(host, "MainPID")
        replaced(host, 1)
        bootedagent.rpm(host, "-U")
        assert "0.0.1" not in host.sh("rpm -q vmagent python3-vmagent; vmagent --version")
        assert show(host, "MainPID") != agent, "what ran is started again"
        ready(host, name)
        assert version(host) == len(schema.STEPS)
        assert ask(host, "status")["drained"], "so the old store was"
        told = ask(host, "over", handle=OVER)
        assert told["over"] and [one["vm"] for one in told["members"]] == [identity.vm_id(OVER, 0)]
        assert bootedguest.same(host, name) == before
        bootedguest.answers(host, name)
        site.command("undrain", HOST)

    on_fresh_host(body)


def test_a_downgrade_is_refused_with_the_way_back(on_fresh_host: OnHost, site: BootedSite) -> None:
    """Once it is refused it stays so: systemd does not try again.  Both ways back work."""

    def body(host: BootedHost) -> None:
        name = guest(host, site)
        before, known = bootedguest.same(host, name), version(host)
        version(host, str(known + 1))
        bootedagent.rpm(host, "-U --oldpackage --replacepkgs", OLDER)
        host.until('[ "$(systemctl show -p ActiveState --value vmagent)" = failed ]', START_S, "it is refused")
        assert [show(host, one) for one in ("ExecMainStatus", "Result", "NRestarts")] == [str(USAGE), "exit-code", "0"]
        assert said(host, "store-newer") and said(host, "install that version again, or move the store away")
        assert bootedguest.same(host, name) == before

        host.sh(f"mkdir -p /var/tmp/newer && mv {STATE}/vmagent.db* /var/tmp/newer/")
        host.sh("systemctl start vmagent.service", START_S)
        ready(host, name)
        assert version(host) == known

        host.sh(f"systemctl stop vmagent.service && mv /var/tmp/newer/vmagent.db* {STATE}/", START_S)
        version(host, str(known))  # the newer version knows it
        bootedagent.rpm(host, "-U", NEWER)
        host.sh("systemctl start vmagent.service", START_S)
        ready(host, name)
        assert bootedguest.same(host, name) == before
        bootedguest.answers(host, name)

    on_fresh_host(body)


# -- the power


def test_a_power_cut_is_told_as_what_it_was(on_fresh_host: OnHost, site: BootedSite) -> None:
    def body(host: BootedHost) -> None:
        vm = vm_of(guest(host, site))
        host.sh("systemctl -q enable vmagent.service && sync")
        before = len(site.published(vm))
        host.cut()
        del _guests[host]
        host.boot()
        host.until("systemctl is-active -q vmagent.service", START_S, "it comes with the host")
        (ended, *_) = until(lambda: [one for one in site.published(vm)[before:] if one["closed"]], START_S, "told")
        assert (ended["outcome"], ended["phase"], ended["reason"]) == ("lost", "stopped", "host reboot")
        (*_, last) = ask(host, "usage", vm=vm)["rows"]
        assert (last["final"], last["outcome"], last["ended_at"] is not None) == (True, "lost", True)
        assert vm not in host.sh("virsh -q list --all")
        assert host.sh(f"ls {STATE}/overlays {STATE}/seeds | grep -c {vm} || true").strip() == "0"
        assert "enabled" in host.sh("systemctl is-enabled vmagent-guard.service")

    on_fresh_host(body)


# -- gone


def test_removal_leaves_guests_and_tells_how_to_end_them(on_fresh_host: OnHost, site: BootedSite) -> None:
    def body(host: BootedHost) -> None:
        name = guest(host, site)
        host.sh("systemctl -q enable vmagent.service")
        before = bootedguest.same(host, name)
        told = host.sh("rpm -e vmagent python3-vmagent", bootedagent.RPM_S)
        assert "Guests that it started run on" in told
        assert host.run(f"systemctl is-active {UNITS}").text.split() == ["inactive", "inactive"]
        assert host.sh("find /etc/systemd/system -xtype l").strip() == "", "no link to a unit that is gone"
        assert host.run("ls /usr/lib/vmagent /usr/bin/vmagent").code != 0
        assert bootedguest.same(host, name) == before
        bootedguest.answers(host, name)
        host.sh(f"nft list table bridge {TABLE} && ls {STATE}/vmagent.db {STATE}/overlays/*{vm_of(name)}*")
        ending = next(line for line in told.splitlines() if "virsh destroy" in line).split("#")[0]
        host.sh(ending.replace("NAME", name))
        del _guests[host], _installed[host]
        assert host.sh("virsh -q list --all").strip() == ""
        assert host.run(f"pgrep -f guest={name}").code == 1

    on_fresh_host(body)
