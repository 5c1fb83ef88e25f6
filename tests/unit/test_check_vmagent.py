"""check_vmagent's verdict, from the answer to `status` to the line."""

from __future__ import annotations

import copy
from typing import Any, Dict, Mapping, Optional, Sequence

import pytest

from tests.support.building import policy
from tests.unit.test_ctl import INFO, LOOK, RUNS
from tests.unit.test_nagios import Read, read
from vmagent.core.changes import Epoch
from vmagent.export import check_vmagent, plugin
from vmagent.local import views
from vmagent.render import nagios

HEALTH = {"link_s": 3600.0, "spool_age_s": 0.0, "published_age_s": 20.0, "certificates": {"ca.pem": 300, "b.pem": 90},
          "disk_free_gib": 500.0, "disk_floor_gib": 10}
GOOD: Mapping[str, Any] = views.status([RUNS], LOOK, policy(), INFO, Epoch("e", 1, "w", "first"), {
    "drained": False, "degraded": {}, "broker": {"up": True}, "version": "1.2", "health": HEALTH})


def checked(change: Mapping[str, Any] = {}, argv: Sequence[str] = (), answer_s: float = 0.01,  # noqa: B006
            clock_error_s: Optional[float] = 0.001) -> Read:
    """change: path with dots -> value."""
    status: Dict[str, Any] = copy.deepcopy(dict(GOOD))
    for path, value in change.items():
        place = status
        *way, last = path.split(".")
        for step in way:
            place = place[step]
        place[last] = value
    limits = plugin.thresholds(check_vmagent.parser().parse_args(list(argv)), check_vmagent.DEFAULTS)
    result = check_vmagent.found(status, answer_s, clock_error_s, limits)
    return read(nagios.output("vmagent", result.status, result.text, result.metrics, result.more))


def test_all_is_well() -> None:
    found = checked()
    assert (found.status, found.text) == ("OK", f"{GOOD['host']} runs 1.2, 1 VMs")
    values = {label: metric["value"] for label, metric in found.metrics.items()}
    assert values == {"answer": "0.01", "broker_down": "0", "spool_age": "0", "publish_age": "20",
                      "certificate_days": "90", "disk_gib": "500", "clock_error": "0.001", "vms": "1"}
    assert (found.metrics["disk_gib"]["warn"], found.metrics["disk_gib"]["crit"]) == ("20:", "10:")
    assert "b.pem: 90 days left" in found.more


@pytest.mark.parametrize(("change", "status", "word"), [
    ({"hypervisor.connected": False, "hypervisor.why": "gone"}, "CRITICAL", "no hypervisor: gone"),
    ({"broker.up": False, "health.link_s": 30.0}, "OK", "1 VMs"),
    ({"broker.up": False, "health.link_s": 61.0}, "WARNING", "no broker for 61 s"),
    ({"broker.up": False, "health.link_s": 301.0}, "CRITICAL", "no broker for 301 s"),
    ({"health.spool_age_s": 301.0}, "WARNING", "waits to be published for 301 s"),
    ({"health.spool_age_s": 4000.0}, "CRITICAL", "waits to be published"),
    ({"health.published_age_s": 901.0}, "WARNING", "nothing was published for 901 s"),
    ({"health.published_age_s": None, "health.spool_age_s": None, "health.disk_free_gib": None}, "OK", "1 VMs"),
    ({"health.certificates": {"x": 13}}, "WARNING", "a certificate has 13 days left"),
    ({"health.certificates": {"x": -1}}, "CRITICAL", "a certificate has -1 days left"),
    ({"health.certificates": {}}, "OK", "1 VMs"),
    ({"health.disk_free_gib": 15.0}, "WARNING", "15 GiB are free"),
    ({"health.disk_free_gib": 9.0}, "CRITICAL", "9 GiB are free"),
    ({"degraded": {"store": "no|space\n"}}, "WARNING", "store: no space?"),
    ({"degraded": {"broker": "away"}}, "OK", "1 VMs"),
    ({"drained": True}, "OK", "1 VMs, drained"),
])
def test_each_thing_that_may_be_wrong(change: Mapping[str, Any], status: str, word: str) -> None:
    found = checked(change)
    assert found.status == status and word in found.text


def test_what_is_not_known_is_u_and_alerts_nobody() -> None:
    found = checked({"health.published_age_s": None, "health.certificates": {}}, clock_error_s=None)
    assert [label for label, metric in found.metrics.items() if metric["value"] is None] == [
        "publish_age", "certificate_days", "clock_error"]


def test_the_answer_and_the_clock_are_judged() -> None:
    assert checked(answer_s=3.0).status == "WARNING" and checked(answer_s=9.0).status == "CRITICAL"
    assert checked(clock_error_s=0.6).status == "WARNING" and checked(clock_error_s=16.0).status == "CRITICAL"


def test_all_reasons_are_told_the_worst_first() -> None:
    found = checked({"hypervisor.connected": False, "hypervisor.why": "x", "health.certificates": {"x": 10},
                     "degraded": {"store": "y"}})
    assert found.status == "CRITICAL"
    assert found.text == "no hypervisor: x; a certificate has 10 days left; store: y"


def test_thresholds_of_the_command_line_take_the_place_of_the_defaults() -> None:
    argv = ["-w", "certificate_days=100:", "-c", "disk_gib=600:", "-w", "spool_age=@1:2"]
    found = checked(argv=argv)
    assert found.status == "CRITICAL"
    assert found.text == "500 GiB are free for guests' disks; a certificate has 90 days left"
    assert found.metrics["spool_age"]["warn"] == "@1:2" and found.metrics["spool_age"]["crit"] == "3600"


@pytest.mark.parametrize(("argv", "word"), [
    (["--nothing"], "--nothing"), (["-w", "cpu=3"], "'cpu' is not measured; accepted: answer"),
    (["-w", "answer=x"], "no range; accepted"), (["-t", "0"], "1 to 86400 seconds"), (["extra"], "extra"),
    (["-c", "answer"], "is no range"),
])
def test_wrong_arguments_are_unknown_and_on_standard_output(
    argv: Sequence[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        check_vmagent.main(argv)
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (3, "")
    assert read(out.rstrip("\n")).status == "UNKNOWN" and word in out


@pytest.mark.parametrize("flag", ["--help", "-h", "-V"])
def test_help_and_version_are_unknown_and_on_standard_output(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        check_vmagent.main([flag])
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (3, "") and out.startswith(("usage: check_vmagent", "vmagent "))
