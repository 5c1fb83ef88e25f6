"""Guests that never rest stay under their cap, vCPUs and QEMU's own threads together, and are not taken for stuck.

What a guest used is the kernel's own account of each of its threads; time is the boot clock.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.support import bootsector, hypervisor, libvirtd
from tests.support.waiting import until
from vmagent.core.actions import Do
from vmagent.core.model import Seen
from vmagent.host.cgroups import HostCgroups, place_of
from vmagent.host.processes import ProcProcesses, kernel_text
from vmagent.lanes import Lanes

pytestmark = libvirtd.needed
MEASURED_S = 5.0
POINTS = 5.0  # of a core
CGROUPS = Path("/sys/fs/cgroup")
CORES = len(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def uri():
    with libvirtd.isolated() as uri:
        yield uri


@pytest.fixture
def rig(uri):
    rig = hypervisor.qemu(uri, boot=bootsector.BUSY, stuck_after_s=15.0)
    try:
        rig.start()
        yield rig
    finally:
        rig.end()


def pid_of(vm):
    return ProcProcesses().pids((vm,))[vm]


def used_s(pid):
    """CPU seconds of each of its threads, by name, to the nanosecond."""
    used = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        name = (thread / "comm").read_text().strip()
        used[f"{name} {thread.name}"] = int((thread / "schedstat").read_text().split()[0]) / 1e9
    return used


def whole_s(pid):
    """CPU seconds of the whole process, ended threads included (QEMU's workers come and go)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percent(pid):
    """Of a core, over MEASURED_S."""
    used, began = whole_s(pid), time.clock_gettime(time.CLOCK_BOOTTIME)
    until(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) - began >= MEASURED_S, 60, "it was measured")
    return 100 * (whole_s(pid) - used) / (time.clock_gettime(time.CLOCK_BOOTTIME) - began)


def periods(pid):
    """How many periods the kernel counted for its cgroup, and in how many of them it was out of quota."""
    place = place_of(kernel_text(f"/proc/{pid}/cgroup"))
    root = CGROUPS / "cpu" if place.version == 1 else CGROUPS
    stat = dict(line.split() for line in (root / place.levels[-1] / "cpu.stat").read_text().splitlines())
    return int(stat["nr_periods"]), int(stat["nr_throttled"])


def held_back(pid):
    """Percent of a core while it was out of quota in nearly every period; None = the host gave it less than that."""
    before, used = periods(pid), percent(pid)
    counted, throttled = (now - then for now, then in zip(periods(pid), before))
    return used if throttled >= 0.8 * counted else None


def assert_held(pid, cap):
    used = until(lambda: held_back(pid), 120, "its cap is what holds it back")
    assert abs(used - cap) <= POINTS


@pytest.mark.parametrize("cap,cores", [(10, 1), (25, 3), (40, 4)])
def test_a_busy_guest_stays_under_its_cap(rig, cap, cores):
    spec = rig.spec(cores=cores, cpu_cap_core_percent=cap)
    rig.begin(spec, Do.RESUME)
    pid = pid_of(spec.vm)
    until(lambda: sum("CPU" in name and used > 0.1 for name, used in used_s(pid).items()) == cores, 60,
          "every vCPU is busy")  # fmt: skip
    before = used_s(pid)
    assert_held(pid, cap)
    own = sum(used - before.get(name, 0) for name, used in used_s(pid).items() if "CPU" not in name)
    assert own > 0, "QEMU's own threads work for it too"


def test_without_its_cap_it_would_take_more(rig):
    """The measurement sees what the cap prevents."""
    spec = rig.spec(cores=2, cpu_cap_core_percent=None)
    rig.begin(spec, Do.RESUME)
    pid = pid_of(spec.vm)
    until(lambda: percent(pid) > 10 + POINTS, 120, "it takes more")
    assert periods(pid)[1] == 0


def test_a_cap_of_more_than_a_core_is_one_cap(rig):
    if CORES < 2:
        pytest.skip("needs two cores")
    spec = rig.spec(cores=4, cpu_cap_core_percent=110)
    rig.begin(spec, Do.RESUME)
    assert percent(pid_of(spec.vm)) <= 110 + POINTS


@pytest.mark.parametrize("cap,cores", [(1, 4), (5, 2)])
def test_a_guest_held_to_a_sliver_answers_and_is_not_stuck(rig, cap, cores):
    spec = rig.spec(cores=cores, cpu_cap_core_percent=cap)
    rig.begin(spec, Do.RESUME)
    assert_held(pid_of(spec.vm), cap)
    for _ in range(3):
        rig.do(Do.PAUSE, spec)
        rig.do(Do.RESUME, spec)
    assert rig.port.stuck() == frozenset()
    assert rig.see(spec).seen is Seen.RUNNING
    rig.do(Do.DESTROY, spec)


def test_a_cap_that_is_lowered_and_raised_takes_effect_on_the_running_guest(rig):
    spec = rig.spec(cores=2, cpu_cap_core_percent=60)
    rig.begin(spec, Do.RESUME)
    pid = pid_of(spec.vm)
    cgroups = HostCgroups(Lanes("systemctl", 1, rig.loop), ProcProcesses())
    for cap in (10, 30):
        rig.do(Do.APPLY_CPU, spec, cpu=hypervisor.percent(cap))
        assert cgroups.seen((spec.vm,))[spec.vm].cpu == hypervisor.percent(cap)
        assert_held(pid, cap)
