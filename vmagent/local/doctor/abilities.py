"""Checks of what can be started here at all, and what this host's hypervisor lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Mapping

from vmagent.local.doctor.findings import Check, Facts, Finding, fail, ok, unknown, warn

DRIVERS: Mapping[str, str] = {"qemu": "libvirt_driver_qemu.so", "xen": "libvirt_driver_libxl.so"}
"""Scheme of `hypervisor.uri` -> the file of its driver; libvirt's test driver is in the library itself."""
LIBRARIES = (Path("/usr/lib64"), Path("/usr/lib"))
BELOW = "libvirt/connection-driver"
PLATFORMS = "install it; for Xen: Debian's libvirt-daemon-driver-xen or Fedora's libvirt-daemon-xen, EL has none"


def driver(facts: Facts) -> Finding:
    """Not every libvirt is made with every driver, and then no setting of ours helps."""
    uri = facts.config.hypervisor.uri
    told = ((facts.live or {}).get("capabilities") or {}).get("driver")
    if told == "not-built":
        return fail(f"not-built: this libvirt has no driver for {uri}", PLATFORMS)
    if told == "built":
        return ok(f"libvirt has a driver for {uri}")
    name = DRIVERS.get(uri.partition(":")[0].partition("+")[0])
    if name is None:
        return ok("it is in the library itself")
    places = _places(facts)
    if not places:
        return unknown("no folder with libvirt's drivers was found", "start the agent: it asks libvirt")
    if any(facts.host.exists(place / name) for place in places):
        return ok(f"{name} is there")
    return fail(f"not-built: there is no {name} in {places[0]}", PLATFORMS)


def _places(facts: Facts) -> List[Path]:
    """Debian has a folder per architecture in between."""
    known = [base for library in LIBRARIES for base in (library, *facts.host.list(library))]
    return [base / BELOW for base in known if facts.host.exists(base / BELOW)]


def guests(facts: Facts) -> Finding:
    """What the running agent publishes in `capabilities` of host.state."""
    told: Mapping[str, Any] = (facts.live or {}).get("capabilities") or {}
    if "guests" not in told:
        return unknown("the agent does not run, so nobody knows", "see the check `agent`")
    kinds = [f"{one['name']} ({' or '.join(one['boots'])})" for one in told["guests"]]
    if not kinds:
        return fail("no guest can be started here", "see the checks `libvirt`, `libvirt-driver` and `virtualisation`")
    lacks = ", ".join(_lacking(told))
    found = f"guests that can be started: {', '.join(kinds)}" + (f"; not here: {lacks}" if lacks else "")
    if told.get("emulated"):
        return warn(f"{found}; they are emulated, many times slower", "see the check `virtualisation`")
    return ok(found)


def _lacking(told: Mapping[str, Any]) -> List[str]:
    snapshots = told.get("snapshots") or {}
    has = {"CPU caps": told.get("cpu_cap") != "none", "limits of disks": told.get("disk_io"),
           "disks attached while a guest runs": told.get("live_disks"), "snapshots": snapshots.get("kinds")}
    return [name for name, there in has.items() if not there]


CHECKS = (
    Check("libvirt-driver", "libvirt drives this hypervisor", driver),
    Check("guests", "what can be started here", guests),
)
