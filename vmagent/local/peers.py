"""Who is at the other end of the local socket, and what they may do there.

The kernel says who (SO_PEERCRED, SO_PEERGROUPS): numbers, fixed at connect, that no client can forge.  Names are turned
into numbers once, when the configuration is read; the reactor never asks a name service.
"""

from __future__ import annotations

import grp
import logging
import pwd
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Dict, FrozenSet, Iterable, List, Mapping, Optional, Sequence

from vmagent.config import SocketSettings
from vmagent.core.commands import Signer
from vmagent.errors import Problem

log = logging.getLogger("vmagent.local")
SO_PEERGROUPS = 59  # <asm-generic/socket.h>; the socket module has no name for it
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_GROUPS_BYTES = 1024  # the most that socket.getsockopt takes: 256 groups
_NOBODY = 2**32 - 1  # what the kernel says when the peer's namespace has no such number here
_PASSWD = Path("/etc/passwd")


class Right(IntEnum):
    """What a peer may do; each includes the ones before it."""

    NONE = 0
    LOOK = 1
    CHANGE = 2


@dataclass(frozen=True)
class Peer:
    """The other end, in numbers."""

    pid: int
    uid: int
    groups: FrozenSet[int]  # the primary one included


@dataclass(frozen=True)
class Access:
    """The socket's settings, resolved."""

    admin_gid: Optional[int]
    reader_gid: Optional[int]
    names: Mapping[int, str]  # uid -> login name, of local accounts and of the groups' members

    def right(self, peer: Peer) -> Right:
        """root and the administrators' group may change, the readers' group may look, nobody else is answered."""
        if peer.uid == 0 or self.admin_gid in peer.groups:
            return Right.CHANGE
        if self.reader_gid in peer.groups:
            return Right.LOOK
        return Right.NONE

    def signer(self, peer: Peer) -> Signer:
        """How the audit and the records name this peer."""
        return Signer(subject=f"local:{self.names.get(peer.uid, str(peer.uid))}")

    @property
    def owning_gid(self) -> int:
        """The group that the socket's file gets; -1 = it keeps the agent's own, which nobody else may pass."""
        if self.admin_gid is not None:
            return self.admin_gid
        return self.reader_gid if self.reader_gid is not None else -1

    @property
    def mode(self) -> int:
        """0660, unless two groups must get in: a file has one group only, so then the credentials alone decide."""
        both = self.admin_gid is not None and self.reader_gid is not None and self.admin_gid != self.reader_gid
        return 0o666 if both else 0o660


def resolve(settings: SocketSettings) -> Access:
    """Names to numbers.  Problem `configuration` for a group that does not exist.  Reads files: call at start."""
    admin = _group("socket.admin_group", settings.admin_group)
    reader = _group("socket.reader_group", settings.reader_group)
    names = _local_accounts()
    for group in (admin, reader):
        names.update(_accounts(group.gr_mem if group else ()))
    return Access(admin.gr_gid if admin else None, reader.gr_gid if reader else None, names)


def _group(path: str, name: str) -> Optional[grp.struct_group]:
    if not name:
        return None
    try:
        return grp.getgrnam(name)
    except KeyError:
        raise Problem("configuration", f"at {path}: there is no group {name!r} on this host", path=path) from None


def _local_accounts() -> Dict[int, str]:
    """The accounts of /etc/passwd; not `pwd.getpwall`, which may list a whole directory service."""
    names: Dict[int, str] = {0: "root"}
    for line in _PASSWD.read_text(encoding="utf-8", errors="replace").splitlines() if _PASSWD.exists() else ():
        fields: List[str] = line.split(":")
        if len(fields) > 2 and fields[2].isdecimal():
            names.setdefault(int(fields[2]), fields[0])
    return names


def _accounts(members: Iterable[str]) -> Dict[int, str]:
    names: Dict[int, str] = {}
    for member in members:
        try:
            names[pwd.getpwnam(member).pw_uid] = member
        except KeyError:
            continue  # a group may list accounts that are gone
    return names


def credentials(sock: socket.socket) -> Peer:
    """The peer of a connected AF_UNIX socket.  OSError when the kernel cannot say who it is.

    An account of more than 256 groups counts with its primary group only: less is granted, never more.
    """
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return Peer(pid, uid, frozenset((gid, *_groups(sock))) - {_NOBODY})


def _groups(sock: socket.socket) -> Sequence[int]:
    try:
        listed = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError as error:
        log.warning("supplementary groups of a peer are not known: %s", error)
        return ()
    return struct.unpack(f"={len(listed) // 4}I", listed)
