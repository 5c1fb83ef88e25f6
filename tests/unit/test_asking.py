"""Command lines in, `args` of PROTOCOL 3 out; spans and columns as people read them."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any, Dict, Iterable

import pytest

from vmagent import givenfiles
from vmagent.core import asking, columns, duration, rates, schemas
from vmagent.errors import Problem

KEY = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO3B0yC6l0yX8pQ3ZVtCzXb5b7m8m7l6pY8m4bJ8m2bJ me@example.org"
FILES = {"hello.yaml": b"#cloud-config\n{}\n", "me.pub": b"# mine\n\n" + KEY + b"\r\n",
         "two.pub": KEY + b"\n" + KEY + b"\n",
         "empty.pub": b"\n", "id": b"-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n", "odd": b"\x1f\x8b\x00\xff"}
START = {"image": {"id": "tiny"}, "flavour": "small", "lifetime": 3600}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("7d", 604800), ("1d1h1m1s", 90061),
     ("0", 0)],
)
def test_spans(text: str, seconds: int) -> None:
    assert duration.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-1", "1.5h", "10 m", "1m1h", "١m", "9999999d", "1w"])
def test_bad_spans(text: str) -> None:
    with pytest.raises(ValueError):
        duration.seconds(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (60, "1m"), (125, "2m5s"), (5400, "1h30m"), (604800, "7d"), (90061, "1d1h"),
     (86401, "1d"), (-120, "-2m"), (0.4, "0s"), (-0.4, "0s")],
)
def test_spans_as_text(seconds: float, text: str) -> None:
    assert duration.text(seconds) == text


def test_what_a_span_says_can_be_read_again() -> None:
    for seconds in (*range(0, 3700, 7), 86399, 86400, 999999):
        assert abs(duration.seconds(duration.text(seconds)) - seconds) < max(1, seconds * 0.05)


@pytest.mark.parametrize(
    ("text", "kbit"),
    [("500", 500), ("500kbit", 500), ("10mbit", 10_000), ("1gbit", 1_000_000), ("2Gbit", 2_000_000), ("0", 0)],
)
def test_network_rates(text: str, kbit: int) -> None:
    assert rates.kbit(text) == kbit


@pytest.mark.parametrize(("text", "size"), [("1000", 1000), ("50mb", 50_000_000), ("64kib", 65536), ("1gib", 1 << 30)])
def test_disk_rates(text: str, size: int) -> None:
    assert rates.bytes_per_s(text) == size


@pytest.mark.parametrize("text", ["", "mbit", "-1", "1.5mbit", "10 mbit", "1e3", "\u0661mbit", "1kbps", "1mbit\n"])
def test_bad_rates(text: str) -> None:
    for read in (rates.kbit, rates.bytes_per_s):
        with pytest.raises(ValueError, match="a rate like"):
            read(text)


def said(table: Iterable[asking.Option], line: str) -> Dict[str, Any]:
    """The options of a command line, as the commands get them."""
    parser = argparse.ArgumentParser()
    asking.add_options(parser, table)
    return vars(parser.parse_args(shlex.split(line)))


RULES: Dict[str, Dict[str, Any]] = {
    "tcp": {"protocol": "tcp"},
    "any": {"protocol": "any"},
    "tcp:22": {"protocol": "tcp", "ports": [22]},
    "tcp:22,80-90@192.0.2.0/24": {"protocol": "tcp", "ports": [22, "80-90"], "cidr": "192.0.2.0/24"},
    "icmpv6@2001:db8::/32": {"protocol": "icmpv6", "cidr": "2001:db8::/32"},
}


@pytest.mark.parametrize("text", sorted(RULES))
def test_rules(text: str) -> None:
    assert asking.rule("allow")(text) == {"action": "allow", **RULES[text]}
    schemas.check("vm.limits", {"all": True, "networks": [{"firewall": {"inbound": [asking.rule("deny")(text)]}}]})


@pytest.mark.parametrize("text", ["", "ssh", "22", "tcp:", "tcp@", "tcp:22@", ":22", "@10.0.0.0/8", "TCP:22", "tcp 22"])
def test_bad_rules(text: str) -> None:
    with pytest.raises(ValueError, match="a rule is"):
        asking.rule("allow")(text)


def test_a_start_with_limits() -> None:
    line = """--image tiny --flavour small --lifetime 1h --network public --network dmz=192.0.2.5 --cpu-cap 50
        --cpu-weight 20 --bandwidth-in 10mbit --bandwidth-out 500kbit --deny-in tcp:22@192.0.2.9 --allow-in tcp:22
        --deny-out any@10.0.0.0/8 --read-bytes 50mb --write-ops 100"""
    args = asking.start_args(said(asking.START, line), FILES.__getitem__)
    schemas.check("vm.start", args)
    assert (args["cpu_cap_core_percent"], args["cpu_weight"]) == (50, 20)
    assert args["disk_io"] == {"read_bytes_per_s": 50_000_000, "write_ops_per_s": 100}
    shared = {
        "bandwidth_in_kbit": 10_000, "bandwidth_out_kbit": 500,
        "firewall": {
            "inbound": [{"action": "deny", "protocol": "tcp", "ports": [22], "cidr": "192.0.2.9"},
                        {"action": "allow", "protocol": "tcp", "ports": [22]}],
            "outbound": [{"action": "deny", "protocol": "any", "cidr": "10.0.0.0/8"}],
        },
    }  # fmt: skip
    assert args["networks"] == [{"type": "public", **shared}, {"type": "dmz", "addresses": ["192.0.2.5"], **shared}]


@pytest.mark.parametrize("line", ["--bandwidth-in 1mbit", "--allow-in tcp:22"])
def test_bandwidth_and_rules_need_an_interface(line: str) -> None:
    with pytest.raises(Problem) as caught:
        asking.start_args(said(asking.START, f"--image tiny --flavour small --lifetime 1h {line}"), FILES.__getitem__)
    assert caught.value.type == "usage"


LIMITS: Dict[str, Dict[str, Any]] = {
    "--cpu-cap 50": {"cpu_cap_core_percent": 50},
    "--cpu-cap default --cpu-weight default": {"cpu_cap_core_percent": None, "cpu_weight": None},
    "--read-ops 100 --write-bytes default": {"disk_io": {"read_ops_per_s": 100, "write_bytes_per_s": None}},
    "--bandwidth-in 10mbit --bandwidth-out default": {
        "networks": [{"bandwidth_in_kbit": 10_000, "bandwidth_out_kbit": None}]
    },
    "--on-network default --bandwidth-in 64": {"networks": [{"type": "default", "bandwidth_in_kbit": 64}]},
    "--allow-out udp:53 --deny-out any": {"networks": [{"firewall": {"outbound": [
        {"action": "allow", "protocol": "udp", "ports": [53]}, {"action": "deny", "protocol": "any"},
    ]}}]},
    "--no-rules-in --deny-out any": {
        "networks": [{"firewall": {"outbound": [{"action": "deny", "protocol": "any"}], "inbound": []}}]
    },
}  # fmt: skip


@pytest.mark.parametrize("line", sorted(LIMITS))
def test_new_limits(line: str) -> None:
    args = asking.limits_args(said(asking.LIMITS, line))
    assert args == LIMITS[line]
    schemas.check("vm.limits", {"all": True, **args})


@pytest.mark.parametrize("line", ["", "--on-network public", "--no-rules-in --allow-in tcp:22"])
def test_new_limits_that_say_nothing_or_two_things(line: str) -> None:
    with pytest.raises(Problem) as caught:
        asking.limits_args(said(asking.LIMITS, line))
    assert caught.value.type == "usage"


def test_every_limit_can_be_given_on_a_command_line() -> None:
    known = schemas.schema("vm.limits")["properties"]
    assert {option.member for option in asking.LIMITS} == set(known) - {"vms", "tag", "owner", "image", "all"}
    for table in (asking.START, asking.LIMITS):
        disk = {option.within for option in table if option.member == "disk_io"}
        nics = {option.within for option in table if option.member == "networks"}
        assert disk == set(known["disk_io"]["properties"])
        assert nics - {"", "type"} == {"bandwidth_in_kbit", "bandwidth_out_kbit", "inbound", "outbound"}


def test_what_was_not_said_is_left_to_the_agent() -> None:
    said: Dict[str, Any] = {option.name: None for option in asking.START}
    args = asking.start_args({**said, **START, "atomic": False, "count": 2}, FILES.__getitem__)
    assert args == {"image": {"id": "tiny"}, "flavour": "small", "lifetime_s": 3600, "count": 2}
    schemas.check("vm.start", args)


def test_every_option_is_a_member_of_the_schema() -> None:
    known = schemas.schema("vm.start")["properties"]
    assert {option.member for option in asking.START} == set(known)
    assert {option.member for option in asking.SELECTOR} == set(schemas.schema("selector")["properties"]) - {"vms"}


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("public", {"type": "public"}),
        ("public=192.0.2.5", {"type": "public", "addresses": ["192.0.2.5"]}),
        ("p=192.0.2.5,2001:db8::5/02:00:00:00:00:01",
         {"type": "p", "addresses": ["192.0.2.5", "2001:db8::5"], "mac": "02:00:00:00:00:01"}),
    ],
)
def test_networks(text: str, asked: Dict[str, Any]) -> None:
    assert asking.network(text) == asked
    with pytest.raises(ValueError):
        asking.network("=" + text)


def test_a_selector_is_exactly_one() -> None:
    assert asking.selector_args({"all": False, "tagged": "t"}, ()) == {"tag": "t"}
    assert asking.selector_args({}, ("b", "a", "b")) == {"vms": ["b", "a"]}
    for said, vms in (({}, ()), ({"all": True}, ("a",)), ({"all": True, "tagged": "t"}, ())):
        with pytest.raises(Problem) as caught:
            asking.selector_args(said, vms)
        assert caught.value.type == "usage"


def test_columns_align_and_obey_nobody() -> None:
    assert columns.lines(("A", "BB"), [("xxx", ""), ("y", "\x1b[31mred\n")]) == ["A    BB", "xxx  -", "y    ?[31mred?"]


def given(line: str) -> Dict[str, Any]:
    parsed = said(asking.START, f"--image tiny --flavour small --lifetime 1h {line}")
    args = asking.start_args(parsed, FILES.__getitem__)
    schemas.check("vm.start", args)
    return {name: args.get(name) for name in ("user_data", "ssh_keys", "meta_data")}


def test_user_data_keys_and_meta_data_come_from_files_and_pairs() -> None:
    found = given("--user-data odd --ssh-key me.pub --ssh-key two.pub --meta-data role=worker --meta-data a=b=c")
    assert found["user_data"] == "H4sA/w=="
    assert found["ssh_keys"] == [KEY.decode()] * 3
    assert found["meta_data"] == {"role": "worker", "a": "b=c"}
    assert set(given("").values()) == {None}


@pytest.mark.parametrize("file", ["id", "empty.pub", "odd", "hello.yaml"])
def test_what_is_no_public_key_is_not_sent(file: str) -> None:
    with pytest.raises(Problem) as caught:
        given(f"--ssh-key {file}")
    assert caught.value.type == "usage"
    assert file in caught.value.detail and "secret" not in caught.value.detail


@pytest.mark.parametrize("text", ["", "role", "=x"])
def test_bad_meta_data(text: str) -> None:
    with pytest.raises(ValueError, match="KEY=VALUE"):
        asking.meta(text)


def test_files_are_read_whole_and_bounded(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"\x00\r\n")
    assert givenfiles.content(str(tmp_path / "small")) == b"\x00\r\n"
    with (tmp_path / "large").open("wb") as file:
        file.truncate(givenfiles.MOST_BYTES + 1)
    for name, why in (("large", "4 MiB"), ("none", "No such file"), (".", "Is a directory")):
        with pytest.raises(Problem, match=why) as caught:
            givenfiles.content(str(tmp_path / name))
        assert caught.value.type == "usage"


@pytest.mark.parametrize(
    ("words", "verb", "args"),
    [
        ([], "vm.snapshot.list", {}),
        (["--take", "a"], "vm.snapshot", {"name": "a"}),
        (["--take", "a", "--kind", "full", "--quiesce", "no", "--keep", "1d"], "vm.snapshot",
         {"name": "a", "kind": "full", "quiesce": "no", "keep_s": 86400}),
        (["--delete", "a"], "vm.snapshot.delete", {"name": "a"}),
        (["--cancel", "a"], "vm.snapshot.cancel", {"name": "a"}),
        (["--delete", "a", "--take", "b"], "", {}),
        (["--delete", "a", "--keep", "1d"], "", {}),
        (["--kind", "full"], "", {}),
    ],
)
def test_what_is_asked_of_snapshots(words: Any, verb: str, args: Any) -> None:
    parser = argparse.ArgumentParser()
    asking.add_options(parser, asking.SNAPSHOT)
    said = vars(parser.parse_args(words))
    if verb:
        assert asking.snapshot_args(said) == (verb, args)
        return
    with pytest.raises(Problem) as caught:
        asking.snapshot_args(said)
    assert caught.value.type == "usage"
