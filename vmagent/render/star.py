"""Volumes and snapshots of VMs as storage records: StAR, XML (FORMATS 1.8).

Its reader takes an attribute only with the namespace's prefix, and `ResourceCapacityUsed` in whole bytes.  A volume or
snapshot whose size nobody told is left out: the member is mandatory, and a guess would be billed.
"""

from __future__ import annotations

import hashlib
from typing import Any, Iterable, Iterator, List, Mapping, Optional, Tuple
from xml.etree import ElementTree

from vmagent.core import walltime
from vmagent.render import owners, usage, words
from vmagent.render.apel import Publisher
from vmagent.render.usage import Row

NAMESPACE = "http://eu-emi.eu/namespaces/2011/02/storagerecord"
MOST_RECORDS = 100
_VOLUME = ("volume", "attached_at", "detached_at")
_SNAPSHOT = ("name", "taken_at", "gone_at")

ElementTree.register_namespace("sr", NAMESPACE)


def messages(rows: Iterable[Row], publisher: Publisher) -> List[str]:
    """One record for each volume and snapshot of each row: its share of the row's month.  [] = there is none."""
    records = [record for row in rows for record in _records(row, publisher)]
    return [_message(records[first : first + MOST_RECORDS]) for first in range(0, len(records), MOST_RECORDS)]


def _message(records: List[ElementTree.Element]) -> str:
    root = ElementTree.Element(_name("StorageUsageRecords"))
    root.extend(records)
    text: bytes = ElementTree.tostring(root, encoding="us-ascii")
    return f'<?xml version="1.0" encoding="US-ASCII"?>\n{text.decode("ascii")}\n'


def _records(row: Row, publisher: Publisher) -> Iterator[ElementTree.Element]:
    for kind, members in (("volumes", _VOLUME), ("snapshots", _SNAPSHOT)):
        for thing in row.get(kind) or ():
            span = _span(row, thing.get(members[1]), thing.get(members[2]))
            if span is not None and thing.get("bytes") is not None:
                yield _record(row, publisher, kind[:-1], str(thing[members[0]]), int(thing["bytes"]), span)


def _span(row: Row, begun: Optional[str], ended: Optional[str]) -> Optional[Tuple[int, int]]:
    """From when to when it was had within the row's month; None = not at all."""
    at = usage.measured_at(row)
    first = max(usage.month_bounds(usage.month_of(at))[0], int(walltime.seconds(begun or row["started_at"])))
    last = min(at, int(walltime.seconds(ended))) if ended else at
    return (first, last) if first < last else None


def _record(
    row: Row, publisher: Publisher, kind: str, name: str, size: int, span: Tuple[int, int]
) -> ElementTree.Element:
    element = ElementTree.Element(_name("StorageUsageRecord"))
    whose = f"{row['host']}.{row['site']} {row['segment']} {kind} {name} {span[0]} {span[1]}"
    ElementTree.SubElement(element, _name("RecordIdentity"), {
        _name("createTime"): _time(usage.measured_at(row)),
        _name("recordId"): hashlib.sha256(whose.encode("utf-8", "surrogatepass")).hexdigest(),
    })  # fmt: skip
    _add(element, "StorageSystem", words.line(publisher.cloud_service) or words.line(str(row["host"])))
    _add(element, "Site", words.line(publisher.site_name))
    _add(element, "StorageShare", words.line(name))
    _add(element, "StorageClass", kind)
    _subject(element, row["owner"])
    _add(element, "StartTime", _time(span[0]))
    _add(element, "EndTime", _time(span[1]))
    _add(element, "ResourceCapacityUsed", str(size))
    _add(element, "ResourceCapacityAllocated", str(size))
    return element


def _subject(element: ElementTree.Element, owner: Mapping[str, Any]) -> None:
    subject = ElementTree.SubElement(element, _name("SubjectIdentity"))
    _add(subject, "UserIdentity", owners.user(owner))
    _add(subject, "Group", owners.vo(owner))
    role = owners.role(owner)
    if role:
        attribute = ElementTree.SubElement(subject, _name("GroupAttribute"), {_name("attributeType"): "role"})
        attribute.text = role


def _add(element: ElementTree.Element, name: str, text: str) -> None:
    if text:
        ElementTree.SubElement(element, _name(name)).text = text


def _name(name: str) -> str:
    return f"{{{NAMESPACE}}}{name}"


def _time(at: int) -> str:
    return walltime.text(at).replace(".000Z", "Z")
