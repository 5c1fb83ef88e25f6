"""Tests that run inside the booted host: those of level `host` again, on a kernel that has everything, and our own.

The verdicts must be the same as on the machine outside, whose kernel may lack conntrack for bridges and most qdiscs.
"""

from __future__ import annotations

import pytest

from tests.hosts.conftest import CHECKOUT, OnHost
from tests.support.bootedhost import BootedHost
from tests.support.package import ROOT

SUITE_S = 1500.0  # half of it on a busy machine, a tenth when the machine is ours alone
SUITES = {
    "cgroups": ["tests/hosts/inside/check_cgroups.py"],
    "traffic": ["tests/host/test_traffic*.py"],
    "host": ["tests/host/test_[!t]*.py", "tests/contract/test_firewall*.py", "tests/contract/test_shaper*.py"],
}
"""What runs together: collecting alone takes some seconds in there."""


@pytest.mark.parametrize("suite", SUITES)
def test_inside(on_host: OnHost, suite: str) -> None:
    files = [str(path.relative_to(ROOT)) for pattern in SUITES[suite] for path in sorted(ROOT.glob(pattern))]

    def body(host: BootedHost) -> None:
        argv = f"timeout -s INT -k 30 {SUITE_S:.0f} python3 -m pytest -rfEs --durations=5 {' '.join(files)}"
        done = host.run(f"cd {CHECKOUT} && {argv}", SUITE_S + 60)
        print(done.text[-3000:])
        assert done.code == 0, done.text[-10000:]
        assert "SKIPPED" not in done.text, f"this host has everything; why was it skipped? {done.text[-3000:]}"

    on_host(body)
