"""The rig of the hypervisor's contract on a Xen dom0: real PV, PVH and HVM guests through libvirt.

Kernel and initial RAM disk are those that the booted host's image has (bootedhost_image.GUEST).
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Dict

import libvirt

from tests.support import bootsector
from tests.support.bootedhost_image import GUEST
from tests.support.hypervisor import INSTANCE, Disks, Outside, Rig, Volumes, nobody_halted, settings
from tests.support.loop import RealLoop
from tests.support.waiting import until
from vmagent.core import quota
from vmagent.core.imagemodel import Boot, BootFile
from vmagent.core.model import CpuLimit, VmSpec
from vmagent.hypervisor.adapter import Libvirt
from vmagent.hypervisor.perform import Paths

URI = "xen:///system"
KERNEL, INITRD = f"{GUEST}/vmlinuz", f"{GUEST}/initrd"
CMDLINE = "console=hvc0 quiet panic=-1"
RESULT_S = 300.0  # a start takes ten seconds under emulation when the machine is ours alone
MEMORY_MIB = 128  # a whole Linux kernel unpacks itself in there


class XenDisks(Disks):
    """With the kernel that begins a guest without firmware."""

    def paths(self, spec: VmSpec) -> Paths:
        found = super().paths(spec)
        return found if spec.image.boot is None else dataclasses.replace(found, kernel=KERNEL, initrd=INITRD)


class XenOutside(Outside):
    """What an administrator does with virsh, where flags are refused."""

    def limit(self, vm: str, cpu: CpuLimit) -> None:
        self.schedule(vm, {"cap": quota.credit_cap(cpu)})

    def weigh(self, vm: str, weight: int) -> None:
        self.schedule(vm, {"weight": quota.credit_weight(weight)})

    def schedule(self, vm: str, parameters: Dict[str, int]) -> None:
        self.domain(vm).setSchedulerParameters(parameters)

    def save(self, vm: str) -> None:
        """A PV guest suspends itself, which its kernel can when it is up."""
        until(lambda: self._saved(vm), RESULT_S, "it is saved")

    def _saved(self, vm: str) -> bool:
        with contextlib.suppress(libvirt.libvirtError):
            super().save(vm)
            return True
        return False

    def forget(self, domain: libvirt.virDomain) -> None:
        domain.setAutostart(0)  # waits for a reboot under way
        self._end(domain)
        super().forget(domain)


class XenRig(Rig):
    """guest: "" = HVM | "pv" | "pvh"."""

    guest = ""

    def result(self, deferred: Any, seconds: float = RESULT_S) -> Any:
        return super().result(deferred, seconds)

    def spec(self, **kw: Any) -> VmSpec:
        spec = super().spec(**{"memory_mib": MEMORY_MIB, **kw})
        if not self.guest:
            return spec
        digest = "0" * 128  # nobody looks: the images port has its own contract
        boot = Boot(self.guest, BootFile("vmlinuz", digest), BootFile("initrd", digest), CMDLINE)
        spec = dataclasses.replace(spec, image=dataclasses.replace(spec.image, boot=boot))
        self._specs[-1] = spec
        return spec


def rig(kind: str) -> XenRig:
    """kind: a profile's name."""
    loop, volumes = RealLoop(), Volumes()
    disks = XenDisks(volumes, bootsector.BUSY)
    port = Libvirt(settings(URI, stuck_after_s=30.0), INSTANCE, disks.paths, loop, nobody_halted)
    made = XenRig(port, XenOutside(URI, "xen"), loop, kind, volumes, disks)
    made.guest = {"xen-pv": "pv", "xen-pvh": "pvh"}.get(kind, "")
    return made

