"""Rates measured with real traffic between namespaces, and everything that somebody may do to what limits them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any, Iterator, Tuple

import pytest

from tests.support import building, wires
from tests.support.lanes import HandTurned
from tests.support.stream import BUCKET_S, stream
from tests.support.wires import Wires, ip
from vmagent.core import identity
from vmagent.core.actions import Action, Do
from vmagent.core.model import Drift, Limits, NicLimits, VmSpec
from vmagent.errors import Fault, FaultKind
from vmagent.host.linknews import LinkNews
from vmagent.host.shaper import TcShaper
from vmagent.host.tc import TrafficControl
from vmagent.lanes import Lanes

pytestmark = pytest.mark.skipif(not (wires.READY and shutil.which("tc")), reason="needs root, ip, tc and nft")

INSTANCE = "zsh"
BRIDGE = "zshaping0"
PEER = "zshother"
VM = building.spec().vm
TAP = identity.device_name(INSTANCE, VM, 0)
IFB = identity.shaper_name(TAP)
SCRATCH = identity.device_name(INSTANCE, "scratch", 0)
GUEST, OUTSIDE = "10.77.8.10", "10.77.8.20"
SETTLE = int(0.5 / BUCKET_S)  # buckets in which TCP finds its pace
LIMITED = NicLimits(5_000, 4_000)


def spec(limits: NicLimits) -> VmSpec:
    nic = building.interface(VM, device=TAP, bridge=BRIDGE, addresses=(f"{GUEST}/24",))
    return building.spec(interfaces=(nic,), limits=Limits(nics=(limits,)))


class World:
    """A guest on a bridge, and somebody else there."""

    def __init__(self, control: TrafficControl) -> None:
        self.reactor = HandTurned()
        self.shaper = TcShaper(INSTANCE, Lanes("tc", 2, self.reactor), control)
        self.wires = Wires(BRIDGE)
        try:
            self.reactor.settle(self.shaper.start())
            for device, address in ((TAP, GUEST), (PEER, OUTSIDE)):
                self.wires.plug(device)
                self.wires.guest(device, identity.mac_address(device, 0), f"{address}/24")
        except BaseException:
            self.close()
            raise

    def do(self, do: Do, limits: NicLimits = LIMITED) -> None:
        self.reactor.settle(self.shaper.perform(Action(do, spec(limits))))

    def drift(self, limits: NicLimits = LIMITED) -> Tuple[Drift, ...]:
        found: Tuple[Drift, ...] = self.reactor.settle(self.shaper.drift([spec(limits)]))[VM]
        return found

    def shape(self, limits: NicLimits = LIMITED) -> None:
        """As the planner does: look, mend, look."""
        self.drift(limits)
        self.do(Do.SHAPE, limits)
        assert self.drift(limits) == ()

    def stream(self, protocol: str, inward: bool, seconds: float) -> Any:
        port = 5001
        return stream(protocol, PEER, TAP, GUEST, port, seconds) if inward else stream(
            protocol, TAP, PEER, OUTSIDE, port, seconds
        )

    def close(self) -> None:
        self.shaper.close()
        self.wires.close()
        for device in (IFB, SCRATCH, identity.shaper_name(SCRATCH)):
            subprocess.run(["ip", "link", "del", device], capture_output=True)


@contextlib.contextmanager
def opened(control: TrafficControl) -> Iterator[World]:
    made = World(control)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def world() -> Iterator[World]:
    with opened(TrafficControl()) as made:
        yield made


def sh(text: str) -> None:
    subprocess.run(["sh", "-e", "-c", text], check=True, capture_output=True)


def transmitted(device: str) -> int:
    said = subprocess.run(["ip", "-j", "-s", "link", "show", "dev", device], check=True, capture_output=True).stdout
    return int(json.loads(said)[0]["stats64"]["tx"]["bytes"])


def passed(device: str) -> int:
    """Bytes that went through its root qdisc since that was made."""
    said = subprocess.run(["tc", "-j", "-s", "qdisc", "show", "dev", device, "root"], check=True, capture_output=True)
    return next(int(each["bytes"]) for each in json.loads(said.stdout) if each.get("root"))


# -- rates


@pytest.mark.parametrize("kbit", [2_000, 50_000])
@pytest.mark.parametrize("inward", [True, False], ids=["in", "out"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_limit_is_what_goes_through(world: World, protocol: str, inward: bool, kbit: int) -> None:
    world.shape(NicLimits(kbit, None) if inward else NicLimits(None, kbit))
    with world.stream(protocol, inward, 2.5) as flow:
        arrived = flow.buckets()[SETTLE:]
    measured = sum(arrived) * 8 / 1000 / (len(arrived) * BUCKET_S)
    assert 0.9 * kbit <= measured <= 1.1 * kbit, f"{measured:.0f} kbit/s of payload at {kbit} kbit/s"


def test_without_a_limit_more_goes_through(world: World) -> None:
    """What the tests above measure is the limit, not the machine."""
    world.shape(NicLimits())
    for inward in (True, False):
        with world.stream("udp", inward, 1.0) as flow:
            assert sum(flow.buckets()) * 8 / 1000 > 1.5 * 50_000


@pytest.mark.parametrize("inward", [True, False], ids=["in", "out"])
def test_changing_a_rate_lets_nothing_through_free(world: World, inward: bool) -> None:
    slow, fast = (NicLimits(2_000, 2_000), NicLimits(4_000, 4_000))
    far, near = (TAP, TAP) if inward else (PEER, IFB)
    world.shape(fast)
    left, through = transmitted(far), passed(near)
    with world.stream("udp", inward, 3.0) as flow:
        for _ in range(12):
            world.shape(slow)
            world.shape(fast)
        left, through = transmitted(far) - left, passed(near) - through
        arrived = flow.buckets()
    assert left > 100_000 and left <= through + 5_000, f"{left} bytes left, only {through} of them by way of the limit"
    window = int(0.2 / BUCKET_S)
    most = max(sum(arrived[at : at + window]) for at in range(len(arrived) - window))
    assert most < 2 * (4_000 * 125 * 0.2), f"{most} bytes in 0.2 s"
    assert sum(arrived) < 1.5 * (4_000 * 125 * 3.0), "nor in sum"


# -- held

MEDDLING = {
    "the qdisc towards the guest removed": f"tc qdisc del dev {TAP} root",
    "another qdisc towards the guest": f"tc qdisc replace dev {TAP} root pfifo",
    "a qdisc with our handle": f"tc qdisc del dev {TAP} root; tc qdisc add dev {TAP} root handle 1: htb",
    "another rate towards the guest": f"tc qdisc change dev {TAP} root handle 1: tbf rate 1gbit burst 1mb latency 50ms",
    "another burst": f"tc qdisc change dev {TAP} root handle 1: tbf rate 5mbit burst 1mb latency 50ms",
    "an endless queue": f"tc qdisc change dev {TAP} root handle 1: tbf rate 5mbit burst 6250 latency 50s",
    "another queue below": f"tc qdisc add dev {TAP} parent 1:1 handle 10: pfifo",
    "the redirection removed": f"tc qdisc del dev {TAP} ingress",
    "the filter removed": f"tc filter del dev {TAP} ingress",
    "a filter before it": f"tc filter del dev {TAP} ingress; tc filter add dev {TAP} ingress pref 1 protocol all u32 "
    f"match u32 0 0 flowid 1:1; tc filter add dev {TAP} ingress pref 2 protocol all u32 match u32 0 0 action mirred "
    f"egress redirect dev {IFB}",
    "a filter for some": f"tc filter del dev {TAP} ingress; tc filter add dev {TAP} ingress pref 1 protocol ip u32 "
    f"match u32 0 0 action mirred egress redirect dev {IFB}",
    "a mirror instead": f"tc filter del dev {TAP} ingress; tc filter add dev {TAP} ingress pref 1 protocol all u32 "
    f"match u32 0 0 action mirred egress mirror dev {IFB}",
    "clsact in its place": f"tc qdisc del dev {TAP} ingress; tc qdisc add dev {TAP} clsact",
    "the ifb removed": f"ip link del {IFB}",
    "the ifb made anew": f"ip link del {IFB}; ip link add name {IFB} type ifb; ip link set {IFB} up",
    "the ifb down": f"ip link set {IFB} down",
    "the ifb's qdisc removed": f"tc qdisc del dev {IFB} root",
    "another rate from the guest": f"tc qdisc change dev {IFB} root handle 1: tbf rate 1gbit burst 1mb latency 50ms",
}
PORTS = {
    "the guard off": f"ip link set dev {TAP} type bridge_slave guard off",
    "out of its bridge": f"ip link set dev {TAP} nomaster",
}


@pytest.mark.parametrize(("done", "what"), [
    *(pytest.param(text, "bandwidth", id=name) for name, text in MEDDLING.items()),
    *(pytest.param(text, "port", id=name) for name, text in PORTS.items()),
])  # fmt: skip
def test_what_somebody_changes_is_noticed_said_and_mended(world: World, done: str, what: str) -> None:
    world.shape()
    assert not world.shaper.stale()
    sh(done)
    assert world.shaper.stale(), "netlink told"
    found = world.drift()
    assert [(one.what, one.device) for one in found] in ([(what, TAP)], [(what, TAP), ("port", TAP)])
    assert all(one.found for one in found)
    world.do(Do.SHAPE)
    assert world.drift() == ()


def test_it_is_mended_even_when_it_changed_since_the_look(world: World) -> None:
    world.shape()
    sh(MEDDLING["another rate towards the guest"])
    assert world.drift() != ()
    sh(f"tc qdisc del dev {TAP} ingress; ip link del {IFB}")
    world.do(Do.SHAPE)
    assert world.drift() == ()


def test_it_is_mended_even_when_it_changes_just_before(tmp_path: Path) -> None:
    with opened(pretend(tmp_path, "nothing")) as world:
        world.shape(NicLimits(None, 2_000))
        assert world.drift() != ()
        before = f"""[ -e {tmp_path}/done ] || {{ touch {tmp_path}/done; ip link del {IFB}; }}"""
        script = (tmp_path / "tc").read_text().replace("printf", before + "\nprintf")
        (tmp_path / "tc").write_text(script)
        world.do(Do.SHAPE)
        assert (tmp_path / "done").exists() and world.drift() == ()


def test_a_broken_redirection_drops_and_does_not_pass(world: World) -> None:
    world.shape(NicLimits(None, 4_000))
    ip("link", "del", IFB)
    ping = ["ip", "netns", "exec", TAP, "ping", "-c", "2", "-i", "0.2", "-W", "1", OUTSIDE]
    assert subprocess.run(ping, capture_output=True).returncode != 0
    world.shape(NicLimits(None, 4_000))
    assert subprocess.run(ping, capture_output=True).returncode == 0


def test_nothing_passes_an_isolated_interface_and_its_limits_outlive_that(world: World) -> None:
    ping = ["ip", "netns", "exec", TAP, "ping", "-c", "2", "-i", "0.2", "-W", "1", OUTSIDE]
    world.shape()
    world.do(Do.ISOLATE)
    assert subprocess.run(ping, capture_output=True).returncode != 0
    assert [one.what for one in world.drift()] == ["isolated"]
    world.do(Do.REJOIN)
    assert world.drift() == ()


def test_others_interfaces_are_not_touched(world: World) -> None:
    sh(f"tc qdisc add dev {PEER} root tbf rate 7mbit burst 10kb latency 50ms; tc qdisc add dev {PEER} ingress")

    def others() -> str:
        lines = subprocess.run(["tc", "qdisc", "show"], check=True, capture_output=True, text=True).stdout.splitlines()
        return "\n".join(line for line in lines if TAP not in line and IFB not in line)

    before = others()
    world.shape()
    world.do(Do.ISOLATE)
    world.do(Do.REJOIN)
    world.do(Do.UNSHAPE)
    assert others() == before


# -- what the kernel cannot do


def pretend(home: Path, refused: str) -> TrafficControl:
    """A tc of a kernel without the qdisc (or filter) `refused`."""
    script = home / "tc"
    script.write_text(
        f"""#!/bin/sh
lines=$(cat)
case "$lines" in *"{refused} "*) echo "Error: Specified {refused} is unknown." >&2; exit 2;; esac
printf '%s\\n' "$lines" | exec {shutil.which('tc')} "$@"
"""
    )
    script.chmod(0o755)
    return TrafficControl(tc=str(script))


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


def test_a_tap_that_nobody_uses_is_swept_and_no_other(world: World, tap: str) -> None:
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


# -- news


@pytest.fixture
def news(world: World) -> Iterator[LinkNews]:
    made = LinkNews()
    made.open()
    made.asked([TAP, IFB])
    try:
        yield made
    finally:
        made.close()


def alias(device: str, times: int) -> None:
    lines = "".join(f"link set dev {device} alias a{number}\n" for number in range(times))
    subprocess.run(["ip", "-b", "-"], input=lines.encode(), check=True, capture_output=True)


def test_others_changes_are_no_news(news: LinkNews) -> None:
    alias(PEER, 5)
    sh(f"tc qdisc add dev {PEER} root pfifo; ip link add name {SCRATCH} type ifb; ip link del {SCRATCH}")
    assert not news.stale()
    alias(TAP, 1)
    assert news.stale() and news.touched([TAP]) and not news.touched([IFB])


def test_a_look_answers_for_what_it_looked_at(news: LinkNews) -> None:
    sh(f"ip link add name {IFB} type ifb; tc qdisc add dev {TAP} root pfifo")
    news.asked([IFB])
    assert news.touched([TAP]) and not news.touched([IFB])
    news.asked([TAP])
    assert not news.stale()


def test_what_is_gone_and_not_asked_about_any_more_is_forgotten(news: LinkNews) -> None:
    sh(f"ip link add name {IFB} type ifb")
    news.asked([TAP, IFB])
    sh(f"ip link del {IFB}")
    assert news.stale()
    news.asked([TAP])
    assert not news.stale()


def test_lost_news_mean_that_everything_may_have_changed(news: LinkNews) -> None:
    alias(PEER, 3000)
    assert news.stale() and news.touched([TAP])
    news.asked([TAP, IFB])
    while news.touched([TAP]):  # what was still in the buffer
        news.asked([TAP, IFB])
    alias(TAP, 1)
    assert news.stale()


def test_without_a_socket_everything_may_have_changed(world: World) -> None:
    deaf = LinkNews()
    deaf.asked([TAP])
    assert deaf.stale() and deaf.touched([TAP])


