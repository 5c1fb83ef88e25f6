"""A prefix that would cut an interface of the host off is refused, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmagent.core import identity
from vmagent.errors import Problem
from vmagent.host.interfaces import covered, ours_alone


def test_only_what_no_guest_can_be_called_is_the_hosts_own(tmp_path: Path) -> None:
    guest = identity.device_name("vma", "6f1c2f9e-6d5b-4f0e-9d51-0d6a7a1b2c3d", 0)
    for name in ("lo", "vmabr0", "vmabridge1234", "vm", guest, identity.shaper_name(guest)):
        (tmp_path / "class" / "net" / name).mkdir(parents=True)
    assert covered("vma", tmp_path) == ("vmabr0", "vmabridge1234")
    assert covered("vmx", tmp_path) == ()


def test_such_a_prefix_is_a_problem_that_names_the_interface(tmp_path: Path) -> None:
    (tmp_path / "class" / "net" / "uplink0").mkdir(parents=True)
    ours_alone("up2", tmp_path)
    with pytest.raises(Problem) as caught:
        ours_alone("upl", tmp_path)
    assert caught.value.type == "configuration"
    assert "uplink0" in caught.value.detail
