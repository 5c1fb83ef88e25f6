"""Bandwidth limits and bridge ports: what is wished for one interface, and how that differs from what is seen.

Rules

1. in = towards the guest: a tbf at the root of its interface.  out: what the guest sends is redirected at its
   interface's ingress to an ifb of its own, with a tbf at its root.  No rate, no qdisc of ours.
2. The queue below tbf is fq_codel or sfq where the kernel has them (flows share the rate fairly), else tbf's own FIFO.
3. Values are compared, never texts; names are checked here, before they become text (tctext.py).
4. htb is not used where tbf is missing: `tc -j` does not print its classes as JSON, and what cannot be read back is not
   proven.

Theory of the numbers.  A tbf passes at most `burst` bytes at once and then waits for a timer; its rate holds when the
burst is at least what comes in between two timer ticks.  HZ=100 is the coarsest tick of any distribution, hence 10 ms,
and never under three frames, or large frames would not pass.  `latency` is how long a frame may wait before the queue
is full: 50 ms, and never under 16 frames, without which TCP does not reach a slow rate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import List, Optional, Tuple

from vmagent.core import identity
from vmagent.core.model import Drift, Interface, NicLimits, VmSpec
from vmagent.core.qdiscs import GONE, Link, NicSeen, Queue, Redirect

LEAVES = ("fq_codel", "sfq", "")
"""Best first; "" is tbf's own FIFO."""
FILTERS = ("matchall", "u32")
ISOLATED = "vmagent_isolated"
"""Alias of an interface that we took down."""
SLOWEST_KBIT, FASTEST_KBIT = 1, 100_000_000
_TICK_S = 0.01
_BURST_FRAMES = 3
_LATENCY_US = 50_000
_QUEUE_FRAMES = 16
_FRAMING = 22  # bytes around an MTU: Ethernet header, one VLAN tag, checksum
_TOLERANCE = 0.01  # tc keeps bursts and latencies as time, in ticks
_DEVICE = re.compile(r"[a-z0-9]{1,15}")
_BRIDGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass(frozen=True)
class Tools:
    """What the kernel can do, found by trying."""

    leaf: str  # of LEAVES
    filter: str  # of FILTERS


@dataclass(frozen=True)
class Rate:
    """One direction's limit."""

    kbit: int
    frame_bytes: int

    @property
    def bytes_per_s(self) -> int:
        return self.kbit * 125

    @property
    def burst_bytes(self) -> int:
        return max(int(self.bytes_per_s * _TICK_S), _BURST_FRAMES * self.frame_bytes)

    @property
    def frame_us(self) -> int:
        """How long one full frame takes."""
        return self.frame_bytes * 1_000_000 // self.bytes_per_s

    @property
    def latency_us(self) -> int:
        return max(_LATENCY_US, _QUEUE_FRAMES * self.frame_us)


@dataclass(frozen=True)
class Wish:
    """One interface as it should be."""

    device: str
    ifb: str
    bridge: str
    inward: Optional[Rate] = None
    outward: Optional[Rate] = None
    mac: str = ""  # of the guest: told to the bridge, which learns nothing from its port

    @property
    def limited(self) -> bool:
        return self.inward is not None or self.outward is not None


def rate(kbit: Optional[int], mtu: int) -> Optional[Rate]:
    """None for no limit.  Errors: ValueError outside SLOWEST_KBIT to FASTEST_KBIT."""
    if kbit is None:
        return None
    if not SLOWEST_KBIT <= kbit <= FASTEST_KBIT:
        raise ValueError(f"{kbit} kbit/s is not a bandwidth from {SLOWEST_KBIT} to {FASTEST_KBIT}")
    return Rate(kbit, mtu + _FRAMING)


def wishes(instance: str, spec: VmSpec) -> Tuple[Wish, ...]:
    """One per interface.  Errors: ValueError, for a device that is not ours or a value that cannot be."""
    if len(spec.limits.nics) != len(spec.interfaces):
        raise ValueError(f"{len(spec.limits.nics)} limits for {len(spec.interfaces)} interfaces")
    return tuple(
        _wish(instance, interface, limits)
        for interface, limits in zip(spec.interfaces, spec.limits.nics)
    )


def _wish(instance: str, interface: Interface, limits: NicLimits) -> Wish:
    ifb = identity.shaper_name(interface.device)
    if not (_DEVICE.fullmatch(interface.device) and interface.device.startswith(instance) and ifb.startswith(instance)):
        raise ValueError(f"not an interface of {instance!r}: {interface.device!r}")
    if not _BRIDGE.fullmatch(interface.bridge):
        raise ValueError(f"not a bridge's name: {interface.bridge!r}")
    if not _MAC.fullmatch(interface.mac):
        raise ValueError(f"not a MAC address: {interface.mac!r}")
    return Wish(
        interface.device,
        ifb,
        interface.bridge,
        rate(limits.bandwidth_in_kbit, interface.mtu),
        rate(limits.bandwidth_out_kbit, interface.mtu),
        interface.mac,
    )


def drift(wish: Wish, seen: NicSeen, tools: Tools) -> Tuple[Drift, ...]:
    """What differs, in the order in which it is mended; () = as wished."""
    if seen.tap is None:
        return (Drift("missing", wish.device, "no such interface"),)
    found = {
        "bandwidth": bandwidth(wish, seen, tools),
        "port": _port(wish, seen.tap),
        "isolated": ["taken down by vmagent"] if seen.tap.alias == ISOLATED else [],
    }
    return tuple(Drift(what, wish.device, "; ".join(words)) for what, words in found.items() if words)


def bandwidth(wish: Wish, seen: NicSeen, tools: Tools) -> List[str]:
    """What differs in bandwidth, in words."""
    words = [f"in: {each}" for each in differs(wish.inward, seen.inward, tools)]
    return words + [f"out: {each}" for each in _out(wish, seen, tools)]


def differs(wanted: Optional[Rate], found: Queue, tools: Tools) -> List[str]:
    """What is wrong with one root qdisc, in words; [] = nothing."""
    if wanted is None:
        return [f"a limit of {found.bytes_per_s / 125:g} kbit/s, and none is wanted"] if ours(found) else []
    if not ours(found):
        return [f"the qdisc is {found.kind or 'missing'}, not tbf"]
    words = []
    if found.bytes_per_s != wanted.bytes_per_s:
        words.append(f"{found.bytes_per_s / 125:g} kbit/s, not {wanted.kbit}")
    if not _near(found.burst_bytes, wanted.burst_bytes):
        words.append(f"a burst of {found.burst_bytes} bytes, not {wanted.burst_bytes}")
    if not _near(found.latency_us, wanted.latency_us):
        words.append(f"a latency of {found.latency_us} us, not {wanted.latency_us}")
    if not right_leaf(found, tools):
        words.append(f"{found.leaf or 'bfifo'} below it, not {tools.leaf or 'bfifo'}")
    return words


def ours(found: Queue) -> bool:
    """Only tbf is: another qdisc on an interface without a limit is somebody's own business."""
    return found.kind == "tbf"


def _near(found: int, wanted: int) -> bool:
    return abs(found - wanted) <= wanted * _TOLERANCE


def right_leaf(found: Queue, tools: Tools) -> bool:
    """Whether the queue below it is of the kind that it should be."""
    return found.leaf == tools.leaf or (tools.leaf == "" and found.leaf == "bfifo")


def _out(wish: Wish, seen: NicSeen, tools: Tools) -> List[str]:
    if wish.outward is None:
        words = [f"{wish.ifb} is there, and no limit is wanted"] if seen.ifb else []
        return words + [f"redirected to {each.to}" for each in seen.filters if dead_end(wish, each)]
    if seen.ifb is None:
        return [f"no {wish.ifb}"]
    words = [] if seen.ifb.kind == "ifb" else [f"{wish.ifb} is no ifb"]
    if not seen.ifb.up:
        words.append(f"{wish.ifb} is down")
    words += differs(wish.outward, seen.outward, tools)
    if seen.ingress != "ingress":
        words.append(f"the ingress qdisc is {seen.ingress or 'missing'}")
    elif [each.to for each in seen.filters] != [wish.ifb]:
        words.append(f"not redirected to {wish.ifb} alone but by {_said(seen.filters)}")
    return words


def dead_end(wish: Wish, found: Redirect) -> bool:
    """A filter that would drop what the guest sends, once its ifb is gone."""
    return found.to in (wish.ifb, GONE)


def _said(filters: Tuple[Redirect, ...]) -> str:
    return ", ".join(f"filter {each.pref} to {each.to or 'elsewhere'}" for each in filters) or "no filter"


def _port(wish: Wish, tap: Link) -> List[str]:
    words = []
    if tap.bridge != wish.bridge:
        words.append(f"in {'bridge ' + tap.bridge if tap.bridge else 'no bridge'}, not {wish.bridge}")
    if not tap.guard:
        words.append("no BPDU guard, or the bridge learns from it")
    return words
