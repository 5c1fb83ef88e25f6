"""The collector's database: SQLite in a file, or PostgreSQL by URL.  The one place that knows how they differ.

What differs, and nothing else: how to connect, how a parameter is written (`?` is ours), which exceptions come.  All
statements keep to what both take: TEXT, BIGINT, row values, ON CONFLICT ... DO UPDATE ... WHERE (SQLite 3.24 or newer).
The driver of PostgreSQL (psycopg, or psycopg2) is imported only when a URL asks for it.

Rules: synchronous, one thread per object; a transaction is all or nothing; every failure is a Fault of kind AWAY (the
database cannot be had now) or REFUSED (it takes no such value: asked again it says so again).
"""

from __future__ import annotations

import contextlib
import importlib
import sqlite3
from pathlib import Path
from typing import Any, Iterator, List, Sequence, Tuple, Type
from urllib.parse import urlsplit

from vmagent.errors import Fault, FaultKind, Problem

VERSION = 1
BUSY_S = 10.0  # how long another process may hold SQLite's write lock
CONNECT_S = 10
DRIVERS = ("psycopg", "psycopg2")
SCHEMES = ("postgresql", "postgres")
TABLES = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    # how far each stream was heard; missing: JSON list of [first, last]
    """CREATE TABLE tracks (source TEXT NOT NULL, epoch TEXT NOT NULL, stream TEXT NOT NULL, number BIGINT NOT NULL,
       first BIGINT NOT NULL, last BIGINT NOT NULL, missing TEXT NOT NULL, lost BIGINT NOT NULL,
       healed BIGINT NOT NULL, PRIMARY KEY (source, epoch, stream))""",
    # the newest of each kind of message of each host; of host.snapshot only its place
    """CREATE TABLE latest (host TEXT NOT NULL, kind TEXT NOT NULL, epoch BIGINT NOT NULL, sequence BIGINT NOT NULL,
       at TEXT NOT NULL, data TEXT NOT NULL, PRIMARY KEY (host, kind))""",
    # the newest vm.state of each VM; gone: closed, or named no more by a snapshot
    """CREATE TABLE vms (host TEXT NOT NULL, vm TEXT NOT NULL, epoch BIGINT NOT NULL, sequence BIGINT NOT NULL,
       at TEXT NOT NULL, gone BIGINT NOT NULL, data TEXT NOT NULL, PRIMARY KEY (host, vm))""",
    # every period of every segment, once
    """CREATE TABLE periods (segment TEXT NOT NULL, number BIGINT NOT NULL, host TEXT NOT NULL, vm TEXT NOT NULL,
       vo TEXT NOT NULL, began TEXT NOT NULL, ended TEXT NOT NULL, data TEXT NOT NULL,
       PRIMARY KEY (segment, number))""",
    "CREATE INDEX periods_began ON periods (began)",
    # what could not be understood though it was sent to us, for people
    "CREATE TABLE aside (id TEXT PRIMARY KEY, at TEXT NOT NULL, why TEXT NOT NULL, body TEXT NOT NULL)",
)
Row = Tuple[Any, ...]


class Database:
    """One connection.  place: a file's path, or postgresql://USER@HOST/NAME; `made`: whether it may be made."""

    def __init__(self, place: str, made: bool = True) -> None:
        self.place = place
        self._errors: Tuple[Type[Exception], ...] = (sqlite3.Error,)
        self._data_errors: Tuple[Type[Exception], ...] = (sqlite3.DataError, sqlite3.InterfaceError)
        self._mark, self._begin = "?", "BEGIN IMMEDIATE" if made else "BEGIN"
        self._connection: Any = self._postgresql() if is_url(place) else self._sqlite(made)
        try:
            with self.transaction():
                self._settle(made)
        except BaseException:
            self.close()
            raise

    def _sqlite(self, made: bool) -> Any:
        path = Path(self.place)
        if not made and not path.exists():
            raise Problem("configuration", f"{path} does not exist; `vmagent-site collect` makes it and fills it, or "
                                           "name another with --database", path="database")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            connection = sqlite3.connect(str(path), timeout=BUSY_S, isolation_level=None)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
        except (OSError, sqlite3.Error) as error:
            raise Fault(FaultKind.AWAY, f"{path}: {error}") from None
        return connection

    def _postgresql(self) -> Any:
        if urlsplit(self.place).password:
            raise Problem("configuration", "a password does not belong into the URL, where everybody sees it; write "
                                           "it into ~/.pgpass, or a file named by ?passfile=PATH", path="database")
        driver = _driver()
        self._errors, self._data_errors, self._mark = (driver.Error,), (driver.DataError,), "%s"
        self._begin = "BEGIN"
        try:
            connection = driver.connect(self.place, connect_timeout=CONNECT_S)
            connection.autocommit = True
        except driver.Error as error:
            raise Fault(FaultKind.AWAY, f"PostgreSQL: {str(error).strip()}") from None
        return connection

    def _settle(self, made: bool) -> None:
        """Make the tables of an empty database; refuse one of another version, or somebody else's."""
        catalogue = "pg_tables WHERE schemaname = current_schema() AND tablename" if self._mark == "%s" else \
            "sqlite_master WHERE name"
        if not self.rows(f"SELECT 1 FROM {catalogue} = 'meta'"):
            if not made:
                raise Problem("configuration", f"{self.place}: no collector has written here yet", path="database")
            for statement in TABLES:
                self.run(statement)
            self.run("INSERT INTO meta (name, value) VALUES ('vmagent-collector', ?)", (str(VERSION),))
        found = self.rows("SELECT value FROM meta WHERE name = 'vmagent-collector'")
        if found != [(str(VERSION),)]:
            raise Problem("configuration", f"{self.place} is no database of this version of the collector (found "
                                           f"{found[0][0] if found else 'nothing'}, accepted: {VERSION})",
                          path="database")

    # -- for everybody

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing.  After a Fault nothing of it happened, unless the connection broke at its very end."""
        self.run(self._begin)
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            with contextlib.suppress(Fault):
                self.run("ROLLBACK")
            raise

    def run(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Execute one statement; its cursor."""
        cursor = self._connection.cursor()
        try:
            cursor.execute(statement.replace("?", self._mark), tuple(values))
        except self._data_errors as error:
            raise Fault(FaultKind.REFUSED, f"the database: {str(error).strip()}") from None
        except self._errors as error:
            raise Fault(FaultKind.AWAY, f"the database: {str(error).strip()}") from None
        return cursor

    def rows(self, statement: str, values: Sequence[Any] = ()) -> List[Row]:
        """All rows of a SELECT."""
        return [tuple(row) for row in self.run(statement, values).fetchall()]

    def close(self) -> None:
        with contextlib.suppress(*self._errors):
            self._connection.close()


def is_url(place: str) -> bool:
    """Whether it is a PostgreSQL URL; anything else is a path."""
    return urlsplit(place).scheme in SCHEMES


def _driver() -> Any:
    for name in DRIVERS:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise Problem("configuration", "PostgreSQL needs the Python package psycopg or psycopg2 (python3-psycopg2); "
                                   "without it give a file", path="database")
