"""Where in a request something stands, and how a foreign value is quoted: bounded, printable ASCII, safe in a log."""

from __future__ import annotations

import json
import re
from typing import Any, Iterable, Union

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_LONGEST_NAME = 64
_LONGEST_VALUE = 80


def quoted(value: Any, longest: int = _LONGEST_VALUE) -> str:
    """A JSON value as people see it in a message, cut with `...`."""
    text = json.dumps(value[: longest + 1] if isinstance(value, str) else value, default=str)
    return text if len(text) <= longest else text[:longest] + "..."


def place(parts: Iterable[Union[str, int]], at: str = "") -> str:
    """`("networks", 0, "type")` below `args` -> `args.networks[0].type`; names that are no plain word are quoted."""
    text = at
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{quoted(part, _LONGEST_NAME)}]"
    return text
