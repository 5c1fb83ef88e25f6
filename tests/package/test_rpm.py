"""The package: it builds where rpmbuild is, brings every file, and its commands run from an unpacked root."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import pytest

import vmagent
from tests.support.package import ROOT, SPEC, build

needs_rpmbuild = pytest.mark.skipif(shutil.which("rpmbuild") is None, reason="no rpmbuild here")


def test_spec_and_package_have_one_version() -> None:
    version = re.search(r"^Version:.*%\{!\?ver:(.+?)\}", SPEC.read_text(), re.MULTILINE)
    assert version is not None and version.group(1) == vmagent.__version__


def test_the_spec_requires_what_setup_requires() -> None:
    """Lower bounds stand twice, because RPM and Python name packages differently: they must be the same numbers."""
    wanted = re.findall(r'"[A-Za-z.-]+>=([\d.]+)"', (ROOT / "setup.py").read_text())
    given = re.findall(r"^Requires: +python3-\S+ >= ([\d.]+)$", SPEC.read_text(), re.MULTILINE)
    assert sorted(wanted[:-1]) == sorted(given)  # the last one is pytest


@pytest.fixture(scope="module")
def package(tmp_path_factory: Any) -> Path:
    """The binary package, built in a folder of its own, without root."""
    return build(tmp_path_factory.mktemp("rpm"))


def listed(package: Path) -> List[str]:
    return subprocess.run(
        ["rpm", "-qpl", str(package)], capture_output=True, text=True, timeout=60, check=True
    ).stdout.split("\n")


@needs_rpmbuild
def test_the_package_brings_every_file(package: Path) -> None:
    files = set(listed(package))
    assert {
        "/usr/bin/vmagent", "/usr/bin/vmagentctl", "/usr/bin/vmagent-site", "/etc/vmagent/vmagent.yaml",
        "/usr/lib/systemd/system/vmagent.service", "/usr/lib/systemd/system/vmagent-guard.service",
        "/usr/lib/sysusers.d/vmagent.conf",
        "/usr/lib/tmpfiles.d/vmagent.conf", "/var/lib/vmagent/overlays",
    } <= files  # fmt: skip
    sources = [p for p in (ROOT / "vmagent").rglob("*") if p.suffix in (".py", ".json")]
    assert {f"/usr/lib/vmagent/{p.relative_to(ROOT)}" for p in sources} <= files
    assert not [f for f in files if "__pycache__" in f or "/tests/" in f]


@needs_rpmbuild
def test_configuration_of_the_site_survives_an_upgrade(package: Path) -> None:
    done = subprocess.run(["rpm", "-qpc", str(package)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["/etc/vmagent/vmagent.yaml"]
    assert "%config(noreplace) %{_sysconfdir}/vmagent/vmagent.yaml" in SPEC.read_text()


@needs_rpmbuild
def test_no_scriptlet_touches_a_guest(package: Path) -> None:
    argv = ["rpm", "-qp", "--scripts", str(package)]
    scripts = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "vmagent.service" in scripts
    assert not re.search(r"virsh|qemu|nft|machine\.slice|libvirt", scripts)


@needs_rpmbuild
def test_the_installed_commands_run(package: Path, tmp_path: Path) -> None:
    cpio = subprocess.run(["rpm2cpio", str(package)], capture_output=True, timeout=60, check=True).stdout
    subprocess.run(["cpio", "-idm", "--quiet"], input=cpio, cwd=tmp_path, timeout=60, check=True)
    text = (tmp_path / "usr/bin/vmagent").read_text()
    assert text.startswith("#!/usr/bin/python3 -s\n")
    program = tmp_path / "vmagent-here"
    program.write_text(text.replace("/usr/lib/vmagent", str(tmp_path / "usr/lib/vmagent")))
    config = tmp_path / "etc/vmagent/vmagent.yaml"

    def run(*argv: str) -> Any:
        bare = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        return subprocess.run(
            [sys.executable, "-B", str(program), *argv], cwd="/", env=bare, capture_output=True, text=True, check=False
        )

    assert run("--version").stdout == f"vmagent {vmagent.__version__}\n"
    bare = run("--config", str(config), "--check-config")
    assert bare.returncode == 2 and "at site: missing" in bare.stderr
    config.with_name("vmagent.d").joinpath("site.yaml").write_text(
        f"site: s\nhost: h\nbroker: {{urls: [stomp://b:61613]}}\nsecurity: {{ca_directory: {tmp_path}}}\n"
    )
    done = run("--config", str(config), "--check-config")
    assert (done.returncode, done.stderr) == (0, "")
