"""A STOMP server that does exactly what a test's script says: cuts, stalls, lies, answers late.

One thread per connection runs `script(talk)`; when the script returns or raises, the connection is closed.  Ends with
the `with` block: every socket is closed, which frees every script.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import Callable, Dict, List, NamedTuple, Optional


class Sent(NamedTuple):
    """A frame that the client sent."""

    command: str
    headers: Dict[str, str]
    body: bytes


class Talk:
    """One connection, seen from the server."""

    def __init__(self, sock: socket.socket, number: int, ended: threading.Event) -> None:
        self.socket = sock
        self.number = number  # of the connection, from 1
        self.ended = ended  # the test is over
        self.frames: List[Sent] = []
        self._rest = b""

    def read(self) -> Sent:
        """The next frame; EOFError when the client is gone."""
        while True:
            self._rest = self._rest.lstrip(b"\r\n")
            frame = self._parse()
            if frame is not None:
                self.frames.append(frame)
                return frame
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self._rest += data

    def _parse(self) -> Optional[Sent]:
        head, found, rest = self._rest.partition(b"\n\n")
        if not found:
            return None
        lines = head.decode("utf-8").split("\n")
        headers = dict(line.split(":", 1) for line in reversed(lines[1:]))
        length = int(headers.get("content-length", rest.find(b"\0")))
        if length < 0 or len(rest) <= length:
            return None
        self._rest = rest[length + 1 :]
        return Sent(lines[0], headers, rest[:length])

    def write(self, command: str, headers: Dict[str, str], body: bytes = b"") -> None:
        lines = [command, *(f"{name}:{value}" for name, value in headers.items())]
        self.socket.sendall("\n".join(lines).encode("utf-8") + b"\n\n" + body + b"\0")

    def connect(self, heartbeat: str = "0,0", version: str = "1.2") -> Sent:
        """Read CONNECT, answer CONNECTED."""
        frame = self.read()
        assert frame.command == "CONNECT", frame
        self.write("CONNECTED", {"version": version, "heart-beat": heartbeat})
        return frame

    def receipt(self, frame: Sent) -> None:
        self.write("RECEIPT", {"receipt-id": frame.headers["receipt"]})

    def serve(self, heartbeat: str = "0,0") -> None:
        """A broker as it should be: confirms everything until the client is gone."""
        self.connect(heartbeat)
        while True:
            self.receipt(self.read())

    def stall(self) -> None:
        """Neither read nor write nor close until the test is over."""
        self.ended.wait()


class Peer:
    """Listens on a private port and runs the script for every connection."""

    def __init__(self, script: Callable[[Talk], None], tls: Optional[ssl.SSLContext] = None) -> None:
        self._script = script
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ended = threading.Event()
        self.talks: List[Talk] = []
        self.handshakes_failed = 0
        self.port: int = self._listener.getsockname()[1]

    def url(self, host: str = "127.0.0.1") -> str:
        return f"{'stomp+ssl' if self._tls else 'stomp'}://{host}:{self.port}"

    def frames(self, command: str) -> List[Sent]:
        """All frames of this kind, of all connections, in order."""
        return [frame for talk in list(self.talks) for frame in list(talk.frames) if frame.command == command]

    def __enter__(self) -> Peer:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for sock in [self._listener, *(talk.socket for talk in self.talks)]:
            _close(sock)

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._run, args=(sock,), daemon=True).start()

    def _run(self, sock: socket.socket) -> None:
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
        except OSError:
            self.handshakes_failed += 1
            _close(sock)
            return
        talk = Talk(sock, len(self.talks) + 1, self._ended)
        self.talks.append(talk)
        with contextlib.suppress(OSError, EOFError):
            self._script(talk)
        _close(sock)


def _close(sock: socket.socket) -> None:
    for end in (lambda: sock.shutdown(socket.SHUT_RDWR), sock.close):
        with contextlib.suppress(OSError):
            end()
