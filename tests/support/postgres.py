"""A private PostgreSQL in a folder of its own, on a Unix socket, run as the user `postgres` and ended with the test."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import List, Optional

BINARIES = Path("/usr/lib/postgresql")
PORT = 5432  # a name of the socket, not a port: nothing listens on TCP


def missing() -> str:
    """Why it cannot be run here; "" = it can."""
    if _program("postgres") is None:
        return "PostgreSQL is not installed"
    if os.geteuid() != 0:
        return "needs root: PostgreSQL runs as a user of its own"
    if not any(importlib.util.find_spec(name) for name in ("psycopg", "psycopg2")):
        return "no driver: psycopg or psycopg2"
    return ""


def _program(name: str) -> Optional[str]:
    found = sorted(BINARIES.glob(f"*/bin/{name}"))
    return str(found[-1]) if found else None


class Postgres:
    """Runs from the first line on, until remove().  `url` names its database, `emptied()` an empty one."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vma-pg-", dir="/var/tmp"))
        user = pwd.getpwnam("postgres")
        os.chown(self.folder, user.pw_uid, user.pw_gid)
        self.url = f"postgresql://postgres@/postgres?host={self.folder}&port={PORT}"
        self._as_user("initdb", "-D", str(self.folder / "data"), "-A", "trust", "--no-sync", "-E", "UTF8")
        self.start()

    def start(self) -> None:
        options = f"-c listen_addresses='' -c fsync=off -c unix_socket_directories={self.folder} -p {PORT}"
        self._as_user("pg_ctl", "-D", str(self.folder / "data"), "-w", "-o", options, "-l", str(self.folder / "log"),
                      "start")

    def halt(self) -> None:
        """As a machine that goes down: clients are cut off."""
        self._as_user("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", "immediate", "stop")

    def remove(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):  # a test halted it
            self.halt()
        shutil.rmtree(self.folder, ignore_errors=True)

    def emptied(self) -> str:
        """The URL, after every table of an earlier test is gone."""
        self._as_user("psql", "-q", "-h", str(self.folder), "-p", str(PORT), "-U", "postgres", "-c",
                      "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        return self.url

    def _as_user(self, name: str, *argv: str) -> None:
        program = _program(name) or name
        command: List[str] = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", program]
        subprocess.run([*command, *argv], check=True, cwd=self.folder, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=120)
