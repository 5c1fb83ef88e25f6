"""The manual pages as groff reads them: without a warning, and readable."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vmagent.manual.__main__ import made, main

PAGES = [name for name in made() if name.startswith("man/")]


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff here")
@pytest.mark.parametrize("name", PAGES)
def test_groff_takes_the_page(name: str, tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 0
    argv = ["groff", "-man", "-Tutf8", "-ww", "-P-cbou", str(tmp_path / name)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert "NAME" in done.stdout and "SEE ALSO" in done.stdout and r"\f" not in done.stdout
