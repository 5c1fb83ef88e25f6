"""Checks of the network: bridges, nft, tc, the broker."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
from pathlib import Path
from typing import List, Set

from vmagent.errors import Fault
from vmagent.local.doctor.findings import Check, Facts, Finding, expiry, fail, joined, ok, unknown, warn

DAY_S = 86400.0
QDISCS = ("htb", "tbf", "sfq", "fq_codel", "ingress", "clsact")
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


def nft(facts: Facts) -> Finding:
    try:
        listed = json.loads(facts.host.run("nft", "-j", "list", "tables"))["nftables"]
    except Fault as fault:
        return fail(f"nft does not work: {fault.detail}", "install nftables; run as root or with CAP_NET_ADMIN")
    except (ValueError, KeyError, TypeError):
        return fail("nft -j does not say JSON", "install an nftables built with JSON")
    return ok(f"nft works; {sum('table' in entry for entry in listed)} tables now")


def tc(facts: Facts) -> Finding:
    """Lists what the kernel could load; what is used is found by probing when a guest starts."""
    try:
        facts.host.run("tc", "-V")
    except Fault as fault:
        return fail(f"tc does not work: {fault.detail}", "install iproute-tc (EL) or iproute2 (Debian)")
    known = _qdiscs(facts)
    if not known:
        return unknown("tc is there; the kernel does not tell its qdiscs", "try `tc qdisc add dev IF root tbf` by hand")
    if not known & {"htb", "tbf"}:
        told = ", ".join(sorted(known))
        return warn(f"tc is there; qdiscs found: {told}", "install the kernel's extra modules (sch_htb, sch_tbf)")
    return ok("tc is there; qdiscs found: " + ", ".join(name for name in QDISCS if name in known))


def _qdiscs(facts: Facts) -> Set[str]:
    """Loaded, built in, or lying in the kernel's module directory; a kernel without modules shows its configuration."""
    release = (facts.host.read(Path("/proc/sys/kernel/osrelease")) or b"").decode("ascii", "replace").strip()
    modules = Path("/lib/modules") / release
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
            days = (until - facts.host.wall()) / DAY_S
            near.append(expiry(f"the certificate of {url}", days, "renew the broker's certificate"))
    if near and away:
        missing = [warn(finding.text, finding.mend) for finding in away]
        return joined([*near, *missing], near[0])
    return joined(away or near, fail("no broker is configured", "set broker.urls"))


CHECKS = (
    Check("bridges", "bridges exist and are up", bridges),
    Check("broker", "the broker can be reached", broker),
    Check("nft", "nftables works", nft),
    Check("tc", "traffic control works", tc),
)
