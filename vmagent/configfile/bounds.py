"""Minimum, default and maximum of the limits, and the sizes of flavours and authority rows against them, pure."""

from __future__ import annotations

from typing import Any, Iterator, Mapping, Tuple

from vmagent.configfile.loading import Complaint, Parts

Values = Mapping[str, Any]
_IN_ORDER = (("minimum", "default"), ("default", "maximum"), ("minimum", "maximum"))


def limit_complaints(limits: Values) -> Iterator[Complaint]:
    """minimum <= default <= maximum, as far as they are said."""
    for name, one in limits.items():
        if not isinstance(one, dict):
            continue
        for lower, upper in _IN_ORDER:
            low, high = one.get(lower), one.get(upper)
            if low is not None and high is not None and low > high:
                at: Parts = ("limits", name, lower)
                yield Complaint(at, f"the {lower} {low} is above the {upper} {high}", f"at most {high}")


def flavour_complaints(flavours: Values, limits: Values) -> Iterator[Complaint]:
    """A flavour that nobody could start, or a cap that caps nothing."""
    for flavour, size in flavours.items():
        for name, value in size.items():
            if value is not None:
                yield from _outside(("flavours", flavour, name), value, name, limits)
        cap, cores = size["cpu_cap_core_percent"], size["cores"]
        if cap is not None and cap > 100 * cores:
            at: Parts = ("flavours", flavour, "cpu_cap_core_percent")
            yield Complaint(at, f"{cap} is more than the VM's cores can use", f"at most {100 * cores}, or null")


def authority_complaints(at: Parts, maxima: Values, limits: Values) -> Iterator[Complaint]:
    """A row cannot give more than the site, and less than the site's least gives nothing."""
    for name, most in maxima.items():
        yield from _outside((*at, name), most, name, limits)


def _outside(at: Parts, value: int, name: str, limits: Values) -> Iterator[Complaint]:
    least, most = _least_and_most(limits[name])
    if most is not None and value > most:
        yield Complaint(at, f"{value} is above limits.{name}", f"at most {most}")
    if least is not None and value < least:
        yield Complaint(at, f"{value} is below limits.{name}", f"at least {least}")


def _least_and_most(limit: Any) -> Tuple[Any, Any]:
    return (limit["minimum"], limit["maximum"]) if isinstance(limit, dict) else (None, limit)
