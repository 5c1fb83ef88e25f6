"""What a schema cannot say: settings that contradict one another, pure.

CHECKS lists each check with the sections it reads; it runs only when the schema found nothing wrong in them.  A check
takes the whole filled configuration and yields complaints, never raises.
"""

from __future__ import annotations

import ipaddress
import os
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Dict, Iterator, List, Mapping, Tuple

from vmagent.configfile.bounds import authority_complaints, flavour_complaints, limit_complaints
from vmagent.configfile.building import SPOOLS, address, named
from vmagent.configfile.filtering import firewall_complaints, prefix_complaints
from vmagent.configfile.loading import Complaint, Parts
from vmagent.configfile.networks import network_complaints
from vmagent.core import dn
from vmagent.core.commands import VERBS

Values = Mapping[str, Any]
Check = Callable[[Values], Iterator[Complaint]]

# Interface names that others make; libvirt itself renames targets that begin with vnet or vif (FACTS 5).
TAKEN = (
    *("lo", "en", "eth", "wl", "ww", "br", "virbr", "bond", "team", "vlan", "tap", "tun", "veth", "vnet", "vif"),
    *("macvtap", "macvlan", "macsec", "ipvlan", "vrf", "dummy", "ifb", "nlmon", "docker", "podman", "cni", "cali"),
    *("flannel", "cilium", "lxc", "lxd", "ovs", "vxlan", "genev", "wg", "ppp", "usb", "em", "p1p", "slave", "can"),
    *("sit", "gre", "erspan", "tunl", "ip6", "ip_vti", "vti", "xfrm", "ipsec", "ib", "mlx", "hsr", "batadv"),
    *("vmbr", "vmnet", "vboxnet", "xenbr", "xapi", "fwbr", "fwln", "fwpr", "tailscale", "zt"),
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
    for network, settings in values["networks"].items():
        if settings["bridge"].startswith(own):
            detail = f'"{settings["bridge"]}" begins with the instance, as the interfaces of guests do'
            yield Complaint(("networks", network, "bridge"), detail, f'a bridge whose name does not begin with "{own}"')


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


def limits(values: Values) -> Iterator[Complaint]:
    yield from limit_complaints(values["limits"])


def flavours(values: Values) -> Iterator[Complaint]:
    yield from flavour_complaints(values["flavours"], values["limits"])


def firewall(values: Values) -> Iterator[Complaint]:
    yield from firewall_complaints(values["firewall"])


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
        yield from authority_complaints((*at, "maxima"), row["maxima"] or {}, values["limits"])


def replies(values: Values) -> Iterator[Complaint]:
    settings = values["broker"]
    prefixes = tuple(named(prefix, values) for prefix in settings["reply_prefixes"])
    if not named(settings["default_reply"], values).startswith(prefixes):
        known = ", ".join(settings["reply_prefixes"])
        yield Complaint(("broker", "default_reply"), "is not below broker.reply_prefixes", f"begins with {known}")


def endorsement(values: Values) -> Iterator[Complaint]:
    """Names that are none would endorse nothing, silently; a list or an endorser stands once."""
    images = values["images"]
    for index, row in enumerate(images["lists"]):
        at: Parts = ("images", "lists", index)
        if row["identifier"] in [other["identifier"] for other in images["lists"][:index]]:
            yield Complaint((*at, "identifier"), f"{row['identifier']} stands twice", "each list once")
        if bool(row.get("path")) == bool(row.get("url")):
            yield Complaint(at, "names both a path and a URL, or neither", "either path or url")
        elif row.get("url") and row["signature"] == "none":
            yield Complaint((*at, "signature"), "a list from elsewhere without a signature", "required; or a path")
        for number, subject in enumerate(row["endorsers"]):
            yield from _name_complaints((*at, "endorsers", number), subject)
    known: List[Any] = []
    for index, row in enumerate(images["endorsers"]):
        at = ("images", "endorsers", index, "subject")
        wrong = list(_name_complaints(at, row["subject"]))
        yield from wrong
        if not wrong:
            if dn.parse(row["subject"]) in known:
                yield Complaint(at, f"{row['subject']} stands twice", "each endorser once")
            known.append(dn.parse(row["subject"]))


def _name_complaints(at: Parts, subject: str) -> Iterator[Complaint]:
    try:
        dn.parse(subject)
    except ValueError as error:
        yield Complaint(at, f"no distinguished name: {error}", "/DC=org/CN=A Person or CN=A Person,DC=org")


def images(values: Values) -> Iterator[Complaint]:
    """An image is a file of the site's or is fetched; what can never be fetched is told now."""
    directories = tuple(map(Path, values["images"]["fetch"]["files"]))
    for name, image in values["images"]["catalogue"].items():
        at: Parts = ("images", "catalogue", name)
        if bool(image["file"]) == bool(image["url"]):
            yield Complaint(at, "file and url are two ways to say where it is", "one of the two")
        if image["file"] and (image["format"] not in ("raw", "qcow2") or image["size"]):
            detail = f"{image['format']} is converted when it is fetched, a file of the site's is used as it is"
            wanted = "raw or qcow2 and no size, or a url instead of the file"
            yield Complaint((*at, "format"), detail, wanted)
        if image["url"].startswith("file:") and not _below(image["url"], directories):
            detail = f"{image['url']} is below no directory of images.fetch.files"
            yield Complaint((*at, "url"), detail, ", ".join(map(str, directories)) or "images.fetch.files, first")
        yield from _boot_complaints((*at, "boot"), image["boot"], values["hypervisor"]["pygrub"])
    for index, prefix in enumerate(values["images"]["requests"]):
        if prefix.startswith("file:") and not _below(prefix + "x", directories):
            detail = f"{prefix} is below no directory of images.fetch.files"
            yield Complaint(("images", "requests", index), detail, "a directory of images.fetch.files, or https:")


def _boot_complaints(at: Parts, boot: Any, pygrub: str) -> Iterator[Complaint]:
    """What would boot nothing, or say something that nobody reads."""
    if boot is None or boot["kernel"] is not None:
        return
    if pygrub == "forbid":
        detail = "names no kernel, and dom0 must not look for one on a guest's disk (hypervisor.pygrub)"
        yield Complaint(at, detail, "a kernel with its file and sha512; or hypervisor.pygrub: allow")
    for name in ("initrd", "cmdline"):
        if boot[name]:
            yield Complaint((*at, name), "is given to a kernel that is named here, and none is", "a kernel, too")


def _below(url: str, directories: Tuple[Path, ...]) -> bool:
    path = PurePosixPath(url[len("file://") :])
    return ".." not in path.parts and any(PurePosixPath(directory) in path.parents for directory in directories)


def socket(values: Values) -> Iterator[Complaint]:
    """sun_path has 108 bytes, one for the end."""
    path = values["socket"]["path"]
    if path.startswith("RUN/"):
        path = values["directories"]["run"] + path[3:]
    if len(path.encode()) > 107:
        yield Complaint(("socket", "path"), f"{len(path.encode())} bytes", "at most 107 bytes")


def networks(values: Values) -> Iterator[Complaint]:
    yield from network_complaints(values["networks"])


def volumes(values: Values) -> Iterator[Complaint]:
    """It is in one place; and who may write has a volume alone, so what is in one place must not have two names."""
    names: Dict[Tuple[str, str], str] = {}
    for name, settings in values["volumes"].items():
        at: Parts = ("volumes", name)
        pool, volume = settings["pool"], settings["volume"]
        if bool(settings["path"]) == bool(pool or volume) or bool(pool) != bool(volume):
            yield Complaint(at, "is not in one place", "either path, or pool and volume")
            continue
        where = (pool, volume) if pool else ("", os.path.normpath(settings["path"]))
        other = names.setdefault(where, name)
        if other != name:
            told = f"{volume} of pool {pool}" if pool else where[1]
            at = (*at, "volume" if pool else "path")
            yield Complaint(at, f"{told} is volume {other} already", "one name for each")


def telemetry(values: Values) -> Iterator[Complaint]:
    """Fine turns drive the coarse ones, and a period without any of them would tell nothing."""
    settings = values["telemetry"]
    for shorter, longer in (("fine_s", "coarse_s"), ("coarse_s", "period_s")):
        if settings[longer] < settings[shorter]:
            detail = f"{settings[longer]:g} is less than {shorter}"
            yield Complaint(("telemetry", longer), detail, f"{settings[shorter]:g} or more")


def accounting(values: Values) -> Iterator[Complaint]:
    """Periods end where days and months do, and prefixes are prefixes."""
    settings = values["accounting"]
    if 86400 % settings["period_s"]:
        detail = f"{settings['period_s']} s do not divide a day"
        yield Complaint(("accounting", "period_s"), detail, "a divisor of 86400, such as 900, 3600 or 86400")
    yield from prefix_complaints(settings["public"], ("accounting", "public"))


def apel(values: Values) -> Iterator[Complaint]:
    """The relay sends all of a directory to one place, so each kind of message has a directory of its own."""
    settings = values["accounting"]["apel"] or {}
    taken: Dict[str, str] = {}
    for name in SPOOLS:
        if settings.get(name) is None:
            continue
        path = os.path.normpath(settings[name])
        other = taken.setdefault(path, name)
        if other != name:
            yield Complaint(("accounting", "apel", name), f"{settings[name]} is {other} already", "another directory")


def prometheus(values: Values) -> Iterator[Complaint]:
    """An address is an address, not a name: nothing is resolved.  TLS of nothing would be a false comfort."""
    settings = values["prometheus"]
    if settings["listen"] is None:
        if settings["tls"] is not None:
            yield Complaint(("prometheus", "tls"), "there is no prometheus.listen", "both, or neither")
        return
    host, port = address(settings["listen"])
    try:
        wrong = not 1 <= port <= 65535 or not ipaddress.ip_address(host)
    except ValueError:
        wrong = True
    if wrong:
        detail = f"{settings['listen']} is no address with a port"
        yield Complaint(("prometheus", "listen"), detail, "ADDRESS:PORT such as 127.0.0.1:9177 or [::1]:9177")


CHECKS: Tuple[Tuple[Tuple[Tuple[str, ...], ...], Check], ...] = (
    ((("instance",), ("networks",)), instance),
    ((("broker",),), broker),
    ((("broker",), ("site",), ("host",)), replies),
    ((("limits",),), limits),
    ((("flavours",), ("limits",)), flavours),
    ((("firewall",),), firewall),
    ((("security",), ("networks",), ("flavours",), ("limits",)), authority),
    ((("socket",), ("directories",)), socket),
    ((("networks",),), networks),
    ((("volumes",),), volumes),
    ((("telemetry",),), telemetry),
    ((("prometheus",),), prometheus),
    ((("images",),), endorsement),
    ((("images",), ("hypervisor",)), images),
    ((("accounting",),), accounting),
    ((("accounting",),), apel),
)
