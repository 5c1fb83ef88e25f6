"""What administrators see of the accounting export: its settings, `vmagentctl accounting`, and the doctor's checks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict

import pytest

from tests.unit import test_doctor
from tests.unit.test_configfile import main_file, places, read
from tests.unit.test_ctl import FakeAgent, run
from tests.unit.test_doctor import DAY, WALL, FakeHost, certificate
from vmagent.config import ApelSettings, SigningPair, reloaded
from vmagent.core import walltime
from vmagent.local import protocol
from vmagent.local.doctor import Level
from vmagent.local.doctor.findings import Owned

STANDS: Dict[str, Any] = {
    "site_name": "EXAMPLE-SITE", "published_at": "2026-11-21T10:00:00.000Z", "next_at": "2026-11-22T00:10:00.000Z",
    "trouble": "", "exported_row": 7, "unexported_since": None, "waiting": 0, "waiting_since": None,
}  # fmt: skip
RESENT = {"month": "2026-11", "dry_run": True, "records": 12, "messages": 1, "superseded": 0, "wrong": []}


def test_nothing_is_published_by_default(tmp_path: Path) -> None:
    assert read(tmp_path, "").apel is None


def test_settings_and_their_defaults(tmp_path: Path) -> None:
    config = read(tmp_path, "accounting: {apel: {site_name: S, destination: /queue/SITE.apel, storage_spool: STATE/s,\n"
                            "  sign: {certificate: /c, key: /k}}}\n")
    state = config.directories.state
    assert config.apel == ApelSettings(
        "S", "", state / "apel/outgoing", state / "apel/archive", 24, "wall", SigningPair(Path("/c"), Path("/k")),
        f"/queue/{config.policy.site}.apel", None, state / "s")


def test_a_change_waits_for_a_restart_and_is_named(tmp_path: Path) -> None:
    fresh = read(tmp_path, "accounting: {apel: {site_name: S}}\n")
    assert reloaded(dataclasses.replace(fresh, apel=None), fresh)[1] == ("accounting.apel",)


@pytest.mark.parametrize(("said", "place"), [
    ("{}", ".site_name"),
    ("{site_name: 'a b'}", ".site_name"),
    ("{site_name: S, publish_hours: 25}", ".publish_hours"),
    ("{site_name: S, cpu_duration: cpu}", ".cpu_duration"),
    ("{site_name: S, spool: here}", ".spool"),
    ("{site_name: S, sign: {certificate: /c}}", ".sign.key"),
    ("{site_name: S, spools: /a}", ".spools"),
    ("{site_name: S, spool: /a, public_ip_spool: /a/}", ".public_ip_spool"),
    ("{site_name: S, spool: /a, archive: /a}", ".archive"),
])
def test_what_is_wrong_is_told_at_its_place(tmp_path: Path, said: str, place: str) -> None:
    assert places(main_file(tmp_path, f"accounting: {{apel: {said}}}\n")) == [f"accounting.apel{place}"]


@pytest.mark.parametrize(("args", "changes"), [({"month": "2026-11"}, True), ({"dry_run": False}, True),
                                               ({"dry_run": 1}, True), ({"dry_run": True}, False)])
def test_only_a_dry_run_needs_no_right_to_change(args: Dict[str, Any], changes: bool) -> None:
    assert protocol.Request(1, protocol.RESEND, args).changes is changes


def test_how_it_stands_is_readable() -> None:
    code, text = run(FakeAgent(accounting={"apel": STANDS}), "accounting", "status")
    assert code == 0 and "EXAMPLE-SITE" in text and "not published yet: nothing" in text and "TROUBLE" not in text
    late = {**STANDS, "trouble": "full", "unexported_since": "2026-11-01T00:00:00.000Z", "waiting": 3,
            "waiting_since": "2026-11-02T00:00:00.000Z", "published_at": None, "next_at": None}
    _, text = run(FakeAgent(accounting={"apel": late}), "accounting", "status")
    for part in ("TROUBLE: full", "periods from 2026-11-01", "3 messages, the oldest from 2026-11-02"):
        assert part in text
    _, text = run(FakeAgent(accounting={"apel": None}), "accounting", "status")
    assert "accounting.apel" in text


def test_a_month_is_asked_for_again() -> None:
    agent = FakeAgent(resend=RESENT)
    code, text = run(agent, "accounting", "resend", "--month", "2026-11", "--dry-run")
    assert (code, agent.asked) == (0, [("resend", {"month": "2026-11", "dry_run": True})])
    assert text == "2026-11: 12 records in 1 messages would be written\n"
    wrong = {**RESENT, "dry_run": False, "wrong": ["s period 1: KeyError('x')"]}
    code, text = run(FakeAgent(resend=wrong), "accounting", "resend", "--month", "2026-11")
    assert code == 1 and "messages written\nin no record: s period 1" in text
    assert run(FakeAgent(resend=RESENT), "accounting", "resend", "--month", "2026-11", "--json")[1].strip()[0] == "{"


# ---- the doctor

config, host = test_doctor._config, test_doctor._host


def examined(config: Any, host: FakeHost, stands: Any = STANDS, sign: Any = None) -> Dict[str, Any]:
    apel = ApelSettings("S", "", Path("/spool"), Path("/archive"), 24, "wall", sign, None, None, None)
    live = {**test_doctor.LIVE, "accounting": {"apel": stands}}
    return dict(test_doctor.examined(dataclasses.replace(config, apel=apel), host, live))


@pytest.mark.parametrize(("days", "level"), [(6.9, Level.OK), (7.1, Level.WARN), (31, Level.FAIL)])
@pytest.mark.parametrize(("member", "word"), [("unexported_since", "not published"), ("waiting_since", "/spool")])
def test_what_is_late_is_found(config: Any, host: FakeHost, days: float, level: Level, member: str, word: str) -> None:
    found = examined(config, host, {**STANDS, member: walltime.text(WALL - days * DAY)})["accounting"]
    assert found.level is level and (level is Level.OK or word in found.text)


def test_trouble_is_found_and_without_the_agent_nobody_knows(config: Any, host: FakeHost) -> None:
    found = examined(config, host, {**STANDS, "trouble": "the store is away"})["accounting"]
    assert (found.level, found.text) == (Level.WARN, "the store is away")
    assert examined(config, host, None)["accounting"].level is Level.UNKNOWN


@pytest.mark.parametrize(("left", "mode", "level"), [(100, 0o600, Level.OK), (5, 0o600, Level.WARN),
                                                    (-1, 0o600, Level.FAIL), (100, 0o644, Level.FAIL)])
def test_the_certificate_that_signs(config: Any, host: FakeHost, left: float, mode: int, level: Level) -> None:
    host.files["/sign.pem"] = certificate(left)
    host.owners["/sign.key"] = Owned("root", "root", mode)
    sign = SigningPair(Path("/sign.pem"), Path("/sign.key"))
    assert examined(config, host, sign=sign)["accounting-certificate"].level is level
    del host.files["/sign.pem"]
    assert examined(config, host, sign=sign)["accounting-certificate"].level is Level.FAIL
