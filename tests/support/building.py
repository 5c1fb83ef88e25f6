"""Builders of the system's values, complete and valid, so that a test names only what it is about.

`record(desired=Desired.STOP, journal={"may_have_run": True}, spec={"cores": 2})`: mappings refine the default.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Mapping, Optional

from vmagent.core import identity, proof, quota
from vmagent.core.model import (
    CgroupSeen,
    Desired,
    DomainSeen,
    ImageRef,
    Interface,
    Journal,
    Limits,
    NetworkSeen,
    NicLimits,
    Now,
    Observed,
    Owner,
    Seen,
    Tag,
    VmRecord,
    VmSpec,
)
from vmagent.core.policy import Authority, CatalogueImage, Flavour, Maxima, NetworkType, Policy
from vmagent.core.snapshotmodel import Snapshot, SnapshotState

COMMAND = "6f1c2f9e-6d5b-4f0e-9d51-0d6a7a1b2c3d"
BOOT = "0b6f4c1e-1111-4222-8333-444455556666"
OTHER_BOOT = "0b6f4c1e-9999-4222-8333-444455556666"
WALL = "2026-11-20T12:00:00.000Z"
SHA512 = "ab" * 64
SIGNER = "CN=controller,O=Example Site,C=NL"
USER = "/DC=org/DC=example/CN=A User"
INSTANCE = "va"
BRIDGE = "vmbr0"


def now(at: float = 1000.0, wall: str = WALL, boot_id: str = BOOT) -> Now:
    return Now(at, wall, boot_id)


def interface(vm: str, index: int = 0, **kw: Any) -> Interface:
    members: Dict[str, Any] = {
        "network": "public",
        "bridge": BRIDGE,
        "device": identity.device_name(INSTANCE, vm, index),
        "mac": identity.mac_address(vm, index),
        "addresses": (f"192.0.2.{10 + index}/24",),
        "gateways": ("192.0.2.1",),
        "dns": ("192.0.2.53",),
    }
    members.update(kw)
    return Interface(**members)


def spec(**kw: Any) -> VmSpec:
    """One core, 512 MiB, half a core's cap, one interface on "public"; `command` and `member` give the id unless `vm`
    is named; `cpu_cap_core_percent` and other members of Limits refine the default limits.
    """
    command = kw.get("command", COMMAND)
    member = kw.get("member", 0)
    vm = kw.get("vm", identity.vm_id(command, member))
    members: Dict[str, Any] = {
        "vm": vm,
        "name": "worker",
        "cores": 1,
        "memory_mib": 512,
        "disk_gib": 2,
        "image": ImageRef("tiny", SHA512, "qcow2"),
        "interfaces": (interface(vm),),
        "owner": Owner(USER, "/vo.example/Role=NULL"),
        "controller": SIGNER,
        "command": command,
        "member": member,
        "flavour": "small",
        "tags": ("batch-1",),
    }
    limited = {name: kw.pop(name) for name in [f.name for f in dataclasses.fields(Limits)] if name in kw}
    members.update(kw)
    nics = tuple(NicLimits() for _ in members["interfaces"])
    members.setdefault("limits", Limits(**{"cpu_cap_core_percent": 50, "nics": nics, **limited}))
    return VmSpec(**members)


def journal(**kw: Any) -> Journal:
    return Journal(**kw)


def record(**kw: Any) -> VmRecord:
    """A VM wished for at boot time 1000; `spec` and `journal` may be mappings that refine the default."""
    members: Dict[str, Any] = {
        "spec": spec(),
        "generation": 1,
        "desired": Desired.RUN,
        "lifetime_s": 3600,
        "accepted_at": 1000.0,
        "accepted_boot": BOOT,
        "accepted_wall": WALL,
        "since_wall": WALL,
        "last_commands": ((SIGNER, WALL),),
    }
    members.update(kw)
    if isinstance(members["spec"], Mapping):
        members["spec"] = spec(**members["spec"])
    if isinstance(members.get("journal"), Mapping):
        members["journal"] = Journal(**members["journal"])
    return VmRecord(**members)


def snapshot(name: str = "s", state: SnapshotState = SnapshotState.WANTED, **kw: Any) -> Snapshot:
    """Asked for at boot time 1000, to be kept an hour."""
    members: Dict[str, Any] = {
        "command": identity.vm_id(COMMAND, sum(name.encode())), "kind": "disk", "quiesce": "no", "keep_s": 3600,
        "gib": 2, "asked_at": 1000.0, "asked_boot": BOOT, "asked_wall": WALL,
    }  # fmt: skip
    members.update(kw)
    return Snapshot(name, state=state, **members)


def ran(at: float = 1000.0, **kw: Any) -> Journal:
    """The journal of a VM whose first resume was at `at`."""
    members: Dict[str, Any] = {
        "attempt_boot": BOOT,
        "may_have_run": True,
        "started_at": at,
        "started_boot": BOOT,
        "started_wall": WALL,
    }
    members.update(kw)
    return Journal(**members)


def tag(of: Optional[VmRecord] = None, **kw: Any) -> Tag:
    of = of or record()
    members: Dict[str, Any] = {
        "instance": INSTANCE,
        "spec": of.spec,
        "generation": of.generation,
        "lifetime_s": of.lifetime_s,
        "accepted_wall": of.accepted_wall,
        "boot_id": of.journal.started_boot,
        "started_at": of.journal.started_at,
        "started_wall": of.journal.started_wall,
    }
    members.update(kw)
    return Tag(**members)


LIVE = (Seen.RUNNING, Seen.PAUSED, Seen.STOPPING)


def domain(seen: Seen = Seen.RUNNING, of: Optional[VmSpec] = None, **kw: Any) -> DomainSeen:
    """libvirt's view; a live domain has its limits, devices and disks, as a proven start leaves it."""
    of = of or spec()
    members: Dict[str, Any] = {"vm": of.vm, "seen": seen, "at": 1000.0, "name": identity.domain_name(of.vm)}
    if seen not in (Seen.MISSING, Seen.UNKNOWN):
        members["disks"] = ("vda", "sda")
    if seen in LIVE:
        members.update(cpu=quota.cpu_limit(of), weight=of.limits.cpu_weight, cpu_by="quota")
        members.update(memory_mib=of.memory_mib, memory_max_mib=of.memory_mib, disk_io=of.limits.disk_io)
        members["devices"] = tuple(i.device for i in of.interfaces)
    members.update(kw)
    return DomainSeen(**members)


def proven_network(of: VmSpec, at: float = 1000.0) -> NetworkSeen:
    return NetworkSeen(proof.network_digest(of), at)


def observed(seen: Seen = Seen.RUNNING, of: Optional[VmSpec] = None, **kw: Any) -> Observed:
    """Members of Observed by name; anything else refines the domain, such as `reason="ioerror"`."""
    own = {f.name for f in dataclasses.fields(Observed)} - {"domain"}
    members: Dict[str, Any] = {k: v for k, v in kw.items() if k in own}
    if "domain" not in kw:
        members["domain"] = domain(seen, of, **{k: v for k, v in kw.items() if k not in own})
    else:
        members["domain"] = kw["domain"]
    members.setdefault("missing_twice", seen is Seen.MISSING)
    if seen in LIVE:
        of = of or spec()
        members.setdefault("network", proven_network(of))
        members.setdefault("cgroup", CgroupSeen(2, quota.cpu_limit(of)))
    return Observed(**members)


def maxima(**kw: Any) -> Maxima:
    members: Dict[str, Any] = {"cores": 8, "memory_mib": 16384, "disk_gib": 100, "lifetime_s": 7 * 86400, "count": 50,
                               "context_bytes": 65536}
    members.update(kw)
    return Maxima(**members)


def network(name: str = "public", **kw: Any) -> NetworkType:
    members: Dict[str, Any] = {
        "name": name,
        "bridge": BRIDGE,
        "addressing": "host-pool",
        "subnets": ("192.0.2.0/24", "2001:db8::/64"),
        "pools": ("192.0.2.100-192.0.2.150", "2001:db8::100-2001:db8::150"),
        "gateways": ("192.0.2.1", "2001:db8::1"),
        "dns": ("192.0.2.53",),
    }
    members.update(kw)
    return NetworkType(**members)


def policy(**kw: Any) -> Policy:
    """A small site: one network, one flavour, one image, one signer who may do everything to its own VMs."""
    members: Dict[str, Any] = {
        "site": "site.example.org",
        "host": "wn017.site.example.org",
        "instance": INSTANCE,
        "networks": {"public": network()},
        "flavours": {"small": Flavour(1, 512, 2, 50)},
        "maxima": maxima(),
        "images": {"tiny": CatalogueImage("tiny", "tiny.qcow2", "qcow2", SHA512)},
        "authority": (Authority(SIGNER, ("*",)),),
        "reply_prefixes": ("/queue/vmagent.site.example.org.replies",),
        "default_reply": "/queue/vmagent.site.example.org.replies",
    }
    members.update(kw)
    return Policy(**members)
