"""A VM's disks beside its own: what a request asks for, what the site allows, and who has a volume.

Rules

1. A path is the site's: a request names a volume, and its file is looked up when the domain is defined.
2. Several VMs of this host may have one volume to read; who may write has it alone.  A VM has a volume from its
   acceptance to its proven end.  Decided at admission, and again at every step (`excluded`): with the store lost, VMs
   that nobody remembered are adopted by their tags.  The better right is that of a guest that has it, then of one that
   may, then of who was accepted first.
3. A disk keeps its place for its whole life: the third disk is `vdc` with KVM and `xvdc` with Xen.  Guests had better
   look for its serial (`/dev/disk/by-id/virtio-SERIAL`): a volume's name, or `scratch-c`.
"""

from __future__ import annotations

import dataclasses
from fnmatch import fnmatchcase
from typing import Any, Container, Dict, Iterable, Iterator, List, Mapping, Sequence, Tuple

from vmagent.core.drivers import Profile
from vmagent.core.model import CDROM, SCRATCH, VOLUME, Disk, DomainSeen, Owner, VmRecord, VmSpec, VolumeUse
from vmagent.core.policy import Policy
from vmagent.errors import Problem

FIRST_PLACE = 2  # after the overlay and the seed
MOST = 8
_PREFIXES = ("vd", "xvd", "sd", "hd")


def asked_for(args: Mapping[str, Any]) -> Tuple[Disk, ...]:
    """The disks of a schema-valid start, in order, each in its place."""
    return tuple(_disk(one, FIRST_PLACE + index) for index, one in enumerate(args.get("disks", ())))


def _disk(one: Mapping[str, Any], place: int) -> Disk:
    if "scratch_gib" in one:
        return Disk(SCRATCH, place, size_gib=one["scratch_gib"])
    if "cdrom" in one:
        return Disk(CDROM, place, volume=one["cdrom"], read_only=True)
    return Disk(VOLUME, place, volume=one["volume"], read_only=bool(one.get("read_only", False)))


def read_only_most(profile: Profile) -> int:
    """How many volumes, the first of those asked for, such a guest can have that it can only read."""
    return max(0, min(MOST, profile.read_only_below - FIRST_PLACE))


def scratch_gib(disks: Iterable[Disk]) -> int:
    """What they take of this host's own disk."""
    return sum(disk.size_gib for disk in disks)


def promised_gib(spec: VmSpec) -> int:
    """What this VM may grow to on this host's own disk: overlay and scratch disks."""
    return spec.disk_gib + scratch_gib(spec.disks)


def letter(disk: Disk) -> str:
    """The end of its name in the guest: `c` for the third."""
    return chr(ord("a") + disk.place)


def serial(disk: Disk) -> str:
    """By which a guest finds it."""
    return disk.volume or f"{disk.kind}-{letter(disk)}"


def attached(disk: Disk, domain: DomainSeen) -> bool:
    """Whether a live domain has it in its place, whatever its bus is called there; by its serial, where there is one.

    Somebody may have put another disk there.
    """
    targets = {f"{prefix}{letter(disk)}" for prefix in _PREFIXES}
    if domain.disks_seen is None:
        return bool(targets.intersection(domain.disks))
    return any(one.target in targets and one.serial == serial(disk) for one in domain.disks_seen)


def unasked(domain: DomainSeen, spec: VmSpec, names: Container[str]) -> Iterator[Disk]:
    """Volumes of these names that a live domain has and its wish does not name: a guest that nobody remembered was
    about to let them go.  What an adopted guest has is not ours to look at.
    """
    for one in () if spec.adopted else domain.disks_seen or ():
        place = ord(one.target[-1:] or "a") - ord("a")
        found = Disk(VOLUME, place, volume=one.serial, read_only=one.read_only)
        wished = any(disk.volume == one.serial for disk in spec.disks)
        if one.serial in names and place >= FIRST_PLACE and not wished and attached(found, domain):
            yield found


# -- may it be had


def problems(
    disks: Sequence[Disk], owner: Owner, policy: Policy, records: Iterable[VmRecord], count: int = 1,
    at: str = "args.disks",
) -> List[Problem]:
    """Why these volumes may not be had, for each all reasons: `unknown-volume`, `not-authorised`, `volume-read-only`,
    `volume-in-use`.  count: how many VMs alike want them; records: all wishes, the asker's own left out.
    """
    found: List[Problem] = []
    records = tuple(records)
    for index, disk in enumerate(disks):
        if disk.volume:
            path = at.replace("[]", f"[{index}]") if "[]" in at else at
            found += _of_volume(disk, owner, policy, path)
            found += _taken(disk, disks[:index], records, count, path)
    return found


def _of_volume(disk: Disk, owner: Owner, policy: Policy, path: str) -> Iterator[Problem]:
    volume = policy.volumes.get(disk.volume)
    if volume is None:
        known = sorted(policy.volumes)
        detail = f"there is no volume {disk.volume}; there is {', '.join(known) or 'none'}"
        yield Problem("unknown-volume", detail, path=path, accepted=known)
        return
    if not any(fnmatchcase(owner.vo, pattern) for pattern in volume.vos):
        detail = f"volume {disk.volume} is for the VOs {', '.join(volume.vos)}, not for {owner.vo or 'no VO'}"
        yield Problem("not-authorised", detail, path=path)
    if not volume.writable and not disk.read_only:
        yield Problem("volume-read-only", f"volume {disk.volume} can only be read here: ask for read_only", path=path)


def _taken(
    disk: Disk, before: Sequence[Disk], records: Iterable[VmRecord], count: int, path: str
) -> Iterator[Problem]:
    if any(other.volume == disk.volume for other in before):
        yield Problem("volume-in-use", f"volume {disk.volume} is asked for twice", path=path)
    if count > 1 and not disk.read_only:
        yield Problem("volume-in-use", f"volume {disk.volume} can be written by one VM only, not by {count}", path=path)
    if any(disk.volume == held.volume and not (disk.read_only and held.read_only) for held in held_by(records)):
        how = "written" if disk.read_only else "used"
        yield Problem("volume-in-use", f"volume {disk.volume} is {how} by another VM on this host", path=path)


def held_by(records: Iterable[VmRecord]) -> Iterator[Disk]:
    """The volumes that VMs which have not ended wish for, or still have."""
    for record in records:
        if record.outcome is None and not record.closed:
            yield from (disk for disk in record.spec.disks if disk.volume)
            yield from held(record)


def excluded(record: VmRecord, others: Iterable[VmRecord]) -> Dict[Disk, str]:
    """Volumes of its wish to which another VM has the better right, and that VM's id; never one that its guest has."""
    wanted = {disk.volume: disk for disk in record.spec.disks if disk.volume}
    found: Dict[Disk, str] = {}
    for other in others:
        for disk in held_by((other,)):
            mine = wanted.get(disk.volume)
            if mine is None or (mine.read_only and disk.read_only):
                continue
            claim = _claim(record, disk.volume)
            if claim[0] and _claim(other, disk.volume) < claim:
                found[mine] = other.vm
    return found


def _claim(record: VmRecord, volume: str) -> Tuple[int, str, str]:
    """The smaller, the better."""
    has = any(disk.volume == volume for disk in held(record))
    return 0 if has else 1 if record.journal.may_have_run else 2, record.accepted_wall, record.vm


def held(record: VmRecord) -> Iterator[Disk]:
    """The volumes that this VM's guest has, as last seen."""
    return (use.disk for use in record.journal.volumes if not use.detached_wall)


def released(uses: Iterable[VolumeUse], wall: str) -> Tuple[VolumeUse, ...]:
    """The guest is gone: it has none any more."""
    return tuple(use if use.detached_wall else dataclasses.replace(use, detached_wall=wall) for use in uses)


def plain(disk: Disk) -> Mapping[str, Any]:
    """As vm.state tells it."""
    return {**{f.name: getattr(disk, f.name) for f in dataclasses.fields(disk) if f.name != "place"},
            "serial": serial(disk)}
