"""What a host's driver lacks is refused before anything is stored: every verb on every row of the driver profile."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Sequence, Tuple

import pytest

from tests.support import building as b
from tests.unit.test_admission import ROOM, start
from vmagent.core import abilities, drivers, limits, room, schemas
from vmagent.core.admission import admit
from vmagent.core.commands import VERBS, Command, Signer
from vmagent.core.drivers import PROFILES, Profile
from vmagent.core.imagemodel import Boot, BootFile
from vmagent.core.model import HypervisorInfo
from vmagent.core.policy import CatalogueImage, Defaults, Volume
from vmagent.core.room import HostRoom
from vmagent.errors import Problem, reasons

KERNEL = BootFile("vmlinuz-6.1", "cd" * 64)
IMAGES = {
    "tiny": None, "pv": Boot("pv", KERNEL), "pvh": Boot("pvh", KERNEL), "looked-for": Boot("pv"),
}  # fmt: skip
POLICY = b.policy(images={
    name: CatalogueImage(name, name, "raw", b.SHA512, boot=boot) for name, boot in IMAGES.items()
})


def info(kinds: Sequence[Profile], **kw: Any) -> HypervisorInfo:
    """As the adapter tells it of a host that starts these kinds."""
    told: Dict[str, Any] = {**drivers.told(kinds[0], kinds), **kw}
    row = kinds[0]
    return HypervisorInfo("x:///", row.driver, row.domain_type, "x86_64", "9", "4", 8, 16384, True, 1.0, **told)


def host(*names: str, **kw: Any) -> HostRoom:
    return dataclasses.replace(ROOM, **room.of_driver(info([PROFILES[name] for name in names])), **kw)


def command(verb: str, **args: Any) -> Command:
    return Command("c", verb, f"{verb}/1", b.WALL, b.WALL, "h", "", None, None, "", args, "d" * 64, Signer(b.SIGNER),
                   "broker")


def capabilities(problems: Sequence[Problem]) -> List[str]:
    return [str(one.fields["capability"]) for one in problems if one.type == "not-supported-here"]


def refusals(asked: Command, here: HostRoom, policy: Any = POLICY) -> Sequence[Problem]:
    """Every one of a start."""
    try:
        admit(asked, policy, (), here)
    except Problem as problem:
        return reasons(problem)
    return ()


def refused(asked: Command, here: HostRoom, policy: Any = POLICY) -> List[str]:
    """The capabilities for whose lack it is refused, by what decides this verb."""
    if asked.verb == "vm.start":
        return capabilities(refusals(asked, here, policy))
    if asked.verb == "vm.limits":
        wanted = limits.changed(asked.args, b.spec(cpu_cap_core_percent=None), policy).limits
        return [str(one.fields["capability"]) for one in abilities.of_limits(wanted, here)]
    return [str(one.fields["capability"]) for one in abilities.of_command(asked, here)]


SHAPE = {"cores": 1, "memory_mib": 512, "disk_gib": 2}
ASKED: Tuple[Tuple[Command, str], ...] = (
    (start(**SHAPE, cpu_cap_core_percent=50), "cpu_cap"),
    (start(**SHAPE, cpu_weight=300), "cpu_cap"),
    (start(**SHAPE, disk_io={"read_ops_per_s": 10}), "disk_io"),
    (start(**SHAPE, image={"id": "pvh"}), ""),
    (start(**SHAPE), ""),
    (command("vm.limits", cpu_cap_core_percent=50), "cpu_cap"),
    (command("vm.limits", cpu_weight=300), "cpu_cap"),
    (command("vm.limits", disk_io={"write_bytes_per_s": 1000000}), "disk_io"),
    (command("vm.attach", volume="data"), "live_disks"),
    (command("vm.detach", volume="data"), "live_disks"),
    (command("vm.snapshot", name="s"), "snapshots"),
    (command("vm.snapshot", name="s", kind="full"), "snapshots"),
    (command("vm.snapshot", name="s", quiesce="required"), "snapshots.quiesce"),
    (command("vm.snapshot.delete", name="s"), "snapshots"),
    (command("vm.snapshot.cancel", name="s"), "snapshots"),
    (command("vm.revert", snapshot="s"), "snapshots.revert"),
    (command("vm.revert"), ""),
)
HAS = {
    "cpu_cap": lambda row: row.cpu_caps,
    "disk_io": lambda row: row.disk_io,
    "live_disks": lambda row: row.live_disks,
    "snapshots": lambda row: bool(row.snapshots),
    "snapshots.quiesce": lambda row: row.quiesce,
    "snapshots.revert": lambda row: "disk" in row.snapshots,
}  # by the profile itself
NEEDS_NOTHING = {
    "vm.stop", "vm.kill", "vm.reboot", "vm.restart", "vm.pause", "vm.resume", "vm.extend", "vm.snapshot.list",
    "vm.query", "capacity.query", "image.list", "image.fetch", "image.evict", "image.pin", "image.unpin",
    "image.revoke", "host.report", "host.drain", "host.undrain",
}  # fmt: skip


def test_every_verb_is_in_the_table_or_needs_nothing() -> None:
    asked = {one.verb for one, _ in ASKED}
    assert asked | NEEDS_NOTHING == set(VERBS)
    assert not asked & NEEDS_NOTHING


@pytest.mark.parametrize("name", PROFILES)
def test_what_the_profile_lacks_is_refused_by_name_and_nothing_else_is(name: str) -> None:
    row, here = PROFILES[name], host(name)
    for asked, needs in ASKED:
        if asked.verb == "vm.start" and not row.firmware:
            args = {**asked.args, "image": {"id": row.guest}}
            asked = dataclasses.replace(asked, args=args)
        elif asked.args.get("image") == {"id": "pvh"} and row.driver != "Xen":
            pass  # its firmware boots the disk
        elif asked.args.get("image") == {"id": "pvh"}:
            continue  # the next tests
        lacks = bool(needs) and not HAS[needs](row)
        assert (needs in refused(asked, here)) is lacks, (name, asked.verb, asked.args)
        if not needs:
            assert refused(asked, here) == [], (name, asked.verb, asked.args)


@pytest.mark.parametrize("name", PROFILES)
def test_every_action_that_a_profile_cannot_do_is_behind_a_capability(name: str) -> None:
    row, here = PROFILES[name], host(name)
    for do in row.unsupported:
        assert not abilities.TABLE[abilities.GUARDS[do]][0](here), do
    for do in set(abilities.GUARDS) - row.unsupported:
        assert abilities.TABLE[abilities.GUARDS[do]][0](here), f"{do} is refused, and the driver could"


def test_what_the_site_s_own_limits_ask_for_counts_as_well() -> None:
    site = dataclasses.replace(POLICY, defaults=Defaults(disk_read_ops_per_s=100))
    assert refused(start(**SHAPE), host("xen-hvm"), site) == ["disk_io"]
    assert refused(start(**SHAPE), host("kvm"), site) == []


@pytest.mark.parametrize(("hosts", "image", "lacks"), [
    (("kvm",), "pvh", []), (("xen-hvm", "xen-pvh", "xen-pv"), "pvh", []), (("xen-hvm", "xen-pv"), "pvh", ["guests"]),
    (("xen-pv",), "tiny", ["guests"]), (("xen-pv",), "pv", []), (("xen-pv",), "looked-for", []),
    (("test",), "looked-for", []),
])
def test_a_kind_of_guest_that_is_not_started_here_is_refused(hosts: Any, image: str, lacks: List[str]) -> None:
    assert refused(start(**SHAPE, image={"id": image}), host(*hosts)) == lacks


def test_a_kernel_on_a_guest_s_own_disk_only_where_it_may_be_looked_for() -> None:
    forbidden = dataclasses.replace(host("xen-pv"), bootloader=False)
    assert refused(start(**SHAPE, image={"id": "looked-for"}), forbidden) == ["bootloader"]
    assert refused(start(**SHAPE, image={"id": "pv"}), forbidden) == []


@pytest.mark.parametrize(("name", "lacks"), [
    ("kvm", []), ("xen-pv", []), ("xen-hvm", [2, 3]), ("xen-pvh", [0, 2, 3]), ("test", []),
])
def test_a_volume_that_can_only_be_read_where_the_kind_of_guest_has_no_such_disk(name: str, lacks: List[int]) -> None:
    row = PROFILES[name]
    volumes = {each: Volume(each, f"/srv/{each}") for each in ("a", "b", "c")}
    wanted = [{"volume": "a", "read_only": True}, {"scratch_gib": 1}, {"cdrom": "b"},
              {"volume": "c", "read_only": True}]
    asked = start(**SHAPE, image={"id": "tiny" if row.firmware else row.guest}, disks=wanted)
    site = dataclasses.replace(POLICY, volumes=volumes)
    found = refusals(asked, host(name), site)
    assert [one.fields["path"] for one in found] == [f"args.disks[{index}]" for index in lacks]
    assert {one.fields["capability"] for one in found} <= {"read_only_volumes"}


def test_of_a_driver_that_nobody_has_talked_to_nothing_is_known() -> None:
    away = HypervisorInfo("xen:///system", "", "", "", "", "", 0, 0, False, 1.0, startable=False)
    here = dataclasses.replace(ROOM, **room.of_driver(away))
    assert not here.known
    for asked, _ in ASKED:
        assert refused(asked, here) == []


def test_capabilities_are_those_that_a_host_publishes() -> None:
    told = schemas.schema("event.host.state")["properties"]["capabilities"]["properties"]
    for name in abilities.TABLE:
        member, _, below = name.partition(".")
        assert member in told
        assert not below or below in told[member]["properties"]
