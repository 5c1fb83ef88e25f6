"""The packages: they build where rpmbuild is, bring every file once, and their commands run from an unpacked root."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import vmagent
from tests.support.package import ROOT, SPEC, asked, listed, needs_rpmbuild, unpacked

Packages = Dict[str, Path]


def test_spec_and_package_have_one_version() -> None:
    version = re.search(r"^Version:.*%\{!\?ver:(.+?)\}", SPEC.read_text(), re.MULTILINE)
    assert version is not None and version.group(1) == vmagent.__version__


def test_the_spec_requires_what_setup_requires() -> None:
    """Lower bounds stand twice, because RPM and Python name packages differently: they must be the same numbers."""
    wanted = re.findall(r'"[A-Za-z.-]+>=([\d.]+)"', (ROOT / "setup.py").read_text())
    given = re.findall(r"^Requires: +python3-\S+ >= ([\d.]+)$", SPEC.read_text(), re.MULTILINE)
    assert sorted(wanted[:-1]) == sorted(given)  # the last one is pytest


def entries() -> List[str]:
    """name:module of every command, as setup.py has them."""
    found = re.findall(r'"(\w[\w-]*)=([\w.]+):main"', (ROOT / "setup.py").read_text())
    return [f"{name}:{module}" for name, module in found]


def test_the_spec_makes_the_commands_of_setup() -> None:
    loop = re.search(r"for entry in ([^;]+);", SPEC.read_text())
    assert loop is not None and loop.group(1).replace("\\\n", "").split() == entries()


@needs_rpmbuild
def test_every_file_is_in_one_package(packages: Packages) -> None:
    files = {name: listed(path) for name, path in packages.items() if name != "src"}
    every = [one for some in files.values() for one in some]
    assert sorted(every) == sorted(set(every)), "two packages that own one file cannot be upgraded apart"
    assert {
        "/usr/bin/vmagent", "/usr/bin/vmagentctl", "/etc/vmagent/vmagent.yaml",
        "/usr/lib/systemd/system/vmagent.service", "/usr/lib/systemd/system/vmagent-guard.service",
        "/usr/lib/sysusers.d/vmagent.conf", "/usr/share/polkit-1/rules.d/50-vmagent.rules",
        "/usr/lib/tmpfiles.d/vmagent.conf", "/var/lib/vmagent/overlays",
    } <= set(files["vmagent"])  # fmt: skip
    sources = [p for p in (ROOT / "vmagent").rglob("*") if p.suffix in (".py", ".json")]
    assert {f"/usr/lib/vmagent/{p.relative_to(ROOT)}" for p in sources} <= set(files["python3-vmagent"])
    assert not [f for f in every if "__pycache__" in f or "/tests/" in f]


@needs_rpmbuild
def test_a_controller_needs_no_hypervisor(packages: Packages) -> None:
    assert "/usr/bin/vmagent-site" in listed(packages["vmagent-site"])
    wanted = asked(packages["vmagent-site"], r"[%{REQUIRENAME}\n]").split()
    assert [one for one in wanted if not one.startswith("rpmlib")] == ["python3-vmagent"]
    common = asked(packages["python3-vmagent"], r"[%{REQUIRENAME}\n]")
    assert "libvirt" not in common and "/etc/vmagent" not in "".join(listed(packages["python3-vmagent"]))


@needs_rpmbuild
def test_the_plug_ins_are_a_package_of_their_own_and_run(packages: Packages, tmp_path: Path) -> None:
    plugins = ("check_vmagent", "check_vm_creation")
    assert {f"/usr/bin/{name}" for name in plugins} <= set(listed(packages["vmagent-nagios"]))
    for name in ("python3-vmagent", "vmagent-nagios"):
        unpacked(packages[name], tmp_path)
    for name in plugins:
        done = run(tmp_path, name, "-V")
        assert (done.returncode, done.stderr) == (3, "") and done.stdout.endswith(f" {vmagent.__version__}\n")


@needs_rpmbuild
def test_one_version_of_all(packages: Packages) -> None:
    """The commands and the modules below them change together."""
    for name, path in packages.items():
        if name not in ("src", "python3-vmagent"):
            said = asked(path, r"[%{REQUIRENAME} %{REQUIREFLAGS:depflags} %{REQUIREVERSION}\n]").splitlines()
            assert any(re.fullmatch(rf"(python3-)?vmagent += +{vmagent.__version__}-1", one) for one in said), name


@needs_rpmbuild
def test_every_command_has_its_page_and_completion(packages: Packages) -> None:
    for name, path in packages.items():
        files = set(listed(path))
        for command in (one for one in files if one.startswith("/usr/bin/")):
            short = Path(command).name
            assert f"/usr/share/bash-completion/completions/{short}" in files
            assert any(re.fullmatch(rf"/usr/share/man/man[18]/{short}\.[18](\.gz)?", one) for one in files), name
    assert any("/man5/vmagent.yaml.5" in one for one in listed(packages["vmagent"]))


@needs_rpmbuild
def test_configuration_of_the_site_survives_an_upgrade(packages: Packages) -> None:
    said = asked(packages["vmagent"], r"[%{FILENAMES} %{FILEFLAGS:fflags}\n]").splitlines()
    assert "/etc/vmagent/vmagent.yaml cn" in said, "c: configuration; n: noreplace"


@needs_rpmbuild
def test_no_scriptlet_touches_a_guest(packages: Packages) -> None:
    scripts = ""
    for path in packages.values():
        argv = ["rpm", "-qp", "--scripts", str(path)]
        scripts += subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "vmagent.service" in scripts
    done = re.sub(r"cat <<'END'\n.*?\nEND\n", "", scripts, flags=re.DOTALL)  # what is only said
    done = re.sub(r"^#.*$|^getent group libvirt .*$", "", done, flags=re.MULTILINE)  # membership, for the agent's user
    assert not re.search(r"virsh|qemu|nft|machine\.slice|libvirt|systemctl (start|enable)", done)


def run(root: Path, command: str, *argv: str) -> Any:
    """An installed command, with the tree of this root in the place of the host's."""
    text = (root / "usr/bin" / command).read_text()
    assert text.startswith("#!/usr/bin/python3 -s\n")
    program = root / f"{command}-here"
    program.write_text(text.replace("/usr/lib/vmagent", str(root / "usr/lib/vmagent")))
    bare = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    argv = (sys.executable, "-B", str(program), *argv)
    return subprocess.run(argv, cwd="/", env=bare, capture_output=True, text=True, timeout=60, check=False)


@needs_rpmbuild
def test_the_installed_commands_run(packages: Packages, tmp_path: Path) -> None:
    for name in ("python3-vmagent", "vmagent", "vmagent-site"):
        unpacked(packages[name], tmp_path)
    config = tmp_path / "etc/vmagent/vmagent.yaml"
    assert run(tmp_path, "vmagent", "--version").stdout == f"vmagent {vmagent.__version__}\n"
    assert "usage: vmagentctl" in run(tmp_path, "vmagentctl", "--help").stdout
    assert "usage: vmagent-site" in run(tmp_path, "vmagent-site", "--help").stdout
    bare = run(tmp_path, "vmagent", "--config", str(config), "--check-config")
    assert bare.returncode == 2 and "at site: missing" in bare.stderr
    config.with_name("vmagent.d").joinpath("site.yaml").write_text(
        f"site: s\nhost: h\nbroker: {{urls: [stomp://b:61613]}}\nsecurity: {{ca_directory: {tmp_path}}}\n"
    )
    done = run(tmp_path, "vmagent", "--config", str(config), "--check-config")
    assert (done.returncode, done.stderr) == (0, "")
