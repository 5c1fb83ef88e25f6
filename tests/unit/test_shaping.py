"""Rates, what is read back, what differs, and the lines that mend it."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List

import pytest

from tests.support import building
from vmagent.core import identity, qdiscs, shaping, tctext
from vmagent.core.model import Limits, NicLimits, VmSpec
from vmagent.core.qdiscs import GONE, Link, NicSeen, Queue, Redirect
from vmagent.core.shaping import FASTEST_KBIT, ISOLATED, Rate, Tools, Wish

PLAIN = Tools("", "u32")
FAIR = Tools("fq_codel", "matchall")
TAP, IFB, BRIDGE = "vaaaaaaaaaaaaa", "vabbbbbbbbbbbb", "vmbr0"
MAC = "02:00:00:00:00:01"
IN, OUT = Rate(10_000, 1522), Rate(20_000, 1522)
WISH = Wish(TAP, IFB, BRIDGE, IN, OUT, MAC)
FREE = Wish(TAP, IFB, BRIDGE, mac=MAC)


def queue(rate: Rate, **kw: Any) -> Queue:
    return dataclasses.replace(Queue("tbf", "1:", rate.bytes_per_s, rate.burst_bytes, rate.latency_us), **kw)


def as_wished(**kw: Any) -> NicSeen:
    members: Dict[str, Any] = {
        "tap": Link(TAP, "tun", up=True, carrier=True, bridge=BRIDGE, guard=True),
        "ifb": Link(IFB, "ifb", up=True, carrier=True),
        "inward": queue(IN),
        "outward": queue(OUT),
        "ingress": "ingress",
        "filters": (Redirect(1, 0, IFB),),
    }
    members.update(kw)
    return NicSeen(**members)


FRESH = NicSeen(Link(TAP, "tun", up=True, bridge=BRIDGE), inward=Queue("noqueue"))


def found(wish: Wish, seen: NicSeen, tools: Tools = PLAIN) -> List[str]:
    return [f"{one.what}: {one.found}" for one in shaping.drift(wish, seen, tools)]


# -- the numbers


@pytest.mark.parametrize("kbit", [1, 8, 64, 128, 1000, 10_000, 100_000, 1_000_000, FASTEST_KBIT])
@pytest.mark.parametrize("mtu", [1280, 1500, 9000])
def test_every_rate_can_pass_frames_and_hold(kbit: int, mtu: int) -> None:
    rate = shaping.rate(kbit, mtu)
    assert rate is not None
    assert rate.burst_bytes >= 3 * (mtu + 14), "large frames pass"
    assert rate.burst_bytes >= rate.bytes_per_s // 100, "what comes in between two ticks at HZ=100"
    assert rate.burst_bytes <= max(rate.bytes_per_s // 100, 4 * mtu), "and no more is given away at once"
    assert rate.latency_us >= 50_000 and rate.latency_us * rate.bytes_per_s >= 15 * mtu * 1_000_000
    assert rate.burst_bytes / rate.bytes_per_s * 1e9 / 64 < 2**32, "tbf keeps it as ticks of 64 ns in 32 bits"


@pytest.mark.parametrize("kbit", [0, -1, FASTEST_KBIT + 1])
def test_what_is_no_rate_is_refused(kbit: int) -> None:
    with pytest.raises(ValueError, match="kbit/s"):
        shaping.rate(kbit, 1500)


def test_no_limit_is_no_rate() -> None:
    assert shaping.rate(None, 1500) is None


# -- the wish


def spec(**kw: Any) -> VmSpec:
    vm = building.spec().vm
    return building.spec(interfaces=(building.interface(vm, **kw),), limits=Limits(nics=(NicLimits(10_000, 20_000),)))


def test_a_wish_names_its_devices_and_counts_in_frames_of_its_mtu() -> None:
    of = spec(mtu=9000)
    (wish,) = shaping.wishes("va", of)
    assert wish.device == of.interfaces[0].device and wish.ifb == identity.shaper_name(wish.device)
    assert wish.ifb.startswith("va") and len(wish.ifb) == len(wish.device) and wish.ifb != wish.device
    assert (wish.inward, wish.outward) == (Rate(10_000, 9022), Rate(20_000, 9022))


@pytest.mark.parametrize("device", ["eth0", "", "va", "va-evil", "va a", "va\n", "vb" + "a" * 11, "va" + "a" * 14])
def test_a_name_that_is_not_ours_never_becomes_text(device: str) -> None:
    with pytest.raises(ValueError, match="not an interface"):
        shaping.wishes("va", spec(device=device))


@pytest.mark.parametrize("bridge", ["", "-x", "a b", "br0\nlink del eth0", "b" * 16])
def test_a_bridge_that_cannot_be_never_becomes_text(bridge: str) -> None:
    with pytest.raises(ValueError, match="not a bridge"):
        shaping.wishes("va", spec(bridge=bridge))


# -- what differs


def test_nothing_differs() -> None:
    assert found(WISH, as_wished()) == []
    assert found(FREE, as_wished(ifb=None, inward=Queue("noqueue"), outward=Queue(), ingress="", filters=())) == []


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ({"inward": Queue("pfifo_fast")}, "bandwidth: in: the qdisc is pfifo_fast, not tbf"),
        ({"inward": queue(Rate(9_000, 1522), burst_bytes=IN.burst_bytes)}, "bandwidth: in: 9000 kbit/s, not 10000"),
        ({"inward": queue(IN, burst_bytes=99)}, "bandwidth: in: a burst of 99 bytes, not 12500"),
        ({"inward": queue(IN, latency_us=1)}, "bandwidth: in: a latency of 1 us, not 50000"),
        ({"inward": queue(IN, leaf="netem")}, "bandwidth: in: netem below it, not bfifo"),
        ({"outward": Queue("pfifo")}, "bandwidth: out: the qdisc is pfifo, not tbf"),
        ({"outward": queue(IN, burst_bytes=OUT.burst_bytes)}, "bandwidth: out: 10000 kbit/s, not 20000"),
        ({"ifb": None}, f"bandwidth: out: no {IFB}"),
        ({"ifb": Link(IFB, "ifb")}, f"bandwidth: out: {IFB} is down"),
        ({"ifb": Link(IFB, "dummy", up=True)}, f"bandwidth: out: {IFB} is no ifb"),
        ({"ingress": ""}, "bandwidth: out: the ingress qdisc is missing"),
        ({"ingress": "clsact"}, "bandwidth: out: the ingress qdisc is clsact"),
        ({"filters": ()}, f"bandwidth: out: not redirected to {IFB} alone but by no filter"),
        (
            {"filters": (Redirect(1, 0, ""), Redirect(2, 0, IFB))},
            f"bandwidth: out: not redirected to {IFB} alone but by filter 1 to elsewhere, filter 2 to {IFB}",
        ),
        ({"tap": Link(TAP, up=True, bridge="br9", guard=True)}, f"port: in bridge br9, not {BRIDGE}"),
        ({"tap": Link(TAP, up=True, guard=True)}, f"port: in no bridge, not {BRIDGE}"),
        ({"tap": Link(TAP, up=True, bridge=BRIDGE)}, "port: no BPDU guard, or the bridge learns from it"),
        ({"tap": Link(TAP, bridge=BRIDGE, guard=True, alias=ISOLATED)}, "isolated: taken down by vmagent"),
        ({"tap": None}, "missing: no such interface"),
    ],
)
def test_each_difference_is_said_and_one_pass_mends_it(seen: Dict[str, Any], words: str) -> None:
    assert found(WISH, as_wished(**seen)) == [words]


@pytest.mark.parametrize(
    "seen",
    [{"inward": queue(IN)}, {"ifb": Link(IFB, "ifb")}, {"filters": (Redirect(1, 0, IFB),)},
     {"filters": (Redirect(4, 0, GONE),)}],
)  # fmt: skip
def test_ours_without_a_wish_differs(seen: Dict[str, Any]) -> None:
    bare: Dict[str, Any] = {"ifb": None, "inward": Queue(), "outward": Queue(), "ingress": "ingress", "filters": ()}
    assert found(FREE, as_wished(**bare)) == []
    assert [one.split(":")[0] for one in found(FREE, as_wished(**{**bare, **seen}))] == ["bandwidth"]


def test_somebody_s_own_qdisc_without_a_limit_of_ours_is_theirs() -> None:
    theirs = as_wished(
        ifb=None, inward=Queue("netem", "7:"), outward=Queue(), ingress="clsact", filters=(Redirect(1, 0, ""),)
    )
    assert found(FREE, theirs) == [] and tctext.tc_lines(FREE, theirs, PLAIN) == []


def test_the_queue_below_must_be_the_best_there_is() -> None:
    fair = {"inward": queue(IN, leaf="fq_codel"), "outward": queue(OUT, leaf="fq_codel")}
    assert found(WISH, as_wished(**fair), FAIR) == []
    assert found(WISH, as_wished(), FAIR) != []


# -- the lines


def test_a_fresh_interface_gets_everything() -> None:
    assert tctext.ip_lines(WISH, FRESH) == [
        f"link add name {IFB} type ifb",
        f"link set dev {IFB} up",
        f"link set dev {TAP} type bridge_slave guard on learning off",
    ]
    assert tctext.tc_lines(WISH, FRESH, PLAIN) == [
        f"qdisc replace dev {TAP} root handle 1: tbf rate 10000kbit burst 12500 latency 50000us",
        f"qdisc replace dev {IFB} root handle 1: tbf rate 20000kbit burst 25000 latency 50000us",
        f"qdisc add dev {TAP} ingress",
        f"filter add dev {TAP} parent ffff: protocol all pref 1 u32 match u32 0 0"
        f" action mirred egress redirect dev {IFB}",
    ]


def test_the_best_tools_are_used() -> None:
    lines = tctext.tc_lines(WISH, FRESH, FAIR)
    assert f"qdisc replace dev {TAP} parent 1:1 handle 10: fq_codel limit 256 target 5000us interval 100000us" in lines
    assert any(" matchall action mirred " in line for line in lines)
    assert any(" sfq perturb 10 limit 127" in line for line in tctext.tc_lines(WISH, FRESH, Tools("sfq", "u32")))


def test_a_slow_rate_s_queue_does_not_drop_every_frame() -> None:
    slow = dataclasses.replace(FREE, inward=Rate(100, 1522))
    line = tctext.tc_lines(slow, FRESH, FAIR)[1]
    assert "target 182640us" in line, "one and a half frames"


def test_what_is_as_wished_needs_no_lines() -> None:
    assert tctext.ip_lines(WISH, as_wished()) == [] == tctext.tc_lines(WISH, as_wished(), PLAIN)


def test_a_rate_changes_within_its_qdisc() -> None:
    seen = as_wished(inward=queue(Rate(77, 1522), handle="2:", leaf="fq_codel", leaf_handle="20:"))
    assert [line.split("tbf")[0] for line in tctext.tc_lines(WISH, seen, FAIR)[:2]] == [
        f"qdisc replace dev {TAP} root handle 2: ",
        f"qdisc replace dev {TAP} parent 2:1 handle 20: fq_codel limit 256 target 5000us interval 100000us",
    ]


@pytest.mark.parametrize("other", [Queue("prio", "1:"), queue(IN, leaf="netem")])
def test_another_qdisc_is_replaced_in_one_step_by_one_with_another_handle(other: Queue) -> None:
    (line,) = tctext.tc_lines(WISH, as_wished(inward=other), PLAIN)
    assert line.startswith(f"qdisc replace dev {TAP} root handle 2: tbf ")


def test_the_new_filter_stands_before_the_old_ones_go() -> None:
    seen = as_wished(filters=(Redirect(1, 0, GONE), Redirect(2, 3, "")))
    lines = tctext.tc_lines(WISH, seen, PLAIN)
    assert [line.split(" action")[0] for line in lines] == [
        f"filter add dev {TAP} parent ffff: protocol all pref 3 u32 match u32 0 0",
        f"filter del dev {TAP} parent ffff: pref 1 chain 0",
        f"filter del dev {TAP} parent ffff: pref 2 chain 3",
    ]


def test_the_right_filter_stays_when_others_go() -> None:
    seen = as_wished(filters=(Redirect(1, 0, ""), Redirect(2, 0, IFB), Redirect(3, 0, IFB)))
    assert [line.split()[-3] for line in tctext.tc_lines(WISH, seen, PLAIN)] == ["1", "3"]


def test_limits_that_end_leave_nothing() -> None:
    assert tctext.ip_lines(FREE, as_wished()) == [f"link del dev {IFB}"]
    assert tctext.tc_lines(FREE, as_wished(), PLAIN) == [f"qdisc del dev {TAP} root", f"qdisc del dev {TAP} ingress"]


def test_somebody_s_own_filter_stays_when_a_limit_ends() -> None:
    seen = as_wished(inward=Queue(), filters=(Redirect(1, 0, IFB), Redirect(2, 0, "")))
    assert tctext.tc_lines(FREE, seen, PLAIN) == [f"filter del dev {TAP} parent ffff: pref 1 chain 0"]


def test_an_interface_that_went_leaves_its_ifb_only() -> None:
    gone = NicSeen(ifb=Link(IFB, "ifb", up=True), outward=queue(OUT))
    assert (tctext.ip_lines(FREE, gone), tctext.tc_lines(FREE, gone, PLAIN)) == ([f"link del dev {IFB}"], [])


def test_a_port_goes_back_to_its_bridge_and_is_guarded_there() -> None:
    assert tctext.ip_lines(WISH, as_wished(tap=Link(TAP, bridge="br9", guard=True))) == [
        f"link set dev {TAP} master {BRIDGE}",
        f"link set dev {TAP} type bridge_slave guard on learning off",
    ]


def test_a_device_of_another_kind_in_the_ifb_s_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no ifb"):
        tctext.ip_lines(WISH, as_wished(ifb=Link(IFB, "dummy")))


def test_only_what_we_took_down_comes_up() -> None:
    taps = [Link("a", up=True), Link("b"), Link("c", alias=ISOLATED), Link("d", up=True, alias="mine")]
    assert [line.split()[3] for line in tctext.isolate_lines(taps)] == ["a", "c", "d"]
    assert [line.split()[3] for line in tctext.rejoin_lines(taps)] == ["c"]


# -- what ip and tc say

U32 = {
    "parent": "ffff:", "protocol": "all", "pref": 1, "kind": "u32", "chain": 0,
    "options": {
        "fh": "800::800", "order": 2048, "match": {"value": "0", "mask": "0", "offmask": "", "off": 0},
        "actions": [{"order": 1, "kind": "mirred", "mirred_action": "redirect", "direction": "egress", "to_dev": IFB,
                     "control_action": {"type": "stolen"}, "index": 1}],
    },
}  # fmt: skip


def changed(path: str, value: Any) -> Dict[str, Any]:
    """U32 with one member, at a path of keys, changed."""
    keys = path.split(".")
    one: Any = dict(U32)
    top = one
    for key in keys[:-1]:
        inner = one[key] if isinstance(one, dict) else one[int(key)]
        copy = dict(inner) if isinstance(inner, dict) else list(inner)
        if isinstance(one, dict):
            one[key] = copy
        else:
            one[int(key)] = copy
        one = copy
    one[keys[-1]] = value
    return dict(top)


def test_a_redirect_of_everything_is_understood() -> None:
    head = {"parent": "ffff:", "protocol": "all", "pref": 1, "kind": "u32", "chain": 0}
    assert qdiscs.redirects([head, {**head, "options": {"fh": "800:", "ht_divisor": 1}}, U32]) == (Redirect(1, 0, IFB),)
    matchall = {**head, "kind": "matchall", "options": {"actions": U32["options"]["actions"]}}  # type: ignore[index]
    assert qdiscs.redirects([head, matchall]) == (Redirect(1, 0, IFB),)
    assert qdiscs.redirects([]) == ()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("protocol", "ip"),
        ("kind", "flower"),
        ("chain", 5),
        ("options.match.mask", "ff"),
        ("options.match", {}),
        ("options.actions", []),
        ("options.actions.0.mirred_action", "mirror"),
        ("options.actions.0.direction", "ingress"),
        ("options.actions.0.kind", "gact"),
    ],
)
def test_anything_else_is_no_redirect_of_everything(path: str, value: Any) -> None:
    (one,) = qdiscs.redirects([changed(path, value)])
    assert one.to == ""


def test_a_second_action_or_a_second_match_is_not_ours() -> None:
    action = U32["options"]["actions"][0]  # type: ignore[index]
    assert qdiscs.redirects([changed("options.actions", [{"kind": "gact"}, action])])[0].to == ""
    assert qdiscs.redirects([U32, U32])[0].to == ""


def test_a_queue_is_understood_with_its_leaf_and_without() -> None:
    root = {"kind": "tbf", "handle": "1:", "root": True, "options": {"rate": 1250000, "burst": 12500, "lat": 50000}}
    leaf = {"kind": "fq_codel", "handle": "10:", "parent": "1:1", "options": {}}
    ingress = {"kind": "ingress", "handle": "ffff:", "parent": "ffff:fff1", "options": {}}
    assert qdiscs.queue([root, leaf, ingress]) == queue(IN, leaf="fq_codel", leaf_handle="10:")
    assert qdiscs.queue([root]) == queue(IN) and qdiscs.queue([]) == Queue()
    assert qdiscs.ingress([root, leaf, ingress]) == "ingress" and qdiscs.ingress([root]) == ""


def test_a_link_is_understood() -> None:
    said = {
        "ifname": TAP, "flags": ["NO-CARRIER", "UP"], "master": BRIDGE, "ifalias": ISOLATED,
        "linkinfo": {"info_kind": "tun", "info_data": {"persist": True},
                     "info_slave_data": {"guard": True, "learning": False}},
    }  # fmt: skip
    assert qdiscs.link(said) == Link(TAP, "tun", True, False, True, BRIDGE, True, ISOLATED)
    assert qdiscs.link({"ifname": "lo", "flags": []}) == Link("lo")
    assert qdiscs.link({"ifname": "lo", "flags": ["UP", "LOWER_UP"]}).carrier is True
