"""Words of ours in foreign line formats: one line of printable ASCII, bounded, never what the format itself means.

What does not print as ASCII is written as OpenSSL writes it in a subject: each byte of its UTF-8 as `\\xHH`.  So is
each `%` beside another one, for `%%` separates APEL's records wherever it stands.  `None` and `NULL`, in any case, read
as nothing at all there: such a word is no word (FORMATS 1.1, 1.5).
"""

from __future__ import annotations

import re

LONGEST = 255  # characters; APEL's columns
_UNSAFE = re.compile("[^\x20-\x7e]|%(?=%)|(?<=%)%")
_PART_OF_ESCAPE = re.compile(r"\\(x[0-9A-F]?)?$")
_NULLS = ("", "none", "null")


def line(text: str, longest: int = LONGEST) -> str:
    """The text as such a word, cut to `longest` characters but never inside an escape; "" = it says nothing."""
    safe = _UNSAFE.sub(_escaped, text).strip()
    if len(safe) > longest:
        safe = _PART_OF_ESCAPE.sub("", safe[:longest]).rstrip()
    return "" if safe.lower() in _NULLS else safe


def _escaped(found: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02X}" for byte in found.group().encode("utf-8", "surrogatepass"))
