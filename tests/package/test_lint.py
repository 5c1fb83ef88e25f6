"""rpmlint has nothing to say that rpm/rpmlint.toml does not explain."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Dict

import pytest

from tests.support.package import ROOT, SPEC, needs_rpmbuild

CONFIG = ROOT / "rpm/rpmlint.toml"


def lint(config: Path, packages: Dict[str, Path]) -> str:
    argv = ["rpmlint", "-c", str(config), str(SPEC), *map(str, packages.values())]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr


@needs_rpmbuild
@pytest.mark.skipif(shutil.which("rpmlint") is None, reason="no rpmlint here")
def test_every_remark_is_explained(packages: Dict[str, Path]) -> None:
    said = lint(CONFIG, packages)
    assert " 0 errors, 0 warnings" in said, said


@needs_rpmbuild
@pytest.mark.skipif(shutil.which("rpmlint") is None, reason="no rpmlint here")
def test_every_explanation_is_of_a_remark(packages: Dict[str, Path], tmp_path: Path) -> None:
    """A row that filters nothing would hide the next remark of its kind."""
    text = CONFIG.read_text()
    rows = re.findall(r"^    '(.+)',$", text, re.MULTILINE)
    bare = tmp_path / "bare.toml"
    bare.write_text(re.sub(r"^Filters = \[.*?^\]$", "Filters = []", text, flags=re.DOTALL | re.MULTILINE))
    said = lint(bare, packages)
    assert len(rows) > 5
    assert not [row for row in rows if not re.search(row, said)], said


def test_every_row_has_its_reason() -> None:
    group = []
    for line in CONFIG.read_text().split("Filters = [")[1].splitlines()[1:-1]:
        if line.startswith("    #"):
            group = [line]
        else:
            assert group and len(line) > 8, line
