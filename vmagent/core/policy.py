"""The site's policy as values: what the configuration becomes, and what admission and authority read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Optional, Tuple

from vmagent.core.imagemodel import Boot
from vmagent.core.model import Firewall
from vmagent.core.snapshotmodel import SnapshotRules
from vmagent.core.usagemodel import AccountingRules


@dataclass(frozen=True)
class Flavour:
    """A named size.  None = the site's default."""

    cores: int
    memory_mib: int
    disk_gib: int
    cpu_cap_core_percent: Optional[int] = None
    cpu_weight: Optional[int] = None
    bandwidth_in_kbit: Optional[int] = None  # of each interface
    bandwidth_out_kbit: Optional[int] = None
    disk_read_bytes_per_s: Optional[int] = None  # of each disk
    disk_write_bytes_per_s: Optional[int] = None
    disk_read_ops_per_s: Optional[int] = None
    disk_write_ops_per_s: Optional[int] = None


@dataclass(frozen=True)
class NetworkType:
    """A network that the site offers.

    addressing: "controller" (the command names the addresses) | "host-pool" (ranges exclusive to this host)
    | "slaac-eui64" (IPv6 from the prefix and the MAC).
    subnets: "192.0.2.0/24", "2001:db8::/64"; pools: "192.0.2.100-192.0.2.150"; gateways: at most one per family.
    new_connections_per_s, destinations_per_minute: what a guest may open from here; None = not capped.
    """

    name: str
    bridge: str
    addressing: str
    subnets: Tuple[str, ...]
    pools: Tuple[str, ...] = ()
    gateways: Tuple[str, ...] = ()
    dns: Tuple[str, ...] = ()
    mtu: int = 1500
    new_connections_per_s: Optional[int] = None
    destinations_per_minute: Optional[int] = None


PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fe80::/10")
"""RFC 1918, unique local (RFC 4193), and link-local of IPv6."""


@dataclass(frozen=True)
class SiteFirewall:
    """What no guest's own rules can override.

    rules: before every guest's own, in both directions, also before replies; local: prefixes counted as site-local.
    on_failure: what becomes of a running guest whose network limits cannot be restored: "isolate" | "report".
    """

    rules: Firewall = Firewall()
    local: Tuple[str, ...] = PRIVATE
    on_failure: str = "isolate"


@dataclass(frozen=True)
class Maxima:
    """The most one VM (or, `count`, one command) may ask for.

    From cpu_cap_core_percent on, None = a VM may go without such a limit; a number = every VM has one, not above it.
    """

    cores: int
    memory_mib: int
    disk_gib: int
    lifetime_s: int
    count: int
    context_bytes: int  # user data, keys and meta-data together
    cpu_cap_core_percent: Optional[int] = None
    cpu_weight: Optional[int] = None
    bandwidth_in_kbit: Optional[int] = None  # of each interface
    bandwidth_out_kbit: Optional[int] = None
    disk_read_bytes_per_s: Optional[int] = None  # of each disk
    disk_write_bytes_per_s: Optional[int] = None
    disk_read_ops_per_s: Optional[int] = None
    disk_write_ops_per_s: Optional[int] = None


@dataclass(frozen=True)
class Minima:
    """The least; None = as little as the schema takes."""

    cores: Optional[int] = None
    memory_mib: Optional[int] = None
    disk_gib: Optional[int] = None
    cpu_cap_core_percent: Optional[int] = None
    cpu_weight: Optional[int] = None
    bandwidth_in_kbit: Optional[int] = None
    bandwidth_out_kbit: Optional[int] = None
    disk_read_bytes_per_s: Optional[int] = None
    disk_write_bytes_per_s: Optional[int] = None
    disk_read_ops_per_s: Optional[int] = None
    disk_write_ops_per_s: Optional[int] = None


@dataclass(frozen=True)
class Defaults:
    """What a VM gets where neither its request nor its flavour says anything; None = the maximum, if there is one."""

    cpu_cap_core_percent: Optional[int] = None
    cpu_weight: int = 100
    bandwidth_in_kbit: Optional[int] = None
    bandwidth_out_kbit: Optional[int] = None
    disk_read_bytes_per_s: Optional[int] = None
    disk_write_bytes_per_s: Optional[int] = None
    disk_read_ops_per_s: Optional[int] = None
    disk_write_ops_per_s: Optional[int] = None


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
    file: str  # relative to the image directory; "" = it is fetched
    format: str  # raw | qcow2 | vmdk | vdi | vhdx; a file of the site's is one of the first two
    sha512: str
    minimum_disk_gib: int = 1
    url: str = ""  # where it is fetched from; "" = it is a file of the site's
    size: int = 0  # bytes of what is fetched; 0 = not told
    boot: Optional[Boot] = None  # for guests without firmware


@dataclass(frozen=True)
class Endorser:
    """What this site says about one endorser, whatever list he signs.

    subject: his certificate's subject, compared as a list of RDNs; decision: "allow" | "deny"; vos: shell-style
    patterns of VOs whose VMs may start from his images; maximum_age_s: since his list was made; None = to its expiry.
    """

    subject: str
    decision: str = "allow"
    vos: Tuple[str, ...] = ("*",)
    maximum_age_s: Optional[int] = None


@dataclass(frozen=True)
class ListSource:
    """An image list that the site takes.  Either path or url is given.

    signature: "required" | "none" (a list of the site's own, by path only); endorsers: subjects of who may have signed
    it, nobody else; vos and maximum_age_s as Endorser's: both must allow.
    """

    identifier: str
    path: str = ""
    url: str = ""
    signature: str = "required"
    endorsers: Tuple[str, ...] = ()
    vos: Tuple[str, ...] = ("*",)
    maximum_age_s: Optional[int] = None


@dataclass(frozen=True)
class TrustPolicy:
    """Which images may start here.

    unendorsed: what may start without a list's endorsement: "deny": nothing; "site": the site's own catalogue, which is
    the site's endorsement; "request": also what a command names by URL and SHA-512, where the site takes such commands.
    """

    unendorsed: str = "site"
    lists: Tuple[ListSource, ...] = ()
    endorsers: Tuple[Endorser, ...] = ()
    refresh_s: int = 3600

    def source(self, identifier: str) -> Optional[ListSource]:
        """How the site takes this list; None = it does not."""
        return next((one for one in self.lists if one.identifier == identifier), None)


@dataclass(frozen=True)
class Volume:
    """A data volume of the site, which stays the site's.  Either path is given, or pool and volume.

    path: its file or block device; pool, volume: a storage pool of libvirt's and its name there; vos: shell-style
    patterns of VOs that may have it.
    """

    name: str
    path: str = ""
    format: str = "raw"  # raw | qcow2
    writable: bool = False
    vos: Tuple[str, ...] = ("*",)
    pool: str = ""
    volume: str = ""  # its name in the pool


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
    firewall: SiteFirewall = SiteFirewall()
    minima: Minima = Minima()
    defaults: Defaults = Defaults()
    memory_overhead_mib: int = 64  # that QEMU takes beside the guest's own, at least
    trust: TrustPolicy = TrustPolicy()
    snapshots: SnapshotRules = SnapshotRules()
    on_revoked: str = "report"  # report | pause | stop | kill: what becomes of guests whose image is distrusted
    volumes: Mapping[str, Volume] = field(default_factory=dict)
    accounting: AccountingRules = AccountingRules()
    image_requests: Tuple[str, ...] = ()  # what the URL of an image that a request names must begin with; () = none
