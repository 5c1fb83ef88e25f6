"""What libvirt says about domains, by calls that never enter the QEMU monitor (FACTS F1).

Every function here runs on a thread of the observe link.  State comes in one bulk call where the driver has it.  The
domain's XML is asked for when its domain id changed or an event said that something changed (`forget`): a hundred
idle guests cost a hundred tags and a hundred limits, nothing else.  Where a wish limits a disk, the XML is asked for in
every look (an event may be lost) and parsed when it differs.

CPU limits are those of the whole guest, as the hypervisor holds them; what somebody set on a single thread of it can
only be less.  Memory is read from the live XML: libvirt's `info` on Xen adds what the hypervisor itself needs.

Ours = the tag's VM id is the domain's uuid, and the tag's instance is this agent's (DESIGN 6).
"""

from __future__ import annotations

import dataclasses
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Set, Tuple, Union

import libvirt

from vmagent.core import drivers, quota
from vmagent.core.adopting import Candidate
from vmagent.core.domainxml import NAMESPACE, Parts, parts_of, read_tag
from vmagent.core.drivers import Profile
from vmagent.core.model import CpuLimit, DiskIo, DomainSeen, ForeignSeen, HostSeen, Seen, Tag
from vmagent.errors import Fault, FaultKind
from vmagent.hypervisor.faults import fault

LIVE = (Seen.RUNNING, Seen.PAUSED, Seen.STOPPING)
DOMAIN_0 = "00000000-0000-0000-0000-000000000000"  # Xen's own
NO_QUOTA_US = 17_592_186_044_415  # libvirt's largest; cgroup v2's "max" reads as this or more

STATES: Mapping[int, Seen] = {
    libvirt.VIR_DOMAIN_NOSTATE: Seen.UNKNOWN,
    libvirt.VIR_DOMAIN_RUNNING: Seen.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: Seen.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: Seen.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: Seen.STOPPING,
    libvirt.VIR_DOMAIN_SHUTOFF: Seen.OFF,
    libvirt.VIR_DOMAIN_CRASHED: Seen.CRASHED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: Seen.PAUSED,
}
# libvirt's numbers per state, in order (libvirt-domain.h); what is beyond reads "unknown".
REASONS: Mapping[int, Tuple[str, ...]] = {
    libvirt.VIR_DOMAIN_RUNNING: (
        "unknown", "booted", "migrated", "restored", "from-snapshot", "unpaused", "migration-cancelled",
        "save-cancelled", "wakeup", "crashed", "postcopy", "postcopy-failed",
    ),
    libvirt.VIR_DOMAIN_PAUSED: (
        "unknown", "user", "migration", "save", "dump", "ioerror", "watchdog", "from-snapshot", "shutting-down",
        "snapshot", "crashed", "starting-up", "postcopy", "postcopy-failed", "api-error",
    ),
    libvirt.VIR_DOMAIN_SHUTDOWN: ("unknown", "user"),
    libvirt.VIR_DOMAIN_SHUTOFF: (
        "unknown", "shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from-snapshot", "daemon",
    ),
    libvirt.VIR_DOMAIN_CRASHED: ("unknown", "panicked"),
    libvirt.VIR_DOMAIN_PMSUSPENDED: ("pmsuspended",),
}  # fmt: skip
# A paused domain that is not simply paused.
PAUSED_BUT: Mapping[str, Seen] = {
    "shutting-down": Seen.STOPPING,
    "crashed": Seen.CRASHED,
    "starting-up": Seen.UNKNOWN,  # libvirt is in the middle of a start: wait for its word
}
# What reading the scheduler of a domain says that ends at this moment, by Profile.cpu_cap.
GONE_MEANWHILE: Mapping[str, Tuple[int, ...]] = {
    "quota": (libvirt.VIR_ERR_OPERATION_INVALID,),
    "credit": (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_INTERNAL_ERROR),
}
CERTAIN_ENDS = ("destroyed", "crashed", "failed", "saved")
SETTLING = "settling"  # reason of an "off" that may still be a reboot


def seen_of(state: int, reason: int) -> Tuple[Seen, str]:
    """libvirt's two numbers as ours."""
    words = REASONS.get(state, ())
    word = words[reason] if 0 <= reason < len(words) else "unknown"
    seen = STATES.get(state, Seen.UNKNOWN)
    return (PAUSED_BUT.get(word, seen), word) if seen is Seen.PAUSED else (seen, word)


class Stranger(Exception):
    """A domain that is not ours: `why` is one of ForeignSeen.reason's words."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def tag_of(domain: libvirt.virDomain, instance: str, read: Callable[[str], Tag] = read_tag) -> Tag:
    """The tag of a domain of ours.  Errors: Stranger, libvirtError."""
    try:
        tag = read(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, 0))
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            raise
        raise Stranger("no-tag") from None
    except ValueError:
        raise Stranger("bad-tag") from None
    if tag.instance != instance:
        raise Stranger("other-instance")
    if tag.spec.vm != domain.UUIDString():
        raise Stranger("uuid-mismatch")
    return tag


def lookup(conn: libvirt.virConnect, vm: str) -> Optional[libvirt.virDomain]:
    """The domain with this uuid, or None on libvirt's own word.  Errors: libvirtError."""
    try:
        return conn.lookupByUUIDString(vm)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def coming_back(domain: libvirt.virDomain) -> bool:
    """Whether libvirt is at work on a domain that was off a moment ago, or has just been.  Errors: libvirtError."""
    return int(domain.jobInfo()[0]) != libvirt.VIR_DOMAIN_JOB_NONE or bool(domain.isActive())


class Eyes:
    """Looks at domains; remembers XML that cannot have changed.  The dictionaries are touched by single operations.

    cgroup: the version that has this host's cpu controller.
    """

    def __init__(self, profile: Profile, instance: str, seconds: Callable[[], float], cgroup: int = 2) -> None:
        self._profile = profile
        self._instance = instance
        self._cgroup = cgroup
        self._seconds = seconds  # boot clock
        self._parts: Dict[str, Tuple[int, str, Parts]] = {}  # uuid -> (domain id, XML, what it says)
        self._tags: Dict[str, Tuple[str, Tag]] = {}  # uuid -> (XML, what it says)
        self._alive: Set[str] = set()
        self._off_at: Dict[str, float] = {}  # uuid -> the first look that saw it off
        self._fading: Dict[str, float] = {}  # uuid -> the first look that could not read its scheduler

    def forget(self, uuid: str) -> None:
        """Something about this domain changed."""
        self._parts.pop(uuid, None)

    def one(self, conn: libvirt.virConnect, vm: str) -> DomainSeen:
        """One domain, read afresh."""
        at = self._seconds()
        self.forget(vm)
        domain = lookup(conn, vm)
        if domain is None:
            return DomainSeen(vm, Seen.MISSING, "", at)
        try:
            looked = self._look(domain, domain.state(), at, lambda: bool(domain.hasManagedSaveImage()))
        except libvirt.libvirtError as error:
            if fault(error).kind is FaultKind.GONE:
                return DomainSeen(vm, Seen.MISSING, "", at)
            raise
        if isinstance(looked, ForeignSeen):
            return DomainSeen(vm, Seen.FOREIGN, looked.reason, at, name=looked.name)
        return looked

    def candidate(self, conn: libvirt.virConnect, vm: str) -> Candidate:
        """See ports.Hypervisor.  Faults: GONE."""
        domain = lookup(conn, vm)
        if domain is None:
            raise Fault(FaultKind.GONE, f"no domain {vm}")
        state, reason = domain.state()
        try:
            tag_of(domain, self._instance)
            why = ""
        except Stranger as stranger:
            why = stranger.why
        persistent = bool(domain.isPersistent())
        parts = parts_of(domain.XMLDesc(0))
        return Candidate(
            vm, domain.name(), seen_of(state, reason)[0], why, autostart=persistent and bool(domain.autostart()),
            saved=persistent and bool(domain.hasManagedSaveImage()), persistent=persistent, cores=parts.cores,
            memory_mib=parts.memory_max_mib, devices=parts.devices, disks=parts.disks,
        )  # fmt: skip

    def all(self, conn: libvirt.virConnect) -> HostSeen:
        """Every domain of this host."""
        at = self._seconds()
        ours: Dict[str, DomainSeen] = {}
        foreign: List[ForeignSeen] = []
        saved = self._saved(conn)
        present: Set[str] = set()
        for domain, state in self._states(conn):
            uuid = domain.UUIDString()
            present.add(uuid)
            looked = None if uuid == DOMAIN_0 else self._look_or_gone(domain, state, at, uuid in saved)
            if isinstance(looked, DomainSeen):
                ours[looked.vm] = looked
            elif looked is not None:
                foreign.append(looked)
        self._forget_all_but(present)
        return HostSeen(at, ours, tuple(foreign))

    def _saved(self, conn: libvirt.virConnect) -> Set[str]:
        domains = conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)
        return {domain.UUIDString() for domain in domains}

    def _states(self, conn: libvirt.virConnect) -> Iterator[Tuple[libvirt.virDomain, List[int]]]:
        if self._profile.bulk_statistics:
            for domain, stats in conn.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0):
                yield domain, [stats.get("state.state", 0), stats.get("state.reason", 0)]
            return
        for domain in conn.listAllDomains(0):
            try:
                yield domain, domain.state()
            except libvirt.libvirtError as error:
                if fault(error).kind is not FaultKind.GONE:
                    raise

    def _look_or_gone(
        self, domain: libvirt.virDomain, state: List[int], at: float, saved: bool
    ) -> Union[DomainSeen, ForeignSeen, None]:
        """None = it went away while we looked."""
        try:
            return self._look(domain, state, at, lambda: saved)
        except libvirt.libvirtError as error:
            if fault(error).kind is FaultKind.GONE:
                return None
            raise

    def _look(
        self, domain: libvirt.virDomain, state: List[int], at: float, saved: Callable[[], bool]
    ) -> Union[DomainSeen, ForeignSeen]:
        uuid, name = domain.UUIDString(), domain.name()
        seen, reason = seen_of(state[0], state[1])
        try:
            tag = tag_of(domain, self._instance, lambda xml: self._tag(uuid, xml))
        except Stranger as stranger:
            return ForeignSeen(uuid, name, seen, stranger.why)
        if seen is Seen.OFF and saved():
            seen = Seen.SAVED
        seen, reason = self._settled(domain, seen, reason, at)
        parts = self._known_parts(domain, uuid, tag.spec.limits.disk_io != DiskIo())
        told = parts.seen if self._profile.disk_serials else None
        kind = drivers.kind_of(self._profile, tag.spec.image.boot)
        found = DomainSeen(uuid, seen, reason, at, tag, name, disks=parts.disks, disks_seen=told, profile=kind,
                           off_at=self._off_at.get(uuid), cpu_by=self._profile.cpu_cap)
        number = domain.ID()
        return self._limited(domain, found, parts, number) if number != -1 and seen in LIVE else found

    def _limited(self, domain: libvirt.virDomain, found: DomainSeen, parts: Parts, number: int) -> DomainSeen:
        """With what is read back from a live domain."""
        cpu, weight = self._scheduled(domain)
        if self._fades(found, cpu is not None):
            return dataclasses.replace(found, seen=Seen.STOPPING, reason=SETTLING)
        return dataclasses.replace(
            found,
            cpu=cpu,
            weight=weight,
            memory_mib=parts.memory_mib,
            memory_max_mib=parts.memory_max_mib,
            disk_io=parts.disk_io if self._profile.disk_io else None,
            devices=parts.devices,
            number=number,
        )

    def _fades(self, found: DomainSeen, readable: bool) -> bool:
        """Whether it ends or reboots at this moment, where libvirt says "running" until it has; not for long."""
        if readable or found.seen is not Seen.RUNNING:
            self._fading.pop(found.vm, None)
            return False
        since = self._fading.setdefault(found.vm, found.at)
        return found.at - since < self._profile.off_settles_s

    def _settled(self, domain: libvirt.virDomain, seen: Seen, reason: str, at: float) -> Tuple[Seen, str]:
        """An end that may be the first half of a reboot is STOPPING until the driver's time for that has passed, and
        as long after as libvirt is at work on it.

        It counts from the first look that saw it off: the last that saw it alive may have been a minute before.  What
        an earlier run of the agent saw alive is known by libvirt's reason: what was never started has none.
        """
        uuid = domain.UUIDString()
        if seen is not Seen.OFF:
            self._off_at.pop(uuid, None)
            if seen in LIVE:
                self._alive.add(uuid)
            return seen, reason
        off_at = self._off_at.setdefault(uuid, at)
        may_come_back = uuid in self._alive or reason == "shutdown"
        settles = self._profile.off_settles_s
        if may_come_back and reason not in CERTAIN_ENDS and settles and (at - off_at < settles or coming_back(domain)):
            return Seen.STOPPING, SETTLING
        self._alive.discard(uuid)
        return seen, reason

    def _tag(self, uuid: str, xml: str) -> Tag:
        """Read only when it is another one.  Errors: ValueError."""
        known = self._tags.get(uuid)
        tag = known[1] if known is not None and known[0] == xml else read_tag(xml)
        self._tags[uuid] = (xml, tag)
        return tag

    def _known_parts(self, domain: libvirt.virDomain, uuid: str, may_change: bool) -> Parts:
        number = domain.ID()
        known = self._parts.get(uuid)
        if known is not None and known[0] == number and not may_change:
            return known[2]
        xml = domain.XMLDesc(0)
        parts = known[2] if known is not None and known[1] == xml else parts_of(xml)
        self._parts[uuid] = (number, xml, parts)
        return parts

    def _scheduled(self, domain: libvirt.virDomain) -> Tuple[Optional[CpuLimit], Optional[int]]:
        """Cap and weight read back.  None = it ended meanwhile, or this driver has none to read.

        While Xen's domain goes, for its end or a reboot, libvirt still says "running" and libxl's list has it no more.
        """
        try:
            if self._profile.cpu_cap == "quota":
                return held(domain.schedulerParametersFlags(libvirt.VIR_DOMAIN_AFFECT_LIVE), self._cgroup)
            if self._profile.cpu_cap == "credit":
                return held_by_credit(domain.schedulerParameters())
        except libvirt.libvirtError as error:
            gone = GONE_MEANWHILE.get(self._profile.cpu_cap, ())
            if error.get_error_code() not in gone or fault(error).kind is FaultKind.AWAY:
                raise
        return None, None

    def _forget_all_but(self, present: Set[str]) -> None:
        for uuid in set(self._parts).union(self._tags, self._alive, self._off_at, self._fading) - present:
            for known in (self._parts, self._tags, self._off_at, self._fading):
                known.pop(uuid, None)
            self._alive.discard(uuid)


def held(parameters: Mapping[str, int], cgroup: int) -> Tuple[CpuLimit, Optional[int]]:
    """Cap and weight of the whole guest, from a quota's scheduler parameters; cgroup: their version."""
    number = int(parameters.get("global_quota", -1))
    period = int(parameters.get("global_period", quota.PERIOD_US)) or quota.PERIOD_US
    cpu = CpuLimit(period, number if 0 < number < NO_QUOTA_US else -1)
    weight = parameters.get("cpu_shares")
    return cpu, None if weight is None else quota.from_shares(int(weight), cgroup)


def held_by_credit(parameters: Mapping[str, int]) -> Tuple[CpuLimit, Optional[int]]:
    """The same from the parameters of Xen's credit schedulers."""
    weight = parameters.get("weight")
    cpu = quota.from_credit_cap(int(parameters.get("cap", 0)))
    return cpu, None if weight is None else quota.from_credit_weight(int(weight))
