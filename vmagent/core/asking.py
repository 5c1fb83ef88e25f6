"""What a person may ask with a start, new limits or a selector, as tables: one source for both command lines.

`START`, `LIMITS` and `SELECTOR` feed the parsers of `vmagentctl` and `vmagent-site`; `start_args`, `limits_args` and
`selector_args` turn what was parsed into the `args` of PROTOCOL 3.  Whether they fit is decided by the agent's schemas,
not here.  Bandwidth and rules on a command line are those of every interface; who needs more writes JSON.
"""

from __future__ import annotations

import argparse
import base64
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple

from vmagent.core import context, duration, rates
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


def rule(action: str) -> Callable[[str], Dict[str, Any]]:
    """Reads `tcp`, `tcp:22,80-90`, `udp:53@192.0.2.0/24`, `any@2001:db8::/32` as a rule.  ValueError."""

    def read(text: str) -> Dict[str, Any]:
        head, _, cidr = text.partition("@")
        protocol, colon, ports = head.partition(":")
        if protocol not in PROTOCOLS or bool(colon) != bool(ports) or ("@" in text and not cidr):
            raise ValueError(f"a rule is PROTOCOL[:PORT,FIRST-LAST,...][@PREFIX]; PROTOCOL: {', '.join(PROTOCOLS)}")
        asked: Dict[str, Any] = {"action": action, "protocol": protocol}
        if ports:
            asked["ports"] = [int(one) if one.isdecimal() and one.isascii() else one for one in ports.split(",")]
        if cidr:
            asked["cidr"] = cidr
        return asked

    return read


def meta(text: str) -> Tuple[str, str]:
    """`KEY=VALUE` as a member of the meta-data.  ValueError."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError("meta-data is KEY=VALUE")
    return name, value


def _user_data(file: str, read: ReadFile) -> str:
    return base64.b64encode(read(file)).decode()


def _ssh_keys(files: List[str], read: ReadFile) -> List[str]:
    """The lines of public key files, without empty ones and comments.  Problem `usage`: a line is no public key."""
    found: List[str] = []
    for file in files:
        lines = [line.strip() for line in read(file).decode("utf-8", "replace").splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys or not all(context.is_public_key(key) for key in keys):
            raise Problem("usage", f"{file} holds what is no OpenSSH public key (such files end in .pub)")
        found += keys
    return found


def volume(text: str) -> Dict[str, Any]:
    """`NAME`, or `NAME:ro` for reading only."""
    name, _, how = text.partition(":")
    if not name or how not in ("", "ro"):
        raise ValueError("a volume is NAME, or NAME:ro to read it only")
    return {"volume": name, "read_only": True} if how else {"volume": name}


def or_default(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """What `read` reads, or the word `default`: back to what the site gives."""
    return lambda text: BACK if text == "default" else read(text)


PROTOCOLS = ("tcp", "udp", "icmp", "icmpv6", "any")
ReadFile = Callable[[str], bytes]
"""The content of a file by its name; Problem `usage` when it cannot be read."""
BACK = object()
"""What the word `default` reads as: null on the wire, which None, an option not given, is not."""


@dataclass(frozen=True)
class Option:
    """One option of a command line.  read None: a switch; `many`: may be given several times.

    within: the member of `disk_io`, or of every one of `networks`, that it gives.  kept: under this name together with
    others, in the order in which they are given.  made: the member from what was said, where that takes files or
    several options together.
    """

    flag: str
    member: str  # of `args`
    read: Optional[Callable[[str], Any]]
    shows: str
    help: str
    many: bool = False
    within: str = ""
    kept: str = ""
    made: Optional[Callable[[Any, ReadFile], Any]] = None

    @property
    def name(self) -> str:
        """The attribute under which argparse keeps it."""
        return self.kept or self.flag.lstrip("-").replace("-", "_")


_RULE = "PROTOCOL[:PORTS][@PREFIX]"
RULES: Tuple[Option, ...] = tuple(
    Option(f"--{action}-{way}", "networks", rule(action), _RULE,
           f"{action} what comes {towards}; the first rule that matches decides; may be repeated",
           many=True, within=direction, kept=f"rules_{way}")
    for way, direction, towards in (("in", "inbound", "in to the guest"), ("out", "outbound", "out of the guest"))
    for action in ("allow", "deny")
)  # fmt: skip


def _numbers(readable: Callable[[Callable[[str], Any]], Callable[[str], Any]], more: str) -> Tuple[Option, ...]:
    """The limits that are numbers; `readable` refines how each is read, `more` what is shown beside."""
    each = "of every interface" + more
    disk = ", each disk" + more
    return (
        Option("--cpu-cap", "cpu_cap_core_percent", readable(int), "PERCENT",
               f"CPU limit of the whole guest; 100 = one core{more}"),
        Option("--cpu-weight", "cpu_weight", readable(int), "N",
               f"its share where guests contend for the CPU; 100 is normal{more}"),
        Option("--bandwidth-in", "networks", readable(rates.kbit), "RATE",
               f"the most towards the guest, such as 10mbit, {each}", within="bandwidth_in_kbit"),
        Option("--bandwidth-out", "networks", readable(rates.kbit), "RATE",
               f"the most from the guest, {each}", within="bandwidth_out_kbit"),
        Option("--read-bytes", "disk_io", readable(rates.bytes_per_s), "RATE",
               f"the most that is read a second, such as 50mb{disk}", within="read_bytes_per_s"),
        Option("--write-bytes", "disk_io", readable(rates.bytes_per_s), "RATE",
               f"the most that is written a second{disk}", within="write_bytes_per_s"),
        Option("--read-ops", "disk_io", readable(int), "N", f"the most reads a second{disk}", within="read_ops_per_s"),
        Option("--write-ops", "disk_io", readable(int), "N", f"the most writes a second{disk}",
               within="write_ops_per_s"),
    )  # fmt: skip


START: Tuple[Option, ...] = (
    Option("--image", "image", lambda text: {"id": text}, "ID", "golden image of the site's catalogue (required)"),
    Option("--flavour", "flavour", str, "NAME", "a named size of the site; or give cores, memory and disk"),
    Option("--cores", "cores", int, "N", "virtual CPUs"),
    Option("--memory-mib", "memory_mib", int, "MIB", "memory in MiB"),
    Option("--disk-gib", "disk_gib", int, "GIB", "size of the disk in GiB"),
    *_numbers(lambda read: read, ""),
    Option("--lifetime", "lifetime_s", duration.seconds, "SPAN", "agreed run time, such as 2h or 7d (required)"),
    Option("--network", "networks", network, "TYPE[=ADDRESS,...[/MAC]]", "one interface; may be repeated", many=True),
    *RULES,
    Option("--name", "name", str, "LABEL", "a label for people"),
    Option("--tag", "tags", str, "TAG", "a tag; may be repeated", many=True),
    Option("--count", "count", int, "N", "how many VMs, alike (default 1)"),
    Option("--atomic", "atomic", None, "", "all of them or none"),
    Option("--start-by", "start_by_s", duration.seconds, "SPAN", "give up unless it runs by then"),
    Option("--ready-by", "ready_by_s", duration.seconds, "SPAN", "report a failure unless it is ready by then"),
    Option("--keep", "keep_s", duration.seconds, "SPAN", "keep the disk this long after the end"),
    Option("--scratch", "disks", lambda text: {"scratch_gib": int(text)}, "GIB",
           "an empty disk beside its own, which ends with it; may be repeated", many=True, kept="disks"),
    Option("--volume", "disks", volume, "NAME[:ro]", "a data volume of the site, :ro only to read; may be repeated",
           many=True, kept="disks"),
    Option("--cdrom", "disks", lambda text: {"cdrom": text}, "NAME", "a data volume of the site as a CD", many=True,
           kept="disks"),
    Option("--restart", "restart", str, "WHEN",
           "always: when the guest ends by itself, again from the golden image; never (default)"),
    Option("--user-data", "user_data", str, "FILE", "cloud-init user data for the guest", made=_user_data),
    Option("--ssh-key", "ssh_keys", str, "FILE", "public key of who may log in; may be repeated", many=True,
           made=_ssh_keys),
    Option("--meta-data", "meta_data", meta, "KEY=VALUE", "a member of the guest's meta-data; may be repeated",
           many=True, made=lambda pairs, _read: dict(pairs)),
    Option("--dry-run", "dry_run", None, "", "decide and answer, start nothing"),
)
REQUIRED = ("image", "lifetime")
"""Names of START's options without which nothing can be asked."""

LIMITS: Tuple[Option, ...] = (
    *_numbers(or_default, "; or the word default"),
    *RULES,
    Option("--no-rules-in", "networks", None, "", "take its inbound rules away: all is denied", within="inbound"),
    Option("--no-rules-out", "networks", None, "", "take its outbound rules away: all is allowed", within="outbound"),
    Option("--on-network", "networks", str, "TYPE", "bandwidth and rules: only its interfaces on this network",
           within="type"),
)  # fmt: skip
"""New limits.  Rules that are given replace all of their direction; what is not said stays as it is."""

SNAPSHOT: Tuple[Option, ...] = (
    Option("--take", "name", str, "NAME", "take one of this name"),
    Option("--delete", "name", str, "NAME", "delete the one of this name"),
    Option("--cancel", "name", str, "NAME", "stop taking the one of this name, and undo it"),
    Option("--kind", "kind", str, "KIND", "with --take: disk (the default), or full: with the guest's memory"),
    Option("--quiesce", "quiesce", str, "HOW", "with --take: freeze the guest's file systems meanwhile: required, "
           "if_possible (the default) or no"),
    Option("--keep", "keep_s", duration.seconds, "SPAN", "with --take: delete it after this long"),
)
"""Of the sub-command `snapshot`; without an option it only looks."""

ATTACHING: Tuple[Option, ...] = (
    Option("--volume", "volume", volume, "NAME[:ro]", "the data volume; :ro to read it only (required)"),
)
"""Which volume is attached or taken away."""

SELECTOR: Tuple[Option, ...] = (
    Option("--tagged", "tag", str, "TAG", "all VMs with this tag"),
    Option("--owned-by", "owner", str, "SUBJECT", "all VMs of this owner"),
    Option("--from-image", "image", str, "ID", "all VMs from this golden image"),
    Option("--all", "all", None, "", "all VMs"),
)
"""Instead of naming VMs.  The flags differ from START's, because they choose and do not describe."""


def start_args(said: Mapping[str, Any], read: ReadFile) -> Dict[str, Any]:
    """`args` of vm.start from the options' values by name; what was not said is left to the agent's defaults.

    Problem `usage`: bandwidth or rules without a network; a file that cannot be read or holds no key.
    """
    args = {
        option.member: said[option.name] if option.made is None else option.made(said[option.name], read)
        for option in START
        if not option.within and _given(said, option)
    }
    disk_io, of_networks = _within(said, START, "disk_io"), _within(said, START, "networks")
    if disk_io:
        args["disk_io"] = disk_io
    if of_networks and "networks" not in args:
        raise Problem("usage", "bandwidth and rules are those of an interface: give a --network too")
    if of_networks:
        args["networks"] = [{**network, **of_networks} for network in args["networks"]]
    return args


def limits_args(said: Mapping[str, Any]) -> Dict[str, Any]:
    """`args` of vm.limits without its selector; `default` becomes null.  Problem `usage`: there is no change in it."""
    args = {
        option.member: _plain(said[option.name]) for option in LIMITS if not option.within and _given(said, option)
    }
    disk_io, of_networks = _within(said, LIMITS, "disk_io"), _within(said, LIMITS, "networks")
    if disk_io:
        args["disk_io"] = disk_io
    if set(of_networks) - {"type"}:
        args["networks"] = [of_networks]
    elif of_networks:
        raise Problem("usage", "--on-network chooses interfaces: say what changes on them too")
    if not args:
        flags = ", ".join(option.flag for option in LIMITS if option.within != "type")
        raise Problem("usage", f"say what to change: {flags}")
    return args


def snapshot_args(said: Mapping[str, Any]) -> Tuple[str, Dict[str, Any]]:
    """The verb that the options mean, and its args without the selector.  Problem `usage`: they do not go together."""
    given = {option.name: said[option.name] for option in SNAPSHOT if said.get(option.name) is not None}
    does = [name for name in ("take", "delete", "cancel") if name in given]
    more = {option.member: given[option.name] for option in SNAPSHOT if option.name in given}
    more.pop("name", None)
    if len(does) > 1 or (more and does != ["take"]):
        raise Problem("usage", "give one of --take, --delete, --cancel; --kind, --quiesce and --keep go with --take")
    if not does:
        return "vm.snapshot.list", {}
    verb = "vm.snapshot" if does == ["take"] else f"vm.snapshot.{does[0]}"
    return verb, {"name": given[does[0]], **more}


def changes_limits(said: Mapping[str, Any]) -> bool:
    """Whether any option of LIMITS was given: a command line without one only looks."""
    return any(_given(said, option) for option in LIMITS)


def _given(said: Mapping[str, Any], option: Option) -> bool:
    return said.get(option.name) not in (None, False)


def _plain(value: Any) -> Any:
    return None if value is BACK else value


def _within(said: Mapping[str, Any], table: Iterable[Option], member: str) -> Dict[str, Any]:
    """What the options say that give members of `disk_io` or of every one of `networks`."""
    found: Dict[str, Any] = {}
    firewall: Dict[str, List[Any]] = {}
    for option in table:
        if option.member != member or not option.within or not _given(said, option):
            continue
        if option.within in ("inbound", "outbound"):
            rules = [] if option.read is None else said[option.name]
            if firewall.setdefault(option.within, rules) != rules:
                raise Problem("usage", f"{option.flag} and rules of that direction: one of the two")
        else:
            found[option.within] = _plain(said[option.name])
    return {**found, **({"firewall": firewall} if firewall else {})}


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
            parser.add_argument(option.flag, dest=option.name, type=checked(option.read), metavar=option.shows,
                                action="append" if option.many else "store", required=option.name in required,
                                help=option.help)


def checked(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """`read` for argparse: what it says about a wrong value reaches the person."""

    def convert(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def span(text: str) -> int:
    """A span in seconds, as an argparse type."""
    seconds: int = checked(duration.seconds)(text)
    return seconds
