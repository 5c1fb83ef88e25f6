"""A stream of bytes between two network namespaces, counted by arrival in buckets of BUCKET_S.  Needs only Python.

As a program: `stream.py receive|send tcp|udp ADDRESS PORT SECONDS KBIT`.  UDP arrivals carry the kernel's time stamps,
so a receiver that is scheduled late still tells when a datagram came.  UDP is sent at KBIT (0: as fast as it goes,
which takes a whole core): on a slow machine a flood takes the time away from who has to receive it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
import time
from typing import Dict, Iterator, List

BUCKET_S = 0.01
PAYLOAD = 1400
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35
_PATIENCE_S = 20.0


class Stream:
    """From `source` to `sink` (names of namespaces); `address` is the sink's."""

    def __init__(
        self, protocol: str, source: str, sink: str, address: str, port: int, seconds: float, kbit: int
    ) -> None:
        self._arguments = [protocol, address, str(port), str(seconds), str(kbit)]
        self._receiver = self._start(sink, "receive")
        assert self._receiver.stdout is not None
        assert self._receiver.stdout.readline() == b"ready\n"
        self._sender = self._start(source, "send")

    def buckets(self) -> List[int]:
        """Bytes that arrived in each bucket since the first, once it is over."""
        said, _ = self._receiver.communicate(timeout=_PATIENCE_S)
        found: List[int] = json.loads(said)
        return found

    def close(self) -> None:
        for child in (self._sender, self._receiver):
            child.kill()
            child.communicate()

    def _start(self, space: str, role: str) -> subprocess.Popen[bytes]:
        argv = ["ip", "netns", "exec", space, sys.executable, __file__, role, *self._arguments]
        return subprocess.Popen(argv, stdout=subprocess.PIPE)


@contextlib.contextmanager
def stream(
    protocol: str, source: str, sink: str, address: str, port: int, seconds: float, kbit: int = 0
) -> Iterator[Stream]:
    """kbit: of UDP, payload."""
    made = Stream(protocol, source, sink, address, port, seconds, kbit)
    try:
        yield made
    finally:
        made.close()


def receive(protocol: str, address: str, port: int, seconds: float) -> List[int]:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.settimeout(_PATIENCE_S)
        if protocol == "tcp":
            sock.listen()
        else:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 24)
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        print("ready", flush=True)
        return _count_tcp(sock, seconds) if protocol == "tcp" else _count_udp(sock, seconds)


def _count_tcp(listener: socket.socket, seconds: float) -> List[int]:
    found: Dict[int, int] = {}
    with listener.accept()[0] as peer:
        peer.settimeout(_PATIENCE_S)
        first = time.monotonic()
        while time.monotonic() - first < seconds:
            at = int((time.monotonic() - first) / BUCKET_S)
            found[at] = found.get(at, 0) + len(peer.recv(1 << 16))
    return _listed(found, seconds)


def _count_udp(sock: socket.socket, seconds: float) -> List[int]:
    found: Dict[int, int] = {}
    first = 0.0
    while True:
        data, said, _, _ = sock.recvmsg(2048, 256)
        whole, nanoseconds = struct.unpack("=qq", said[0][2][:16])
        stamp = whole + nanoseconds / 1e9
        first = first or stamp
        if stamp - first >= seconds:
            return _listed(found, seconds)
        at = int((stamp - first) / BUCKET_S)
        found[at] = found.get(at, 0) + len(data)


def _listed(found: Dict[int, int], seconds: float) -> List[int]:
    return [found.get(at, 0) for at in range(int(seconds / BUCKET_S))]


def send(protocol: str, address: str, port: int, seconds: float, kbit: int) -> None:
    """Until a little after the receiver has seen enough."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    chunk = bytes(PAYLOAD if protocol == "udp" else 1 << 16)
    apart = PAYLOAD / (kbit * 125) if protocol == "udp" and kbit else 0.0
    until = time.monotonic() + seconds + 2.0
    with socket.socket(socket.AF_INET, kind) as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.settimeout(_PATIENCE_S)
        sock.connect((address, port))
        due = time.monotonic()
        while time.monotonic() < until:
            due += apart
            if apart and due > time.monotonic():
                time.sleep(max(0.002, due - time.monotonic()))  # several at once then: sleeping has its price too
            with contextlib.suppress(ConnectionRefusedError):  # the receiver has seen enough
                sock.send(chunk)


if __name__ == "__main__":
    role, said_protocol, said_address, said_port, said_seconds, said_kbit = sys.argv[1:]
    if role == "receive":
        print(json.dumps(receive(said_protocol, said_address, int(said_port), float(said_seconds))))
    else:
        send(said_protocol, said_address, int(said_port), float(said_seconds), int(said_kbit))
