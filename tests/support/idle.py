"""A guest that does nothing, the image that it boots from, and a site that fetches it over https."""

from __future__ import annotations

import hashlib
from typing import Any, Dict, Tuple

from tests.real.conftest import start_args
from tests.support.agent import Controller, vm_of
from tests.support.imageserver import ImageServer

_HALTS = b"\xfa\xf4\xeb\xfd"  # cli; hlt; jmp
IDLE = _HALTS + bytes(510 - len(_HALTS)) + b"\x55\xaa" + bytes(2 * 2**20 - 512)


def fetches(config: Dict[str, Any], source: ImageServer) -> None:
    """The site takes what a request describes of this server; and has a flavour for it."""
    config["images"]["fetch"] = {"ca": str(source.certificates.ca)}
    config["images"]["requests"] = [source.url("/")]
    config["images"]["unendorsed"] = "request"
    config["images"]["on_revoked"] = "report"
    config["flavours"]["dot"] = {"cores": 1, "memory_mib": 32, "disk_gib": 1}


def offered(source: ImageServer, content: bytes = IDLE, format: str = "raw") -> Dict[str, str]:
    """The image as a start describes it."""
    path = f"/idle.{format}"
    source.files[path] = content
    return {"url": source.url(path), "sha512": hashlib.sha512(content).hexdigest(), "format": format}


def wanted(image: Dict[str, str], count: int = 1) -> Dict[str, Any]:
    """Arguments of vm.start."""
    return start_args(flavour="dot", image=image, networks=None, count=count)


def started(controller: Controller, image: Dict[str, str], count: int, **members: Any) -> Tuple[str, ...]:
    """Their ids, once all are ready; members: of the signed command."""
    command = controller.send("vm.start", wanted(image, count), **members)
    vms = tuple(vm_of(command, member) for member in range(count))
    for vm in vms:
        controller.wait_phase(vm, "ready", 200)
    return vms
