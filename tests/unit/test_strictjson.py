"""What two readers could understand differently is refused, quickly, and with its place."""

from __future__ import annotations

import json
import random
import tracemalloc
from typing import Any, Dict, Tuple

import pytest

from vmagent.core.strictjson import loads
from vmagent.errors import Problem, Problems

LIMIT = 262144

# (bytes, members of the first problem that matter)
REFUSED: Tuple[Tuple[bytes, Dict[str, Any]], ...] = (
    (b"", {"line": 1, "column": 1}),
    (b" ", {}),
    (b"\xef\xbb\xbf{}", {}),
    (b"\xff\xfe{\x00}\x00", {"at": 0}),
    (b'{"a": "\xc3"}', {"at": 7}),
    (b'"\xed\xa0\x80"', {"at": 1}),  # a surrogate encoded as UTF-8
    (b'"\xc0\x80"', {"at": 1}),  # overlong
    (b"{", {}),
    (b"{}{}", {"line": 1, "column": 3}),
    (b'{"a":1,}', {}),
    (b"[1,]", {}),
    (b"{'a':1}", {}),
    (b"// no\n{}", {}),
    (b"01", {}),
    (b"+1", {}),
    (b".5", {}),
    (b"1.", {}),
    (b"0x10", {}),
    (b'"a\nb"', {}),
    (b'"\\x41"', {}),
    (b'"\\u12"', {}),
    (b'"abc', {}),
    (b'"abc\\', {}),
    (b"nul", {}),
    (b"NaN", {"path": ""}),
    (b'{"a": [1, NaN]}', {"path": "a[1]"}),
    (b'{"a": Infinity}', {"path": "a"}),
    (b'{"a": -Infinity}', {"path": "a"}),
    (b'{"a": {"b": 1e400}}', {"path": "a.b"}),
    (b'{"a": -1e400}', {"path": "a"}),
    (b'{"a": 9007199254740992}', {"path": "a"}),
    (b'{"a": -9007199254740992}', {"path": "a"}),
    (b'{"a": 123456789012345678901234567890}', {"path": "a"}),
    (b'{"args": {"x": 1, "x": 1}}', {"path": "args"}),
    (b'{"a": 1, "a": 2}', {"path": ""}),
    (b'{"a": 1, "\\u0061": 2}', {"path": ""}),  # the same name, spelled differently
    (b'{"list": [{}, {"k": {"a": 1, "a": 1}}]}', {"path": "list[1].k"}),
    (b'{"a": "\\ud800"}', {"path": "a"}),
    (b'{"a": ["x", "\\udc00\\ud800"]}', {"path": "a[1]"}),
    (b'{"a": {"\\ud800": 1}}', {"path": "a"}),
    (b"[" * 33 + b"]" * 33, {"maximum": 32, "at": 32}),
    (b'{"a":' * 33 + b"1" + b"}" * 33, {"maximum": 32}),
    (b"[" * 100000, {"maximum": 32}),
    (b"]" * 50 + b"[" * 200, {}),  # below zero first: still no deep parse
)


@pytest.mark.parametrize(("raw", "fields"), REFUSED)
def test_refused_with_its_place(raw: bytes, fields: Dict[str, Any]) -> None:
    with pytest.raises(Problem) as caught:
        loads(raw, LIMIT)
    assert caught.value.type == "json"
    assert {name: caught.value.fields.get(name) for name in fields} == fields
    caught.value.as_json()
    caught.value.detail.encode("ascii")


TAKEN: Tuple[Tuple[bytes, Any], ...] = (
    (b"{}", {}),
    (b' {"a": [1, -2.5, true, false, null, "x"]}\n', {"a": [1, -2.5, True, False, None, "x"]}),
    (b"9007199254740991", 9007199254740991),
    (b"-9007199254740991", -9007199254740991),
    (b"-0", 0),
    (b"1e308", 1e308),
    (b"2.0", 2.0),
    (b'"\\ud83d\\ude00"', "\U0001f600"),
    ('"\u00e9\U0001f600"'.encode(), "\u00e9\U0001f600"),
    (b'"[[[[{{{{\\"[[[["', '[[[[{{{{"[[[['),
    (b'"\\\\"', "\\"),
    (b"[" * 32 + b"]" * 32, eval("[" * 32 + "]" * 32)),
    (b'["' + b"[" * 100 + b'"]', ["[" * 100]),
)


@pytest.mark.parametrize(("raw", "value"), TAKEN)
def test_taken(raw: bytes, value: Any) -> None:
    got = loads(raw, LIMIT)
    assert got == value
    assert type(got) is type(value)


def test_all_wrongs_are_told_at_once() -> None:
    with pytest.raises(Problems) as caught:
        loads(b'{"a": NaN, "b": [1e999, "\\ud800"], "c": {"x": 1, "x": 2}}', LIMIT)
    assert [problem.fields["path"] for problem in caught.value.problems] == ["a", "b[0]", "b[1]", "c"]


def test_wrongs_are_bounded() -> None:
    with pytest.raises(Problems) as caught:
        loads(b"[" + b"NaN," * 1000 + b"NaN]", LIMIT)
    assert len(caught.value.problems) == 20


def test_a_byte_order_mark_is_called_by_its_name() -> None:
    with pytest.raises(Problem) as caught:
        loads(b"\xef\xbb\xbf{}", LIMIT)
    assert "byte order mark" in caught.value.detail


def test_size_is_told_and_comes_first() -> None:
    loads(b"1" + b" " * 9, 10)
    with pytest.raises(Problem) as caught:
        loads(b"\xff" * 11, 10)
    assert caught.value.type == "too-large"
    assert caught.value.fields == {"needed": 11, "maximum": 10}


@pytest.mark.parametrize(
    ("head", "unit"),
    [
        (b'"', b'\\"'),  # quadratic for a scanner that backtracks
        (b"", b'"'),
        (b"", b"\\"),
        (b"", b"9"),
        (b"1e", b"9"),
        (b"", b"["),
        (b"", b"{}"),
        (b"", b'{"a'),
    ],
)
def test_hostile_sizes_take_bounded_memory(head: bytes, unit: bytes) -> None:
    limit = 65536
    raw = head + unit * (limit // len(unit) - 1)
    tracemalloc.start()
    try:
        with pytest.raises(Problem):
            loads(raw, limit)
        assert tracemalloc.get_traced_memory()[1] < 40 * limit
    finally:
        tracemalloc.stop()


def test_random_bytes_are_a_problem_or_a_value() -> None:
    chance = random.Random(20261120)
    alphabet = b'{}[]",:\\u0019eE+-. \tnulltruefalseNaN\xc3\xa9\xff\x00d8'
    for _ in range(5000):
        raw = bytes(chance.choice(alphabet) for _ in range(chance.randrange(24)))
        try:
            value = loads(raw, 20)
        except Problem as problem:
            assert problem.type in ("json", "too-large")
            json.dumps(problem.as_json()).encode("ascii")
        else:
            assert json.loads(json.dumps(value, allow_nan=False)) == value
            json.dumps(value, ensure_ascii=False).encode("utf-8")


def test_damaged_commands_are_a_problem_or_a_value() -> None:
    chance = random.Random(7)
    good = json.dumps({"schema": "vm.start/1", "args": {"cores": 1, "networks": [{"type": "public"}]}}).encode()
    for _ in range(1000):
        raw = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        try:
            loads(bytes(raw), LIMIT)
        except Problem as problem:
            assert problem.type == "json"
