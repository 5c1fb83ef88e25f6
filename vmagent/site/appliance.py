"""`vmagent-site start --ovf`: an OVF package and what a person says beside it, as the args of `vm.start`.

The agent never sees an envelope.  What is said on the command line goes before what the envelope says.  The content of
the first disk is the VM's image: one that the site knows (`--image`), or the disk's own file, which the person has put
where the agents can fetch it (`--image-url`): it is read here, compared with the manifest, looked at for other files it
leans on, and asked for by its SHA-512.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Tuple

from vmagent import givenfiles
from vmagent.core import asking
from vmagent.core.places import quoted
from vmagent.errors import Problem, Problems
from vmagent.site import diskheads, ova, ovf

SLACK_BYTES = 64 << 20  # that a disk's file may take beside its content, and a 32nd of it: tables, markers
Tell = Callable[[str], None]


def network_map(text: str) -> Tuple[str, Dict[str, Any]]:
    """`OVFNAME=NETWORK`: NETWORK as `--network` takes it.  ValueError."""
    name, equals, rest = text.partition("=")
    if not name or not equals:
        raise ValueError("a mapping is OVFNAME=TYPE[=ADDRESS,...]")
    return name, asking.network(rest)


def start_args(said: argparse.Namespace, site_map: Mapping[str, str], tell: Tell) -> Dict[str, Any]:
    """`args` of vm.start.  Reads files and takes its time.  site_map: the site's network types by an envelope's names.

    Problems `usage`, `ovf`, `not-supported`.
    """
    if said.ovf is None:
        if said.map_network or said.image_url:
            raise Problem("usage", "--map-network and --image-url are for --ovf")
        if said.image is None:
            raise Problem("usage", "say which golden image: --image ID")
        return asking.start_args(vars(said), givenfiles.content)
    if (said.image is None) == (said.image_url is None):
        raise Problem("usage", "with --ovf give one of --image and --image-url")
    package = ova.opened(Path(said.ovf))
    if package.manifest is None:
        tell(f"{package.name}: no manifest: nothing says whether its files are whole")
    appliance = ovf.parse(package.envelope)
    for note in appliance.notes:
        tell(f"{package.name}: not taken over: {note}")
    networks = _networks(said, site_map, appliance)
    disks = [*_further(appliance), *(said.disks or ())]
    name = said.name or appliance.name or None
    known = {**_sizes(said, appliance), "network": networks or None, "disks": disks or None, "name": name}
    args = asking.start_args({**vars(said), **known}, givenfiles.content)
    if said.image_url is not None:
        args["image"] = image(package, appliance, said.image_url)
    return args


def _sizes(said: argparse.Namespace, appliance: ovf.Appliance) -> Dict[str, Any]:
    if said.flavour is not None:
        return {}
    found = {"cores": appliance.cores, "memory_mib": appliance.memory_mib}
    if appliance.disks:
        found["disk_gib"] = appliance.disks[0].gib
    elif said.disk_gib is None:
        raise Problem("usage", "the envelope has no disk: say how large it shall be with --disk-gib")
    return {name: value for name, value in found.items() if getattr(said, name) is None}


def _further(appliance: ovf.Appliance) -> List[Dict[str, Any]]:
    """The disks behind the first: those that begin empty are scratch disks."""
    filled = [disk for disk in appliance.disks[1:] if disk.file is not None]
    if filled:
        names = ", ".join(quoted(disk.id) for disk in filled)
        raise Problem("not-supported", f"further disks with content ({names}): only the first one may have some")
    return [{"scratch_gib": disk.gib} for disk in appliance.disks[1:]]


def _networks(
    said: argparse.Namespace, site_map: Mapping[str, str], appliance: ovf.Appliance
) -> List[Dict[str, Any]]:
    """One per interface of the envelope.  A MAC of the envelope is asked for."""
    if said.network:
        raise Problem("usage", "with --ovf, networks are the envelope's: map them with --map-network OVFNAME=TYPE")
    asked = dict(said.map_network or ())
    mapped: Mapping[str, Dict[str, Any]] = {**{name: {"type": of} for name, of in site_map.items()}, **asked}
    names = list(dict.fromkeys(nic.network for nic in appliance.nics))
    missing = [Problem("usage", f"map the envelope's network {quoted(name)}: --map-network '{name}=TYPE'")
               for name in names if name not in mapped]  # fmt: skip
    missing += [Problem("usage", f"the envelope has no network {quoted(name)}; it has {', '.join(names) or 'none'}")
                for name in asked if name not in names]  # fmt: skip
    if missing:
        raise Problems(missing)
    return [{**({"mac": nic.mac} if nic.mac else {}), **mapped[nic.network]} for nic in appliance.nics]


def image(package: ova.Package, appliance: ovf.Appliance, url: str) -> Dict[str, Any]:
    """The first disk's file as an image that stands at `url`.  Problems `ovf`, `not-supported`."""
    disk = appliance.disks[0] if appliance.disks else None
    if disk is None or disk.file is None:
        raise Problem("not-supported", "the envelope's first disk has no file: give --image")
    if not disk.format:
        raise Problem("not-supported", f"the format of disk {quoted(disk.id)} is not known")
    return {"url": url, "sha512": read(package, disk), "format": disk.format}


def read(package: ova.Package, disk: ovf.Disk) -> str:
    """SHA-512 (hex) of a disk's file, decompressed; the whole of it is checked.  Problem `ovf`."""
    assert disk.file is not None
    digest, head, looked = hashlib.sha512(), b"", False
    for chunk in ova.content(package, disk.file, disk.capacity + disk.capacity // 32 + SLACK_BYTES):
        digest.update(chunk)
        if not looked:
            head += chunk
            looked = len(head) >= diskheads.HEAD_BYTES
            if looked:
                diskheads.check(disk.file.href, disk.format, head)
    if not looked:
        diskheads.check(disk.file.href, disk.format, head)
    return digest.hexdigest()
