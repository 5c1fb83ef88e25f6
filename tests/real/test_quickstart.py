"""The README's first command: every step is proven, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Set

import pytest

from tests.support.agent import ROOT


def links() -> Set[str]:
    """The quickstart's own: its bridge and what its agent makes.  Other tests may run beside this one."""
    return {name for name in os.listdir("/sys/class/net") if name.startswith(("vqsbr", "vmaq"))}


@pytest.mark.parametrize("kind", ("qemu", "test"))
def test_quickstart_proves_itself_and_leaves_nothing(base: Path, kind: str) -> None:
    folder = base / f"quickstart-{kind}"
    argv = [sys.executable, str(ROOT / "quickstart"), "--check", "--hypervisor", kind, "--folder", str(folder)]
    done = subprocess.run(argv,
                          capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every step was proven" in done.stdout
    assert not folder.exists() and not links()
    assert "vmagent_vmaq" not in subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
