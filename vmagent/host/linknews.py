"""What the kernel tells about interfaces and qdiscs (rtnetlink), so that nobody has to look while nothing happens.

Rules

1. Non-blocking, on the reactor's thread; at rest one system call.  At most MOST messages are taken at a time.
2. Only devices that somebody asked about count: news of them means "look again".  News that were lost (the socket's
   buffer overflowed, or there is no socket) mean that everything may have changed.
3. A look at some devices answers for those alone.  A look at all of ours that exist answers for everything; so devices
   that are gone and that nobody asks about any more are forgotten.

Theory: RTNLGRP_LINK tells of interfaces and bridge ports, with their names; RTNLGRP_TC of qdiscs, classes and filters,
by interface index; of actions it tells without an interface.  See rtnetlink(7) and <linux/rtnetlink.h>.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
from typing import Dict, FrozenSet, Iterable, Iterator, Optional, Set, Tuple

log = logging.getLogger("vmagent.host")
MOST = 512
_GROUPS = 1 << (1 - 1) | 1 << (4 - 1)  # RTNLGRP_LINK, RTNLGRP_TC
_LINK = (16, 17)  # RTM_NEWLINK, RTM_DELLINK
_ACTION = (48, 49)  # RTM_NEWACTION, RTM_DELACTION
_IFNAME = 3  # IFLA_IFNAME
_BLOCK = -1  # TCM_IFINDEX_MAGIC_BLOCK: a filter of a block that interfaces share
_HEADER = struct.Struct("=IHHII")
_ABOUT = struct.Struct("=Bxxxi")  # family, index: alike in ifinfomsg and tcmsg
_IFINFOMSG = 16  # bytes
_ATTRIBUTE = struct.Struct("=HH")
_BUFFER = 1 << 20
_LARGEST = 1 << 16


class LinkNews:
    """Which of the devices asked about may have changed."""

    def __init__(self) -> None:
        self._socket: Optional[socket.socket] = None
        self._asked: FrozenSet[str] = frozenset()
        self._names: Dict[int, str] = {}
        self._touched: Set[str] = set()
        self._lost = True

    def open(self) -> None:
        """Listen from now on.  Where that cannot be, everything may always have changed."""
        if self._socket is not None:
            return
        try:
            self._socket = _listening()
        except OSError as error:
            log.warning("the kernel's news of interfaces cannot be heard: %s", error.strerror)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def stale(self) -> bool:
        """Whether anything asked about may have changed since it was asked about."""
        self._drain()
        return self._lost or bool(self._touched)

    def touched(self, devices: Iterable[str]) -> bool:
        """Whether any of these may have."""
        self._drain()
        return self._lost or not self._touched.isdisjoint(devices)

    def asked(self, devices: Iterable[str]) -> None:
        """Somebody looks at these now."""
        self._drain()
        named = frozenset(devices)
        self._names.update((index, name) for name, index in _indexes(named))
        self._touched -= named
        if (self._lost or self._touched) and named.issuperset(name for name, _ in _indexes(self._asked)):
            self._touched.clear()
            self._lost = False
            self._asked = frozenset()
            self._names = {index: name for index, name in self._names.items() if name in named}
        self._asked |= named

    def missed(self) -> None:
        """The look failed."""
        self._lost = True

    def _drain(self) -> None:
        if self._socket is None:
            self._lost = True
            return
        for _ in range(MOST):
            try:
                said = self._socket.recv(_LARGEST)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    log.warning("the kernel's news of interfaces: %s", os.strerror(error.errno or 0))
                    self.close()
                self._lost = True
                return
            for kind, body in _messages(said):
                self._heard(kind, body)

    def _heard(self, kind: int, body: bytes) -> None:
        if kind in _ACTION:
            self._lost = True
            return
        index = _ABOUT.unpack_from(body)[1]
        if index == _BLOCK:
            self._lost = True
        names = {self._names.get(index, "")}
        if kind in _LINK:
            name = _name(body)
            self._names[index] = name
            names.add(name)
        self._touched |= names & self._asked


def _listening() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    try:
        with contextlib.suppress(OSError):  # a larger buffer needs a privilege; the usual one will do
            made.setsockopt(socket.SOL_SOCKET, 33, _BUFFER)  # SO_RCVBUFFORCE
        made.bind((0, _GROUPS))
    except OSError:
        made.close()
        raise
    return made


def _indexes(names: Iterable[str]) -> Iterator[Tuple[str, int]]:
    """Those that exist."""
    for name in names:
        with contextlib.suppress(OSError):
            yield name, socket.if_nametoindex(name)


def _messages(said: bytes) -> Iterator[Tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(said):
        length, kind = _HEADER.unpack_from(said, at)[:2]
        if length < _HEADER.size:
            return
        body = said[at + _HEADER.size : at + length]
        if len(body) >= _ABOUT.size:
            yield kind, body
        at += length + 3 & ~3


def _name(body: bytes) -> str:
    at = _IFINFOMSG
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        if kind == _IFNAME:
            return body[at + _ATTRIBUTE.size : at + length].rstrip(b"\0").decode("utf-8", "replace")
        at += length + 3 & ~3
    return ""
