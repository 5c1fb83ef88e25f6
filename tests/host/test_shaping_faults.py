"""Kernels and programs that cannot shape, what a crash left, and taps that nobody uses."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
from pathlib import Path
from typing import Iterator

import pytest

from tests.support import shaped
from tests.support.shaped import IFB, INSTANCE, SCRATCH, VM, World, opened, pretend
from tests.support.wires import ip
from vmagent.core import identity
from vmagent.core.actions import Do
from vmagent.core.model import NicLimits
from vmagent.errors import Fault, FaultKind
from vmagent.host.tc import TrafficControl

pytestmark = pytest.mark.skipif(not shaped.READY, reason=shaped.NEEDED)


@pytest.mark.parametrize("refused", ["tbf", "mirred"])
def test_a_kernel_that_cannot_shape_refuses_with_its_words(tmp_path: Path, refused: str) -> None:
    with opened(pretend(tmp_path, refused)) as world:
        assert world.shaper.info().qdisc == "" and f"{refused} is unknown" in world.shaper.info().why
        assert "bandwidth" in [one.what for one in world.drift()]
        with pytest.raises(Fault) as caught:
            world.do(Do.SHAPE)
        assert caught.value.kind is FaultKind.REFUSED and f"{refused} is unknown" in caught.value.detail
        world.shape(NicLimits())


def test_what_cannot_be_read_back_is_not_set(tmp_path: Path) -> None:
    """As with an iproute2 that prints u32 filters as plain text, whatever it is asked for."""
    control = pretend(tmp_path, "matchall")
    script = Path(control.tc)
    plain = 'case "$lines" in *"filter show"*) set -- -b -;; esac'
    script.write_text(script.read_text().replace("printf", f"{plain}\nprintf"))
    with opened(control) as world:
        assert world.shaper.info().qdisc == "" and "JSON" in world.shaper.info().why
        with pytest.raises(Fault, match="no bandwidth limit"):
            world.do(Do.SHAPE)


def test_a_tc_that_fails_later_is_told(tmp_path: Path) -> None:
    with opened(pretend(tmp_path, "nothing")) as world:
        (tmp_path / "tc").write_text("#!/bin/sh\necho broken >&2; exit 1\n")
        with pytest.raises(Fault) as caught:
            world.drift()
        assert caught.value.kind is FaultKind.UNKNOWN and "broken" in caught.value.detail
        assert world.shaper.stale(), "a look that failed answers nothing"


@pytest.mark.parametrize("says", ["nonsense", "[]", "[] [] []", '[{"no": "pref"}] [{}] [1]'])
def test_a_tc_that_talks_nonsense_proves_nothing(tmp_path: Path, says: str) -> None:
    with opened(pretend(tmp_path, "nothing")) as world:
        (tmp_path / "tc").write_text(f"#!/bin/sh\necho '{says}'\n")
        with pytest.raises(Fault) as caught:
            world.drift(NicLimits(1000, None))
        assert caught.value.kind is FaultKind.UNKNOWN


def test_without_tc_nothing_can_be_limited() -> None:
    with opened(TrafficControl(tc="/nonexistent/tc")) as world:
        assert world.shaper.info().qdisc == "" and "not installed" in world.shaper.info().why


def test_what_a_crash_left_of_the_trial_is_gone_after_the_next() -> None:
    for device in (SCRATCH, identity.shaper_name(SCRATCH)):
        ip("link", "add", "name", device, "type", "ifb")
    with opened(TrafficControl()) as world:
        assert world.shaper.info().qdisc.startswith("tbf")
        for device in (SCRATCH, identity.shaper_name(SCRATCH)):
            assert subprocess.run(["ip", "link", "show", device], capture_output=True).returncode != 0


def test_it_is_mended_even_when_it_changes_just_before(tmp_path: Path) -> None:
    with opened(pretend(tmp_path, "nothing")) as world:
        world.shape(NicLimits(None, 2_000))
        assert world.drift() != ()
        before = f"""[ -e {tmp_path}/done ] || {{ touch {tmp_path}/done; ip link del {IFB}; }}"""
        script = (tmp_path / "tc").read_text().replace("printf", before + "\nprintf")
        (tmp_path / "tc").write_text(script)
        world.do(Do.SHAPE)
        assert (tmp_path / "done").exists() and world.drift() == ()


# -- taps


@contextlib.contextmanager
def tap_in_use(name: str) -> Iterator[None]:
    """Somebody, such as QEMU, has it open."""
    handle = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(handle, 0x400454CA, struct.pack("16sH14x", name.encode(), 0x1002))  # TUNSETIFF: IFF_TAP, IFF_NO_PI
        yield
    finally:
        os.close(handle)


@pytest.fixture
def tap() -> Iterator[str]:
    name = identity.device_name(INSTANCE, VM, 7)
    ip("tuntap", "add", name, "mode", "tap")
    ip("link", "set", name, "up")
    try:
        yield name
    finally:
        subprocess.run(["ip", "link", "del", name], capture_output=True)


def test_a_tap_that_nobody_uses_is_swept_and_no_other(tap: str) -> None:
    with opened(TrafficControl()) as world:
        sweep(world, tap)


def sweep(world: World, tap: str) -> None:
    settle = world.reactor.settle
    with tap_in_use(tap):
        assert settle(world.shaper.devices()) == frozenset()
        with pytest.raises(Fault, match="in use"):
            settle(world.shaper.forget([tap]))
        ip("link", "set", tap, "down")
        assert settle(world.shaper.devices()) == frozenset(), "down, and still in use"
        ip("link", "set", tap, "up")
    assert settle(world.shaper.devices()) == {tap}
    settle(world.shaper.forget([tap]))
    assert settle(world.shaper.devices()) == frozenset()
