"""Installed, upgraded and removed in a root of its own, where what a scriptlet calls is only written down."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any, Dict, List

import pytest

import vmagent
from tests.support.package import build, copied, needs_rpmbuild

BUSYBOX = shutil.which("busybox")
OURS = 991  # the number of user vmagent in there
DOES = {
    "getent": 'grep -q "^$2:" /etc/$1 || exit 2\n',
    "groupadd": f'for name; do :; done\necho "$name:x:$(({OURS} + $(wc -l < /etc/group) - 1)):" >> /etc/group\n',
    "useradd": f'echo "vmagent:x:{OURS}:{OURS}::/:/bin/sh" >> /etc/passwd\n',
}
RECORDER = '#!/bin/sh\necho "$(basename "$0") $*" >> /calls\n'
MODES = {
    "usr/bin/vmagent": 0o755, "usr/bin/vmagentctl": 0o755, "usr/bin/vmagent-site": 0o755,
    "etc/vmagent": 0o755, "etc/vmagent/vmagent.yaml": 0o644, "etc/vmagent/vmagent.d": 0o755, "etc/vmagent/tls": 0o750,
    "var/lib/vmagent": 0o711, "var/lib/vmagent/images": 0o755, "var/lib/vmagent/overlays": 0o711,
    "var/lib/vmagent/seeds": 0o711, "usr/lib/vmagent/vmagent/daemon.py": 0o644,
}  # fmt: skip

pytestmark = [
    needs_rpmbuild,
    pytest.mark.skipif(BUSYBOX is None or os.geteuid() != 0, reason="needs root and busybox, for a root of its own"),
]


class Root:
    """A host's file system in a folder: busybox and programs that write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("bin", "dev", "usr/bin", "etc", "run/systemd/system", "tmp"):
            (folder / name).mkdir(parents=True)
        shutil.copy(str(BUSYBOX), folder / "bin/busybox")
        for name in ("sh", "cat", "find", "grep", "wc", "rm", "basename", "stat", "chown", "chmod"):
            (folder / "bin" / name).symlink_to("busybox")
        for name in ("systemctl", "getent", "groupadd", "useradd", "usermod", "python3"):
            (folder / "usr/bin" / name).write_text(RECORDER + DOES.get(name, ""))
            (folder / "usr/bin" / name).chmod(0o755)
        (folder / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
        (folder / "etc/group").write_text("root:x:0:\n")

    def rpm(self, *argv: str) -> str:
        done = subprocess.run(["rpm", "--root", str(self.folder), *argv], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=120, check=False)  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def calls(self) -> List[str]:
        """What scriptlets called since the last question."""
        place = self.folder / "calls"
        said = place.read_text().splitlines() if place.exists() else []
        place.write_text("")
        return [one for one in said if not one.startswith("getent")]


@pytest.fixture()
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "root")


@pytest.fixture(scope="module")
def newer(tmp_path_factory: Any) -> Dict[str, Path]:
    """Packages of the next version, with another configuration."""
    checkout = copied(tmp_path_factory.mktemp("next"))
    for name, old, new in (
        ("vmagent/__init__.py", f'"{vmagent.__version__}"', '"99.0.0"'),
        ("etc/vmagent.yaml", "# required;", "# needed;"),
    ):
        text = (checkout / name).read_text()
        assert old in text
        (checkout / name).write_text(text.replace(old, new))
    return build(tmp_path_factory.mktemp("newer"), checkout)


def all_of(packages: Dict[str, Path]) -> List[str]:
    return [str(path) for name, path in packages.items() if name != "src"]


def test_owners_and_modes(root: Root, packages: Dict[str, Path]) -> None:
    root.rpm("-i", "--nodeps", *all_of(packages))
    seen = {name: stat.S_IMODE((root.folder / name).stat().st_mode) for name in MODES}
    assert seen == MODES
    owners = {name: (root.folder / name).stat() for name in MODES}
    assert {name: one.st_uid for name, one in owners.items()} == {
        name: OURS if name.startswith("var/") else 0 for name in MODES
    }
    assert owners["etc/vmagent/tls"].st_gid == OURS
    assert "missing" not in root.rpm("-V", "--nodeps", "vmagent", "python3-vmagent", "vmagent-site")


def test_installing_starts_nothing(root: Root, packages: Dict[str, Path]) -> None:
    root.rpm("-i", "--nodeps", *all_of(packages))
    calls = root.calls()
    groups = [one for one in calls if one.startswith("groupadd")]
    assert groups == ["groupadd -r vmagent", "groupadd -r vmagent-admin", "groupadd -r vmagent-reader"]
    (account,) = [one for one in calls if one.startswith("useradd")]
    assert account.startswith("useradd -r -g vmagent -G vmagent-admin,vmagent-reader ") and "nologin" in account
    assert not [one for one in calls if one.startswith("usermod")], "there is no group libvirt in there"
    assert [one for one in calls if one.startswith("systemctl")] == [
        "systemctl daemon-reload", "systemctl --no-reload preset vmagent.service vmagent-guard.service"
    ]  # fmt: skip
    assert [one for one in calls if one.startswith("python3")] == ["python3 -m compileall -q /usr/lib/vmagent"]


def test_an_upgrade_keeps_the_configuration_and_restarts_only_what_runs(
    root: Root, packages: Dict[str, Path], newer: Dict[str, Path]
) -> None:
    root.rpm("-i", "--nodeps", *all_of(packages))
    config = root.folder / "etc/vmagent/vmagent.yaml"
    config.write_text("site: ours\n")
    root.calls()
    root.rpm("-U", "--nodeps", *all_of(newer))
    assert config.read_text() == "site: ours\n"
    assert "# needed;" in config.with_suffix(".yaml.rpmnew").read_text()
    assert root.rpm("-q", "vmagent").startswith("vmagent-99.0.0-1")
    restarts = [one for one in root.calls() if one.startswith("systemctl") and "daemon-reload" not in one]
    assert restarts == ["systemctl try-restart vmagent.service"]


def test_an_upgrade_from_an_agent_that_was_root_gives_what_is_the_agent_s_to_its_user(
    root: Root, packages: Dict[str, Path], newer: Dict[str, Path]
) -> None:
    """The store and the key, while the agent does not run; no overlay, seed or image of anybody's."""
    root.rpm("-i", "--nodeps", *all_of(packages))
    state, tls = root.folder / "var/lib/vmagent", root.folder / "etc/vmagent/tls"
    (state / "cache").mkdir()
    theirs = [state / name for name in ("overlays/one.qcow2", "seeds/one.iso", "images/golden.qcow2")]
    ours = [state / name for name in ("vmagent.db", "vmagent.db-wal", "vmagent.lock", "cache/00.img")]
    for place in (*theirs, *ours, tls / "host.key", tls / "ca.pem"):
        place.write_text("kept")
    (tls / "host.key").chmod(0o600)
    os.chown(theirs[0], 64055, 64055)
    for folder in (state, state / "overlays", state / "seeds", state / "images", tls):
        os.chown(folder, 0, 0)
    before = {place: place.stat() for place in theirs}
    root.calls()
    root.rpm("-U", "--nodeps", *all_of(newer))
    assert {place.stat().st_uid for place in (*ours, state, state / "cache", state / "overlays")} == {OURS}
    assert {place: place.stat() for place in theirs} == before
    key, ca = (tls / "host.key").stat(), (tls / "ca.pem").stat()
    assert (key.st_uid, key.st_gid, stat.S_IMODE(key.st_mode)) == (0, OURS, 0o640)
    assert (ca.st_uid, ca.st_gid, stat.S_IMODE(ca.st_mode)) == (0, 0, 0o644), "what everybody may read stays as it is"
    calls = [one for one in root.calls() if one.startswith("systemctl") and "vmagent.service" in one]
    assert calls == ["systemctl -q is-active vmagent.service", "systemctl stop vmagent.service",
                     "systemctl restart vmagent.service", "systemctl try-restart vmagent.service"]  # fmt: skip
    root.rpm("-U", "--nodeps", "--force", *all_of(newer))
    assert not [one for one in root.calls() if "stop" in one], "once is enough"


def test_a_controller_s_tools_go_alone(root: Root, packages: Dict[str, Path]) -> None:
    root.rpm("-i", "--nodeps", str(packages["python3-vmagent"]), str(packages["vmagent-site"]))
    assert (root.folder / "usr/bin/vmagent-site").exists() and not (root.folder / "etc/vmagent").exists()
    assert not [one for one in root.calls() if one.startswith(("systemctl", "groupadd"))]


def test_removal_leaves_what_the_agent_kept_and_says_how_guests_end(root: Root, packages: Dict[str, Path]) -> None:
    root.rpm("-i", "--nodeps", *all_of(packages))
    kept = [root.folder / "var/lib/vmagent" / name for name in ("vmagent.db", "overlays/one.qcow2")]
    for place in kept:
        place.write_text("ours")
    (root.folder / "usr/lib/vmagent/vmagent/__pycache__").mkdir()
    root.calls()
    said = root.rpm("-e", *(name for name in packages if name != "src"))
    assert "Guests that it started run on" in said and "virsh destroy" in said
    assert [place.read_text() for place in kept] == ["ours", "ours"]
    assert not (root.folder / "usr/lib/vmagent").exists() and not (root.folder / "usr/bin/vmagent").exists()
    stops = [one for one in root.calls() if one.startswith("systemctl") and "daemon-reload" not in one]
    assert stops == ["systemctl --no-reload disable --now vmagent.service vmagent-guard.service"]
