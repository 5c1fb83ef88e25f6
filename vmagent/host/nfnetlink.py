"""Speaks nf_tables' netlink: one transaction, single questions, whole lists.  Blocking, each within microseconds.

Rules

1. A transaction is one batch: all of it or nothing.  The first error is told, with which of its messages it met.
2. A list that something changed meanwhile is read again, a few times; then it is a Fault (UNKNOWN).
3. What the kernel answers is a Fault: REFUSED with its words; BUSY where asking again may help.

Theory (include/uapi/linux/netfilter/nfnetlink.h): a message is nlmsghdr, nfgenmsg, attributes.  Messages between
BATCH_BEGIN and BATCH_END are prepared one by one and committed together; the kernel answers those that it refuses,
and the last one, which asks for an answer.  Each commit counts the generation up by one.  No program is started and
no text is parsed: a change costs the same with one guest and with five hundred, which `nft` does not manage
(docs/design/0006-rules-over-netlink.md).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Iterator, List, Optional, Sequence, Tuple, Type

from vmagent.core.attributes import as_number, as_text, parsed
from vmagent.core.expressions import words
from vmagent.errors import Fault, FaultKind

NETLINK_NETFILTER = 12
BRIDGE = 7  # NFPROTO_BRIDGE
_SUBSYSTEM = 10
_BATCH_BEGIN, _BATCH_END = 16, 17
NEW_TABLE, GET_TABLE, DEL_TABLE = 0, 1, 2
NEW_CHAIN, GET_CHAIN, DEL_CHAIN = 3, 4, 5
NEW_RULE, GET_RULE, DEL_RULE = 6, 7, 8
NEW_SET, GET_SET, DEL_SET = 9, 10, 11
NEW_ELEMENTS, GET_ELEMENTS, DEL_ELEMENTS = 12, 13, 14
GET_GENERATION = 16
NEW_OBJECT, GET_OBJECT, DEL_OBJECT, RESET_OBJECT = 18, 19, 20, 21
_REQUEST, _ACK, _DUMP, _CREATE, _APPEND = 0x1, 0x4, 0x300, 0x400, 0x800
_INTERRUPTED, _CAPPED, _TLVS = 0x10, 0x100, 0x200
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _EXT_ACK, _CAP_ACK = 270, 11, 10
_ANSWER_S = 10
_READ = 256 * 1024
_TRIES = 5
_AGAIN = (errno.EAGAIN, errno.EBUSY, errno.ENOMEM, errno.ENOBUFS, errno.EINTR)
_MAKES = (NEW_TABLE, NEW_CHAIN, NEW_RULE, NEW_SET, NEW_ELEMENTS, NEW_OBJECT)
_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct(">BBH")


@dataclass(frozen=True)
class Message:
    """One step of a transaction.  what: for people, when the kernel refuses it."""

    kind: int
    attributes: bytes
    what: str


class Refused(Fault):
    """The kernel's answer to one message; `number` is the errno."""

    def __init__(self, number: int, what: str, said: str = "") -> None:
        kind = FaultKind.BUSY if number in _AGAIN else FaultKind.REFUSED
        words = os.strerror(number) + (f" ({said})" if said else "")
        super().__init__(kind, f"nf_tables, {what}: {words}")
        self.number = number


class _Changed(Exception):
    """The list is of two moments."""


class Tables:
    """One socket; for one thread at a time.  Faults: REFUSED, BUSY, UNKNOWN (no answer)."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        except OSError as error:
            raise Refused(error.errno or errno.EPROTONOSUPPORT, "opening netlink") from error
        self._socket.settimeout(_ANSWER_S)
        for option in (_EXT_ACK, _CAP_ACK):
            with contextlib.suppress(OSError):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Tables:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def commit(self, messages: Sequence[Message]) -> None:
        """All of them, or a Fault and nothing."""
        first = self._next(len(messages) + 2)
        parts = [_message(_BATCH_BEGIN, _REQUEST, first, _GENERIC.pack(0, 0, _SUBSYSTEM))]
        for at, each in enumerate(messages, 1):
            flags = _REQUEST | (_CREATE | (_APPEND if each.kind == NEW_RULE else 0) if each.kind in _MAKES else 0)
            flags |= _ACK if at == len(messages) else 0
            parts.append(_request(each.kind, flags, first + at, each.attributes))
        parts.append(_message(_BATCH_END, _REQUEST, first + len(messages) + 1, _GENERIC.pack(0, 0, _SUBSYSTEM)))
        self._send(b"".join(parts), "sending a transaction")
        for _, sequence, error, said in self._answers(first, first + len(messages)):
            if error:
                at = sequence - first
                raise Refused(error, _what(messages[at - 1]) if 1 <= at <= len(messages) else "the transaction", said)
            if sequence == first + len(messages):
                return

    def ask(self, kind: int, attributes: bytes, what: str) -> Optional[bytes]:
        """The attributes of one thing; None: there is none of that name."""
        sequence = self._next(1)
        self._send(_request(kind, _REQUEST, sequence, attributes), what)
        for body, _, error, said in self._answers(sequence, sequence):
            if error == errno.ENOENT:
                return None
            if error:
                raise Refused(error, what, said)
            return body
        raise AssertionError("answers never end without one")

    def listed(self, kind: int, attributes: bytes, what: str) -> List[bytes]:
        """The attributes of each, all of one moment; [] also when what they stand in is not there."""
        for _ in range(_TRIES):
            try:
                return self._listed(kind, attributes, what)
            except _Changed:
                continue
        raise Fault(FaultKind.UNKNOWN, f"nf_tables, {what}: changed {_TRIES} times while it was read")

    def generation(self) -> int:
        """How many commits there were, of everybody's; wraps at 2^32."""
        body = self.ask(GET_GENERATION, b"", "asking for the generation")
        return as_number(parsed(body or b"")[1])

    def _listed(self, kind: int, attributes: bytes, what: str) -> List[bytes]:
        sequence = self._next(1)
        self._send(_request(kind, _REQUEST | _DUMP, sequence, attributes), what)
        found: List[bytes] = []
        interrupted = False
        while True:
            for code, flags, got, body in _messages(self._receive(what)):
                interrupted = interrupted or bool(flags & _INTERRUPTED)
                if code > _DONE and got == sequence:
                    found.append(body[_GENERIC.size :])
                elif got == sequence:
                    self._ended(body, interrupted, what)
                    return found

    def _ended(self, body: bytes, interrupted: bool, what: str) -> None:
        number = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
        if number == errno.EINTR or interrupted:
            raise _Changed
        if number not in (0, errno.ENOENT):
            raise Refused(number, what)

    def _answers(self, first: int, last: int) -> Iterator[Tuple[bytes, int, int, str]]:
        """(attributes, sequence, errno, the kernel's words) of what answers these requests."""
        while True:
            for code, flags, sequence, body in _messages(self._receive("waiting for an answer")):
                if not first <= sequence <= last:
                    continue
                if code == _ERROR:
                    yield b"", sequence, -struct.unpack_from("=i", body)[0], _words(flags, body)
                else:
                    yield body[4:], sequence, 0, ""

    def _send(self, data: bytes, what: str) -> None:
        try:
            if len(data) > _READ // 4:  # a large transaction needs room; the option is for those with CAP_NET_ADMIN
                self._socket.setsockopt(socket.SOL_SOCKET, 32, 2 * len(data))  # SO_SNDBUFFORCE
            self._socket.sendto(data, (0, 0))
        except OSError as error:
            raise Refused(error.errno or errno.EIO, what) from error

    def _receive(self, what: str) -> bytes:
        try:
            return self._socket.recv(_READ)
        except socket.timeout:
            raise Fault(FaultKind.UNKNOWN, f"nf_tables, {what}: no answer within {_ANSWER_S} s") from None
        except OSError as error:
            raise Refused(error.errno or errno.EIO, what) from error

    def _next(self, count: int) -> int:
        first = self._sequence + 1
        self._sequence += count
        return first


def _what(message: Message) -> str:
    rule = parsed(message.attributes).get(4, b"") if message.kind == NEW_RULE else b""
    return f"{message.what} ({words(rule)})" if rule else message.what


def _request(kind: int, flags: int, sequence: int, attributes: bytes) -> bytes:
    return _message(_SUBSYSTEM << 8 | kind, flags, sequence, _GENERIC.pack(BRIDGE, 0, 0) + attributes)


def _message(code: int, flags: int, sequence: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), code, flags, sequence, 0) + body


def _messages(data: bytes) -> Iterator[Tuple[int, int, int, bytes]]:
    """(type, flags, sequence, what follows the header)."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, code, flags, sequence, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield code, flags, sequence, data[at + _HEADER.size : at + length]
        at += length + 3 & ~3


def _words(flags: int, body: bytes) -> str:
    """NLMSGERR_ATTR_MSG, where the kernel has something to say; the refused message is capped to its header."""
    if not flags & _TLVS or not flags & _CAPPED:
        return ""
    return as_text(parsed(body[4 + _HEADER.size :]).get(1, b""))
