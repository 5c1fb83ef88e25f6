"""render/publicip.py and render/star.py, read as their consumers read them (FORMATS 1.7, 1.8)."""

from __future__ import annotations

import json
from typing import Any, Dict, List
from xml.etree import ElementTree

import jsonschema
import pytest

from tests.support.usage_rows import JANE, VM, row
from tests.unit.test_apel import EVIL, SITE, same_as_golden
from vmagent.render import apel, publicip, star

AT = 1795219200
STRING = {"type": "string"}
IP_SCHEMA = {
    "type": "object", "required": ["Type", "Version", "UsageRecords"], "additionalProperties": False,
    "properties": {
        "Type": {"const": "APEL Public IP message"}, "Version": {"const": "0.2"},
        "UsageRecords": {"type": "array", "minItems": 1, "maxItems": 1000, "items": {
            "type": "object", "additionalProperties": False,
            "required": ["MeasurementTime", "SiteName", "CloudType", "LocalUser", "LocalGroup", "GlobalUserName",
                         "FQAN", "IPVersion", "IPCount"],
            "properties": {"MeasurementTime": {"type": "integer"}, "SiteName": STRING, "CloudType": STRING,
                           "CloudComputeService": {"type": ["string", "null"]}, "LocalUser": STRING,
                           "LocalGroup": STRING, "GlobalUserName": STRING, "FQAN": STRING,
                           "IPVersion": {"enum": [4, 6]}, "IPCount": {"type": "integer", "minimum": 0}}}},
    },
}  # fmt: skip


def with_addresses(*addresses: str, **changes: Any) -> Dict[str, Any]:
    one = row(**changes)
    one["footprint"]["public_addresses"] = list(addresses)
    return one


def test_addresses_are_counted_by_user_and_version() -> None:
    other = {"subject": "0123abcd@egi.eu", "fqan": "", "vo": ""}
    rows = [with_addresses("192.0.2.7/24", "2001:db8::7/64"), with_addresses("192.0.2.8", vm=VM[:-1] + "2"),
            with_addresses("192.0.2.9", owner=other), with_addresses("192.0.2.10", final=True, status="completed"),
            row()]
    (text,) = publicip.messages(rows, SITE, AT)
    same_as_golden("publicip.json", text)
    message = json.loads(text)
    jsonschema.validate(message, IP_SCHEMA)
    counts = [(one["GlobalUserName"], one["IPVersion"], one["IPCount"]) for one in message["UsageRecords"]]
    jane = "/DC=org/DC=example/CN=Jane Doe"
    assert counts == [(jane, 4, 2), (jane, 6, 1), ("0123abcd@egi.eu", 4, 1)]


def test_without_addresses_there_is_no_message() -> None:
    assert publicip.messages([row()], SITE, AT) == []


@pytest.mark.parametrize("text", EVIL)
def test_hostile_owners_keep_both_formats(text: str) -> None:
    owner = {"subject": text, "fqan": text, "vo": text}
    (message,) = publicip.messages([with_addresses("192.0.2.7", owner=owner)], SITE, AT)
    jsonschema.validate(json.loads(message), IP_SCHEMA)
    snapshot = {"name": text, "kind": "disk", "bytes": 5, "taken_at": "2026-11-21T09:10:00Z", "gone_at": None}
    one = row(owner=owner, volumes=[volume(volume=text)], snapshots=[snapshot])
    for read in records(star.messages([one], SITE)):
        check(read)


def volume(**changes: Any) -> Dict[str, Any]:
    return {"volume": "data", "read_only": False, "attached_at": "2026-11-21T09:30:00Z", "detached_at": None,
            "bytes": 10 * 2**30, **changes}


def records(messages: List[str]) -> List[ElementTree.Element]:
    return [one for text in messages for one in ElementTree.fromstring(text.encode("ascii"))]


def check(element: ElementTree.Element) -> Dict[str, str]:
    """What APEL's loader demands; member -> text."""
    assert element.tag == f"{{{star.NAMESPACE}}}StorageUsageRecord"
    found = {one.tag.partition("}")[2]: one.text or "" for one in element.iter()}
    identity = element.find(f"{{{star.NAMESPACE}}}RecordIdentity")
    assert identity is not None
    for name in ("createTime", "recordId"):
        assert identity.get(f"{{{star.NAMESPACE}}}{name}") and identity.get(name) is None
    for name in ("StorageSystem", "StartTime", "EndTime", "ResourceCapacityUsed"):
        assert found[name]
    assert found["ResourceCapacityUsed"].isdecimal() and found["StartTime"] < found["EndTime"]
    return found


def test_volumes_and_snapshots() -> None:
    one = row(volumes=[volume(), volume(volume="gone", detached_at="2026-11-21T09:45:00Z")],
              snapshots=[{"name": "before", "kind": "disk", "taken_at": "2026-11-21T09:10:00Z", "gone_at": None,
                          "bytes": 123}])
    (text,) = star.messages([one], SITE)
    same_as_golden("star.xml", text)
    assert 'sr:recordId="' in text and 'sr:createTime="' in text
    read = [check(element) for element in records([text])]
    assert [(r["StorageShare"], r["StartTime"], r["EndTime"], r["ResourceCapacityUsed"]) for r in read] == [
        ("data", "2026-11-21T09:30:00Z", "2026-11-21T10:00:00Z", str(10 * 2**30)),
        ("gone", "2026-11-21T09:30:00Z", "2026-11-21T09:45:00Z", str(10 * 2**30)),
        ("before", "2026-11-21T09:10:00Z", "2026-11-21T10:00:00Z", "123"),
    ]
    assert {r["Group"] for r in read} == {JANE["vo"]} and {r["GroupAttribute"] for r in read} == {"admin"}


def test_what_was_had_in_another_month_or_has_no_size_is_not_told() -> None:
    one = row("2026-12-01T00:00:00Z", "2026-12-01T01:00:00Z", started_at="2026-11-01T00:00:00Z", volumes=[
        volume(detached_at="2026-11-22T00:00:00Z"), volume(bytes=None), volume(attached_at="2026-11-02T00:00:00Z")])
    (read,) = [check(element) for element in records(star.messages([one], SITE))]
    assert read["StartTime"] == "2026-12-01T00:00:00Z"


def test_each_record_has_an_identity_of_its_own() -> None:
    rows = [row(volumes=[volume(), volume(volume="b")]), row(vm=VM[:-1] + "2", volumes=[volume()]),
            row("2026-11-21T10:00:00Z", "2026-11-21T11:00:00Z", period=2, volumes=[volume()])]
    found = [element[0].get(f"{{{star.NAMESPACE}}}recordId") for element in records(star.messages(rows, SITE))]
    assert len(set(found)) == 4
    many = star.messages([row(volumes=[volume(volume=str(number)) for number in range(150)])], SITE)
    assert [len(records([text])) for text in many] == [100, 50]


def test_the_publisher_is_said_in_ascii() -> None:
    hostile = apel.Publisher("S\u00efte", "")
    (text,) = publicip.messages([with_addresses("192.0.2.7")], hostile, AT)
    assert text.isascii() and json.loads(text)["UsageRecords"][0]["CloudComputeService"] is None
