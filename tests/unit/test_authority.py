"""Default deny: each thing a row does not grant is refused, and every reason is told."""

from __future__ import annotations

import itertools
import json
from typing import Any, Dict, List, Optional, Sequence, Tuple

import pytest

from tests.support import building
from vmagent.core import authority, dn, request
from vmagent.core.commands import VERBS, Command, Signer
from vmagent.core.model import Owner, VmRecord
from vmagent.core.policy import Authority, Flavour, Policy
from vmagent.errors import Problem, Problems

ME = "CN=controller,O=Example Site,C=NL"
SIGNER = Signer(ME, dn.parse(ME), "ab" * 32)
OTHER = "CN=other,O=Example Site,C=NL"
FQAN = "/vo.example/prod/Role=pilot"
MORE: Dict[str, Dict[str, Any]] = {
    "vm.extend": {"lifetime_s": 1}, "vm.limits": {"cpu_weight": 50}, "vm.snapshot": {"name": "s"},
    "vm.snapshot.delete": {"name": "s"}, "vm.snapshot.cancel": {"name": "s"},
    **dict.fromkeys(("image.revoke", "image.fetch", "image.evict", "image.pin", "image.unpin"), {"id": "tiny"}),
    "capacity.query": {"flavour": "small"}, "vm.attach": {"volume": "data"}, "vm.detach": {"volume": "data"},
}  # fmt: skip
"""What a verb needs beside a selector."""


def policy(*rows: Authority) -> Policy:
    return building.policy(authority=rows, flavours={"small": Flavour(1, 512, 2, 50), "big": Flavour(8, 4096, 20)})


def row(signer: str = ME, verbs: Sequence[str] = ("*",), **kw: Any) -> Authority:
    return Authority(signer, tuple(verbs), **kw)


def command(verb: str = "vm.start", signer: Signer = SIGNER, fqan: Optional[str] = FQAN, **args: Any) -> Command:
    if verb == "vm.start":
        args = {"image": {"id": "tiny"}, "lifetime_s": 3600, **args}
        if "cores" not in args:
            args.setdefault("flavour", "small")
    payload: Dict[str, Any] = {
        "schema": f"{verb}/1", "id": building.COMMAND, "issued_at": "2026-11-20T11:59:59Z",
        "valid_until": "2026-11-20T12:59:59Z", "target": "wn017.site.example.org", "args": args,
        "on_behalf_of": None if fqan is None else {"subject": building.USER, "fqan": fqan},
    }  # fmt: skip
    return request.parse(payload, "d" * 64, signer, "local" if signer.local else "broker")


def why(asked: Command, rows: Sequence[Authority], members: Sequence[VmRecord] = (), specs: Any = ()) -> List[Any]:
    """The paths of all refusals; [] = allowed."""
    try:
        authority.authorise(asked, policy(*rows), members, specs)
    except Problems as problems:
        assert {problem.type for problem in problems.problems} == {"not-authorised"}
        json.dumps(problems.as_json()).encode("ascii")
        return [problem.fields.get("path") for problem in problems.problems]
    return []


# ---- whom a row is about ----

ABOUT: Tuple[Tuple[str, bool], ...] = (
    (ME, True),
    ("/C=NL/O=Example Site/CN=controller", True),
    ("cn=controller, o=Example Site, c=NL", True),
    ("commonName=controller,organizationName=Example Site,2.5.4.6=NL", True),
    ("sha256:" + "ab" * 32, True),
    ("sha256:" + "AB" * 32, True),
    ("sha256:" + "ac" * 32, False),
    ("sha256:", False),
    ("sha256:*", False),
    ("", False),
    ("*", False),
    ("CN=*,O=Example Site,C=NL", False),
    ("CN=controller,O=Example Site", False),
    ("O=Example Site,CN=controller,C=NL", False),
    ("CN=Controller,O=Example Site,C=NL", False),
    ("/C=NL/O=Example Site/CN=controller/CN=proxy", False),
    ("C=NL,O=Example Site,CN=controller", False),
)


@pytest.mark.parametrize(("signer", "about"), ABOUT)
def test_whom_a_row_is_about(signer: str, about: bool) -> None:
    assert authority.about(row(signer), SIGNER) is about
    assert why(command(), [row(signer)]) == ([] if about else [None])


def test_an_unnamed_signer_matches_nothing() -> None:
    nobody = Signer("broker")
    for signer in ("", "sha256:", "broker", "*"):
        assert why(command(signer=nobody), [row(signer)]) == [None]


def test_a_broker_login_is_named_in_full() -> None:
    login = Signer("broker:controllers")
    assert why(command(signer=login), [row("broker:controllers")]) == []
    for signer in ("broker:", "broker:*", "broker:controller", "controllers", ME):
        assert why(command(signer=login), [row(signer)]) == [None]
    assert why(command(), [row("broker:controllers")]) == [None]


def test_no_rows_no_rights() -> None:
    for verb in VERBS:
        args: Dict[str, Any] = {**({"all": True} if VERBS[verb].selects else {}), **MORE.get(verb, {})}
        assert why(command(verb, **args), []) == [None]
        assert why(command(verb, **args), [row(OTHER)]) == [None]
        assert why(command(verb, **args), [row(verbs=())]) == ["schema"]
        assert why(command(verb, **args), [row(scope="all")]) == []


@pytest.mark.parametrize("scope", ["own", "vo"])
def test_what_concerns_everybody_needs_the_scope_all(scope: str) -> None:
    assert why(command("image.revoke", id="tiny"), [row(scope=scope)]) == [None]
    assert why(command("image.revoke", id="tiny"), [row(scope=scope), row(scope="all")]) == []
    for verb in ("image.evict", "image.pin", "image.unpin"):
        assert why(command(verb, id="tiny"), [row(scope=scope)]) == [None]
    for verb, args in (("image.list", {}), ("image.fetch", {"id": "tiny"})):
        assert why(command(verb, **args), [row(scope=scope)]) == []


@pytest.mark.parametrize(
    ("verbs", "allowed"),
    [(("vm.start",), True), (("vm.*",), True), (("*",), True), (("vm.stop", "vm.st?rt"), True), (("host.*",), False),
     (("VM.START",), False), (("vm.star",), False), (("",), False)],
)  # fmt: skip
def test_verbs(verbs: Sequence[str], allowed: bool) -> None:
    assert why(command(), [row(verbs=verbs)]) == ([] if allowed else ["schema"])


def test_the_verbs_that_are_granted_are_told() -> None:
    with pytest.raises(Problem) as caught:
        authority.authorise(command(), policy(row(verbs=("vm.stop", "host.dr*"))), (), ())
    assert caught.value.detail == "vm.start refused: this signer may use host.drain, vm.stop"


# ---- starts ----

STARTS: Tuple[Tuple[Dict[str, Any], Dict[str, Any], List[str]], ...] = (
    ({"vos": ("vo.example",)}, {}, []),
    ({"vos": ("vo.*",)}, {}, []),
    ({"vos": ("/vo.example/prod/*",)}, {}, []),
    ({"vos": ("/vo.example/*/Role=pilot",)}, {}, []),
    ({"vos": ()}, {}, ["on_behalf_of"]),
    ({"vos": ("example",)}, {}, ["on_behalf_of"]),
    ({"vos": ("vo.example.evil",)}, {}, ["on_behalf_of"]),
    ({"vos": ("/vo.example/test/*",)}, {}, ["on_behalf_of"]),
    ({"vos": ("VO.EXAMPLE",)}, {}, ["on_behalf_of"]),
    ({"vos": ("vo.example",)}, {"fqan": None}, ["on_behalf_of"]),
    ({"vos": ("vo.example",)}, {"fqan": ""}, ["on_behalf_of"]),
    ({"vos": ("vo.example",)}, {"fqan": "/evil/vo.example"}, ["on_behalf_of"]),
    ({"vos": ("*",)}, {"fqan": None}, []),
    ({"networks": ("public",)}, {}, []),
    ({"networks": ()}, {}, []),
    ({"networks": ()}, {"networks": [{"type": "public"}]}, ["args.networks[0].type"]),
    ({"networks": ("pub*",)}, {"networks": [{"type": "public"}, {"type": "dmz"}]}, ["args.networks[1].type"]),
    ({"flavours": ("small",)}, {}, []),
    ({"flavours": ("small",)}, {"flavour": "big"}, ["args.flavour"]),
    ({"flavours": ("small",)}, {"cores": 1, "memory_mib": 64, "disk_gib": 1}, ["args.flavour"]),
    ({"flavours": ("?*",)}, {"cores": 1, "memory_mib": 64, "disk_gib": 1}, ["args.flavour"]),
    ({"flavours": ("*",)}, {"cores": 1, "memory_mib": 64, "disk_gib": 1}, []),
    ({"maxima": building.maxima()}, {"flavour": "big"}, []),
    ({"maxima": building.maxima(cores=7)}, {"flavour": "big"}, ["args.flavour"]),
    ({"maxima": building.maxima(count=2)}, {"count": 3}, ["args.count"]),
    ({"maxima": building.maxima(lifetime_s=60)}, {}, ["args.lifetime_s"]),
    ({"maxima": building.maxima(cpu_cap_core_percent=50)}, {}, []),
    ({"maxima": building.maxima(cpu_cap_core_percent=49)}, {}, ["args.cpu_cap_core_percent"]),
    ({"maxima": building.maxima(cpu_cap_core_percent=799)}, {"flavour": "big"}, ["args.cpu_cap_core_percent"]),
    ({"maxima": building.maxima(cpu_weight=100)}, {}, []),
    ({"maxima": building.maxima(cpu_weight=99)}, {}, ["args.cpu_weight"]),
    ({"maxima": building.maxima(bandwidth_in_kbit=1000)}, {}, []),
    ({"maxima": building.maxima(bandwidth_in_kbit=1000)}, {"networks": [{"type": "public"}]},
     ["args.networks[0].bandwidth_in_kbit"]),
    ({"maxima": building.maxima(bandwidth_in_kbit=1000)},
     {"networks": [{"type": "public", "bandwidth_in_kbit": 1000}, {"type": "public", "bandwidth_in_kbit": 1001}]},
     ["args.networks[1].bandwidth_in_kbit"]),
    ({"maxima": building.maxima(disk_read_ops_per_s=100)}, {"disk_io": {"write_ops_per_s": 10}},
     ["args.disk_io.read_ops_per_s"]),
    ({"maxima": building.maxima(disk_read_ops_per_s=100)}, {"disk_io": {"read_ops_per_s": 100}}, []),
    ({"maxima": building.maxima(cores=1)}, {"flavour": "nosuch"}, []),
    (
        {"vos": (), "networks": (), "flavours": (), "maxima": building.maxima(count=1, lifetime_s=1)},
        {"count": 2, "networks": [{"type": "public"}]},
        ["on_behalf_of", "args.networks[0].type", "args.flavour", "args.lifetime_s", "args.count"],
    ),
)


@pytest.mark.parametrize(("grants", "asks", "expected"), STARTS)
def test_starts(grants: Dict[str, Any], asks: Dict[str, Any], expected: List[str]) -> None:
    assert why(command(**asks), [row(**grants)]) == expected


def test_rows_are_not_added_up() -> None:
    small_for_vo = row(vos=("vo.example",), flavours=("small",))
    big_for_other = row(vos=("other",), flavours=("*",))
    assert why(command(flavour="big"), [small_for_vo, big_for_other]) == ["args.flavour", "on_behalf_of"]
    assert why(command(flavour="small"), [small_for_vo, big_for_other]) == []
    assert why(command(flavour="small"), [big_for_other, small_for_vo]) == []


def test_what_admission_made_of_it_is_checked_too() -> None:
    spec = building.spec(cores=4, owner=Owner(building.USER, FQAN))
    assert why(command(), [row(maxima=building.maxima(cores=4), vos=("vo.example",))], specs=[spec]) == []
    assert why(command(), [row(maxima=building.maxima(cores=3))], specs=[spec]) == ["args.flavour"]
    assert why(command(), [row(networks=("dmz",))], specs=[spec]) == ["args.networks"]
    stranger = building.spec(owner=Owner("x", "/evil"))
    assert why(command(), [row(vos=("vo.example",))], specs=[stranger]) == ["on_behalf_of"]


def test_local_signers_pass_but_a_start_needs_an_owner() -> None:
    local = Signer("local:root")
    authority.authorise(command(signer=local), policy(), (), ())
    authority.authorise(command("vm.kill", signer=local, fqan=None, all=True), policy(), [building.record()], ())
    with pytest.raises(Problem) as caught:
        authority.authorise(command(signer=local, fqan=None), policy(), (), ())
    assert caught.value.type == "owner-needed"


# ---- verbs on VMs ----

MINE = building.record(spec={"controller": ME, "owner": Owner("x", "/other")})
MINE_IN_SLASHES = building.record(spec={"controller": "/C=NL/O=Example Site/CN=controller"})
OF_VO = building.record(spec={"controller": OTHER, "owner": Owner("x", FQAN)})
STRANGE = building.record(spec={"controller": OTHER, "owner": Owner("x", "/other")})
LOCALS = building.record(spec={"controller": "local:root", "owner": Owner("x", "")})


@pytest.mark.parametrize(
    ("scope", "vos", "within"),
    [
        ("own", ("*",), (MINE, MINE_IN_SLASHES)),
        ("vo", ("vo.example",), (OF_VO, MINE_IN_SLASHES)),
        ("vo", ("*",), (MINE, MINE_IN_SLASHES, OF_VO, STRANGE, LOCALS)),
        ("all", (), (MINE, MINE_IN_SLASHES, OF_VO, STRANGE, LOCALS)),
        ("", ("*",), ()),
        ("ALL", ("*",), ()),
    ],
)
def test_scope(scope: str, vos: Tuple[str, ...], within: Sequence[VmRecord]) -> None:
    # The builder's default owner is of vo.example.
    rows = [row(scope=scope, vos=vos)]
    for record in (MINE, MINE_IN_SLASHES, OF_VO, STRANGE, LOCALS):
        expected = [] if record in within else ["args"]
        assert why(command("vm.kill", all=True), rows, [record]) == expected
        assert why(command("vm.query", all=True), rows, [record]) == expected


def test_one_strange_vm_refuses_the_whole() -> None:
    rows = [row()]
    assert why(command("vm.kill", all=True), rows, [MINE, MINE]) == []
    assert why(command("vm.kill", all=True), rows, [MINE, STRANGE]) == ["args"]
    assert why(command("vm.kill", all=True), [row(), row(scope="vo", vos=("vo.example",))], [MINE, OF_VO]) == []


def test_ids_are_told_only_to_who_named_them() -> None:
    with pytest.raises(Problem) as caught:
        authority.authorise(command("vm.kill", all=True), policy(row()), [STRANGE], ())
    assert caught.value.fields["vms"] == []
    assert STRANGE.vm not in json.dumps(caught.value.as_json())
    with pytest.raises(Problem) as caught:
        authority.authorise(command("vm.kill", vms=[STRANGE.vm]), policy(row()), [STRANGE], ())
    assert caught.value.fields["vms"] == [STRANGE.vm]


@pytest.mark.parametrize("verb", sorted(verb.name for verb in VERBS.values() if verb.selects))
def test_every_selecting_verb_minds_the_scope(verb: str) -> None:
    assert why(command(verb, all=True, **MORE.get(verb, {})), [row()], [STRANGE]) == ["args"]


def test_extensions_within_the_rows_maxima() -> None:
    limited = row(maxima=building.maxima(lifetime_s=100))
    until = "2026-11-20T13:00:00Z"
    assert why(command("vm.extend", all=True, lifetime_s=100), [limited], [MINE]) == []
    assert why(command("vm.extend", all=True, lifetime_s=101), [limited], [MINE]) == ["args.lifetime_s"]
    assert why(command("vm.extend", all=True, until=until), [limited], [MINE]) == ["args.until"]
    assert why(command("vm.extend", all=True, until=until), [row()], [MINE]) == []
    # The row that grants the length must be the row that grants the VM.
    both = [limited, row(scope="vo", vos=("vo.example",))]
    assert why(command("vm.extend", all=True, lifetime_s=101), both, [MINE]) == ["args"]
    assert why(command("vm.extend", all=True, lifetime_s=101), both, [OF_VO]) == []


LIMITED: Tuple[Tuple[Dict[str, Any], List[str]], ...] = (
    ({"cpu_weight": 200}, []),
    ({"cpu_weight": 201}, ["args.cpu_weight"]),
    ({"cpu_weight": None}, []),  # the site's default, 100
    ({"cpu_cap_core_percent": 50}, []),
    ({"cpu_cap_core_percent": 51}, ["args.cpu_cap_core_percent"]),
    ({"cpu_cap_core_percent": None}, []),  # the flavour's, 50
    ({"networks": [{"bandwidth_in_kbit": 1000}]}, []),
    ({"networks": [{"bandwidth_in_kbit": 1001}]}, ["args.networks[0].bandwidth_in_kbit"]),
    ({"networks": [{"bandwidth_in_kbit": None}]}, ["args.networks[0].bandwidth_in_kbit"]),  # none at all
    ({"networks": [{"bandwidth_out_kbit": 10**6}]}, []),
    ({"networks": [{"type": "dmz", "bandwidth_in_kbit": 1001}]}, []),  # of no interface: refused when it is applied
    ({"disk_io": None}, ["args.disk_io.read_ops_per_s"]),
)


@pytest.mark.parametrize(("args", "expected"), LIMITED)
def test_new_limits_within_the_rows_maxima(args: Dict[str, Any], expected: List[str]) -> None:
    most = building.maxima(cpu_weight=200, cpu_cap_core_percent=50, bandwidth_in_kbit=1000, disk_read_ops_per_s=100)
    asked = command("vm.limits", all=True, **args)
    assert why(asked, [row(maxima=most)], [MINE]) == expected
    assert why(asked, [row(maxima=most), row()], [MINE]) == []
    # The row that grants the limits must be the row that grants the VM.
    assert why(asked, [row(maxima=most), row(scope="vo", vos=("vo.example",))], [MINE]) == expected


def test_what_a_vm_has_beyond_a_rows_maxima_is_no_reason_to_refuse_something_else() -> None:
    fast = building.record(spec={"controller": ME, "cpu_weight": 10_000})
    limited = row(maxima=building.maxima(cpu_weight=200))
    assert why(command("vm.limits", all=True, cpu_cap_core_percent=10), [limited], [fast]) == []


def test_a_row_more_never_takes_away() -> None:
    rows = [row(verbs=("vm.stop",)), row(flavours=("small",)), row(vos=()), row(OTHER), row(scope="all", vos=("x",))]
    commands = [command(), command(flavour="big"), command("vm.kill", all=True), command("host.drain")]
    for asked in commands:
        for chosen in itertools.chain.from_iterable(itertools.combinations(rows, n) for n in range(len(rows))):
            if why(asked, chosen, [STRANGE]) == []:
                assert why(asked, rows, [STRANGE]) == []
