"""A host that other people use already: what is theirs is the same to the byte, whatever becomes of the agent there.

Theirs are two VMs, the bridge that ours are plugged into as well, nft tables of two families, a qdisc.
"""

from __future__ import annotations

import difflib
from typing import Dict

from tests.hosts.conftest import OnHost
from tests.support import bootedagent, others
from tests.support.bootedagent import BRIDGE, SUBNET, ask, wait
from tests.support.bootedhost import BootedHost

START_S = 300.0
ASKED = (
    "--owner '/DC=org/DC=example/CN=A User' --image speaks --flavour tiny --lifetime 30m "
    f"--network public={SUBNET}.9 --bandwidth-in 20mbit --bandwidth-out 20mbit"
)
_before: Dict[BootedHost, Dict[str, str]] = {}


def before(host: BootedHost) -> Dict[str, str]:
    """What they have, made now on a host that has never seen an agent."""
    if host not in _before:
        bootedagent.bridge(host)
        others.settle(host)
        _before[host] = others.dump(host)
        assert "FAILED" not in "".join(_before[host].values()), _before[host]
    return _before[host]


def differs(host: BootedHost) -> str:
    """What of theirs is not as it was; "" = nothing."""
    was, now = before(host), others.dump(host)
    return "\n".join(line for what in others.SEEN for line in difflib.unified_diff(
        was[what].splitlines(), now[what].splitlines(), f"{what}, before", "now", lineterm="", n=1))  # fmt: skip


def untouched(host: BootedHost, after: str) -> None:
    found = differs(host)
    assert found == "", f"{after}: {found}"


DONE_TO_THEM = {
    "a rule": ("nft add rule inet site input counter", "nft, inet"),
    "a qdisc": (f"tc qdisc change dev {others.PORT} root tbf rate 9mbit burst 32kb latency 50ms", "qdiscs"),
    "a port": (f"bridge link set dev {others.PORT} isolated on", "ports"),
    "a domain": (f"virsh -q desc {others.RESTS} --config hello", "resting"),
    "a limit": (f"virsh -q schedinfo {others.RUNS} --live cpu_shares=300", "running, live"),
    "a disk": (f"touch {others.FOLDER}/{others.RESTS}.raw", "disks"),
    "an address": (f"ip address add 10.99.0.1/32 dev {BRIDGE}", "addresses"),
}
"""What somebody does to each kind of thing, and where the dump must say so."""


def test_from_install_to_removal_nothing_of_theirs_changes(on_fresh_host: OnHost) -> None:
    def body(host: BootedHost) -> None:
        before(host)
        bootedagent.rpm(host, "-i")
        untouched(host, "installed")
        bootedagent.configure(host)
        host.sh("systemctl start vmagent-guard.service vmagent.service", START_S)
        untouched(host, "started: nothing was adopted")
        assert ask(host, "list")["vms"] == []

        host.sh(f"vmagentctl start {ASKED}", START_S)
        vm = ask(host, "list")["vms"][0]["vm"]
        wait(host, lambda: ask(host, "show", vm=vm)["state"]["phase"] in ("running", "ready"), START_S, "ours runs")
        untouched(host, "ours runs beside theirs")
        host.sh(f"vmagentctl stop --yes --grace 10m {vm} && vmagentctl drain --reason test", START_S)
        host.until(f"! virsh -q list --all --name | grep -q vma-{vm}", START_S, "ours obeyed its power button")
        untouched(host, "ours came and went, and the host is drained")

        host.sh("systemctl stop vmagent.service vmagent-guard.service", START_S)
        untouched(host, "stopped")
        host.sh("rpm -e vmagent python3-vmagent", bootedagent.RPM_S)
        untouched(host, "removed")

    on_fresh_host(body)


def test_and_each_change_would_have_been_seen(on_fresh_host: OnHost) -> None:
    """So that the test above cannot go blind."""

    def body(host: BootedHost) -> None:
        before(host)
        for does, _ in DONE_TO_THEM.values():
            host.sh(does)
        said = differs(host)
        assert [kind for kind, (_, where) in DONE_TO_THEM.items() if f"--- {where}, before" not in said] == []
        _before[host] = others.dump(host)

    on_fresh_host(body)
