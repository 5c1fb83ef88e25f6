"""The host that the command runs on, as the doctor looks at it.  Blocking: never for the daemon's own process."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import ssl
import stat
from pathlib import Path
from typing import Optional, Sequence
from urllib.parse import urlsplit

from vmagent import children
from vmagent.config import Config
from vmagent.local.doctor.findings import Owned

DEADLINE_S = 10.0
CONNECT_S = 3.0
_MAX_BYTES = 4 << 20


class ThisHost:
    """Implements findings.Host."""

    def run(self, *argv: str) -> str:
        return children.run(argv, DEADLINE_S).decode("utf-8", "replace")

    def read(self, path: Path) -> Optional[bytes]:
        try:
            with open(path, "rb") as file:
                return file.read(_MAX_BYTES)
        except OSError:
            return None

    def exists(self, path: Path) -> bool:
        return os.path.exists(path)

    def list(self, directory: Path) -> Sequence[Path]:
        try:
            return sorted(directory.iterdir())
        except OSError:
            return []

    def owned(self, path: Path) -> Optional[Owned]:
        try:
            status = path.stat()
        except OSError:
            return None
        return Owned(_user(status.st_uid), _group(status.st_gid), stat.S_IMODE(status.st_mode))

    def writable(self, path: Path) -> bool:
        return os.access(path, os.W_OK | os.X_OK)

    def free_gib(self, path: Path) -> Optional[float]:
        for place in (path, *path.parents):
            try:
                room = os.statvfs(place)
            except FileNotFoundError:
                continue
            except OSError:
                return None
            return room.f_bavail * room.f_frsize / 2**30
        return None

    def reach(self, url: str, config: Config) -> Optional[float]:
        split = urlsplit(url)
        with socket.create_connection((split.hostname or "", split.port or 0), CONNECT_S) as link:
            tls = config.broker.tls
            if split.scheme != "stomp+ssl" or tls is None:
                return None
            context = ssl.create_default_context(cafile=str(tls.ca))
            if tls.certificate is not None and tls.key is not None:
                context.load_cert_chain(tls.certificate, tls.key)
            with context.wrap_socket(link, server_hostname=split.hostname) as secure:
                found = secure.getpeercert() or {}
                return float(ssl.cert_time_to_seconds(str(found["notAfter"])))

    def wall(self) -> float:
        """Asked of `date`: this package is handed clocks, and here nobody hands one."""
        return float(self.run("date", "+%s"))


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
