"""Folders that others pass through, under the umask of the unit; and what is said where the agent may not write."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import confined
from vmagent import folders

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _umask() -> object:
    before = os.umask(0o077)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_mode_is_as_wanted_whatever_the_umask_with_all_that_was_missing_above(tmp_path: Path) -> None:
    folder = tmp_path / "one" / "two"
    assert folders.made(folder, 0o711) and not folders.made(folder, 0o755)
    assert mode(folder) == mode(folder.parent) == 0o711, "one that is there stays as it is"


def test_what_is_ours_is_brought_to_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    folders.held(folder, 0o711)
    assert mode(folder) == 0o711


@pytest.mark.skipif(os.geteuid() == 0 and not confined.wanted(), reason="root may write everywhere")
def test_what_is_not_ours_is_told_with_its_owner_and_what_to_do() -> None:
    code = "from pathlib import Path; from vmagent import folders; folders.held(Path('/usr'), 0o711)"
    done = subprocess.run([*confined.words(), sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          check=False)  # fmt: skip
    us = folders.user(confined.uid())
    assert f"/usr belongs to root and the agent runs as {us}: chown {us}: /usr" in done.stderr, done.stderr
