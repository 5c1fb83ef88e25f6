"""What this host has: the facts that admission starts from, and what lies around the guests (R9, R19, I4).

`facts` is read at start.  `low` is read before each decision, by a few files that the kernel answers from its memory;
`around` goes to the network's drivers and the PCI bus, which may take their time: on a lane.
Sources: proc(5) (file-nr, threads-max, loadavg), the kernel's sysfs-class-net and sysfs-bus-pci, linux/if_bridge.h and
net/bridge/br_private.h (BR_MAX_PORTS), PCI class codes of pci_ids.h.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Dict, Iterable, List, Mapping, Optional, Tuple

import psutil

from vmagent.core.capacity import Around, Device

MIB = 2**20
KEPT = 10
"""One in so many of the kernel's open files and threads is left to the host itself."""
BRIDGE_PORTS = 1023  # of numbers of ten bits, without 0
KINDS: Mapping[str, str] = {"0x0300": "display", "0x0302": "3d", "0x0380": "display", "0x1200": "accelerator"}
"""Beginning of a PCI class -> kind of Device."""
ROOT = Path("/")


@dataclass(frozen=True)
class Facts:
    """cores: that this process may run on; memory_mib: all of the host's, used or not."""

    cores: int
    memory_mib: int


def facts() -> Facts:
    return Facts(len(os.sched_getaffinity(0)), psutil.virtual_memory().total // MIB)


@dataclass(frozen=True)
class Low:
    """What is left of what the kernel counts, the reserve taken off.  None, or absent = it does not say."""

    descriptors_free: Optional[int]
    tasks_free: Optional[int]
    ports_free: Mapping[str, int]  # by bridge


def low(bridges: Iterable[str], root: Path = ROOT) -> Low:
    """Read now."""
    known = {bridge: _ports(bridge, root) for bridge in sorted(set(bridges))}
    free = {bridge: BRIDGE_PORTS - len(ports) for bridge, ports in known.items() if ports is not None}
    return Low(_descriptors(root), _tasks(root), free)


def _text(path: Path) -> str:
    """The file's text; "" when it cannot be read."""
    with suppress(OSError, ValueError):
        return path.read_text(encoding="ascii", errors="replace").strip()
    return ""


def _numbers(text: str) -> List[int]:
    return [int(word) for word in text.replace("/", " ").split() if word.isdecimal()]


def _descriptors(root: Path) -> Optional[int]:
    """file-nr: allocated, unused (always 0), the most."""
    found = _numbers(_text(root / "proc/sys/fs/file-nr"))
    return found[2] - found[2] // KEPT - found[0] if len(found) == 3 else None


def _tasks(root: Path) -> Optional[int]:
    """loadavg's fourth word is RUNNABLE/ALL threads; the lower of threads-max and pid_max bounds them."""
    words = _text(root / "proc/loadavg").split()
    used = _numbers(words[3]) if len(words) > 3 else []
    most = [_numbers(_text(root / "proc/sys/kernel" / name))[:1] for name in ("threads-max", "pid_max")]
    if len(used) != 2 or not all(most):
        return None
    bound = min(one[0] for one in most)
    return bound - bound // KEPT - used[1]


def _ports(bridge: str, root: Path) -> Optional[List[str]]:
    """Names of a bridge's ports; None when there is no such bridge."""
    with suppress(OSError):
        return sorted(os.listdir(root / "sys/class/net" / bridge / "brif"))
    return None


def around(bridges: Iterable[str], root: Path = ROOT) -> Around:
    """Read now; it may take its time."""
    links: Dict[str, Optional[int]] = {bridge: _link_kbit(bridge, root) for bridge in sorted(set(bridges))}
    return Around(links, _devices(root), *_cpu(root))


@cache
def _cpu(root: Path) -> Tuple[Optional[str], Optional[int]]:
    """(model, MHz at most) of the first processor, read once; architectures that say neither have none.

    `cpu MHz` of cpuinfo is what it runs at just now, and moves: cpufreq's bound (kHz), or nothing.
    """
    lines = _text(root / "proc/cpuinfo").splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == "model name"]
    khz = _text(root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    return (named[0] if named and named[0] else None), (int(khz) // 1000 if khz.isdecimal() else None) or None


def _link_kbit(bridge: str, root: Path) -> Optional[int]:
    """Of the fastest uplink that says its speed: a port with a device behind it, or what a VLAN or bond stands on."""
    known = [speed for port in _ports(bridge, root) or () for speed in [_speed_kbit(port, root)] if speed is not None]
    return max(known, default=None)


def _speed_kbit(port: str, root: Path) -> Optional[int]:
    """`speed` is in Mbit/s, and -1 or an error where nobody knows.  A tap says 10 Mbit/s, which means nothing."""
    place = root / "sys/class/net" / port
    if (place / "tun_flags").exists():
        return None
    below = sorted(path.name[len("lower_") :] for path in place.glob("lower_*"))
    text = _text(place / "speed")
    if ((place / "device").exists() or below) and text.isdecimal() and int(text) > 0:
        return int(text) * 1000
    known = [speed for name in below for speed in [_speed_kbit(name, root)] if speed is not None]
    return max(known, default=None)


def _devices(root: Path) -> Optional[Tuple[Device, ...]]:
    """Displays, 3D controllers and accelerators on the PCI bus; None when there is no such bus to read."""
    bus = root / "sys/bus/pci/devices"
    if not bus.is_dir():
        return None
    found = [_device(place) for place in sorted(bus.iterdir())]
    return tuple(device for device in found if device is not None)


def _device(place: Path) -> Optional[Device]:
    kind = KINDS.get(_text(place / "class")[:6])
    if kind is None:
        return None
    group = _target(place / "iommu_group")
    return Device(place.name, kind, _text(place / "vendor"), _text(place / "device"), _target(place / "driver"),
                  int(group) if group is not None and group.isdecimal() else None)


def _target(link: Path) -> Optional[str]:
    """The last name of where a link points; None when there is none."""
    with suppress(OSError):
        return os.path.basename(os.readlink(link))
    return None
