"""The boot guard: the default drop for our guests' interfaces is there before libvirt can start anything."""

from __future__ import annotations

from tests.package.test_systemd import GUARD, settings
from vmagent import __main__ as command
from vmagent.configfile import DEFAULT_PATH


def words(setting: str) -> set[str]:
    return set(" ".join(settings("Unit", GUARD).get(setting, [])).split())


def test_it_comes_before_everything_that_starts_guests() -> None:
    starters = {"libvirtd.service", "virtqemud.service", "virtxend.service", "libvirt-guests.service",
                "xendomains.service", "vmagent.service"}  # fmt: skip
    assert starters <= words("Before"), "EL has virtqemud, Debian libvirtd"
    assert not [one for one in words("Before") if one.endswith(".socket")], "sockets open before basic.target: a cycle"


def test_it_comes_after_what_flushes_all_rules() -> None:
    assert {"nftables.service", "firewalld.service"} <= words("After")
    assert not {"network.target", "network-online.target"} & (words("After") | words("Wants")), "libvirt waits for it"


def test_nothing_hangs_on_it_and_it_hangs_on_nothing() -> None:
    hard = {"Requires", "BindsTo", "PartOf", "Requisite", "RequiredBy"}
    assert not hard & (set(settings("Unit", GUARD)) | set(settings("Install", GUARD)))


def test_it_ends_and_stays_done() -> None:
    service = settings("Service", GUARD)
    assert (service["Type"], service["RemainAfterExit"]) == (["oneshot"], ["yes"])
    assert 0 < int(service["TimeoutStartSec"][0]) <= 120, "without it a oneshot may take for ever, and libvirt waits"
    assert "ExecStop" not in service, "stopping it takes no rule away"


def test_the_command_line_is_one_the_agent_takes() -> None:
    program, *argv = settings("Service", GUARD)["ExecStart"][0].split()
    assert program == "/usr/bin/vmagent"
    said = command.arguments().parse_args(argv)
    assert said.config == DEFAULT_PATH and said.guard


def test_it_can_load_rules_and_little_else() -> None:
    service = settings("Service", GUARD)
    assert set(service["CapabilityBoundingSet"][0].split()) == {"CAP_NET_ADMIN"}
    assert set(service["RestrictAddressFamilies"][0].split()) == {"AF_UNIX", "AF_NETLINK"}, "no question to a DNS"
    assert service["ProtectSystem"] == ["strict"] and "ReadWritePaths" not in service


def test_enabling_the_agent_enables_it() -> None:
    assert settings("Install")["Also"] == ["vmagent-guard.service"]
    assert "vmagent-guard.service" in settings("Unit")["Wants"][0].split()
    assert "vmagent-guard.service" in " ".join(settings("Unit")["After"]).split()
    assert settings("Install", GUARD)["WantedBy"] == ["multi-user.target"]
