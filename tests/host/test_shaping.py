"""Rates measured with real traffic between namespaces, and everything that somebody may do to what limits them."""

from __future__ import annotations

import json
import subprocess
from typing import Iterator, List

import pytest

from tests.support import shaped
from tests.support.shaped import FAST_KBIT, IFB, OUTSIDE, PEER, SLOW_KBIT, TAP, World, opened, sh
from tests.support.stream import BUCKET_S
from tests.support.wires import ip
from vmagent.core.actions import Do
from vmagent.core.model import NicLimits
from vmagent.host.tc import TrafficControl

pytestmark = pytest.mark.skipif(not shaped.READY, reason=shaped.NEEDED)

SETTLE = int(0.5 / BUCKET_S)  # buckets in which TCP finds its pace
QUARTER = int(0.25 / BUCKET_S)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """One for all: every test begins with a limit of its own and mends what it broke."""
    with opened(TrafficControl()) as made:
        yield made


def transmitted(device: str) -> int:
    said = subprocess.run(["ip", "-j", "-s", "link", "show", "dev", device], check=True, capture_output=True).stdout
    return int(json.loads(said)[0]["stats64"]["tx"]["bytes"])


def passed(device: str) -> int:
    """Bytes that went through its root qdisc since that was made."""
    said = subprocess.run(["tc", "-j", "-s", "qdisc", "show", "dev", device, "root"], check=True, capture_output=True)
    return next(int(each["bytes"]) for each in json.loads(said.stdout) if each.get("root"))


# -- rates


@pytest.mark.parametrize("fast", [False, True], ids=["slow", "fast"])
@pytest.mark.parametrize("inward", [True, False], ids=["in", "out"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_limit_is_what_goes_through(world: World, protocol: str, inward: bool, fast: bool) -> None:
    """Without it at least three times as much would: what is measured is the limit, not the machine.

    A sender that the machine does not let run for a while leaves a hole, so the good quarters of a second count for
    "not less"; "not more" is asked of the whole.
    """
    carried = world.carries(protocol, inward)
    kbit = min(FAST_KBIT, carried // 3) if fast else SLOW_KBIT
    assert carried >= 3 * SLOW_KBIT, f"{carried} kbit/s is all that this machine carries"
    world.shape(NicLimits(kbit, None) if inward else NicLimits(None, kbit))
    with world.stream(protocol, inward, 3.0, kbit=2 * kbit) as flow:
        arrived = flow.buckets()[SETTLE:]
    quarters = sorted(measured(arrived[at : at + QUARTER]) for at in range(0, len(arrived), QUARTER))
    good = quarters[len(quarters) * 3 // 4]
    assert 0.9 * kbit <= good <= 1.1 * kbit, f"{good:.0f} kbit/s of payload at {kbit} kbit/s"
    assert measured(arrived) <= 1.1 * kbit


def measured(arrived: List[int]) -> float:
    """kbit/s."""
    return sum(arrived) * 8 / 1000 / (len(arrived) * BUCKET_S)


@pytest.mark.parametrize("inward", [True, False], ids=["in", "out"])
def test_changing_a_rate_lets_nothing_through_free(world: World, inward: bool) -> None:
    slow, fast = (NicLimits(2_000, 2_000), NicLimits(4_000, 4_000))
    far, near = (TAP, TAP) if inward else (PEER, IFB)
    world.shape(fast)
    left, through = transmitted(far), passed(near)
    with world.stream("udp", inward, 3.0, kbit=5 * 4_000) as flow:
        for _ in range(12):
            world.shape(slow)
            world.shape(fast)
        left, through = transmitted(far) - left, passed(near) - through
        arrived = flow.buckets()
    assert 20_000 < left <= through + 5_000, f"{left} bytes left, only {through} of them by way of the limit"
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
    "another queue below": f"tc qdisc replace dev {TAP} parent 1:1 handle 30: pfifo",
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
    world.renew()
    assert not world.shaper.stale()
    sh(done)
    assert world.shaper.stale(), "netlink told"
    found = world.drift()
    assert [(one.what, one.device) for one in found] in ([(what, TAP)], [(what, TAP), ("port", TAP)])
    assert all(one.found for one in found)
    world.do(Do.SHAPE)
    assert world.drift() == ()


def test_it_is_mended_even_when_it_changed_since_the_look(world: World) -> None:
    world.renew()
    sh(MEDDLING["another rate towards the guest"])
    assert world.drift() != ()
    sh(f"tc qdisc del dev {TAP} ingress; ip link del {IFB}")
    world.do(Do.SHAPE)
    assert world.drift() == ()


def answered(wait_s: int) -> bool:
    """Whether one of three questions of the guest's is."""
    argv = ["ip", "netns", "exec", TAP, "ping", "-c", "3", "-i", "0.2", "-W", str(wait_s), OUTSIDE]
    return subprocess.run(argv, capture_output=True).returncode == 0


def test_a_broken_redirection_drops_and_does_not_pass(world: World) -> None:
    world.shape(NicLimits(None, 4_000))
    assert answered(10)
    ip("link", "del", IFB)
    assert not answered(1)
    world.shape(NicLimits(None, 4_000))
    assert answered(10)


def test_nothing_passes_an_isolated_interface_and_its_limits_outlive_that(world: World) -> None:
    world.shape()
    assert answered(10)
    world.do(Do.ISOLATE)
    assert not answered(1)
    assert [one.what for one in world.drift()] == ["isolated"]
    world.do(Do.REJOIN)
    assert world.drift() == () and answered(10)


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
