"""A VM in the words of OCCI: every phase, every attribute, as JSON and as text."""

from __future__ import annotations

import json
import re
from typing import Any, Dict

import pytest

from tests.support import building as b
from vmagent.core import events
from vmagent.core.model import Disk, Outcome, Phase, Reason, Seen
from vmagent.render import occi

KINDS = "http://schemas.ogf.org/occi/infrastructure#"


def told(seen: Seen = Seen.RUNNING, **kw: Any) -> Dict[str, Any]:
    kw.setdefault("journal", b.ran(ready_at=1010.0))
    record = b.record(**kw)
    return events.vm_state(record, b.observed(seen, record.spec), b.now(), b.policy())


def attributes(of: Dict[str, Any]) -> Dict[str, Any]:
    return dict(occi.compute(of, "x86_64")["attributes"])


@pytest.mark.parametrize("phase", [phase.value for phase in Phase])
def test_every_phase_has_its_word_and_what_is_not_known_has_none(phase: str) -> None:
    of = {**told(), "phase": phase}
    assert occi.state(of) in (None, "active", "inactive", "suspended", "error", "waiting")
    found = attributes(of)
    assert ("occi.compute.state" in found) == (phase not in ("unknown", "foreign"))
    assert found["occi.compute.state.message"].startswith(phase)


@pytest.mark.parametrize(
    ("phase", "outcome", "word"),
    [("ready", None, "active"), ("fetching", None, "waiting"), ("paused", None, "suspended"), ("stuck", None, "error"),
     ("stopped", "finished", "inactive"), ("stopped", "expired", "inactive"), ("stopped", "crashed", "error"),
     ("stopped", "lost", "error"), ("unknown", None, None)],
)
def test_states(phase: str, outcome: Any, word: Any) -> None:
    of = {**told(), "phase": phase, "outcome": outcome}
    assert occi.state(of) == word
    ended = occi.compute(of)["actions"]
    assert (ended == []) == (outcome is not None or word is None), "what has ended is never started again"


def test_a_compute_resource_with_its_links() -> None:
    disks = (Disk("scratch", 2, size_gib=5), Disk("volume", 3, volume="data", read_only=True))
    of = told(spec={"cores": 2, "memory_mib": 1536, "disks": disks})
    resource = occi.compute(of, "x86_64")
    assert (resource["kind"], resource["id"], resource["title"]) == (KINDS + "compute", of["vm"], "worker")
    assert resource["attributes"] == {
        "occi.compute.architecture": "x64", "occi.compute.cores": 2, "occi.compute.memory": 1.5,
        "occi.compute.state": "active", "occi.compute.state.message": of["phase"],
    }  # fmt: skip
    assert resource["mixins"] == ["urn:vmagent:template:resource#small", "urn:vmagent:template:os#tiny"]
    nic, root, scratch, data = resource["links"]
    assert nic["attributes"]["occi.networkinterface.address"] == "192.0.2.10"
    assert nic["target"] == {"location": "/network/public", "kind": KINDS + "network"}
    assert root["target"]["location"] == f"/storage/{of['vm']}"
    assert scratch["attributes"]["occi.storagelink.deviceid"] == "scratch-c"
    assert data["target"]["location"] == "/storage/data"
    assert len({link["id"] for link in resource["links"]}) == 4
    assert json.loads(json.dumps(resource)) == resource and None not in resource["attributes"].values()


def test_an_interface_has_its_first_address_of_ipv4_and_all_beside() -> None:
    nic = b.interface("x", addresses=("2001:db8::5/64", "192.0.2.9/24"))
    found = occi.compute(told(spec={"interfaces": (nic,)}))["links"][0]["attributes"]
    assert found["occi.networkinterface.address"] == "192.0.2.9"
    assert found["vmagent.networkinterface.addresses"] == "2001:db8::5 192.0.2.9"
    assert occi.compute(told(spec={"interfaces": ()}))["links"][0]["kind"] == KINDS + "storagelink"


def test_what_is_not_known_is_left_out() -> None:
    of = {**told(spec={"flavour": ""}), "phase": "unknown"}
    resource = occi.compute(of, "riscv64")
    assert "occi.compute.architecture" not in resource["attributes"] and len(resource["mixins"]) == 1
    assert "occi.networkinterface.state" not in resource["links"][0]["attributes"]
    assert (resource["actions"], of["outcome"]) == ([], None)


LINE = re.compile(
    r'Category: [^;"]+; scheme="[^"]+#"; class="(kind|mixin)"'
    r'|X-OCCI-Attribute: [a-z.]+=([0-9.]+|"([^"\\]|\\.)*")'
    r'|Link: <[^>]+>; rel="[^"]+"; self="[^"]+"; category="[^"]+"(; [a-z.]+=([0-9.]+|"([^"\\]|\\.)*"))*'
)


def test_text_by_its_grammar_whatever_the_texts_say() -> None:
    evil = 'it said "no";\nLink: </x>; \u202e'
    of = told(outcome=Outcome.CRASHED, reasons=(Reason("guest", evil, b.WALL),))
    lines = occi.lines(occi.compute(of, "x86_64"))
    assert all(LINE.fullmatch(line) and line.isascii() for line in lines), lines
    assert lines[0] == f'Category: compute; scheme="{KINDS}"; class="kind"'
    assert "X-OCCI-Attribute: occi.compute.cores=1" in lines
    assert sum(line.startswith("Link: ") for line in lines) == 2
