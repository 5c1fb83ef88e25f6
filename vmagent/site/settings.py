"""A controller's configuration: a small YAML file, checked against schema/site.json.

Defaults stand once, in the schema.  Relative paths start at the folder of the file.  Secrets stay in their own files.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

import yaml

from vmagent.config import BrokerSettings, Tls
from vmagent.core import schemas
from vmagent.core.model import Owner
from vmagent.errors import Problem, Problems
from vmagent.site.database import is_url

DEFAULT_PATH = Path("~/.config/vmagent-site.yaml")
WINDOW = 64  # SENDs without a receipt
LARGEST_EVENT_KIB = 16 * 1024  # a snapshot of a full host


@dataclass(frozen=True)
class Site:
    """Everything a controller needs to know of its site."""

    name: str
    hosts: Tuple[str, ...]  # those that are expected to answer; () = not known
    broker: BrokerSettings
    key_pem: bytes
    chain_pem: bytes
    owner: Optional[Owner]
    replies: str
    subscription: str  # of the events; "" = not durable
    ovf_networks: Mapping[str, str] = dataclasses.field(default_factory=dict)  # envelope's name -> network type
    database: str = ""  # of the collector: a path, or a PostgreSQL URL

    def commands(self, host: str) -> str:
        """The queue of one host's commands."""
        return self.broker.commands.replace("HOST", host)


def load(path: Path) -> Site:
    """Read the file and the key it names.  Problems `configuration`, all that the schema finds, with places."""
    path = path.expanduser()
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Problem("configuration", f"{path}: {error}", path=str(path)) from None
    try:
        schemas.check("site", said)
    except Problems as wrong:
        raise Problems([_told(path, one) for one in wrong.problems]) from None
    return _site(path, {**_defaults(), **said})


def _told(path: Path, problem: Problem) -> Problem:
    where = problem.fields.get("path")
    at = f"at {where}: " if where else ""
    accepted = problem.fields.get("accepted")
    tail = f"; accepted: {accepted}" if accepted else ""
    return Problem("configuration", f"{path}: {at}{problem.detail}{tail}", path=where)


def _defaults() -> Dict[str, Any]:
    properties: Mapping[str, Mapping[str, Any]] = schemas.schema("site")["properties"]
    return {name: one["default"] for name, one in properties.items() if "default" in one}


def _site(path: Path, said: Mapping[str, Any]) -> Site:
    def file(name: Optional[str]) -> Optional[Path]:
        return None if name is None else path.parent / Path(name).expanduser()

    def place(name: str) -> str:
        return str(said[name]).replace("SITE", said["site"])

    def database(where: str) -> str:
        return where if is_url(where) else str(path.parent / Path(where).expanduser())

    def content(name: str) -> bytes:
        where = path.parent / Path(said[name]).expanduser()
        try:
            return where.read_bytes()
        except OSError as error:
            raise Problem("configuration", f"{path}: at {name}: {error}", path=name) from None

    tls = said["tls"]
    owner = said["owner"]
    broker = BrokerSettings(
        profile=said["profile"], urls=tuple(said["urls"]), virtual_host=said["virtual_host"], login=said["login"],
        passcode_file=file(said["passcode_file"]),
        tls=None if tls is None else Tls(path.parent / tls["ca"], file(tls.get("certificate")), file(tls.get("key"))),
        heartbeat_s=said["heartbeat_s"], receipt_s=said["receipt_s"], reconnect_max_s=said["reconnect_max_s"],
        window=WINDOW, max_command_kib=LARGEST_EVENT_KIB, client_id=said["subscription"] or "",
        commands=place("commands"), commands_all=place("commands_all"), events=place("events"),
        usage=place("usage"), capacity=place("capacity"), telemetry=place("telemetry"), spool_rows=0, spool_mib=0,
    )
    return Site(
        name=said["site"], hosts=tuple(said["hosts"]), broker=broker, key_pem=content("key"),
        chain_pem=content("chain"), owner=None if owner is None else Owner(owner["subject"], owner.get("fqan", "")),
        replies=place("replies"), subscription=said["subscription"] or "", ovf_networks=said["ovf_networks"],
        database=database(said["database"]),
    )
