"""From bytes to a command: what is refused, with which type, where, and all of it at once."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import random
from typing import Any, Dict, List, Optional, Tuple

import pytest

from tests.support import building
from vmagent.core import request, walltime
from vmagent.core.commands import VERBS, Command, Signer
from vmagent.core.model import Owner
from vmagent.errors import Problem, Problems

HOST = "wn017.site.example.org"
ID = "6f1c2f9e-6d5b-4f0e-9d51-0d6a7a1b2c3d"
SIGNER = Signer(building.SIGNER, ((("C", "NL"),), (("O", "Example Site"),), (("CN", "controller"),)), "ab" * 32)
LOCAL = Signer("local:root")
NOW = walltime.seconds(building.WALL)


def payload(**members: Any) -> Dict[str, Any]:
    body: Dict[str, Any] = {
        "schema": "vm.start/1",
        "id": ID,
        "issued_at": "2026-11-20T11:59:59.000Z",
        "valid_until": "2026-11-20T12:59:59.000Z",
        "target": HOST,
        "on_behalf_of": {"subject": building.USER, "fqan": "/vo.example/Role=NULL", "assertion": None},
        "reason": "batch 4711",
        "args": {"flavour": "small", "image": {"id": "tiny"}, "lifetime_s": 3600},
    }
    body.update(members)
    return body


def parsed(route: str = "broker", signer: Signer = SIGNER, **members: Any) -> Command:
    return request.parse(payload(**members), "d" * 64, signer, route)


def refusals(value: Any) -> List[Tuple[str, Optional[str]]]:
    with pytest.raises(Problems) as caught:
        request.parse(value, "d" * 64, SIGNER, "broker")
    json.dumps(caught.value.as_json()).encode("ascii")
    return [(problem.type, problem.fields.get("path")) for problem in caught.value.problems]


def types(caught: Problem) -> List[str]:
    return [problem.type for problem in caught.problems] if isinstance(caught, Problems) else [caught.type]


# ---- envelope ----


def jws(**members: Any) -> bytes:
    body: Dict[str, Any] = {"protected": "eyJ9", "payload": "e30", "signature": "AA"}
    body.update(members)
    return json.dumps(body).encode()


def test_envelope_keeps_the_parts_and_the_digest_of_the_bytes() -> None:
    raw = jws()
    got = request.envelope(raw, 1000)
    assert got == request.Envelope("eyJ9", "e30", "AA", hashlib.sha256(raw).hexdigest())
    assert request.envelope(raw + b" ", 1000).digest != got.digest


@pytest.mark.parametrize(
    ("raw", "type", "path"),
    [
        (b"x" * 1001, "too-large", None),
        (b"", "json", None),
        (b"[]", "schema", ""),
        (b"null", "schema", ""),
        (b'{"payload":"a","payload":"b"}', "json", ""),
        (jws(header={"alg": "none"}), "schema", "header"),
        (jws(signature=""), "schema", "signature"),
        (jws(payload={}), "schema", "payload"),
        (jws(payload="a.b"), "schema", "payload"),
        (json.dumps(payload()).encode(), "schema", "args"),
    ],
)
def test_envelope_refused(raw: bytes, type: str, path: Optional[str]) -> None:
    with pytest.raises(Problem) as caught:
        request.envelope(raw, 1000)
    assert (caught.value.type, caught.value.fields.get("path")) == (type, path)


# ---- parse ----


def test_parsed_members() -> None:
    command = parsed(reply_to="/queue/x", if_generation=None)
    assert command.verb == "vm.start"
    assert command.owner == Owner(building.USER, "/vo.example/Role=NULL")
    assert command.owner.vo == "vo.example"
    assert (command.reply_to, command.if_generation, command.reason) == ("/queue/x", None, "batch 4711")
    assert (command.digest, command.signer, command.route) == ("d" * 64, SIGNER, "broker")


def test_what_may_be_left_away() -> None:
    body = payload()
    for name in ("on_behalf_of", "reason"):
        del body[name]
    command = request.parse(body, "", SIGNER, "broker")
    assert (command.owner, command.reason, command.reply_to, command.if_generation) == (None, "", "", None)
    assert parsed(on_behalf_of=None, reply_to=None).owner is None


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_can_be_asked(verb: str) -> None:
    args: Dict[str, Any] = {"all": True} if VERBS[verb].selects else {}
    if verb == "vm.start":
        args = payload()["args"]
    more = {"vm.extend": {"lifetime_s": 1}, "vm.limits": {"cpu_weight": 50}, "capacity.query": {"flavour": "small"}}
    if verb.startswith("image.") and VERBS[verb].changes:
        args["id"] = "tiny"
    args.update(more.get(verb, {}))
    if verb in ("vm.attach", "vm.detach"):
        args["volume"] = "data"
    if verb in ("vm.snapshot", "vm.snapshot.delete", "vm.snapshot.cancel"):
        args["name"] = "s"
    assert parsed(schema=f"{verb}/1", args=args).verb == verb


BAD: Tuple[Tuple[Any, List[Tuple[str, Optional[str]]]], ...] = (
    (None, [("schema", "")]),
    ([], [("schema", "")]),
    ("vm.start", [("schema", "")]),
    ({}, [("schema", p) for p in ("args", "id", "issued_at", "schema", "target", "valid_until")]),
    (payload(schema="vm.explode/1"), [("unknown-verb", "schema")]),
    (payload(schema="vm.start/2"), [("unknown-verb", "schema")]),
    (payload(schema="common/1"), [("unknown-verb", "schema"), ("schema", "schema")]),
    (payload(schema="../../etc/passwd"), [("unknown-verb", "schema"), ("schema", "schema")]),
    (payload(schema="vm.start"), [("unknown-verb", "schema"), ("schema", "schema")]),
    (payload(schema="vm.start/1\n"), [("unknown-verb", "schema"), ("schema", "schema")]),
    (payload(schema=1), [("schema", "schema")]),
    (payload(id=ID.upper()), [("schema", "id")]),
    (payload(id=ID + "\n"), [("schema", "id")]),
    (payload(id="{" + ID + "}"), [("schema", "id")]),
    (payload(id="../" + ID), [("schema", "id")]),
    (payload(id=1), [("schema", "id")]),
    (payload(target=""), [("schema", "target")]),
    (payload(target="a b"), [("schema", "target")]),
    (payload(target="**"), [("schema", "target")]),
    (payload(target=["*"]), [("schema", "target")]),
    (payload(reply_to="/queue/a,topic://b"), [("schema", "reply_to")]),
    (payload(reply_to="/queue/a?x=y"), [("schema", "reply_to")]),
    (payload(reply_to="/queue/a\nreceipt:1"), [("schema", "reply_to")]),
    (payload(reply_to="/queue/*"), [("schema", "reply_to")]),
    (payload(reply_to="/queue/>"), [("schema", "reply_to")]),
    (payload(reply_to=""), [("schema", "reply_to")]),
    (payload(on_behalf_of="me"), [("schema", "on_behalf_of")]),
    (payload(on_behalf_of={}), [("schema", "on_behalf_of.subject")]),
    (payload(on_behalf_of={"subject": "a\nb"}), [("schema", "on_behalf_of.subject")]),
    (payload(on_behalf_of={"subject": "a", "fqan": "/vo/<x>"}), [("schema", "on_behalf_of.fqan")]),
    (payload(on_behalf_of={"subject": "a", "fqan": "//vo"}), [("schema", "on_behalf_of.fqan")]),
    (payload(on_behalf_of={"subject": "a", "fqan": "/vo/../x y"}), [("schema", "on_behalf_of.fqan")]),
    (payload(on_behalf_of={"subject": "a", "assertion": "x"}), [("schema", "on_behalf_of.assertion")]),
    (payload(on_behalf_of={"subject": "a", "uid": 0}), [("schema", "on_behalf_of.uid")]),
    (payload(if_generation=1), [("schema", "if_generation")]),
    (payload(if_generation=0), [("schema", "if_generation"), ("schema", "if_generation")]),
    (payload(reason="x" * 257), [("schema", "reason")]),
    (payload(reason="a\x1b[31m"), [("schema", "reason")]),
    (payload(reason="a\r\nVMAGENT_VM=forged"), [("schema", "reason")]),
    (payload(args=None), [("schema", "args")]),
    (payload(args=[]), [("schema", "args")]),
    (payload(args={}), [("schema", "args"), ("schema", "args.image"), ("schema", "args.lifetime_s")]),
    (payload(extra=1, signer="root"), [("schema", "extra"), ("schema", "signer")]),
    (payload(issued_at="2026-11-20T11:59:59+00:00"), [("schema", "issued_at")]),
    (payload(issued_at=1795176000), [("schema", "issued_at")]),
    (payload(issued_at="2026-02-30T00:00:00Z"), [("schema", "issued_at")]),
    (payload(valid_until="2026-11-20T11:59:58Z"), [("schema", "valid_until")]),
    (payload(valid_until="2026-11-20T11:59:59.000Z"), [("schema", "valid_until")]),
    (
        payload(schema="vm.extend/1", args={"all": True, "until": "2026-02-30T00:00:00Z"}),
        [("schema", "args.until")],
    ),
    (
        payload(schema="vm.nope/1", id="x", issued_at="2026-13-01T00:00:00Z", args={"x": 1}),
        [("unknown-verb", "schema"), ("schema", "id"), ("schema", "issued_at")],
    ),
    (
        payload(id="x", args={"flavour": "small", "image": {"id": "../x"}, "lifetime_s": 1.0}),
        [("schema", "args.image.id"), ("schema", "args.lifetime_s"), ("schema", "id")],
    ),
)


@pytest.mark.parametrize(("value", "expected"), BAD)
def test_refused_with_type_and_path(value: Any, expected: List[Tuple[str, Optional[str]]]) -> None:
    found = refusals(value)
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert found[0] == expected[0]


def test_an_unknown_verb_is_told_the_known_ones() -> None:
    with pytest.raises(Problem) as caught:
        parsed(schema="vm.explode/1")
    assert caught.value.fields["accepted"] == sorted(f"{name}/1" for name in VERBS)


def test_random_damage_is_a_command_or_problems() -> None:
    chance = random.Random(99)
    junk: Tuple[Any, ...] = (None, True, 0, -1, 2.5, "", "x", "*", "<x/>", [], {}, "2026-11-20T12:00:00Z")
    for _ in range(600):
        body = payload(schema=chance.choice([f"{name}/1" for name in VERBS]))
        for _ in range(chance.randrange(1, 4)):
            place = body if chance.random() < 0.6 or not isinstance(body["args"], dict) else body["args"]
            place[chance.choice([*place, "new", "until", "all"])] = chance.choice(junk)
        try:
            command = request.parse(body, "", SIGNER, "broker")
        except Problems:
            continue
        assert command.verb in VERBS
        walltime.seconds(command.issued_wall)


# ---- target ----

REPORT = {"schema": "host.report/1", "args": {}}


@pytest.mark.parametrize(
    ("members", "from_topic", "path"),
    [
        ({}, False, None),
        (REPORT, False, None),
        (REPORT, True, None),
        ({**REPORT, "target": "*"}, True, None),
        ({**REPORT, "target": "*"}, False, "target"),
        ({"target": "*"}, True, "target"),
        ({"target": "*"}, False, "target"),
        ({}, True, "schema"),
        ({"target": "wn018.site.example.org"}, False, "target"),
        ({**REPORT, "target": "wn018.site.example.org"}, True, "target"),
        ({"target": HOST.upper()}, False, "target"),
        ({"target": "wn017"}, False, "target"),
    ],
)
def test_target(members: Dict[str, Any], from_topic: bool, path: Optional[str]) -> None:
    command = parsed(**members)
    if path is None:
        request.for_us(command, HOST, from_topic)
        return
    with pytest.raises(Problem) as caught:
        request.for_us(command, HOST, from_topic)
    assert (caught.value.type, caught.value.fields["path"]) == ("wrong-target", path)


# ---- freshness ----

DAY = 86400


@pytest.mark.parametrize(
    ("issued", "until", "born", "expected"),
    [
        (-1, 3600, None, []),
        (-2, 3600, -301, ["before-epoch"]),
        (0, 3600, -300, []),
        (-1, 3600, -302, []),
        (-1, 3600, 1000, ["before-epoch"]),
        (0, DAY, None, []),
        (0, DAY + 1, None, ["validity-too-long"]),
        (-3600, 0, None, []),
        (-3600, -1, None, ["stale-command"]),
        (300, 3600, None, []),
        (301, 3600, None, ["future-command"]),
        (301, 3 * DAY, None, ["validity-too-long", "future-command"]),
        (-9 * DAY, -8 * DAY, 0, ["stale-command", "before-epoch"]),
        (-9 * DAY, 9 * DAY, 0, ["validity-too-long", "before-epoch"]),
    ],
)
def test_freshness(issued: float, until: float, born: Optional[float], expected: List[str]) -> None:
    command = parsed(issued_at=walltime.text(NOW + issued), valid_until=walltime.text(NOW + until))
    birth = None if born is None else NOW + born
    if not expected:
        request.fresh(command, NOW, 300, birth)
        return
    with pytest.raises(Problem) as caught:
        request.fresh(command, NOW, 300, birth)
    assert types(caught.value) == expected


def test_a_local_command_cannot_be_older_than_the_epoch() -> None:
    request.fresh(parsed(route="local", signer=LOCAL), NOW, 300, NOW)


# ---- replies ----


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ("/queue/vmagent.S.replies", True),
        ("/queue/vmagent.S.replies.me", True),
        ("/queue/vmagent.S.replies/me", True),
        ("/queue/vmagent.S.replies-me", True),
        ("/queue/vmagent.S.repliesX", False),
        ("/queue/vmagent.S", False),
        ("/queue/vmagent.S.commands", False),
        ("/temp-queue/abc", True),
        ("/topic/vmagent.S.events", False),
        ("x/queue/vmagent.S.replies", False),
    ],
)
def test_reply_destinations(asked: str, allowed: bool) -> None:
    prefixes = ("", "/queue/vmagent.S.replies", "/temp-queue/")
    assert request.reply_allowed(asked, prefixes) is allowed
    policy = building.policy(reply_prefixes=prefixes)
    if allowed:
        request.answerable(parsed(reply_to=asked), policy)
        return
    with pytest.raises(Problem) as caught:
        request.answerable(parsed(reply_to=asked), policy)
    assert (caught.value.type, caught.value.fields["path"]) == ("reply-to", "reply_to")


def test_no_reply_destination_is_the_default() -> None:
    request.answerable(parsed(), building.policy(reply_prefixes=()))


# ---- owner ----


def test_owner() -> None:
    assert request.owner_of(parsed()) == Owner(building.USER, "/vo.example/Role=NULL")
    assert request.owner_of(parsed(on_behalf_of=None)) == Owner("/C=NL/O=Example Site/CN=controller")
    proxied = dataclasses.replace(SIGNER, rdns=(*SIGNER.rdns, (("CN", "123"),)))
    assert request.owner_of(parsed(signer=proxied, on_behalf_of=None)) == Owner("/C=NL/O=Example Site/CN=controller")
    assert request.owner_of(parsed(signer=Signer("broker"), on_behalf_of=None)) == Owner("broker")
    with pytest.raises(Problem) as caught:
        request.owner_of(parsed(signer=LOCAL, on_behalf_of=None))
    assert caught.value.type == "owner-needed"


# ---- what a refused body claims ----


def signed(body: Any) -> bytes:
    return jws(payload=base64.urlsafe_b64encode(json.dumps(body).encode()).rstrip(b"=").decode())


@pytest.mark.parametrize(
    ("raw", "name", "word"),
    [
        (json.dumps(payload()).encode(), "id", ID),
        (signed(payload()), "id", ID),
        (signed(payload()), "schema", "vm.start/1"),
        (signed(payload(reply_to="/queue/x")), "reply_to", "/queue/x"),
        (signed(payload()), "reply_to", ""),
        (signed(payload(id="<x/>")), "id", ""),
        (signed(payload(id=ID + "\n")), "id", ""),
        (signed(payload(id=[ID])), "id", ""),
        (signed([]), "id", ""),
        (jws(payload="!"), "id", ""),
        (jws(payload="A"), "id", ""),
        (jws(payload="\u00e9"), "id", ""),
        (b"\xff", "id", ""),
        (b"", "id", ""),
        (b"[" * 100000, "id", ""),
        (b"7", "id", ""),
    ],
)
def test_claims(raw: bytes, name: str, word: str) -> None:
    assert request.claimed(raw, name) == word


def test_payload_digest_is_of_the_value() -> None:
    assert request.payload_digest({"a": 1, "b": 2}) == request.payload_digest({"b": 2, "a": 1})
    assert request.payload_digest({"a": 1}) != request.payload_digest({"a": 2})
