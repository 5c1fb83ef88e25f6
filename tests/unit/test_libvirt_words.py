"""libvirt's numbers as our words: states, errors, limits."""

from __future__ import annotations

import errno

import libvirt
import pytest

from tests.support import building
from vmagent.core.domainxml import parts_of
from vmagent.core.drivers import PROFILES, Choice
from vmagent.core.model import CpuLimit, DiskIo, DomainSeen, Seen
from vmagent.errors import Fault, FaultKind
from vmagent.hypervisor import perform
from vmagent.hypervisor.faults import closed, kind
from vmagent.hypervisor.observe import CERTAIN_ENDS, SETTLING, Eyes, held, held_by_credit, seen_of

LV = libvirt


@pytest.mark.parametrize(
    "state,reason,seen,word",
    [
        (LV.VIR_DOMAIN_RUNNING, LV.VIR_DOMAIN_RUNNING_BOOTED, Seen.RUNNING, "booted"),
        (LV.VIR_DOMAIN_RUNNING, LV.VIR_DOMAIN_RUNNING_UNPAUSED, Seen.RUNNING, "unpaused"),
        (LV.VIR_DOMAIN_BLOCKED, 0, Seen.RUNNING, "unknown"),
        (LV.VIR_DOMAIN_PAUSED, LV.VIR_DOMAIN_PAUSED_USER, Seen.PAUSED, "user"),
        (LV.VIR_DOMAIN_PAUSED, LV.VIR_DOMAIN_PAUSED_IOERROR, Seen.PAUSED, "ioerror"),
        (LV.VIR_DOMAIN_PAUSED, LV.VIR_DOMAIN_PAUSED_WATCHDOG, Seen.PAUSED, "watchdog"),
        (LV.VIR_DOMAIN_PAUSED, LV.VIR_DOMAIN_PAUSED_SNAPSHOT, Seen.PAUSED, "snapshot"),
        (LV.VIR_DOMAIN_PAUSED, LV.VIR_DOMAIN_PAUSED_SHUTTING_DOWN, Seen.STOPPING, "shutting-down"),
        (LV.VIR_DOMAIN_PAUSED, LV.VIR_DOMAIN_PAUSED_CRASHED, Seen.CRASHED, "crashed"),
        (LV.VIR_DOMAIN_PAUSED, LV.VIR_DOMAIN_PAUSED_STARTING_UP, Seen.UNKNOWN, "starting-up"),
        (LV.VIR_DOMAIN_SHUTDOWN, 0, Seen.STOPPING, "unknown"),
        (LV.VIR_DOMAIN_SHUTOFF, LV.VIR_DOMAIN_SHUTOFF_SHUTDOWN, Seen.OFF, "shutdown"),
        (LV.VIR_DOMAIN_SHUTOFF, LV.VIR_DOMAIN_SHUTOFF_DESTROYED, Seen.OFF, "destroyed"),
        (LV.VIR_DOMAIN_SHUTOFF, LV.VIR_DOMAIN_SHUTOFF_CRASHED, Seen.OFF, "crashed"),
        (LV.VIR_DOMAIN_SHUTOFF, LV.VIR_DOMAIN_SHUTOFF_SAVED, Seen.OFF, "saved"),
        (LV.VIR_DOMAIN_SHUTOFF, LV.VIR_DOMAIN_SHUTOFF_FAILED, Seen.OFF, "failed"),
        (LV.VIR_DOMAIN_SHUTOFF, LV.VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT, Seen.OFF, "from-snapshot"),
        (LV.VIR_DOMAIN_CRASHED, LV.VIR_DOMAIN_CRASHED_PANICKED, Seen.CRASHED, "panicked"),
        (LV.VIR_DOMAIN_PMSUSPENDED, 0, Seen.PAUSED, "pmsuspended"),
        (LV.VIR_DOMAIN_NOSTATE, 0, Seen.UNKNOWN, "unknown"),
        (99, 99, Seen.UNKNOWN, "unknown"),
        (LV.VIR_DOMAIN_RUNNING, 99, Seen.RUNNING, "unknown"),
    ],
)
def test_states(state, reason, seen, word):
    assert seen_of(state, reason) == (seen, word)


@pytest.mark.parametrize(
    "origin,code,number,means",
    [
        (LV.VIR_FROM_QEMU, LV.VIR_ERR_NO_DOMAIN, -1, FaultKind.GONE),
        (LV.VIR_FROM_QEMU, LV.VIR_ERR_OPERATION_TIMEOUT, -1, FaultKind.BUSY),
        (LV.VIR_FROM_QEMU, LV.VIR_ERR_OPERATION_INVALID, -1, FaultKind.UNKNOWN),
        (LV.VIR_FROM_QEMU, LV.VIR_ERR_INTERNAL_ERROR, -1, FaultKind.UNKNOWN),
        (LV.VIR_FROM_RPC, LV.VIR_ERR_INTERNAL_ERROR, -1, FaultKind.AWAY),
        (LV.VIR_FROM_RPC, LV.VIR_ERR_SYSTEM_ERROR, errno.EPIPE, FaultKind.AWAY),
        (LV.VIR_FROM_RPC, LV.VIR_ERR_SYSTEM_ERROR, errno.ENOSPC, FaultKind.AWAY),
        (LV.VIR_FROM_REMOTE, LV.VIR_ERR_RPC, -1, FaultKind.AWAY),
        (LV.VIR_FROM_NONE, LV.VIR_ERR_INVALID_CONN, -1, FaultKind.AWAY),
        (LV.VIR_FROM_QEMU, LV.VIR_ERR_SYSTEM_ERROR, errno.ENOSPC, FaultKind.FULL),
        (LV.VIR_FROM_QEMU, LV.VIR_ERR_SYSTEM_ERROR, errno.EACCES, FaultKind.UNKNOWN),
        (LV.VIR_FROM_TEST, LV.VIR_ERR_NO_SUPPORT, -1, FaultKind.REFUSED),
        (LV.VIR_FROM_QEMU, LV.VIR_ERR_CONFIG_UNSUPPORTED, -1, FaultKind.REFUSED),
        (LV.VIR_FROM_DOMAIN, LV.VIR_ERR_XML_ERROR, -1, FaultKind.REFUSED),
        (0, 123456, -1, FaultKind.UNKNOWN),
    ],
)
def test_errors_by_number(origin, code, number, means):
    assert kind(origin, code, number) is means


@pytest.mark.parametrize(
    "given,limit",
    [
        ({"global_period": 100_000, "global_quota": -1}, CpuLimit(100_000, -1)),
        ({"global_period": 100_000, "global_quota": 0}, CpuLimit(100_000, -1)),
        ({"global_period": 100_000, "global_quota": 18_446_744_073_709_551}, CpuLimit(100_000, -1)),
        ({"global_period": 100_000, "global_quota": 1_000}, CpuLimit(100_000, 1_000)),
        ({"global_period": 50_000, "global_quota": 125_000}, CpuLimit(50_000, 125_000)),
        ({"vcpu_quota": 50_000, "emulator_quota": 50_000, "global_quota": -1}, CpuLimit(100_000, -1)),
        ({"vcpu_quota": 10_000, "global_quota": 50_000}, CpuLimit(100_000, 50_000)),
        ({}, CpuLimit(100_000, -1)),
    ],
)
def test_only_the_quota_of_the_whole_guest_counts(given, limit):
    assert held(given, 2) == (limit, None)


@pytest.mark.parametrize("version,number,weight", [(1, 1024, 100), (1, 3072, 300), (1, 10, 1), (2, 7, 7)])
def test_shares_are_read_as_a_weight(version, number, weight):
    assert held({"cpu_shares": number}, version)[1] == weight


def test_credit_is_read_as_cap_and_weight():
    assert held_by_credit({"cap": 250, "weight": 512}) == (CpuLimit(100_000, 250_000), 200)
    assert held_by_credit({"cap": 0, "weight": 256}) == (CpuLimit(100_000, -1), 100)
    assert held_by_credit({}) == (CpuLimit(100_000, -1), None)


def test_quotas_on_single_threads_are_lifted_and_no_others():
    read = {"vcpu_quota": 50_000, "emulator_quota": -1, "global_quota": 5_000, "iothread_quota": 5_000}
    assert perform._set_on_threads(read) == {"vcpu_quota": -1}
    assert perform._set_on_threads({"emulator_quota": 1_000, "vcpu_quota": 0}) == {"emulator_quota": -1}
    assert perform._set_on_threads({"vcpu_quota": 18_446_744_073_709_551}) == {}


class Disk:
    """What QEMU says of one disk."""

    def __init__(self, **said):
        self.said = said

    def blockIoTune(self, disk, flags):
        assert (disk, flags) == ("vda", LV.VIR_DOMAIN_AFFECT_LIVE)
        return self.said


WANTED = {"read_bytes_sec": 5, "write_bytes_sec": 0}


@pytest.mark.parametrize("said", [{"read_bytes_sec": 5},
                                  {"read_bytes_sec": 5, "write_bytes_sec": 0, "read_bytes_sec_max": 5}])  # fmt: skip
def test_what_qemu_agrees_with_is_proven(said):
    perform._read_back(Disk(**said), "vda", WANTED)


@pytest.mark.parametrize("said", [{}, {"read_bytes_sec": 6}, {"read_bytes_sec": 5, "write_bytes_sec": 9},
                                  {"read_bytes_sec": 5, "read_bytes_sec_max": 6}])  # fmt: skip
def test_what_qemu_does_not_hold_is_refused(said):
    with pytest.raises(Fault, match="QEMU holds") as caught:
        perform._read_back(Disk(**said), "vda", WANTED)
    assert caught.value.kind is FaultKind.REFUSED


class Settling:
    """What libvirt says of a domain while nobody is at work on it, or somebody is."""

    def __init__(self, job=LV.VIR_DOMAIN_JOB_NONE, active=False, uuid="a"):
        self.job, self.active, self.uuid = job, active, uuid

    def UUIDString(self):  # noqa: N802 - libvirt's name
        return self.uuid

    def jobInfo(self):  # noqa: N802 - libvirt's name
        return [self.job, *[0] * 11]

    def isActive(self):  # noqa: N802 - libvirt's name
        return self.active


def eyes(name="xen-hvm"):
    return Eyes(PROFILES[name], building.INSTANCE, lambda: 0.0)


def test_an_end_on_xen_may_still_be_a_reboot():
    looking, domain = eyes(), Settling()
    settles = PROFILES["xen-hvm"].off_settles_s
    assert looking._settled(domain, Seen.RUNNING, "booted", 100.0) == (Seen.RUNNING, "booted")
    assert looking._settled(domain, Seen.OFF, "shutdown", 101.0) == (Seen.STOPPING, SETTLING)
    assert looking._settled(domain, Seen.OFF, "shutdown", 100.9 + settles) == (Seen.STOPPING, SETTLING)
    assert looking._settled(domain, Seen.OFF, "shutdown", 101.0 + settles) == (Seen.OFF, "shutdown")
    assert looking._off_at[domain.uuid] == 101.0, "that is when it ended"


@pytest.mark.parametrize("job,active,seen", [
    (LV.VIR_DOMAIN_JOB_UNBOUNDED, False, (Seen.STOPPING, SETTLING)),
    (LV.VIR_DOMAIN_JOB_NONE, True, (Seen.STOPPING, SETTLING)),  # it was ready between two questions
    (LV.VIR_DOMAIN_JOB_NONE, False, (Seen.OFF, "shutdown")),
])  # fmt: skip
def test_a_reboot_may_take_as_long_as_libvirt_is_at_work_on_it(job, active, seen):
    looking, domain = eyes(), Settling(job, active)
    looking._settled(domain, Seen.OFF, "shutdown", 101.0)
    assert looking._settled(domain, Seen.OFF, "shutdown", 101.0 + PROFILES["xen-hvm"].off_settles_s) == seen


def test_an_end_is_waited_for_from_the_first_look_that_saw_it():
    """The last look that saw it alive may be a minute old."""
    looking, domain = eyes(), Settling()
    looking._settled(domain, Seen.RUNNING, "booted", 100.0)
    assert looking._settled(domain, Seen.OFF, "unknown", 160.0) == (Seen.STOPPING, SETTLING)
    assert looking._settled(domain, Seen.RUNNING, "booted", 166.0) == (Seen.RUNNING, "booted")
    assert looking._settled(domain, Seen.OFF, "shutdown", 300.0) == (Seen.STOPPING, SETTLING)


def test_a_reboot_that_began_before_the_agent_did_is_no_end_either():
    looking, domain = eyes(), Settling()
    assert looking._settled(domain, Seen.OFF, "shutdown", 100.0) == (Seen.STOPPING, SETTLING)


@pytest.mark.parametrize("reason", CERTAIN_ENDS)
def test_a_certain_end_does_not_wait(reason):
    looking, domain = eyes(), Settling()
    looking._settled(domain, Seen.RUNNING, "booted", 100.0)
    assert looking._settled(domain, Seen.OFF, reason, 101.0) == (Seen.OFF, reason)


def test_what_was_never_alive_is_off_at_once_and_elsewhere_too():
    domain = Settling()
    assert eyes()._settled(domain, Seen.OFF, "unknown", 100.0) == (Seen.OFF, "unknown")
    kvm = eyes("kvm")
    kvm._settled(domain, Seen.RUNNING, "booted", 100.0)
    assert kvm._settled(domain, Seen.OFF, "shutdown", 100.1) == (Seen.OFF, "shutdown")


class Described:
    """A domain with an XML that somebody changes."""

    def __init__(self):
        self.number, self.limit, self.asked = 1, 5, 0

    def ID(self):
        return self.number

    def XMLDesc(self, flags):
        self.asked += 1
        disk = f"<disk><target dev='vda'/><iotune><read_iops_sec>{self.limit}</read_iops_sec></iotune></disk>"
        return f"<domain><memory>1024</memory><devices>{disk}</devices></domain>"


def test_an_xml_that_cannot_have_changed_is_not_asked_for():
    looking, domain = eyes("kvm"), Described()
    first = looking._known_parts(domain, "u", False)
    domain.limit = 6
    assert looking._known_parts(domain, "u", False) is first
    looking.forget("u")
    assert looking._known_parts(domain, "u", False).disk_io == DiskIo(None, None, 6)
    domain.number, domain.limit = 2, 7
    assert looking._known_parts(domain, "u", False).disk_io == DiskIo(None, None, 7)
    assert domain.asked == 3


def test_where_a_disk_is_limited_no_event_is_needed_to_see_a_change():
    looking, domain = eyes("kvm"), Described()
    first = looking._known_parts(domain, "u", True)
    assert looking._known_parts(domain, "u", True) is first
    domain.limit = 6
    assert looking._known_parts(domain, "u", True).disk_io == DiskIo(None, None, 6)


class Said(libvirt.libvirtError):
    """An error as libvirt's binding has it."""

    def __init__(self, code, number):
        super().__init__("said")
        self.err = (code, LV.VIR_FROM_RPC, "why", LV.VIR_ERR_ERROR, None, None, None, number, -1)


@pytest.mark.parametrize(
    "code,number,told",
    [
        (LV.VIR_ERR_SYSTEM_ERROR, errno.EACCES, True),
        (LV.VIR_ERR_SYSTEM_ERROR, errno.ENOENT, False),
        (LV.VIR_ERR_AUTH_UNAVAILABLE, -1, True),
        (LV.VIR_ERR_AUTH_FAILED, -1, True),
        (LV.VIR_ERR_INTERNAL_ERROR, errno.EACCES, False),
    ],
)
def test_a_libvirt_that_lets_this_user_not_in_is_told_with_what_would(code, number, told):
    assert ("usermod -aG libvirt" in closed(Said(code, number))) is told


class Going:
    """A domain whose scheduler cannot be read: it ends at this moment."""

    def __init__(self, error):
        self.error = error

    def schedulerParameters(self):  # noqa: N802 - libvirt's name
        raise self.error

    def schedulerParametersFlags(self, flags):  # noqa: N802 - libvirt's name
        raise self.error


def from_libxl(code, origin=LV.VIR_FROM_LIBXL):
    error = Said(code, -1)
    error.err = (code, origin, *error.err[2:])
    return error


def test_a_domain_of_xen_that_is_made_anew_hinders_no_look():
    for code in (LV.VIR_ERR_INTERNAL_ERROR, LV.VIR_ERR_OPERATION_INVALID):
        assert eyes("xen-pv")._scheduled(Going(from_libxl(code))) == (None, None)


def test_it_is_stopping_and_no_limit_is_missed_but_not_for_long():
    """Else every reboot were told as a limit that cannot be read."""
    looking, vm = eyes("xen-pv"), building.spec().vm
    settles = PROFILES["xen-pv"].off_settles_s
    parts = parts_of("<domain><memory>1024</memory></domain>")

    def look(at, domain):
        found = looking._limited(domain, DomainSeen(vm, Seen.RUNNING, "booted", at), parts, 7)
        return found.seen, found.reason, found.cpu

    going = Going(from_libxl(LV.VIR_ERR_INTERNAL_ERROR))
    assert look(1.0, going) == look(settles, going) == (Seen.STOPPING, SETTLING, None)
    assert look(1.0 + settles, going) == (Seen.RUNNING, "booted", None)
    assert look(50.0, Held()) == (Seen.RUNNING, "booted", CpuLimit(100_000, 60_000))
    assert look(90.0, going)[0] is Seen.STOPPING, "another time"


class Empty:
    def listAllDomains(self, flags):  # noqa: N802 - libvirt's name
        return []


def test_what_went_away_leaves_nothing_behind_for_another_of_its_number():
    looking, fading, ended = eyes("xen-pv"), "a", Settling(uuid="b")
    settles, going = PROFILES["xen-pv"].off_settles_s, Going(from_libxl(LV.VIR_ERR_INTERNAL_ERROR))

    def fades(at):
        found = DomainSeen(fading, Seen.RUNNING, "booted", at)
        return looking._limited(going, found, parts_of("<domain><memory>1024</memory></domain>"), 7).reason == SETTLING

    assert fades(1.0) and not fades(1.0 + settles)
    looking._settled(ended, Seen.RUNNING, "booted", 1.0)
    assert looking._settled(ended, Seen.OFF, "unknown", 1.0) == (Seen.STOPPING, SETTLING)
    looking.all(Empty())
    assert fades(1.0 + settles)
    assert looking._settled(ended, Seen.OFF, "unknown", 1.0) == (Seen.OFF, "unknown")


class Held:
    def schedulerParameters(self):  # noqa: N802 - libvirt's name
        return {"cap": 60, "weight": 256}


@pytest.mark.parametrize(
    "profile,error",
    [
        ("xen-pv", from_libxl(LV.VIR_ERR_INTERNAL_ERROR, LV.VIR_FROM_RPC)),  # the connection broke
        ("xen-pv", from_libxl(LV.VIR_ERR_NO_SUPPORT)),
        ("kvm", from_libxl(LV.VIR_ERR_INTERNAL_ERROR, LV.VIR_FROM_QEMU)),
    ],
)
def test_what_says_something_else_is_told(profile, error):
    with pytest.raises(libvirt.libvirtError):
        eyes(profile)._scheduled(Going(error))


class Reborn:
    """A domain that libvirt makes anew: what waits for that finds it running."""

    def __init__(self):
        self.active, self.undefined = False, False

    def setAutostart(self, on):  # noqa: N802 - libvirt's name
        self.active = True

    def isActive(self):  # noqa: N802 - libvirt's name
        return self.active

    def undefineFlags(self, flags):  # noqa: N802 - libvirt's name
        self.undefined = True


def test_what_is_made_anew_at_this_moment_is_not_undefined():
    domain, row = Reborn(), PROFILES["xen-pv"]
    hands = perform.Hands(row, Choice((row,), ""), building.INSTANCE, lambda spec: None)
    with pytest.raises(Fault) as caught:
        hands._undefine(domain, None)
    assert (caught.value.kind, domain.undefined) == (FaultKind.BUSY, False)
