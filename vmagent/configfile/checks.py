"""What a schema cannot say: settings that contradict one another, pure.

CHECKS lists each check with the sections it reads; it runs only when the schema found nothing wrong in them.  A check
takes the whole filled configuration and yields complaints, never raises.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Callable, Iterator, List, Mapping, Tuple

from vmagent.configfile.loading import Complaint, Parts
from vmagent.configfile.networks import network_complaints
from vmagent.core.commands import VERBS

Values = Mapping[str, Any]
Check = Callable[[Values], Iterator[Complaint]]

# Interface names that others make; libvirt itself renames targets that begin with vnet or vif (FACTS 5).
TAKEN = (
    *("lo", "en", "eth", "wl", "ww", "br", "virbr", "bond", "team", "vlan", "tap", "tun", "veth", "vnet", "vif"),
    *("macvtap", "macvlan", "dummy", "ifb", "docker", "ovs", "wg", "sit", "gre", "ib"),
)
_WILD = frozenset("*?[")


def _overlap(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def instance(values: Values) -> Iterator[Complaint]:
    """Interfaces that begin with the instance are ours alone, and the firewall drops for the whole prefix."""
    own = values["instance"]
    for name in TAKEN:
        if _overlap(own, name):
            yield Complaint(("instance",), f'"{own}" would claim interfaces such as {name}0', "another prefix")
    for network, settings in values["policy"]["networks"].items():
        bridge = settings["bridge"]
        if bridge.startswith(own):
            yield Complaint(
                ("policy", "networks", network, "bridge"),
                f'"{bridge}" begins with the instance "{own}", the prefix of the guests\' interfaces',
                "another bridge name, or another instance",
            )


def broker(values: Values) -> Iterator[Complaint]:
    """A security option that would silently do nothing is refused."""
    settings = values["broker"]
    tls = settings["tls"]
    for index, url in enumerate(settings["urls"]):
        at: Parts = ("broker", "urls", index)
        secure = url.startswith("stomp+ssl:")
        if secure and tls is None:
            yield Complaint(at, f"{url} needs broker.tls", "broker.tls.ca, or a stomp:// URL")
        if tls is not None and not secure:
            yield Complaint(at, f"{url} would not use broker.tls", "a stomp+ssl:// URL, or no broker.tls")
        if not 1 <= int(url.rsplit(":", 1)[1]) <= 65535:
            yield Complaint(at, f"{url} has no such port", "a port of 1 to 65535")
    if tls is not None and (tls["certificate"] is None) != (tls["key"] is None):
        yield Complaint(("broker", "tls"), "certificate and key need one another", "both, or neither")
    if settings["passcode_file"] is not None and not settings["login"]:
        yield Complaint(("broker", "passcode_file"), "a passcode without broker.login", "both, or neither")


def _size_complaints(at: Parts, size: Values, maxima: Values) -> Iterator[Complaint]:
    for name in ("cores", "memory_mib", "disk_gib"):
        if size[name] > maxima[name]:
            yield Complaint((*at, name), f"{size[name]} is above policy.maxima.{name}", f"at most {maxima[name]}")
    cap, highest = size["cpu_cap_core_percent"], maxima["cpu_cap_core_percent"]
    at = (*at, "cpu_cap_core_percent")
    if cap is None and highest is not None:
        yield Complaint(at, "no cap, but policy.maxima sets one for every VM", f"1 to {highest}")
    if cap is not None and highest is not None and cap > highest:
        yield Complaint(at, f"{cap} is above policy.maxima.cpu_cap_core_percent", f"at most {highest}")
    if cap is not None and cap > 100 * size["cores"]:
        yield Complaint(at, f"{cap} is more than the VM's cores can use", f"at most {100 * size['cores']}, or null")


def flavours(values: Values) -> Iterator[Complaint]:
    policy = values["policy"]
    for name, size in policy["flavours"].items():
        yield from _size_complaints(("policy", "flavours", name), size, policy["maxima"])


def _pattern_complaints(at: Parts, patterns: List[str], names: List[str], what: str) -> Iterator[Complaint]:
    """A pattern that matches nothing is a typing error; `*` alone may stand for what comes later."""
    for index, pattern in enumerate(patterns):
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names):
            known = ", ".join(sorted(names)) or "none is configured"
            kind = "pattern matches no" if _WILD & set(pattern) else "is no"
            yield Complaint((*at, index), f'"{pattern}" {kind} {what}', f"{what}s: {known}")


def authority(values: Values) -> Iterator[Complaint]:
    policy = values["policy"]
    for index, row in enumerate(policy["authority"]):
        at: Parts = ("policy", "authority", index)
        yield from _pattern_complaints((*at, "verbs"), row["verbs"], list(VERBS), "verb")
        yield from _pattern_complaints((*at, "networks"), row["networks"], list(policy["networks"]), "network")
        yield from _pattern_complaints((*at, "flavours"), row["flavours"], list(policy["flavours"]), "flavour")
        for name, most in (row["maxima"] or {}).items():
            site = policy["maxima"][name]
            if site is not None and most > site:
                detail = f"{most} is above policy.maxima.{name}"
                yield Complaint((*at, "maxima", name), detail, f"at most {site}")


def replies(values: Values) -> Iterator[Complaint]:
    policy = values["policy"]
    if not policy["default_reply"].startswith(tuple(policy["reply_prefixes"])):
        prefixes = ", ".join(policy["reply_prefixes"])
        yield Complaint(("policy", "default_reply"), "is not below policy.reply_prefixes", f"begins with {prefixes}")


def socket(values: Values) -> Iterator[Complaint]:
    """sun_path has 108 bytes, one for the end."""
    path = values["socket"]["path"]
    if path.startswith("RUN/"):
        path = values["directories"]["run"] + path[3:]
    if len(path.encode()) > 107:
        yield Complaint(("socket", "path"), f"{len(path.encode())} bytes", "at most 107 bytes")


def networks(values: Values) -> Iterator[Complaint]:
    yield from network_complaints(values["policy"]["networks"])


CHECKS: Tuple[Tuple[Tuple[Tuple[str, ...], ...], Check], ...] = (
    ((("instance",), ("policy", "networks")), instance),
    ((("broker",),), broker),
    ((("policy", "flavours"), ("policy", "maxima")), flavours),
    (
        (("policy", "authority"), ("policy", "networks"), ("policy", "flavours"), ("policy", "maxima")),
        authority,
    ),
    ((("policy", "reply_prefixes"), ("policy", "default_reply")), replies),
    ((("socket",), ("directories",)), socket),
    ((("policy", "networks"),), networks),
)
