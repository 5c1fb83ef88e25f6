"""Command lines in, `args` of PROTOCOL 3 out; spans and columns as people read them."""

from __future__ import annotations

from typing import Any, Dict

import pytest

from vmagent.core import asking, columns, duration, schemas
from vmagent.errors import Problem

START = {"image": {"id": "tiny"}, "flavour": "small", "lifetime": 3600}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("7d", 604800), ("1d1h1m1s", 90061),
     ("0", 0)],
)
def test_spans(text: str, seconds: int) -> None:
    assert duration.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-1", "1.5h", "10 m", "1m1h", "١m", "9999999d", "1w"])
def test_bad_spans(text: str) -> None:
    with pytest.raises(ValueError):
        duration.seconds(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (60, "1m"), (125, "2m5s"), (5400, "1h30m"), (604800, "7d"), (90061, "1d1h"),
     (86401, "1d"), (-120, "-2m"), (0.4, "0s"), (-0.4, "0s")],
)
def test_spans_as_text(seconds: float, text: str) -> None:
    assert duration.text(seconds) == text


def test_what_a_span_says_can_be_read_again() -> None:
    for seconds in (*range(0, 3700, 7), 86399, 86400, 999999):
        assert abs(duration.seconds(duration.text(seconds)) - seconds) < max(1, seconds * 0.05)


def test_what_was_not_said_is_left_to_the_agent() -> None:
    said: Dict[str, Any] = {option.name: None for option in asking.START}
    args = asking.start_args({**said, **START, "atomic": False, "count": 2})
    assert args == {"image": {"id": "tiny"}, "flavour": "small", "lifetime_s": 3600, "count": 2}
    schemas.check("vm.start", args)


def test_every_option_is_a_member_of_the_schema() -> None:
    known = schemas.schema("vm.start")["properties"]
    assert {option.member for option in asking.START} == set(known)
    assert {option.member for option in asking.SELECTOR} == set(schemas.schema("selector")["properties"]) - {"vms"}


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("public", {"type": "public"}),
        ("public=192.0.2.5", {"type": "public", "addresses": ["192.0.2.5"]}),
        ("p=192.0.2.5,2001:db8::5/02:00:00:00:00:01",
         {"type": "p", "addresses": ["192.0.2.5", "2001:db8::5"], "mac": "02:00:00:00:00:01"}),
    ],
)
def test_networks(text: str, asked: Dict[str, Any]) -> None:
    assert asking.network(text) == asked
    with pytest.raises(ValueError):
        asking.network("=" + text)


def test_a_selector_is_exactly_one() -> None:
    assert asking.selector_args({"all": False, "tagged": "t"}, ()) == {"tag": "t"}
    assert asking.selector_args({}, ("b", "a", "b")) == {"vms": ["b", "a"]}
    for said, vms in (({}, ()), ({"all": True}, ("a",)), ({"all": True, "tagged": "t"}, ())):
        with pytest.raises(Problem) as caught:
            asking.selector_args(said, vms)
        assert caught.value.type == "usage"


def test_columns_align_and_obey_nobody() -> None:
    assert columns.lines(("A", "BB"), [("xxx", ""), ("y", "\x1b[31mred\n")]) == ["A    BB", "xxx  -", "y    ?[31mred?"]
