"""What a person may ask with a start or a selector, as a table: one source for both command lines.

`START` and `SELECTOR` feed the parsers of `vmagentctl` and `vmagent-site`; `start_args` and `selector_args` turn
what was parsed into the `args` of PROTOCOL 3.  Whether they fit is decided by the agent's schemas, not here.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, Mapping, Optional, Tuple

from vmagent.core import duration
from vmagent.errors import Problem


def network(text: str) -> Dict[str, Any]:
    """`TYPE`, `TYPE=ADDRESS`, `TYPE=ADDRESS,ADDRESS/MAC`.  ValueError without a type."""
    type_name, _, rest = text.partition("=")
    addresses, _, mac = rest.partition("/")
    if not type_name:
        raise ValueError("a network is TYPE, TYPE=ADDRESS,... or TYPE=ADDRESS,.../MAC")
    asked: Dict[str, Any] = {"type": type_name}
    if addresses:
        asked["addresses"] = addresses.split(",")
    if mac:
        asked["mac"] = mac
    return asked


@dataclass(frozen=True)
class Option:
    """One option of a command line.  read None: a switch; `many`: may be given several times."""

    flag: str
    member: str  # of `args`
    read: Optional[Callable[[str], Any]]
    shows: str
    help: str
    many: bool = False

    @property
    def name(self) -> str:
        """The attribute under which argparse keeps it."""
        return self.flag.lstrip("-").replace("-", "_")


START: Tuple[Option, ...] = (
    Option("--image", "image", lambda text: {"id": text}, "ID", "golden image of the site's catalogue (required)"),
    Option("--flavour", "flavour", str, "NAME", "a named size of the site; or give cores, memory and disk"),
    Option("--cores", "cores", int, "N", "virtual CPUs"),
    Option("--memory-mib", "memory_mib", int, "MIB", "memory in MiB"),
    Option("--disk-gib", "disk_gib", int, "GIB", "size of the disk in GiB"),
    Option("--cpu-cap", "cpu_cap_core_percent", int, "PERCENT", "CPU limit; 100 = one core"),
    Option("--lifetime", "lifetime_s", duration.seconds, "SPAN", "agreed run time, such as 2h or 7d (required)"),
    Option("--network", "networks", network, "TYPE[=ADDRESS,...[/MAC]]", "one interface; may be repeated", many=True),
    Option("--name", "name", str, "LABEL", "a label for people"),
    Option("--tag", "tags", str, "TAG", "a tag; may be repeated", many=True),
    Option("--count", "count", int, "N", "how many VMs, alike (default 1)"),
    Option("--atomic", "atomic", None, "", "all of them or none"),
    Option("--start-by", "start_by_s", duration.seconds, "SPAN", "give up unless it runs by then"),
    Option("--ready-by", "ready_by_s", duration.seconds, "SPAN", "report a failure unless it is ready by then"),
    Option("--keep", "keep_s", duration.seconds, "SPAN", "keep the disk this long after the end"),
    Option("--dry-run", "dry_run", None, "", "decide and answer, start nothing"),
)
REQUIRED = ("image", "lifetime")
"""Names of START's options without which nothing can be asked."""

SELECTOR: Tuple[Option, ...] = (
    Option("--tagged", "tag", str, "TAG", "all VMs with this tag"),
    Option("--owned-by", "owner", str, "SUBJECT", "all VMs of this owner"),
    Option("--from-image", "image", str, "ID", "all VMs from this golden image"),
    Option("--all", "all", None, "", "all VMs"),
)
"""Instead of naming VMs.  The flags differ from START's, because they choose and do not describe."""


def start_args(said: Mapping[str, Any]) -> Dict[str, Any]:
    """`args` of vm.start from the options' values by name; what was not said is left to the agent's defaults."""
    return {option.member: said[option.name] for option in START if said.get(option.name) not in (None, False)}


def selector_args(said: Mapping[str, Any], vms: Tuple[str, ...]) -> Dict[str, Any]:
    """A selector from the options' values and the named ids.  Problem `usage` unless it is exactly one of them."""
    chosen = {option.member: said[option.name] for option in SELECTOR if said.get(option.name) not in (None, False)}
    if vms:
        chosen["vms"] = list(dict.fromkeys(vms))
    if len(chosen) != 1:
        flags = ", ".join(option.flag for option in SELECTOR)
        raise Problem("usage", f"name VMs, or choose them by exactly one of {flags}")
    return chosen


def add_options(
    parser: argparse.ArgumentParser, table: Iterable[Option], required: Tuple[str, ...] = ()
) -> None:
    """Teach a parser the rows of a table; `required` are names."""
    for option in table:
        if option.read is None:
            parser.add_argument(option.flag, action="store_true", help=option.help)
        else:
            parser.add_argument(option.flag, type=_reader(option.read), action="append" if option.many else "store",
                                metavar=option.shows, required=option.name in required, help=option.help)


def _reader(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """`read` for argparse: what it says about a wrong value reaches the person."""

    def checked(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def span(text: str) -> int:
    """A span in seconds, as an argparse type."""
    seconds: int = _reader(duration.seconds)(text)
    return seconds
