"""Canonical JSON of the stored values: the store's columns, the domain's tag and digests use this one form.

Reading is explicit, member by member; a member that is missing takes the default of the value's class, so an older
text can always be read (new members get defaults, never a new meaning).  Errors: ValueError, KeyError, TypeError.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import hashlib
import json
from enum import Enum
from typing import Any, Dict, Mapping, Optional

from vmagent.core.imagemodel import Boot, BootFile
from vmagent.core.model import (
    Desired,
    Disk,
    DiskIo,
    Firewall,
    ImageRef,
    Interface,
    Journal,
    Limits,
    NicLimits,
    Outcome,
    Owner,
    Reason,
    Rule,
    Tag,
    VmRecord,
    VmSpec,
    VolumeUse,
)
from vmagent.core.snapshotmodel import Snapshot, SnapshotState
from vmagent.core.usagemodel import Account, Benchmark, Footprint, Kind, Known, Use

_SCALARS = frozenset((str, int, float, bool, type(None)))


def plain(value: Any) -> Any:
    """A frozen value as JSON-able builtins."""
    if type(value) in _SCALARS:  # nine of ten values: every commit of the store comes through here
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, collections.abc.Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(v) for v in value)
    return value


def canonical(value: Any) -> str:
    """One text per value: sorted members, no white space, ASCII."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical form."""
    return hashlib.sha256(canonical(value).encode("ascii")).hexdigest()


def _tuples(raw: Mapping[str, Any], *names: str) -> Dict[str, Any]:
    """The members of `raw`, with these lists as tuples."""
    out = dict(raw)
    for name in names:
        if name in out:
            out[name] = tuple(out[name])
    return out


def spec_from_json(raw: Mapping[str, Any]) -> VmSpec:
    members = _tuples(raw, "tags")
    members["image"] = ImageRef(**{**raw["image"], "boot": boot_from_json(raw["image"].get("boot"))})
    members["owner"] = Owner(**raw["owner"])
    members["interfaces"] = tuple(Interface(**_tuples(i, "addresses", "gateways", "dns")) for i in raw["interfaces"])
    members["limits"] = limits_from_json(raw["limits"])
    members["disks"] = tuple(Disk(**disk) for disk in raw.get("disks", ()))
    return VmSpec(**members)


def boot_from_json(raw: Optional[Mapping[str, Any]]) -> Optional[Boot]:
    if raw is None:
        return None
    files = {name: BootFile(**raw[name]) for name in ("kernel", "initrd") if raw.get(name) is not None}
    return Boot(**{**raw, **files})


def limits_from_json(raw: Mapping[str, Any]) -> Limits:
    members = dict(raw)
    members["disk_io"] = DiskIo(**raw.get("disk_io", {}))
    members["nics"] = tuple(_nic(nic) for nic in raw.get("nics", ()))
    members["sources"] = tuple((str(path), str(source)) for path, source in raw.get("sources", ()))
    return Limits(**members)


def _nic(raw: Mapping[str, Any]) -> NicLimits:
    return NicLimits(**{**raw, "firewall": firewall_from_json(raw.get("firewall", {}))})


def firewall_from_json(raw: Mapping[str, Any]) -> Firewall:
    return Firewall(*(tuple(_rule(rule) for rule in raw.get(way, ())) for way in ("inbound", "outbound")))


def _rule(raw: Mapping[str, Any]) -> Rule:
    return Rule(**{**raw, "ports": tuple((int(first), int(last)) for first, last in raw.get("ports", ()))})


def tag_from_json(raw: Mapping[str, Any]) -> Tag:
    members = dict(raw)
    members["spec"] = spec_from_json(raw["spec"])
    return Tag(**members)


def _outcome(raw: Optional[str]) -> Optional[Outcome]:
    return None if raw is None else Outcome(raw)


def _journal(raw: Mapping[str, Any]) -> Journal:
    members = _tuples(raw, "warned_s", "alarms")
    if members.get("limits_before") is not None:
        members["limits_before"] = limits_from_json(members["limits_before"])
    members["volumes"] = tuple(VolumeUse(**{**use, "disk": Disk(**use["disk"])}) for use in raw.get("volumes", ()))
    return Journal(**members)


def record_from_json(raw: Mapping[str, Any]) -> VmRecord:
    members = dict(raw)
    members["spec"] = spec_from_json(raw["spec"])
    members["desired"] = Desired(raw["desired"])
    members["journal"] = _journal(raw.get("journal", {}))
    members["outcome"] = _outcome(raw.get("outcome"))
    members["reasons"] = tuple(Reason(**r) for r in raw.get("reasons", ()))
    members["timings_ms"] = tuple((str(name), int(ms)) for name, ms in raw.get("timings_ms", ()))
    members["last_commands"] = tuple((str(who), str(when)) for who, when in raw.get("last_commands", ()))
    members["snapshots"] = tuple(_snapshot(one) for one in raw.get("snapshots", ()))
    return VmRecord(**members)


def account_from_json(raw: Mapping[str, Any]) -> Account:
    members = _tuples(raw, "devices", "measured", "ever", "vanished")
    members["footprint"] = _footprint(raw["footprint"])
    members["total"], members["before"] = _use(raw["total"]), _use(raw["before"])
    members["known"], members["kind"] = _known(raw["known"]), Kind(raw["kind"])
    return Account(**members)


def _footprint(raw: Mapping[str, Any]) -> Footprint:
    benchmark = raw.get("benchmark")
    return Footprint(**{**_tuples(raw, "public_addresses"), "benchmark": benchmark and Benchmark(**benchmark)})


def _use(raw: Mapping[str, Any]) -> Use:
    return Use(**_tuples(raw, "network", "disk"))


def _known(raw: Mapping[str, Any]) -> Known:
    members = dict(raw)
    if raw.get("disk") is not None:
        members["disk"] = tuple(raw["disk"])
    if raw.get("nics") is not None:
        members["nics"] = tuple((str(device), tuple(counts)) for device, counts in raw["nics"])
    return Known(**members)


def _snapshot(raw: Mapping[str, Any]) -> Snapshot:
    return Snapshot(**{**raw, "state": SnapshotState(raw["state"])})
