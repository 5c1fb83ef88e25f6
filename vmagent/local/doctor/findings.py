"""The words of an examination: a check is a row, a finding says how it is and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Callable, List, Mapping, Optional, Protocol, Sequence

from vmagent.config import Config
from vmagent.core import validity

SYSTEMD = Path("/run/systemd/system")  # there where systemd runs the host: sd_booted(3)
DAY_S = 86400.0


class Level(str, Enum):
    """How it is; `unknown` is neither good nor bad and is never taken for `ok`."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """text: what was found; mend: what to do about it, empty only when the level is ok."""

    level: Level
    text: str
    mend: str = ""


@dataclass(frozen=True)
class Owned:
    """Who owns a file and who may do what."""

    user: str
    group: str
    mode: int  # permission bits


class Host(Protocol):
    """The host under examination; every path is one of the real host's, absolute."""

    def run(self, *argv: str) -> str:
        """Standard output of a short command.  Faults: REFUSED (not installed, or failed), UNKNOWN (deadline)."""

    def read(self, path: Path) -> Optional[bytes]:
        """A file's content; None when it is absent or unreadable."""

    def exists(self, path: Path) -> bool: ...

    def list(self, directory: Path) -> Sequence[Path]:
        """What lies in a directory, sorted; nothing when there is none."""

    def owned(self, path: Path) -> Optional[Owned]: ...

    def writable(self, path: Path) -> bool: ...

    def free_gib(self, path: Path) -> Optional[float]:
        """Free space of the file system where `path` is or would be."""

    def reach(self, url: str, config: Config) -> Optional[float]:
        """Connect to a broker's URL.  End of its certificate's validity (wall seconds), None without TLS.  OSError."""

    def wall(self) -> float:
        """Seconds since 1970."""


@dataclass(frozen=True)
class Facts:
    """What a check may look at.  live: what the running agent says of itself; None = it does not run."""

    config: Config
    host: Host
    live: Optional[Mapping[str, Any]] = None


@dataclass(frozen=True)
class Check:
    """One row.  The identifier is stable, for scripts."""

    id: str
    title: str
    run: Callable[[Facts], Finding]


def ok(text: str) -> Finding:
    return Finding(Level.OK, text)


def warn(text: str, mend: str) -> Finding:
    return Finding(Level.WARN, text, mend)


def fail(text: str, mend: str) -> Finding:
    return Finding(Level.FAIL, text, mend)


def unknown(text: str, mend: str) -> Finding:
    return Finding(Level.UNKNOWN, text, mend)


ORDER = (Level.OK, Level.UNKNOWN, Level.WARN, Level.FAIL)


def joined(findings: Sequence[Finding], nothing: Finding) -> Finding:
    """Several findings as one: the worst level, and what belongs to it; `nothing` when there are none."""
    if not findings:
        return nothing
    worst = max((f.level for f in findings), key=ORDER.index)
    told = [f for f in findings if f.level is worst]
    mends: List[str] = list(dict.fromkeys(f.mend for f in told if f.mend))
    return Finding(worst, "; ".join(f.text for f in told), "; ".join(mends))


def expiry(facts: Facts, what: str, until: float, mend: str) -> Finding:
    """A thing that is valid until then (wall seconds)."""
    days, on = (until - facts.host.wall()) / DAY_S, validity.day(until)
    if days <= 0:
        return fail(f"{what} expired {-days:.0f} days ago, on {on}", mend)
    if days < facts.config.security.certificate_warn_days:
        return warn(f"{what} expires in {days:.0f} days, on {on}", mend)
    return ok(f"{what} is valid for {days:.0f} days")


@dataclass(frozen=True)
class Result:
    """One row of an examination, flat, for tables and JSON."""

    id: str
    title: str
    level: Level
    text: str
    mend: str
