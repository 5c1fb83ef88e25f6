"""`vmagentctl bundle`: the pieces of `bundle.collecting` as one archive that nobody else may read.

It works when nothing else does: without the agent, and with a configuration that cannot be read; then it says what is
missing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import socket
import tarfile
from pathlib import Path
from typing import Any, Iterator, List, Mapping, Optional, Sequence, TextIO, Tuple

from vmagent import configfile
from vmagent.config import Config
from vmagent.core import walltime
from vmagent.errors import Fault, FaultKind, Problem
from vmagent.local import doctor, tables
from vmagent.local.bundle.collecting import Around, collect
from vmagent.local.ctl_client import Client, Unreachable
from vmagent.local.ctl_parser import DEFAULT_SOCKET
from vmagent.local.ctl_session import Code

MODE = 0o600


def run(said: argparse.Namespace, out: TextIO, screen: tables.Screen, host: Optional[doctor.Host] = None) -> int:
    """Exit code 0 once the archive is written.  Problem `usage` when it cannot be."""
    host = host or doctor.ThisHost()
    config, values, why = _config(said.config)
    now_s = host.wall()
    name = f"vmagent-bundle-{socket.gethostname()}-{walltime.text(now_s)[:19].replace(':', '')}"
    path = said.output or Path(f"{name}.tar.gz")
    with _asking(said.socket or (config.socket.path if config else DEFAULT_SOCKET)) as ask:
        text = (host.read(said.config) or b"").decode("utf-8", "replace")
        around = Around(host, ask, config, values, why, lambda: _findings(config, why, host), text)
        pieces = collect(around)
    _write(path, name, pieces, now_s)
    if said.json:
        out.write(json.dumps({"file": str(path), "missing": around.missing}, indent=2) + "\n")
    else:
        screen.line(f"{path}: {len(pieces)} files, no secrets known to be in it; have a look before you send it")
        for piece, reason in around.missing.items():
            screen.line(f"missing  {piece}: {reason}", "yellow")
    return Code.OK


def _config(path: Path) -> Tuple[Optional[Config], Optional[Mapping[str, Any]], str]:
    try:
        fqdn = socket.getfqdn()
        return configfile.read(path, fqdn), configfile.read_raw(path, fqdn).values, ""
    except Problem as problem:
        return None, None, "; ".join(tables.problems(problem.as_json()))


@contextlib.contextmanager
def _asking(path: Path) -> Iterator[Any]:
    """A way to ask the agent; without one every question is a Fault."""
    try:
        client = Client(path)
    except Unreachable as away:
        reason = f"no agent answers: {away}"

        def refuse(verb: str, args: Mapping[str, Any]) -> Any:
            raise Fault(FaultKind.AWAY, reason)

        yield refuse
        return
    with client:

        def ask(verb: str, args: Mapping[str, Any]) -> Any:
            try:
                return client.ask(verb, args)
            except Unreachable as away:
                raise Fault(FaultKind.AWAY, str(away)) from None

        yield ask


def _findings(config: Optional[Config], why: str, host: doctor.Host) -> List[Mapping[str, str]]:
    if config is None:
        raise Problem("configuration", f"the configuration cannot be read: {why}")
    return [{"id": one.id, "level": one.level.value, "text": one.text, "mend": one.mend}
            for one in doctor.run(config, None, host)]


def _write(path: Path, folder: str, pieces: Sequence[Tuple[str, bytes]], now_s: float) -> None:
    """A file that is there already is never replaced."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
        with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, content in pieces:
                entry = tarfile.TarInfo(f"{folder}/{name}")
                entry.size, entry.mtime, entry.mode = len(content), int(now_s), MODE
                archive.addfile(entry, io.BytesIO(content))
    except OSError as error:
        raise Problem("usage", f"{path} cannot be written: {error.strerror or error}", path="--output") from None
