"""The package on a booted Xen dom0, as part of a site: PV guests that boot Linux, and their consoles.

Measured from outside the guest: what it sends arrives at a socket of dom0's, what it computes is counted by Xen.
"""

from __future__ import annotations

import time
from typing import Any, Dict

from tests.support import bootedagent
from tests.support.bootedagent import HOLD_S, INSTANCE, SUBNET
from tests.support.bootedhost import BootedHost
from tests.support.bootedhost_image import GUEST
from tests.support.bootedsite import BootedSite
from vmagent.core import identity

URI = "xen:///system"
CAP = 60
RATE_KBIT = 2_000  # what an emulated dom0 moves without effort
START_S = 600.0
MEASURED_S = 10
PORT = 5001
TYPED = """import os, sys
line = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)
os.write(line, sys.stdin.buffer.read())
"""
SINK = """import socket, sys, time
door = socket.create_server(("", int(sys.argv[1])))
print("open", flush=True)
link, _ = door.accept()
link.recv(1)
begun, got = time.monotonic(), 0
while time.monotonic() - begun < float(sys.argv[2]):
    got += len(link.recv(65536))
print(got * 8 / (time.monotonic() - begun) / 1000)
"""
SOURCE = """import socket, sys, time
link = socket.create_connection((sys.argv[1], int(sys.argv[2])), 30)
link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
begun, sent = time.monotonic(), 0
while time.monotonic() - begun < float(sys.argv[3]):
    sent += link.send(bytes(16384))
print(sent * 8 / (time.monotonic() - begun) / 1000)
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
name, end = sys.argv[1], time.monotonic() + 120
lifted = held = None
before = conn.lookupByName(name).ID()
while time.monotonic() < end and held is None:
    domain = conn.lookupByName(name)
    if domain.ID() not in (-1, before):
        try:
            cap = domain.schedulerParameters()["cap"]
        except libvirt.libvirtError:
            continue
        lifted = lifted or time.monotonic()
        held = time.monotonic() if cap else None
    time.sleep(0.05)
print(held - lifted if held else 999)
"""
RULES = {"inbound": [{"protocol": "icmp", "action": "allow"},
                     {"protocol": "tcp", "ports": [PORT], "action": "allow"}],
         "outbound": [{"action": "allow"}]}


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
              (("typed", TYPED), ("sink", SINK), ("source", SOURCE), ("used", USED), ("watch", WATCH))})  # fmt: skip
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
        """kbit/s that arrive of what it sends as fast as it can."""
        self._host.sh(f"(python3 -IS /var/tmp/sink.py {PORT} {MEASURED_S} > /var/tmp/sink.out 2>&1 &)")
        self._host.until("grep -q open /var/tmp/sink.out", 20)
        self.say(f"dd if=/dev/zero bs=16k | nc {SUBNET}.1 {PORT} &")
        self._host.until("[ $(wc -l < /var/tmp/sink.out) -eq 2 ]", 90, "what it sends arrives")
        return float(self._host.sh("tail -1 /var/tmp/sink.out"))

    def receives(self) -> float:
        """kbit/s that it takes of what it is sent as fast as that can be."""
        self.say(f"sleep {3 * MEASURED_S} | nc -l -p {PORT} > /dev/null &")
        time.sleep(1)
        return float(self._host.sh(f"python3 -IS /var/tmp/source.py {self.address} {PORT} {MEASURED_S}", 90))

    def busy_percent(self) -> float:
        """Of a core, that Xen gives it when it wants all."""
        self.say("while :; do :; done & sleep 25; kill $!")
        return float(self._host.sh(f"python3 -I /var/tmp/used.py {self.name} {MEASURED_S}"))

    def watch_cap(self) -> None:
        """Begin to look, 20 times a second, for the next life of it and for its cap."""
        self._host.sh(f"(python3 -I /var/tmp/watch.py {self.name} > /var/tmp/watch.out 2>&1 &)")

    def uncapped_s(self) -> float:
        """How long its next life was without a cap."""
        self._host.until("grep -q . /var/tmp/watch.out", 150, "the watcher")
        return float(self._host.sh("cat /var/tmp/watch.out").split()[-1])
