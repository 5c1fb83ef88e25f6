"""Runs inside a booted Xen dom0: what is only so there, by the adapter and real guests.

Seen here (libvirt 9.0, Xen 4.17).  A guest's reboot is an end and a new start: libvirt says "shut off" in between, for
some seconds, and tells of the start before it tells of the end.  The new domain has another number, an interface of the
same name, and no cap: libvirt starts it by itself, running.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Iterator, List, Optional
from xml.etree import ElementTree

import pytest

from tests.support import building, hypervisor, xen
from tests.support.waiting import until
from vmagent.core import quota
from vmagent.core.actions import Do
from vmagent.core.identity import device_name, domain_name
from vmagent.core.model import DomainSeen, Seen, VmSpec
from vmagent.errors import Fault
from vmagent.hypervisor.observe import SETTLING

BOOT_S = 300.0  # some seconds when the machine is ours alone
END_S = 180.0
CAP = 90
UP = b"try: up"  # its shell's first words
MADE_ANEW_S = 30.0
BRIDGE = "vmaxenbr0"
SAVED = Path("/var/lib/libvirt/libxl/save")


ON_BOTH = pytest.mark.parametrize("rig", ["xen-pv", "xen-pvh"], indirect=True)
"""What each kind may do in its own way; the rest by PV alone, which boots in a minute where PVH takes two."""


@pytest.fixture(params=["xen-pv"])
def rig(request: pytest.FixtureRequest) -> Iterator[xen.XenRig]:
    yield from hypervisor.begun(xen.rig(request.param))  # type: ignore[misc]


@pytest.fixture
def hvm() -> Iterator[xen.XenRig]:
    yield from hypervisor.begun(xen.rig("xen-hvm"))  # type: ignore[misc]


class Console:
    """The guest's own shell."""

    def __init__(self, rig: xen.XenRig, spec: VmSpec) -> None:
        root = ElementTree.fromstring(rig.outside.domain(spec.vm).XMLDesc(0))
        console = root.find("devices/console")
        assert console is not None
        self._line = os.open(console.get("tty", ""), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        self.heard = b""

    def listen(self) -> bytes:
        with contextlib.suppress(OSError):  # nothing to read, or nobody at the other end any more
            self.heard += os.read(self._line, 65536)
        return self.heard

    def wait(self, word: bytes, seconds: float = BOOT_S) -> None:
        until(lambda: word in self.listen(), seconds, f"{word!r}; heard {self.heard[-1500:]!r}")

    def say(self, command: str) -> None:
        os.write(self._line, command.encode() + b"\n")

    def close(self) -> None:
        os.close(self._line)


def booted(rig: xen.XenRig, **kw: object) -> VmSpec:
    """A guest that runs, and whose shell answers; with a cap that lets it boot."""
    spec = rig.spec(**{"cpu_cap_core_percent": CAP, **kw})
    rig.begin(spec, Do.RESUME)
    first, console = number(rig, spec), Console(rig, spec)
    until(lambda: UP in console.listen() or number(rig, spec) != first, BOOT_S, "it is up, or dead")
    console.close()
    assert UP in console.heard, f"it died, and said {console.heard[-1500:]!r}"
    return spec


def say(rig: xen.XenRig, spec: VmSpec, command: str) -> None:
    console = Console(rig, spec)
    console.say(command)
    console.close()


def watched(rig: xen.XenRig, spec: VmSpec, last: Seen, reason: str) -> List[DomainSeen]:
    """Every look until this one, without those that said the same."""
    looks: List[DomainSeen] = []

    def look() -> bool:
        seen = rig.see(spec)
        if not looks or (seen.seen, seen.reason) != (looks[-1].seen, looks[-1].reason):
            looks.append(seen)
        return (seen.seen, seen.reason) == (last, reason)

    rig.loop.until(look, END_S, f"{last} {reason}")
    return looks


def number(rig: xen.XenRig, spec: VmSpec) -> int:
    return int(rig.outside.domain(spec.vm).ID())


def test_domain_0_is_nobodys_guest(rig: xen.XenRig) -> None:
    host = rig.result(rig.port.observe_all())
    assert host.domains == {} and host.foreign == ()
    assert any(domain.ID() == 0 for domain in rig.outside.conn.listAllDomains(0)), "libvirt lists it"


@ON_BOTH
def test_a_reboot_is_no_end(rig: xen.XenRig) -> None:
    spec = booted(rig)
    before = number(rig, spec)
    rig.see(spec)
    rig.hints.clear()
    say(rig, spec, "echo b > /proc/sysrq-trigger")
    seen: List[Seen] = []

    def rebooted() -> bool:
        seen.append(rig.see(spec).seen)
        return number(rig, spec) not in (before, -1) and seen[-1] is Seen.RUNNING

    rig.loop.until(rebooted, END_S, "a new domain")
    assert set(seen) <= {Seen.RUNNING, Seen.STOPPING, Seen.PAUSED}, set(seen)
    rig.loop.until(lambda: spec.vm in rig.hints, 20, "a hint")
    after = rig.see(spec)
    assert (after.seen, after.tag) == (Seen.RUNNING, rig.tag(spec)), "it is ours as before"
    rig.do(Do.APPLY_CPU, spec)
    assert quota.same(quota.cpu_limit(spec), rig.see(spec).cpu)


def test_what_is_not_wanted_any_more_when_it_reboots_leaves_nothing(rig: xen.XenRig) -> None:
    """libvirt's undefine does not wait for what it makes anew, which would run on and be in nobody's list."""
    spec = booted(rig)
    say(rig, spec, "echo b > /proc/sysrq-trigger")
    rig.loop.until(lambda: number(rig, spec) == -1, END_S, "its first life is over")

    def gone() -> bool:
        with contextlib.suppress(Fault):
            rig.do(Do.DESTROY, spec)
            rig.do(Do.UNDEFINE, spec)
        return rig.see(spec).seen is Seen.MISSING

    rig.loop.until(gone, END_S, "it is gone")
    rig.loop.idle(MADE_ANEW_S)
    assert subprocess.run(["xl", "list"], capture_output=True, text=True, check=True).stdout.count("\n") == 2


@ON_BOTH
@pytest.mark.parametrize("does,reason", [("poweroff -f", "shutdown"),
                                         ("echo c > /proc/sysrq-trigger", "crashed")])  # fmt: skip
def test_how_a_guest_ended_is_told(rig: xen.XenRig, does: str, reason: str) -> None:
    spec = booted(rig)
    rig.see(spec)
    say(rig, spec, does)
    looks = watched(rig, spec, Seen.OFF, reason)
    assert {(look.seen, look.reason) for look in looks[:-1]} <= {
        (Seen.RUNNING, "booted"), (Seen.RUNNING, "unpaused"), (Seen.STOPPING, SETTLING)}  # fmt: skip


@ON_BOTH
def test_it_shuts_down_when_it_is_asked_to(rig: xen.XenRig) -> None:
    spec = booted(rig)
    rig.do(Do.SHUTDOWN, spec)
    watched(rig, spec, Seen.OFF, "shutdown")


def test_a_guest_without_drivers_does_not_hear_that_it_shall_end(hvm: xen.XenRig) -> None:
    """Nothing failed, and nothing happens: the ladder ends in `destroy`."""
    spec = hvm.spec(memory_mib=32)
    hvm.begin(spec, Do.RESUME)
    hvm.do(Do.SHUTDOWN, spec)
    hvm.loop.idle(10.0)
    assert hvm.see(spec).seen is Seen.RUNNING
    hvm.do(Do.DESTROY, spec)
    assert (hvm.see(spec).seen, hvm.see(spec).reason) == (Seen.OFF, "destroyed")


def test_a_saved_run_never_goes_on_by_itself(rig: xen.XenRig) -> None:
    spec = booted(rig)
    rig.outside.save(spec.vm)
    assert rig.see(spec).seen is Seen.SAVED
    rig.do(Do.START_PAUSED, spec)
    assert rig.see(spec).seen is Seen.PAUSED and not rig.outside.domain(spec.vm).hasManagedSaveImage()
    rig.do(Do.RESUME, spec)
    console = Console(rig, spec)
    console.wait(UP)  # from the beginning
    console.close()


def test_what_a_failed_save_left_is_in_nobodys_way(rig: xen.XenRig) -> None:
    """libvirt says that nothing is saved, and would start from it; and refuses to undefine the domain."""
    spec = rig.spec()
    rig.do(Do.DEFINE, spec)
    left = SAVED / f"{domain_name(spec.vm)}.save"
    left.write_bytes(b"half of it")
    assert not rig.outside.domain(spec.vm).hasManagedSaveImage()
    rig.do(Do.START_PAUSED, spec)
    assert rig.see(spec).seen is Seen.PAUSED and not left.exists()
    rig.do(Do.DESTROY, spec)
    left.write_bytes(b"half of it")
    rig.do(Do.UNDEFINE, spec)
    assert rig.see(spec).seen is Seen.MISSING and not left.exists()


def test_the_interface_is_there_under_our_name_before_anything_runs(rig: xen.XenRig) -> None:
    first = rig.spec()
    nic = building.interface(first.vm, 0, bridge=BRIDGE, device=device_name(hypervisor.INSTANCE, first.vm, 0))
    spec = rig.spec(command=first.command, interfaces=(nic,))
    for _ in hypervisor.one_bridge(BRIDGE):
        rig.begin(spec)
        assert rig.see(spec).devices == (nic.device,)
        assert Path(f"/sys/class/net/{nic.device}/master").resolve().name == BRIDGE
        mine = [path.name for path in Path("/sys/class/net").iterdir() if path.name.startswith(hypervisor.INSTANCE)]
        assert mine == [nic.device], "no second way into the bridge"
        rig.do(Do.DESTROY, spec)
        until(lambda: not Path(f"/sys/class/net/{nic.device}").exists(), 20, "it goes with its guest")


@ON_BOTH
def test_a_guest_has_every_disk_that_its_definition_says(rig: xen.XenRig) -> None:
    """Xen starts it without those that QEMU could not make, and says nothing."""
    can = rig.profile.read_only_below > 3
    disks = (rig.volume("results", 2), *([rig.volume("reference", 3, read_only=True)] * can))
    spec = booted(rig, disks=disks)
    console = Console(rig, spec)
    console.say("cd /sys/block; for one in xvd?; do echo $one=$(cat $one/ro); done")
    for told in ("xvda=0", f"xvdb={int(can)}", "xvdc=0", "xvdd=1")[: 2 + len(disks)]:
        console.wait(told.encode(), END_S)
    console.close()


def test_the_golden_image_is_never_written(rig: xen.XenRig) -> None:
    assert rig.disks is not None
    golden = rig.disks.golden
    before = golden.read_bytes()
    spec = booted(rig)
    overlay = Path(rig.disks.paths(spec).overlay)
    empty = overlay.stat().st_blocks
    say(rig, spec, "dd if=/dev/urandom of=/dev/xvda bs=64k count=8 conv=fsync; echo writ''ten")
    until(lambda: overlay.stat().st_blocks > empty, 30, "what it wrote is in its overlay")
    assert golden.read_bytes() == before
    chain = subprocess.run(["qemu-img", "info", "-U", "--backing-chain", str(overlay)], capture_output=True, text=True,
                           check=True).stdout  # fmt: skip
    assert str(golden) in chain


def test_what_is_measured_is_there_and_nothing_is_made_up(rig: xen.XenRig) -> None:
    spec, off = booted(rig), rig.spec()
    rig.do(Do.DEFINE, off)
    run = str(number(rig, spec))
    sample = rig.result(rig.port.statistics.samples([spec.vm, off.vm]))
    assert set(sample) == {spec.vm}
    first = sample[spec.vm]
    assert first.run == run and first.cpu_s > 0 and first.memory_mib is not None
    assert first.memory_mib == pytest.approx(spec.memory_mib, rel=0.1)
    say(rig, spec, "while :; do :; done")
    rig.loop.until(lambda: rig.result(rig.port.statistics.samples([spec.vm]))[spec.vm].cpu_s > first.cpu_s + 1, 30,
                   "what it computes is counted")  # fmt: skip
    disks: Optional[object] = rig.result(rig.port.statistics.disks(spec.vm))
    assert disks is None, "qemu serves them, and libvirt cannot ask it"
    assert rig.port.stuck() == frozenset()
