"""SPECIFICATION.md: every promise names tests, and every test it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import FrozenSet, List

import pytest

TESTS = Path(__file__).resolve().parents[1]
TEXT = (TESTS.parent / "SPECIFICATION.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`([a-z]+/test_\w+\.py)::(test_\w+)`")
ROWS = [line for line in re.findall(r"^\|.*$", TEXT, re.MULTILINE)
        if not re.match(r"^\|[-|]+\|$|^\| (promise|input|id) \|", line)]


@cache
def collected(path: Path) -> FrozenSet[str]:
    """What pytest would collect from a file, by name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body
                     if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:60])
def test_a_promise_names_tests_that_exist(row: str) -> None:
    cell = row.rstrip(" |").rsplit("|", 1)[1]
    named = NAMED.findall(cell)
    assert named, "a promise without a test"
    assert not NAMED.sub("", cell).strip(), "something that is no test"
    missing: List[str] = [f"{file}::{name}" for file, name in named
                          if not (TESTS / file).exists() or name not in collected(TESTS / file)]
    assert not missing


def test_the_rows_were_found() -> None:
    assert len(ROWS) > 100 and len(NAMED.findall(TEXT)) > 200


def test_nothing_is_promised_twice() -> None:
    promises = [row.split("|")[1].strip() for row in ROWS]
    assert len(promises) == len(set(promises))
