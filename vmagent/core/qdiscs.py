"""What `ip -j -d` and `tc -j` said, as values: interfaces, qdiscs and filters.

Rules: what is not understood is never taken for ours or for right; it becomes a value that equals no wish.  A missing
member is "" or None, not an error: versions of iproute2 differ in what they print.

Theory: one interface of a guest has up to two devices.  Its tap (a vif on Xen) carries a tbf at its root for what goes
to the guest, and at its ingress a filter that redirects what the guest sends to an ifb, which carries the other tbf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

GONE = "*"  # tc's word for the target of a redirect that was deleted: such a filter drops everything
_EVERYTHING = {"value": "0", "mask": "0"}


@dataclass(frozen=True)
class Link:
    """One interface."""

    name: str
    kind: str = ""  # "tun", "ifb", "veth", ...
    up: bool = False
    carrier: Optional[bool] = None  # None = not to be known while it is down
    persistent: bool = False  # a tap that outlives who opened it
    bridge: str = ""
    guard: bool = False  # BPDU guard of its bridge port is on, and the bridge learns no address from it
    alias: str = ""


@dataclass(frozen=True)
class Queue:
    """The root qdisc of one interface and, below it, its leaf; handle "0:" is the kernel's own default."""

    kind: str = ""
    handle: str = "0:"
    bytes_per_s: int = 0
    burst_bytes: int = 0
    latency_us: int = -1
    leaf: str = ""
    leaf_handle: str = ""


@dataclass(frozen=True)
class Redirect:
    """One filter at the ingress; `to` is "" when it is anything else than a redirect of all frames."""

    pref: int
    chain: int
    to: str


@dataclass(frozen=True)
class NicSeen:
    """All that shapes one interface of a guest."""

    tap: Optional[Link] = None
    ifb: Optional[Link] = None
    inward: Queue = Queue()
    outward: Queue = Queue()
    ingress: str = ""  # kind of the qdisc at the tap's ingress
    filters: Tuple[Redirect, ...] = ()


def link(said: Mapping[str, Any]) -> Link:
    """One object of `ip -j -d link show`."""
    flags = said.get("flags", ())
    info = said.get("linkinfo", {})
    port = info.get("info_slave_data", {})
    return Link(
        name=said["ifname"],
        kind=info.get("info_kind", ""),
        up="UP" in flags,
        carrier="LOWER_UP" in flags if "UP" in flags else None,  # NO-CARRIER comes up to a second late
        persistent=info.get("info_data", {}).get("persist") is True,
        bridge=said.get("master", ""),
        guard=port.get("guard") is True and port.get("learning") is False,
        alias=said.get("ifalias", ""),
    )


def queue(said: Sequence[Mapping[str, Any]]) -> Queue:
    """The root of one device, from its objects of `tc -j qdisc show`."""
    root = next((each for each in said if each.get("root")), None)
    if root is None:
        return Queue()
    options = root.get("options", {})
    under = next((each for each in said if each.get("parent") == f"{root['handle']}1"), {})
    return Queue(
        kind=root["kind"],
        handle=root["handle"],
        bytes_per_s=options.get("rate", 0),
        burst_bytes=options.get("burst", 0),
        latency_us=options.get("lat", -1),
        leaf=under.get("kind", ""),
        leaf_handle=under.get("handle", ""),
    )


def ingress(said: Sequence[Mapping[str, Any]]) -> str:
    """Kind of the qdisc at one device's ingress; "" = there is none."""
    return next((each["kind"] for each in said if each.get("parent") == "ffff:fff1"), "")


def redirects(said: Sequence[Mapping[str, Any]]) -> Tuple[Redirect, ...]:
    """One per filter in the objects of `tc -j filter show dev X ingress`; u32 uses up to three objects for one."""
    filters: Dict[Tuple[int, int], List[Mapping[str, Any]]] = {}
    for each in said:
        filters.setdefault((each.get("chain", 0), each["pref"]), []).append(each)
    return tuple(Redirect(pref, chain, _target(chain, parts)) for (chain, pref), parts in sorted(filters.items()))


def _target(chain: int, parts: Iterable[Mapping[str, Any]]) -> str:
    judging = [each for each in parts if "actions" in each.get("options", {})]
    if chain != 0 or len(judging) != 1 or not _takes_all(judging[0]):
        return ""
    actions = judging[0]["options"]["actions"]
    if len(actions) != 1:
        return ""
    action = actions[0]
    redirects_it = (action.get("kind"), action.get("mirred_action"), action.get("direction"))
    return str(action.get("to_dev", "")) if redirects_it == ("mirred", "redirect", "egress") else ""


def _takes_all(judging: Mapping[str, Any]) -> bool:
    if judging.get("protocol") != "all":
        return False
    if judging["kind"] == "matchall":
        return True
    match = judging["options"].get("match", {})
    return judging["kind"] == "u32" and {key: match.get(key) for key in _EVERYTHING} == _EVERYTHING
