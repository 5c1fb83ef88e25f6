"""What a user gives a guest: taken as it is, checked at its place, and never repeated."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any, Dict, List

import pytest

from tests.support import building
from tests.unit.test_admission import admitted, start
from vmagent.core import codec, context, schemas
from vmagent.core.context import NOTHING, Context
from vmagent.errors import Problems

SECRET = "hunter2"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def blob(type: str, more: bytes = b"\x00\x00\x00\x04abcd") -> str:
    return b64(len(type).to_bytes(4, "big") + type.encode() + more)


KEYS = [f"{type} {blob(type)} somebody@example.org" for type in context.KEY_TYPES]


@pytest.mark.parametrize("data", [b"", b"#cloud-config\n", gzip.compress(b"x"), b"\x00\xff\r\n'\"", b"a" * 100_000])
def test_user_data_is_taken_byte_for_byte(data: bytes) -> None:
    assert context.context({"user_data": b64(data)}).user_bytes == data


@pytest.mark.parametrize("key", [*KEYS, KEYS[0].rsplit(" ", 1)[0], KEYS[0] + " with a \u00fc in it"])
def test_public_keys(key: str) -> None:
    assert context.context({"ssh_keys": [key]}).ssh_keys == (key,)


NO_KEYS = [
    "", " ", "ssh-ed25519", "ssh-ed25519 ", KEYS[0].split(" ")[1], "-----BEGIN OPENSSH PRIVATE KEY-----",
    'command="/bin/sh" ' + KEYS[0], KEYS[0] + "\n", KEYS[0] + "\n" + KEYS[1], KEYS[0] + "\r", KEYS[0] + "\u2028x",
    KEYS[0] + "\x00", KEYS[0] + " \x1b[2J", KEYS[0] + " \u202egpj", "ssh-dss " + blob("ssh-dss"),
    "ssh-rsa " + blob("ssh-ed25519"), "ssh-rsa " + blob("ssh-rsa", b""), "ssh-rsa AAAA====", "ssh-rsa AAAA\tx",
    f"ssh-rsa\t{blob('ssh-rsa')}", f"ssh-rsa  {blob('ssh-rsa')}", "ssh-ed25519 " + blob("ssh-ed25519") + "!",
]  # fmt: skip


@pytest.mark.parametrize("key", NO_KEYS)
def test_what_is_no_public_key(key: str) -> None:
    assert not context.is_public_key(key)


BAD: List[Any] = [
    ({"user_data": SECRET}, "args.user_data"),
    ({"user_data": b64(b"hunter22") + "\n"}, "args.user_data"),
    ({"user_data": "aHVudGVyMh=="}, "args.user_data"),  # bits beside the last byte
    ({"user_data": "\u00fc" + SECRET}, "args.user_data"),
    ({"ssh_keys": [KEYS[0], SECRET]}, "args.ssh_keys[1]"),
    *[({"meta_data": {name: SECRET}}, f"args.meta_data.{name}") for name in context.RESERVED],
    ({"meta_data": {"1x": SECRET}}, 'args.meta_data["1x"]'),
    ({"meta_data": {"x: y\n": SECRET}}, 'args.meta_data["x: y\\n"]'),
    ({"meta_data": {"x": SECRET + "\nseedfrom: http://example.org"}}, "args.meta_data.x"),
    ({"meta_data": {"x": SECRET + "\x00"}}, "args.meta_data.x"),
]


@pytest.mark.parametrize(("args", "path"), BAD)
def test_what_is_wrong_is_told_by_its_place_and_never_repeated(args: Dict[str, Any], path: str) -> None:
    with pytest.raises(Problems) as caught:
        context.context(args)
    problem = caught.value
    assert (problem.type, problem.fields["path"]) == ("context", path)
    assert SECRET not in codec.canonical(problem.as_json()) and "aHVudGVy" not in codec.canonical(problem.as_json())


def test_everything_wrong_at_once() -> None:
    with pytest.raises(Problems) as caught:
        context.context({"user_data": "%", "ssh_keys": ["a", "b"], "meta_data": {"instance-id": "x"}})
    assert len(caught.value.problems) == 4


WRONG_KINDS = [{"user_data": 12345}, {"ssh_keys": [12345]}, {"meta_data": {"pin": [12345]}}, {"ssh_keys": "12345"},
               {"user_data": "12345" * 2_000_000}, {"meta_data": {"pin": "12345" * 1000}}]


@pytest.mark.parametrize("wrong", WRONG_KINDS, ids=lambda w: str(w)[:30])
def test_the_schema_repeats_no_secret_either(wrong: Dict[str, Any]) -> None:
    with pytest.raises(Problems) as caught:
        schemas.check("vm.start", {"image": {"id": "x"}, "lifetime_s": 1, "flavour": "s", **wrong}, "args")
    assert "12345" not in codec.canonical(caught.value.as_json())


def test_it_shows_nothing_of_itself() -> None:
    given = Context(b64(SECRET.encode()), (SECRET,), (("pin", SECRET),))
    shown = repr(given) + str(given) + f"{given}"
    assert SECRET not in shown and given.user_data not in shown


def test_it_comes_back_from_the_store() -> None:
    given = context.context({"user_data": b64(b"\x00"), "ssh_keys": KEYS, "meta_data": {"b": 1, "a": None, "c": True}})
    assert context.from_json(json.loads(codec.canonical(given))) == given


def test_its_digest_is_no_oracle_and_nothing_has_none() -> None:
    given = Context(user_data=b64(b"x"))
    assert context.digest(NOTHING, "d" * 64) == ""
    assert context.digest(given, "d" * 64) != context.digest(given, "e" * 64)


def test_size_counts_what_the_guest_gets() -> None:
    assert NOTHING.size == 0
    assert Context(b64(b"x" * 1000)).size == 1000
    assert Context("", ("k" * 50,), (("name", "value"),)).size == 50 + 4 + len('"value"')


def test_more_than_the_site_allows_is_refused() -> None:
    policy = building.policy(maxima=building.maxima(context_bytes=1000))
    admitted(start(user_data=b64(b"x" * 1000)), policy=policy)
    with pytest.raises(Problems) as caught:
        admitted(start(user_data=b64(b"x" * 990), meta_data={"name": "12345678"}), policy=policy)
    assert caught.value.type == "over-limit"
    assert (caught.value.fields["path"], caught.value.fields["maximum"]) == ("args.user_data", 1000)


def test_the_wish_says_only_that_there_is_one() -> None:
    command = start(user_data=b64(SECRET.encode()), ssh_keys=KEYS, meta_data={"pin": SECRET})
    spec = admitted(command).specs[0]
    text = codec.canonical(spec)
    assert len(spec.context) == 64
    assert not any(secret in text for secret in (SECRET, b64(SECRET.encode()), KEYS[0], "pin"))
    assert admitted(start()).specs[0].context == ""
