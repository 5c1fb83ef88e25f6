"""What a schema cannot say: settings that contradict one another, pure.

CHECKS lists each check with the sections it reads; it runs only when the schema found nothing wrong in them.  A check
takes the whole filled configuration and yields complaints, never raises.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any, Callable, Iterator, List, Mapping, Tuple

from vmagent.configfile.building import named
from vmagent.configfile.loading import Complaint, Parts
from vmagent.configfile.networks import network_complaints
from vmagent.core import dn
from vmagent.core.commands import VERBS
from vmagent.core.identity import DEVICE_CHARACTERS

Values = Mapping[str, Any]
Check = Callable[[Values], Iterator[Complaint]]

# Interface names that others make; libvirt itself renames targets that begin with vnet or vif (FACTS 5).
TAKEN = (
    *("lo", "en", "eth", "wl", "ww", "br", "virbr", "bond", "team", "vlan", "tap", "tun", "veth", "vnet", "vif"),
    *("macvtap", "macvlan", "dummy", "ifb", "docker", "ovs", "wg", "sit", "gre", "ib"),
)
_DERIVED = re.compile(f"[a-z2-7]{{{DEVICE_CHARACTERS}}}")
_WILD = frozenset("*?[")


def _overlap(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def instance(values: Values) -> Iterator[Complaint]:
    """Interfaces that begin with the instance are ours alone, and the firewall drops for the whole prefix."""
    own = values["instance"]
    for name in TAKEN:
        if _overlap(own, name):
            yield Complaint(("instance",), f'"{own}" would claim interfaces such as {name}0', "another prefix")
    for network, settings in values["networks"].items():
        bridge = settings["bridge"]
        if bridge.startswith(own) and _DERIVED.fullmatch(bridge[len(own) :]):
            detail = f'"{bridge}" looks like the interface of a guest'
            yield Complaint(("networks", network, "bridge"), detail, "another name")


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
            yield Complaint((*at, name), f"{size[name]} is above limits.{name}", f"at most {maxima[name]}")
    cap, highest = size["cpu_cap_core_percent"], maxima["cpu_cap_core_percent"]
    at = (*at, "cpu_cap_core_percent")
    if cap is None and highest is not None:
        yield Complaint(at, "no cap, but limits sets one for every VM", f"1 to {highest}")
    if cap is not None and highest is not None and cap > highest:
        yield Complaint(at, f"{cap} is above limits.cpu_cap_core_percent", f"at most {highest}")
    if cap is not None and cap > 100 * size["cores"]:
        yield Complaint(at, f"{cap} is more than the VM's cores can use", f"at most {100 * size['cores']}, or null")


def flavours(values: Values) -> Iterator[Complaint]:
    for name, size in values["flavours"].items():
        yield from _size_complaints(("flavours", name), size, values["limits"])


def _pattern_complaints(at: Parts, patterns: List[str], names: List[str], what: str) -> Iterator[Complaint]:
    """A pattern that matches nothing is a typing error; `*` alone may stand for what comes later."""
    for index, pattern in enumerate(patterns):
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names):
            known = ", ".join(sorted(names)) or "none is configured"
            kind = "pattern matches no" if _WILD & set(pattern) else "is no"
            yield Complaint((*at, index), f'"{pattern}" {kind} {what}', f"{what}s: {known}")


def _signer_complaints(at: Parts, signer: str, commands: str) -> Iterator[Complaint]:
    """A row about nobody grants nothing, silently."""
    login = signer.startswith("broker:")
    if login != (commands == "broker"):
        wanted = "broker:LOGIN" if commands == "broker" else "a subject, or sha256: and the thumbprint"
        yield Complaint(at, f'"{signer}" signs nothing while security.commands is {commands}', wanted)
    elif not login and not signer.startswith("sha256:"):
        try:
            dn.parse(signer)
        except ValueError as error:
            yield Complaint(at, f'"{signer}" is no subject: {error}', "a subject such as CN=controller,O=Site,C=NL")


def authority(values: Values) -> Iterator[Complaint]:
    for index, row in enumerate(values["security"]["authority"]):
        at: Parts = ("security", "authority", index)
        yield from _signer_complaints((*at, "signer"), row["signer"], values["security"]["commands"])
        yield from _pattern_complaints((*at, "verbs"), row["verbs"], list(VERBS), "verb")
        yield from _pattern_complaints((*at, "networks"), row["networks"], list(values["networks"]), "network")
        yield from _pattern_complaints((*at, "flavours"), row["flavours"], list(values["flavours"]), "flavour")
        for name, most in (row["maxima"] or {}).items():
            site = values["limits"][name]
            if site is not None and most > site:
                detail = f"{most} is above limits.{name}"
                yield Complaint((*at, "maxima", name), detail, f"at most {site}")


def replies(values: Values) -> Iterator[Complaint]:
    settings = values["broker"]
    prefixes = tuple(named(prefix, values) for prefix in settings["reply_prefixes"])
    if not named(settings["default_reply"], values).startswith(prefixes):
        known = ", ".join(settings["reply_prefixes"])
        yield Complaint(("broker", "default_reply"), "is not below broker.reply_prefixes", f"begins with {known}")


def socket(values: Values) -> Iterator[Complaint]:
    """sun_path has 108 bytes, one for the end."""
    path = values["socket"]["path"]
    if path.startswith("RUN/"):
        path = values["directories"]["run"] + path[3:]
    if len(path.encode()) > 107:
        yield Complaint(("socket", "path"), f"{len(path.encode())} bytes", "at most 107 bytes")


def networks(values: Values) -> Iterator[Complaint]:
    yield from network_complaints(values["networks"])


CHECKS: Tuple[Tuple[Tuple[Tuple[str, ...], ...], Check], ...] = (
    ((("instance",), ("networks",)), instance),
    ((("broker",),), broker),
    ((("broker",), ("site",), ("host",)), replies),
    ((("flavours",), ("limits",)), flavours),
    ((("security",), ("networks",), ("flavours",), ("limits",)), authority),
    ((("socket",), ("directories",)), socket),
    ((("networks",),), networks),
)
