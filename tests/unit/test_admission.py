"""What a start may be refused for, and what it becomes when it is not."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import Any, Dict, List, Optional, Tuple

import pytest

from tests.support import building
from vmagent.core import identity, request
from vmagent.core.admission import Admission, admit
from vmagent.core.commands import Command, Signer
from vmagent.core.model import Desired, DiskIo, Firewall, ImageRef, NicLimits, Outcome, Owner, Rule, VmRecord
from vmagent.core.policy import CatalogueImage, Flavour, Minima, TrustPolicy
from vmagent.core.room import HostRoom
from vmagent.errors import Problem, Problems

SIGNER = Signer(building.SIGNER, ((("C", "NL"),), (("O", "Example Site"),), (("CN", "controller"),)), "ab" * 32)
ROOM = HostRoom(cores=8, memory_mib=16384 + 1024, disk_free_gib=105, drained=False, emulated_ok=True)
POLICY = building.policy(
    flavours={"small": Flavour(1, 512, 2, 50), "huge": Flavour(64, 512, 2), "free": Flavour(2, 1024, 10)},
    networks={"public": building.network(), "own": building.network("own", addressing="controller", pools=())},
    images={
        "tiny": CatalogueImage("tiny", "tiny.qcow2", "qcow2", building.SHA512),
        "fat": CatalogueImage("fat", "fat.raw", "raw", building.SHA512, minimum_disk_gib=20),
    },
    memory_overhead_mib=0,
)
SIZES = {"cores": 2, "memory_mib": 2048, "disk_gib": 10}


def start(signer: Signer = SIGNER, owner: bool = True, id: str = building.COMMAND, **members: Any) -> Command:
    args: Dict[str, Any] = {"image": {"id": "tiny"}, "lifetime_s": 3600}
    args.update(members)
    if "flavour" not in args and "cores" not in args:
        args["flavour"] = "small"
    payload = {
        "schema": "vm.start/1", "id": id, "issued_at": "2026-11-20T11:59:59Z", "valid_until": "2026-11-20T12:59:59Z",
        "target": "wn017.site.example.org", "args": args,
        "on_behalf_of": {"subject": building.USER, "fqan": "/vo.example/Role=NULL"} if owner else None,
    }  # fmt: skip
    return request.parse(payload, "d" * 64, signer, "local" if signer.local else "broker")


def admitted(command: Command, records: Tuple[VmRecord, ...] = (), policy: Any = POLICY, **room: Any) -> Admission:
    return admit(command, policy, records, dataclasses.replace(ROOM, **room))


def reasons(problem: Problem) -> List[Tuple[str, Optional[str]]]:
    json.dumps(problem.as_json()).encode("ascii")
    problems = problem.problems if isinstance(problem, Problems) else (problem,)
    return [(one.type, one.fields.get("path")) for one in problems]


SHA512 = "ef" * 64
DESCRIBING = dataclasses.replace(POLICY, image_requests=("https://images.example.org/a/",))
DESCRIBED = {"url": "https://images.example.org/a/x.vmdk", "sha512": SHA512, "format": "vmdk", "size": 12345}


def test_an_image_that_a_request_describes_is_taken_below_what_the_site_allows() -> None:
    policy = dataclasses.replace(DESCRIBING, trust=TrustPolicy(unendorsed="request"))
    spec = admitted(start(image=DESCRIBED), policy=policy).specs[0]
    assert spec.image == ImageRef(f"sha512-{SHA512[:16]}", SHA512, "vmdk", DESCRIBED["url"], 12345, source="request")


def test_where_it_may_come_from_is_not_yet_whether_it_is_trusted() -> None:
    assert refused(start(image=DESCRIBED), policy=DESCRIBING) == [("image-unendorsed", "args.image")]


@pytest.mark.parametrize(
    "url",
    [
        "https://images.example.org/b/x", "https://images.example.org.evil.example/a/x", "https://images.example.org/a/../b",
        "https://images.example.org/a/%2e%2e/b", "https://me@images.example.org/a/x", "https://images.example.org/a/x#y",
        "https://images.example.org/a/\\x", "file:///srv/images/x", "https://images.example.org/a/..%2fb",
    ],
)  # fmt: skip
def test_a_url_elsewhere_or_of_two_readings_is_not(url: str) -> None:
    assert refused(start(image={**DESCRIBED, "url": url}), policy=DESCRIBING) == [("image-url", "args.image.url")]


def test_by_default_no_request_names_a_url() -> None:
    assert refused(start(image=DESCRIBED)) == [("image-url", "args.image.url")]


def refused(command: Command, records: Tuple[VmRecord, ...] = (), policy: Any = POLICY, **room: Any) -> List[Any]:
    with pytest.raises(Problems) as caught:
        admitted(command, records, policy, **room)
    return reasons(caught.value)


def other(member: int = 0, **kw: Any) -> VmRecord:
    """A wish of another command, without interfaces unless named."""
    command = "11111111-2222-4333-8444-555555555555"
    spec = {"command": command, "member": member, "interfaces": (), **kw.pop("spec", {})}
    return building.record(spec=spec, **kw)


# ---- what it becomes ----


def test_the_spec() -> None:
    networks = [{"type": "public"}, {"type": "own", "addresses": ["192.0.2.7"], "mac": "02:00:00:00:00:AA"}]
    (spec,) = admitted(
        start(name="a worker", tags=["b", "a"], networks=networks, keep_s=60, start_by_s=5, ready_by_s=7)
    ).specs
    assert spec.vm == identity.vm_id(building.COMMAND, 0)
    assert (spec.name, spec.flavour, spec.tags) == ("a worker", "small", ("b", "a"))
    assert (spec.cores, spec.memory_mib, spec.disk_gib, spec.limits.cpu_cap_core_percent) == (1, 512, 2, 50)
    assert spec.image == ImageRef("tiny", building.SHA512, "qcow2")
    assert spec.owner == Owner(building.USER, "/vo.example/Role=NULL")
    assert (spec.controller, spec.command, spec.member) == (building.SIGNER, building.COMMAND, 0)
    assert (spec.keep_s, spec.start_by_s, spec.ready_by_s, spec.atomic, spec.count) == (60, 5, 7, False, 1)
    assert [i.addresses for i in spec.interfaces] == [("192.0.2.100/24", "2001:db8::100/64"), ("192.0.2.7/24",)]
    assert spec.interfaces[1].mac == "02:00:00:00:00:aa"


def test_defaults() -> None:
    (spec,) = admitted(start(**SIZES)).specs
    assert (spec.cores, spec.memory_mib, spec.disk_gib) == (2, 2048, 10)
    assert (spec.limits.cpu_cap_core_percent, spec.flavour, spec.interfaces) == (None, "", ())
    assert (spec.name, spec.start_by_s, spec.ready_by_s, spec.keep_s) == (f"vm-{spec.vm[:8]}", 600, 600, 0)


def test_the_owner_is_the_signer_where_nobody_else_is_named() -> None:
    (spec,) = admitted(start(owner=False)).specs
    assert spec.owner == Owner("/C=NL/O=Example Site/CN=controller")
    assert refused(start(signer=Signer("local:root"), owner=False)) == [("owner-needed", "on_behalf_of")]
    assert admitted(start(signer=Signer("local:root"))).specs[0].controller == "local:root"


@pytest.mark.parametrize(
    ("asked", "flavour", "site", "cap"),
    [
        (None, None, None, None),
        (None, None, 150, 150),
        (None, 50, 150, 50),
        (70, 50, 150, 70),
        (70, None, None, 70),
    ],
)
def test_cap(asked: Optional[int], flavour: Optional[int], site: Optional[int], cap: Optional[int]) -> None:
    policy = dataclasses.replace(
        POLICY, flavours={"f": Flavour(2, 512, 2, flavour)}, maxima=building.maxima(cpu_cap_core_percent=site)
    )
    members = {} if asked is None else {"cpu_cap_core_percent": asked}
    assert admitted(start(flavour="f", **members), policy=policy).specs[0].limits.cpu_cap_core_percent == cap


def test_the_same_request_on_the_same_records_is_answered_the_same() -> None:
    command = start(count=5, networks=[{"type": "public"}])
    first = admitted(command)
    assert admitted(command) == first
    assert [spec.vm for spec in first.specs] == [identity.vm_id(building.COMMAND, n) for n in range(5)]
    assert [spec.interfaces[0].addresses[0] for spec in first.specs] == [f"192.0.2.{100 + n}/24" for n in range(5)]


# ---- reasons that concern the whole ----

WHOLE: Tuple[Tuple[Dict[str, Any], Dict[str, Any], List[Tuple[str, Optional[str]]]], ...] = (
    ({}, {"drained": True}, [("drained", None)]),
    ({}, {"emulated_ok": False}, [("no-virtualisation", None)]),
    ({"flavour": "medium"}, {}, [("unknown-flavour", "args.flavour")]),
    ({"image": {"id": "other"}}, {}, [("unknown-image", "args.image.id")]),
    ({"networks": [{"type": "public"}, {"type": "dmz"}]}, {}, [("unknown-network", "args.networks[1].type")]),
    ({"image": {"id": "fat"}}, {}, [("disk-too-small", "args.flavour")]),
    ({**SIZES, "image": {"id": "fat"}}, {}, [("disk-too-small", "args.disk_gib")]),
    ({**SIZES, "cores": 9}, {}, [("over-limit", "args.cores"), ("no-capacity", "args.cores")]),
    ({**SIZES, "memory_mib": 16385}, {}, [("over-limit", "args.memory_mib"), ("no-capacity", "args.memory_mib")]),
    ({**SIZES, "disk_gib": 101}, {}, [("over-limit", "args.disk_gib"), ("no-capacity", "args.disk_gib")]),
    ({"flavour": "huge"}, {"cores": 64}, [("over-limit", "args.flavour")]),
    ({"lifetime_s": 7 * 86400 + 1}, {}, [("over-limit", "args.lifetime_s")]),
    ({"keep_s": 7 * 86400 + 1}, {}, [("over-limit", "args.keep_s")]),
    ({"count": 51}, {}, [("over-limit", "args.count")]),
    ({"count": 2, "networks": [{"type": "own"}]}, {}, [("address", "args.networks[0].addresses")]),
    (
        {"count": 2, "networks": [{"type": "public", "addresses": ["192.0.2.120"], "mac": "02:00:00:00:00:01"}]},
        {},
        [("address", "args.networks[0].addresses"), ("mac", "args.networks[0].mac")],
    ),
    (
        {"flavour": "medium", "image": {"id": "x"}, "networks": [{"type": "y"}]},
        {"drained": True, "emulated_ok": False},
        [
            ("drained", None),
            ("no-virtualisation", None),
            ("unknown-network", "args.networks[0].type"),
            ("unknown-image", "args.image.id"),
            ("unknown-flavour", "args.flavour"),
        ],
    ),
    (
        {"cores": 9, "memory_mib": 99999, "disk_gib": 999, "lifetime_s": 10**7, "count": 60},
        {},
        [
            *(("over-limit", f"args.{n}") for n in ("cores", "memory_mib", "disk_gib", "lifetime_s", "count")),
            *(("no-capacity", f"args.{n}") for n in ("cores", "memory_mib", "disk_gib")),
        ],
    ),
)


@pytest.mark.parametrize(("members", "room", "expected"), WHOLE)
def test_refused_as_a_whole(
    members: Dict[str, Any], room: Dict[str, Any], expected: List[Tuple[str, Optional[str]]]
) -> None:
    assert refused(start(**members), **room) == expected


def test_what_exists_is_told() -> None:
    with pytest.raises(Problems) as caught:
        admitted(start(flavour="x", image={"id": "y"}, networks=[{"type": "z"}]))
    accepted = {problem.type: problem.fields["accepted"] for problem in caught.value.problems}
    assert accepted == {
        "unknown-flavour": ["free", "huge", "small"],
        "unknown-image": ["fat", "tiny"],
        "unknown-network": ["own", "public"],
    }


NIC = {"type": "public"}
SSH = {"action": "allow", "protocol": "tcp", "ports": [22]}
LIMITED: Tuple[Tuple[Dict[str, Any], Dict[str, Any], List[Tuple[str, Optional[str]]]], ...] = (
    ({"cpu_weight": 1001}, {}, [("over-limit", "args.cpu_weight")]),
    ({"cpu_weight": 9}, {}, [("under-limit", "args.cpu_weight")]),
    ({**SIZES, "memory_mib": 63}, {}, [("under-limit", "args.memory_mib")]),
    ({"networks": [NIC, {**NIC, "bandwidth_in_kbit": 1001}]}, {},
     [("over-limit", "args.networks[1].bandwidth_in_kbit")]),
    ({"networks": [{**NIC, "firewall": {"inbound": [SSH, {**SSH, "ports": ["9-8"]}]}}]}, {},
     [("rule", "args.networks[0].firewall.inbound[1].ports[0]")]),
    ({"networks": [{**NIC, "addresses": ["192.0.2.9"], "firewall": {"inbound": [{**SSH, "cidr": "2001:db8::/64"}]}}]},
     {}, [("rule", "args.networks[0].firewall.inbound[0].cidr")]),
    ({"networks": [{**NIC, "firewall": {"inbound": [SSH] * 128, "outbound": [SSH] * 128}},
                   {**NIC, "firewall": {"inbound": [SSH]}}]}, {}, [("over-limit", "args.networks")]),
    ({"networks": [NIC]}, {"filtering": False}, [("not-supported-here", "args.networks")]),
    ({}, {"filtering": False, "shaping": False}, []),
    ({"networks": [NIC]}, {"shaping": False}, [("not-supported-here", "args.networks")]),  # the site's maximum
    ({"disk_io": {"read_ops_per_s": 10}}, {"disk_io": False}, [("not-supported-here", "args.disk_io")]),
    ({}, {"disk_io": False}, []),
    ({"flavour": "free"}, {"cpu_caps": False}, []),
    ({}, {"cpu_caps": False}, [("not-supported-here", "args.cpu_cap_core_percent")]),
    (
        {"flavour": "medium", "cpu_weight": 9, "image": {"id": "x"},
         "networks": [{**NIC, "firewall": {"outbound": [{"action": "deny", "ports": [1], "cidr": "1.1.1.1/8"}]}}]},
        {"filtering": False},
        [("not-supported-here", "args.networks"), ("unknown-image", "args.image.id"),
         ("unknown-flavour", "args.flavour"), ("rule", "args.networks[0].firewall.outbound[0].ports"),
         ("rule", "args.networks[0].firewall.outbound[0].cidr")],
    ),
)  # fmt: skip
STRICT = dataclasses.replace(
    POLICY, maxima=building.maxima(cpu_weight=1000, bandwidth_in_kbit=1000), minima=Minima(memory_mib=64, cpu_weight=10)
)


@pytest.mark.parametrize(("members", "room", "expected"), LIMITED)
def test_limits_that_are_not_to_be_had(members: Dict[str, Any], room: Dict[str, Any], expected: Any) -> None:
    if expected:
        assert refused(start(**members), policy=STRICT, **room) == expected
    else:
        admitted(start(**members), policy=STRICT, **room)


def test_what_is_admitted_carries_its_limits_one_per_interface() -> None:
    networks = [{**NIC, "bandwidth_in_kbit": 64, "firewall": {"inbound": [SSH]}}, NIC]
    got = admitted(start(count=2, cpu_weight=50, disk_io={"write_ops_per_s": 100}, networks=networks), policy=STRICT)
    for spec in got.specs:
        assert len(spec.limits.nics) == len(spec.interfaces) == 2
        assert (spec.limits.cpu_cap_core_percent, spec.limits.cpu_weight) == (50, 50)
        assert spec.limits.disk_io == DiskIo(write_ops_per_s=100)
        assert spec.limits.nics[0] == NicLimits(64, None, Firewall((Rule("allow", "tcp", ((22, 22),)),)))
        assert spec.limits.nics[1] == NicLimits(1000)


@pytest.mark.parametrize(("configured", "learned", "each"), [(0, 0, 0), (64, 0, 64), (64, 50, 64), (64, 90, 90)])
def test_memory_counts_with_what_qemu_takes_beside(configured: int, learned: int, each: int) -> None:
    policy = dataclasses.replace(POLICY, memory_overhead_mib=configured)
    fits = start(cores=1, memory_mib=16384 - 3000 - 2 * each, disk_gib=1)
    here = (other(spec={"memory_mib": 3000}),)
    admitted(fits, here, policy, memory_overhead_mib=learned)
    more = start(cores=1, memory_mib=16385 - 3000 - 2 * each, disk_gib=1)
    assert lacking(more, here, policy, memory_overhead_mib=learned) == {
        "memory_mib": (13385 - each, 13384 - each),
    }  # fmt: skip
    got = admitted(start(count=6, cores=1, memory_mib=64, disk_gib=1), (), policy, memory_mib=1024 + 5 * (64 + each),
                   memory_overhead_mib=learned)  # fmt: skip
    assert len(got.specs) == 5


def test_a_cap_over_the_sites() -> None:
    policy = dataclasses.replace(POLICY, maxima=building.maxima(cpu_cap_core_percent=100))
    assert refused(start(cpu_cap_core_percent=101), policy=policy) == [("over-limit", "args.cpu_cap_core_percent")]


# ---- capacity ----


def lacking(command: Command, records: Tuple[VmRecord, ...] = (), policy: Any = POLICY, **room: Any) -> Dict[str, Any]:
    with pytest.raises(Problems) as caught:
        admitted(command, records, policy, **room)
    problems = [problem for problem in caught.value.problems if problem.type == "no-capacity"]
    return {problem.fields["resource"]: (problem.fields["needed"], problem.fields["free"]) for problem in problems}


def test_exactly_full_is_not_too_full() -> None:
    admitted(start(cores=8, memory_mib=16384, disk_gib=100))
    assert lacking(start(cores=8, memory_mib=16384, disk_gib=100), cores=7) == {"cores": (8, 7)}
    assert lacking(start(cores=8, memory_mib=16384, disk_gib=100), memory_mib=17407) == {"memory_mib": (16384, 16383)}
    assert lacking(start(cores=8, memory_mib=16384, disk_gib=100), disk_free_gib=104) == {"disk_gib": (100, 99)}


def test_wishes_count_until_they_end_and_disks_until_they_close() -> None:
    big = {"cores": 6, "memory_mib": 10000, "disk_gib": 60}
    command = start(cores=6, memory_mib=10000, disk_gib=60)
    for alive in (other(spec=big), other(spec=big, desired=Desired.ABSENT), other(spec=big, desired=Desired.PAUSED)):
        assert lacking(command, (alive,)) == {
            "cores": (6, 2), "memory_mib": (10000, 6384), "disk_gib": (60, 40),
        }  # fmt: skip
    kept = other(spec=big, outcome=Outcome.EXPIRED)
    assert lacking(command, (kept,)) == {"disk_gib": (60, 40)}
    admitted(command, (dataclasses.replace(kept, closed=True),))
    admitted(command, (kept,), disk_written_gib=20)


def test_never_less_than_nothing_is_free() -> None:
    full = tuple(other(n, spec={"cores": 8, "memory_mib": 99999, "disk_gib": 999}) for n in range(3))
    assert lacking(start(), full) == {"cores": (1, 0), "memory_mib": (512, 0), "disk_gib": (2, 0)}


def test_overcommit_is_for_cores_and_never_within_one_vm() -> None:
    policy = dataclasses.replace(POLICY, cpu_overcommit=1.5, maxima=building.maxima(cores=99))
    busy = (other(spec={"cores": 8}),)
    admitted(start(cores=4, memory_mib=512, disk_gib=2), busy, policy)
    assert lacking(start(cores=5, memory_mib=512, disk_gib=2), busy, policy) == {"cores": (5, 4)}
    assert lacking(start(cores=9, memory_mib=512, disk_gib=2), (), policy) == {"cores": (9, 8)}
    inexact = dataclasses.replace(policy, cpu_overcommit=1.15)
    admitted(start(count=23, cores=1, memory_mib=64, disk_gib=1, atomic=True), (), inexact, cores=20)


# ---- members ----


def test_as_many_as_fit_in_order() -> None:
    got = admitted(start(count=5, **{**SIZES, "cores": 3}))
    assert [spec.member for spec in got.specs] == [0, 1]
    assert [(member, reasons(problem)) for member, problem in got.refused] == [
        (n, [("no-capacity", "args.cores")]) for n in (2, 3, 4)
    ]


def test_atomic_is_all_or_nothing_and_counts_for_all() -> None:
    command = start(count=3, atomic=True, **{**SIZES, "cores": 3})
    assert lacking(command) == {"cores": (9, 8)}
    got = admitted(command, cores=9)
    assert (len(got.specs), got.refused) == (3, ())
    assert all(spec.atomic and spec.count == 3 for spec in got.specs)


def test_a_pool_that_runs_out() -> None:
    policy = dataclasses.replace(
        POLICY, networks={"public": building.network(subnets=("192.0.2.0/24",), pools=("192.0.2.100-192.0.2.101",))}
    )
    members: Dict[str, Any] = {"count": 3, "networks": [{"type": "public"}]}
    got = admitted(start(**members), policy=policy)
    assert [spec.member for spec in got.specs] == [0, 1]
    assert [(m, reasons(p)) for m, p in got.refused] == [(2, [("no-capacity", "args.networks[0].addresses")])]
    assert refused(start(atomic=True, **members), policy=policy) == [("no-capacity", "args.networks[0].addresses")]


def test_addresses_and_macs_of_others() -> None:
    held = building.interface("x", addresses=("192.0.2.7/24",), mac="02:00:00:00:00:01")
    holder = other(spec={"interfaces": (held,)})
    asks = start(networks=[{"type": "own", "addresses": ["192.0.2.7"]}, {"type": "public", "mac": "02:00:00:00:00:01"}])
    assert refused(asks, (holder,)) == [
        ("address-in-use", "args.networks[0].addresses[0]"),
        ("address-in-use", "args.networks[1].mac"),
    ]
    admitted(asks, (dataclasses.replace(holder, outcome=Outcome.KILLED),))


def test_an_id_that_exists() -> None:
    mine = building.record(spec={"interfaces": ()})
    assert refused(start(), (mine,)) == [("id-in-use", "id")]
    got = admitted(start(count=2), (mine,))
    assert [spec.member for spec in got.specs] == [1]
    assert reasons(got.refused[0][1]) == [("id-in-use", "id")]
    assert refused(start(), (dataclasses.replace(mine, closed=True),)) == [("id-in-use", "id")]


def test_reasons_shared_by_all_members_are_told_once() -> None:
    mine = tuple(building.record(spec={"interfaces": (), "member": n, "cores": 1}) for n in range(3))
    assert len(refused(start(count=3), mine)) == 3  # three ids, three reasons
    policy = dataclasses.replace(POLICY, networks={"public": building.network(pools=("10.0.0.1",))})
    asks = start(count=40, networks=[{"type": "public"}])
    assert refused(asks, policy=policy) == [("address", "args.networks[0].addresses")]


def test_whatever_is_admitted_fits_and_collides_with_nothing() -> None:
    chance = random.Random(500)
    for _ in range(40):
        records: List[VmRecord] = []
        for n in range(8):
            command = start(
                id=f"00000000-0000-4000-8000-{n:012d}", count=chance.randrange(1, 6), atomic=chance.random() < 0.5,
                cores=chance.randrange(1, 5), memory_mib=chance.choice([512, 4096]), disk_gib=chance.randrange(1, 40),
                networks=[{"type": "public"}] * chance.randrange(3),
            )  # fmt: skip
            try:
                got = admitted(command, tuple(records))
            except Problems:
                continue
            assert {s.member for s in got.specs} | {m for m, _ in got.refused} == set(range(command.args["count"]))
            assert not (got.refused and command.args["atomic"])
            records += [building.record(spec=spec) for spec in got.specs]
            records = [
                dataclasses.replace(r, outcome=Outcome.KILLED, closed=r.closed or chance.random() < 0.5)
                if chance.random() < 0.1 else r
                for r in records
            ]  # fmt: skip
            alive = [r.spec for r in records if r.outcome is None]
            assert sum(s.cores for s in alive) <= 8
            assert sum(s.memory_mib for s in alive) <= 16384
            assert sum(r.spec.disk_gib for r in records if not r.closed) <= 100
            held = [a for s in alive for i in s.interfaces for a in (i.mac, i.device, *i.addresses)]
            assert len(held) == len(set(held))
