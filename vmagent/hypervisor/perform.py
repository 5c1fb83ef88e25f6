"""The effects on domains.  Each observes first and is idempotent: what is already so is success (FACTS F9).

Every function runs on a thread of the control link (destroy: rescue).  Nothing is done to a domain whose tag is not
ours; DEFINE refuses a uuid or a name that somebody else holds.  Faults: what libvirt's error means, REFUSED "foreign".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, Mapping, Optional

import libvirt

from vmagent.core import limits
from vmagent.core.actions import Action, Do
from vmagent.core.domainxml import NAMESPACE, PREFIX, domain_xml, tag_xml
from vmagent.core.drivers import Choice, Profile
from vmagent.core.identity import domain_name
from vmagent.core.model import CpuLimit, Seen, Tag, VmSpec
from vmagent.errors import Fault, FaultKind
from vmagent.hypervisor.observe import Stranger, lookup, seen_of, tag_of


@dataclass(frozen=True)
class Paths:
    """Where a VM's files are: absolute paths."""

    overlay: str
    seed: str
    golden: str


class Hands:
    """Performs actions on one kind of host.

    profile: how this driver wants things done, for domains that exist; choice: what new domains become, if any may be
    started; paths(spec): where the VM's files are.
    """

    def __init__(self, profile: Profile, choice: Choice, instance: str, paths: Callable[[VmSpec], Paths]) -> None:
        self._profile = profile
        self._choice = choice
        self._instance = instance
        self._paths = paths
        self._on_domain: Dict[Do, Callable[[libvirt.virDomain, Action], None]] = {
            Do.START_PAUSED: self._start_paused,
            Do.APPLY_CPU: self._apply_cpu,
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
        if domain is not None and not self._ours(domain):
            raise Fault(FaultKind.REFUSED, f"foreign: the domain {action.vm} is not ours")
        if action.do is Do.DEFINE:
            self._define(conn, domain, action)
        elif domain is not None:
            self._on_domain[action.do](domain, action)
        elif action.do not in (Do.DESTROY, Do.DISCARD_SAVED, Do.UNDEFINE):
            raise Fault(FaultKind.GONE, f"no domain {action.vm}")

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
        cpu = action.cpu or limits.cpu_limit(action.spec)
        try:
            xml = domain_xml(action.spec, _tag(action), profile, paths.overlay, paths.seed, paths.golden, cpu)
        except ValueError as error:
            raise Fault(FaultKind.REFUSED, f"no domain can be made of this: {error}") from None
        conn.defineXML(xml)

    def _startable(self, action: Action) -> Profile:
        profile = self._choice.profile
        if profile is None:
            raise Fault(FaultKind.REFUSED, f"no guest may be started here: {self._choice.why}")
        capped = action.cpu is not None and action.cpu.quota_us >= 0
        if capped and not profile.cpu_caps:
            raise Fault(FaultKind.REFUSED, f"not-supported-here: the {profile.name} driver cannot cap a guest's CPU")
        return profile

    def _start_paused(self, domain: libvirt.virDomain, action: Action) -> None:
        profile = self._startable(action)
        if domain.isActive():
            return
        if domain.autostart():
            domain.setAutostart(0)
        if profile.starts_paused:
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_FORCE_BOOT)
            if profile.cpu_cap == "quota" and limits.cpu_limit(action.spec).quota_us >= 0:
                self._set_quota(domain, action, libvirt.VIR_DOMAIN_AFFECT_LIVE)  # QEMU's own thread: see core/domainxml
        else:
            domain.create()
            domain.suspend()

    def _apply_cpu(self, domain: libvirt.virDomain, action: Action) -> None:
        if self._profile.cpu_cap == "credit":
            cpu = action.cpu or limits.cpu_limit(action.spec)
            domain.setSchedulerParameters({"cap": limits.credit_cap(action.spec, cpu)})
        else:
            self._set_quota(domain, action, _affected(domain))

    def _set_quota(self, domain: libvirt.virDomain, action: Action, affected: int) -> None:
        """One by one: the binding reads the parameters first, and only one of live and config can be read."""
        quota = _quota(action.cpu or limits.cpu_limit(action.spec))
        for part in (libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG):
            if part & affected:
                domain.setSchedulerParametersFlags(quota, part)

    def _resume(self, domain: libvirt.virDomain, action: Action) -> None:
        seen = _seen(domain)
        if seen not in (Seen.PAUSED, Seen.RUNNING):
            raise Fault(FaultKind.UNKNOWN, f"not paused any more: {seen.value}")
        self._write_tag(domain, action)
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
        domain.setMetadata(element, tag_xml(_tag(action)), PREFIX, NAMESPACE, _affected(domain))

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


def _tag(action: Action) -> Tag:
    if action.tag is None:
        raise Fault(FaultKind.REFUSED, f"{action.do.value} without a tag")
    return action.tag


def _seen(domain: libvirt.virDomain) -> Seen:
    state, reason = domain.state()
    return seen_of(state, reason)[0]


def _affected(domain: libvirt.virDomain) -> int:
    """Which of the live domain and its definition there are."""
    live = libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0
    return live | (libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else 0)


def _quota(cpu: CpuLimit) -> Mapping[str, int]:
    emulator = limits.emulator_limit(cpu)
    return {
        "vcpu_period": cpu.period_us,
        "vcpu_quota": cpu.quota_us,
        "emulator_period": emulator.period_us,
        "emulator_quota": emulator.quota_us,
    }


def _name_taken(conn: libvirt.virConnect, name: str) -> bool:
    try:
        conn.lookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return False
        raise
    return True
