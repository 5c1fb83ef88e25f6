"""From checked, filled values to the frozen Config; nothing is decided here."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from vmagent.config import (
    ApelSettings,
    BrokerSettings,
    CacheSettings,
    Config,
    Directories,
    FetchSettings,
    HypervisorSettings,
    ImageSettings,
    Intervals,
    PrometheusSettings,
    SecuritySettings,
    ServerTls,
    SigningPair,
    SocketSettings,
    TelemetrySettings,
    Tls,
)
from vmagent.core import rules
from vmagent.core.imagemodel import Boot, BootFile
from vmagent.core.model import Firewall
from vmagent.core.policy import (
    Authority,
    CatalogueImage,
    Defaults,
    Endorser,
    Flavour,
    ListSource,
    Maxima,
    Minima,
    NetworkType,
    Policy,
    SiteFirewall,
    TrustPolicy,
    Volume,
)
from vmagent.core.snapshotmodel import SnapshotRules
from vmagent.core.usagemodel import AccountingRules, Benchmark

Values = Mapping[str, Any]
_NAMES = re.compile(r"\b(SITE|HOST)\b")
SPOOLS = ("spool", "archive", "public_ip_spool", "storage_spool")
DESTINATIONS = ("client_id", "commands", "commands_all", "events", "usage", "capacity", "telemetry")


def config(values: Values, sources: Mapping[str, str]) -> Config:
    """values: checked and filled, `host` included."""
    directories = Directories(**{name: Path(path) for name, path in values["directories"].items()})
    return Config(
        policy=_policy(values),
        directories=directories,
        hypervisor=HypervisorSettings(**values["hypervisor"]),
        broker=_broker(values),
        security=_security(values["security"]),
        images=_images(values["images"], directories),
        socket=SocketSettings(**{**values["socket"], "path": _below(values["socket"]["path"], directories)}),
        intervals=Intervals(**values["intervals"]),
        telemetry=TelemetrySettings(**values["telemetry"]),
        apel=_apel(values, directories),
        prometheus=_prometheus(values["prometheus"]),
        log_level=values["log_level"],
        sources=dict(sources),
    )


def named(text: str, values: Values) -> str:
    """SITE and HOST filled in; both hold only A-Z a-z 0-9 . _ -, so the result is a safe name."""
    names = {"SITE": values["site"], "HOST": values["host"]}
    return _NAMES.sub(lambda found: str(names[found.group()]), text)


def _below(path: str, directories: Directories) -> Path:
    first, _, rest = path.partition("/")
    base = {"STATE": directories.state, "RUN": directories.run}.get(first)
    return base / rest if base is not None else Path(path)


def _path(text: Optional[str]) -> Optional[Path]:
    return None if text is None else Path(text)


def _broker(values: Values) -> BrokerSettings:
    of_policy = ("reply_prefixes", "default_reply")
    settings: Dict[str, Any] = {name: s for name, s in values["broker"].items() if name not in of_policy}
    for name in DESTINATIONS:
        settings[name] = named(settings[name], values)
    tls = settings["tls"]
    settings["tls"] = None if tls is None else Tls(Path(tls["ca"]), _path(tls["certificate"]), _path(tls["key"]))
    settings["passcode_file"] = _path(settings["passcode_file"])
    settings["urls"] = tuple(settings["urls"])
    return BrokerSettings(**settings)


def _prometheus(settings: Values) -> PrometheusSettings:
    tls = settings["tls"]
    listen = None if settings["listen"] is None else address(settings["listen"])
    return PrometheusSettings(listen, tls and ServerTls(Path(tls["certificate"]), Path(tls["key"])))


def address(listen: str) -> Tuple[str, int]:
    """Address and port of ADDRESS:PORT or [ADDRESS]:PORT."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


def _security(settings: Values) -> SecuritySettings:
    return SecuritySettings(
        settings["commands"], Path(settings["ca_directory"]), settings["crl"], settings["proxy_certificates"],
        settings["certificate_warn_days"],
    )


def _images(settings: Values, directories: Directories) -> ImageSettings:
    cache, fetch = dict(settings["cache"]), dict(settings["fetch"])
    cache["directory"] = _below(cache["directory"], directories)
    fetch["ca"] = _path(fetch["ca"])
    fetch["files"] = tuple(map(Path, fetch["files"]))
    directory, overlays, seeds = (_below(settings[name], directories) for name in ("directory", "overlays", "seeds"))
    largest = settings["largest_disk_gib"]
    return ImageSettings(directory, overlays, seeds, CacheSettings(**cache), FetchSettings(**fetch), largest)


def _apel(values: Values, directories: Directories) -> Optional[ApelSettings]:
    if values["accounting"]["apel"] is None:
        return None
    settings = dict(values["accounting"]["apel"])
    for name in SPOOLS:
        settings[name] = None if settings[name] is None else _below(settings[name], directories)
    sign, destination = settings["sign"], settings["destination"]
    settings["sign"] = None if sign is None else SigningPair(Path(sign["certificate"]), Path(sign["key"]))
    settings["destination"] = None if destination is None else named(destination, values)
    return ApelSettings(**settings)


def _tuples(members: Values) -> Dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in members.items()}


def _bounds(limits: Values, which: str) -> Dict[str, Any]:
    """One of minimum, default, maximum of every limit that has it; a limit that is a number is a maximum."""
    return {
        name: one[which] if isinstance(one, dict) else one
        for name, one in limits.items()
        if which in (one if isinstance(one, dict) else ("maximum",))
    }


def _firewall(values: Values) -> SiteFirewall:
    inbound, outbound = (rules.read(values[direction])[0] for direction in rules.DIRECTIONS)
    return SiteFirewall(Firewall(inbound, outbound), _apart(values["local"]), values["on_failure"])


def _apart(prefixes: Sequence[str]) -> Tuple[str, ...]:
    """The same addresses without overlaps, IPv4 first."""
    found: List[str] = []
    for family in (4, 6):
        mine: List[Any] = [one for one in map(rules.prefix, prefixes) if one.version == family]
        found += map(str, ipaddress.collapse_addresses(mine))
    return tuple(found)


def _trust(images: Values) -> TrustPolicy:
    return TrustPolicy(
        unendorsed=images["unendorsed"],
        lists=tuple(ListSource(**_tuples(row)) for row in images["lists"]),
        endorsers=tuple(Endorser(**_tuples(row)) for row in images["endorsers"]),
        refresh_s=images["lists_refresh_s"],
    )


def _authority(row: Values, maxima: Values) -> Authority:
    members = _tuples(row)
    if members["maxima"] is not None:
        members["maxima"] = Maxima(**{**maxima, **members["maxima"]})
    return Authority(**members)


def _policy(values: Values) -> Policy:
    """Policy gathers from all sections what decides about a command."""
    limits, security, lease = values["limits"], values["security"], values["lease"]
    return Policy(
        site=values["site"],
        host=values["host"],
        instance=values["instance"],
        networks={n: NetworkType(name=n, **_tuples(s)) for n, s in values["networks"].items()},
        flavours={n: Flavour(**s) for n, s in values["flavours"].items()},
        maxima=Maxima(**_bounds(limits, "maximum")),
        minima=Minima(**_bounds(limits, "minimum")),
        defaults=Defaults(**_bounds(limits, "default")),
        images={n: _image(n, s) for n, s in values["images"]["catalogue"].items()},
        volumes={n: Volume(name=n, **_tuples(s)) for n, s in values["volumes"].items()},
        authority=tuple(_authority(row, _bounds(limits, "maximum")) for row in security["authority"]),
        reply_prefixes=tuple(named(prefix, values) for prefix in values["broker"]["reply_prefixes"]),
        default_reply=named(values["broker"]["default_reply"], values),
        grace_s=lease["grace_s"],
        warn_before_s=tuple(sorted(lease["warn_before_s"], reverse=True)),
        clock_skew_s=security["clock_skew_s"],
        firewall=_firewall(values["firewall"]),
        snapshots=SnapshotRules(**values["snapshots"]),
        on_revoked=values["images"]["on_revoked"],
        trust=_trust(values["images"]),
        image_requests=tuple(values["images"]["requests"]),
        accounting=_accounting(values["accounting"]),
        **values["capacity"],
    )


def _image(id: str, settings: Values) -> CatalogueImage:
    boot = settings["boot"]
    if boot is not None:
        boot = Boot(**{**boot, **{name: boot[name] and BootFile(**boot[name]) for name in ("kernel", "initrd")}})
    return CatalogueImage(id=id, **{**settings, "boot": boot})


def _accounting(settings: Values) -> AccountingRules:
    benchmark = settings["benchmark"]
    return AccountingRules(
        settings["period_s"], settings["keep_days"], None if benchmark is None else Benchmark(**benchmark),
        tuple(settings["public"]),
    )  # fmt: skip
