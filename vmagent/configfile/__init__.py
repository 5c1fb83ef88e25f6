"""Reads vmagent.yaml and its drop-ins into a Config, or tells everything that is wrong with them at once.

Order: every file strictly (loading), all laid over one another, the schema (shape), defaults (defaults), what
settings say about one another (checks), what the host must have (files; only when asked).  A check whose settings the
schema refused is left out, so that nobody reads a consequence as a second error.

Secrets: none can stand in the configuration, only names of files; a URL with a login in it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Set

from vmagent.config import Config
from vmagent.configfile import building, rendering
from vmagent.configfile.checks import CHECKS
from vmagent.configfile.defaults import filled, schema
from vmagent.configfile.files import host_complaints
from vmagent.configfile.loading import Complaint, load, origins, plain
from vmagent.configfile.shape import shape_complaints
from vmagent.core.places import place
from vmagent.errors import Problem, Problems

DEFAULT_PATH = Path("/etc/vmagent/vmagent.yaml")


@dataclass(frozen=True)
class Raw:
    """What is in force, before it becomes a Config.

    sources: place -> "file:line"; a place without one has its default.
    """

    values: Mapping[str, Any]
    sources: Mapping[str, str]


def read(path: Path, fqdn: str = "", check_files: bool = False) -> Config:
    """The configuration.  fqdn: this host's name, for `host: null`.  Problems of type `configuration`, all of them.

    check_files: also check that files, directories and groups exist on this host.
    """
    raw = read_raw(path, fqdn, check_files)
    return building.config(raw.values, raw.sources)


def read_raw(path: Path, fqdn: str = "", check_files: bool = False) -> Raw:
    """The same, not yet built: for --show-config."""
    spot, complaints = load(path, schema())
    sources = origins(spot)
    if any(not c.parts for c in complaints):
        raise Problems([_problem(c, sources, path) for c in complaints])  # a file unread: the rest would mislead
    told = {c.parts for c in complaints if c.parts}
    said = plain(spot)
    if said.get("host") is None and fqdn:
        said["host"] = fqdn
        sources["host"] = "this host's name"
    complaints += [c for c in shape_complaints(said) if not any(c.parts[: len(parts)] == parts for parts in told)]
    values = filled(said, schema())
    if values.get("host") is None:
        complaints.append(Complaint(("host",), "missing, and this host has no name", "a host name"))
    complaints += _cross(values, complaints)
    if check_files and not complaints:
        complaints += host_complaints(values)
    if complaints:
        raise Problems([_problem(c, sources, path) for c in complaints])
    return Raw(values, sources)


def show(raw: Raw) -> str:
    """YAML of what is in force, each setting with its source as a comment."""
    return rendering.show(dict(raw.values), raw.sources)


def _cross(values: Mapping[str, Any], before: Iterable[Complaint]) -> List[Complaint]:
    bad: Set[Sequence[Any]] = {c.parts for c in before}
    found: List[Complaint] = []
    for sections, check in CHECKS:
        if not any(part[: len(section)] == section for section in sections for part in bad) and all(
            _reachable(values, section) for section in sections
        ):
            found += check(values)
    return found


def _reachable(values: Any, section: Sequence[str]) -> bool:
    for name in section:
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True


def _problem(complaint: Complaint, sources: Mapping[str, str], main: Path) -> Problem:
    """`vmagent.yaml:12: at hypervisor.threads: 9; accepted: a whole number, 1 to 4 calls`."""
    where = place(complaint.parts)
    origin = complaint.origin or _origin(complaint, sources) or str(main)
    at = f"at {where}: " if where else ""
    fields: Dict[str, Any] = {"path": where, "file": origin, "accepted": complaint.accepted}
    return Problem("configuration", f"{origin}: {at}{complaint.detail}; accepted: {complaint.accepted}", **fields)


def _origin(complaint: Complaint, sources: Mapping[str, str]) -> str:
    """Where the setting was said, or the nearest section around it."""
    for length in range(len(complaint.parts), 0, -1):
        origin = sources.get(place(complaint.parts[:length]))
        if origin:
            return origin
    return ""
