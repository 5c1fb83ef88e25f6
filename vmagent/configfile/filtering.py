"""The site's own firewall rules: what the schema cannot say of them, pure."""

from __future__ import annotations

from typing import Any, Iterator, Mapping, Sequence

from vmagent.configfile.loading import Complaint, Parts
from vmagent.core import rules


def firewall_complaints(settings: Mapping[str, Any]) -> Iterator[Complaint]:
    """Rules and prefixes that can never match, or are not what their writer meant."""
    for direction in rules.DIRECTIONS:
        for wrong in rules.read(settings[direction])[1]:
            yield Complaint(("firewall", direction, *wrong.parts), wrong.detail, wrong.accepted)
    yield from prefix_complaints(settings["local"], ("firewall", "local"))


def prefix_complaints(prefixes: Sequence[str], at: Parts) -> Iterator[Complaint]:
    """What is no prefix."""
    for index, text in enumerate(prefixes):
        try:
            rules.prefix(text)
        except ValueError as error:
            accepted = "a prefix such as 192.0.2.0/24 or 2001:db8::/32, without host bits"
            yield Complaint((*at, index), str(error), accepted)
