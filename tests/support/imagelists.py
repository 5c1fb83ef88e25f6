"""HEPiX image lists, complete and valid, so that a test names only what it is about.

`text(version="2", images=[image("a"), image("b", **{"ad:vo": "atlas"})])`: members refine the default; MISSING takes
one away.
"""

from __future__ import annotations

import json
from typing import Any, Dict, Optional, Sequence

IDENTIFIER = "2b7f0f1e-0000-4000-8000-000000000001"
ENDORSER = "/DC=org/DC=example/CN=Image Endorser"
CA = "/DC=org/DC=example/CN=CA"
CREATED = "2026-11-01T00:00:00Z"
EXPIRES = "2026-12-01T00:00:00Z"
NOW = "2026-11-20T12:00:00.000Z"
URI = "https://images.example.org/golden.qcow2"
MISSING = object()


def image(id: str = "golden", sha512: str = "ab" * 64, size: Any = 4096, **members: Any) -> Dict[str, Any]:
    """One row of hv:images."""
    row = {
        "dc:identifier": id, "dc:title": id, "dc:description": "an image", "hv:size": size,
        "sl:checksum:sha512": sha512,
        "sl:arch": "x86_64", "hv:uri": URI, "sl:os": "Linux", "sl:osversion": "9", "sl:comments": "",
        "hv:hypervisor": "kvm,QEMU", "hv:version": "1.0",
    }  # fmt: skip
    return {"hv:image": _refined(row, members)}


def value(images: Optional[Sequence[Any]] = None, x509: Optional[Dict[str, Any]] = None, **members: Any) -> Any:
    """The list as JSON's value; `members` by their own names or, for the usual ones, without prefix."""
    signer = {"hv:ca": CA, "hv:dn": ENDORSER, "hv:email": "a@example.org", "dc:creator": "Image Endorser"}
    row = {
        "dc:date:created": CREATED, "dc:date:expires": EXPIRES, "dc:identifier": IDENTIFIER, "dc:title": "Images",
        "dc:description": "images of a VO", "dc:source": "example.org", "hv:version": "1",
        "hv:uri": "https://images.example.org/list", "hv:endorser": {"hv:x509": _refined(signer, x509 or {})},
        "hv:images": [image()] if images is None else list(images),
    }  # fmt: skip
    return {"hv:imagelist": _refined(row, {_SHORT.get(name, name): given for name, given in members.items()})}


def text(**members: Any) -> bytes:
    """The same as bytes."""
    return json.dumps(value(**members)).encode()


_SHORT = {
    "created": "dc:date:created", "expires": "dc:date:expires", "identifier": "dc:identifier", "version": "hv:version",
    "endorser": "hv:endorser", "vo": "ad:vo",
}  # fmt: skip


def _refined(row: Dict[str, Any], members: Dict[str, Any]) -> Dict[str, Any]:
    return {name: given for name, given in {**row, **members}.items() if given is not MISSING}
