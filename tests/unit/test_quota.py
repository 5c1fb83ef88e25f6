"""CPU limits as kernels and hypervisors hold them."""

from __future__ import annotations

import pytest

from tests.support import building
from vmagent.core import proof, quota
from vmagent.core.actions import Do
from vmagent.core.model import CgroupSeen, CpuLimit

CAPS = (1, 2, 5, 33, 37, 50, 99, 100, 101, 250, 6400)
WEIGHTS = range(2, 10_001)


def capped(cap, **kw):
    return building.spec(cpu_cap_core_percent=cap, **kw)


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("cores", [1, 3, 64])
def test_the_cap_is_one_quota_for_the_whole_guest_whatever_its_cores(cap, cores):
    assert quota.cpu_limit(capped(cap, cores=cores)) == CpuLimit(100_000, 1000 * cap)


def test_no_cap_is_no_quota():
    assert quota.cpu_limit(capped(None)) == quota.UNLIMITED


@pytest.mark.parametrize("cap", CAPS)
def test_a_credit_cap_reads_back_as_the_limit_that_was_wanted(cap):
    wanted = quota.cpu_limit(capped(cap))
    assert quota.credit_cap(wanted) == cap
    assert quota.same(wanted, quota.from_credit_cap(cap))


def test_no_cap_is_credit_zero():
    assert quota.credit_cap(quota.UNLIMITED) == 0
    assert quota.from_credit_cap(0) == quota.UNLIMITED


def test_every_weight_comes_back_as_it_was():
    for version in (1, 2):
        assert all(quota.from_shares(quota.shares(w, version), version) == w for w in WEIGHTS)
    assert all(quota.from_credit_weight(quota.credit_weight(w)) == w for w in WEIGHTS)


def test_weights_are_in_the_kernels_and_in_xens_range():
    assert (quota.shares(2, 1), quota.shares(10_000, 1)) == (20, 102_400)  # 2 to 262144
    assert (quota.shares(2, 2), quota.shares(10_000, 2)) == (2, 10_000)  # libvirt takes no 1
    assert (quota.shares(100, 1), quota.credit_weight(100)) == (1024, 256)
    assert (quota.credit_weight(2), quota.credit_weight(10_000)) == (5, 25_600)  # 1 to 65535


SAME = [
    (CpuLimit(100_000, 50_000), True),
    (CpuLimit(50_000, 25_000), True),
    (CpuLimit(100_000, 50_400), True),
    (CpuLimit(100_000, 51_000), False),
    (CpuLimit(100_000, 49_000), False),
    (CpuLimit(100_000, -1), False),
    (None, False),
]


@pytest.mark.parametrize("seen,same", SAME)
def test_what_is_read_back_enforces_the_cap_or_not(seen, same):
    assert quota.same(CpuLimit(100_000, 50_000), seen) is same


def test_no_cap_is_proven_by_no_cap_alone():
    assert quota.same(quota.UNLIMITED, CpuLimit(50_000, -1))
    assert not quota.same(quota.UNLIMITED, CpuLimit(100_000, 6_400_000))
    assert not quota.same(quota.UNLIMITED, None)


PROC_CGROUPS = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t3\t12\t1\ncpu\t%s\t21\t1\n"


@pytest.mark.parametrize("text,version", [(PROC_CGROUPS % 1, 1), (PROC_CGROUPS % 14, 1), (PROC_CGROUPS % 0, 2),
                                          ("#subsys_name\n", 2), ("", 2)])  # fmt: skip
def test_which_version_has_the_cpu_controller(text, version):
    assert quota.cgroup_version(text) == version


HALF = CpuLimit(100_000, 50_000)
LESS = CpuLimit(100_000, 20_000)
MORE = CpuLimit(100_000, 80_000)
SCOPE = "machine-qemu\\x2d1\\x2dvma.scope"
UNITS = [
    (HALF, True, False),
    (LESS, False, True),
    (MORE, False, False),
    (quota.UNLIMITED, False, False),
]


@pytest.mark.parametrize("unit,holds,throttles", UNITS)
def test_a_unit_that_has_less_is_told_first(unit, holds, throttles):
    spec, cgroup = capped(50), CgroupSeen(2, HALF, SCOPE, unit)
    assert quota.scope_holds(spec, cgroup) is holds
    assert quota.scope_throttles(spec, cgroup) is throttles


def test_a_guest_without_a_unit_or_a_cgroup_needs_none():
    for cgroup in (None, CgroupSeen(1, HALF)):
        assert quota.scope_holds(capped(50), cgroup)
        assert not quota.scope_throttles(capped(50), cgroup)


def test_a_cap_that_is_lifted_is_lifted_from_the_unit_first():
    assert quota.scope_throttles(capped(None), CgroupSeen(2, HALF, SCOPE, HALF))


@pytest.mark.parametrize("had,unit,first", [(LESS, LESS, Do.TELL_SYSTEMD), (MORE, MORE, Do.APPLY_CPU),
                                            (HALF, LESS, Do.TELL_SYSTEMD), (HALF, MORE, Do.TELL_SYSTEMD),
                                            (LESS, HALF, Do.APPLY_CPU), (HALF, HALF, None)])  # fmt: skip
def test_more_begins_outside_and_less_begins_inside(had, unit, first):
    """As cgroup v1 demands: no group has more than the one that it is in."""
    spec = capped(50)
    observed = building.observed(of=spec, cpu=had, cgroup=CgroupSeen(1, had, SCOPE, unit))
    assert proof.mended(spec, observed) is first
