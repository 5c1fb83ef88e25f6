"""A bridge with guests' ends plugged in, as the kernel has them: veth pairs instead of taps.  Needs root.

Everything is named with the prefix `zt` and taken away by `close`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
from ipaddress import ip_address
from typing import List

READY = os.geteuid() == 0 and all(shutil.which(tool) for tool in ("ip", "nft"))
NEEDED = "needs root, ip and nft"
BROADCAST = "ff:ff:ff:ff:ff:ff"
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD


def ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True, capture_output=True)


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def arp(mac: str, address: str, sender_mac: str = "") -> bytes:
    """A request for 192.0.2.1, said to come from `address`; sender_mac: of the frame, if another one."""
    body = struct.pack(">HHBBH", 1, IPV4, 6, 4, 1) + octets(mac) + ip_address(address).packed
    return frame(sender_mac or mac, ARP, body + bytes(6) + ip_address("192.0.2.1").packed)


def udp4(mac: str, address: str) -> bytes:
    source, target = ip_address(address).packed, ip_address("192.0.2.255").packed
    return frame(mac, IPV4, struct.pack(">BBHHHBBH", 0x45, 0, 20, 0, 0, 64, 59, 0) + source + target)


def packet6(mac: str, address: str) -> bytes:
    source, target = ip_address(address).packed, ip_address("ff02::1").packed
    return frame(mac, IPV6, struct.pack(">IHBB", 0x60000000, 0, 59, 64) + source + target)


def frame(mac: str, kind: int, body: bytes) -> bytes:
    return octets(BROADCAST) + octets(mac) + struct.pack(">H", kind) + body.ljust(46, b"\0")


class Wires:
    """A bridge `name` with an address of its own."""

    def __init__(self, name: str, *addresses: str) -> None:
        self.bridge = name
        self._links: List[str] = []
        self._namespaces: List[str] = []
        self._link(name, "type", "bridge")
        for address in addresses:
            ip("addr", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
        ip("link", "set", name, "up")

    def plug(self, device: str) -> None:
        """`device` on the bridge, its other end `device` + "g" in the hands of the test (at most 15 characters)."""
        far = device[:14] + "g"
        self._link(device, "type", "veth", "peer", "name", far)
        ip("link", "set", far, "addrgenmode", "none")
        ip("link", "set", device, "master", self.bridge)
        for each in (device, far):
            ip("link", "set", each, "up")

    def send(self, device: str, content: bytes) -> None:
        """A frame out of the guest that sits on `device`."""
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind((device[:14] + "g", 0))
            sock.send(content)

    def guest(self, device: str, mac: str, *addresses: str) -> None:
        """Put the other end into a namespace, with a whole network stack that says nothing by itself."""
        far, space = device[:14] + "g", device
        ip("netns", "add", space)
        self._namespaces.append(space)
        ip("link", "set", far, "netns", space)
        ip("-n", space, "link", "set", far, "address", mac)
        ip("-n", space, "link", "set", far, "up")
        for address in addresses:
            ip("-n", space, "addr", "add", address, "dev", far, *(["nodad"] if ":" in address else []))

    def close(self) -> None:
        for space in self._namespaces:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", space)
        for link in reversed(self._links):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("link", "del", link)

    def _link(self, name: str, *how: str) -> None:
        ip("link", "add", name, *how)
        self._links.append(name)
