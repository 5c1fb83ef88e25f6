"""The unit's sandbox on a booted host: what the agent needs works in it, and what is left out, put back, breaks it."""

from __future__ import annotations

import shlex
from typing import Dict, Mapping

import pytest

from tests.hosts.conftest import OnHost
from tests.support.bootedagent import install
from tests.support.bootedhost import BootedHost, Done
from tests.support.hardening import ITEMS, sandbox

RUN_S = 120.0


def confined(host: BootedHost, command: str, puts: Mapping[str, str] = {}) -> Done:  # noqa: B006 - never written to
    words = " ".join(f"-p {shlex.quote(each)}" for each in sandbox(puts))
    return host.run(f"systemd-run -q --wait --pipe {words} {command} 2>&1", RUN_S)


_working: Dict[BootedHost, str] = {}  # what they said in the unit's own sandbox


def working(host: BootedHost) -> str:
    """A line for each command that works there: its number.  All at once: each new unit costs seconds in there."""
    if host not in _working:
        install(host)
        host.sh("systemd-tmpfiles --create vmagent.conf")
        script = "\n".join(f"{does} >/tmp/said 2>&1 && echo works {number} || cat /tmp/said"
                           for number, (_, does) in enumerate(ITEMS.values()))
        _working[host] = confined(host, f"bash -c {shlex.quote(script)}").text
    return _working[host]


@pytest.mark.parametrize("item", ITEMS)
def test_what_is_left_out_would_break_something(on_host: OnHost, item: str) -> None:
    puts, does = ITEMS[item]

    def body(host: BootedHost) -> None:
        assert f"works {list(ITEMS).index(item)}\n" in working(host), working(host)
        assert confined(host, does, puts).code != 0

    on_host(body)


def test_the_agent_s_user_may_set_properties_of_guests_scopes_and_nothing_else(on_host: OnHost) -> None:
    """By the package's polkit rule."""
    scope = r"machine-qemu\x2d9\x2dvma\x2dtest.scope"

    def body(host: BootedHost) -> None:
        install(host)
        as_user = "runuser -u vmagent -- systemctl --no-ask-password"
        host.sh(f"systemd-run -q --scope --unit={shlex.quote(scope)} sleep 600 >/dev/null 2>&1 &")
        host.until(f"systemctl -q is-active {shlex.quote(scope)}", 30, "the scope")
        host.sh(f"{as_user} set-property --runtime -- {shlex.quote(scope)} CPUQuota=40%")
        assert "400ms" in host.sh(f"systemctl show -p CPUQuotaPerSecUSec {shlex.quote(scope)}")
        for refused in ("set-property --runtime -- ssh.service CPUQuota=40%", f"stop {shlex.quote(scope)}",
                        "restart ssh.service", "daemon-reload"):
            assert host.run(f"{as_user} {refused}").code != 0, refused
        host.sh(f"systemctl stop {shlex.quote(scope)}")

    on_host(body)


def test_who_is_not_the_agent_s_user_is_not_let_in_by_its_rule(on_host: OnHost) -> None:
    def body(host: BootedHost) -> None:
        install(host)
        host.sh("runuser -u vmagent -- virsh -c qemu:///system version", RUN_S)
        assert host.run("runuser -u nobody -- virsh -c qemu:///system version", RUN_S).code != 0

    on_host(body)


def test_the_doctor_says_in_words_what_the_user_lacks(on_host: OnHost) -> None:
    rule = "/usr/share/polkit-1/rules.d/50-vmagent.rules"

    def body(host: BootedHost) -> None:
        install(host)
        host.sh("gpasswd -d vmagent libvirt || true")
        assert "may do all" in host.run("vmagentctl doctor | grep -i 'agent.s user'", RUN_S).text
        host.sh(f"mv {rule} /root/ && chown root /var/lib/vmagent/overlays && chmod 755 /var/lib/vmagent/overlays")
        said = host.run("vmagentctl doctor --json", RUN_S).text
        host.sh(f"mv /root/50-vmagent.rules {rule} && chown vmagent /var/lib/vmagent/overlays && "
                "chmod 711 /var/lib/vmagent/overlays")  # fmt: skip
        assert "chown vmagent: /var/lib/vmagent/overlays" in said and "usermod -aG libvirt vmagent" in said

    on_host(body)
