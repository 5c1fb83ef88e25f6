"""Checks of the network: bridges, nft and what it guards, tc, the broker."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
from pathlib import Path
from typing import Any, FrozenSet, List, Mapping, Optional, Set, Tuple

from vmagent.errors import Fault, FaultKind
from vmagent.local.doctor.findings import SYSTEMD, Check, Facts, Finding, expiry, fail, joined, ok, unknown, warn

QDISCS = ("htb", "tbf", "sfq", "fq_codel", "ingress", "clsact")
TRACKING = {"conntrack": "the kernel's connection tracking for bridges",
            "sets": "our own sets with time-outs: this kernel has no connection tracking for bridges"}
TABLE = "vmagent_"  # and the instance
GUARD_UNIT = "vmagent-guard.service"
NETFILTER = Path("/proc/sys/net/bridge")
HANDED_ON = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables")
MODULES = "install the kernel's extra modules (sch_tbf, sch_htb, ifb, act_mirred), then restart the agent"
_NET = Path("/sys/class/net")
_IFF_UP = 1


def bridges(facts: Facts) -> Finding:
    names = sorted({network.bridge for network in facts.config.policy.networks.values()})
    nothing = ok("no network is configured: guests have none")
    return joined([_bridge(facts, name) for name in names], nothing)


def _bridge(facts: Facts, name: str) -> Finding:
    if not facts.host.exists(_NET / name):
        return fail(f"there is no interface {name}", f"ip link add {name} type bridge, or the host's own network setup")
    if not facts.host.exists(_NET / name / "bridge"):
        return fail(f"{name} is no bridge", "name a bridge in networks.*.bridge")
    flags = (facts.host.read(_NET / name / "flags") or b"0").decode("ascii", "replace").strip()
    if not re.fullmatch("0x[0-9a-f]+", flags) or not int(flags, 16) & _IFF_UP:
        return fail(f"{name} is down", f"ip link set {name} up")
    return ok(f"{name} is up")


def _tables(facts: Facts) -> FrozenSet[Tuple[str, str]]:
    """(family, name) of every table.  Faults as `Host.run`; ValueError, KeyError, TypeError: nft says no JSON."""
    listed = json.loads(facts.host.run("nft", "-j", "list", "tables"))["nftables"]
    return frozenset((entry["table"]["family"], entry["table"]["name"]) for entry in listed if "table" in entry)


def nft(facts: Facts) -> Finding:
    """That it works, and by what the replies to a guest's own connections are known."""
    try:
        tables = _tables(facts)
    except Fault as fault:
        return fail(f"nft does not work: {fault.detail}", "install nftables; run as root or with CAP_NET_ADMIN")
    except (ValueError, KeyError, TypeError):
        return fail("nft -j does not say JSON", "install an nftables built with JSON")
    found = f"nft works; {len(tables)} tables now"
    enforced = _enforced(facts, "firewall")
    if enforced is None:
        return ok(f"{found}; {_module(facts)}")
    if enforced["tracking"] == "none":
        return fail(f"{found}, but the agent's rules do not: {enforced['why']}",
                    "load nf_tables with the bridge family; until then no guest with an interface starts")
    return ok(f"{found}; replies are known by {TRACKING.get(enforced['tracking'], enforced['tracking'])}")


def _enforced(facts: Facts, what: str) -> Optional[Mapping[str, Any]]:
    """What the running agent found by trying; None when it does not run."""
    found: Optional[Mapping[str, Any]] = ((facts.live or {}).get("capabilities") or {}).get(what)
    return found


def _module(facts: Facts) -> str:
    release = _release(facts)
    lying = facts.host.list(Path("/lib/modules") / release / "kernel/net/bridge/netfilter")
    loaded = b"nf_conntrack_bridge" in (facts.host.read(Path("/proc/modules")) or b"")
    if loaded or any(path.name.startswith("nf_conntrack_bridge") for path in lying):
        return "the kernel has connection tracking for bridges"
    return "no module nf_conntrack_bridge is seen: the agent finds out by trying whether the kernel has it built in"


def guard(facts: Facts) -> Finding:
    """The default drop for our interfaces, which must be there before libvirt can start any guest."""
    name = f"{TABLE}{facts.config.policy.instance}"
    try:
        loaded = ("bridge", name) in _tables(facts)
    except (Fault, ValueError, KeyError, TypeError):
        return unknown("nft does not say which tables there are", "see the check `nft`")
    if not loaded:
        return fail(f"the table bridge {name} is not loaded: nothing drops what our interfaces send without rules",
                    f"systemctl start {GUARD_UNIT}, or start the agent: it loads the table too")
    if not facts.host.exists(SYSTEMD):
        return warn(f"the table bridge {name} is loaded; systemd does not run here, so nothing loads it at boot",
                    "have the host's own start-up run `vmagent --guard` before libvirt")
    try:
        facts.host.run("systemctl", "is-enabled", GUARD_UNIT)
    except Fault as fault:
        if fault.kind is FaultKind.UNKNOWN:
            return unknown(f"systemctl does not say whether {GUARD_UNIT} is enabled", "see whether systemd is well")
        return warn(f"the table bridge {name} is loaded, but {GUARD_UNIT} is not enabled: after a boot it comes late",
                    f"systemctl enable {GUARD_UNIT}")
    return ok(f"the table bridge {name} is loaded; {GUARD_UNIT} loads it before libvirt at boot")


def bridge_netfilter(facts: Facts) -> Finding:
    """br_netfilter hands bridged packets to the host's own IP rules, beside ours."""
    said = {name: facts.host.read(NETFILTER / name) for name in HANDED_ON}
    if not any(said.values()):
        return ok("br_netfilter is not loaded: bridged frames pass our rules only")
    on = [name for name, value in said.items() if value is not None and value.strip() != b"0"]
    if not on:
        return ok("br_netfilter is loaded and off: bridged frames pass our rules only")
    return warn(f"{', '.join(on)}: guests' packets pass the host's own IP rules and its connection tracking as well; "
                "these may drop what ours allow, and one guest can fill that table for all",
                "sysctl -w " + " ".join(f"net.bridge.{name}=0" for name in on) + ", and the same in /etc/sysctl.d; "
                "or unload br_netfilter, unless something else on this host needs it")


def tc(facts: Facts) -> Finding:
    """What shapes was found by the running agent by trying; without it, what the kernel could load is listed."""
    try:
        facts.host.run("tc", "-V")
    except Fault as fault:
        return fail(f"tc does not work: {fault.detail}", "install iproute-tc (EL) or iproute2 (Debian)")
    enforced = _enforced(facts, "bandwidth")
    if enforced is not None:
        if not enforced["qdisc"]:
            return warn(f"tc is there, but no qdisc shapes: {enforced['why']}; bandwidth limits are refused", MODULES)
        return ok(f"tc works; the agent shapes with {enforced['qdisc']}")
    known = _qdiscs(facts)
    if not known:
        return unknown("tc is there; the kernel does not tell its qdiscs", "try `tc qdisc add dev IF root tbf` by hand")
    if not known & {"htb", "tbf"}:
        return warn(f"tc is there; qdiscs found: {', '.join(sorted(known))}", MODULES)
    return ok("tc is there; qdiscs found: " + ", ".join(name for name in QDISCS if name in known))


def _release(facts: Facts) -> str:
    return (facts.host.read(Path("/proc/sys/kernel/osrelease")) or b"").decode("ascii", "replace").strip()


def _qdiscs(facts: Facts) -> Set[str]:
    """Loaded, built in, or lying in the kernel's module directory; a kernel without modules shows its configuration."""
    modules = Path("/lib/modules") / _release(facts)
    text = b"\n".join(
        facts.host.read(path) or b"" for path in (Path("/proc/modules"), modules / "modules.builtin")
    ).decode("ascii", "replace")
    text += "\n".join(path.name for path in facts.host.list(modules / "kernel/net/sched"))
    with contextlib.suppress(OSError, EOFError):
        settings = gzip.decompress(facts.host.read(Path("/proc/config.gz")) or b"").decode("ascii", "replace").lower()
        text += " ".join("sch_" + name for name in re.findall("config_net_sch_([a-z_]+)=[ym]", settings))
    return {name for name in QDISCS if re.search(rf"\bsch_{name}\b", text)}


def broker(facts: Facts) -> Finding:
    """One broker that answers is enough to work; the others are warned about."""
    away: List[Finding] = []
    near: List[Finding] = []
    for url in facts.config.broker.urls:
        try:
            until = facts.host.reach(url, facts.config)
        except OSError as error:
            mend = "start the broker, open the way to it, or correct broker.urls and broker.tls"
            away.append(fail(f"{url} cannot be reached: {error}", mend))
            continue
        if until is None:
            near.append(ok(f"{url} answers"))
        else:
            near.append(expiry(facts, f"the certificate of {url}", until, "renew the broker's certificate"))
    if near and away:
        missing = [warn(finding.text, finding.mend) for finding in away]
        return joined([*near, *missing], near[0])
    return joined(away or near, fail("no broker is configured", "set broker.urls"))


CHECKS = (
    Check("bridges", "bridges exist and are up", bridges),
    Check("broker", "the broker can be reached", broker),
    Check("nft", "nftables works", nft),
    Check("guard", "the default drop of our interfaces", guard),
    Check("bridge-netfilter", "bridged frames pass our rules only", bridge_netfilter),
    Check("tc", "traffic control works", tc),
)
