"""The client's end of the local socket: plain and blocking, right for a command that does one thing and ends."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, Iterator, Mapping, Optional, Type

from vmagent.errors import Problem
from vmagent.local import protocol

PATIENCE_S = 60.0
"""How long one answer may take; a stream may be silent for ever."""


class Unreachable(Exception):
    """No agent answers.  why: in words."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


class Client:
    """One connection.  Problems come as the agent raised them; Unreachable when the connection breaks."""

    def __init__(self, path: Path, patience_s: float = PATIENCE_S) -> None:
        self._path = path
        self._patience_s = patience_s
        self._last_id = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(patience_s)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise Unreachable(path, error.strerror or str(error)) from None
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def ask(self, verb: str, args: Optional[Mapping[str, Any]] = None) -> Any:
        """The result of one request."""
        id = self._request(verb, args)
        return self._answer(id)["result"]

    def stream(self, verb: str, args: Optional[Mapping[str, Any]] = None) -> Iterator[Any]:
        """Every part of a streamed result."""
        id = self._request(verb, args)
        self._socket.settimeout(None)
        try:
            answer = self._answer(id)
            while answer.get("more"):
                yield answer["result"]
                answer = self._answer(id)
        finally:
            self._socket.settimeout(self._patience_s)

    def _request(self, verb: str, args: Optional[Mapping[str, Any]]) -> int:
        self._last_id += 1
        try:
            self._socket.sendall(protocol.line({"id": self._last_id, "verb": verb, "args": dict(args or {})}))
        except BrokenPipeError:
            pass  # the agent closed first, and what it said about that is still to be read
        except OSError as error:
            raise Unreachable(self._path, error.strerror or str(error)) from None
        return self._last_id

    def _answer(self, id: int) -> Dict[str, Any]:
        try:
            raw = self._lines.readline(protocol.LONGEST_ANSWER)
        except socket.timeout:
            raise Unreachable(self._path, f"no answer within {self._patience_s:g} s") from None
        except OSError as error:
            raise Unreachable(self._path, error.strerror or str(error)) from None
        if not raw.endswith(b"\n"):
            raise Unreachable(self._path, "the agent closed the connection")
        answer: Dict[str, Any] = json.loads(raw)
        if "problem" in answer:
            raise _problem(answer["problem"])
        if answer.get("id") != id:
            raise Unreachable(self._path, "the answer belongs to another request; is this an agent?")
        return answer


def _problem(body: Mapping[str, Any]) -> Problem:
    fields = {name: value for name, value in body.items() if name not in ("type", "title", "detail")}
    return Problem(str(body.get("type", "unknown")), str(body.get("detail", "")), **fields)
