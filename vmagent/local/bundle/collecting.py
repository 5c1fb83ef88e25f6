"""What goes into the archive, piece by piece; a piece that cannot be had is named with the reason, and costs no other.

Of the store only its files' sizes and what the head of an SQLite file says (sqlite.org/fileformat2.html, 1.3): never a
row.  Rules and qdiscs are ours alone.
"""

from __future__ import annotations

import json
import platform
import re
import struct
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import vmagent
from vmagent.config import Config
from vmagent.errors import Fault, Problem
from vmagent.local.bundle.scrubbing import scrubbed, without_secrets
from vmagent.local.doctor import Host

LARGEST = 4 * 2**20
"""Bytes of one piece; of what is longer the end stays."""
QUESTIONS: Mapping[str, Mapping[str, Any]] = {
    "status": {}, "doctor": {}, "list": {"all": True}, "capacity": {}, "audit": {"limit": 500}, "images": {},
    "downloads": {}, "telemetry": {},
}  # fmt: skip
"""What is asked of the agent: verb -> args."""
PACKAGES = ("Twisted", "cryptography", "jsonschema", "jwcrypto", "libvirt-python", "psutil", "pyOpenSSL", "PyYAML",
            "rich", "stomp.py")  # fmt: skip
JOURNAL = ("journalctl", "--unit=vmagent", "--lines=5000", "--no-pager", "--output=short-iso", "--quiet")


@dataclass
class Around:
    """ask(verb, args): of the agent; Problem, Fault.  values: settings in force, None when they cannot be read."""

    host: Host
    ask: Callable[[str, Mapping[str, Any]], Any]
    config: Optional[Config]
    values: Optional[Mapping[str, Any]]
    why_not: str  # there is no `config`
    examined: Callable[[], Any]  # the doctor's findings
    text: str = ""  # of the configuration's file, as it is
    missing: Dict[str, str] = field(default_factory=dict)


def collect(around: Around) -> List[Tuple[str, bytes]]:
    """(name, content), secrets removed; what is missing stands in the last one and in `around.missing`."""
    known = _known(around)
    pieces = []
    for name, make in _pieces(around):
        try:
            text = make()
        except (Fault, Problem, OSError) as error:
            around.missing[name] = scrubbed(str(error), known)
            continue
        pieces.append((name, _bounded(scrubbed(text, known))))
    told = "".join(f"{name}: {why}\n" for name, why in around.missing.items()) or "nothing\n"
    return [*pieces, ("missing.txt", told.encode())]


def _pieces(around: Around) -> Sequence[Tuple[str, Callable[[], str]]]:
    def question(verb: str) -> Callable[[], str]:
        return lambda: _json(around.ask(verb, QUESTIONS[verb]))

    asked = [(f"agent/{verb}.json", question(verb)) for verb in QUESTIONS]
    return [
        ("versions.txt", lambda: _versions(around.host)),
        ("config.json", lambda: _settings(around)),
        ("doctor.json", lambda: _json(around.examined())),
        *asked,
        ("journal.txt", lambda: around.host.run(*JOURNAL)),
        ("nft.json", lambda: around.host.run("nft", "-j", "list", "table", "bridge", f"vmagent_{_instance(around)}")),
        ("tc.json", lambda: _qdiscs(around)),
        ("store.json", lambda: _json(_store(around))),
    ]


def _json(value: Any) -> str:
    return json.dumps(without_secrets(value), indent=1, sort_keys=True) + "\n"


def _bounded(text: str) -> bytes:
    """Its end, where what is newest stands."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= LARGEST:
        return raw
    return b"(the beginning was cut off: %d bytes)\n" % (len(raw) - LARGEST) + raw[-LARGEST:]


def _known(around: Around) -> Sequence[str]:
    """Secrets word for word, so that they are found wherever they stand; also while the configuration is broken."""
    files = re.findall(r"passcode_file[\"']?\s*:\s*[\"']?([^\s\"',}]+)", around.text)
    if around.config is not None and around.config.broker.passcode_file is not None:
        files.append(str(around.config.broker.passcode_file))
    found = [(around.host.read(Path(file)) or b"").decode("utf-8", "replace").strip() for file in files]
    return tuple(dict.fromkeys(one for one in found if one))


def _needed(around: Around) -> Config:
    if around.config is None:
        raise Problem("configuration", f"the configuration cannot be read: {around.why_not}")
    return around.config


def _instance(around: Around) -> str:
    return _needed(around).policy.instance


def _settings(around: Around) -> str:
    _needed(around)
    return _json(around.values)


def _versions(host: Host) -> str:
    said = {"vmagent": vmagent.__version__, "python": sys.version.split()[0], "system": platform.platform()}
    for name in PACKAGES:
        try:
            said[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            said[name] = "not installed as a package"
    for name, argv in (("libvirt", ("virsh", "--version")), ("qemu-img", ("qemu-img", "--version")),
                       ("nft", ("nft", "--version")), ("tc", ("tc", "-V")), ("systemd", ("systemctl", "--version"))):
        try:
            said[name] = host.run(*argv).strip().split("\n")[0]
        except Fault as fault:
            said[name] = f"({fault})"
    return "".join(f"{name}: {version}\n" for name, version in said.items())


def _qdiscs(around: Around) -> str:
    """Of our interfaces alone."""
    prefix = _instance(around)
    found = json.loads(around.host.run("tc", "-s", "-j", "qdisc", "show") or "[]")
    return json.dumps([one for one in found if str(one.get("dev", "")).startswith(prefix)], indent=1) + "\n"


def _store(around: Around) -> Mapping[str, Any]:
    state = _needed(around).directories.state
    sizes = {}
    for path in around.host.list(state):
        if path.name.startswith("vmagent."):
            sizes[path.name] = path.stat().st_size
    return {"directory": str(state), "bytes": sizes, "head": _head(state / "vmagent.db")}


def _head(path: Path) -> Mapping[str, int]:
    """Page size, pages, free pages, schema version: of the file's first 100 bytes, big-endian."""
    with open(path, "rb") as file:
        raw = file.read(100)
    if len(raw) < 100 or not raw.startswith(b"SQLite format 3\0"):
        raise OSError(f"{path} is no SQLite file")
    (page,), (pages,) = struct.unpack_from(">H", raw, 16), struct.unpack_from(">I", raw, 28)
    (free,), (version,) = struct.unpack_from(">I", raw, 36), struct.unpack_from(">I", raw, 60)
    return {"page_bytes": 65536 if page == 1 else page, "pages": pages, "free_pages": free, "schema": version}
