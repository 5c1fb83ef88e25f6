"""One body for everything that implements ports.Cgroups: the fake, and this host's kernel under real QEMU."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.support import hypervisor, libvirtd
from tests.support.fake_cgroups import FakeCgroups
from vmagent.core import quota
from vmagent.core.actions import Do
from vmagent.core.model import CpuLimit
from vmagent.errors import Fault, FaultKind
from vmagent.host.cgroups import HostCgroups, place_of
from vmagent.host.processes import ProcProcesses, kernel_text
from vmagent.lanes import Lanes

CGROUPS = Path("/sys/fs/cgroup")


class Real:
    """The port over this host's kernel, and somebody who writes to its files."""

    def __init__(self, rig):
        self.port = HostCgroups(Lanes("systemctl", 1, rig.loop), ProcProcesses())

    def write(self, vm, cpu):
        version, levels = self.levels(vm)
        if version == 1:
            (CGROUPS / "cpu" / levels[-1] / "cpu.cfs_period_us").write_text(str(cpu.period_us))
            (CGROUPS / "cpu" / levels[-1] / "cpu.cfs_quota_us").write_text(str(cpu.quota_us))
        else:
            most = "max" if cpu.quota_us < 0 else cpu.quota_us
            (CGROUPS / levels[-1] / "cpu.max").write_text(f"{most} {cpu.period_us}")

    def levels(self, vm):
        place = place_of(kernel_text(f"/proc/{ProcProcesses().pids((vm,))[vm]}/cgroup"))
        return place.version, place.levels


class Fake:
    def __init__(self, rig):
        self.port = FakeCgroups(rig.port, hypervisor.cgroup_version())
        self.write = self.port.write


@pytest.fixture(params=["fake", pytest.param("qemu", marks=libvirtd.needed)])
def rig(request):
    real = request.param == "qemu"
    rig = hypervisor.qemu(request.getfixturevalue("qemu_uri")) if real else hypervisor.fake()
    yield from hypervisor.begun(rig)


@pytest.fixture
def cgroups(rig):
    return Fake(rig) if rig.disks is None else Real(rig)


def look(cgroups, spec):
    return cgroups.port.seen((spec.vm,)).get(spec.vm)


def test_who_does_not_run_has_none(rig, cgroups):
    spec = rig.spec()
    assert look(cgroups, spec) is None
    rig.do(Do.DEFINE, spec)
    assert look(cgroups, spec) is None
    assert cgroups.port.seen(()) == {}
    assert cgroups.port.overheads({spec.vm: 32}) == {}


@pytest.mark.parametrize("cap,cores,weight", [(1, 4, 100), (37, 2, 300), (250, 4, 10), (None, 1, 100)])
def test_the_kernel_has_cap_and_weight_before_anything_runs(rig, cgroups, cap, cores, weight):
    spec = rig.spec(cores=cores, cpu_cap_core_percent=cap, cpu_weight=weight)
    rig.begin(spec)
    seen = look(cgroups, spec)
    assert quota.same(quota.cpu_limit(spec), seen.cpu)
    assert (seen.weight, seen.version) == (weight, cgroups.port.version())
    rig.do(Do.DESTROY, spec)
    assert look(cgroups, spec) is None


def test_every_hand_is_seen_and_repaired(rig, cgroups):
    spec, other = rig.spec(), rig.spec(cpu_cap_core_percent=20)
    rig.begin(spec, Do.RESUME)
    rig.begin(other, Do.RESUME)
    for lift in (rig.outside.limit, cgroups.write):
        for drifted in (CpuLimit(100_000, 90_000), CpuLimit(20_000, 4_000), quota.UNLIMITED):
            lift(spec.vm, drifted)
            assert quota.same(drifted, look(cgroups, spec).cpu)
            assert quota.same(drifted, rig.see(spec).cpu), "libvirt reads the same file"
            rig.do(Do.APPLY_CPU, spec)
            assert quota.same(quota.cpu_limit(spec), look(cgroups, spec).cpu)
    both = cgroups.port.seen((spec.vm, other.vm))
    assert {vm: seen.cpu.quota_us for vm, seen in both.items()} == {spec.vm: 50_000, other.vm: 20_000}


def test_a_quota_on_a_single_thread_is_no_obstacle(rig, cgroups):
    spec = rig.spec(cores=2)
    rig.begin(spec, Do.RESUME)
    if rig.disks is not None:
        rig.outside.schedule(spec.vm, {"vcpu_quota": 40_000, "emulator_quota": 45_000})
    less = dataclasses.replace(spec, limits=dataclasses.replace(spec.limits, cpu_cap_core_percent=10))
    rig.do(Do.APPLY_CPU, less)
    assert quota.same(quota.cpu_limit(less), look(cgroups, less).cpu)


def test_what_qemu_takes_for_itself_is_learned(rig, cgroups):
    specs = [rig.spec(memory_mib=memory) for memory in (32, 64)]
    for spec in specs:
        rig.begin(spec)
    memory = {spec.vm: spec.memory_mib for spec in specs}
    for _ in specs:
        learned = cgroups.port.overheads(memory)
    assert learned.keys() == memory.keys()
    assert all(10 < mib < 150 for mib in learned.values()), learned
    rig.do(Do.DESTROY, specs[0])
    assert cgroups.port.overheads(memory).keys() == {specs[1].vm}


def test_systemd_is_told_of_a_guest_that_is_there(rig, cgroups):
    spec = rig.spec()
    with pytest.raises(Fault) as caught:
        rig.result(cgroups.port.perform(rig.action(Do.TELL_SYSTEMD, spec)))
    assert caught.value.kind is FaultKind.GONE
    rig.begin(spec)
    rig.result(cgroups.port.perform(rig.action(Do.TELL_SYSTEMD, spec)))
    assert quota.scope_holds(spec, look(cgroups, spec))
    with pytest.raises(Fault) as caught:
        rig.result(cgroups.port.perform(rig.action(Do.APPLY_CPU, spec)))
    assert caught.value.kind is FaultKind.REFUSED
