"""From checked, filled values to the frozen Config; nothing is decided here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from vmagent.config import (
    BrokerSettings,
    Config,
    Directories,
    HypervisorSettings,
    ImageSettings,
    Intervals,
    SecuritySettings,
    SocketSettings,
    Tls,
)
from vmagent.core.policy import Authority, CatalogueImage, Flavour, Maxima, NetworkType, Policy

Values = Mapping[str, Any]
_NAMES = re.compile(r"\b(SITE|HOST)\b")
DESTINATIONS = ("client_id", "commands", "commands_all", "events", "usage", "capacity", "telemetry")


def config(values: Values, sources: Mapping[str, str]) -> Config:
    """values: checked and filled, `host` included."""
    directories = Directories(**{name: Path(path) for name, path in values["directories"].items()})
    return Config(
        policy=_policy(values),
        directories=directories,
        hypervisor=HypervisorSettings(**values["hypervisor"]),
        broker=_broker(values),
        security=SecuritySettings(**{**values["security"], "ca_directory": Path(values["security"]["ca_directory"])}),
        images=ImageSettings(**{name: _below(path, directories) for name, path in values["images"].items()}),
        socket=SocketSettings(**{**values["socket"], "path": _below(values["socket"]["path"], directories)}),
        intervals=Intervals(**values["intervals"]),
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
    settings: Dict[str, Any] = dict(values["broker"])
    for name in DESTINATIONS:
        settings[name] = named(settings[name], values)
    tls = settings["tls"]
    settings["tls"] = None if tls is None else Tls(Path(tls["ca"]), _path(tls["certificate"]), _path(tls["key"]))
    settings["passcode_file"] = _path(settings["passcode_file"])
    settings["urls"] = tuple(settings["urls"])
    return BrokerSettings(**settings)


def _tuples(members: Values) -> Dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in members.items()}


def _authority(row: Values, maxima: Values) -> Authority:
    members = _tuples(row)
    if members["maxima"] is not None:
        members["maxima"] = Maxima(**{**maxima, **members["maxima"]})
    return Authority(**members)


def _policy(values: Values) -> Policy:
    members = _tuples(values["policy"])
    members["networks"] = {n: NetworkType(name=n, **_tuples(s)) for n, s in members["networks"].items()}
    members["flavours"] = {n: Flavour(**s) for n, s in members["flavours"].items()}
    members["authority"] = tuple(_authority(row, members["maxima"]) for row in members["authority"])
    members["maxima"] = Maxima(**members["maxima"])
    members["images"] = {n: CatalogueImage(id=n, **s) for n, s in members["images"].items()}
    members["reply_prefixes"] = tuple(named(prefix, values) for prefix in members["reply_prefixes"])
    members["default_reply"] = named(members["default_reply"], values)
    members["warn_before_s"] = tuple(sorted(members["warn_before_s"], reverse=True))
    return Policy(site=values["site"], host=values["host"], instance=values["instance"], **members)
