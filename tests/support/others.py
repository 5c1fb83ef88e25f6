"""What other people have on a booted host, and a dump of it that is the same to the byte when nobody touched it.

Two domains (one runs, one is shut off) with their disks, a bridge with ports, nft tables of two families, a qdisc.
Left out of the dump is only what moves by itself: the kernel's timers of a bridge.
"""

from __future__ import annotations

import json
from typing import Any, Dict

from tests.support.bootedagent import BRIDGE, IMAGES
from tests.support.bootedhost import BootedHost

FOLDER = "/var/lib/others"
RUNS, RESTS = "others-runs", "others-rests"
PORT, TAP = "others0", "others1"
LINKS = (BRIDGE, PORT, TAP)
RULES = """
table inet site {
    set admins { type ipv4_addr; elements = { 192.0.2.1, 192.0.2.2 } }
    chain input { type filter hook input priority 0; policy accept; ip saddr @admins tcp dport 9 counter drop; }
}
table bridge site {
    chain forward { type filter hook forward priority 0; policy accept; ether saddr 02:00:00:00:00:99 counter drop; }
}
"""
DOMAIN = """<domain type='kvm'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<cputune><shares>512</shares></cputune><os><type>hvm</type></os><features><acpi/></features><devices>
<disk type='file'><driver name='qemu' type='raw'/><source file='{folder}/{name}.raw'/>
<target dev='vda' bus='virtio'/></disk>
<interface type='bridge'><source bridge='{bridge}'/><target dev='{tap}'/><model type='virtio'/>
<rom enabled='no'/></interface>
<serial type='pty'/><controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"""
SEEN: Dict[str, str] = {
    "domains": "virsh -q list --all --name | grep -v '^vma-' | sort",
    "running, live": f"virsh dumpxml {RUNS}",
    "running, as it is defined": f"virsh dumpxml --inactive {RUNS}",
    "resting": f"virsh dumpxml --inactive {RESTS}; virsh domstate {RESTS}; virsh dominfo {RESTS} | grep -i auto",
    "its QEMU": f"p=$(pgrep -f -- '^[^ ]*qemu.* guest={RUNS},'); echo $p; cut -d' ' -f22 /proc/$p/stat",
    "its cgroup": "cd /sys/fs/cgroup/machine.slice/*others* && cat cpu.max cpu.weight memory.max pids.max",
    "disks": f"sha256sum {FOLDER}/*; stat -c '%n %i %s %y %U %G %a' {FOLDER} {FOLDER}/{RESTS}.raw",
    "nft, inet": "nft -j list table inet site",
    "nft, bridge": "nft -j list table bridge site",
    "qdiscs": " && ".join(f"tc -j qdisc show dev {link}" for link in LINKS),
    "addresses": f"ip -j address show dev {BRIDGE} && ip -j route show dev {BRIDGE}",
    "ports": "bridge -j -d link show",
    "links": " && ".join(f"ip -j -d link show dev {link}" for link in LINKS),
    "kernel settings": "sysctl net.ipv4.ip_forward net.ipv4.conf.all net.ipv6.conf.all.forwarding",
    "settings of libvirt": "virsh net-list --all; virsh pool-list --all; virsh nwfilter-list; "
                     "find /etc/libvirt -type f ! -name 'vma-*' | sort | xargs sha256sum",
}  # fmt: skip


def settle(host: BootedHost) -> None:
    """Make all of it; the bridge is there already."""
    disks = {f"{FOLDER}/{name}.raw": IMAGES["speaks"] for name in (RUNS, RESTS)}
    xml = {f"/var/tmp/{name}.xml": DOMAIN.format(name=name, folder=FOLDER, bridge=BRIDGE, tap=TAP).encode()
           for name in (RUNS, RESTS)}  # fmt: skip
    host.put({**disks, **xml, "/var/tmp/others.nft": RULES.encode()})
    host.sh(f"ip link add {PORT} type dummy && ip link set {PORT} master {BRIDGE} up && nft -f /var/tmp/others.nft && "
            f"tc qdisc add dev {PORT} root tbf rate 10mbit burst 32kb latency 50ms")  # fmt: skip
    host.sh(f"virsh -q define /var/tmp/{RESTS}.xml; virsh -q define /var/tmp/{RUNS}.xml; virsh -q start {RUNS}", 200)
    host.until("[ -z \"$(ip -6 address show tentative)\" ]", 60, "the kernel is sure of its addresses")


def dump(host: BootedHost) -> Dict[str, str]:
    """All of SEEN in one go, what -> what it says."""
    script = "\n".join(f"echo '==== {what}'; ( {how} ) 2>&1 || echo FAILED" for what, how in SEEN.items())
    said = host.sh("bash -s", 200, stdin=script.encode())
    found = {part.split("\n", 1)[0]: part.split("\n", 1)[1] for part in said.split("==== ")[1:]}
    return {what: _still(what, text) for what, text in found.items()}


def _still(what: str, text: str) -> str:
    """Without what moves by itself, and of the bridge's ports only those of others."""
    if what not in ("links", "ports"):
        return text
    values = [json.loads(line) for line in text.splitlines() if line]
    links = [_without_timers(one) for value in values for one in value if one["ifname"] in LINKS]
    return json.dumps(links, sort_keys=True, indent=1)


def _without_timers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_timers(one) for name, one in value.items() if not name.endswith("_timer")}
    return [_without_timers(one) for one in value] if isinstance(value, list) else value
