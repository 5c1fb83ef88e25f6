"""What libvirt is told of snapshots: the XML that asks for one, and a definition whose disk stands on layers.

Every disk is named: one that is not named would get a snapshot of its own.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Sequence
from xml.etree.ElementTree import Element, SubElement


def snapshot_xml(name: str, disk: str = "", layer: str = "", memory: str = "", others: Sequence[str] = ()) -> str:
    """disk: target of the one that gets the new `layer`; memory: the file for it, "" = without; others: targets."""
    root = Element("domainsnapshot")
    SubElement(root, "name").text = name
    if memory:
        SubElement(root, "memory", {"snapshot": "external", "file": memory})
    if layer:
        disks = SubElement(root, "disks")
        one = SubElement(disks, "disk", {"name": disk, "snapshot": "external", "type": "file"})
        SubElement(one, "driver", {"type": "qcow2"})
        SubElement(one, "source", {"file": layer})
        for other in others:
            SubElement(disks, "disk", {"name": other, "snapshot": "no"})
    return ElementTree.tostring(root, encoding="unicode")


def over_layers(domain: str, overlay: str, layers: Sequence[str]) -> str:
    """This definition with the disk `overlay` below `layers`, oldest first; the guest writes to the last."""
    if not layers:
        return domain
    root = ElementTree.fromstring(domain)
    for disk in root.iterfind("devices/disk"):
        source = disk.find("source")
        if source is not None and source.get("file") == overlay:
            source.set("file", layers[-1])
            _nest(disk, [*reversed(layers[:-1]), overlay])
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _nest(disk: Element, files: Sequence[str]) -> None:
    """Below the disk's own file stand these, and below them what stood there before."""
    end = disk.find("backingStore")
    at = len(disk) if end is None else list(disk).index(end)
    if end is not None:
        disk.remove(end)
    first = parent = Element("backingStore", {"type": "file"})
    for number, file in enumerate(files):
        SubElement(parent, "format", {"type": "qcow2"})
        SubElement(parent, "source", {"file": file})
        if number + 1 < len(files):
            parent = SubElement(parent, "backingStore", {"type": "file"})
    if end is not None:
        parent.append(end)
    disk.insert(at, first)
