"""What the unit leaves out of systemd's hardening: each item as systemd-analyze names it, put back, and what breaks.

The table in docs/design/0010-least-privilege.md has the same rows.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, NamedTuple

from tests.support.confined import settings


class Item(NamedTuple):
    """puts: settings in the place of the unit's own, or after them where the value begins with `~`; does: a command
    that works within the unit's sandbox and must not work any more."""

    puts: Mapping[str, str]
    does: str


RULES = "nft list tables"
OFFLINE = "unshare --user --net -- true"
CONNECTS = "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 22), 5)'"
CALLBACK = (
    "python3 -c 'from OpenSSL import SSL; SSL.Context(SSL.TLS_METHOD).set_verify(SSL.VERIFY_PEER, lambda *a: True)'"
)
ITEMS: Dict[str, Item] = {
    "SystemCallFilter=~@privileged": Item({"SystemCallFilter": "~@chown"},
                                          "sh -c 'F=$(mktemp /run/vmagent/XXXXXX) && chgrp vmagent-admin $F; "
                                          "CODE=$?; rm $F; exit $CODE'"),
    "RootDirectory=/RootImage=": Item({"RootDirectory": "/opt", "ReadWritePaths": ""}, RULES),
    "AmbientCapabilities=": Item({"AmbientCapabilities": ""}, RULES),
    "PrivateDevices=": Item({"PrivateDevices": "yes"}, "test -b /dev/vda"),
    "MemoryDenyWriteExecute=": Item({"MemoryDenyWriteExecute": "yes"}, CALLBACK),
    "RestrictNamespaces=~user": Item({"RestrictNamespaces": "net"}, OFFLINE),
    "RestrictNamespaces=~net": Item({"RestrictNamespaces": "user"}, OFFLINE),
    "RestrictAddressFamilies=~AF_NETLINK": Item({"RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6"}, RULES),
    "RestrictAddressFamilies=~AF_UNIX": Item({"RestrictAddressFamilies": "AF_INET AF_INET6 AF_NETLINK"},
                                             "virsh -c qemu:///system version"),
    "RestrictAddressFamilies=~AF_(INET|INET6)": Item({"RestrictAddressFamilies": "AF_UNIX AF_NETLINK"}, CONNECTS),
    "CapabilityBoundingSet=~CAP_NET_ADMIN": Item({"CapabilityBoundingSet": "", "AmbientCapabilities": ""}, RULES),
    "ProtectProc=": Item({"ProtectProc": "invisible"}, "cat /proc/1/cgroup"),
    "ProcSubset=": Item({"ProcSubset": "pid"}, "cat /proc/meminfo"),
    "PrivateNetwork=": Item({"PrivateNetwork": "yes"}, "ip link show dev br0"),
    "PrivateUsers=": Item({"PrivateUsers": "yes"}, RULES),
    "IPAddressDeny=": Item({"IPAddressDeny": "any"}, CONNECTS),
}  # fmt: skip
ONLY_COUNTED = {"DeviceAllow="}
"""What systemd-analyze counts though nothing is left out."""
SANDBOX = ("User", "Group", "AmbientCapabilities", "CapabilityBoundingSet", "NoNewPrivileges", "UMask", "RemoveIPC",
           "DevicePolicy", "ProcSubset", "ReadWritePaths", "MemoryHigh", "MemoryMax", "TasksMax")  # fmt: skip
KINDS = ("SystemCall", "Restrict", "Protect", "Private", "Lock")


def sandbox(puts: Mapping[str, str] = {}) -> List[str]:  # noqa: B006 - never written to
    """NAME=VALUE of every setting of the unit's sandbox, with these put into it."""
    found = []
    for name, values in settings("Service").items():
        if (name in SANDBOX or name.startswith(KINDS)) and (name not in puts or puts[name].startswith("~")):
            found += [f"{name}={value}" for value in values]
    return [*found, *(f"{name}={value}" for name, value in puts.items())]
