"""libvirt asks polkit for every call: the rules of the example are enough for the agent, and for its guests only."""

from __future__ import annotations

from tests.hosts.conftest import CHECKOUT, OnHost
from tests.support.bootedagent import SUBNET, ask, install, wait
from tests.support.bootedhost import BootedHost

SLOW_S = 300.0
RULES = "50-vmagent-libvirt.rules"
CONF = "/etc/libvirt/libvirtd.conf"
AS_USER = "runuser -u vmagent -- virsh -q -c qemu:///system"
FOREIGN = """<domain type='kvm'><name>other</name><memory unit='MiB'>32</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os></domain>"""
ASKED = f"--owner '/CN=A User' --image busy --flavour tiny --lifetime 30m --name held --network public={SUBNET}.8"


def test_the_example_s_rules_are_enough_for_the_agent_and_reach_no_other_guest(on_host: OnHost) -> None:
    def body(host: BootedHost) -> None:
        install(host)
        host.put({"/var/tmp/other.xml": FOREIGN.encode()})
        host.sh("virsh -q define /var/tmp/other.xml", SLOW_S)
        host.sh(f"install -m 644 {CHECKOUT}/docs/examples/{RULES} /etc/polkit-1/rules.d/ && "
                f"cp {CONF} /var/tmp/ && echo 'access_drivers = [ \"polkit\" ]' >> {CONF} && "
                "systemctl restart libvirtd && systemctl restart vmagent", SLOW_S)  # fmt: skip
        try:
            assert host.run(f"{AS_USER} undefine other").code != 0
            assert "other" in host.sh(f"{AS_USER} list --all --name"), "it looks at all of them"
            assert host.run(f"{AS_USER} net-list --all").code != 0, "what it does not call"
            wait(host, lambda: not ask(host, "status")["degraded"].get("libvirt"), SLOW_S, "libvirt answers the agent")
            host.sh(f"vmagentctl start {ASKED}", SLOW_S)
            vm = next(one["vm"] for one in ask(host, "list")["vms"] if one["name"] == "held")
            wait(host, lambda: ask(host, "show", vm=vm)["state"]["phase"] in ("running", "ready"), SLOW_S, "it runs")
            assert ask(host, "show", vm=vm)["state"]["limits"]["drift"] == []
            host.sh(f"vmagentctl kill --yes {vm}", SLOW_S)
            wait(host, lambda: f"vma-{vm}" not in host.sh("virsh list --all --name"), SLOW_S, "it is gone")
        finally:
            host.run(f"rm /etc/polkit-1/rules.d/{RULES}; cp /var/tmp/libvirtd.conf {CONF}; systemctl restart libvirtd; "
                     "systemctl restart vmagent; virsh -q undefine other", SLOW_S)  # fmt: skip

    on_host(body)
