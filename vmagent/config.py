"""The configuration as values.  `configfile.py` reads them; every default stands once, in schema/config.json.

Layer 2 takes the part it needs from here, never the whole.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Optional, Tuple

from vmagent.core.policy import Policy


@dataclass(frozen=True)
class Directories:
    """Where the agent keeps what: state outlives a reboot, run does not."""

    state: Path  # store, epoch marker, overlays, seeds
    run: Path  # local socket


@dataclass(frozen=True)
class HypervisorSettings:
    """How libvirt is reached."""

    uri: str  # qemu:///system | xen:///system | test:///default
    emulation: str  # "forbid" | "allow": may guests run without hardware virtualisation
    pygrub: str  # "forbid" | "allow": may dom0 look for a kernel on a guest's own disk
    threads: int  # parallel control calls, 1 to 4 (FACTS F3)
    stuck_after_s: float  # a monitor call older than this makes its guest STUCK
    reconnect_max_s: float  # cap of the reconnect's full jitter


@dataclass(frozen=True)
class Tls:
    """Files of a TLS link, all PEM."""

    ca: Path
    certificate: Optional[Path]
    key: Optional[Path]


@dataclass(frozen=True)
class BrokerSettings:
    """How the site's broker is reached."""

    profile: str  # "rabbitmq" | "activemq" | "artemis"
    urls: Tuple[str, ...]  # stomp://host:61613 | stomp+ssl://host:61614, tried in random order
    virtual_host: str  # STOMP `host` header; RabbitMQ needs an existing one
    login: str
    passcode_file: Optional[Path]
    tls: Optional[Tls]
    heartbeat_s: float
    receipt_s: float  # a receipt that is later than this means a dead link
    reconnect_max_s: float
    window: int  # messages sent and not yet receipted
    max_command_kib: int  # a larger frame is poison
    client_id: str  # durable subscriptions: "vmagent.SITE.HOST"
    commands: str  # destinations, placeholders already filled
    commands_all: str
    events: str
    usage: str
    capacity: str
    telemetry: str
    spool_rows: int  # outbox bound
    spool_mib: int


@dataclass(frozen=True)
class SecuritySettings:
    """Whom to believe."""

    commands: str  # "signed" | "broker": trust the broker's login alone
    ca_directory: Path  # *.pem certificates of CAs; *.crl or *.r0 revocation lists, PEM
    crl: str  # "require" | "when_present"
    proxy_certificates: str  # "refuse" | "accept"
    certificate_warn_days: int = 14  # what ends sooner is told


@dataclass(frozen=True)
class FetchSettings:
    """How golden images are fetched."""

    parallel: int = 2
    largest_gib: int = 100  # of any image, as its source offers it
    stall_s: float = 60  # without a byte
    deadline_s: float = 14400  # of one attempt
    ca: Optional[Path] = None  # PEM; None = what the host trusts
    proxy: Optional[str] = None  # http://host:port
    files: Tuple[Path, ...] = ()  # directories that file: URLs may point below


@dataclass(frozen=True)
class CacheSettings:
    """Where fetched images are kept."""

    directory: Path
    size_gib: int = 100
    part_keep_s: float = 604800  # a download that nobody goes on with


@dataclass(frozen=True)
class ImageSettings:
    """Where golden images and the guests' own disks live."""

    directory: Path  # golden images, read-only for us
    overlays: Path
    seeds: Path
    cache: CacheSettings
    fetch: FetchSettings = FetchSettings()
    largest_disk_gib: int = 2048  # of the disk that a guest sees


@dataclass(frozen=True)
class SocketSettings:
    """Who may use the local socket.  Group names; "" = nobody but root."""

    path: Path
    admin_group: str
    reader_group: str


@dataclass(frozen=True)
class SigningPair:
    """PEM files of the host's certificate and its key."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class ApelSettings:
    """How usage is told to the grid's accounting."""

    site_name: str
    cloud_service: str
    spool: Path
    archive: Path
    publish_hours: int
    cpu_duration: str  # "wall" | "used"
    sign: Optional[SigningPair]  # None = a relay of the site signs
    destination: Optional[str]  # on the broker; None = a relay takes from the spool
    public_ip_spool: Optional[Path]
    storage_spool: Optional[Path]


@dataclass(frozen=True)
class Intervals:
    """The loop's own periods, in seconds."""

    resync_s: float  # full observation
    hold_s: float  # limits read back
    snapshot_s: float  # host.snapshot, with jitter
    host_state_s: float


@dataclass(frozen=True)
class TelemetrySettings:
    """How often guests are measured, in seconds."""

    fine_s: float  # by what the kernel counts
    coarse_s: float  # by what only the QEMU monitor tells
    period_s: float  # told once in this


@dataclass(frozen=True)
class ServerTls:
    """Files of a TLS server, PEM."""

    certificate: Path  # followed by its chain
    key: Path


@dataclass(frozen=True)
class PrometheusSettings:
    """Whom /metrics is offered to."""

    listen: Optional[Tuple[str, int]]  # address and port; None = it is not offered
    tls: Optional[ServerTls]


@dataclass(frozen=True)
class Config:
    """All of it."""

    policy: Policy
    directories: Directories
    hypervisor: HypervisorSettings
    broker: BrokerSettings
    security: SecuritySettings
    images: ImageSettings
    socket: SocketSettings
    intervals: Intervals
    telemetry: TelemetrySettings
    apel: Optional[ApelSettings]
    prometheus: PrometheusSettings
    log_level: str
    sources: Mapping[str, str]  # setting path -> file it came from, for --show-config


AT_ONCE = ("policy", "log_level", "sources")
"""Members of Config that SIGHUP puts in force; every other one waits for a restart."""
BELOW = {"apel": "accounting.apel"}
"""Members of Config that are not a section of their own -> the setting's name."""
BUILT_IN = {"site": "site", "host": "host", "instance": "instance", "default_reply": "broker.default_reply"}
"""Members of the policy that parts of the agent, and the tags of its VMs, are built around -> the setting's name."""


def reloaded(running: Config, fresh: Config) -> Tuple[Config, Tuple[str, ...]]:
    """What is in force once `fresh` was read under a running agent, and the settings in it that wait for a restart."""
    kept = {name: getattr(running.policy, name) for name in BUILT_IN}
    policy = dataclasses.replace(fresh.policy, **kept)
    waiting = [setting for name, setting in BUILT_IN.items() if getattr(fresh.policy, name) != kept[name]]
    sections = [field.name for field in dataclasses.fields(Config) if field.name not in AT_ONCE]
    waiting += [BELOW.get(name, name) for name in sections if getattr(fresh, name) != getattr(running, name)]
    return dataclasses.replace(running, policy=policy, log_level=fresh.log_level, sources=fresh.sources), tuple(waiting)
