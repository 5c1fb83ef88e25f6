"""What the site and the two guests of `traffic.Ground` allow; how a test module gets its ground, guarded and not."""

from __future__ import annotations

import dataclasses
from typing import Iterator, Tuple

from tests.support.traffic import Case, Ground
from vmagent.core.model import Firewall, NicLimits, Rule
from vmagent.core.policy import SiteFirewall

SITE = SiteFirewall(
    Firewall(
        inbound=(
            Rule("deny", cidr="198.18.102.0/24"),
            Rule("deny", cidr="fd99::66:0/112"),
            Rule("deny", "udp", ((111, 111),)),
            Rule("allow", "tcp", ((2222, 2222),), "10.77.0.200/32"),
        ),
        outbound=(
            Rule("deny", cidr="10.77.0.250/32"),
            Rule("deny", cidr="fd77::250/128"),
            Rule("deny", "tcp", ((25, 25),)),
            Rule("allow", "udp", ((123, 123),)),
        ),
    ),
    local=("10.77.0.0/24", "fd77::/64"),
)
A_RULES = Firewall(
    outbound=(
        Rule("allow", "tcp", ((25, 25),)),
        Rule("allow", cidr="10.77.0.250/32"),
        Rule("deny", "tcp", ((23, 23),)),
        Rule("deny", "tcp", ((6000, 6010), (7000, 7000))),
        Rule("deny", "udp", ((123, 123), (1000, 1999))),
        Rule("allow", cidr="198.18.9.9/32"),
        Rule("deny", cidr="198.18.9.0/24"),
        Rule("deny", "icmp", cidr="198.18.10.0/24"),
        Rule("deny", "tcp", ((443, 443),), "fd99::b:0/112"),
        Rule("deny", cidr="fd99::c:0/112"),
        Rule("deny", "icmpv6", cidr="fd99::d:0/112"),
    )
)
B_RULES = Firewall(
    inbound=(
        Rule("deny", "tcp", ((8005, 8005),)),
        Rule("allow", "tcp", ((80, 80), (8000, 8010))),
        Rule("allow", "udp", ((53, 53),), "10.77.0.0/24"),
        Rule("allow", "udp", ((53, 53),), "fd77::/64"),
        Rule("allow", "udp", ((111, 111), (30000, 30010))),
        Rule("allow", "icmp", cidr="198.18.1.0/24"),
        Rule("allow", "icmpv6", cidr="fd99::1:0/112"),
        Rule("allow", cidr="198.18.2.0/24"),
        Rule("allow", cidr="fd99::2:0/112"),
        Rule("allow", "tcp", ((443, 443),), "198.18.102.0/24"),
        Rule("deny"),
        Rule("allow", "tcp", ((9, 9),)),
    ),
    outbound=(
        Rule("deny", cidr="198.18.5.0/24"),
        Rule("deny", cidr="fd99::5:0/112"),
    ),
)
GUARDS = {"a": NicLimits(firewall=A_RULES), "b": NicLimits(firewall=B_RULES)}


WAYS = ("guarded", "unguarded", "shaped")
"""How a ground is: with our rules; without any; with our rules and bandwidth limits, through an ifb on the way out."""


def grounds(instance: str, way: str) -> Iterator[Ground]:
    """The body of a module's fixture: one ground for all its cases."""
    kbit = 1_000_000 if way == "shaped" else None
    guards = {
        end: dataclasses.replace(nic, bandwidth_in_kbit=kbit, bandwidth_out_kbit=kbit) for end, nic in GUARDS.items()
    }
    made = Ground(instance, guards, SITE, way != "unguarded")
    try:
        if way == "shaped":
            made.shape()
        yield made
    finally:
        made.close()


def judge(ground: Ground, way: str, case: Case) -> None:
    """As the table says; and without rules of ours everything arrives, so that a denied case proves our rule."""
    passed = ground.passes(case)
    if way != "unguarded":
        assert passed == case.passes
    elif not case.without:
        assert passed


def checked(cases: Tuple[Case, ...]) -> Tuple[Case, ...]:
    """Ids are unique; a frame can be told from all others."""
    ids = [case.id for case in cases]
    assert len(set(ids)) == len(ids), sorted(each for each in ids if ids.count(each) > 1)
    return cases
