"""The unit, sysusers and tmpfiles: what the design promises of them, and that systemd itself takes them."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Dict, Tuple

import pytest

from tests.support.confined import settings
from tests.support.hardening import ITEMS, ONLY_COUNTED
from vmagent import __main__ as command
from vmagent.configfile import DEFAULT_PATH
from vmagent.store import store

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "systemd/vmagent.service"
GUARD = ROOT / "systemd/vmagent-guard.service"
FIRST_LOOK_S = 60  # libvirt, disks and nft each have their deadline in the first observation


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("shipped", [UNIT, GUARD], ids=lambda path: str(path.stem))
def test_systemd_takes_the_unit(tmp_path: Path, shipped: Path) -> None:
    text = re.sub(r"^ExecStart=\S+", f"ExecStart={shutil.which('true')}", shipped.read_text(), flags=re.MULTILINE)
    unit = tmp_path / shipped.name
    unit.write_text(text.replace("file:/usr/share/doc/vmagent", "man:sh(1)"))
    verdict = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    ours = [line for line in verdict.stderr.splitlines() if "vmagent" in line]
    assert (verdict.returncode, verdict.stdout, ours) == (0, "", [])


def test_stopping_or_killing_the_agent_stops_no_guest() -> None:
    service = settings("Service")
    assert service["KillMode"] == ["process"]
    assert service["Restart"] == ["on-failure"]
    assert service["RuntimeDirectoryPreserve"] == ["yes"]


def test_ready_watchdog_and_reload() -> None:
    service = settings("Service")
    assert service["Type"] == ["notify"]
    assert int(service["WatchdogSec"][0]) >= 30
    assert service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


def test_a_slow_check_of_the_store_is_waited_for() -> None:
    assert int(settings("Service")["TimeoutStartSec"][0]) > store.OPEN_S + FIRST_LOOK_S


def test_no_outage_makes_systemd_give_up() -> None:
    assert settings("Unit")["StartLimitIntervalSec"] == ["0"], "a full disk fails every start, until it does not"
    assert int(settings("Service")["RestartSec"][0]) >= 5, "and costs little meanwhile"


def test_nothing_outside_pulls_the_agent_down() -> None:
    unit = settings("Unit")
    assert not {"Requires", "BindsTo", "PartOf", "Requisite"} & set(unit)
    after = " ".join(unit["After"])
    assert "libvirtd.service" in after and "virtqemud.service" in after, "EL has virtqemud, Debian libvirtd"


def test_a_wrong_configuration_is_not_started_again_and_again() -> None:
    assert settings("Service")["RestartPreventExitStatus"] == [str(command.USAGE)]


def test_the_command_line_is_one_the_agent_takes() -> None:
    program, *argv = settings("Service")["ExecStart"][0].split()
    assert program == "/usr/bin/vmagent"
    assert command.arguments().parse_args(argv).config == DEFAULT_PATH


def test_what_the_agent_needs_is_not_taken_from_it() -> None:
    service = settings("Service")
    families = set(service["RestrictAddressFamilies"][0].split())
    assert {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"} <= families
    assert service["AmbientCapabilities"] == service["CapabilityBoundingSet"] == ["CAP_NET_ADMIN"]
    assert service.get("PrivateNetwork", ["no"]) == ["no"] and service.get("PrivateUsers", ["no"]) == ["no"]
    assert service["NoNewPrivileges"] == ["yes"] and service["ProtectSystem"] == ["strict"]


def test_directories_agree_between_unit_and_tmpfiles() -> None:
    rows = [line.split() for line in (ROOT / "systemd/vmagent.tmpfiles").read_text().splitlines() if line[:1] == "d"]
    modes = {row[1]: row[2] for row in rows}
    service = settings("Service")
    assert modes["/run/vmagent"] == service["RuntimeDirectoryMode"][0]
    assert {row[3] for row in rows} == set(service["User"]) and {row[4] for row in rows} == set(service["Group"])
    assert "StateDirectory" not in service, "systemd would take the overlays of running guests from QEMU's user"
    spec = (ROOT / "rpm/vmagent.spec").read_text()
    packed = re.findall(r"^%dir %attr\((\d+),(\w+),(\w+)\) %\{_localstatedir\}(\S+)", spec, re.MULTILINE)
    lasting = [row for row in rows if row[1] != "/run/vmagent"]
    assert packed == [(row[2], row[3], row[4], row[1].replace("/var", "", 1)) for row in lasting]


@pytest.mark.skipif(not (shutil.which("systemd-sysusers") and shutil.which("systemd-tmpfiles")), reason="no systemd")
def test_systemd_takes_sysusers_and_tmpfiles(tmp_path: Path) -> None:
    """In a root of its own: the user and its groups, then the directories that are the user's."""
    (tmp_path / "etc").mkdir()
    made = {}
    for tool, file, more in (("systemd-sysusers", "sysusers", []), ("systemd-tmpfiles", "tmpfiles", ["--create"])):
        argv = [tool, f"--root={tmp_path}", *more, str(ROOT / f"systemd/vmagent.{file}")]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        problems = [line for line in done.stderr.splitlines() if "vmagent" in line and "Creating " not in line]
        assert not problems, done.stderr
    for line in (tmp_path / "etc/group").read_text().splitlines():
        name, _, _, members = line.split(":")
        made[name] = members
    assert made == {"vmagent": "", "vmagent-admin": "vmagent", "vmagent-reader": "vmagent"}
    account = (tmp_path / "etc/passwd").read_text().split(":")
    assert account[0] == "vmagent" and account[-1].strip().endswith("nologin")
    if os.geteuid() == 0:
        assert (tmp_path / "var/lib/vmagent/overlays").stat().st_uid == int(account[2])


@pytest.mark.parametrize("shipped", [UNIT, GUARD], ids=lambda path: str(path.stem))
def test_the_unit_is_plain_ini(shipped: Path) -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.read_string(shipped.read_text())
    assert parser.sections() == ["Unit", "Service", "Install"]


def exposed(unit: Path) -> Tuple[Dict[str, str], float]:
    """What systemd-analyze finds open, item -> its words, and its verdict from 0 (nothing) to 10."""
    argv = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    plain = dict(os.environ, LC_ALL="C.UTF-8")
    said = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=plain)
    rows = re.findall(r"^✗ (\S+) +(.*?) +\d\.\d *$", said.stdout, re.MULTILINE)
    verdict = re.search(r"exposure level for \S+: ([\d.]+)", said.stdout)
    assert verdict is not None, said.stdout + said.stderr
    return dict(rows), float(verdict[1])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_what_is_open_is_explained_and_proven_and_little() -> None:
    """The table of the design record, the tests that put each item back, and systemd-analyze name the same."""
    found, verdict = exposed(UNIT)
    assert verdict <= 2.5
    record = (ROOT / "docs/design/0010-least-privilege.md").read_text()
    rows = re.findall(r"^\| `(\w+=\S*)` \| (.+) \|$", record.replace("\\|", "¦"), re.MULTILINE)
    explained = {item.replace("¦", "|"): why for item, why in rows}
    assert set(explained) == set(found) == set(ITEMS) | ONLY_COUNTED
    assert exposed(GUARD)[1] <= 2.5
