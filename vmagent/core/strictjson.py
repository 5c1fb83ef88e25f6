"""The one strict JSON reader: what two readers could understand differently is refused (RFC 7493, I-JSON).

Python's own reader takes duplicate members, NaN, 1e400 and lone surrogates (FACTS F23), and recurses as deep as the
text asks.  So: size first, then UTF-8, then depth by a flat scan, and only then the parse.  Whatever is wrong inside
becomes a mark in the parsed value, and one walk turns the marks into Problems, all of them, each with its path.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from itertools import islice
from typing import Any, Iterator, List, Tuple, Union

from vmagent.core.places import place, quoted
from vmagent.errors import Problem, Problems

DEEPEST = 32
LARGEST_INTEGER = 2**53 - 1  # beyond it readers disagree about the value
MOST_PROBLEMS = 20

_BOM = b"\xef\xbb\xbf"
_BRACKETS = re.compile(r'\\.|["\[\]{}]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")

Parts = Tuple[Union[str, int], ...]


@dataclass(frozen=True)
class _Wrong:
    """Stands in the parsed value where something cannot be taken."""

    detail: str


def loads(raw: bytes, limit: int) -> Any:
    """The value of a JSON text of at most `limit` bytes.

    Problems: `too-large` (needed and maximum in bytes), `json` (with `path`, or `line` and `column`).
    """
    if len(raw) > limit:
        raise Problem("too-large", f"{len(raw)} bytes; at most {limit} are read", needed=len(raw), maximum=limit)
    text = _decoded(raw)
    _refuse_depth(text)
    value = _parsed(text)
    wrong = list(islice(_wrongs(value, ()), MOST_PROBLEMS))
    if wrong:
        raise Problems([Problem("json", detail, path=place(path)) for path, detail in wrong])
    return value


def _decoded(raw: bytes) -> str:
    if raw.startswith(_BOM):
        raise Problem("json", "begins with a byte order mark; send UTF-8 without one")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem("json", f"not UTF-8 at byte {error.start}", at=error.start) from None


def _refuse_depth(text: str) -> None:
    """Counts brackets outside strings: linear, flat, and never fewer levels than the parser would enter."""
    depth = 0
    inside = False
    for found in _BRACKETS.finditer(text):
        token = found.group()
        if token == '"':
            inside = not inside
        elif inside or token[0] == "\\":
            continue
        elif token in "[{":
            depth += 1
            if depth > DEEPEST:
                raise Problem("json", f"nested deeper than {DEEPEST} levels", at=found.start(), maximum=DEEPEST)
        else:
            depth -= 1


def _parsed(text: str) -> Any:
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=lambda word: _Wrong(f"{word} is no JSON value"),
        )
    except json.JSONDecodeError as error:
        raise Problem(
            "json", f"not JSON at line {error.lineno}, column {error.colno}", line=error.lineno, column=error.colno
        ) from None


def _object(pairs: List[Tuple[str, Any]]) -> Any:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    seen = set()
    for name, _ in pairs:
        if name in seen:
            break
        seen.add(name)
    return _Wrong(f"member {quoted(name)} stands twice in one object")


def _integer(digits: str) -> Any:
    # The length first: converting a million digits takes minutes.
    if len(digits) > 17 or abs(int(digits)) > LARGEST_INTEGER:
        return _Wrong(f"integer outside -{LARGEST_INTEGER} to {LARGEST_INTEGER}")
    return int(digits)


def _float(digits: str) -> Any:
    value = float(digits)
    return value if math.isfinite(value) else _Wrong("number too large for a double")


def _wrongs(value: Any, path: Parts) -> Iterator[Tuple[Parts, str]]:
    """Every mark and every lone surrogate; the depth is bounded by now."""
    if isinstance(value, _Wrong):
        yield path, value.detail
    elif isinstance(value, str):
        if _SURROGATE.search(value):
            yield path, "half of a surrogate pair in a string"
    elif isinstance(value, dict):
        for name, inner in value.items():
            if _SURROGATE.search(name):
                yield path, f"half of a surrogate pair in member name {quoted(name)}"
            yield from _wrongs(inner, (*path, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _wrongs(inner, (*path, index))
