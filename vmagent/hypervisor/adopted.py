"""Domains that others made (docs/design/0009): our tag goes in and out, a cap is held in the live guest alone.

Rules: nothing else of such a domain is ever changed.  Its definition keeps the scheduler's parameters that its maker
gave it, so they are what the live guest has again when the tag goes.  Each function is idempotent.
"""

from __future__ import annotations

import libvirt

from vmagent.core import quota
from vmagent.core.actions import Action, Do
from vmagent.core.domainxml import NAMESPACE, PREFIX, tag_xml
from vmagent.core.drivers import Profile
from vmagent.core.model import CpuLimit
from vmagent.errors import Fault, FaultKind
from vmagent.hypervisor.observe import NO_QUOTA_US, Stranger, tag_of

UNTAGGED = "no-tag"


def perform(domain: libvirt.virDomain, action: Action, instance: str, profile: Profile) -> None:
    """CLAIM, UNTAG.  Faults: REFUSED (another tag is in it, it does not run, autostart)."""
    try:
        tag_of(domain, instance)
        whose = ""
    except Stranger as stranger:
        whose = stranger.why
    if action.do is Do.CLAIM:
        _claim(domain, action, whose)
    elif whose == "":
        _untag(domain, action, profile)


def _claim(domain: libvirt.virDomain, action: Action, whose: str) -> None:
    if action.tag is None:
        raise Fault(FaultKind.REFUSED, "claim without a tag")
    if whose not in ("", UNTAGGED):
        raise Fault(FaultKind.REFUSED, f"foreign: the tag in {action.vm} is not ours ({whose})")
    if not domain.isActive():
        raise Fault(FaultKind.REFUSED, f"{action.vm} does not run any more")
    if domain.isPersistent() and domain.autostart():
        raise Fault(FaultKind.REFUSED, f"libvirt starts {action.vm} at every boot")
    _set_metadata(domain, tag_xml(action.tag))


def _untag(domain: libvirt.virDomain, action: Action, profile: Profile) -> None:
    if domain.isActive() and quota.caps(action.spec):
        _release(domain, profile)
    _set_metadata(domain, None)


def _set_metadata(domain: libvirt.virDomain, text: object) -> None:
    """In the live domain and in its definition, as far as there are both."""
    live = libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0
    config = libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else 0
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, PREFIX, NAMESPACE, live | config)


# -- the cap


def limit(domain: libvirt.virDomain, cpu: CpuLimit, profile: Profile) -> None:
    """The cap of a live guest; neither its weight nor its definition is touched."""
    if profile.cpu_cap == "credit":
        domain.setSchedulerParameters({"cap": quota.credit_cap(cpu)})
        return
    wanted = {"global_period": cpu.period_us, "global_quota": cpu.quota_us}
    domain.setSchedulerParametersFlags(wanted, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def _release(domain: libvirt.virDomain, profile: Profile) -> None:
    """As its definition says; without one, no cap."""
    before = quota.UNLIMITED
    if profile.cpu_cap == "quota" and domain.isPersistent():
        said = domain.schedulerParametersFlags(libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        number = int(said.get("global_quota", -1))
        period = int(said.get("global_period", quota.PERIOD_US)) or quota.PERIOD_US
        before = CpuLimit(period, number if 0 < number < NO_QUOTA_US else -1)
    limit(domain, before, profile)
