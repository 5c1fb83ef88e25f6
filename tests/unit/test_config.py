"""The schema is the one place of settings and defaults: it, the dataclasses and the example never disagree."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, List

import pytest
import yaml

from vmagent import config
from vmagent.configfile import building, defaults, rendering
from vmagent.core import model, policy, schemas

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "etc/vmagent.yaml"
SETTINGS = list(defaults.settings(defaults.schema()))
NAMED = [".".join(parts) for parts, _ in SETTINGS]


def uncommented(text: str) -> str:
    """What an administrator gets who takes every # away: `# ` with one space begins an explanation."""
    return "\n".join(re.sub(r"^( *)#(?=[^ #]|  )", r"\1", line) for line in text.splitlines()) + "\n"


def test_the_example_is_what_the_schema_says() -> None:
    assert EXAMPLE.read_text() == rendering.example(defaults.schema()), (
        "run: python3 -m vmagent.configfile --example > etc/vmagent.yaml"
    )


def test_the_example_names_every_setting_and_changes_none() -> None:
    shown = yaml.safe_load(uncommented(EXAMPLE.read_text()))
    schemas.check("config", shown)
    for parts, setting in SETTINGS:
        value: Any = shown
        for part in parts:
            if part == "*":
                value = value[0] if isinstance(value, list) else next(iter(value.values()))
            else:
                assert part in value, f"{'.'.join(parts)} is not in the example"
                value = value[part]
        within = [defaults.at(parts[:depth], defaults.schema()) for depth in range(1, len(parts) + 1)]
        if "default" in setting and "properties" not in setting and not any("examples" in one for one in within):
            assert value == setting["default"], f"{'.'.join(parts)} is shown with another value than its default"


def test_the_example_as_shipped_sets_nothing() -> None:
    assert not any(yaml.safe_load(EXAMPLE.read_text()).values())


@pytest.mark.parametrize(("parts", "setting"), SETTINGS, ids=NAMED)
def test_every_setting_is_described_and_bounded(parts: Any, setting: Any) -> None:
    assert setting["description"].endswith((".", "?", ")"))
    kinds = setting["type"] if isinstance(setting["type"], list) else [setting["type"]]
    leaf = setting.get("items", setting)
    if {"integer", "number"} & set(kinds):
        assert {"minimum", "maximum", "unit"} <= set(leaf)
    if "string" in kinds:
        assert {"pattern", "accepted"} <= set(leaf) or "enum" in leaf
    if "object" in kinds:
        assert setting["additionalProperties"] is False or isinstance(setting["additionalProperties"], dict)
    if "default" in setting and "examples" not in setting:
        defaults.accepted(setting)


@pytest.mark.parametrize("text", [name for name, setting in zip(NAMED, SETTINGS) if re.search("(?<!_per)_s$", name)])
def test_names_that_end_in_s_are_seconds(text: str) -> None:
    setting = dict(zip(NAMED, SETTINGS))[text][1]
    assert setting.get("items", setting)["unit"].startswith("seconds")


def names(cls: Any, *without: str) -> List[str]:
    return sorted(f.name for f in dataclasses.fields(cls) if f.name not in without)


@pytest.mark.parametrize(
    ("section", "cls", "not_there", "elsewhere"),
    [
        ("directories", config.Directories, (), ()),
        ("hypervisor", config.HypervisorSettings, (), ()),
        ("broker", config.BrokerSettings, (), ("reply_prefixes", "default_reply")),
        ("broker.tls", config.Tls, (), ()),
        ("security", config.SecuritySettings, (), ("authority", "clock_skew_s")),
        ("security.authority.*", policy.Authority, (), ()),
        ("security.authority.*.maxima", policy.Maxima, (), ()),
        ("networks.*", policy.NetworkType, ("name",), ()),
        ("flavours.*", policy.Flavour, (), ()),
        ("limits", policy.Maxima, (), ()),
        ("firewall", policy.SiteFirewall, ("rules",), ("inbound", "outbound")),
        ("firewall.inbound.*", model.Rule, (), ()),
        ("images", config.ImageSettings, (),
         ("catalogue", "on_revoked", "requests", "unendorsed", "lists", "lists_refresh_s", "endorsers")),
        ("images.lists.*", policy.ListSource, (), ()),
        ("images.endorsers.*", policy.Endorser, (), ()),
        ("images.fetch", config.FetchSettings, (), ()),
        ("images.cache", config.CacheSettings, (), ()),
        ("images.catalogue.*", policy.CatalogueImage, ("id",), ()),
        ("socket", config.SocketSettings, (), ()),
        ("intervals", config.Intervals, (), ()),
        ("telemetry", config.TelemetrySettings, (), ()),
        ("prometheus", config.PrometheusSettings, (), ()),
        ("prometheus.tls", config.ServerTls, (), ()),
    ],
)
def test_sections_and_dataclasses_have_the_same_members(section: str, cls: Any, not_there: Any, elsewhere: Any) -> None:
    depth = section.count(".") + 1
    below = [parts[-1] for parts, _ in SETTINGS if ".".join(parts[:depth]) == section and len(parts) == depth + 1]
    assert sorted(set(below) - set(elsewhere)) == names(cls, *not_there)


def test_the_defaults_of_policy_are_the_schema_s() -> None:
    """core/policy.py has defaults for tests and tools; they may not drift from the schema's."""
    values = defaults.filled({"site": "s", "host": "h", "broker": {"urls": ["stomp://b:1"]}}, defaults.schema())
    built = building.config(values, {}).policy
    bare = policy.Policy(
        built.site, built.host, built.instance, {}, {}, built.maxima, {}, (), built.reply_prefixes, built.default_reply
    )
    assert built == bare


def test_every_default_is_accepted_by_its_own_schema() -> None:
    values = defaults.filled({"site": "s", "broker": {"urls": ["stomp://b:1"]}}, defaults.schema())
    schemas.check("config", values)
    assert json.loads(json.dumps(values)) == values
