"""Names derived from ids, so that a replay finds what the first run made (DESIGN 6, Identity)."""

from __future__ import annotations

import base64
import hashlib
import uuid

DEVICE_CHARACTERS = 11


def vm_id(command: str, member: int) -> str:
    """UUIDv5 with the command's id as the name space: known to the controller beforehand."""
    return str(uuid.uuid5(uuid.UUID(command), str(member)))


def domain_name(vm: str) -> str:
    """libvirt's name of the domain."""
    return f"vma-{vm}"


def _digest(vm: str, index: int) -> bytes:
    return hashlib.sha256(f"{vm}/{index}".encode("ascii")).digest()


def device_name(instance: str, vm: str, index: int) -> str:
    """Host-side interface name, at most 15 characters (IFNAMSIZ - 1): `instance` has 2 to 4."""
    text = base64.b32encode(_digest(vm, index)).decode("ascii").lower()
    return instance + text[:DEVICE_CHARACTERS]


def shaper_name(device: str) -> str:
    """The interface on which the outbound traffic of `device` is shaped: of ours as well, and of the same shape."""
    digest = hashlib.sha256(f"{device}/shaper".encode("ascii")).digest()
    text = base64.b32encode(digest).decode("ascii").lower()
    return device[:-DEVICE_CHARACTERS] + text[:DEVICE_CHARACTERS]


def mac_address(vm: str, index: int) -> str:
    """Locally administered, unicast, first octet 02 to 3e: never 52 (libvirt's own), never fe (libvirt refuses it)."""
    octets = bytearray(_digest(vm, index)[-6:])
    octets[0] = (octets[0] & 0x3C) | 0x02
    return ":".join(f"{octet:02x}" for octet in octets)
