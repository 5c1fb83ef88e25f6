"""The unit, sysusers and tmpfiles: what the design promises of them, and that systemd itself takes them."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Dict, List

import pytest

from vmagent import __main__ as command
from vmagent.configfile import DEFAULT_PATH
from vmagent.store import store

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "systemd/vmagent.service"
GUARD = ROOT / "systemd/vmagent-guard.service"
FIRST_LOOK_S = 60  # libvirt, disks and nft each have their deadline in the first observation


def settings(section: str, unit: Path = UNIT) -> Dict[str, List[str]]:
    """Every value of every setting, in order."""
    found: Dict[str, List[str]] = {}
    inside = ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            inside = line.strip("[]")
        elif inside == section and "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


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
    allowed = set(service["CapabilityBoundingSet"][0].split())
    assert {"CAP_NET_ADMIN", "CAP_CHOWN", "CAP_SYS_PTRACE"} <= allowed, "nft; the socket's group; smaps of QEMU"
    assert service.get("PrivateNetwork", ["no"]) == ["no"] and service.get("PrivateUsers", ["no"]) == ["no"]
    assert service["UMask"] == ["0022"], "QEMU's user must pass through the directories that the agent makes"
    assert service["NoNewPrivileges"] == ["yes"] and service["ProtectSystem"] == ["strict"]


def test_directories_agree_between_unit_and_tmpfiles() -> None:
    rows = [line.split() for line in (ROOT / "systemd/vmagent.tmpfiles").read_text().splitlines() if line[:1] == "d"]
    modes = {row[1]: row[2] for row in rows}
    service = settings("Service")
    assert modes["/var/lib/vmagent"] == service["StateDirectoryMode"][0]
    assert modes["/run/vmagent"] == service["RuntimeDirectoryMode"][0]


@pytest.mark.parametrize(("tool", "file"), [("systemd-sysusers", "sysusers"), ("systemd-tmpfiles", "tmpfiles")])
def test_systemd_takes_sysusers_and_tmpfiles(tmp_path: Path, tool: str, file: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} here")
    (tmp_path / "etc").mkdir()
    create = ["--create"] if file == "tmpfiles" else []
    argv = [tool, f"--root={tmp_path}", *create, str(ROOT / f"systemd/vmagent.{file}")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    problems = [line for line in done.stderr.splitlines() if "vmagent" in line and "Creating group" not in line]
    assert not problems, done.stderr
    if file == "sysusers":
        assert "vmagent-admin" in (tmp_path / "etc/group").read_text()


@pytest.mark.parametrize("shipped", [UNIT, GUARD], ids=lambda path: str(path.stem))
def test_the_unit_is_plain_ini(shipped: Path) -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.read_string(shipped.read_text())
    assert parser.sections() == ["Unit", "Service", "Install"]
