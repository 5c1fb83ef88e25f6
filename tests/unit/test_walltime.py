"""RFC 3339 there and back."""

from __future__ import annotations

import random

import pytest

from vmagent.core import walltime

KNOWN = (
    ("1970-01-01T00:00:00.000Z", 0.0),
    ("2026-11-20T12:00:00.123Z", 1795176000.123),
    ("2024-02-29T23:59:59.999Z", 1709251199.999),
    ("1969-12-31T23:59:59.500Z", -0.5),
    ("0001-01-01T00:00:00.000Z", -62135596800.0),
    ("9999-12-31T23:59:59.999Z", 253402300799.999),
)


@pytest.mark.parametrize(("text", "at"), KNOWN)
def test_known_instants(text: str, at: float) -> None:
    assert walltime.seconds(text) == pytest.approx(at, abs=1e-4)
    assert walltime.text(at) == text


def test_fraction_is_optional() -> None:
    assert walltime.seconds("1970-01-01T00:00:01Z") == 1.0
    assert walltime.seconds("1970-01-01T00:00:01.5Z") == 1.5
    assert walltime.seconds("1970-01-01T00:00:01.000000001Z") == pytest.approx(1.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-11-20",
        "2026-11-20T12:00:00",
        "2026-11-20t12:00:00Z",
        "2026-11-20T12:00:00z",
        "2026-11-20 12:00:00Z",
        "2026-11-20T12:00:00+00:00",
        "2026-11-20T12:00:00.Z",
        "2026-11-20T12:00:00.1234567890Z",
        "2026-11-20T12:00:00Z\n",
        " 2026-11-20T12:00:00Z",
        "2026-13-20T12:00:00Z",
        "2026-02-29T12:00:00Z",
        "2026-11-20T24:00:00Z",
        "2026-11-20T12:60:00Z",
        "2026-06-30T23:59:60Z",
        "0000-01-01T00:00:00Z",
        "12026-11-20T12:00:00Z",
        "-2026-11-20T12:00:00Z",
        "\u0662026-11-20T12:00:00Z",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        walltime.seconds(text)


@pytest.mark.parametrize("at", [float("nan"), float("inf"), -float("inf"), 1e18, -1e18, 253402300800.0])
def test_numbers_that_are_no_time(at: float) -> None:
    with pytest.raises(ValueError):
        walltime.text(at)


def test_round_trip_and_order() -> None:
    chance = random.Random(1)
    for _ in range(2000):
        ms = chance.randrange(-62135596800000, 253402300799999)
        text = walltime.text(ms / 1000)
        assert walltime.seconds(text) == pytest.approx(ms / 1000, abs=5e-4)
        assert walltime.text(walltime.seconds(text)) == text
        assert (text < "2000-01-01") == (ms < 946684800000)
