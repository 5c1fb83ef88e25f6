"""The effects on domains.  Each observes first and is idempotent: what is already so is success (FACTS F9).

Every function runs on a thread of the control link (destroy: rescue).  Nothing is done to a domain whose tag is not
ours, but that CLAIM makes one ours (adopted.py); DEFINE refuses a uuid or a name that somebody else holds.  Faults:
what libvirt's error means, REFUSED "foreign".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, Mapping, Optional, Tuple

import libvirt

from vmagent.core import drivers, quota
from vmagent.core.actions import Action, Do
from vmagent.core.diskxml import IOTUNE, Source
from vmagent.core.domainxml import NAMESPACE, PREFIX, domain_xml, parts_of, tag_xml
from vmagent.core.drivers import Choice, Profile
from vmagent.core.identity import domain_name
from vmagent.core.model import CpuLimit, Disk, DiskIo, Seen, Tag, VmSpec
from vmagent.core.snapshotmodel import JobDone, layer_file
from vmagent.core.snapshotxml import over_layers
from vmagent.errors import Fault, FaultKind
from vmagent.hypervisor import adopted, attached, layers
from vmagent.hypervisor.observe import NO_QUOTA_US, Stranger, lookup, seen_of, tag_of
from vmagent.hypervisor.pools import located

NORMAL_WEIGHT = 100


@dataclass(frozen=True)
class Paths:
    """Where a VM's files are: absolute paths."""

    overlay: str
    seed: str
    golden: str
    disks: Tuple[Source, ...] = ()  # of spec.disks, in order
    kernel: str = ""  # of the image's `boot`
    initrd: str = ""


class Hands:
    """Performs actions on one kind of host.

    profile: how this driver wants things done, for domains that exist; choice: what new domains become, if any may be
    started; paths(spec): where the VM's files are; cgroup: the version that has this host's cpu controller.
    """

    def __init__(
        self, profile: Profile, choice: Choice, instance: str, paths: Callable[[VmSpec], Paths], cgroup: int = 2
    ) -> None:
        self._profile = profile
        self._choice = choice
        self._instance = instance
        self._paths = paths
        self._cgroup = cgroup
        self._on_domain: Dict[Do, Callable[[libvirt.virDomain, Action], None]] = {
            Do.START_PAUSED: self._start_paused,
            Do.APPLY_CPU: self._apply_cpu,
            Do.APPLY_DISK_IO: self._apply_disk_io,
            Do.ATTACH_DISK: self._attach_disk,
            Do.DETACH_DISK: self._detach_disk,
            Do.RESUME: self._resume,
            Do.PAUSE: self._pause,
            Do.SHUTDOWN: self._shutdown,
            Do.REBOOT: self._reboot,
            Do.DESTROY: self._destroy,
            Do.DISCARD_SAVED: self._discard_saved,
            Do.UNDEFINE: self._undefine,
            Do.WRITE_TAG: self._write_tag,
        }

    def perform(self, conn: libvirt.virConnect, action: Action) -> None:
        """Do it.  A domain that is not there is success for the actions that end one, else Fault GONE."""
        if action.do in self._profile.unsupported:
            raise Fault(FaultKind.REFUSED, f"{action.do.value}: not supported by the {self._profile.name} driver")
        domain = lookup(conn, action.vm)
        if domain is not None and action.do in (Do.CLAIM, Do.UNTAG):
            adopted.perform(domain, action, self._instance, self._profile)
            return
        if domain is not None and not self._ours(domain):
            raise Fault(FaultKind.REFUSED, f"foreign: the domain {action.vm} is not ours")
        if action.do is Do.DEFINE:
            self._define(conn, domain, action)
        elif domain is not None:
            self._on_domain[action.do](domain, action)
        elif action.do not in (Do.DESTROY, Do.DISCARD_SAVED, Do.UNDEFINE, Do.UNTAG):
            raise Fault(FaultKind.GONE, f"no domain {action.vm}")

    def job(self, conn: libvirt.virConnect, action: Action, watch: layers.Watch) -> JobDone:
        """A long job; see layers.perform.  Runs on a thread of the jobs link."""
        if action.do in self._profile.unsupported:
            raise Fault(FaultKind.REFUSED, f"{action.do.value}: not supported by the {self._profile.name} driver")
        domain = lookup(conn, action.vm)
        if domain is None:
            raise Fault(FaultKind.GONE, f"no domain {action.vm}")
        if not self._ours(domain):
            raise Fault(FaultKind.REFUSED, f"foreign: the domain {action.vm} is not ours")
        return layers.perform(domain, action, self._profile, self._paths(action.spec).overlay, watch)

    def _ours(self, domain: libvirt.virDomain) -> bool:
        try:
            tag_of(domain, self._instance)
        except Stranger:
            return False
        return True

    # -- beginning

    def _define(self, conn: libvirt.virConnect, domain: Optional[libvirt.virDomain], action: Action) -> None:
        profile = self._startable(action)
        if domain is not None and domain.isActive():
            return
        if domain is None and _name_taken(conn, domain_name(action.vm)):
            raise Fault(FaultKind.REFUSED, f"foreign: another domain is named {domain_name(action.vm)}")
        paths = self._paths(action.spec)
        files = (paths.overlay, paths.seed, paths.golden)
        sources = [located(conn, source) for source in paths.disks]
        try:
            xml = domain_xml(action.spec, _tag(action), profile, *files, _cap(action), self._cgroup, sources,
                             paths.kernel, paths.initrd)
        except ValueError as error:
            raise Fault(FaultKind.REFUSED, f"no domain can be made of this: {error}") from None
        standing = [layer_file(paths.overlay, name) for name in action.layers]
        conn.defineXML(over_layers(xml, paths.overlay, standing))

    def _startable(self, action: Action) -> Profile:
        profile = drivers.kind(self._choice.kinds, action.spec.image.boot)
        if profile is None:
            raise Fault(FaultKind.REFUSED, f"no such guest may be started here: {self._choice.why}")
        wanted, cannot = action.spec.limits, f"not-supported-here: the {profile.name} driver cannot limit a guest's"
        if not profile.cpu_caps and (_cap(action).quota_us >= 0 or wanted.cpu_weight != NORMAL_WEIGHT):
            raise Fault(FaultKind.REFUSED, f"{cannot} CPU")
        if not profile.disk_io and wanted.disk_io != DiskIo():
            raise Fault(FaultKind.REFUSED, f"{cannot} disks")
        return profile

    def _start_paused(self, domain: libvirt.virDomain, action: Action) -> None:
        profile = self._startable(action)
        if domain.isActive():
            return
        if domain.autostart():
            domain.setAutostart(0)
        if not profile.starts_paused:
            domain.create()
            domain.suspend()
            return
        flags = libvirt.VIR_DOMAIN_START_PAUSED
        if profile.forced_boot:
            flags |= libvirt.VIR_DOMAIN_START_FORCE_BOOT
        else:
            _forget_saved(domain)
        domain.createWithFlags(flags)
        if profile.cpu_cap == "credit":  # no definition holds it
            self._apply_cpu(domain, action)

    # -- limits

    def _apply_cpu(self, domain: libvirt.virDomain, action: Action) -> None:
        cpu, weight = _cap(action), action.spec.limits.cpu_weight
        if action.spec.adopted:
            adopted.limit(domain, cpu, self._profile)
            return
        if self._profile.cpu_cap == "credit":
            domain.setSchedulerParameters({"cap": quota.credit_cap(cpu), "weight": quota.credit_weight(weight)})
            return
        wanted = {
            "cpu_shares": quota.shares(weight, self._cgroup),
            "global_period": cpu.period_us,
            "global_quota": cpu.quota_us,
        }
        for part in _affected(domain):
            single = _set_on_threads(domain.schedulerParametersFlags(part))
            domain.setSchedulerParametersFlags({**single, **wanted}, part)

    def _apply_disk_io(self, domain: libvirt.virDomain, action: Action) -> None:
        """On each disk, in QEMU and in the definition; and QEMU itself says that it has them."""
        limits = action.spec.limits.disk_io
        wanted = {name: getattr(limits, member) or 0 for member, name in IOTUNE.items()}
        quiet = {f"{name}{what}": 0 for name in (*IOTUNE.values(), "total_bytes_sec", "total_iops_sec")
                 for what in ("", "_max")}  # fmt: skip
        for disk in parts_of(domain.XMLDesc(0)).writable:
            for part in _affected(domain):
                domain.setBlockIoTune(disk, {**quiet, **wanted}, part)
            if domain.isActive():
                _read_back(domain, disk, wanted)

    # -- disks of a live guest

    def _attach_disk(self, domain: libvirt.virDomain, action: Action) -> None:
        disk = _disk(action)
        if attached.has(domain, disk, self._profile):
            return
        sources = dict(zip(action.spec.disks, self._paths(action.spec).disks))
        if disk not in sources:
            raise Fault(FaultKind.UNKNOWN, f"{disk.volume} is not wished for any more")
        source = located(domain.connect(), sources[disk])
        attached.attach(domain, disk, source, action.spec.limits.disk_io, self._profile)

    def _detach_disk(self, domain: libvirt.virDomain, action: Action) -> None:
        attached.detach(domain, _disk(action), self._profile)

    # -- going

    def _resume(self, domain: libvirt.virDomain, action: Action) -> None:
        seen = _seen(domain)
        if seen not in (Seen.PAUSED, Seen.RUNNING):
            raise Fault(FaultKind.UNKNOWN, f"not paused any more: {seen.value}")
        if seen is Seen.PAUSED:
            domain.resume()

    # -- meanwhile

    def _pause(self, domain: libvirt.virDomain, action: Action) -> None:
        seen = _seen(domain)
        if seen is Seen.RUNNING:
            domain.suspend()
        elif seen is not Seen.PAUSED:
            raise Fault(FaultKind.UNKNOWN, f"not running any more: {seen.value}")

    def _reboot(self, domain: libvirt.virDomain, action: Action) -> None:
        domain.reboot(libvirt.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN if self._profile.graceful_flags else 0)

    def _write_tag(self, domain: libvirt.virDomain, action: Action) -> None:
        element = libvirt.VIR_DOMAIN_METADATA_ELEMENT
        parts = sum(_affected(domain))
        domain.setMetadata(element, tag_xml(_tag(action)), PREFIX, NAMESPACE, parts)

    # -- the end

    def _shutdown(self, domain: libvirt.virDomain, action: Action) -> None:
        if not domain.isActive():
            return
        if self._profile.graceful_flags:
            domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
        else:
            domain.shutdown()

    def _destroy(self, domain: libvirt.virDomain, action: Action) -> None:
        try:
            if domain.isActive():
                domain.destroy()
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
                raise  # those two: it ended by itself meanwhile

    def _discard_saved(self, domain: libvirt.virDomain, action: Action) -> None:
        if domain.hasManagedSaveImage():
            domain.managedSaveRemove()

    def _undefine(self, domain: libvirt.virDomain, action: Action) -> None:
        """Where libvirt makes a domain anew for a reboot, its undefine does not wait for that, and what it made would
        run on as nobody's; setting autostart does wait.
        """
        if self._profile.off_settles_s:
            domain.setAutostart(0)
        if domain.isActive():
            raise Fault(FaultKind.BUSY, "it is active: undefined now it would stay, transient")
        flags = 0
        for name in self._profile.undefine_flags:
            flags |= getattr(libvirt, f"VIR_DOMAIN_UNDEFINE_{name}")
        if flags:
            domain.undefineFlags(flags)
        else:
            self._discard_saved(domain, action)
            domain.undefine()


def _forget_saved(domain: libvirt.virDomain) -> None:
    """Also what a save that failed left behind, of which libvirt does not tell: the start would go on from that."""
    try:
        domain.managedSaveRemove()
    except libvirt.libvirtError:
        if domain.hasManagedSaveImage():
            raise


def _disk(action: Action) -> Disk:
    if action.disk is None:
        raise Fault(FaultKind.REFUSED, f"{action.do.value} without a disk")
    return action.disk


def _tag(action: Action) -> Tag:
    if action.tag is None:
        raise Fault(FaultKind.REFUSED, f"{action.do.value} without a tag")
    return action.tag


def _seen(domain: libvirt.virDomain) -> Seen:
    state, reason = domain.state()
    return seen_of(state, reason)[0]


def _affected(domain: libvirt.virDomain) -> Tuple[int, ...]:
    """Which of the live domain and its definition there are.  Where parameters are set, one by one: the binding reads
    them first, and only one of the two can be read.
    """
    live = (libvirt.VIR_DOMAIN_AFFECT_LIVE,) if domain.isActive() else ()
    return live + ((libvirt.VIR_DOMAIN_AFFECT_CONFIG,) if domain.isPersistent() else ())


def _cap(action: Action) -> CpuLimit:
    return action.cpu or quota.cpu_limit(action.spec)


def _set_on_threads(parameters: Mapping[str, int]) -> Dict[str, int]:
    """What lifts the quotas that somebody gave to single threads of the guest.

    In cgroup v1 the guest cannot be given less than a part of it has.
    """
    names = ("vcpu_quota", "emulator_quota")
    return {name: -1 for name in names if 0 < parameters.get(name, -1) < NO_QUOTA_US}


def _read_back(domain: libvirt.virDomain, disk: str, wanted: Mapping[str, int]) -> None:
    """Faults: REFUSED when QEMU has something else."""
    said = domain.blockIoTune(disk, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    found = {name: said.get(name, 0) for name in wanted}
    bursts = {name: said[f"{name}_max"] for name in wanted if said.get(f"{name}_max", 0) > wanted[name]}
    if found != wanted or bursts:
        raise Fault(FaultKind.REFUSED, f"QEMU holds {found} {bursts or ''} on {disk}, not {dict(wanted)}")


def _name_taken(conn: libvirt.virConnect, name: str) -> bool:
    try:
        conn.lookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return False
        raise
    return True
