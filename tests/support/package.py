"""The binary package, built from this checkout as a packager would."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path
from typing import Any

import vmagent

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT / "rpm/vmagent.spec"
SHIPPED = ("vmagent", "etc", "systemd", "docs", "LICENSE", "CHANGELOG.md")


def build(top: Path) -> Path:
    """The .rpm, built below the empty folder `top`; needs rpmbuild, not root."""
    (top / "SOURCES").mkdir()
    name = f"vmagent-{vmagent.__version__}"

    def clean(member: tarfile.TarInfo) -> Any:
        return None if "__pycache__" in member.name else member

    with tarfile.open(top / "SOURCES" / f"{name}.tar.gz", "w:gz") as tar:
        for part in SHIPPED:
            tar.add(ROOT / part, f"{name}/{part}", filter=clean)
    argv = ["rpmbuild", "-bb", "--quiet", "--nodeps", "--define", f"_topdir {top}", str(SPEC)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (top / "RPMS").glob("noarch/*.rpm")
    return built
