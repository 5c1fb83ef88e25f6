"""What the documents have an administrator do to a whole host, done on one: units, keys, tables, the store's return.

In the order in which one would: installed, keys renewed, the store put back.  What a line of text only mentions is not
given as a command; `tests/broker/test_documented_commands.py` has our own commands.
"""

from __future__ import annotations

from typing import Dict, List

from tests.hosts.conftest import OnHost
from tests.support import documented
from tests.support.bootedagent import ask, install
from tests.support.bootedhost import BootedHost
from tests.support.documented import Line

STEP_S = 300.0
FIRST = "docs/operations/install-and-configure.md"
CODES: Dict[str, List[int]] = {"vmagentctl doctor": [0, 1], "journalctl -u vmagent VMAGENT_VM": [0, 1]}
"""Where the exit code is an answer: the doctor finds something on any such host; no VM of that id ran here."""
PREPARED = """set -e
mkdir -p /root/renewed /etc/vmagent/tls /var/backups /data /etc/polkit-1/rules.d
touch /root/renewed/host.key /root/renewed/host.pem
groupadd -f operators
head -c 1048576 /dev/zero > /root/el9-worker.qcow2
cd /var/backups
python3 -c 'import sqlite3; sqlite3.connect("/var/lib/vmagent/vmagent.db").backup(sqlite3.connect("vmagent.db"))'
"""


def wanted() -> List[Line]:
    """The installation before all else, then page by page."""
    found = [line for line in documented.lines() if line.kind == "host" and not line.inline]
    return sorted(found, key=lambda line: (line.page != FIRST, line.page, line.number))


def test_every_command_for_a_host_in_the_documents_does_what_it_says(on_host: OnHost) -> None:
    def body(host: BootedHost) -> None:
        install(host)
        host.sh("systemctl start vmagent", STEP_S)
        host.sh(PREPARED, STEP_S)
        before = ask(host, "status")["epoch"]["number"]
        wrong = []
        for line in wanted():
            done = host.run(f"cd /root && {line.text}", STEP_S)
            codes = next((codes for start, codes in CODES.items() if line.text.startswith(start)), [0])
            if done.code not in codes:
                wrong.append(f"{line} -> {done.code}: {done.text[-400:]}")
        assert not wrong, "\n".join(wrong)
        assert host.run("systemctl is-active vmagent.service").code == 0
        assert ask(host, "status")["epoch"]["number"] > before, "the store that was put back is known as such"

    on_host(body)


def test_the_search_finds_what_is_there() -> None:
    texts = [line.text for line in wanted()]
    assert len(texts) > 20 and texts[0].startswith("vmagent --check-config")
