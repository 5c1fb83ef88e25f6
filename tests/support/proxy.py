"""A small real HTTP proxy that only connects through (CONNECT), and misbehaves on demand."""

from __future__ import annotations

import contextlib
import selectors
import socket
import socketserver
import threading
from typing import Callable, List

Script = Callable[[socket.socket, str], None]  # (the client, the HOST:PORT that it asked for)
_LONGEST_HEAD = 65536


class Proxy:
    """It alone knows names: whatever is asked for is at 127.0.0.1.  script: what answers instead of `through`."""

    def __init__(self) -> None:
        self.asked: List[str] = []
        self.script: Script = self.through
        self.over = threading.Event()  # silent handlers wait for it
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                target = _target(self.request)
                outer.asked.append(target)
                with contextlib.suppress(OSError):
                    outer.script(self.request, target)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def through(self, client: socket.socket, target: str, most: int = 0) -> None:
        """Connect the two ends; most: bytes for the client after which both connections end, 0 = any number."""
        with socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2])), 10) as server:
            client.sendall(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n")
            self._pump(client, server, most)

    def ends(self, most: int, times: int = 1) -> Script:
        """The first `times` tunnels end after `most` bytes."""
        return lambda client, target: self.through(client, target, most if len(self.asked) <= times else 0)

    def says(self, answer: bytes, stays: bool = False) -> Script:
        """These bytes; then the connection ends, or stays open."""

        def script(client: socket.socket, target: str) -> None:
            client.sendall(answer)
            if stays:
                self.over.wait(60)

        return script

    def _pump(self, client: socket.socket, server: socket.socket, most: int) -> None:
        carried = 0
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while not self.over.is_set():
                for key, _ in selector.select(0.1):
                    source: socket.socket = key.fileobj  # type: ignore[assignment]
                    data = source.recv(65536)
                    if not data:
                        return
                    if source is server and most and carried + len(data) > most:
                        client.sendall(data[: most - carried])
                        return
                    key.data.sendall(data)
                    carried += len(data) if source is server else 0


def _target(client: socket.socket) -> str:
    """What a CONNECT asks for; empty when it asks for something else."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _LONGEST_HEAD:
        data = client.recv(4096)
        if not data:
            return ""
        head += data
    words = head.split(b"\r\n", 1)[0].split(b" ")
    return words[1].decode("ascii", "replace") if words[0] == b"CONNECT" and len(words) == 3 else ""
