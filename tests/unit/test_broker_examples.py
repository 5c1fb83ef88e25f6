"""docs/examples/brokers: three brokers, one table of permissions, and that table is the page's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, Set, Tuple

import pytest

from tests.support.examplebrokers import DESTINATIONS, EXAMPLES, HOSTS, PEOPLE, SITE, permissions
from tests.unit.test_docs import rows, words
from vmagent.core.schemas import schema

PAGE = (Path(__file__).resolve().parents[2] / "docs/operations/brokers.md").read_text(encoding="utf-8")
KINDS = ("rabbitmq", "activemq", "artemis")


def told() -> Dict[str, Tuple[Set[str], Set[str]]]:
    """The page's table, HOST and SITE filled in."""
    found = {}
    for who, reads, writes in rows(PAGE, "## Who may do what"):
        for user in HOSTS if words(who) == ["HOST"] else words(who):
            def full(cell: str, user: str = user) -> Set[str]:
                named = [word.replace("vmagent.SITE", SITE).replace("HOST", user if user in HOSTS else "*")
                         for word in words(cell)]
                pattern = "|".join(re.escape(name).replace(r"\*", "[a-z0-9._]+") for name in named)
                return {each for each in DESTINATIONS if re.fullmatch(pattern, each)}

            found[user] = full(reads), full(writes)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_permissions_are_the_page_s(kind: str) -> None:
    assert permissions(kind) == told()
    assert set(told()) == {*HOSTS, *PEOPLE} and all(reads and writes for reads, writes in told().values())


def test_no_host_reads_or_writes_what_is_another_s() -> None:
    one, other = HOSTS
    for kind in KINDS:
        reads, writes = permissions(kind)[other]
        assert not {each for each in reads | writes if one in each}
        assert reads == {f"/queue/{SITE}.{other}.commands", f"/topic/{SITE}.commands"}


def test_the_destinations_are_the_defaults_of_agent_and_controller() -> None:
    """So that an example fits the configuration without another word."""
    broker = schema("config")["properties"]["broker"]["properties"]
    defaults = {one["default"].replace("vmagent.SITE", SITE) for one in broker.values()
                if str(one.get("default", "")).startswith(("/queue/", "/topic/"))}
    assert {each.replace("HOST", HOSTS[0]) for each in defaults} <= set(DESTINATIONS)


def test_nothing_in_the_examples_counts_deliveries() -> None:
    """A command must come again however often the agent died over it."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in EXAMPLES.rglob("*") if path.is_file()}
    assert not [name for name, text in texts.items() if "delivery-limit" in text or "maximumRedeliveries" in text]
    assert "<max-delivery-attempts>-1<" in texts["broker.xml"]
