"""The values of the whole system: frozen, hashable, JSON-able.

Wishes (VmSpec, VmRecord with its Journal) are stored; observations (DomainSeen, HostSeen, Observed) never are.
Times: `*_at` are boot-clock seconds (CLOCK_BOOTTIME) unless the name ends in `_wall` (RFC 3339, UTC, ms, `Z`).
Units are in the names: mib = 2^20 bytes, gib = 2^30 bytes, kbit = 1000 bit, s = seconds, core_percent: 100 = one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import FrozenSet, Mapping, Optional, Tuple

from vmagent.core.hypervisormodel import (
    HypervisorInfo as HypervisorInfo,
)
from vmagent.core.imagemodel import Boot, Fetching
from vmagent.core.limitmodel import (
    CgroupSeen as CgroupSeen,
)
from vmagent.core.limitmodel import (
    CpuLimit as CpuLimit,
)
from vmagent.core.limitmodel import (
    DiskIo as DiskIo,
)
from vmagent.core.limitmodel import (
    Drift as Drift,
)
from vmagent.core.limitmodel import (
    Firewall as Firewall,
)
from vmagent.core.limitmodel import (
    FirewallInfo as FirewallInfo,
)
from vmagent.core.limitmodel import (
    Limits as Limits,
)
from vmagent.core.limitmodel import (
    NetworkSeen as NetworkSeen,
)
from vmagent.core.limitmodel import (
    NicCounters as NicCounters,
)
from vmagent.core.limitmodel import (
    NicLimits as NicLimits,
)
from vmagent.core.limitmodel import (
    Rule as Rule,
)
from vmagent.core.limitmodel import (
    ShaperInfo as ShaperInfo,
)
from vmagent.core.snapshotmodel import Snapshot


class Desired(str, Enum):
    """What the controller wants (DESIGN 6, rows)."""

    RUN = "run"
    PAUSED = "paused"
    STOP = "stop"
    ABSENT = "absent"


class Seen(str, Enum):
    """What was last observed (DESIGN 6, columns)."""

    MISSING = "missing"
    OFF = "off"
    SAVED = "saved"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    CRASHED = "crashed"
    STUCK = "stuck"
    FOREIGN = "foreign"
    UNKNOWN = "unknown"


class Phase(str, Enum):
    """The word people see; always derived, never stored as truth."""

    PENDING = "pending"
    FETCHING = "fetching"
    STARTING = "starting"
    RUNNING = "running"
    READY = "ready"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    STUCK = "stuck"
    UNKNOWN = "unknown"
    FOREIGN = "foreign"


class Outcome(str, Enum):
    """How a VM ended."""

    FINISHED = "finished"  # it powered itself off
    EXPIRED = "expired"  # its lease ended
    KILLED = "killed"  # a command ended it
    CRASHED = "crashed"  # the guest or its QEMU died
    FAILED = "failed"  # it never ran
    LOST = "lost"  # it ran and is gone, and nobody saw how (host reboot included)
    RETURNED = "returned"  # adopted, and given back: it runs on and is not ours any more


@dataclass(frozen=True)
class Owner:
    """On whose behalf: certificate subject (slash form) and VOMS FQAN, as the signer asserted them."""

    subject: str
    fqan: str = ""

    @property
    def vo(self) -> str:
        """`/vo/group/Role=x` -> `vo`; a string without a leading slash is the VO as a whole (FORMATS 1.3)."""
        return self.fqan.lstrip("/").split("/", 1)[0]


@dataclass(frozen=True)
class ImageRef:
    """Which golden image: its id and the SHA-512 (hex) it had when the VM was admitted, and who endorsed it then."""

    id: str
    sha512: str  # of what its source offers
    format: str  # raw | qcow2 | vmdk | vdi | vhdx: as its source offers it
    url: str = ""  # https: or file:, where it is fetched from; "" = a file of the site's image directory
    size: int = 0  # bytes of what its source offers; 0 = not told
    endorser: str = ""  # subject of who signed the list; "" = the site itself, by its catalogue
    list: str = ""  # identifier of that list
    list_version: str = ""
    source: str = "site"  # who told us of it: "site" (its catalogue) | "list" | "request"
    boot: Optional[Boot] = None  # where a guest needs a kernel from outside its disk; None = firmware boots its disk


@dataclass(frozen=True)
class Interface:
    """One network interface, resolved at admission so that it never depends on later configuration."""

    network: str  # network type, as named by the site
    bridge: str
    device: str  # host side: instance id + 11 base32 characters, at most 15 (see identity.py)
    mac: str
    addresses: Tuple[str, ...]  # interface notation: "192.0.2.10/24", "2001:db8::5/64"
    gateways: Tuple[str, ...] = ()
    dns: Tuple[str, ...] = ()
    mtu: int = 1500


SCRATCH, VOLUME, CDROM = "scratch", "volume", "cdrom"


@dataclass(frozen=True)
class Disk:
    """A disk beside the VM's own.  Where its bytes are is the site's to say, when the domain is defined (disks.py)."""

    kind: str  # SCRATCH: empty, ends with the VM | VOLUME | CDROM: a data volume of the site
    place: int  # 2 = the third disk of the guest
    size_gib: int = 0  # of a scratch disk
    volume: str = ""  # the site's name of a volume
    read_only: bool = False


@dataclass(frozen=True)
class VolumeUse:
    """A data volume that a guest had: from the first look that saw it to the first that did not."""

    disk: Disk
    attached_wall: str
    detached_wall: str = ""  # "" = it has it


@dataclass(frozen=True)
class VmSpec:
    """The wish as admitted: everything needed to build the VM, no secrets.  It travels in the domain's tag."""

    vm: str  # UUIDv5(command id, member index) = domain uuid
    name: str  # a label, not unique
    cores: int
    memory_mib: int
    disk_gib: int
    image: ImageRef
    interfaces: Tuple[Interface, ...]
    limits: Limits
    owner: Owner
    controller: str  # the signer's subject, RFC 4514; "local:<user>" on the socket
    command: str  # id of the vm.start command
    member: int  # index in the bulk, from 0
    flavour: str = ""
    tags: Tuple[str, ...] = ()
    start_by_s: int = 600  # give up starting this long after acceptance
    ready_by_s: int = 600  # after the first resume; past it the start is answered as failed, nothing is killed
    keep_s: int = 0  # disk kept after the end
    atomic: bool = False
    count: int = 1
    restart: str = "never"  # | "always": when the guest ends by itself it is made anew while the lease lasts
    disks: Tuple[Disk, ...] = ()  # beside its own
    incarnation: int = 0  # how often it was made anew from the golden image (renewal.py)
    context: str = ""  # there is user data for it in the store: context.digest; "" = there is none
    adopted: bool = False  # it ran before it was ours: others made its definition, disks and interfaces (adopting.py)


@dataclass(frozen=True)
class Reason:
    """One entry of the reason trail (newest last, at most 20 kept)."""

    who: str  # signer, "local:<user>", "agent", "lease", "libvirt", "guest"
    why: str
    when_wall: str


@dataclass(frozen=True)
class Journal:
    """What we did or were about to do: committed before the effect (DESIGN 6, note 1)."""

    attempt_boot: str = ""  # boot id in which create(paused) was first attempted; "" = never attempted
    may_have_run: bool = False  # committed before the first resume
    started_at: Optional[float] = None  # first resume
    started_boot: str = ""  # boot id of the first resume: `started_at` counts in this boot only
    started_wall: str = ""
    # Who of us paused it; only what we paused may be resumed.  "start": not proven yet, found RUNNING it is paused
    # again; "command"; "resume": proven, and our resume was committed; "": not paused by us.
    paused_by: str = ""
    resume_asked: bool = False  # vm.resume of one that we did not pause: leave to go on after an I/O error (pauses.py)
    stop_at: Optional[float] = None  # when the stop ladder began
    stop_boot: str = ""
    grace_s: int = 60
    shutdowns: int = 0  # ACPI requests committed on this ladder; the next is due at stop_at + 10 s x this
    ended_at: Optional[float] = None  # proven end
    ended_boot: str = ""  # boot id of `ended_at`
    end_cause: str = ""  # "lease" | "command" | "rollback" | "start" | "crash" | "reboot" | "image": see ending.py
    ready_at: Optional[float] = None
    reboot_wanted: int = 0  # generation of the last reboot command
    reboot_done: int = 0  # committed before the reboot call: at most once
    warned_s: Tuple[int, ...] = ()  # lease warnings already published (seconds before the end)
    alarms: Tuple[str, ...] = ()  # conditions told and not over yet, so that each is told once (plan.py)
    # vm.limits is all or nothing per VM: what held before, until the new limits are proven (limits_since: generation).
    limits_before: Optional[Limits] = None
    limits_since: int = 0
    # A life from a fresh overlay is an incarnation: `attempt_boot`, `may_have_run`, `ready_at` and the ladder are of
    # this one, `started_at` and the lease of them all (renewal.py).
    renew_wanted: int = 0  # greater than spec.incarnation: that one shall be, once this one is gone
    renew_after: float = 0.0  # boot time before which it is not made
    began_at: Optional[float] = None  # first resume of this incarnation
    over_at: Optional[float] = None  # proven end of this incarnation, where the next one follows
    renewed_at: Optional[float] = None  # when it was made; None: the first, which counts from its acceptance
    renewed_boot: str = ""
    volumes: Tuple[VolumeUse, ...] = ()  # that its guests had, oldest first, for accounting
    attach_failed: str = ""  # why the last vm.attach was taken back
    short_runs: int = 0  # runs in a row that ended by themselves soon
    # Its image is not trusted any more: why, and the strictest of what was done for it (revocation.py).
    image_cause: str = ""
    image_action: str = ""
    revert_to: str = ""  # name of the snapshot from which the next incarnation begins; "" = the golden image
    tag_seen: bool = False  # of an adopted guest: our tag was read back, so it is not put there once more
    proven_domain: Optional[int] = None  # libvirt's number of the domain whose limits were last proven (rebirth.py)
    reborn_at: Optional[float] = None  # when another one was first seen that is not proven yet


@dataclass(frozen=True)
class VmRecord:
    """One stored wish."""

    spec: VmSpec
    generation: int
    desired: Desired
    lifetime_s: int  # agreed run time, counted on the boot clock from the first resume
    accepted_at: float
    accepted_boot: str
    accepted_wall: str
    journal: Journal = Journal()
    outcome: Optional[Outcome] = None
    closed: bool = False  # ended, and nothing is left on the host
    reasons: Tuple[Reason, ...] = ()
    timings_ms: Tuple[Tuple[str, int], ...] = ()  # (received|accepted|defined|proven|resumed|ready, ms since received)
    last_commands: Tuple[Tuple[str, str], ...] = ()  # (signer, issued_at of its last command applied)
    published: str = ""  # digest of the last vm.state data published
    since_wall: str = ""  # when the phase last changed
    phase: str = ""  # the phase last *published*; for `since` only, never decided on
    snapshots: Tuple[Snapshot, ...] = ()  # oldest first: the order of their layers

    @property
    def vm(self) -> str:
        return self.spec.vm


@dataclass(frozen=True)
class Tag:
    """Our element in the domain's <metadata>: everything that adoption needs.

    It is written with the definition and again right after the first resume.  So what it cannot say is that its domain
    has not run: one that is off counts as one that may have.
    """

    instance: str
    spec: VmSpec
    generation: int
    lifetime_s: int
    accepted_wall: str
    boot_id: str = ""  # of the first resume; "" = not written down yet
    started_at: Optional[float] = None
    started_wall: str = ""


@dataclass(frozen=True)
class DiskSeen:
    """A disk in a domain, whoever put it there."""

    target: str  # "vdc"
    serial: str  # "" = it has none
    read_only: bool = False


@dataclass(frozen=True)
class DomainSeen:
    """What libvirt said about one of our domains, by calls that never enter the QEMU monitor."""

    vm: str
    seen: Seen
    reason: str = ""  # libvirt's reason as a word: "user", "ioerror", "crashed", "shutdown", "destroyed", "booted"
    at: float = 0.0  # boot time of the observation
    tag: Optional[Tag] = None
    name: str = ""
    cpu: Optional[CpuLimit] = None  # of the whole guest, read back from the live domain; None when not running
    weight: Optional[int] = None  # relative to 100; None when not running or not to be read
    memory_mib: Optional[int] = None  # read back: what it has now ...
    memory_max_mib: Optional[int] = None  # ... and what it could grow to
    disk_io: Optional[DiskIo] = None  # the same on each disk; None when not running or not to be read
    cpu_by: str = ""  # "quota": the cgroup must agree; "credit": the hypervisor alone; "none": no cap; "": not known
    devices: Tuple[str, ...] = ()  # host-side interface names in the live domain
    disks: Tuple[str, ...] = ()  # target names of the disks in the domain ("vda", ...)
    disks_seen: Optional[Tuple[DiskSeen, ...]] = None  # the same with their serials; None = there are none here
    number: Optional[int] = None  # of the live domain; another one after each start of it
    off_at: Optional[float] = None  # boot time at which it was first seen off; None = it is not, or nobody knows
    profile: str = ""  # name of drivers.PROFILES: what kind of guest it is; "" = not known


@dataclass(frozen=True)
class ForeignSeen:
    """A domain that is not ours: reported, never touched."""

    uuid: str
    name: str
    seen: Seen
    reason: str = ""  # why it is not ours: "no-tag", "other-instance", "uuid-mismatch", "bad-tag"


@dataclass(frozen=True)
class HostSeen:
    """One whole look at the hypervisor."""

    at: float
    domains: Mapping[str, DomainSeen]  # ours, by vm id
    foreign: Tuple[ForeignSeen, ...] = ()


@dataclass(frozen=True)
class Observed:
    """Everything `plan` may know about one VM: libvirt's view joined with the host's."""

    domain: DomainSeen
    missing_twice: bool = False  # MISSING in two observations of a healthy connection
    # Of "overlay", "scratch", "layer:NAME" (of a snapshot), "seed", "download", "firewall", "shaper", "interface",
    # "process".
    leftovers: FrozenSet[str] = frozenset()
    network_seen: Tuple[str, ...] = ()  # devices on which a frame with an assigned source address came in
    network: Optional[NetworkSeen] = None  # None = not looked at: proves nothing
    cgroup: Optional[CgroupSeen] = None  # None = there is none, or it cannot be read
    fetching: Optional[Fetching] = None  # how far the download is that it waits for
    fetched: bool = True  # its golden image has a file here; looked at only while there is no overlay


@dataclass(frozen=True)
class Now:
    """The clocks, read once per step and handed in."""

    at: float  # CLOCK_BOOTTIME seconds
    wall: str  # RFC 3339
    boot_id: str
