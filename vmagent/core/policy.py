"""The site's policy as values: what the configuration becomes, and what admission and authority read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Optional, Tuple


@dataclass(frozen=True)
class Flavour:
    """A named size."""

    cores: int
    memory_mib: int
    disk_gib: int
    cpu_cap_core_percent: Optional[int] = None


@dataclass(frozen=True)
class NetworkType:
    """A network that the site offers.

    addressing: "controller" (the command names the addresses) | "host-pool" (ranges exclusive to this host)
    | "slaac-eui64" (IPv6 from the prefix and the MAC).
    subnets: "192.0.2.0/24", "2001:db8::/64"; pools: "192.0.2.100-192.0.2.150"; gateways: at most one per family.
    """

    name: str
    bridge: str
    addressing: str
    subnets: Tuple[str, ...]
    pools: Tuple[str, ...] = ()
    gateways: Tuple[str, ...] = ()
    dns: Tuple[str, ...] = ()
    mtu: int = 1500


@dataclass(frozen=True)
class Maxima:
    """The most one VM (or, `count`, one command) may ask for."""

    cores: int
    memory_mib: int
    disk_gib: int
    lifetime_s: int
    count: int
    cpu_cap_core_percent: Optional[int] = None  # None = a VM may go without a cap


@dataclass(frozen=True)
class Authority:
    """One row of the authority table (PROTOCOL 3); what no row grants is denied.

    signer: the certificate's subject, compared as a list of RDNs, or "sha256:<hex>" of the certificate (x5t#S256).
    verbs, vos, networks, flavours: shell-style patterns; scope: "own" | "vo" | "all".
    """

    signer: str
    verbs: Tuple[str, ...]
    vos: Tuple[str, ...] = ("*",)
    networks: Tuple[str, ...] = ("*",)
    flavours: Tuple[str, ...] = ("*",)
    scope: str = "own"
    maxima: Optional[Maxima] = None


@dataclass(frozen=True)
class CatalogueImage:
    """A golden image that the site's catalogue knows."""

    id: str
    file: str  # relative to the image directory
    format: str  # raw | qcow2
    sha512: str
    minimum_disk_gib: int = 1


@dataclass(frozen=True)
class Policy:
    """Everything that decides what may be asked of this host."""

    site: str
    host: str
    instance: str
    networks: Mapping[str, NetworkType]
    flavours: Mapping[str, Flavour]
    maxima: Maxima
    images: Mapping[str, CatalogueImage]
    authority: Tuple[Authority, ...]
    reply_prefixes: Tuple[str, ...]
    default_reply: str
    cpu_overcommit: float = 1.0  # promised cores / host cores
    reserved_memory_mib: int = 1024
    disk_floor_gib: int = 5
    grace_s: int = 60
    warn_before_s: Tuple[int, ...] = (3600, 600, 60)
    clock_skew_s: int = 300
