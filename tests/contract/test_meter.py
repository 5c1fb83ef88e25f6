"""One body for everything that implements ports.Meter: the fake, libvirt's test driver, and this host under real QEMU.

Of the test driver nothing is measured: what it tells is made up.
"""

from __future__ import annotations

import os
import signal

import pytest
from twisted.internet.defer import Deferred

from tests.support import bootsector, hypervisor, libvirtd
from tests.support.fake_meter import FakeMeter
from vmagent.core.actions import Do
from vmagent.core.samples import HostSample, Reading
from vmagent.host.meter import HostMeter
from vmagent.host.processes import ProcProcesses
from vmagent.lanes import Lanes
from vmagent.metering import TwoHalves

DEADLINE_S = 60.0


def real(rig, processes):
    kernel = HostMeter(processes, rig.loop.seconds)
    return TwoHalves(kernel, rig.port.statistics, Lanes("meter", 1, rig.loop).run)


@pytest.fixture(params=["fake", pytest.param("qemu", marks=libvirtd.needed)])
def rig(request):
    if request.param == "fake":
        rig = hypervisor.fake()
        rig.meter = FakeMeter(rig.port, rig.loop.seconds)
        rig.freeze = rig.thaw = lambda vm: rig.port.frozen.symmetric_difference_update({vm})
    else:
        processes = ProcProcesses()
        rig = hypervisor.qemu(request.getfixturevalue("qemu_uri"), processes.halted, bootsector.BUSY)
        rig.meter = real(rig, processes)
        rig.freeze = lambda vm: os.kill(processes.pids((vm,))[vm], signal.SIGSTOP)
        rig.thaw = lambda vm: os.kill(processes.pids((vm,))[vm], signal.SIGCONT)
    yield from hypervisor.begun(rig)


def fine(rig, *specs):
    return rig.result(rig.meter.fine([spec.vm for spec in specs]))


def coarse(rig, *specs):
    rig.result(rig.meter.coarse([spec.vm for spec in specs]))


def later(rig, spec, told, what):
    """The first sample of which `told` is true."""
    seen = []

    def look():
        seen[:] = [sample for sample in fine(rig, spec).values() if told(sample)]
        return seen

    rig.loop.until(look, DEADLINE_S, what)
    return seen[0]


def test_who_does_not_run_has_no_sample(rig):
    spec = rig.spec()
    assert fine(rig) == {} and fine(rig, spec) == {}
    rig.do(Do.DEFINE, spec)
    coarse(rig, spec)
    assert fine(rig, spec) == {}


def test_cpu_time_grows_while_it_runs_and_only_then(rig):
    spec = rig.spec()
    rig.begin(spec)
    before = fine(rig, spec)[spec.vm]
    assert before.vm == spec.vm and before.run and before.cpu_s is not None
    assert before.memory_mib is not None and before.memory_mib > 0
    rig.do(Do.RESUME, spec)
    after = later(rig, spec, lambda s: s.cpu_s > before.cpu_s + 0.005, "it used a processor")
    assert after.at > before.at and after.run == before.run
    rig.do(Do.DESTROY, spec)
    assert fine(rig, spec) == {}


def test_disks_are_told_by_coarse_alone_with_their_age(rig):
    spec = rig.spec()
    rig.begin(spec, Do.RESUME)
    first = later(rig, spec, lambda s: s.cpu_s > 0, "it runs")
    assert (first.disk, first.disk_at) == (None, None)

    def read(sample):
        coarse(rig, spec)
        return sample.disk is not None and sample.disk.read_bytes >= 512

    told = later(rig, spec, read, "the guest read its first sector")
    assert told.disk.read_ops >= 1 and told.disk.write_bytes == 0
    assert first.at <= told.disk_at <= told.at
    coarse(rig, spec)
    again = fine(rig, spec)[spec.vm]
    assert again.disk_at > told.disk_at and again.disk.read_bytes >= told.disk.read_bytes


def test_another_life_has_another_run_and_never_the_disks_of_the_former(rig):
    spec = rig.spec()
    rig.begin(spec, Do.RESUME)
    coarse(rig, spec)
    former = fine(rig, spec)[spec.vm]
    assert former.disk is not None
    rig.do(Do.DESTROY, spec)
    rig.do(Do.START_PAUSED, spec)
    sample = fine(rig, spec)[spec.vm]
    assert sample.run != former.run and sample.disk is None
    coarse(rig, spec)
    assert fine(rig, spec)[spec.vm].disk is not None


def test_who_is_frozen_keeps_what_it_had_and_takes_nobody_with_it(rig):
    frozen, other = rig.spec(), rig.spec()
    for spec in (frozen, other):
        rig.begin(spec, Do.RESUME)
    coarse(rig, frozen, other)
    before = fine(rig, frozen, other)
    rig.freeze(frozen.vm)
    try:
        coarse(rig, frozen, other)
        coarse(rig, frozen, other)
        after = fine(rig, frozen, other)
        assert after[other.vm].disk_at > before[other.vm].disk_at
        assert after[frozen.vm].disk_at == before[frozen.vm].disk_at
        assert after[frozen.vm].disk == before[frozen.vm].disk
        assert after[frozen.vm].at > before[frozen.vm].at, "what the kernel tells goes on"
    finally:
        rig.thaw(frozen.vm)

    def answers():
        coarse(rig, frozen)
        return fine(rig, frozen)[frozen.vm].disk_at > before[frozen.vm].disk_at

    rig.loop.until(answers, DEADLINE_S, "it is read again once it answers")


@libvirtd.needed
def test_a_monitor_that_is_silent_costs_one_deadline_and_makes_its_guest_stuck(qemu_uri):
    """Nobody looks at the state of processes here: the call itself has to find out."""
    processes = ProcProcesses()
    for rig in hypervisor.begun(hypervisor.qemu(qemu_uri, stuck_after_s=1.0)):
        rig.meter = real(rig, processes)
        frozen, other = rig.spec(), rig.spec()
        for spec in (frozen, other):
            rig.begin(spec, Do.RESUME)
        pid = processes.pids((frozen.vm,))[frozen.vm]
        os.kill(pid, signal.SIGSTOP)
        try:
            coarse(rig, frozen, other)
            both = fine(rig, frozen, other)
            assert both[frozen.vm].disk is None and both[other.vm].disk is not None
            assert rig.port.stuck() == {frozen.vm}
        finally:
            os.kill(pid, signal.SIGCONT)
        rig.loop.until(lambda stuck=rig.port.stuck: not stuck(), DEADLINE_S, "it answers again")


@libvirtd.needed
def test_a_reading_finds_a_qemu_that_does_not_run(qemu_uri):
    """Nobody asks libvirt or a monitor: the reading that everybody is fed with is enough."""
    processes = ProcProcesses()
    for rig in hypervisor.begun(hypervisor.qemu(qemu_uri, processes.halted, stuck_after_s=600.0)):
        rig.meter = real(rig, processes)
        frozen, other = rig.spec(), rig.spec()
        for spec in (frozen, other):
            rig.begin(spec, Do.RESUME)
            rig.see(spec)
        pid = processes.pids((frozen.vm,))[frozen.vm]
        os.kill(pid, signal.SIGSTOP)
        try:
            rig.loop.until(lambda vm=frozen.vm: processes.halted((vm,)), DEADLINE_S, "a stop takes a moment")
            samples = fine(rig, frozen, other)
            rig.result(Deferred.fromCoroutine(rig.port.take(Reading(0.0, samples, {}, HostSample(0.0)))))
            sick = {frozen.vm}
            rig.loop.until(lambda stuck=rig.port.stuck, sick=sick: stuck() == sick, DEADLINE_S, "it is stuck")
        finally:
            os.kill(pid, signal.SIGCONT)
        rig.loop.until(lambda stuck=rig.port.stuck: not stuck(), DEADLINE_S, "it answers again")


@libvirtd.needed
def test_who_hangs_delays_nobody(qemu_uri):
    """The others are read while the call on it is under way, again and again, and after its connection was replaced."""
    processes, told = ProcProcesses(), []
    for rig in hypervisor.begun(hypervisor.qemu(qemu_uri, stuck_after_s=8.0)):
        rig.meter = real(rig, processes)
        frozen, *others = (rig.spec() for _ in range(3))
        for spec in (frozen, *others):
            rig.begin(spec, Do.RESUME)
        coarse(rig, frozen, *others)
        pid = processes.pids((frozen.vm,))[frozen.vm]
        os.kill(pid, signal.SIGSTOP)
        try:
            rig.meter.coarse([frozen.vm]).addCallback(told.append)
            for _ in range(20):
                coarse(rig, *others)
            assert told == [], "twenty readings of the others took less than the deadline of one call"
            rig.loop.until(lambda: told, DEADLINE_S, "the deadline of the call that hangs")
            before = fine(rig, *others)
            coarse(rig, *others)
            after = fine(rig, *others)
            assert all(after[spec.vm].disk_at > before[spec.vm].disk_at for spec in others)
        finally:
            os.kill(pid, signal.SIGCONT)


def test_the_host_itself(rig):
    before = rig.meter.host()
    assert before.memory_free_mib > 0 and before.cpu_steal_s >= 0.0
    assert set(before.pressure) <= {"cpu", "memory", "io"}
    rig.loop.until(lambda: rig.meter.host().cpu_busy_s > before.cpu_busy_s, DEADLINE_S, "its processors were busy")
    assert rig.meter.host().at > before.at


def test_of_the_test_driver_nothing_is_made_up():
    for rig in hypervisor.begun(hypervisor.built_in()):
        spec = rig.spec()
        rig.begin(spec, Do.RESUME)
        rig.meter = real(rig, ProcProcesses())
        coarse(rig, spec)
        assert fine(rig, spec) == {}
