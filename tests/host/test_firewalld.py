"""Beside a real firewalld, and beside what people do with nft: what docs/operations/firewalls.md says of our table.

firewalld runs in a network namespace, on a message bus of its own; our adapter runs in there as another process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List

import pytest

from tests.host.test_firewall import TABLE
from tests.support import wires
from tests.support.waiting import until

NEEDED = ("firewalld", "firewall-cmd", "dbus-daemon")
pytestmark = pytest.mark.skipif(not wires.READY or not all(shutil.which(tool) for tool in NEEDED),
                                reason="needs root, ip, nft and firewalld")
ROOT = Path(__file__).resolve().parents[2]
SPACE = "ztfirewalld"
BUS = """<busconfig>
<type>session</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/>
<allow send_destination="*"/><allow receive_sender="*"/></policy>
</busconfig>
"""
OURS = "from tests.host.test_firewall import RICH, Do, Rules, guest; rules, of = Rules(), guest(0, RICH); "
APPLY = OURS + "rules.do(Do.APPLY_FIREWALL, of)"
LOOK = OURS + "print(rules.words(of))"
MEND = OURS + "rules.restore(of); print(rules.words(of))"


class Place:
    """The namespace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: List[subprocess.Popen[bytes]] = []
        self._env: Dict[str, str] = {**os.environ, "PYTHONPATH": str(ROOT),
                                     "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={folder}/bus"}

    def run(self, *argv: str) -> str:
        done = subprocess.run(self._inside(*argv), capture_output=True, text=True, check=False, env=self._env, cwd=ROOT,
                              timeout=60)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def ours(self, code: str) -> str:
        """What our adapter says in there; "" = nothing differs."""
        return self.run(sys.executable, "-c", code).strip()

    def firewalld(self) -> None:
        (self.folder / "bus.conf").write_text(BUS.format(path=self.folder / "bus"))
        (self.folder / "firewalld").mkdir()
        self._start("dbus-daemon", f"--config-file={self.folder}/bus.conf", "--nofork", "--nopidfile")
        until((self.folder / "bus").exists, 20, "a message bus")
        self._start("firewalld", "--nofork", "--nopid", "--log-target", "console", "--system-config",
                    str(self.folder / "firewalld"))
        until(self._answers, 60, "firewalld")

    def end(self) -> None:
        """In the order in which they need each other."""
        for process in reversed(self._running):
            process.terminate()
            process.wait(20)
        self._running.clear()

    def _answers(self) -> bool:
        assert all(process.poll() is None for process in self._running), (self.folder / "out").read_text()
        return subprocess.run(self._inside("firewall-cmd", "--state"), env=self._env, capture_output=True,
                              check=False).returncode == 0

    def _start(self, *argv: str) -> None:
        with open(self.folder / "out", "ab") as out:
            self._running.append(subprocess.Popen(self._inside(*argv), env=self._env, stdout=out, stderr=out))

    @staticmethod
    def _inside(*argv: str) -> List[str]:
        return ["ip", "netns", "exec", SPACE, *argv]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    subprocess.run(["ip", "netns", "del", SPACE], capture_output=True, check=False)  # of a run that was killed
    wires.ip("netns", "add", SPACE)
    made = Place(tmp_path)
    try:
        made.ours(APPLY)
        yield made
    finally:
        made.end()
        wires.ip("netns", "del", SPACE)


def test_firewalld_leaves_our_table_alone_and_we_its_own(place: Place) -> None:
    before = place.run("nft", "list", "table", "bridge", TABLE)
    place.firewalld()
    assert "table inet firewalld" in place.run("nft", "list", "tables")
    place.run("firewall-cmd", "--add-service=http")
    for reload in ("--reload", "--complete-reload"):
        place.run("firewall-cmd", "--permanent", "--add-service=https")
        place.run("firewall-cmd", reload)
        assert place.run("nft", "list", "table", "bridge", TABLE) == before, reload
        assert place.ours(LOOK) == "", reload
    theirs = place.run("nft", "list", "table", "inet", "firewalld")
    assert place.ours(MEND) == ""
    assert place.run("nft", "list", "table", "inet", "firewalld") == theirs
    place.end()
    assert place.run("nft", "list", "tables").split() == ["table", "bridge", TABLE]
    assert place.run("nft", "list", "table", "bridge", TABLE) == before


@pytest.mark.parametrize("harm", ("flush ruleset", f"delete table bridge {TABLE}"))
def test_what_takes_our_table_away_is_seen_and_mended(place: Place, harm: str) -> None:
    place.firewalld()
    place.run("nft", *harm.split())
    assert place.ours(LOOK) != ""
    theirs = place.run("nft", "list", "tables").replace(f"table bridge {TABLE}\n", "")
    assert place.ours(MEND) == "" and place.ours(LOOK) == ""
    assert place.run("nft", "list", "tables").replace(f"table bridge {TABLE}\n", "") == theirs


def test_a_rule_file_that_clears_only_its_own_table_leaves_ours(place: Place) -> None:
    """As firewalls.md has it for files of one's own."""
    file = place.folder / "mine.nft"
    file.write_text("add table inet mine\ndelete table inet mine\ntable inet mine {\n chain input {\n"
                    "  type filter hook input priority filter; policy accept;\n }\n}\n")
    before = place.run("nft", "list", "table", "bridge", TABLE)
    for _ in range(2):
        place.run("nft", "-f", str(file))
        assert place.run("nft", "list", "table", "bridge", TABLE) == before
    assert place.ours(LOOK) == ""
