"""The sdist is whole, and the wheel that is made from it installs the same commands; all of it without an index."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vmagent
from tests.package.test_rpm import entries
from tests.support.package import copied

SDIST = "import sys, setuptools.build_meta as backend; print(backend.build_sdist(sys.argv[1]))"
PIP = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--no-cache-dir"]


def run(*argv: str, cwd: Path, **more: str) -> Any:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env.update(more)
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: Any) -> Path:
    into = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-c", SDIST, str(into), cwd=copied(tmp_path_factory.mktemp("checkout")))
    (made,) = into.glob("*.tar.gz")
    return Path(made)


@pytest.fixture(scope="module")
def installed(sdist: Path, tmp_path_factory: Any) -> Path:
    """Where the wheel of the sdist was installed."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("target")
    run(*PIP, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(sdist), cwd=wheels)
    (wheel,) = wheels.glob("*.whl")
    run(*PIP, "install", "--no-index", "--no-deps", "--target", str(target), str(wheel), cwd=target)
    return Path(target)


def test_the_sdist_brings_what_a_packager_needs(sdist: Path, tmp_path: Path) -> None:
    run("tar", "-xf", str(sdist), "--strip-components=1", cwd=tmp_path)
    for name in ("rpm/vmagent.spec", "rpm/build", "systemd/vmagent.service", "etc/vmagent.yaml", "docs/README.md",
                 "LICENSE", "tests/unit/test_docs.py", "pyproject.toml"):  # fmt: skip
        assert (tmp_path / name).is_file(), name


def test_the_wheel_installs_the_same_commands(installed: Path) -> None:
    for name in (one.split(":")[0] for one in entries()):
        assert os.access(installed / "bin" / name, os.X_OK), name
    said = run(str(installed / "bin/vmagent"), "--version", cwd=installed, PYTHONPATH=str(installed))
    assert said.stdout == f"vmagent {vmagent.__version__}\n"


def test_its_schemas_are_with_it(installed: Path, tmp_path: Path) -> None:
    config = tmp_path / "vmagent.yaml"
    config.write_text(f"site: s\nhost: h\nbroker: {{urls: [stomp://b:61613]}}\nsecurity: {{ca_directory: {tmp_path}}}\n"
                      f"directories: {{state: {tmp_path}, run: {tmp_path}}}\n")  # fmt: skip
    (tmp_path / "images").mkdir()
    program = str(installed / "bin/vmagent")
    said = run(program, "--config", str(config), "--check-config", cwd=tmp_path, PYTHONPATH=str(installed))
    assert "nothing wrong" in said.stdout


def test_the_manual_can_be_made_from_it(installed: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "vmagent.manual", str(tmp_path), cwd=tmp_path, PYTHONPATH=str(installed))
    assert (tmp_path / "man/man8/vmagent.8").is_file() and (tmp_path / "bash-completion/vmagentctl").is_file()
