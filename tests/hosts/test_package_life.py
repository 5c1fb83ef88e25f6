"""The package's life on a host: installed, started, its daemon restarted.  One guest that a controller started over a
broker runs through it and never notices.
"""

from __future__ import annotations

import json
import shlex
from typing import Dict, Iterator, NamedTuple

import pytest

from tests.hosts.conftest import OnHost
from tests.support import bootedagent, bootedguest
from tests.support.agent import HOST
from tests.support.bootedagent import CAP, TABLE, ask, user, wait
from tests.support.bootedhost import BootedHost
from tests.support.bootedsite import BootedSite
from tests.support.brokers import RabbitMQ
from tests.support.waiting import until
from vmagent.core import identity

START_S = 300.0
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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedSite]:
    if not RabbitMQ.installed():
        pytest.skip("no rabbitmq here")
    one = BootedSite(tmp_path_factory.mktemp("site"))
    try:
        yield one
    finally:
        one.close()


def installed(host: BootedHost) -> Installed:
    """The packages, on a host whose distribution enables nothing by itself (EL does not)."""
    if host not in _installed:
        bootedagent.bridge(host)
        host.put({PRESET: b"disable *\n"})
        libvirtd = host.sh("systemctl start libvirtd.service; systemctl show -p MainPID libvirtd.service")
        bootedagent.rpm(host, "-i")
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
