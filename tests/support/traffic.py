"""A bridge with two guests, the outside and the host itself, whose ends say only what a test says.

Nobody on it has a network stack that answers (no addresses, no IPv6), so what is seen is what was sent.  A verdict
needs no waiting: behind the frame in question goes a good one on the same way, and nothing overtakes on a bridge as
long as one CPU sends everything.  Needs root.  All of it stands in a network namespace of its own, where the thread
that made it stays until `close`, which takes everything away.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import time
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Sequence, Set, Tuple

from tests.support import building, frames
from tests.support.frames import Station
from tests.support.lanes import HandTurned
from tests.support.spaces import Apart, inside
from vmagent.core import identity
from vmagent.core.actions import Action, Do
from vmagent.core.model import Firewall, NicCounters, NicLimits, VmSpec
from vmagent.core.policy import SiteFirewall
from vmagent.host.firewall import NftFirewall
from vmagent.host.shaper import TcShaper
from vmagent.lanes import Lanes

READY = os.geteuid() == 0 and all(shutil.which(tool) for tool in ("ip", "nft", "tc", "bridge"))
NEEDED = "needs root, ip, nft, tc and bridge"
A_VM, B_VM = identity.vm_id(building.COMMAND, 0), identity.vm_id(building.COMMAND, 1)
A = Station(identity.mac_address(A_VM, 0), "10.77.0.10", "fd77::10")
B = Station(identity.mac_address(B_VM, 0), "10.77.0.11", "fd77::11")
A2, B2 = dataclasses.replace(A, v4="10.77.0.12", v6="fd77::12"), dataclasses.replace(B, v4="10.77.0.13", v6="fd77::13")
"""The guests' second addresses: nothing but the tests that say so uses them."""
HOST = Station("06:00:00:00:00:01", "10.77.0.1", "fd77::1")
NEIGHBOUR = Station("06:00:00:00:00:c8", "10.77.0.200", "fd77::200")
ROUTER = "06:00:00:00:00:fe"
MANAGEMENT = Station("06:00:00:00:00:fa", "10.77.0.250", "fd77::250")
NOWHERE = "06:00:00:00:00:ee"
_OUTGOING = 4
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_ALL = 3  # ETH_P_ALL
_SO_RCVBUFFORCE = 33


def beyond(number: int, network: int = 0) -> Station:
    """Somebody behind the outside's router: 198.18.<network>.<number>."""
    return Station(ROUTER, f"198.18.{network}.{number}", f"fd99::{network:x}:{number:x}")


@dataclass(frozen=True)
class Case:
    """One frame and what becomes of it.

    start, to: "a", "b", "outside" or "host".  before: (start, frame) pairs sent ahead of it.
    without: why some kernels would not let it arrive without our rules either; "" = it would.
    """

    id: str
    start: str
    to: str
    frame: bytes
    passes: bool
    before: Tuple[Tuple[str, bytes], ...] = ()
    without: str = ""

    def __str__(self) -> str:
        return self.id


def ran(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True).stdout.decode()


class Port:
    """One end in the hands of the test."""

    def __init__(self, space: str, device: str) -> None:
        self.device = device
        with inside(space):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
            self._socket.bind((device, _ALL))

    def send(self, content: bytes) -> None:
        self._socket.send(content)

    def until(self, good: bytes, seconds: float = 10.0) -> Set[bytes]:
        """The marks of all that came in, up to the frame marked `good`."""
        seen: Set[bytes] = set()
        deadline = time.monotonic() + seconds
        while good not in seen:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                content, origin = self._socket.recvfrom(65535)
            except socket.timeout:
                raise AssertionError(f"the good frame did not come out at {self.device}") from None
            if origin[2] != _OUTGOING:
                seen.update(frames.marks_of(content))
        return seen

    def close(self) -> None:
        self._socket.close()


class Ground:
    """guards: each guest's own firewall (and caps), by "a" and "b"; guarded: False = no rules of ours at all."""

    def __init__(self, instance: str, guards: Dict[str, NicLimits], site: SiteFirewall, guarded: bool = True) -> None:
        self.reactor = HandTurned()
        self.instance, self.bridge = instance, instance + "br0"
        self.firewall = NftFirewall(instance, Lanes("nft", 2, self.reactor), site)
        self.shaper = TcShaper(instance, Lanes("tc", 2, self.reactor))
        self._cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(self._cpus)})
        self.specs = {
            "a": spec_of(instance, self.bridge, 0, (A, A2), guards["a"]),
            "b": spec_of(instance, self.bridge, 1, (B, B2), guards["b"]),
        }
        self.devices = {each: spec.interfaces[0].device for each, spec in self.specs.items()}
        self.devices["outside"] = f"zup{instance}"  # not with our prefix: nobody's business
        self._apart = Apart()
        self._spaces: List[str] = []
        self._links: List[str] = []
        self.ports: Dict[str, Port] = {}
        try:
            self._build(guarded)
        except BaseException:
            self.close()
            raise

    def _build(self, guarded: bool) -> None:
        if guarded:
            self.reactor.settle(self.firewall.start())
            for spec in self.specs.values():
                self.perform(Do.APPLY_FIREWALL, spec)
        self._links.append(self.bridge)
        batch(
            f"link add {self.bridge} address {HOST.mac} type bridge mcast_snooping 0",
            f"link set {self.bridge} addrgenmode none",
            f"link set {self.bridge} up",
        )
        self.ports["host"] = Port("", self.bridge)
        self.ports.update(self._plug(self.devices))

    @staticmethod
    def space(device: str) -> str:
        """The namespace behind a device: names are the whole machine's, hence the process."""
        return f"{device}-{os.getpid()}"

    def plug(self, device: str) -> Port:
        """`device` on the bridge; its other end, in a silent namespace."""
        return self._plug({device: device})[device]

    def _plug(self, devices: Mapping[str, str]) -> Dict[str, Port]:
        spaces = [self.space(device) for device in devices.values()]
        self._spaces += spaces
        batch(*(f"netns add {space}" for space in spaces))
        self._link(*devices.values())
        return {end: Port(self.space(device), "far") for end, device in devices.items()}

    def _link(self, *devices: str) -> None:
        self._links += devices
        lines: List[str] = []
        for device in devices:
            lines += [
                f"link add {device} type veth peer name far netns {self.space(device)}",
                f"link set {device} addrgenmode none",
                f"link set {device} master {self.bridge}",
                f"link set {device} up",
            ]
        batch(*lines)
        for device in devices:
            silent_and_up(self.space(device))

    def replug(self, end: str) -> None:
        """This end's device, which went away, is there again."""
        self.ports[end].close()
        self._link(self.devices[end])
        self.ports[end] = Port(self.space(self.devices[end]), "far")

    def perform(self, do: Do, spec: VmSpec) -> None:
        self.reactor.settle(self.firewall.perform(Action(do, spec)))

    def awake(self, end: str, station: Station) -> str:
        """A whole network stack at this end, with the station's MAC and IPv4 address; the name of its namespace."""
        space = self.space(self.devices[end])
        with inside(space), open("/proc/sys/net/ipv6/conf/far/disable_ipv6", "w") as silent:
            silent.write("0")
        for words in (("link", "set", "far", "address", station.mac), ("link", "set", "lo", "up"),
                      ("addr", "add", f"{station.v4}/24", "dev", "far")):  # fmt: skip
            ran("ip", "-n", space, *words)
        return space

    def shape(self) -> None:
        """Bandwidth and bridge ports of both guests."""
        self.reactor.settle(self.shaper.start())
        for spec in self.specs.values():
            self._links.append(identity.shaper_name(spec.interfaces[0].device))
            self.reactor.settle(self.shaper.perform(Action(Do.SHAPE, spec)))

    def passes(self, case: Case) -> bool:
        """Whether the frame arrives; what is sent before it arrives or not as it may, but has been judged."""
        self.introduce()
        for start, content in case.before:
            self.ports[start].send(content)
            self.judged(start)
        self.ports[case.start].send(case.frame)
        return frames.marks_of(case.frame)[-1] in self.arrived(case.start, case.to)

    def introduce(self) -> None:
        """Everybody says who it is, for without rules the last impostor is still believed."""
        for end in ("a", "b", "outside"):
            self.ports[end].send(self.good(end, end))
        self.ports["outside"].send(frames.arp(ROUTER, 1, (ROUTER, beyond(1).v4), (ROUTER, beyond(1).v4)))

    def judged(self, start: str) -> None:
        """Return when everything sent from `start` is through; an ifb takes its time."""
        self.arrived(start, "a" if start == "outside" else "outside")

    def arrived(self, start: str, to: str) -> Set[bytes]:
        """The marks of everything that went from `start` to `to` up to now."""
        good = self.good(start, to)
        self.ports[start].send(good)
        return self.ports[to].until(frames.marks_of(good)[-1])

    def good(self, start: str, to: str) -> bytes:
        """A question that everybody may ask: who has the receiver's address?"""
        asker, asked = STATIONS[start], STATIONS[to]
        return frames.arp(asker.mac, 1, (asker.mac, asker.v4), ("00:00:00:00:00:00", asked.v4))

    def counters(self, end: str) -> NicCounters:
        found: NicCounters = self.reactor.settle(self.firewall.counters())[self.devices[end]]
        return found

    def learned(self, end: str) -> Set[str]:
        """The MACs that the bridge believes to be behind this end."""
        shown = ran("bridge", "-j", "fdb", "show", "br", self.bridge, "brport", self.devices[end])
        listed: List[Any] = json.loads(shown)
        return {each["mac"] for each in listed if each.get("state") != "permanent"}

    def close(self) -> None:
        os.sched_setaffinity(0, self._cpus)
        for port in self.ports.values():
            port.close()
        gone = [f"link del {each}" for each in reversed(self._links)]
        gone += [f"netns del {each}" for each in self._spaces]
        subprocess.run(["ip", "-force", "-batch", "-"], input="\n".join(gone).encode(), capture_output=True)
        subprocess.run(["nft", "delete", "table", "bridge", f"vmagent_{self.instance}"], capture_output=True)
        self._apart.close()


STATIONS = {"a": A, "b": B, "outside": NEIGHBOUR, "host": HOST}


def batch(*lines: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines).encode(), check=True, capture_output=True)


def silent_and_up(space: str) -> None:
    """`far` in this namespace, without IPv6, up."""
    with inside(space), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        with open("/proc/sys/net/ipv6/conf/far/disable_ipv6", "w") as silent:
            silent.write("1")
        flags = struct.pack("16sh14x", b"far", _IFF_UP)
        fcntl.ioctl(asking, _SIOCSIFFLAGS, flags)


def spec_of(instance: str, bridge: str, member: int, stations: Sequence[Station], nic: NicLimits) -> VmSpec:
    vm = identity.vm_id(building.COMMAND, member)
    addresses = [f"{each.v4}/24" for each in stations] + [f"{each.v6}/64" for each in stations]
    device = identity.device_name(instance, vm, 0)
    own = building.interface(vm, bridge=bridge, device=device, addresses=tuple(addresses), gateways=(HOST.v4,))
    return building.spec(member=member, interfaces=(own,), nics=(nic,))


def with_nic(spec: VmSpec, nic: NicLimits) -> VmSpec:
    return dataclasses.replace(spec, limits=dataclasses.replace(spec.limits, nics=(nic,)))


def with_firewall(spec: VmSpec, firewall: Firewall) -> VmSpec:
    return with_nic(spec, dataclasses.replace(spec.limits.nics[0], firewall=firewall))
