"""What a person may ask about room for VMs, as a table: one source for both command lines.

The options that describe a VM are those of a start (asking.py); only what a start has no use for stands here.
"""

from __future__ import annotations

import argparse
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from vmagent.core import asking, duration, walltime
from vmagent.core.asking import Option, ReadFile

_DESCRIBING = ("flavour", "cores", "memory_mib", "disk_gib", "cpu_cap", "cpu_weight", "bandwidth_in", "bandwidth_out",
               "read_bytes", "write_bytes", "read_ops", "write_ops", "count", "keep", "disks")


def network(text: str) -> Dict[str, Any]:
    """A network's type; addresses are named by a start.  ValueError."""
    if not text or "=" in text:
        raise ValueError("a network is TYPE here; addresses are named by a start")
    return {"type": text}


def _time(text: str) -> str:
    walltime.seconds(text)
    return text


OPTIONS: Tuple[Option, ...] = (
    *(option for option in asking.START if option.name in _DESCRIBING),
    Option("--network", "networks", network, "TYPE", "one interface; may be repeated", many=True),
    Option("--for", "for_s", duration.seconds, "SPAN", "for how long they are wanted, such as 2h"),
    Option("--from", "from", _time, "TIME", "when they shall start, such as 2026-11-20T18:00:00Z; without it, now"),
)
_OWN = ("for", "from")


def asks(said: Mapping[str, Any]) -> bool:
    """Whether anything was said about VMs that are wanted."""
    return any(said.get(option.name) not in (None, False) for option in OPTIONS)


def query_args(said: Mapping[str, Any], read: ReadFile) -> Dict[str, Any]:
    """`args` of capacity.query.  Problem `usage`: bandwidth without a network."""
    known = {option.name for option in OPTIONS}
    args = asking.start_args({name: value for name, value in said.items() if name in known}, read)
    own = {option.member: said[option.name] for option in OPTIONS if option.name in _OWN and said.get(option.name)}
    return {**args, **own}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Teach a parser the table."""
    asking.add_options(parser, OPTIONS)


HEADER = ("HOST", "NOW", "THEN", "IN 10m", "IN 1h", "IN 6h", "ALL RUN IN", "YOURS", "WHY NOT MORE")


def row(result: Mapping[str, Any]) -> Sequence[str]:
    """One host's answer under HEADER."""
    seconds, yours = result["start_s"]["all"], result["yours"]
    return (result["host"], *(str(result[when]["possible"]) for when in ("now", "then")),
            *(str(one["possible"]) for one in result["later"]),
            "unknown" if seconds is None else duration.text(seconds),
            "-" if yours is None else str(yours["possible"]), ", ".join(reasons(result)))


def reasons(result: Mapping[str, Any]) -> List[str]:
    """Every reason in a word: what there is too little of, or the problem's type."""
    told = [*result["then"]["reasons"], *((result["yours"] or {}).get("reasons") or ())]
    return list(dict.fromkeys(str(one.get("resource", one["type"])) for one in told))


def details(result: Mapping[str, Any]) -> List[str]:
    """Every reason in a sentence."""
    told = [*result["then"]["reasons"], *((result["yours"] or {}).get("reasons") or ())]
    return list(dict.fromkeys(f"{one['type']}: {one['detail']}" for one in told))
