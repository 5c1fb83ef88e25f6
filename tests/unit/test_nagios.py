"""The line that Nagios reads, by a strict parser of the guidelines' grammar; ranges by the guidelines' own examples."""

from __future__ import annotations

import random
import re
from typing import Any, Dict, List, NamedTuple, Optional

import pytest

from vmagent.render import nagios
from vmagent.render.nagios import Metric, Range, Status

NUMBER = r"-?\d+(?:\.\d+)?"
RANGE = rf"@?(?:(?:~|{NUMBER})?:)?(?:{NUMBER})?"
PERF = re.compile(rf"'(?P<label>[^'=|]+)'=(?:U|(?P<value>{NUMBER})(?P<unit>us|ms|s|%|KB|MB|TB|B|c)?)"
                  rf"(?:;(?P<warn>{RANGE}))?(?:;(?P<crit>{RANGE}))?(?:;(?P<min>{NUMBER})?)?(?:;(?P<max>{NUMBER})?)?",
                  re.ASCII)
LINE = re.compile(r"(?P<service>[A-Z0-9 _-]+) (?P<status>OK|WARNING|CRITICAL|UNKNOWN): (?P<text>[^|\n]*?)"
                  r"(?: \| (?P<perf>[^|\n]+))?")


class Read(NamedTuple):
    """One output, read."""

    service: str
    status: str
    text: str
    metrics: Dict[str, Dict[str, Optional[str]]]
    more: List[str]


def read(output: str) -> Read:
    """AssertionError unless it is exactly what the guidelines allow."""
    first, *more = output.split("\n")
    line = LINE.fullmatch(first)
    assert line is not None, first
    assert all("|" not in one for one in more), more
    assert output.isprintable() or all(part.isprintable() for part in output.split("\n"))
    metrics: Dict[str, Dict[str, Optional[str]]] = {}
    rest = line.group("perf") or ""
    while rest:
        found = PERF.match(rest)
        assert found is not None and found.group("label") not in metrics, rest
        metrics[found.group("label")] = found.groupdict()
        rest = rest[found.end():]
        assert rest == "" or rest[0] == " ", rest
        rest = rest[1:]
    return Read(line.group("service"), line.group("status"), line.group("text"), metrics, more)


def test_a_line_with_everything() -> None:
    metric = Metric("free disk", 12.5, "MB", nagios.parse("10:"), nagios.parse("@~:5"), 0, 100)
    text = nagios.output("vmagent", Status.WARNING, "a bit full", [metric, Metric("age", None, "s")], ["one", "two"])
    assert text == "VMAGENT WARNING: a bit full | 'free disk'=12.5MB;10:;@~:5;0;100 'age'=U\none\ntwo"
    assert read(text).metrics["free disk"]["warn"] == "10:"


@pytest.mark.parametrize(("text", "good", "bad"), [
    ("10", (0, 5, 10), (-0.1, 10.1)), ("10:", (10, 1e9), (-1, 9.99)), ("~:10", (-1e9, 10), (10.1,)),
    ("10:20", (10, 20), (9, 21)), ("@10:20", (9, 21), (10, 15, 20)), ("@10", (-1, 11), (0, 10)),
    ("0", (0,), (-1, 1)), ("-5:-1", (-5, -1), (-6, 0)), (":7", (0, 7), (-1, 8)), ("~:", (-1e9, 1e9), ()),
    ("0:", (0, 5), (-1,)),
])
def test_ranges(text: str, good: Any, bad: Any) -> None:
    found = nagios.parse(text)
    assert [found.alerts(value) for value in (*good, *bad)] == [False] * len(good) + [True] * len(bad)
    assert nagios.parse(str(found)) == found


@pytest.mark.parametrize("text", ["", ":", "@", "a", "1e3", "20:10", "1:2:3", "10 ", "~", "٣", "--1", "1.", "\n5"])
def test_what_is_no_range_is_told_with_what_would_be(text: str) -> None:
    with pytest.raises(ValueError, match="accepted: "):
        nagios.parse(text)


def test_a_value_is_judged_by_the_worse_threshold() -> None:
    def status(value: Optional[float]) -> Status:
        return Metric("x", value, "", nagios.parse("10:"), nagios.parse("5:")).status()

    assert [status(value) for value in (20, 7, 2, None)] == [Status.OK, Status.WARNING, Status.CRITICAL, Status.OK]
    assert Metric("x", 3).status() is Status.OK


def test_the_worst_counts() -> None:
    assert nagios.worst([]) is Status.OK
    assert nagios.worst([Status.OK, Status.UNKNOWN]) is Status.UNKNOWN
    assert nagios.worst([Status.UNKNOWN, Status.WARNING]) is Status.WARNING
    assert nagios.worst([Status.WARNING, Status.CRITICAL, Status.UNKNOWN]) is Status.CRITICAL
    assert [int(one) for one in Status] == [0, 1, 2, 3]


def test_whatever_is_said_the_line_can_be_read() -> None:
    dice = random.Random(4711)
    alphabet = "ab |'=;\n\r\t\x1b\0%é中:,0"
    for _ in range(500):
        words = ["".join(dice.choices(alphabet, k=dice.randint(0, 30))) for _ in range(4)]
        metrics = [Metric(f"{n}{words[0]}", dice.uniform(-1e15, 1e15), dice.choice(nagios.UNITS),
                          Range(None, dice.uniform(0, 5)), Range(dice.uniform(-9, 0), 1e12, True)) for n in range(3)]
        found = read(nagios.output("svc", dice.choice(list(Status)), words[1], metrics, words[2:]))
        assert len(found.metrics) == 3 and len(found.more) == 2


def test_numbers() -> None:
    said = [nagios.number(value) for value in (0, -0.0, 1, 1.5, 0.0004, 1e15, -2.25, 1 / 3)]
    assert said == ["0", "0", "1", "1.5", "0", "1000000000000000", "-2.25", "0.333"]
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not a number"):
            nagios.number(value)


def test_a_text_without_end_is_cut() -> None:
    assert len(nagios.output("x", Status.OK, "y" * 10_000)) < 600
