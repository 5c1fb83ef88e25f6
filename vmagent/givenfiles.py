"""Small files that a person names on a command line, read whole and bounded."""

from __future__ import annotations

from vmagent.errors import Problem

MOST_BYTES = 4 << 20


def content(name: str) -> bytes:
    """Problem `usage`: it cannot be read, or holds more than 4 MiB."""
    try:
        with open(name, "rb") as file:
            found = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise Problem("usage", f"{name}: {error.strerror}") from None
    if len(found) > MOST_BYTES:
        raise Problem("usage", f"{name} holds more than {MOST_BYTES} bytes (4 MiB)")
    return found
