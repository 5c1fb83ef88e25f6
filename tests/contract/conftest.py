"""The hypervisors that a contract is held against, each ended with its test.

Which these are can be said in HYPERVISORS: where a whole host is booted for it (tests/hosts), "kvm" = the real QEMU of
that host, or Xen's kinds of guests.
"""

from __future__ import annotations

import os

import pytest

from tests.support import hypervisor, libvirtd, xen

HYPERVISORS = os.environ.get("VMAGENT_TEST_HYPERVISORS", "").split()
KINDS = HYPERVISORS or ["fake", "test driver", pytest.param("qemu", marks=libvirtd.needed)]


@pytest.fixture(scope="module")
def qemu_uri():
    if HYPERVISORS:
        yield libvirtd.URI
        return
    with libvirtd.isolated() as uri:
        yield uri


@pytest.fixture(params=KINDS)
def rig(request):
    if request.param == "fake":
        rig = hypervisor.fake()
    elif request.param == "test driver":
        rig = hypervisor.built_in()
    elif request.param.startswith("xen"):
        rig = xen.rig(request.param)
    else:
        rig = hypervisor.qemu(request.getfixturevalue("qemu_uri"))
    yield from hypervisor.begun(rig)
