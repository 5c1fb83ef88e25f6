"""OpenMetrics text, read by the official client's strict parser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from vmagent.core.limitmodel import NicCounters
from vmagent.core.samples import DiskCounters, HostSample, Reading, Sample
from vmagent.render import prometheus
from vmagent.render.prometheus import Agent, Guest

ROOT = Path(__file__).resolve().parents[2]
VM = "6f1c2f9e-0000-4000-8000-000000000001"
GUEST = Guest(VM, "small", 2, 512, ("dev0", "gone"))
AGENT = Agent("1.0", 8, True, False, 1, {"ready": 1, "stuck": 0})
SAMPLE = Sample(VM, 100.0, "1", 12.5, 0.25, 1.5, 64, DiskCounters(1, 2, 3, 4), 60.0, {"cpu": 12.5})
HOST = HostSample(100.0, 500.5, 1.0, 2048, {"io": 50.0})
NICS = {"dev0": NicCounters(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12), "else": NicCounters()}
READING = Reading(100.0, {VM: SAMPLE}, NICS, HOST)


def parsed(text: str) -> Dict[Tuple[str, Tuple[Tuple[str, str], ...]], float]:
    """(sample, labels) -> value."""
    families = list(text_string_to_metric_families(text))
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def page(reading: Any = READING, guests: Any = (GUEST,), agent: Agent = AGENT) -> str:
    return prometheus.text(reading, guests, agent, 103.0)


def of(told: Any, name: str, **labels: str) -> float:
    value: float = told[name, tuple(sorted(labels.items()))]
    return value


def test_a_guest() -> None:
    told = parsed(page())
    assert of(told, "vmagent_domain_info", vm=VM, flavour="small") == 1
    for name, value in (("cpu_seconds_total", 12.5), ("vcpu_delay_seconds_total", 0.25), ("cores", 2),
                        ("cpu_throttled_seconds_total", 1.5), ("memory_resident_bytes", 64 * 2**20),
                        ("memory_bytes", 512 * 2**20), ("disk_read_bytes_total", 1), ("sample_age_seconds", 3),
                        ("disk_read_operations_total", 2), ("disk_write_bytes_total", 3), ("disk_age_seconds", 43),
                        ("disk_write_operations_total", 4)):
        assert of(told, f"vmagent_domain_{name}", vm=VM) == value, name
    assert of(told, "vmagent_domain_pressure_ratio", vm=VM, resource="cpu") == 0.125


def test_its_network_is_told_by_the_guest_s_view() -> None:
    told = parsed(page())
    for way, first in (("receive", 1), ("transmit", 5)):
        for offset, (peer, what) in enumerate((p, w) for p in ("local", "external") for w in ("bytes", "packets")):
            name = f"vmagent_domain_network_{way}_{what}_total"
            assert of(told, name, vm=VM, device="dev0", peer=peer) == first + offset
    refused = {dict(labels)["why"]: value for (name, labels), value in told.items() if "refused" in name}
    assert refused == {"rules-in": 9, "rules-out": 10, "spoofed": 11, "capped": 12}
    assert not [labels for _, labels in told if dict(labels).get("device") in ("else", "gone")]


def test_host_and_agent() -> None:
    told = parsed(page())
    assert of(told, "vmagent_info", version="1.0") == 1
    for name, value in (("libvirt_connected", 1), ("drained", 0), ("degraded_parts", 1), ("host_cores", 8),
                        ("host_cpu_busy_seconds_total", 500.5), ("host_cpu_steal_seconds_total", 1),
                        ("host_memory_available_bytes", 2**31), ("reading_age_seconds", 3)):
        assert of(told, f"vmagent_{name}") == value, name
    assert of(told, "vmagent_host_pressure_ratio", resource="io") == 0.5
    assert of(told, "vmagent_domains", phase="stuck") == 0


def test_what_is_not_known_has_no_sample() -> None:
    told = parsed(page(Reading(100.0, {VM: Sample(VM, 100.0)}, None, HostSample(100.0))))
    names = {name for name, _ in told}
    assert "vmagent_domain_sample_age_seconds" in names
    assert not [name for name in names if re.search(r"cpu|disk|network|resident|available|pressure", name)]
    early = {name for name, _ in parsed(page(None))}
    assert "vmagent_reading_age_seconds" not in early and "vmagent_domain_info" in early
    assert not [name for name, _ in parsed(page(Reading(100.0, {}, {}, HOST))) if "sample_age" in name]


def test_an_empty_host_is_a_page_too() -> None:
    text = page(guests=())
    assert parsed(text) and text.endswith("\n# EOF\n")


@pytest.mark.parametrize("hostile", ['a"b', "a\\b", "a\nb 1", "}", 'x",vm="y'])
def test_no_label_can_forge_another_sample(hostile: str) -> None:
    told = parsed(page(guests=[Guest(VM, hostile, 1, 1, ())]))
    assert of(told, "vmagent_domain_info", vm=VM, flavour=hostile) == 1


def test_labels_are_of_bounded_number() -> None:
    labels = {name for _, pairs in parsed(page()) for name, _ in pairs}
    assert labels == {"vm", "device", "flavour", "peer", "resource", "phase", "why", "version"}


def test_big_and_small_numbers_are_told_whole() -> None:
    sample = Sample(VM, 100.0, "1", 1e-7, disk=DiskCounters(2**60 + 1), disk_at=100.0)
    text = page(Reading(100.0, {VM: sample}, {}, HOST))
    assert str(2**60 + 1) in text and of(parsed(text), "vmagent_domain_cpu_seconds_total", vm=VM) == 1e-7


def expressions() -> List[str]:
    board = json.loads((ROOT / "docs/grafana/vmagent.json").read_text(encoding="utf-8"))
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return found + [variable["query"]["query"] for variable in board["templating"]["list"]
                    if isinstance(variable["query"], dict)]  # fmt: skip


def test_the_dashboard_asks_for_what_there_is() -> None:
    told = {name for name, _ in parsed(page())}
    asked = {name for expression in expressions() for name in re.findall(r"\bvmagent_[a-z_]+", expression)}
    assert asked <= told and len(asked) > 20


def test_every_family_is_in_the_documents() -> None:
    text = (ROOT / "docs/operations/telemetry.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(vmagent[a-z_]*)", text, re.MULTILINE))
    assert listed == {name for name, _ in parsed(page())}
