"""How people name a VM: its id, the beginning of its id, or its name."""

from __future__ import annotations

from typing import Iterable, Tuple

from vmagent.errors import Problem

SHORTEST_PREFIX = 4


def pick(text: str, known: Iterable[Tuple[str, str]]) -> str:
    """The one id that `text` means among (id, name) pairs.

    An id goes before a name, a whole name before the beginning of an id.
    Problems: `not-found`; `ambiguous`, with the ids under `accepted`.
    """
    pairs = list(known)
    beginning = text.lower() if len(text) >= SHORTEST_PREFIX else None
    for candidates in (
        [id for id, _ in pairs if id == text.lower()],
        [id for id, name in pairs if name == text],
        [id for id, _ in pairs if beginning is not None and id.startswith(beginning)],
    ):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise Problem("ambiguous", f"{text!r} means {len(candidates)} VMs; use an id", accepted=sorted(candidates))
    raise Problem("not-found", f"no VM here has the id, the name, or an id that begins with {text!r} "
                  f"(at least {SHORTEST_PREFIX} characters)")
