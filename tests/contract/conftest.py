"""The hypervisors that a contract is held against, each ended with its test."""

from __future__ import annotations

import pytest

from tests.support import hypervisor, libvirtd


@pytest.fixture(scope="module")
def qemu_uri():
    with libvirtd.isolated() as uri:
        yield uri


@pytest.fixture(params=["fake", "test driver", pytest.param("qemu", marks=libvirtd.needed)])
def rig(request):
    if request.param == "fake":
        rig = hypervisor.fake()
    elif request.param == "test driver":
        rig = hypervisor.built_in()
    else:
        rig = hypervisor.qemu(request.getfixturevalue("qemu_uri"))
    yield from hypervisor.begun(rig)
