"""One body for everything that implements ports.Hypervisor: the fake, libvirt's test driver, and real QEMU."""

from __future__ import annotations

import dataclasses
import uuid

import pytest

from tests.support import building, hypervisor, libvirtd
from vmagent.core import limits
from vmagent.core.actions import TABLE, Do
from vmagent.core.identity import device_name, domain_name
from vmagent.core.model import CpuLimit, Seen
from vmagent.errors import Fault, FaultKind

needs_libvirtd = pytest.mark.skipif(not libvirtd.can_run(), reason="needs root and libvirtd")
BRIDGE = "vmactbr0"


@pytest.fixture(scope="module")
def qemu_uri():
    with libvirtd.isolated() as uri:
        yield uri


@pytest.fixture(params=["fake", "test driver", pytest.param("qemu", marks=needs_libvirtd)])
def rig(request):
    if request.param == "fake":
        rig = hypervisor.fake()
    elif request.param == "test driver":
        rig = hypervisor.built_in()
    else:
        rig = hypervisor.qemu(request.getfixturevalue("qemu_uri"))
    try:
        rig.start()
        yield rig
    finally:
        rig.end()


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


def test_it_connects_says_so_and_asks_to_look_at_everything(rig):
    assert rig.connections == [True]
    assert rig.hints[0] is None
    info = rig.port.info()
    assert info.connected and info.cores > 0 and info.memory_mib > 0 and info.startable
    assert info.cpu_caps is rig.cpu_caps


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
    assert defined.cpu is None and defined.disks == ("vda", "vdb")

    rig.do(Do.START_PAUSED, spec)
    paused = rig.see(spec)
    assert (paused.seen, paused.reason) == (Seen.PAUSED, "user")
    assert limits.cpu_holds(spec, paused.cpu)

    ran = rig.tag(spec, may_have_run=True, started_at=12.5)
    rig.do(Do.RESUME, spec, tag=ran)
    running = rig.see(spec)
    assert (running.seen, running.tag) == (Seen.RUNNING, ran)
    assert limits.cpu_holds(spec, running.cpu)

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
        assert refused(rig, do, spec, tag=rig.tag(spec, may_have_run=True)) is FaultKind.UNKNOWN
    seen = rig.see(spec)
    assert (seen.seen, seen.tag.may_have_run) == (Seen.OFF, False)


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


@pytest.mark.parametrize("do", [do for do in Do if TABLE[do].port == "hypervisor" and do is not Do.APPLY_CPU])
def test_a_strangers_domain_is_never_touched(rig, do):
    spec = rig.spec()
    rig.outside.foreign(spec.vm, f"theirs-{spec.vm[:8]}")
    before = rig.see(spec)
    assert refused(rig, do, spec) is FaultKind.REFUSED
    assert dataclasses.replace(rig.see(spec), at=before.at) == before


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


def test_limits_are_read_back_and_drift_is_seen_and_repaired(rig):
    spec = rig.spec()
    rig.begin(spec)
    if not rig.cpu_caps:
        assert rig.see(spec).cpu is None
        assert refused(rig, Do.APPLY_CPU, spec, cpu=CpuLimit(100_000, 50_000)) is FaultKind.REFUSED
        return
    for drifted in (CpuLimit(100_000, 70_000), limits.UNLIMITED):
        rig.outside.limit(spec.vm, drifted)
        assert rig.see(spec).cpu == drifted
        assert rig.result(rig.port.observe_all()).domains[spec.vm].cpu == drifted
        rig.do(Do.APPLY_CPU, spec)
        assert rig.see(spec).cpu == limits.cpu_limit(spec)
    rig.do(Do.APPLY_CPU, spec, cpu=limits.UNLIMITED)
    assert rig.see(spec).cpu == limits.UNLIMITED


def test_a_cap_that_cannot_be_held_is_refused_before_anything_is_made(rig):
    spec = rig.spec(cpu_cap_core_percent=50)
    if rig.cpu_caps:
        rig.do(Do.DEFINE, spec)
        return
    assert refused(rig, Do.DEFINE, spec) is FaultKind.REFUSED
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
