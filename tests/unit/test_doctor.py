"""The doctor on hosts that are tables: every check, what it finds and how it says to mend it."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from vmagent import configfile
from vmagent.config import Config
from vmagent.core.imagemodel import Boot, BootFile
from vmagent.core.policy import Volume
from vmagent.errors import Fault, FaultKind
from vmagent.local import doctor
from vmagent.local.doctor import Level, Result
from vmagent.local.doctor.findings import Owned

WALL = 1_800_000_000.0
DAY = 86400.0
TRUST = Path("/trust")
REFUSED = Fault(FaultKind.REFUSED, "not installed")
HUNG = Fault(FaultKind.UNKNOWN, "no end within 10 s")


@dataclasses.dataclass
class FakeHost:
    """A healthy host; a test changes what it is about."""

    files: Dict[str, bytes]
    owners: Dict[str, Owned]
    says: Dict[str, Any]  # first word of a command -> output, the Fault it ends with, or what gives one of them
    brokers: Dict[str, Any]  # URL -> end of validity, None, or the OSError
    free: Optional[float] = 100.0
    read_only: bool = False

    def run(self, *argv: str) -> str:
        said = self.says.get(argv[0], REFUSED)
        said = said(argv) if callable(said) else said
        if isinstance(said, Fault):
            raise said
        return str(said)

    def read(self, path: Path) -> Optional[bytes]:
        return self.files.get(str(path))

    def exists(self, path: Path) -> bool:
        below = str(path) + "/"
        known = [*self.files, *self.owners]
        return str(path) in known or any(name.startswith(below) for name in known)

    def list(self, directory: Path) -> Sequence[Path]:
        return sorted(Path(name) for name in self.files if Path(name).parent == directory)

    def owned(self, path: Path) -> Optional[Owned]:
        return self.owners.get(str(path))

    def writable(self, path: Path) -> bool:
        return not self.read_only

    def free_gib(self, path: Path) -> Optional[float]:
        return self.free

    def reach(self, url: str, config: Config) -> Optional[float]:
        found: Any = self.brokers[url]
        if isinstance(found, OSError):
            raise found
        return None if found is None else float(found)

    def wall(self) -> float:
        return WALL


def when(days: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(WALL + days * DAY, datetime.timezone.utc).replace(tzinfo=None)


KEY = ec.generate_private_key(ec.SECP256R1())


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certificate(days: float, subject: str = "CA") -> bytes:
    builder = x509.CertificateBuilder(name(subject), name(subject), KEY.public_key(), 1, when(-900), when(days))
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def crl(days: float, issuer: str = "CA") -> bytes:
    builder = x509.CertificateRevocationListBuilder(name(issuer), when(-900), when(days))
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


CAPABILITIES = {"driver": "built", "guests": [{"name": "kvm", "kind": "hvm", "boots": ["firmware"]}],
                "cpu_cap": "quota", "disk_io": True, "live_disks": True, "snapshots": {"kinds": ["disk"]},
                "bandwidth": {"qdisc": "tbf+fq_codel", "why": ""}, "firewall": {"tracking": "conntrack", "why": ""}}
LIVE: Mapping[str, Any] = {"epoch": {"id": "e", "number": 7}, "degraded": {}, "drained": False,
                           "capabilities": CAPABILITIES}
TABLES = '{"nftables": [{"metainfo": {}}, {"table": {"family": "bridge", "name": "vmagent_vma", "handle": 1}}]}'
SETTINGS = """
site: s
host: h
broker: {urls: [stomp+ssl://b1:1], login: me, passcode_file: /etc/p,
         tls: {ca: /ca, certificate: /own.pem, key: /own.key}}
security: {ca_directory: /trust}
networks: {n: {bridge: br0, addressing: controller, subnets: [192.0.2.0/24]}}
images: {catalogue: {tiny: {file: tiny.qcow2, format: qcow2, sha512: "%s"}}}
""" % ("ab" * 64)


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> Config:
    (tmp_path / "vmagent.yaml").write_text(SETTINGS)
    return configfile.read(tmp_path / "vmagent.yaml")


@pytest.fixture(name="host")
def _host() -> FakeHost:
    root = Owned("root", "root", 0o600)
    return FakeHost(
        files={
            "/run/libvirt/virtqemud-sock": b"", "/usr/bin/virsh": b"",
            "/proc/cpuinfo": b"processor\t: 0\nflags\t\t: fpu vmx sse\n",
            "/sys/fs/cgroup/cgroup.controllers": b"cpuset cpu io memory\n",
            "/sys/class/net/br0/bridge/bridge_id": b"", "/sys/class/net/br0/flags": b"0x1003\n",
            "/proc/sys/kernel/osrelease": b"6.1.0\n", "/proc/modules": b"sch_htb 1 0\n",
            "/lib/modules/6.1.0/kernel/net/sched/sch_sfq.ko.xz": b"",
            "/run/systemd/system": b"",
            "/own.pem": certificate(100), "/trust/ca.pem": certificate(1000), "/trust/ca.r0": crl(20),
        },
        owners={
            "/dev/kvm": Owned("root", "kvm", 0o660), "/own.key": root, "/etc/p": root,
            "/var/lib/vmagent/images/tiny.qcow2": Owned("root", "root", 0o644),
            "/run/vmagent/vmagent.sock": Owned("root", "root", 0o660),
        },
        says={
            "virsh": "Using library: libvirt 9.0.0\nRunning hypervisor: QEMU 7.2.22\n",
            "nft": TABLES, "tc": "tc utility", "chronyc": "Leap status     : Normal\n", "runuser": "",
            "systemctl": lambda argv: "vmagent\n" if "--property=User" in argv else "252.36-1\n",
            "id": "vmagent vmagent-admin\n",
        },
        brokers={"stomp+ssl://b1:1": WALL + 90 * DAY},
    )  # fmt: skip


def examined(config: Config, host: FakeHost, live: Optional[Mapping[str, Any]] = LIVE) -> Dict[str, Result]:
    return {result.id: result for result in doctor.run(config, live, host)}


def with_(config: Config, section: str, **changes: Any) -> Config:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **changes)})


def test_a_healthy_host_is_ok_throughout(config: Config, host: FakeHost) -> None:
    results = examined(config, host)
    assert {id: r.text for id, r in results.items() if r.level is not Level.OK} == {}
    assert doctor.worst(list(results.values())) is Level.OK
    assert "QEMU 7.2.22 (virtqemud)" in results["libvirt"].text
    assert results["tc"].text.endswith("shapes with tbf+fq_codel")
    assert "connection tracking" in results["nft"].text


def test_identifiers_are_unique_and_stable() -> None:
    assert [check.id for check in doctor.CHECKS] == [
        "agent", "socket", "store", "disk", "images", "rights", "directories", "volumes", "libvirt", "kvm",
        "virtualisation", "cgroups", "scopes", "libvirt-driver", "guests", "bridges", "broker", "nft", "guard",
        "bridge-netfilter", "tc",
        "certificate", "passcode", "ca", "crl", "clock", "accounting", "accounting-certificate",
    ]  # fmt: skip


def refusing(*last: str) -> Any:
    """A program that does all but what ends with these words."""
    return lambda argv: REFUSED if argv[-len(last):] == last else ""


FILE, OWNER, SAYS, BROKER, HOST = "files", "owners", "says", "brokers", "host"
Row = Tuple[str, str, str, Any, Level, str]
NOT_THERE = object()
TABLE: List[Row] = [
    # check, what of the host, name, its value, level, word of the finding or its mend
    ("libvirt", SAYS, "virsh", HUNG, Level.FAIL, "systemctl restart virtqemud"),
    ("libvirt", SAYS, "virsh", Fault(FaultKind.REFUSED, "virsh failed (1)"), Level.FAIL, "virtqemud.socket"),
    ("libvirt", FILE, "/run/libvirt/virtqemud-sock", NOT_THERE, Level.OK, "no libvirt socket"),
    ("kvm", OWNER, "/dev/kvm", NOT_THERE, Level.FAIL, "modprobe"),
    ("kvm", OWNER, "/dev/kvm", Owned("root", "root", 0o600), Level.FAIL, "chown root:kvm /dev/kvm"),
    ("kvm", OWNER, "/dev/kvm", Owned("root", "kvm", 0o600), Level.FAIL, "chmod 660"),
    ("kvm", OWNER, "/dev/kvm", Owned("root", "root", 0o660), Level.FAIL, "group root"),
    ("kvm", OWNER, "/dev/kvm", Owned("root", "kvm", 0o666), Level.OK, "kvm"),
    ("virtualisation", FILE, "/proc/cpuinfo", b"flags : fpu sse\n", Level.FAIL, "emulation: allow"),
    ("virtualisation", FILE, "/proc/cpuinfo", b"flags : svm\n", Level.OK, "svm"),
    ("virtualisation", FILE, "/proc/cpuinfo", b"Features : fp asimd\n", Level.UNKNOWN, "virt-host-validate"),
    ("cgroups", FILE, "/sys/fs/cgroup/cgroup.controllers", b"cpuset io\n", Level.FAIL, "cpu controller"),
    ("cgroups", FILE, "/sys/fs/cgroup/cgroup.controllers", NOT_THERE, Level.FAIL, "no cpu controller"),
    ("bridges", FILE, "/sys/class/net/br0/flags", b"0x1002\n", Level.FAIL, "ip link set br0 up"),
    ("bridges", FILE, "/sys/class/net/br0/flags", b"junk", Level.FAIL, "down"),
    ("bridges", FILE, "/sys/class/net/br0/bridge/bridge_id", NOT_THERE, Level.FAIL, "no bridge"),
    ("broker", BROKER, "stomp+ssl://b1:1", OSError("refused"), Level.FAIL, "start the broker"),
    ("broker", BROKER, "stomp+ssl://b1:1", WALL + 3 * DAY, Level.WARN, "expires in 3 days"),
    ("broker", BROKER, "stomp+ssl://b1:1", WALL - 3 * DAY, Level.FAIL, "expired 3 days ago"),
    ("broker", BROKER, "stomp+ssl://b1:1", None, Level.OK, "answers"),
    ("nft", SAYS, "nft", REFUSED, Level.FAIL, "install nftables"),
    ("nft", SAYS, "nft", "table bridge x", Level.FAIL, "JSON"),
    ("guard", SAYS, "nft", '{"nftables": []}', Level.FAIL, "systemctl start vmagent-guard.service"),
    ("guard", SAYS, "nft", TABLES.replace("vmagent_vma", "vmagent_other"), Level.FAIL, "vmagent_vma is not loaded"),
    ("guard", SAYS, "nft", TABLES.replace("bridge", "inet"), Level.FAIL, "not loaded"),
    ("guard", SAYS, "nft", REFUSED, Level.UNKNOWN, "`nft`"),
    ("guard", SAYS, "systemctl", REFUSED, Level.WARN, "systemctl enable vmagent-guard.service"),
    ("guard", SAYS, "systemctl", HUNG, Level.UNKNOWN, "systemd"),
    ("guard", FILE, "/run/systemd/system", NOT_THERE, Level.WARN, "vmagent --guard"),
    ("bridge-netfilter", FILE, "/proc/sys/net/bridge/bridge-nf-call-iptables", b"0\n", Level.OK, "off"),
    ("bridge-netfilter", FILE, "/proc/sys/net/bridge/bridge-nf-call-iptables", b"1\n", Level.WARN,
     "net.bridge.bridge-nf-call-iptables=0"),
    ("bridge-netfilter", FILE, "/proc/sys/net/bridge/bridge-nf-call-arptables", b"1\n", Level.WARN, "arptables=0"),
    ("scopes", SAYS, "systemctl", REFUSED, Level.WARN, "system bus"),
    ("scopes", SAYS, "systemctl", "junk", Level.UNKNOWN, "systemctl --version"),
    ("scopes", FILE, "/run/systemd/system", NOT_THERE, Level.OK, "does not run here"),
    ("tc", SAYS, "tc", REFUSED, Level.FAIL, "iproute"),
    ("certificate", FILE, "/own.pem", certificate(5), Level.WARN, "expires in 5 days"),
    ("certificate", FILE, "/own.pem", certificate(-5), Level.FAIL, "renew"),
    ("certificate", FILE, "/own.pem", b"junk", Level.FAIL, "PEM"),
    ("certificate", FILE, "/own.pem", NOT_THERE, Level.FAIL, "PEM"),
    ("certificate", OWNER, "/own.key", Owned("root", "root", 0o640), Level.FAIL, "chmod 600 /own.key"),
    ("certificate", OWNER, "/own.key", Owned("root", "vmagent", 0o640), Level.OK, "valid"),
    ("certificate", OWNER, "/own.key", Owned("root", "vmagent", 0o660), Level.FAIL, "chmod 640 /own.key"),
    ("rights", SAYS, "systemctl", "root\n", Level.OK, "runs as root"),
    ("rights", SAYS, "systemctl", REFUSED, Level.OK, "runs as root"),
    ("rights", SAYS, "runuser", REFUSED, Level.UNKNOWN, "run the doctor as root"),
    ("rights", SAYS, "runuser", refusing("/own.pem"), Level.FAIL, "chgrp vmagent /own.pem"),
    ("rights", SAYS, "runuser", refusing("-w", "/var/lib/vmagent"), Level.FAIL, "chown vmagent: /var/lib/vmagent"),
    ("rights", SAYS, "runuser", refusing("version"), Level.FAIL, "usermod -aG libvirt vmagent"),
    ("rights", SAYS, "runuser", lambda argv: HUNG if "virsh" in argv else "", Level.OK, "may do all"),
    ("passcode", OWNER, "/etc/p", Owned("root", "root", 0o644), Level.FAIL, "chmod 600 /etc/p"),
    ("passcode", OWNER, "/etc/p", NOT_THERE, Level.FAIL, "missing"),
    ("ca", FILE, "/trust/ca.pem", NOT_THERE, Level.FAIL, "no command is believed"),
    ("ca", FILE, "/trust/ca.pem", b"junk", Level.WARN, "holds no certificate"),
    ("ca", FILE, "/trust/ca.pem", certificate(1), Level.WARN, "expires"),
    ("crl", FILE, "/trust/ca.r0", NOT_THERE, Level.FAIL, "fetch-crl"),
    ("crl", FILE, "/trust/ca.r0", crl(-1), Level.FAIL, "expired 1 days ago"),
    ("crl", FILE, "/trust/ca.r0", crl(2), Level.WARN, "expires in 2 days"),
    ("crl", FILE, "/trust/ca.r0", crl(20, "Other CA"), Level.FAIL, "no revocation list"),
    ("crl", FILE, "/trust/newer.crl", crl(90), Level.OK, "valid"),
    ("crl", FILE, "/trust/ca.pem", NOT_THERE, Level.UNKNOWN, "`ca`"),
    ("clock", SAYS, "chronyc", "Leap status     : Not synchronised\n", Level.WARN, "chronyd"),
    ("clock", SAYS, "chronyc", REFUSED, Level.UNKNOWN, "neither"),
    ("disk", HOST, "free", 4.0, Level.FAIL, "the floor is 5"),
    ("disk", HOST, "free", 9.0, Level.WARN, "soon"),
    ("disk", HOST, "free", None, Level.FAIL, "images.overlays"),
    ("store", HOST, "read_only", True, Level.FAIL, "mount it writable"),
    ("images", OWNER, "/var/lib/vmagent/images/tiny.qcow2", NOT_THERE, Level.FAIL, "missing"),
    ("images", OWNER, "/var/lib/vmagent/images/tiny.qcow2", Owned("qemu", "qemu", 0o644), Level.FAIL, "chown root:"),
    ("images", OWNER, "/var/lib/vmagent/images/tiny.qcow2", Owned("root", "root", 0o666), Level.FAIL, "go-w"),
    ("images", OWNER, "/var/lib/vmagent/images/tiny.qcow2", Owned("root", "root", 0o600), Level.FAIL, "chmod 644"),
    ("socket", OWNER, "/run/vmagent/vmagent.sock", NOT_THERE, Level.FAIL, "does not exist"),
]


@pytest.mark.parametrize("row", TABLE, ids=[f"{row[0]}: {row[2]} {row[4].value} {row[5]}" for row in TABLE])
def test_a_sick_part_is_found_and_a_mend_is_said(config: Config, host: FakeHost, row: Row) -> None:
    check, what, key, value, level, word = row
    if what == HOST:
        host = dataclasses.replace(host, **{key: value})
    elif value is NOT_THERE:
        del getattr(host, what)[key]
    else:
        getattr(host, what)[key] = value
    result = examined(config, host)[check]
    assert result.level is level, result
    assert word in f"{result.text} {result.mend}", result
    assert bool(result.mend) == (level is not Level.OK), result


def test_the_certificate_s_end_is_read_the_same_way_by_every_version(config: Config, host: FakeHost) -> None:
    assert "valid for 100 days" in examined(config, host)["certificate"].text


def test_without_a_daemon_everything_else_is_examined(config: Config, host: FakeHost) -> None:
    results = examined(config, host, live=None)
    assert results["agent"].level is Level.FAIL
    assert results["store"].level is Level.UNKNOWN
    assert results["libvirt"].level is Level.OK


def test_what_the_daemon_says_of_itself_is_told(config: Config, host: FakeHost) -> None:
    live = {"epoch": {"number": 1}, "degraded": {"broker": "away"}, "drained": True}
    agent = examined(config, host, live)["agent"]
    assert agent.level is Level.WARN
    assert "broker is degraded: away" in agent.text and "drained" in agent.text and "undrain" in agent.mend


@pytest.mark.parametrize(
    ("check", "part", "found", "level", "word"),
    [
        ("nft", "firewall", {"tracking": "sets", "why": "Protocol error"}, Level.OK, "sets with time-outs"),
        ("nft", "firewall", {"tracking": "none", "why": "Operation not supported"}, Level.FAIL, "not supported"),
        ("tc", "bandwidth", {"qdisc": "", "why": "tbf: unknown qdisc"}, Level.WARN, "tbf: unknown qdisc"),
    ],
)
def test_what_the_daemon_found_by_trying_is_told(
    config: Config, host: FakeHost, check: str, part: str, found: Mapping[str, str], level: Level, word: str
) -> None:
    result = examined(config, host, {**LIVE, "capabilities": {**CAPABILITIES, part: found}})[check]
    assert result.level is level and word in result.text, result


def test_without_a_daemon_modules_tell_what_the_kernel_could_do(config: Config, host: FakeHost) -> None:
    assert examined(config, host, live=None)["tc"].text.endswith("htb, sfq")
    assert "by trying" in examined(config, host, live=None)["nft"].text
    host.files["/lib/modules/6.1.0/kernel/net/bridge/netfilter/nf_conntrack_bridge.ko.xz"] = b""
    assert "has connection tracking" in examined(config, host, live=None)["nft"].text
    host.files["/proc/modules"] = b""
    tc = examined(config, host, live=None)["tc"]
    assert tc.level is Level.WARN and "sch_tbf" in tc.mend


def test_an_older_daemon_says_nothing_of_capabilities(config: Config, host: FakeHost) -> None:
    live = {name: value for name, value in LIVE.items() if name != "capabilities"}
    assert examined(config, host, live)["nft"].level is Level.OK


def test_emulation_that_is_allowed_is_a_warning(config: Config, host: FakeHost) -> None:
    del host.owners["/dev/kvm"]
    host.files["/proc/cpuinfo"] = b"flags : fpu\n"
    results = examined(with_(config, "hypervisor", emulation="allow"), host)
    assert {results["kvm"].level, results["virtualisation"].level} == {Level.WARN}


@pytest.mark.parametrize(("type_", "level"), [(b"xen\n", Level.OK), (None, Level.FAIL)])
def test_a_xen_host_needs_no_kvm(config: Config, host: FakeHost, type_: Optional[bytes], level: Level) -> None:
    del host.owners["/dev/kvm"]
    if type_:
        host.files["/sys/hypervisor/type"] = type_
    results = examined(with_(config, "hypervisor", uri="xen:///system"), host)
    assert (results["kvm"].level, results["virtualisation"].level) == (Level.OK, level)


def test_libvirtd_and_a_missing_virsh(config: Config, host: FakeHost) -> None:
    del host.files["/run/libvirt/virtqemud-sock"]
    host.files["/run/libvirt/libvirt-sock"] = b""
    assert "(libvirtd)" in examined(config, host)["libvirt"].text
    del host.files["/usr/bin/virsh"]
    host.says["virsh"] = REFUSED
    result = examined(config, host)["libvirt"]
    assert result.level is Level.UNKNOWN and "libvirt-client" in result.mend


def test_cgroup_version_1(config: Config, host: FakeHost) -> None:
    del host.files["/sys/fs/cgroup/cgroup.controllers"]
    host.files["/sys/fs/cgroup/cpu,cpuacct/cgroup.procs"] = b""
    assert "version 1" in examined(config, host)["cgroups"].text


def test_one_broker_of_two_is_enough_but_told(config: Config, host: FakeHost) -> None:
    host.brokers["stomp+ssl://b2:1"] = OSError("no route")
    result = examined(with_(config, "broker", urls=("stomp+ssl://b1:1", "stomp+ssl://b2:1")), host)["broker"]
    assert result.level is Level.WARN and "b2" in result.text and "b1" not in result.text


def test_unsigned_commands_are_a_warning_and_need_no_crl(config: Config, host: FakeHost) -> None:
    host.files = {name: raw for name, raw in host.files.items() if not name.startswith("/trust")}
    results = examined(with_(config, "security", commands="broker"), host)
    assert (results["ca"].level, results["crl"].level) == (Level.WARN, Level.OK)


def test_a_missing_crl_that_is_tolerated(config: Config, host: FakeHost) -> None:
    del host.files["/trust/ca.r0"]
    assert examined(with_(config, "security", crl="when_present"), host)["crl"].level is Level.WARN


def test_no_tls_is_a_warning(config: Config, host: FakeHost) -> None:
    assert examined(with_(config, "broker", tls=None), host)["certificate"].level is Level.WARN


def test_timedatectl_where_chrony_is_not(config: Config, host: FakeHost) -> None:
    host.says.update(chronyc=REFUSED, timedatectl="NTPSynchronized=yes\n")
    assert examined(config, host)["clock"].level is Level.OK


def test_a_socket_of_another_group(config: Config, host: FakeHost) -> None:
    result = examined(with_(config, "socket", admin_group="vmagent-admin"), host)["socket"]
    assert result.level is Level.WARN and "restart the agent" in result.mend


def test_a_check_that_breaks_is_unknown_and_hides_no_other(config: Config, host: FakeHost) -> None:
    host.brokers.clear()  # a KeyError in the fake
    results = examined(config, host)
    assert results["broker"].level is Level.UNKNOWN
    assert len(results) == len(doctor.CHECKS)


def test_the_worst_finding_decides() -> None:
    def result(level: Level) -> Result:
        return Result("x", "x", level, "", "")

    assert doctor.worst([]) is Level.OK
    assert doctor.worst([result(Level.WARN), result(Level.UNKNOWN)]) is Level.WARN
    assert doctor.worst([result(Level.WARN), result(Level.FAIL)]) is Level.FAIL


def test_the_real_host_answers_without_harm(config: Config, tmp_path: Path) -> None:
    """Only what needs no service: files, owners, space."""
    here = doctor.ThisHost()
    file = tmp_path / "file"
    file.write_text("x")
    file.chmod(0o640)
    owned = here.owned(file)
    assert owned is not None and owned.mode == 0o640
    assert here.read(file) == b"x" and here.read(tmp_path / "none") is None
    assert here.list(tmp_path) and list(here.list(tmp_path / "none")) == []
    assert here.free_gib(tmp_path / "not/yet/there") is not None
    assert here.exists(file) and not here.exists(tmp_path / "none")


# -- what QEMU's user may open

VOLUME = Volume("data", "/srv/data/disk.raw", writable=True)
POOLED = Volume("pooled", pool="p", volume="v.raw")


class Rights:
    """`runuser -u USER -- test -WAY PATH`: users that exist, and what is closed to them."""

    def __init__(self, *closed: str, users: Sequence[str] = ("libvirt-qemu",)) -> None:
        self.closed, self.users = closed, users

    def __call__(self, argv: Sequence[str]) -> Any:
        dash, user, _, test, way, path = argv[1:]
        assert (dash, test) == ("-u", "test")
        return "" if user in self.users and f"{way} {path}" not in self.closed else REFUSED


def offering(config: Config, *volumes: Volume) -> Config:
    return with_(config, "policy", volumes={volume.name: volume for volume in volumes})


def volumes_of(config: Config, host: FakeHost, *closed: str, **kw: Any) -> Result:
    host.files["/srv/data/disk.raw"] = b""
    host.says["runuser"] = Rights(*closed, **kw)
    return examined(offering(config, VOLUME), host)["volumes"]


@pytest.mark.parametrize(("closed", "text", "mend"), [
    ("-x /srv/data", "may not pass through /srv/data", "setfacl -m u:libvirt-qemu:x /srv/data"),
    ("-x /srv", "may not pass through /srv", "setfacl -m u:libvirt-qemu:x /srv"),
    ("-r /srv/data/disk.raw", "may not read /srv/data/disk.raw", "setfacl -m u:libvirt-qemu:rw /srv/data/disk.raw"),
    ("-w /srv/data/disk.raw", "may not write /srv/data/disk.raw", "u:libvirt-qemu:rw"),
])
def test_a_volume_that_qemu_may_not_open(config: Config, host: FakeHost, closed: str, text: str, mend: str) -> None:
    result = volumes_of(config, host, closed)
    assert result.level is Level.FAIL and text in result.text and mend in result.mend, result


def test_volumes_that_qemu_may_open(config: Config, host: FakeHost) -> None:
    assert volumes_of(config, host).level is Level.OK
    assert "libvirt-qemu may open them all" in volumes_of(config, host).text
    read_only = offering(config, dataclasses.replace(VOLUME, writable=False))
    host.says["runuser"] = Rights("-w /srv/data/disk.raw")
    assert examined(read_only, host)["volumes"].level is Level.OK
    del host.files["/srv/data/disk.raw"]
    assert "does not exist" in examined(read_only, host)["volumes"].text


def test_the_user_is_whom_libvirt_was_told(config: Config, host: FakeHost) -> None:
    host.files["/etc/libvirt/qemu.conf"] = b'#user = "nobody"\nuser = "vms"\n'
    result = volumes_of(config, host, "-r /srv/data/disk.raw", users=("vms", "qemu"))
    assert "vms may not read" in result.text
    host.files["/etc/libvirt/qemu.conf"] = b'user = "+0"\n'
    assert volumes_of(config, host, "-r /srv/data/disk.raw", users=()).level is Level.OK


def test_what_cannot_be_tried_is_unknown_and_never_ok(config: Config, host: FakeHost) -> None:
    result = volumes_of(config, host, users=())
    assert result.level is Level.UNKNOWN and "as root" in result.mend
    host.says["runuser"] = lambda argv: HUNG if "-r" in argv else ""
    hung = examined(offering(config, VOLUME), host)["volumes"]
    assert hung.level is Level.UNKNOWN and "no end within" in hung.text


def test_a_volume_of_a_storage_pool_is_where_libvirt_says(config: Config, host: FakeHost) -> None:
    host.files["/pools/p/v.raw"] = b""
    host.says["runuser"] = Rights("-r /pools/p/v.raw")
    host.says["virsh"] = lambda argv: "/pools/p/v.raw\n" if "--pool=p" in argv and "--vol=v.raw" in argv else REFUSED
    result = examined(offering(config, POOLED), host)["volumes"]
    assert result.level is Level.FAIL and "/pools/p/v.raw" in result.text
    host.says["virsh"] = REFUSED
    result = examined(offering(config, POOLED), host)["volumes"]
    assert result.level is Level.FAIL and "virsh pool-start p" in result.mend


OVERLAYS = "/var/lib/vmagent/overlays"


@pytest.mark.parametrize(("owned", "closed", "mend"), [
    (Owned("libvirt-qemu", "kvm", 0o711), (), f"chown root: {OVERLAYS}"),
    (Owned("root", "root", 0o777), (), f"chmod go-w {OVERLAYS}"),
    (Owned("root", "root", 0o700), (f"-x {OVERLAYS}",), f"chmod o+x {OVERLAYS}"),
])
def test_a_directory_with_the_wrong_owner_or_mode(
    config: Config, host: FakeHost, owned: Owned, closed: Sequence[str], mend: str
) -> None:
    host.owners[OVERLAYS], host.says["runuser"] = owned, Rights(*closed)
    result = examined(config, host)["directories"]
    assert result.level is Level.FAIL and result.mend == mend, result
    if closed:
        host.says["runuser"] = REFUSED  # nobody can act as that user: the mode tells
        assert examined(config, host)["directories"].mend == mend


def test_directories_as_they_should_be(config: Config, host: FakeHost) -> None:
    assert "when the agent starts" in examined(config, host)["directories"].text
    host.owners[OVERLAYS], host.says["runuser"] = Owned("root", "root", 0o711), Rights()
    assert examined(config, host)["directories"].text == "1 directories, all as they should be"


@pytest.mark.parametrize("said,level,word", [
    ("vmagent vmagent-admin\n", Level.OK, "may do all"),
    ("vmagent\n", Level.FAIL, "usermod -aG vmagent-admin vmagent"),
    (REFUSED, Level.UNKNOWN, "groups"),
])  # fmt: skip
def test_a_socket_is_given_to_a_group_by_its_members_alone(
    config: Config, host: FakeHost, said: Any, level: Level, word: str
) -> None:
    host.says["id"] = said
    result = examined(with_(config, "socket", admin_group="vmagent-admin"), host)["rights"]
    assert result.level is level and word in f"{result.text} {result.mend}"


# ---- what can be started here


NOT_BUILT = {"capabilities": {**CAPABILITIES, "driver": "not-built", "guests": []}}
DRIVERS = "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver"
XEN = {"capabilities": {
    "driver": "built", "emulated": False, "cpu_cap": "credit", "disk_io": False, "live_disks": False,
    "snapshots": {"kinds": []},
    "guests": [{"name": "xen-hvm", "boots": ["firmware"]}, {"name": "xen-pv", "boots": ["kernel", "bootloader"]}],
}}  # fmt: skip


def test_a_libvirt_without_the_driver_is_told_as_not_built(config: Config, host: FakeHost) -> None:
    found = examined(config, host, NOT_BUILT)["libvirt-driver"]
    assert (found.level, found.text[:9]) == (Level.FAIL, "not-built")
    assert "Debian" in found.mend


@pytest.mark.parametrize(("uri", "files", "level"), [
    ("xen:///system", ["libvirt_driver_qemu.so"], Level.FAIL),
    ("xen:///system", ["libvirt_driver_libxl.so"], Level.OK),
    ("qemu+unix:///system?socket=/x", ["libvirt_driver_qemu.so"], Level.OK),
    ("xen:///system", [], Level.UNKNOWN),
    ("test:///default", [], Level.OK),
])
def test_without_the_agent_the_driver_s_file_is_looked_for(
    config: Config, host: FakeHost, uri: str, files: List[str], level: Level
) -> None:
    host.files.update({f"{DRIVERS}/{name}": b"" for name in files})
    host.files["/usr/lib/x86_64-linux-gnu"] = b""  # the fake lists what it has by name
    config = dataclasses.replace(config, hypervisor=dataclasses.replace(config.hypervisor, uri=uri))
    assert examined(config, host, None)["libvirt-driver"].level is level


def test_what_this_hypervisor_lacks_is_told(config: Config, host: FakeHost) -> None:
    found = examined(config, host, XEN)["guests"]
    assert found.level is Level.OK
    assert "xen-pv (kernel or bootloader)" in found.text
    assert found.text.endswith("not here: limits of disks, disks attached while a guest runs, snapshots")
    assert "not here" not in examined(config, host)["guests"].text
    emulated = {"capabilities": {**CAPABILITIES, "emulated": True}}
    assert examined(config, host, emulated)["guests"].level is Level.WARN
    assert examined(config, host, NOT_BUILT)["guests"].level is Level.FAIL
    assert examined(config, host, None)["guests"].level is Level.UNKNOWN


@pytest.mark.parametrize(("owned", "level", "word"), [
    (Owned("root", "root", 0o644), Level.OK, "all in place"),
    (None, Level.FAIL, "boot/vmlinuz is missing"),
    (Owned("root", "root", 0o664), Level.FAIL, "chmod go-w"),
    (Owned("qemu", "root", 0o644), Level.FAIL, "chown root:"),
])
def test_what_an_image_boots_from_is_looked_at_too(
    config: Config, host: FakeHost, owned: Optional[Owned], level: Level, word: str
) -> None:
    boot = Boot("pvh", BootFile("boot/vmlinuz", "00" * 64))
    images = {"tiny": dataclasses.replace(config.policy.images["tiny"], boot=boot)}
    if owned is not None:
        host.owners["/var/lib/vmagent/images/boot/vmlinuz"] = owned
    with_boot = dataclasses.replace(config, policy=dataclasses.replace(config.policy, images=images))
    found = examined(with_boot, host)["images"]
    assert found.level is level
    assert word in f"{found.text} {found.mend}"
