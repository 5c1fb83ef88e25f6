"""One body for everything that implements ports.Hypervisor: the fake, libvirt's test driver, real QEMU, and Xen."""

from __future__ import annotations

import dataclasses
import uuid

import pytest

from tests.support import building, hypervisor
from vmagent.core import quota
from vmagent.core.actions import TABLE, Do
from vmagent.core.identity import device_name, domain_name
from vmagent.core.model import CpuLimit, DiskIo, Seen
from vmagent.errors import Fault, FaultKind

BRIDGE = "vmactbr0"
LIMITS = (Do.APPLY_CPU, Do.APPLY_DISK_IO)
REFUSED_OTHERWISE = (*LIMITS, Do.UNTAG)  # without a tag there is none to take away: test_adoption.py
SLOW = DiskIo(4_000_000, 2_000_000, 400, 200)
FULL_SPEED = DiskIo()


@pytest.fixture
def bridge(request, rig):
    """A bridge where the port needs a real one."""
    if rig.disks is None:
        yield BRIDGE
    else:
        yield from hypervisor.one_bridge(BRIDGE)


def refused(rig, do, spec, **kw):
    with pytest.raises(Fault) as caught:
        rig.do(do, spec, **kw)
    return caught.value.kind


def assert_limited(rig, spec, seen):
    """Everything that the driver can limit, read back from the live domain."""
    assert (seen.memory_mib, seen.memory_max_mib) == (spec.memory_mib, spec.memory_mib)
    wanted = (quota.cpu_limit(spec), spec.limits.cpu_weight) if rig.profile.cpu_caps else (None, None)
    assert (seen.cpu, seen.weight, seen.cpu_by) == (*wanted, rig.profile.cpu_cap)
    assert seen.disk_io == (spec.limits.disk_io if rig.profile.disk_io else None)


def test_it_connects_says_so_and_asks_to_look_at_everything(rig):
    assert rig.connections == [True]
    assert rig.hints[0] is None
    info = rig.port.info()
    assert info.connected and info.cores > 0 and info.memory_mib > 0 and info.startable
    assert info.cpu_caps is rig.profile.cpu_caps
    assert info.disk_io is rig.profile.disk_io


def test_before_it_connects_nothing_is_claimed():
    rig = hypervisor.built_in()
    try:
        for asked in (rig.port.observe_all(), rig.port.observe(building.spec().vm)):
            with pytest.raises(Fault) as caught:
                rig.result(asked)
            assert caught.value.kind is FaultKind.AWAY
        assert refused(rig, Do.DESTROY, building.spec()) is FaultKind.AWAY
        assert not rig.port.info().connected
    finally:
        rig.end()


def test_what_is_not_there_is_missing(rig):
    spec = rig.spec()
    assert rig.see(spec).seen is Seen.MISSING
    assert spec.vm not in rig.result(rig.port.observe_all()).domains


def test_one_life(rig):
    spec = rig.spec()
    rig.do(Do.DEFINE, spec)
    defined = rig.see(spec)
    assert (defined.seen, defined.tag, defined.name) == (Seen.OFF, rig.tag(spec), domain_name(spec.vm))
    assert (defined.disks, defined.cpu_by) == (rig.profile.disk_names, rig.profile.cpu_cap)
    assert (defined.cpu, defined.weight, defined.memory_mib, defined.memory_max_mib, defined.disk_io) == (None,) * 5

    rig.do(Do.START_PAUSED, spec)
    paused = rig.see(spec)
    assert (paused.seen, paused.reason) == (Seen.PAUSED, "user")
    assert_limited(rig, spec, paused)

    rig.do(Do.RESUME, spec)
    ran = rig.tag(spec, boot_id="b", started_at=12.5)
    rig.do(Do.WRITE_TAG, spec, tag=ran)
    running = rig.see(spec)
    assert (running.seen, running.tag) == (Seen.RUNNING, ran)
    assert_limited(rig, spec, running)

    rig.do(Do.PAUSE, spec)
    assert rig.see(spec).seen is Seen.PAUSED
    rig.do(Do.DESTROY, spec)
    off = rig.see(spec)
    assert (off.seen, off.reason, off.cpu) == (Seen.OFF, "destroyed", None)
    rig.do(Do.UNDEFINE, spec)
    assert rig.see(spec).seen is Seen.MISSING


def test_every_action_twice_is_as_once(rig):
    spec = rig.spec()
    after = (
        (Do.DEFINE, Seen.OFF),
        (Do.START_PAUSED, Seen.PAUSED),
        (Do.PAUSE, Seen.PAUSED),
        (Do.RESUME, Seen.RUNNING),
        (Do.WRITE_TAG, Seen.RUNNING),
        (Do.DESTROY, Seen.OFF),
        (Do.DISCARD_SAVED, Seen.OFF),
        (Do.UNDEFINE, Seen.MISSING),
    )
    for do, seen in after:
        for _ in range(2):
            rig.do(do, spec)
            assert rig.see(spec).seen is seen, do


def test_define_does_not_touch_a_domain_that_is_active(rig):
    spec = rig.spec()
    rig.begin(spec, Do.RESUME)
    rig.do(Do.DEFINE, spec, tag=rig.tag(spec, generation=9))
    seen = rig.see(spec)
    assert (seen.seen, seen.tag.generation) == (Seen.RUNNING, 1)


def test_actions_on_nothing(rig):
    spec = rig.spec()
    for do in (Do.DESTROY, Do.DISCARD_SAVED, Do.UNDEFINE):
        rig.do(do, spec)
    for do in (Do.START_PAUSED, Do.RESUME, Do.PAUSE, Do.SHUTDOWN, Do.WRITE_TAG):
        assert refused(rig, do, spec) is FaultKind.GONE, do


def test_resume_and_pause_of_a_domain_that_is_off_change_nothing(rig):
    spec = rig.spec()
    rig.do(Do.DEFINE, spec)
    for do in (Do.RESUME, Do.PAUSE):
        assert refused(rig, do, spec) is FaultKind.UNKNOWN
    assert rig.see(spec).seen is Seen.OFF


def test_an_active_domain_is_not_undefined(rig):
    spec = rig.spec()
    rig.begin(spec)
    assert refused(rig, Do.UNDEFINE, spec) is FaultKind.BUSY
    assert rig.see(spec).seen is Seen.PAUSED


def test_the_whole_look_says_what_each_look_says(rig):
    off, paused, running = rig.spec(), rig.spec(), rig.spec()
    rig.do(Do.DEFINE, off)
    rig.begin(paused)
    rig.begin(running, Do.RESUME)
    for _ in range(2):  # the second comes from what is remembered
        domains = rig.result(rig.port.observe_all()).domains
        for spec in (off, paused, running):
            one = dataclasses.replace(rig.see(spec), at=0.0)
            assert dataclasses.replace(domains[spec.vm], at=0.0) == one


def test_strangers_are_reported_and_not_ours(rig):
    ours, other = rig.spec(), rig.spec()
    plain, copied = str(uuid.uuid4()), str(uuid.uuid4())
    rig.do(Do.DEFINE, ours)
    rig.outside.foreign(plain, f"plain-{plain[:8]}")
    rig.outside.foreign(copied, f"clone-{copied[:8]}", rig.tag(ours))
    rig.outside.foreign(other.vm, f"other-{other.vm[:8]}", rig.tag(other, instance="zz"))
    host = rig.result(rig.port.observe_all())
    whys = {stranger.uuid: stranger.reason for stranger in host.foreign}
    assert whys[plain] == "no-tag"
    assert whys[copied] == "uuid-mismatch"
    assert whys[other.vm] == "other-instance"
    assert ours.vm in host.domains and other.vm not in host.domains
    seen = rig.see(other)
    assert (seen.seen, seen.reason, seen.tag) == (Seen.FOREIGN, "other-instance", None)


@pytest.mark.parametrize("do", [do for do in Do if TABLE[do].port == "hypervisor" and do not in REFUSED_OTHERWISE])
def test_a_strangers_domain_is_never_touched(rig, do):
    spec = rig.spec()
    rig.outside.foreign(spec.vm, f"theirs-{spec.vm[:8]}")
    before = rig.see(spec)
    assert refused(rig, do, spec) is FaultKind.REFUSED
    assert dataclasses.replace(rig.see(spec), at=before.at) == before


@pytest.mark.parametrize("do", LIMITS)
def test_a_strangers_limits_are_never_touched(rig, do):
    spec = rig.spec()
    rig.outside.foreign(spec.vm, f"theirs-{spec.vm[:8]}")
    assert refused(rig, do, spec) is FaultKind.REFUSED


def test_a_name_that_somebody_else_holds_is_not_taken(rig):
    spec = rig.spec()
    rig.outside.foreign(str(uuid.uuid4()), domain_name(spec.vm))
    assert refused(rig, Do.DEFINE, spec) is FaultKind.REFUSED
    assert rig.see(spec).seen is Seen.MISSING


def test_what_others_do_is_hinted_and_seen(rig):
    spec = rig.spec()
    rig.begin(spec, Do.RESUME)
    for act, seen in ((rig.outside.suspend, Seen.PAUSED), (rig.outside.resume, Seen.RUNNING),
                      (rig.outside.destroy, Seen.OFF)):  # fmt: skip
        rig.loop.turn()
        rig.hints.clear()
        act(spec.vm)
        rig.loop.until(lambda: spec.vm in rig.hints, 20, f"a hint of {seen}")
        assert rig.see(spec).seen is seen
    rig.hints.clear()
    rig.outside.undefine(spec.vm)
    rig.loop.until(lambda: spec.vm in rig.hints, 20, "a hint of the end")
    assert rig.see(spec).seen is Seen.MISSING


def test_a_saved_run_is_seen_and_discarded(rig):
    spec = rig.spec()
    rig.begin(spec, Do.RESUME)
    rig.outside.save(spec.vm)
    assert rig.see(spec).seen is Seen.SAVED
    assert rig.result(rig.port.observe_all()).domains[spec.vm].seen is Seen.SAVED
    rig.do(Do.DISCARD_SAVED, spec)
    assert rig.see(spec).seen is Seen.OFF


def limited(rig, spec, **kw):
    """The same VM with other limits."""
    return dataclasses.replace(spec, limits=dataclasses.replace(spec.limits, **kw))


def both_looks(rig, spec):
    """One look, after the whole look said the same."""
    seen = dataclasses.replace(rig.see(spec), at=0.0)
    assert dataclasses.replace(rig.result(rig.port.observe_all()).domains[spec.vm], at=0.0) == seen
    return seen


@pytest.mark.parametrize("cap,cores", [(1, 4), (37, 2), (250, 4), (100, 1), (None, 2)])
def test_cap_and_weight_are_there_before_anything_runs(rig, cap, cores):
    if not rig.profile.cpu_caps:
        return
    spec = rig.spec(cores=cores, cpu_cap_core_percent=cap, cpu_weight=37)
    rig.begin(spec)
    seen = both_looks(rig, spec)
    assert seen.seen is Seen.PAUSED
    assert_limited(rig, spec, seen)
    assert seen.cpu == (CpuLimit(100_000, 1000 * cap) if cap else quota.UNLIMITED)


def test_drift_of_a_limit_is_seen_and_repaired(rig):
    spec = rig.spec()
    rig.begin(spec, Do.RESUME)
    if not rig.profile.cpu_caps:
        assert refused(rig, Do.APPLY_CPU, spec, cpu=CpuLimit(100_000, 50_000)) is FaultKind.REFUSED
        assert refused(rig, Do.APPLY_DISK_IO, spec) is FaultKind.REFUSED
        return
    for drifted in (CpuLimit(100_000, 70_000), CpuLimit(50_000, 5_000), quota.UNLIMITED):
        rig.outside.limit(spec.vm, drifted)
        assert quota.same(drifted, both_looks(rig, spec).cpu)  # a cap of Xen's has no period
        rig.do(Do.APPLY_CPU, spec)
        assert_limited(rig, spec, both_looks(rig, spec))
    rig.outside.weigh(spec.vm, 1000)
    assert both_looks(rig, spec).weight == 1000
    rig.do(Do.APPLY_CPU, spec)
    assert_limited(rig, spec, both_looks(rig, spec))


def test_cpu_limits_change_live(rig):
    spec = rig.spec()
    rig.begin(spec, Do.RESUME)
    if not rig.profile.cpu_caps:
        return
    for cap, weight in ((100, 300), (2, 2), (None, 10_000), (20, 100)):
        spec = limited(rig, spec, cpu_cap_core_percent=cap, cpu_weight=weight)
        rig.do(Do.APPLY_CPU, spec, cpu=None)
        seen = both_looks(rig, spec)
        assert seen.seen is Seen.RUNNING
        assert_limited(rig, spec, seen)


def test_disks_are_limited_from_the_start_and_live(rig):
    if not rig.profile.disk_io:
        return
    spec = rig.spec(disk_io=SLOW)
    rig.begin(spec)
    assert rig.see(spec).disk_io == SLOW
    rig.do(Do.RESUME, spec)
    for limits in (DiskIo(None, 1_000_000), FULL_SPEED, DiskIo(8_000_000, None, None, 50)):
        spec = limited(rig, spec, disk_io=limits)
        for _ in range(2):
            rig.do(Do.APPLY_DISK_IO, spec)
            assert both_looks(rig, spec).disk_io == limits


@pytest.mark.parametrize("wanted", [SLOW, FULL_SPEED])
def test_what_others_do_to_a_disk_is_hinted_seen_and_repaired(rig, wanted):
    if not rig.profile.disk_io:
        return
    spec = rig.spec(disk_io=wanted)
    rig.begin(spec, Do.RESUME)
    rig.result(rig.port.observe_all())
    for limits in (DiskIo(9_000_000), DiskIo(1, 2, 3, 4)):
        rig.loop.turn()
        rig.hints.clear()
        rig.outside.throttle(spec.vm, limits)
        rig.loop.until(lambda: spec.vm in rig.hints, 20, "a hint of the disk")
        assert rig.result(rig.port.observe_all()).domains[spec.vm].disk_io == limits
        rig.do(Do.APPLY_DISK_IO, spec)
        assert both_looks(rig, spec).disk_io == wanted


@pytest.mark.parametrize("kw", [{"cpu_cap_core_percent": 50}, {"cpu_weight": 200, "cpu_cap_core_percent": None},
                                {"disk_io": SLOW, "cpu_cap_core_percent": None}])  # fmt: skip
def test_a_limit_that_cannot_be_held_is_refused_before_anything_is_made(rig, kw):
    spec = rig.spec(**kw)
    if rig.profile.disk_io if "disk_io" in kw else rig.profile.cpu_caps:
        rig.do(Do.DEFINE, spec, cpu=None)
        return
    assert refused(rig, Do.DEFINE, spec, cpu=None) is FaultKind.REFUSED
    assert rig.see(spec).seen is Seen.MISSING


def test_interfaces_have_the_names_that_were_asked_for(rig, bridge):
    first = rig.spec()
    nics = tuple(
        building.interface(first.vm, index, bridge=bridge, device=device_name(hypervisor.INSTANCE, first.vm, index))
        for index in (0, 1)
    )
    spec = dataclasses.replace(first, interfaces=nics)
    rig.do(Do.DEFINE, spec)
    assert rig.see(spec).devices == ()
    rig.do(Do.START_PAUSED, spec)
    assert rig.see(spec).devices == tuple(nic.device for nic in nics)
    rig.do(Do.DESTROY, spec)


def test_nothing_is_stuck(rig):
    spec = rig.spec()
    rig.begin(spec, Do.RESUME)
    assert rig.port.stuck() == frozenset()
