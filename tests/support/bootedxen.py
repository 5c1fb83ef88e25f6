"""The package on a booted Xen dom0, as part of a site: PV guests that boot Linux, and their consoles.

Measured from outside the guest: what it sends arrives at dom0, what it computes is counted by Xen.
"""

from __future__ import annotations

from typing import Any, Dict

from tests.support import bootedagent
from tests.support.bootedagent import HOLD_S, INSTANCE, SUBNET
from tests.support.bootedhost import BootedHost
from tests.support.bootedhost_image import GUEST
from tests.support.bootedsite import BootedSite
from vmagent.core import identity

URI = "xen:///system"
CAP = 60
RATE_KBIT = 500  # what an emulated dom0 moves without effort: a frame costs it milliseconds, and a bucket is soon full
START_S = 600.0
MEASURED_S, SETTLED_S = 20, 5  # after what the queue and the bucket hold
PING, FRAME = 1400, 1400 + 8 + 20 + 14  # bytes: the payload, and with ICMP, IP and Ethernet, as the shaper counts
GAP_S = 0.005  # between two: four times what may pass
TYPED = """import os, sys
line = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)
os.write(line, sys.stdin.buffer.read())
"""
COUNTED = """import sys, time
def read():
    if sys.argv[1] != "echoes":
        return int(open(sys.argv[1]).read())
    names, values = [line.split() for line in open("/proc/net/snmp") if line.startswith("Icmp:")]
    return int(values[names.index("InEchos")])
time.sleep(float(sys.argv[2]))
begun, before = time.monotonic(), read()
time.sleep(float(sys.argv[3]))
print((read() - before) / (time.monotonic() - begun))
"""
USED = """import libvirt, sys, time
domain = libvirt.open("xen:///system").lookupByName(sys.argv[1])
time.sleep(3)
begun, before = time.monotonic(), domain.info()[4]
time.sleep(float(sys.argv[2]))
print((domain.info()[4] - before) / (time.monotonic() - begun) / 1e7)
"""
WATCH = """import libvirt, sys, time
conn = libvirt.open("xen:///system")
name, end = sys.argv[1], time.monotonic() + 170
lifted = held = None
before = conn.lookupByName(name).ID()
while time.monotonic() < end and held is None:
    domain = conn.lookupByName(name)
    if domain.ID() not in (-1, before):
        lifted = lifted or time.monotonic()
        try:
            held = time.monotonic() if domain.schedulerParameters()["cap"] else None
        except libvirt.libvirtError:
            pass
    time.sleep(0.2)
print(held - lifted if held else 999)
"""
RULES = {"inbound": [{"protocol": "icmp", "action": "allow"}], "outbound": [{"action": "allow"}]}


def install(host: BootedHost, site: BootedSite) -> None:
    """The agent of this site, with the image's guest in its catalogue, running.  Once per host."""
    if host.run("systemctl is-active vmagent.service").code == 0:
        return
    bootedagent.install(host)
    host.sh(f"cp {GUEST}/* /var/lib/vmagent/images/")
    sums = dict(line.split()[::-1] for line in host.sh(f"cd {GUEST}; sha512sum try.raw vmlinuz initrd").splitlines())
    files = {what: {"file": name, "sha512": sums[name]} for what, name in (("kernel", "vmlinuz"), ("initrd", "initrd"))}
    boot = {"guest": "pv", "cmdline": "console=hvc0 quiet panic=-1", **files}
    site.admit(
        host,
        images={"catalogue": {"try": {"file": "try.raw", "format": "raw", "sha512": sums["try.raw"], "boot": boot}}},
        hypervisor={"uri": URI},
        flavours={},
        limits={"cores": 2, "memory_mib": 256, "disk_gib": 2, "lifetime_s": 3600, "count": 4},
        capacity={"disk_floor_gib": 1},
        lease={"warn_before_s": [20], "grace_s": 20},
        intervals={"hold_s": HOLD_S},
    )
    host.put({f"/var/tmp/{name}.py": text.encode() for name, text in
              (("typed", TYPED), ("counted", COUNTED), ("used", USED), ("watch", WATCH))})  # fmt: skip
    host.sh("systemctl start vmagent.service", START_S)


def address(place: int) -> str:
    return f"{SUBNET}.{place}"


def start_args(place: int = 10, **kw: Any) -> Dict[str, Any]:
    """A start of one PV guest with this address, capped and shaped."""
    network = {"type": "public", "addresses": [address(place)], "firewall": RULES,
               "bandwidth_in_kbit": RATE_KBIT, "bandwidth_out_kbit": RATE_KBIT}
    return {"image": {"id": "try"}, "cores": 1, "memory_mib": 128, "disk_gib": 1, "cpu_cap_core_percent": CAP,
            "lifetime_s": 1800, "name": "guest", "networks": [network], **kw}  # fmt: skip


class Guest:
    """One that runs."""

    def __init__(self, host: BootedHost, vm: str, address: str) -> None:
        self._host = host
        self.vm = vm
        self.name = f"vma-{vm}"
        self.address = address
        self.device = identity.device_name(INSTANCE, vm, 0)
        self.mac = identity.mac_address(vm, 0)

    def number(self) -> int:
        """Xen's number of it; -1 = it is off."""
        said = self._host.sh(f"virsh -q -c {URI} domid {self.name}").strip()
        return -1 if said == "-" else int(said)

    def cap(self) -> int:
        """Percent of a core, as Xen itself says."""
        said = self._host.run(f"xl sched-credit2 -d {self.name} | tail -1")
        return int(said.text.split()[-1]) if said.code == 0 and said.text.split()[-1:] and \
            said.text.split()[-1].isdigit() else -1

    def say(self, command: str) -> None:
        """To the shell on its console; what it says from now on is kept."""
        tty = f"$(virsh -q -c {URI} ttyconsole {self.name})"
        self._host.sh("pkill -f '^cat /dev/pts' || true")
        self._host.sh(f"(cat {tty} > /var/tmp/heard 2>&1 &) ; sleep 0.2; python3 -IS /var/tmp/typed.py {tty}",
                      stdin=f"\n{command}\n".encode())  # fmt: skip

    def hears(self, before: str, seconds: float = 60.0) -> str:
        """The number after these words at the beginning of a line, when it has said them; its echo has none."""
        said = f"'^{before}[0-9][0-9]*'"
        self._host.until(f"grep -q {said} /var/tmp/heard", seconds, before)
        return self._host.sh(f"grep -o {said} /var/tmp/heard").splitlines()[-1][len(before):]

    def sends(self) -> float:
        """kbit/s that arrive of four times as much.  Pings, since no loss makes them wait as it does TCP, whose pace
        under emulation says more of the machine than of the limit.
        """
        self.say(f"ping -q -i {GAP_S} -s {PING} -w {2 * MEASURED_S} {SUBNET}.1 > /dev/null &")
        return self._counted("echoes") * FRAME * 8 / 1000

    def receives(self) -> float:
        """kbit/s that leave its interface towards it, of four times as much."""
        pings = f"ping -q -i {GAP_S} -s {PING} -w {SETTLED_S + MEASURED_S} {self.address}"
        self._host.sh(f"({pings} > /dev/null 2>&1 &)")
        return self._counted(f"/sys/class/net/{self.device}/statistics/tx_bytes") * 8 / 1000

    def _counted(self, what: str) -> float:
        """Per second, once all has settled."""
        return float(self._host.sh(f"python3 -IS /var/tmp/counted.py {what} {SETTLED_S} {MEASURED_S}", 90))

    def busy_percent(self) -> float:
        """Of a core, that Xen gives it when it wants all."""
        self.say(f"while :; do :; done & sleep {2 * MEASURED_S}; kill $!")
        return float(self._host.sh(f"python3 -I /var/tmp/used.py {self.name} {MEASURED_S}"))

    def watch_cap(self) -> None:
        """Begin to look, 5 times a second (more would disturb what it measures), for its next life and its cap."""
        self._host.sh(f"(python3 -I /var/tmp/watch.py {self.name} > /var/tmp/watch.out 2>&1 &)")

    def uncapped_s(self) -> float:
        """How long its next life was without a cap."""
        self._host.until("grep -q . /var/tmp/watch.out", 180, "the watcher")
        return float(self._host.sh("cat /var/tmp/watch.out").split()[-1])
