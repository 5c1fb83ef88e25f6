"""OVF envelopes, manifests and archives for tests, hostile ones included."""

from __future__ import annotations

import hashlib
import io
import tarfile
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

NAMESPACES = (
    'xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" '
    'xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" '
    'xmlns:vmw="http://www.vmware.com/schema/ovf" xmlns:other="http://example.org/other"'
)
MEMORY = ("4", {"VirtualQuantity": "2048", "AllocationUnits": "byte * 2^20"})
CPUS = ("3", {"VirtualQuantity": "2", "AllocationUnits": "hertz * 10^6"})
SCSI = ("6", {"InstanceID": "scsi", "ResourceSubType": "lsilogic"})
DISK = ("17", {"HostResource": "ovf:/disk/d1", "Parent": "scsi", "AddressOnParent": "0"})
NIC = ("10", {"Connection": "VM Network", "ResourceSubType": "E1000"})
ITEMS: Tuple[Tuple[str, Mapping[str, str]], ...] = (CPUS, MEMORY, SCSI, DISK, NIC)
FILE = {"id": "f1", "href": "disk.raw", "size": ""}
D1 = {"diskId": "d1", "fileRef": "f1", "capacity": "3", "capacityAllocationUnits": "byte * 2^30",
      "format": "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"}  # fmt: skip


def tag(name: str, attributes: Mapping[str, str], body: str = "") -> str:
    said = "".join(f' ovf:{key}="{value}"' for key, value in attributes.items() if value)
    return f"<{name}{said}>{body}</{name}>"


def item(kind: str, members: Mapping[str, str], index: int, attributes: Optional[Mapping[str, str]] = None) -> str:
    all_members = {"InstanceID": str(index), "ElementName": f"element {index}", "ResourceType": kind, **members}
    return tag("Item", attributes or {}, "".join(f"<rasd:{n}>{v}</rasd:{n}>" for n, v in all_members.items()))


def envelope(
    items: Sequence[Tuple[str, Mapping[str, str]]] = ITEMS, files: Sequence[Mapping[str, str]] = (FILE,),
    disks: Sequence[Mapping[str, str]] = (D1,), more: str = "", hardware: str = "", system: str = "", head: str = "",
    name: str = "A worker: 7",
) -> bytes:  # fmt: skip
    """One virtual system; more: further sections of the envelope, hardware and system: of those elements."""
    parts = "".join(item(kind, members, index) for index, (kind, members) in enumerate(items, 1))
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n{head}<Envelope {NAMESPACES}>'
        f"<References>{''.join(tag('File', one) for one in files)}</References>"
        f"<DiskSection><Info>d</Info>{''.join(tag('Disk', one) for one in disks)}</DiskSection>"
        f"<NetworkSection><Info>n</Info><Network ovf:name='VM Network'/></NetworkSection>{more}"
        f"<VirtualSystem ovf:id='vm'><Info>i</Info><Name>{name}</Name>{system}"
        f"<VirtualHardwareSection><Info>h</Info><System><rasd:ElementName>x</rasd:ElementName></System>{parts}"
        f"{hardware}</VirtualHardwareSection></VirtualSystem></Envelope>"
    ).encode()


def manifest(files: Mapping[str, bytes], algorithm: str = "SHA256") -> bytes:
    digests = [f"{algorithm}({n})= {hashlib.new(algorithm.lower(), c).hexdigest()}\n" for n, c in files.items()]
    return "".join(digests).encode()


def archive(members: Sequence[Tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> bytes:
    return odd_archive([(tarfile.TarInfo(name), content) for name, content in members], format)


def odd_archive(members: List[Tuple[tarfile.TarInfo, bytes]], format: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for info, content in members:
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def package(content: bytes, **kw: object) -> Dict[str, bytes]:
    """Files of a whole package with a manifest, the envelope first."""
    files = {"a.ovf": envelope(**kw), "disk.raw": content}  # type: ignore[arg-type]
    return {"a.ovf": files["a.ovf"], "a.mf": manifest(files), "disk.raw": content}
