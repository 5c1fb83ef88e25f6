"""What systemd itself says of the units, where they are installed."""

from __future__ import annotations

import re

from tests.hosts.conftest import OnHost
from tests.support.bootedagent import install
from tests.support.bootedhost import BootedHost

UNITS = "vmagent.service vmagent-guard.service"
EXPOSED = 2.5  # at most, of 10


def test_verify_has_no_word_to_say(on_host: OnHost) -> None:
    def body(host: BootedHost) -> None:
        install(host)
        done = host.run(f"systemd-analyze verify {UNITS}")
        assert (done.code, done.text) == (0, "")

    on_host(body)


def test_the_agent_is_exposed_little(on_host: OnHost) -> None:
    def body(host: BootedHost) -> None:
        install(host)
        said = host.run("systemd-analyze security --no-pager vmagent.service").text
        found = re.search(r"Overall exposure level for vmagent\.service: ([\d.]+)", said)
        assert found is not None and float(found.group(1)) <= EXPOSED, said

    on_host(body)


def test_nothing_in_the_units_is_unknown_to_systemd(on_host: OnHost) -> None:
    def body(host: BootedHost) -> None:
        install(host)
        host.sh("systemctl daemon-reload")
        assert host.run("journalctl -b _PID=1 -o cat | grep -E '/vmagent[-a-z]*[.]service'").text == ""

    on_host(body)
