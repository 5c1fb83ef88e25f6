"""Adoption, one body for every hypervisor: a domain of others gets our tag and loses it, nothing else of it changes."""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any

import pytest

from tests.support import building
from tests.support.hypervisor import Rig, percent
from vmagent.core import quota
from vmagent.core.actions import TABLE, Do
from vmagent.core.model import Seen, VmSpec
from vmagent.errors import Fault, FaultKind


@pytest.fixture
def theirs(rig: Rig) -> VmSpec:
    """The wish over a guest that others started, and that runs; a cap is asked for where that can be held."""
    cap = 40 if rig.profile.cpu_caps else None
    sources = ((quota.CAP, "request"),) if rig.profile.cpu_caps else ()
    spec = building.spec(vm=str(uuid.uuid4()), interfaces=(), memory_mib=32, cpu_cap_core_percent=cap, sources=sources,
                         adopted=True)
    rig.outside.foreign(spec.vm, f"theirs-{spec.vm[:8]}", running=True)
    return spec


def refused(rig: Rig, do: Do, spec: VmSpec, **kw: Any) -> FaultKind:
    with pytest.raises(Fault) as caught:
        rig.do(do, spec, **kw)
    return caught.value.kind


def candidate(rig: Rig, vm: str) -> Any:
    return rig.result(rig.port.candidate(vm))


def test_what_is_known_of_a_candidate(rig: Rig, theirs: VmSpec) -> None:
    seen = candidate(rig, theirs.vm)
    assert (seen.vm, seen.name, seen.seen, seen.why) == (theirs.vm, f"theirs-{theirs.vm[:8]}", Seen.RUNNING, "no-tag")
    assert (seen.autostart, seen.saved, seen.persistent, seen.cores, seen.memory_mib) == (False, False, True, 1, 32)
    rig.outside.autostart(theirs.vm)
    assert candidate(rig, theirs.vm).autostart
    ours = rig.spec()
    rig.do(Do.DEFINE, ours)
    assert (candidate(rig, ours.vm).why, candidate(rig, ours.vm).seen) == ("", Seen.OFF)
    with pytest.raises(Fault) as caught:
        candidate(rig, str(uuid.uuid4()))
    assert caught.value.kind is FaultKind.GONE


def test_claimed_and_given_back_each_twice_as_once(rig: Rig, theirs: VmSpec) -> None:
    for _ in range(2):
        rig.do(Do.CLAIM, theirs)
        seen = rig.see(theirs)
        assert (seen.seen, seen.tag, seen.name) == (Seen.RUNNING, rig.tag(theirs), f"theirs-{theirs.vm[:8]}")
    assert theirs.vm in rig.result(rig.port.observe_all()).domains
    for _ in range(2):
        rig.do(Do.UNTAG, theirs)
        seen = rig.see(theirs)
        assert (seen.seen, seen.reason, seen.tag) == (Seen.FOREIGN, "no-tag", None)
    assert candidate(rig, theirs.vm).seen is Seen.RUNNING


def test_a_cap_is_held_in_the_live_guest_and_goes_with_the_tag(rig: Rig, theirs: VmSpec) -> None:
    if not rig.profile.cpu_caps:
        pytest.skip("this driver caps no guest")
    rig.do(Do.CLAIM, theirs)
    before = rig.see(theirs)
    for _ in range(2):
        rig.do(Do.APPLY_CPU, theirs)
        seen = rig.see(theirs)
        assert quota.same(percent(40), seen.cpu) and seen.weight == before.weight
    rig.do(Do.UNTAG, theirs)
    rig.do(Do.CLAIM, theirs)
    assert quota.same(before.cpu, rig.see(theirs).cpu)


def test_what_must_not_be_claimed(rig: Rig, theirs: VmSpec) -> None:
    rig.outside.autostart(theirs.vm)
    assert refused(rig, Do.CLAIM, theirs) is FaultKind.REFUSED
    rig.outside.autostart(theirs.vm, False)
    off = dataclasses.replace(theirs, vm=str(uuid.uuid4()))
    rig.outside.foreign(off.vm, f"off-{off.vm[:8]}")
    assert refused(rig, Do.CLAIM, off) is FaultKind.REFUSED
    other = dataclasses.replace(theirs, vm=str(uuid.uuid4()))
    rig.outside.foreign(other.vm, f"other-{other.vm[:8]}", rig.tag(other, instance="zz"), running=True)
    assert refused(rig, Do.CLAIM, other) is FaultKind.REFUSED
    rig.do(Do.UNTAG, other)  # not ours to take away
    assert candidate(rig, other.vm).why == "other-instance"
    gone = dataclasses.replace(theirs, vm=str(uuid.uuid4()))
    assert refused(rig, Do.CLAIM, gone) is FaultKind.GONE
    rig.do(Do.UNTAG, gone)


def test_without_our_tag_nothing_else_is_done_to_it(rig: Rig, theirs: VmSpec) -> None:
    for do in [do for do, row in TABLE.items() if row.port == "hypervisor" and do not in (Do.CLAIM, Do.UNTAG)]:
        assert refused(rig, do, theirs) is FaultKind.REFUSED, do
    assert candidate(rig, theirs.vm).seen is Seen.RUNNING


def test_ended_it_stays_defined(rig: Rig, theirs: VmSpec) -> None:
    rig.do(Do.CLAIM, theirs)
    rig.do(Do.DESTROY, theirs)
    assert rig.see(theirs).seen is Seen.OFF
    rig.do(Do.UNTAG, theirs)
    assert rig.see(theirs).seen is Seen.FOREIGN
    assert candidate(rig, theirs.vm).seen is Seen.OFF
