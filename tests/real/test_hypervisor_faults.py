"""Sick guests and a sick libvirtd, for real: a private system libvirtd, guests of 32 MiB without an operating system.

Nothing here compares times: what must not wait is shown to finish while what hangs still hangs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from tests.support import hypervisor, libvirtd
from tests.support.waiting import until
from vmagent.core import quota
from vmagent.core.actions import Do
from vmagent.core.model import Seen
from vmagent.errors import Fault, FaultKind

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("libvirtd") or not shutil.which("unshare"),
    reason="needs root, libvirtd and unshare",
)


@pytest.fixture
def daemon():
    folder = Path(tempfile.mkdtemp(prefix="vmalv-"))
    folder.chmod(0o755)
    private = libvirtd.Private(folder)
    try:
        private.start()
        yield private
        assert not list(private.qemu.glob("vma-*.pid")), "guests are left"
    finally:
        private.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Frozen:
    """Processes that were stopped; all go on at the end."""

    def __init__(self, pids):
        self.pids = pids  # vm -> pid
        self._stopped = []

    def freeze(self, pid):
        os.kill(pid, signal.SIGSTOP)
        self._stopped.append(pid)
        until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", 20, "it stops")

    def thaw(self):
        while self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._stopped.pop(), signal.SIGCONT)


def rig_on(daemon, **kw):
    return hypervisor.qemu(daemon.uri, **kw)


@pytest.fixture
def ice(daemon):
    frozen = Frozen(lambda vm: hypervisor.qemu_pid(vm, daemon.qemu))
    yield frozen
    frozen.thaw()


@pytest.fixture
def watchful(daemon, ice):
    """The port as in production: halted QEMUs are seen in /proc."""
    rig = rig_on(daemon, halted=hypervisor.halted_by(daemon.qemu))
    yield from started(rig, ice)


@pytest.fixture
def blind(daemon, ice):
    """The port without that look: calls really hang in the monitor."""
    yield from started(rig_on(daemon), ice)


def started(rig, ice):
    try:
        rig.start()
        yield rig
    finally:
        ice.thaw()
        rig.end()


def running(rig, count):
    specs = [rig.spec() for _ in range(count)]
    for spec in specs:
        rig.begin(spec, Do.RESUME)
    return specs


def test_one_frozen_guest_is_one_frozen_guest(watchful, ice):
    rig = watchful
    sick, well = running(rig, 2)
    ice.freeze(ice.pids(sick.vm))
    host = rig.result(rig.port.observe_all(), 10)
    assert {host.domains[s.vm].seen for s in (sick, well)} == {Seen.RUNNING}
    assert quota.same(quota.cpu_limit(sick), host.domains[sick.vm].cpu)
    with pytest.raises(Fault) as caught:
        rig.do(Do.PAUSE, sick)
    assert caught.value.kind is FaultKind.BUSY
    rig.do(Do.PAUSE, well)
    rig.do(Do.RESUME, well)
    rig.loop.until(lambda: sick.vm in rig.port.stuck(), 20, "the frozen guest is stuck")
    assert rig.port.stuck() == {sick.vm}
    rig.do(Do.DESTROY, sick)
    assert rig.see(sick).seen is Seen.OFF
    assert rig.port.stuck() == frozenset()
    assert rig.see(well).seen is Seen.RUNNING


def test_a_guest_that_thaws_is_no_longer_stuck(watchful, ice):
    rig = watchful
    (spec,) = running(rig, 1)
    ice.freeze(ice.pids(spec.vm))
    rig.see(spec)
    rig.loop.until(lambda: spec.vm in rig.port.stuck(), 20, "stuck")
    rig.hints.clear()
    ice.thaw()
    rig.loop.until(lambda: not rig.port.stuck(), 20, "no longer stuck")
    assert spec.vm in rig.hints
    rig.do(Do.PAUSE, spec)
    assert rig.see(spec).seen is Seen.PAUSED


def test_five_calls_hang_in_the_monitor_and_a_start_goes_through(blind, ice):
    rig = blind
    sick = running(rig, 5)
    for spec in sick:
        ice.freeze(ice.pids(spec.vm))
    faults = []
    for spec in sick:
        rig.port.perform(rig.action(Do.PAUSE, spec)).addErrback(lambda failure: faults.append(failure.value.kind))
    fresh = rig.spec()
    rig.begin(fresh, Do.RESUME)
    assert rig.see(fresh).seen is Seen.RUNNING
    hanging = rig.port._session.control.overdue()
    assert len(hanging) >= 4, "the start did not go through while they hung"
    assert set(hanging) <= rig.port.stuck() <= {spec.vm for spec in sick}
    assert FaultKind.AWAY not in faults
    rig.do(Do.DESTROY, sick[0])
    assert rig.see(sick[0]).seen is Seen.OFF
    ice.thaw()
    rig.loop.until(lambda: not rig.port._session.control.overdue(), 60, "the hanging calls return")
    rig.loop.until(lambda: not rig.port.stuck(), 60, "nobody is stuck any more")
    rig.loop.until(lambda: rig.port._session.control.draining == 0, 20, "the replaced connection is closed")


def test_five_frozen_guests_that_are_seen_cost_no_thread(watchful, ice):
    rig = watchful
    sick = running(rig, 5)
    for spec in sick:
        ice.freeze(ice.pids(spec.vm))
    told = []
    for spec in sick:
        rig.port.perform(rig.action(Do.SHUTDOWN, spec)).addErrback(lambda failure: told.append(failure.value.kind))
    assert told == [FaultKind.BUSY] * 5
    fresh = rig.spec()
    rig.begin(fresh, Do.RESUME)
    assert rig.see(fresh).seen is Seen.RUNNING
    assert rig.port._session.control.overdue() == []
    ending = [rig.port.perform(rig.action(Do.DESTROY, spec)) for spec in sick]
    for answer in ending:
        rig.result(answer, 120)
    assert {rig.see(spec).seen for spec in sick} == {Seen.OFF}


def test_a_killed_qemu_is_seen_as_crashed(watchful, ice):
    rig = watchful
    (spec,) = running(rig, 1)
    rig.hints.clear()
    os.kill(ice.pids(spec.vm), signal.SIGKILL)
    rig.loop.until(lambda: spec.vm in rig.hints, 20, "a hint")
    rig.loop.until(lambda: rig.see(spec).seen is Seen.OFF, 20, "off")
    assert rig.see(spec).reason in ("crashed", "failed")


def test_libvirtd_dies_and_comes_back_and_nothing_is_ever_missing(daemon, watchful):
    rig = watchful
    (spec,) = running(rig, 1)
    daemon.kill()
    seen = []
    rig.loop.until(lambda: rig.connections == [True, False], 20, "the loss is noticed")
    assert not rig.port.info().connected
    for asked in (rig.port.observe(spec.vm), rig.port.observe_all(), rig.port.perform(rig.action(Do.PAUSE, spec))):
        with pytest.raises(Fault) as caught:
            rig.result(asked)
        seen.append(caught.value.kind)
    assert seen == [FaultKind.AWAY] * 3
    rig.hints.clear()
    daemon.start()
    rig.loop.until(lambda: rig.connections == [True, False, True], 30, "it connects again")
    assert None in rig.hints
    rig.loop.until(lambda: rig.see(spec).seen is Seen.RUNNING, 20, "running, and nothing else but unknown before")
    rig.outside = hypervisor.Outside(daemon.uri, "qemu")
    rig.hints.clear()
    rig.outside.suspend(spec.vm)
    rig.loop.until(lambda: spec.vm in rig.hints, 20, "callbacks are registered anew")
    rig.do(Do.RESUME, spec)
    assert rig.see(spec).seen is Seen.RUNNING


def test_a_frozen_libvirtd_is_found_by_keepalive(daemon, watchful, ice):
    rig = watchful
    (spec,) = running(rig, 1)
    ice.freeze(daemon.process.pid)
    looking = []
    rig.port.observe(spec.vm).addBoth(looking.append)
    rig.loop.until(lambda: rig.connections == [True, False], 60, "keepalive")
    rig.loop.until(lambda: looking, 20, "the look that hung has an end")
    assert looking[0].value.kind in (FaultKind.AWAY, FaultKind.UNKNOWN)
    ice.thaw()
    rig.loop.until(lambda: rig.connections == [True, False, True], 60, "it connects again")
    assert rig.see(spec).seen is Seen.RUNNING
    rig.outside = hypervisor.Outside(daemon.uri, "qemu")


def test_golden_images_stay_ours(watchful):
    rig = watchful
    (spec,) = running(rig, 1)
    golden, overlay = rig.disks.golden, Path(rig.disks.paths(spec).overlay)
    before = (0, 0, 0o644)
    assert owner(golden) == before
    rig.do(Do.DESTROY, spec)
    assert owner(golden) == before
    rig.loop.until(lambda: owner(overlay)[:2] == (0, 0), 20, "the overlay comes back")


def owner(path):
    status = path.stat()
    return status.st_uid, status.st_gid, status.st_mode & 0o777
