"""The table of docs/operations/hypervisors.md: what differs between the kinds of guests, made from the driver profiles.

Rules: a column is a row of `drivers.PROFILES`, a line reads members of it and nothing else.  A test holds the page and
this table equal, and that every member which an administrator or a controller could notice is in some line.
"""

from __future__ import annotations

from typing import Callable, Mapping, Tuple

from vmagent.core import disks
from vmagent.core.drivers import PROFILES, Profile

BEGIN, END = "<!-- the table of driver profiles -->\n", "<!-- its end -->\n"
_CAPS: Mapping[str, str] = {
    "quota": "one quota for the whole guest, and shares",
    "credit": "cap and weight of the credit scheduler",
    "none": "refused",
}
_MEASURED: Mapping[str, str] = {
    "process": "all of it",
    "calls": "CPU time, memory, network; disks where the driver can tell",
    "none": "nothing",
}
Line = Tuple[str, Callable[[Profile], str]]


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _begins(row: Profile) -> str:
    if row.firmware:
        return "firmware boots its disk"
    looked_for = f"; or {row.bootloader}, where allowed" if row.bootloader else ""
    return f"a kernel that its image names{looked_for}"


def _read_only(row: Profile) -> str:
    how = "yes" if row.read_only == "disk" else "as CD-ROMs"
    most = disks.read_only_most(row)
    return "no" if not most else how if most == disks.MOST else f"{how}, among the first {most}"


def _off(row: Profile) -> str:
    return f"looks off; believed off after {row.off_settles_s:g} s" if row.off_settles_s else "stays the same domain"


LINES: Tuple[Line, ...] = (
    ("libvirt's driver", lambda row: row.driver),
    ("domain type, OS type", lambda row: f"`{row.domain_type}`, `{row.os_type}`"),
    ("it begins", _begins),
    ("speed", lambda row: "emulated, many times slower" if row.emulated else "the processor's"),
    ("started paused, proven, then resumed", lambda row: _yes(row.starts_paused)),
    ("CPU cap and weight", lambda row: _CAPS[row.cpu_cap]),
    ("limits of disks' input and output", lambda row: _yes(row.disk_io)),
    ("its disks", lambda row: f"`{row.disk_names[0]}`, seed `{row.disk_names[1]}`, bus `{row.disk_bus}`"),
    ("volumes that can only be read", _read_only),
    ("a disk's serial is seen by the guest", lambda row: _yes(row.disk_serials)),
    ("`vm.attach`, `vm.detach` while it runs", lambda row: _yes(row.live_disks)),
    ("snapshots", lambda row: ", ".join(row.snapshots) or "no"),
    ("file systems frozen for a snapshot", lambda row: _yes(row.quiesce)),
    ("random numbers and agent channel", lambda row: _yes(row.paravirtual_devices)),
    ("its network's MTU is told by the device", lambda row: _yes(row.nic_mtu)),
    ("shutdown and reboot are asked for", lambda row: "by ACPI" if row.graceful_flags else "as the driver does it"),
    ("a request to shut down is heard", lambda row: f"with {row.shutdown_needs}" if row.shutdown_needs else "yes"),
    ("a reboot from inside", _off),
    ("cores and memory are those of", lambda row: "the kernel" if row.whole_host else "the hypervisor, not dom0"),
    ("measured", lambda row: _MEASURED[row.measured_by]),
)


def table() -> str:
    """The lines between BEGIN and END, those included."""
    head = f"| | {' | '.join(f'`{name}`' for name in PROFILES)} |\n|{'---|' * (len(PROFILES) + 1)}\n"
    body = "".join(f"| {title} | {' | '.join(say(row) for row in PROFILES.values())} |\n" for title, say in LINES)
    return BEGIN + head + body + END


def renewed(page: str) -> str:
    """The page with this table in place of the one that is in it.  ValueError: it has no place for one."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("no place for the table")
    return before + table() + after
