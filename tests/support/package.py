"""The packages, built from this checkout as a packager would, and an empty root to install them into."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT / "rpm/vmagent.spec"
BUILD_S = 300
needs_rpmbuild = pytest.mark.skipif(shutil.which("rpmbuild") is None, reason="no rpmbuild here")


def build(into: Path, checkout: Path = ROOT) -> Dict[str, Path]:
    """Every package by its name, and the source package as `src`; needs rpmbuild, not root."""
    argv = [sys.executable, str(checkout / "rpm/build"), "--into", str(into), "--python", sys.executable]
    done = subprocess.run([*argv, "--without-check"], capture_output=True, text=True, timeout=BUILD_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {"src" if path.name.endswith(".src.rpm") else asked(path, "%{NAME}"): path for path in into.glob("*.rpm")}


def asked(package: Path, form: str) -> str:
    """What the package says of itself, in rpm's query format."""
    argv = ["rpm", "-qp", "--queryformat", form, str(package)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout


def listed(package: Path) -> List[str]:
    return asked(package, r"[%{FILENAMES}\n]").split()


def unpacked(package: Path, into: Path) -> None:
    cpio = subprocess.run(["rpm2cpio", str(package)], capture_output=True, timeout=60, check=True).stdout
    subprocess.run(["cpio", "-idm", "--quiet"], input=cpio, cwd=into, timeout=60, check=True)


def copied(to: Path) -> Path:
    """A checkout without git's own folder, to be changed or built in."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, capture_output=True, text=True, timeout=60, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to
