"""The lines for `ip -b`, `bridge -b` and `tc -b` from what is seen on an interface to what is wished (shaping.py).

Rules

1. Only what differs.  `ip` comes before `tc`: a redirect needs its ifb.  (When an ifb goes first, its redirect drops
   everything for that moment.)
2. A rate is changed within the qdisc; a qdisc of another kind is replaced in one step by one with another handle; a
   new filter stands before the old one goes.  So a limit once in force has no gap: what is half done drops, never
   passes.
3. Every name in a Wish was checked when it was made, every other in a line comes from the kernel's own answer.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

from vmagent.core.qdiscs import Link, NicSeen, Queue, Redirect
from vmagent.core.shaping import ISOLATED, Rate, Tools, Wish, dead_end, differs, ours, right_leaf

_HANDLES = ("1:", "2:")
_LEAF_HANDLES = ("10:", "20:")


def ip_lines(wish: Wish, seen: NicSeen) -> List[str]:
    """For `ip -b`, before `tc`: the ifb, and the bridge port.  Errors: ValueError, the ifb's name is taken."""
    lines = []
    if seen.ifb is not None and seen.ifb.kind != "ifb":
        raise ValueError(f"{wish.ifb} exists and is no ifb")
    if wish.outward is not None:
        lines += [] if seen.ifb else [f"link add name {wish.ifb} type ifb"]
        lines += [] if seen.ifb and seen.ifb.up else [f"link set dev {wish.ifb} up"]
    elif seen.ifb is not None:
        lines.append(f"link del dev {wish.ifb}")
    return lines + (_port_lines(wish, seen.tap) if seen.tap is not None else [])


def _port_lines(wish: Wish, tap: Link) -> List[str]:
    moved = tap.bridge != wish.bridge
    lines = [f"link set dev {wish.device} master {wish.bridge}"] if wish.bridge and moved else []
    if wish.bridge and (moved or not tap.guard):
        lines.append(f"link set dev {wish.device} type bridge_slave guard on learning off")
    return lines


def bridge_lines(wish: Wish, seen: NicSeen) -> List[str]:
    """For `bridge -b`, after `ip`: where the guest is.  The bridge learns nothing from a guest's port: the kernel hands
    some frames (LLDP, and BPDUs with the spanning tree on) past every hook, and would learn whatever they claim.
    Sticky: a static entry alone follows whoever uses the guest's address elsewhere, and would never come back.
    """
    tap = seen.tap
    if tap is None or not wish.bridge or (tap.guard and tap.bridge == wish.bridge):
        return []
    return [f"fdb replace {wish.mac} dev {wish.device} master static sticky"]


def tc_lines(wish: Wish, seen: NicSeen, tools: Tools) -> List[str]:
    """For `tc -b`: only what differs."""
    lines = _queue_lines(wish.device, wish.inward, seen.inward, tools)
    if wish.outward is None:
        return lines + _unredirect_lines(wish, seen)
    lines += _queue_lines(wish.ifb, wish.outward, seen.outward, tools)
    return lines + _redirect_lines(wish, seen, tools)


def _queue_lines(device: str, wanted: Optional[Rate], found: Queue, tools: Tools) -> List[str]:
    if not differs(wanted, found, tools):
        return []
    if wanted is None:
        return [f"qdisc del dev {device} root"]
    kept = ours(found) and right_leaf(found, tools)
    handle = found.handle if kept else _other(_HANDLES, found.handle)
    lines = [
        f"qdisc replace dev {device} root handle {handle} tbf rate {wanted.kbit}kbit"
        f" burst {wanted.burst_bytes} latency {wanted.latency_us}us"
    ]
    if tools.leaf:
        leaf_handle = found.leaf_handle if kept else _other(_LEAF_HANDLES, found.leaf_handle)
        lines.append(f"qdisc replace dev {device} parent {handle}1 handle {leaf_handle} {_leaf(tools.leaf, wanted)}")
    return lines


def _other(handles: Tuple[str, ...], taken: str) -> str:
    return next(each for each in handles if each != taken)


def _leaf(kind: str, wanted: Rate) -> str:
    """fq_codel: a target under the time of one frame would drop everything of a slow flow; both: memory is bounded."""
    frames = wanted.bytes_per_s * wanted.latency_us // 1_000_000 // wanted.frame_bytes
    if kind == "sfq":
        return f"sfq perturb 10 limit {min(max(127, frames), 4096)}"
    target_us = max(5000, wanted.frame_us * 3 // 2)
    limit = min(max(256, 4 * frames), 10240)
    return f"fq_codel limit {limit} target {target_us}us interval {95_000 + target_us}us"


def _redirect_lines(wish: Wish, seen: NicSeen, tools: Tools) -> List[str]:
    device, lines, filters = wish.device, [], seen.filters
    if seen.ingress not in ("", "ingress"):
        lines.append(f"qdisc del dev {device} {seen.ingress}")
    if seen.ingress != "ingress":
        lines.append(f"qdisc add dev {device} ingress")
        filters = ()
    right = [each for each in filters if each.to == wish.ifb][:1]
    if not right:
        lines.append(_redirect(wish, tools, _free(filters)))
    return lines + _filters_gone(device, [each for each in filters if each not in right])


def _free(filters: Tuple[Redirect, ...]) -> int:
    taken = {each.pref for each in filters}
    return next(pref for pref in range(1, len(taken) + 2) if pref not in taken)


def _redirect(wish: Wish, tools: Tools, pref: int) -> str:
    every = "matchall" if tools.filter == "matchall" else "u32 match u32 0 0"
    return (
        f"filter add dev {wish.device} parent ffff: protocol all pref {pref} {every}"
        f" action mirred egress redirect dev {wish.ifb}"
    )


def _filters_gone(device: str, filters: List[Redirect]) -> List[str]:
    return [f"filter del dev {device} parent ffff: pref {each.pref} chain {each.chain}" for each in filters]


def _unredirect_lines(wish: Wish, seen: NicSeen) -> List[str]:
    """Only what is ours: somebody's own filter without a limit of ours stays."""
    own = [each for each in seen.filters if dead_end(wish, each)]
    if own and len(own) == len(seen.filters) and seen.ingress == "ingress":
        return [f"qdisc del dev {wish.device} ingress"]
    return _filters_gone(wish.device, own)


def isolate_lines(taps: List[Link]) -> List[str]:
    """Down, and marked as ours.  One that somebody else took down stays theirs, and stays down."""
    return [f"link set dev {tap.name} down alias {ISOLATED}" for tap in taps if tap.up or tap.alias == ISOLATED]


def rejoin_lines(taps: List[Link]) -> List[str]:
    """Up again, those that we took down."""
    return [f'link set dev {tap.name} up alias ""' for tap in taps if tap.alias == ISOLATED]
