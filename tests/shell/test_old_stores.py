"""Files that earlier versions wrote (tests/data/stores, made by tests/support/oldstores.py): today's agent takes each
over and loses nothing; what a newer version wrote it leaves alone.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Mapping

import pytest

from tests.support import building as b
from tests.support.opened import OpenedStore
from vmagent.__main__ import USAGE
from vmagent.core.changes import PutVm
from vmagent.core.codec import plain
from vmagent.core.context import Context
from vmagent.errors import Fault, FaultKind
from vmagent.store import schema

ROOT = Path(__file__).resolve().parents[2]
STORES = ROOT / "tests" / "data" / "stores"
KEPT = sorted(int(path.stem.split("-")[1]) for path in STORES.glob("schema-*.db"))


@pytest.fixture(params=KEPT)
def old(request: Any, tmp_path: Path) -> Path:
    """A copy of one kept file and its marker, as an upgrade finds them."""
    for suffix in (".db", ".epoch"):
        shutil.copyfile(STORES / f"schema-{request.param}{suffix}", tmp_path / f"vmagent{suffix}")
    (tmp_path / "said.json").write_bytes((STORES / f"schema-{request.param}.json").read_bytes())
    return tmp_path / "vmagent.db"


def said(old: Path) -> Dict[str, Any]:
    loaded: Dict[str, Any] = json.loads((old.parent / "said.json").read_text("utf-8"))
    return loaded


def version(path: Path) -> int:
    connection = sqlite3.connect(str(path))
    try:
        return schema.version(connection)
    finally:
        connection.close()


def holds(value: Any, of: Any) -> bool:
    """Whether all of `of` stands in `value`: a newer version may have added members, and changed none."""
    if isinstance(of, Mapping):
        return isinstance(value, Mapping) and all(name in value and holds(value[name], of[name]) for name in of)
    if isinstance(of, list):
        return len(value) == len(of) and all(map(holds, value, of))
    return bool(value == of)


def test_a_file_of_every_schema_is_kept() -> None:
    """A new step needs the file of the schema before it: tests/support/oldstores.py says how."""
    assert set(KEPT) >= set(range(1, len(schema.STEPS))), "no file of the schema before the newest step"
    assert max(KEPT) <= len(schema.STEPS)
    assert [version(STORES / f"schema-{number}.db") for number in KEPT] == KEPT


def test_nothing_is_lost(old: Path) -> None:
    kept = said(old)
    with OpenedStore(old) as opened:
        everything = [opened.ask("records", one["spec"]["vm"])[0] for one in kept["records"]]
        assert holds([plain(record) for record in everything], kept["records"])
        assert [record.vm for record in opened.stored.records] == [r.vm for r in everything if not r.closed]
        assert opened.stored.settings["drained"] is True
        assert holds([plain(row) for row in opened.ask("outbox", 0, 1000)], kept["outbox"])
        assert holds(list(opened.ask("audit", 1000, "")), kept["audit"])
        assert opened.epoch.id == kept["epoch"] and opened.epoch.cause == "first"
    assert version(old) == len(schema.STEPS)
    assert not list(old.parent.glob("*.corrupt-*"))


def test_replies_are_still_there(old: Path) -> None:
    """A command of before the upgrade that comes again gets the same answer, and one that is under way is owed one."""
    kept = said(old)
    with OpenedStore(old) as opened:
        commands = [opened.ask("command", one["id"]) for one in kept["commands"]]
        assert holds([plain(row) for row in commands], kept["commands"])
        assert [row.id for row in opened.stored.pending] == [b.COMMAND]


def test_what_came_with_a_later_schema_is_kept_too(old: Path) -> None:
    number, kept = version(old), said(old)["later"]
    with OpenedStore(old) as opened:
        if number >= 2:
            assert opened.ask("context", b.COMMAND) == Context("aGVsbG8=", ("ssh-ed25519 AAAA u",), (("role", "w"),))
        if number >= 3:
            assert [plain(one) for one in opened.stored.revocations] == [kept[1]["revocation"]]
        if number >= 4:
            assert holds([plain(one) for one in opened.stored.accounts], [kept[2]["account"]])
            assert [row.data for row in opened.ask("usage", 0, 10, "", "", "")] == [kept[4]["data"]]
            assert opened.ask("exported") == {"apel": 1}


def test_it_is_written_on_and_opened_again(old: Path) -> None:
    with OpenedStore(old) as opened:
        before = opened.stored.records
        opened.commit(PutVm(b.record(spec={"member": 9})))
        sequence = opened.ask("sequences")["events"]
        assert sequence == 4
    with OpenedStore(old) as opened:
        assert opened.stored.records[:-1] == before and opened.epoch.id == said(old)["epoch"]


def newer(folder: Path, journal: str = "wal") -> Path:
    """A store that a version after this one wrote."""
    path = folder / "vmagent.db"
    OpenedStore(path).close()
    connection = sqlite3.connect(str(path), isolation_level=None)
    connection.execute(f"PRAGMA user_version = {len(schema.STEPS) + 1}")
    connection.execute("CREATE TABLE of_the_future (a)")
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.close()
    return path


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_newer_file_is_refused_with_the_way_back_and_not_one_byte_changes(tmp_path: Path, journal: str) -> None:
    path = newer(tmp_path, journal)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(Fault, match="newer vmagent.*install that version again, or move the store away") as caught:
        OpenedStore(path)
    assert caught.value.kind is FaultKind.REFUSED
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_the_agent_ends_so_that_systemd_does_not_start_it_again(tmp_path: Path) -> None:
    """Exit code 2, and the way back in the log."""
    for name in ("state", "run", "ca"):
        (tmp_path / name).mkdir()
    newer(tmp_path / "state")
    config = tmp_path / "vmagent.yaml"
    config.write_text(
        f"site: s\nhost: h\nbroker: {{urls: ['stomp://127.0.0.1:1']}}\nsecurity: {{ca_directory: {tmp_path}/ca}}\n"
        f"directories: {{state: {tmp_path}/state, run: {tmp_path}/run}}\ninstance: zold\nhypervisor: {{uri: 'test:///default'}}\n"
    )
    argv = [sys.executable, "-m", "vmagent", "--config", str(config)]
    done = subprocess.run(argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip
    assert done.returncode == USAGE, done.stderr
    assert "store-newer" in done.stderr and "install that version again, or move the store away" in done.stderr
    assert "Traceback" not in done.stderr
