"""Reading vmagent.yaml: strict, merged, everything wrong at once, each with its file, place and what is accepted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List

import pytest
import yaml

from vmagent import configfile
from vmagent.config import Config, reloaded
from vmagent.core import codec
from vmagent.core.imagemodel import Boot
from vmagent.core.policy import Endorser, ListSource, TrustPolicy
from vmagent.errors import Problem, Problems

HOST = "wn017.site.example.org"
MINIMAL = "site: site.example.org\nbroker: {urls: [stomp://broker:61613]}\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def main_file(tmp_path: Path, text: str = "") -> Path:
    return write(tmp_path / "vmagent.yaml", MINIMAL + text)


def read(tmp_path: Path, text: str = "") -> Config:
    return configfile.read(main_file(tmp_path, text), HOST)


def problems(path: Path, fqdn: str = HOST, **kw: Any) -> List[Problem]:
    with pytest.raises(Problems) as caught:
        configfile.read(path, fqdn, **kw)
    assert caught.value.type == "configuration"
    for problem in caught.value.problems:
        assert problem.type == "configuration"
        assert problem.fields["accepted"], problem
        assert problem.fields["file"].startswith(str(path.parent)), problem
    return list(caught.value.problems)


def places(path: Path, **kw: Any) -> List[str]:
    return sorted({str(p.fields["path"]) for p in problems(path, **kw)})


# ---- what is accepted ----


LISTS = """
images:
  unendorsed: deny
  lists_refresh_s: 600
  lists:
    - {identifier: a-list, path: /etc/a.list, endorsers: [/CN=a, "CN=b,DC=org"], vos: [atlas], maximum_age_s: 86400}
    - {identifier: own, path: /etc/own.json, signature: none, endorsers: [/CN=a]}
  endorsers:
    - {subject: /CN=c, decision: deny}
"""


def test_trust_in_images_becomes_policy_and_is_in_force_at_once(tmp_path: Path) -> None:
    fresh = read(tmp_path, LISTS)
    assert fresh.policy.trust == TrustPolicy(
        "deny",
        (ListSource("a-list", "/etc/a.list", "", "required", ("/CN=a", "CN=b,DC=org"), ("atlas",), 86400),
         ListSource("own", "/etc/own.json", "", "none", ("/CN=a",))),
        (Endorser("/CN=c", "deny"),),
        600,
    )  # fmt: skip
    now, waiting = reloaded(read(tmp_path), fresh)
    assert (now.policy.trust, waiting) == (fresh.policy.trust, ())


def test_what_would_endorse_nothing_silently_is_refused(tmp_path: Path) -> None:
    text = """
images:
  lists:
    - {identifier: a-list, path: /etc/a.list, endorsers: [nobody]}
    - {identifier: a-list, path: /etc/b.list, endorsers: [/CN=a]}
  endorsers:
    - {subject: "CN=c,DC=org"}
    - {subject: /DC=org/CN=c}
    - {subject: x}
"""
    assert places(main_file(tmp_path, text)) == [
        "images.endorsers[1].subject", "images.endorsers[2].subject", "images.lists[0].endorsers[0]",
        "images.lists[1].identifier",
    ]  # fmt: skip
    assert places(main_file(tmp_path, "images: {lists: [{identifier: a}], unendorsed: all}\n")) == [
        "images.lists[0].endorsers", "images.unendorsed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "place"),
    [
        ("{identifier: a, endorsers: [/CN=a]}", ""),
        ("{identifier: a, endorsers: [/CN=a], path: /etc/a, url: https://lists.example.org/a}", ""),
        ("{identifier: a, endorsers: [/CN=a], url: http://lists.example.org/a}", ".url"),
        ("{identifier: a, endorsers: [/CN=a], url: https://lists.example.org/a, signature: none}", ".signature"),
    ],
)
def test_a_list_comes_from_one_place_and_signed_from_elsewhere(tmp_path: Path, row: str, place: str) -> None:
    assert places(main_file(tmp_path, f"images: {{lists: [{row}]}}\n")) == [f"images.lists[0]{place}"]


def test_a_minimal_file_is_enough(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert config.policy.host == HOST
    assert config.broker.commands == f"/queue/vmagent.site.example.org.{HOST}.commands"
    assert config.broker.client_id == f"vmagent.site.example.org.{HOST}"
    assert config.policy.reply_prefixes == ("/queue/vmagent.site.example.org.replies",)
    assert config.images.overlays == Path("/var/lib/vmagent/overlays")
    assert config.socket.path == Path("/run/vmagent/vmagent.sock")
    assert config.policy.authority == ()


def test_directories_move_what_lies_below_them(tmp_path: Path) -> None:
    config = read(tmp_path, "directories: {state: /srv/a, run: /run/b}\nimages: {seeds: /fast/seeds}\n")
    assert config.images.directory == Path("/srv/a/images")
    assert config.images.seeds == Path("/fast/seeds")
    assert config.socket.path == Path("/run/b/vmagent.sock")


def test_the_whole_policy(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
networks:
  public: {bridge: br0, addressing: host-pool, subnets: [192.0.2.0/24], pools: [192.0.2.100-192.0.2.150],
           gateways: [192.0.2.1], dns: [192.0.2.53]}
flavours: {small: {cores: 1, memory_mib: 512, disk_gib: 2}}
limits: {lifetime_s: 7200}
images: {catalogue: {tiny: {file: tiny.qcow2, format: qcow2, sha512: "%s"}}}
security:
  authority:
  - {signer: "CN=c,O=Site", verbs: ["vm.*"], maxima: {lifetime_s: 60}}
lease: {warn_before_s: [60, 3600]}
"""
        % ("ab" * 64),
    )
    policy = config.policy
    assert policy.networks["public"].name == "public" and policy.networks["public"].mtu == 1500
    assert policy.images["tiny"].id == "tiny" and policy.images["tiny"].minimum_disk_gib == 1
    assert policy.maxima.lifetime_s == 7200
    row = policy.authority[0]
    assert row.maxima is not None and row.maxima.lifetime_s == 60 and row.maxima.cores == policy.maxima.cores
    assert row.scope == "own" and row.vos == ("*",)
    assert policy.warn_before_s == (3600, 60)
    hash(config.policy.authority)


def test_site_and_host_are_filled_once(tmp_path: Path) -> None:
    """A site that is called HOST stays HOST."""
    path = write(tmp_path / "c.yaml", "site: HOST\nbroker: {urls: [stomp://b:1], events: /topic/SITE.HOST.SITES}\n")
    assert configfile.read(path, "h").broker.events == "/topic/HOST.h.SITES"


def test_a_section_with_everything_commented_out_says_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "hypervisor:\n  #threads: 2\n").hypervisor.threads == 4


# ---- drop-ins ----


def test_drop_ins_merge_mappings_and_replace_the_rest(tmp_path: Path) -> None:
    main_file(tmp_path, "lease: {warn_before_s: [60], grace_s: 10}\n")
    write(tmp_path / "vmagent.yaml.d/20-b.yaml", "lease: {warn_before_s: [30, 20]}\nhypervisor: {threads: 3}\n")
    write(tmp_path / "vmagent.d/10-a.yaml", "hypervisor: {threads: 2, emulation: allow}\n")
    write(tmp_path / "vmagent.d/notes.txt", "not: [read")
    write(tmp_path / "vmagent.d/.hidden.yaml", "not: [read")
    config = configfile.read(tmp_path / "vmagent.yaml", HOST)
    assert config.policy.warn_before_s == (30, 20)
    assert config.policy.grace_s == 10
    assert (config.hypervisor.threads, config.hypervisor.emulation) == (3, "allow")
    assert config.sources["hypervisor.threads"] == f"{tmp_path}/vmagent.yaml.d/20-b.yaml:2"
    assert config.sources["hypervisor.emulation"] == f"{tmp_path}/vmagent.d/10-a.yaml:1"
    assert "hypervisor.uri" not in config.sources


def test_a_drop_in_whose_section_is_empty_wipes_nothing(tmp_path: Path) -> None:
    main_file(tmp_path, "")
    write(tmp_path / "vmagent.d/a.yaml", "broker:\n  #urls: []\n")
    assert configfile.read(tmp_path / "vmagent.yaml", HOST).broker.urls == ("stomp://broker:61613",)


def test_null_takes_back_what_may_be_null(tmp_path: Path) -> None:
    write(tmp_path / "vmagent.yaml", "site: s\nbroker: {urls: [stomp+ssl://b:1], tls: {ca: /ca.pem}}\n")
    write(tmp_path / "vmagent.d/a.yaml", "broker: {urls: [stomp://b:1], tls: null}\n")
    assert configfile.read(tmp_path / "vmagent.yaml", HOST).broker.tls is None


def test_an_error_names_the_drop_in_it_stands_in(tmp_path: Path) -> None:
    path = main_file(tmp_path, "hypervisor: {threads: 2}\n")
    drop_in = write(tmp_path / "vmagent.d/a.yaml", "\nhypervisor:\n  threads: 9\n")
    (problem,) = problems(path)
    assert problem.fields["file"] == f"{drop_in}:3"
    assert problem.fields["path"] == "hypervisor.threads"
    assert "1 to 4" in problem.fields["accepted"]


def test_a_drop_in_that_would_not_be_read_is_an_error(tmp_path: Path) -> None:
    path = main_file(tmp_path)
    write(tmp_path / "vmagent.d/a.yml", "log_level: debug\n")
    assert "*.yaml" in problems(path)[0].fields["accepted"]


# ---- refused ----


def test_all_errors_at_once_each_with_its_place(tmp_path: Path) -> None:
    path = write(
        tmp_path / "vmagent.yaml",
        """
site: "a b"
thraeds: 2
hypervisor: {threads: 9, uri: "qemu+ssh://other/system", emulation: perhaps}
broker: {window: 2.0, urls: [], tls: {certificate: relative.pem}}
instance: X
networks: {lan: {bridge: a-name-too-long-for-linux}}
flavours: {"a b": {cores: 0, memory_mib: 100, disk_gib: 1}}
images: {catalogue: {i: {file: ../up.qcow2, format: ova, sha512: AB}}}
security: {authority: [{verbs: []}]}
""",
    )
    assert places(path) == sorted(
        [
            "broker.tls.ca", "broker.tls.certificate", "broker.urls", "broker.window",
            'flavours["a b"]', 'flavours["a b"].cores',
            "hypervisor.emulation", "hypervisor.threads", "hypervisor.uri",
            "images.catalogue.i.file", "images.catalogue.i.format", "images.catalogue.i.sha512", "instance",
            "networks.lan.addressing", "networks.lan.bridge", "networks.lan.subnets",
            "security.authority[0].signer", "security.authority[0].verbs", "site", "thraeds",
        ]
    )  # fmt: skip


KERNEL = "{file: vmlinuz-6.1, sha512: '" + "0" * 128 + "'}"
BOOTS = [
    (f"{{kernel: {KERNEL}, initrd: {KERNEL}, cmdline: quiet}}", "forbid", []),
    ("{guest: pv}", "allow", []),
    ("{guest: pv}", "forbid", ["boot"]),
    ("{guest: hvm, cmdline: 'a\u00e9'}", "allow", ["boot.cmdline", "boot.guest"]),
    (f"{{initrd: {KERNEL}, cmdline: quiet}}", "allow", ["boot.cmdline", "boot.initrd"]),
    ("{kernel: {file: ../vmlinuz}}", "allow", ["boot.kernel.file", "boot.kernel.sha512"]),
    ("{}", "allow", []),
]


@pytest.mark.parametrize(("boot", "pygrub", "wrong"), BOOTS)
def test_what_a_guest_boots_from_without_firmware(tmp_path: Path, boot: str, pygrub: str, wrong: List[str]) -> None:
    image = f"{{file: a.raw, format: raw, sha512: '{'0' * 128}', boot: {boot}}}"
    path = main_file(tmp_path, f"hypervisor: {{pygrub: {pygrub}}}\nimages: {{catalogue: {{a: {image}}}}}\n")
    if wrong:
        assert places(path) == [f"images.catalogue.a.{place}" for place in wrong]
        return
    found = configfile.read(path, HOST).policy.images["a"].boot
    assert isinstance(found, Boot)
    assert codec.boot_from_json(codec.plain(found)) == found
    assert (found.kernel is None) is (KERNEL not in boot)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("hypervisr: {}\n", "hypervisor"),
        ("hypervisor: {thread: 2}\n", "threads"),
        ("threads: 2\n", "hypervisor.threads"),
    ],
)
def test_an_unknown_setting_is_an_error_with_a_hint(tmp_path: Path, text: str, hint: str) -> None:
    (problem,) = problems(main_file(tmp_path, text))
    assert f"did you mean {hint}?" in problem.fields["accepted"]


@pytest.mark.parametrize(
    "text",
    [
        "log_level: info\nlog_level: debug\n",
        "hypervisor: {threads: 1, threads: 2}\n",
        "log_level: &a info\nhost: *a\n",
        "log_level: !!python/object/apply:os.system [true]\n",
        "log_level: !!str debug\nhost: !x y\n",
        "hypervisor: {threads: 0x2}\n",
        "hypervisor: {threads: 02}\n",
        "intervals: {resync_s: .inf}\n",
        "intervals: {resync_s: .nan}\n",
        "intervals: {resync_s: 1:30}\n",
        "capacity: {cpu_overcommit: yes}\n",
        'host: "two\\nlines"\n',
        "host: &h {a: *h}\n",
        "1: 2\n",
        "? [a]\n: b\n",
        "host: [unclosed\n",
        "host: \x01\n",
        "- a list\n",
        "<<: {log_level: debug}\n",
        "security: {authority: [{signer: CN=x, verbs: [*]}]}\n",
    ],
)
def test_what_two_people_could_read_differently_is_refused(tmp_path: Path, text: str) -> None:
    assert problems(main_file(tmp_path, text))


def test_a_duplicate_says_where_the_first_stands(tmp_path: Path) -> None:
    (problem,) = problems(main_file(tmp_path, "log_level: info\n\nlog_level: debug\n"))
    assert problem.fields["file"].endswith(":5") and "vmagent.yaml:3" in problem.detail


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: \xc3\x28\n"])
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vmagent.yaml"
    path.write_bytes(content)
    assert "UTF-8" in problems(path)[0].fields["accepted"]


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    assert "cannot be read" in problems(tmp_path / "none.yaml")[0].detail
    (tmp_path / "dir.yaml").mkdir()
    assert "cannot be read" in problems(tmp_path / "dir.yaml")[0].detail


def test_a_passcode_in_a_url_is_refused_and_not_repeated(tmp_path: Path) -> None:
    path = write(tmp_path / "vmagent.yaml", 'site: s\nbroker: {urls: ["stomp://me:hunter2@broker:61613"]}\n')
    (problem,) = problems(path)
    assert "hunter2" not in str(problem) and "login and passcode have settings" in problem.fields["accepted"]


def test_a_host_without_a_name_is_told(tmp_path: Path) -> None:
    assert places(main_file(tmp_path), fqdn="") == ["host"]
    with pytest.raises(Problem, match="this host's name: at host"):
        configfile.read(main_file(tmp_path), "bad name!")


# ---- settings that contradict one another ----

NET = "networks: {n: {bridge: br0, addressing: %s, subnets: [192.0.2.0/24, 2001:db8::/64]%s}}\n"
SIZE = "flavours: {f: {cores: 2, memory_mib: 100, disk_gib: 1%s}}\n"
CONTRADICTIONS = {
    "ssl without tls": ("broker: {urls: [stomp+ssl://b:1]}\n", "broker.urls[0]"),
    "tls unused": ("broker: {urls: [stomp://b:1], tls: {ca: /c}}\n", "broker.urls[0]"),
    "port": ("broker: {urls: [stomp://b:65536]}\n", "broker.urls[0]"),
    "certificate alone": ("broker: {urls: [stomp+ssl://b:1], tls: {ca: /c, certificate: /d}}\n", "broker.tls"),
    "passcode alone": ("broker: {urls: [stomp://b:1], passcode_file: /p}\n", "broker.passcode_file"),
    "reply outside": ("broker: {urls: [stomp://b:1], default_reply: /queue/x}\n", "broker.default_reply"),
    "instance of ethernet": ("instance: et\n", "instance"),
    "instance that libvirt renames": ("instance: vnet\n", "instance"),
    "instance that may become vif": ("instance: vi\n", "instance"),
    "bridge with our prefix": ("networks: {n: {bridge: vmabr0, addressing: controller, subnets: [192.0.2.0/24]}}\n",
                               "networks.n.bridge"),
    "bridge like a guest": (
        "networks: {n: {bridge: vmaabcdefghij2, addressing: controller, subnets: [192.0.2.0/24]}}\n",
        "networks.n.bridge",
    ),
    "pool outside": (NET % ("host-pool", ", pools: [198.51.100.1-198.51.100.2]"), "networks.n.pools[0]"),
    "pool across": (NET % ("host-pool", ", pools: [192.0.2.250-192.0.3.2]"), "networks.n.pools[0]"),
    "pool backwards": (NET % ("host-pool", ", pools: [192.0.2.9-192.0.2.2]"), "networks.n.pools[0]"),
    "pool of two families": (NET % ("host-pool", ", pools: ['192.0.2.9-2001:db8::9']"), "networks.n.pools[0]"),
    "pool with network address": (NET % ("host-pool", ", pools: [192.0.2.0-192.0.2.9]"), "networks.n.pools[0]"),
    "pool with broadcast": (NET % ("host-pool", ", pools: [192.0.2.9-192.0.2.255]"), "networks.n.pools[0]"),
    "pool with anycast": (NET % ("host-pool", ", pools: ['2001:db8::-2001:db8::9']"), "networks.n.pools[0]"),
    "pools overlap": (
        NET % ("host-pool", ", pools: [192.0.2.9-192.0.2.20, 192.0.2.20-192.0.2.30]"),
        "networks.n.pools[1]",
    ),
    "pool holds gateway": (
        NET % ("host-pool", ", pools: [192.0.2.1-192.0.2.9], gateways: [192.0.2.2]"),
        "networks.n.pools[0]",
    ),
    "no pool": (NET % ("host-pool", ""), "networks.n.pools"),
    "pool unused": (NET % ("controller", ", pools: [192.0.2.9-192.0.2.20]"), "networks.n.pools"),
    "gateway outside": (NET % ("controller", ", gateways: [198.51.100.1]"), "networks.n.gateways[0]"),
    "two gateways": (NET % ("controller", ", gateways: [192.0.2.1, 192.0.2.2]"), "networks.n.gateways[1]"),
    "gateway no address": (NET % ("controller", ", gateways: [gw]"), "networks.n.gateways[0]"),
    "dns no address": (NET % ("controller", ", dns: [ns.example.org]"), "networks.n.dns[0]"),
    "subnet with host bits": (
        "networks: {n: {bridge: br0, addressing: controller, subnets: [192.0.2.1/24]}}\n",
        "networks.n.subnets[0]",
    ),
    "subnets overlap": (
        "networks: {n: {bridge: br0, addressing: controller, subnets: [192.0.2.0/24, 192.0.2.128/25]}}\n",
        "networks.n.subnets[1]",
    ),
    "slaac without /64": (
        "networks: {n: {bridge: br0, addressing: slaac-eui64, subnets: [192.0.2.0/24]}}\n",
        "networks.n.subnets",
    ),
    "pools of two networks on one bridge": (
        "networks:\n"
        "  a: {bridge: br0, addressing: host-pool, subnets: [192.0.2.0/24], pools: [192.0.2.5-192.0.2.9]}\n"
        "  b: {bridge: br0, addressing: host-pool, subnets: [192.0.2.0/24], pools: [192.0.2.9-192.0.2.12]}\n",
        "networks.b.pools[0]",
    ),
    "flavour too big": ("limits: {cores: 1}\n" + SIZE % "", "flavours.f.cores"),
    "flavour too small": ("limits: {cores: {minimum: 3}}\n" + SIZE % "", "flavours.f.cores"),
    "flavour too fast": (
        "limits: {bandwidth_in_kbit: 1000}\n" + SIZE % ", bandwidth_in_kbit: 1001",
        "flavours.f.bandwidth_in_kbit",
    ),
    "flavour of less weight": (
        "limits: {cpu_weight: {minimum: 50}}\n" + SIZE % ", cpu_weight: 49",
        "flavours.f.cpu_weight",
    ),
    "minimum above maximum": ("limits: {cores: {minimum: 17}}\n", "limits.cores.minimum"),
    "default above maximum": (
        "limits: {bandwidth_out_kbit: {default: 2000, maximum: 1000}}\n",
        "limits.bandwidth_out_kbit.default",
    ),
    "default below minimum": (
        "limits: {disk_read_ops_per_s: {minimum: 100, default: 99}}\n",
        "limits.disk_read_ops_per_s.minimum",
    ),
    "weight below the default": ("limits: {cpu_weight: 99}\n", "limits.cpu_weight.default"),
    "row below the site's least": (
        "limits: {cores: {minimum: 2}}\nsecurity: {authority: [{signer: CN=x, verbs: ['*'], maxima: {cores: 1}}]}\n",
        "security.authority[0].maxima.cores",
    ),
    "row above the site's most": (
        "limits: {cpu_weight: {maximum: 100}}\n"
        "security: {authority: [{signer: CN=x, verbs: ['*'], maxima: {cpu_weight: 101}}]}\n",
        "security.authority[0].maxima.cpu_weight",
    ),
    "rule with ports of nothing": (
        "firewall: {inbound: [{action: deny, ports: [22]}]}\n",
        "firewall.inbound[0].ports",
    ),
    "rule with a range reversed": (
        "firewall: {outbound: [{action: deny}, {action: deny, protocol: tcp, ports: [1, 9-8]}]}\n",
        "firewall.outbound[1].ports[1]",
    ),
    "rule with host bits": (
        "firewall: {outbound: [{action: deny, cidr: 10.0.0.1/8}]}\n",
        "firewall.outbound[0].cidr",
    ),
    "local prefix with host bits": ("firewall: {local: [10.0.0.1/8]}\n", "firewall.local[0]"),
    "local prefix that is none": ("firewall: {local: [site.example.org]}\n", "firewall.local[0]"),
    "instance of a virtual bridge": ("instance: vmbr\n", "instance"),
    "instance of a tunnel": ("instance: ip6\n", "instance"),
    "cap too high": (
        "limits: {cpu_cap_core_percent: 100}\n" + SIZE % ", cpu_cap_core_percent: 101",
        "flavours.f.cpu_cap_core_percent",
    ),
    "cap above the cores": (SIZE % ", cpu_cap_core_percent: 201", "flavours.f.cpu_cap_core_percent"),
    "signer that is no subject": (
        "security: {authority: [{signer: 'CN=x,,=', verbs: ['*']}]}\n",
        "security.authority[0].signer",
    ),
    "login while commands are signed": (
        "security: {authority: [{signer: 'broker:me', verbs: ['*']}]}\n",
        "security.authority[0].signer",
    ),
    "subject while the login decides": (
        "security: {commands: broker, authority: [{signer: CN=x, verbs: ['*']}]}\n",
        "security.authority[0].signer",
    ),
    "no such verb": (
        "security: {authority: [{signer: CN=x, verbs: [vm.strat]}]}\n",
        "security.authority[0].verbs[0]",
    ),
    "pattern of nothing": (
        "security: {authority: [{signer: CN=x, verbs: ['vn.*']}]}\n",
        "security.authority[0].verbs[0]",
    ),
    "no such network": (
        "security: {authority: [{signer: CN=x, verbs: ['*'], networks: [lan]}]}\n",
        "security.authority[0].networks[0]",
    ),
    "no such flavour": (
        "security: {authority: [{signer: CN=x, verbs: ['*'], flavours: [big]}]}\n",
        "security.authority[0].flavours[0]",
    ),
    "more than the site": (
        "security: {authority: [{signer: CN=x, verbs: ['*'], maxima: {cores: 17}}]}\n",
        "security.authority[0].maxima.cores",
    ),
    "socket path too long": (f"socket: {{path: /{'x' * 107}}}\n", "socket.path"),
    "socket path too long below run": (f"directories: {{run: /{'x' * 100}}}\n", "socket.path"),
}


@pytest.mark.parametrize("what", sorted(CONTRADICTIONS))
def test_a_contradiction_is_told_at_its_place(tmp_path: Path, what: str) -> None:
    text, place = CONTRADICTIONS[what]
    base: Dict[str, Any] = yaml.safe_load(MINIMAL)
    base.update(yaml.safe_load(text))
    path = write(tmp_path / "vmagent.yaml", yaml.safe_dump(base))
    assert places(path) == [place]


def test_contradictions_are_told_beside_errors_elsewhere(tmp_path: Path) -> None:
    path = main_file(tmp_path, "instance: eth\nhypervisor: {threads: 0}\n" + NET % ("host-pool", ""))
    assert places(path) == ["hypervisor.threads", "instance", "networks.n.pools"]


def test_a_link_local_gateway_is_in_every_subnet(tmp_path: Path) -> None:
    assert read(tmp_path, NET % ("controller", ", gateways: ['fe80::1']")).policy.networks["n"].gateways == ("fe80::1",)


# ---- what the host must have ----


def test_files_and_groups_are_looked_for_only_when_asked(tmp_path: Path) -> None:
    text = f"""
site: s
broker: {{urls: [stomp+ssl://b:1], login: me, passcode_file: {tmp_path}/p,
         tls: {{ca: {tmp_path}/ca, certificate: {tmp_path}/c, key: {tmp_path}/k}}}}
security: {{ca_directory: {tmp_path}/trust}}
socket: {{admin_group: no-such-group-here}}
"""
    path = write(tmp_path / "vmagent.yaml", text)
    configfile.read(path, HOST)
    assert places(path, check_files=True) == [
        "broker.passcode_file", "broker.tls.ca", "broker.tls.certificate", "broker.tls.key",
        "security.ca_directory", "socket.admin_group",
    ]  # fmt: skip
    for name in ("p", "ca", "c", "k"):
        write(tmp_path / name, "x")
    (tmp_path / "trust").mkdir()
    assert places(path, check_files=True) == ["socket.admin_group"]


# ---- --show-config ----


def test_show_is_yaml_that_reads_back_as_the_same(tmp_path: Path) -> None:
    path = main_file(tmp_path, NET % ("controller", "") + SIZE % "" + "hypervisor: {threads: 2}\n")
    raw = configfile.read_raw(path, HOST)
    text = configfile.show(raw)
    assert yaml.safe_load(text) == raw.values
    again = write(tmp_path / "again/vmagent.yaml", text)
    assert configfile.read_raw(again, "other").values == raw.values
    lines = {line.split(":")[0].strip(): line for line in text.splitlines()}
    assert lines["threads"].endswith(f"# {path}:5")
    assert lines["emulation"].endswith("# default")
    assert lines["host"].endswith("# this host's name")


def test_reading_changes_nothing_on_disk(tmp_path: Path) -> None:
    main_file(tmp_path)
    before = sorted(os.listdir(tmp_path))
    configfile.read(tmp_path / "vmagent.yaml", HOST)
    assert sorted(os.listdir(tmp_path)) == before


# ---- read again ----


def test_a_policy_read_again_is_in_force_at_once(tmp_path: Path) -> None:
    running = read(tmp_path)
    image = "images: {catalogue: {new: {file: new.raw, format: raw, sha512: '" + "0" * 128 + "'}}}\n"
    now, waiting = reloaded(running, read(tmp_path, "log_level: debug\nlimits: {cores: 3}\n" + image))
    assert (now.log_level, now.policy.maxima.cores, list(now.policy.images)) == ("debug", 3, ["new"])
    assert waiting == ()


def test_names_that_vms_are_tagged_with_wait_for_a_restart(tmp_path: Path) -> None:
    running = read(tmp_path)
    reply = "default_reply: /queue/vmagent.SITE.replies/2"
    text = "instance: vmc\nhost: elsewhere\n" + MINIMAL.replace("]}", f"], {reply}}}")
    fresh = configfile.read(write(tmp_path / "vmagent.yaml", text), HOST)
    now, waiting = reloaded(running, fresh)
    assert now.policy == running.policy, "else the tags of running VMs would be rewritten to another instance's"
    assert waiting == ("host", "instance", "broker.default_reply", "broker")
    assert reloaded(now, fresh)[1] == waiting, "told again at the next SIGHUP"


def test_every_other_section_is_named_never_ignored(tmp_path: Path) -> None:
    running = read(tmp_path)
    now, waiting = reloaded(running, read(tmp_path, "security: {crl: when_present}\nintervals: {hold_s: 3}\n"))
    assert waiting == ("security", "intervals")
    assert (now.security, now.intervals) == (running.security, running.intervals)


def test_a_default_reply_may_write_the_site_out(tmp_path: Path) -> None:
    file = tmp_path / "vmagent.yaml"
    broker = {"urls": ["stomp://b:61613"], "default_reply": "/queue/vmagent.EXAMPLE.replies"}
    file.write_text(yaml.safe_dump({"site": "EXAMPLE", "host": "wn1.example.org", "broker": broker}))
    assert configfile.read(file).policy.default_reply == "/queue/vmagent.EXAMPLE.replies"


@pytest.mark.parametrize("text, path", [("fine_s: 30, coarse_s: 20", "coarse_s"), ("period_s: 30", "period_s")])
def test_what_holds_others_is_not_shorter_than_they_are(tmp_path: Path, text: str, path: str) -> None:
    (problem,) = problems(main_file(tmp_path, f"telemetry: {{{text}}}\n"))
    assert problem.fields["path"] == f"telemetry.{path}" and "0 or more" in str(problem.fields["accepted"])


@pytest.mark.parametrize("text, path", [
    ("listen: 'localhost:9177'", "listen"), ("listen: '300.1.1.1:9177'", "listen"), ("listen: '[1.2]:9177'", "listen"),
    ("listen: '127.0.0.1:0'", "listen"), ("listen: '127.0.0.1:70000'", "listen"), ("listen: 9177", "listen"),
    ("tls: {certificate: /a, key: /b}", "tls"), ("listen: '[::1]:9177', tls: {certificate: /a}", "tls.key"),
])
def test_metrics_are_offered_on_an_address_that_can_be(tmp_path: Path, text: str, path: str) -> None:
    (problem,) = problems(main_file(tmp_path, f"prometheus: {{{text}}}\n"))
    assert problem.fields["path"] == f"prometheus.{path}"


def test_metrics_are_not_offered_unless_the_site_says_where(tmp_path: Path) -> None:
    assert read(tmp_path).prometheus.listen is None
    settings = read(tmp_path, "prometheus: {listen: '[::1]:9177', tls: {certificate: /a, key: /b}}\n").prometheus
    assert settings.listen == ("::1", 9177) and settings.tls is not None and settings.tls.key == Path("/b")
