r"""Text as roff for manual pages (man(7)): whatever is given is shown as it is.

A line that begins with `.` or `'` would be a request, `\` an escape, and `-` a hyphen that no shell takes when it is
copied.  Everything outside ASCII is written as its code point, so that a page needs no locale.
"""

from __future__ import annotations

import textwrap
from typing import Iterable, Iterator, List

_SPECIAL = {
    "\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq",
}  # fmt: skip
_WIDTH = 100  # of the source; a reader's terminal decides what is shown


def text(plain: str) -> str:
    """In a line, or as an argument of a request within double quotes."""
    return "".join(_SPECIAL.get(c) or (c if " " <= c <= "~" else rf"\[u{ord(c):04X}]") for c in plain)


def bold(plain: str) -> str:
    return rf"\fB{text(plain)}\fR"


def italic(plain: str) -> str:
    return rf"\fI{text(plain)}\fR"


def paragraph(plain: str) -> List[str]:
    """Filled text."""
    words = textwrap.wrap(plain, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return [_safe(text(line)) for line in words]


def literal(lines: Iterable[str]) -> Iterator[str]:
    """Lines as they are, indented."""
    yield from (".RS 4", ".nf")
    yield from (_safe(text(line)) for line in lines)
    yield from (".fi", ".RE")


def tagged(tag: str, body: str) -> Iterator[str]:
    """A term, already roff, and below it what it means."""
    yield from (".TP", _safe(tag))
    yield from paragraph(body) or [r"\&"]


def heading(title: str, level: str = "SH") -> str:
    return f'.{level} "{text(title)}"'


def title(name: str, section: int, version: str) -> str:
    return f'.TH "{text(name.upper())}" "{section}" "" "{text(f"vmagent {version}")}" "vmagent"'


def _safe(line: str) -> str:
    return rf"\&{line}" if line.startswith(".") else line
