"""A plain, blocking STOMP 1.2 client for tests: not the code under test, so it can contradict it."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

from tests.support.waiting import until


@dataclass(frozen=True)
class Frame:
    command: str
    headers: Dict[str, str]
    body: bytes


def _unescape(text: str) -> str:
    return text.replace("\\r", "\r").replace("\\n", "\n").replace("\\c", ":").replace("\\\\", "\\")


class StompSocket:
    """Connected from construction to `close`; frames are collected by a thread, in order."""

    def __init__(self, port: int, login: str = "guest", passcode: str = "guest", host: str = "/") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._socket.settimeout(None)
        self._numbers = itertools.count(1)
        self._buffer = b""
        self.frames: List[Frame] = []
        self.alive = True
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self._write("CONNECT", {"accept-version": "1.2", "host": host, "login": login, "passcode": passcode,
                                "heart-beat": "0,0"})
        until(lambda: self._first("CONNECTED") or self._first("ERROR"), 15, "CONNECTED")
        if self._first("ERROR"):
            raise ConnectionError(str(self._first("ERROR")))

    def subscribe(self, destination: str, **headers: str) -> None:
        self._receipted("SUBSCRIBE", {"id": str(next(self._numbers)), "destination": destination, "ack": "auto",
                                      **headers})

    def send(self, destination: str, body: bytes, **headers: str) -> None:
        """Returns when the broker has it."""
        self._receipted("SEND", {"destination": destination, "persistent": "true", **headers}, body)

    def messages(self, destination: str = "") -> List[Frame]:
        return [f for f in list(self.frames) if f.command == "MESSAGE"
                and f.headers.get("destination", "").endswith(destination)]

    def close(self) -> None:
        self.alive = False
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)

    def _receipted(self, command: str, headers: Dict[str, str], body: bytes = b"") -> None:
        receipt = f"r{next(self._numbers)}"
        self._write(command, {**headers, "receipt": receipt}, body)
        until(lambda: any(f.command == "RECEIPT" and f.headers.get("receipt-id") == receipt for f in list(self.frames)),
              20, f"receipt of {command}")

    def _write(self, command: str, headers: Dict[str, str], body: bytes = b"") -> None:
        lines = [command, *(f"{k}:{v}" for k, v in headers.items())]
        if body:
            lines.append(f"content-length:{len(body)}")
        self._socket.sendall("\n".join(lines).encode("ascii") + b"\n\n" + body + b"\0")

    def _first(self, command: str) -> Optional[Frame]:
        return next((f for f in list(self.frames) if f.command == command), None)

    def _read(self) -> None:
        while self.alive:
            try:
                data = self._socket.recv(65536)
            except OSError:
                break
            if not data:
                break
            self._buffer += data
            self._parse()
        self.alive = False

    def _parse(self) -> None:
        while True:
            self._buffer = self._buffer.lstrip(b"\r\n")
            end = self._buffer.find(b"\n\n")
            if end < 0:
                return
            command, headers = self._head(self._buffer[:end].decode("utf-8"))
            start = end + 2
            length = headers.get("content-length")
            stop = start + int(length) if length else self._buffer.find(b"\0", start)
            if stop < 0 or len(self._buffer) <= stop:
                return
            self.frames.append(Frame(command, headers, self._buffer[start:stop]))
            self._buffer = self._buffer[stop + 1:]

    @staticmethod
    def _head(text: str) -> Tuple[str, Dict[str, str]]:
        lines = text.replace("\r", "").split("\n")
        headers: Dict[str, str] = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers.setdefault(_unescape(name), _unescape(value))
        return lines[0], headers
