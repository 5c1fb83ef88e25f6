"""The schemas as contract, and errors a person can act on, the same with the oldest and newest jsonschema."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
from jsonschema import Draft7Validator

import vmagent
from vmagent.core import schemas
from vmagent.core.commands import VERBS
from vmagent.errors import Problems

NAMES = sorted(path.name[: -len(".json")] for path in (Path(vmagent.__file__).parent / "schema").glob("*.json"))
COMMANDS = ("command", "jws", "selector", *VERBS)
UUID = "6f1c2f9e-6d5b-4f0e-9d51-0d6a7a1b2c3d"


def problems(name: str, value: Any) -> List[Tuple[str, str]]:
    """(path, accepted) of all that is wrong."""
    try:
        schemas.check(name, value)
    except Problems as caught:
        assert all(problem.type == "schema" for problem in caught.problems)
        json.dumps(caught.as_json()).encode("ascii")
        return [(problem.fields["path"], problem.fields["accepted"]) for problem in caught.problems]
    return []


def start(**members: Any) -> Dict[str, Any]:
    body: Dict[str, Any] = {"flavour": "small", "image": {"id": "tiny"}, "lifetime_s": 3600}
    body.update(members)
    return {name: value for name, value in body.items() if value is not None}


def test_every_verb_has_a_schema() -> None:
    assert set(VERBS) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_is_draft_07_and_needs_no_other_file(name: str) -> None:
    flat = schemas.schema(name)
    Draft7Validator.check_schema(flat)
    assert '"$ref"' not in json.dumps(flat)
    assert flat.get("$id", "").startswith(f"urn:vmagent:schema:{name.removeprefix('event.')}:")


def objects(node: Any) -> List[Any]:
    """Every sub-schema that describes an object by its members."""
    found = [node] if isinstance(node, dict) and isinstance(node.get("properties"), dict) else []
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return found + [one for value in inner for one in objects(value)]


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_refuse_unknown_members_everywhere(name: str) -> None:
    assert all(one.get("additionalProperties") is False for one in objects(schemas.schema(name)))
    assert ("surprise", ) in {problem[:1] for problem in problems(name, {"surprise": 1})}


GOOD: Tuple[Tuple[str, Any], ...] = (
    ("vm.start", start()),
    ("vm.start", start(flavour=None, cores=1, memory_mib=512, disk_gib=2)),
    (
        "vm.start",
        start(
            count=500, atomic=True, name="a worker", cpu_cap_core_percent=50, start_by_s=5, ready_by_s=5, keep_s=0,
            tags=["batch-1", "vo=x"], dry_run=True,
            networks=[{"type": "public", "addresses": ["192.0.2.1", "2001:db8::1"], "mac": "02:00:00:00:00:0A"}],
        ),
    ),
    ("vm.stop", {"vms": [UUID], "grace_s": 0}),
    ("vm.kill", {"tag": "batch-1"}),
    ("vm.reboot", {"owner": "/DC=org/DC=example/CN=J\u00fcrgen M\u00fcller"}),
    ("vm.pause", {"image": "tiny"}),
    ("vm.resume", {"all": True}),
    ("vm.extend", {"all": True, "lifetime_s": 10}),
    ("vm.extend", {"tag": "t", "until": "2026-11-20T12:00:00Z"}),
    ("vm.query", {"all": True}),
    ("capacity.query", {"flavour": "small"}),
    ("capacity.query", {"cores": 1, "memory_mib": 64, "disk_gib": 1, "count": 500, "from": "2026-11-20T12:00:00Z",
                        "for_s": 60, "networks": [{"type": "public", "bandwidth_in_kbit": 64}],
                        "disks": [{"scratch_gib": 1}]}),
    ("image.list", {}),
    ("image.revoke", {"id": "tiny"}),
    ("image.fetch", {"id": "tiny", "fetch_by_s": 60}),
    ("image.fetch", {"url": "https://a/b", "sha512": "ab" * 64, "format": "vmdk", "size": 1}),
    ("image.evict", {"sha512": "ab" * 64}),
    ("image.pin", {"id": "tiny"}),
    ("image.unpin", {"id": "tiny"}),
    ("image.revoke", {"sha512": "ab" * 64, "action": "kill", "version": 7, "why": "CVE"}),
    ("host.report", {}),
    ("host.drain", {}),
    ("host.undrain", {}),
    ("jws", {"protected": "eyJ", "payload": "eyJ", "signature": "-_A"}),
    ("reply", {"command": UUID, "status": "done", "result": {"anything": 1}, "later": True}),
    ("reply", {"command": None, "status": "refused", "problem": {"type": "no-capacity", "title": "t", "detail": "d"}}),
)


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_good(name: str, value: Any) -> None:
    assert problems(name, value) == []


BAD_ARGS: Tuple[Tuple[str, Any, List[str]], ...] = (
    # the shape
    ("vm.start", [], [""]),
    ("vm.start", None, [""]),
    ("vm.start", {}, ["", "image", "lifetime_s"]),
    ("vm.start", start(flavour=None), [""]),
    ("vm.start", start(cores=1), [""]),
    ("vm.start", start(cores=1, memory_mib=1024, disk_gib=1), [""]),
    ("vm.start", start(flavour=None, cores=1, memory_mib=1024), [""]),
    # numbers
    ("vm.start", start(count=0), ["count"]),
    ("vm.start", start(count=1001), ["count"]),
    ("vm.start", start(count=2.0), ["count"]),
    ("vm.start", start(count=True), ["count"]),
    ("vm.start", start(count="2"), ["count"]),
    ("vm.start", start(lifetime_s=0), ["lifetime_s"]),
    ("vm.start", start(lifetime_s=-1), ["lifetime_s"]),
    ("vm.start", start(lifetime_s=10**9), ["lifetime_s"]),
    ("vm.start", start(keep_s=-1), ["keep_s"]),
    ("vm.start", start(flavour=None, cores=0, memory_mib=1, disk_gib=0), ["cores", "disk_gib", "memory_mib"]),
    ("vm.start", start(cpu_cap_core_percent=0), ["cpu_cap_core_percent"]),
    ("vm.start", start(atomic=1), ["atomic"]),
    ("vm.start", start(dry_run="no"), ["dry_run"]),
    # names: XML, paths, shells, formats, control characters, look-alikes
    *(
        ("vm.start", start(name=name), ["name"])
        for name in (
            "", " ", "-x", ".x", "..", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "<x/>", "a&b", "a'b", 'a"b',
            "]]>", "a\n", "a\x00b", "a\tb", "a;b", "$(id)", "`id`", "a|b", "%s", "{x}", "a%%b", "a" * 65,
            "\u0430dmin", "a\u202eb", "a\u2028", "\uff41", 7, ["a"],
        )
    ),
    *(
        ("vm.start", start(image={"id": image}), ["image.id"])
        for image in ("", "../x", "/x", "a/b", "x\n", "http://x/y", "a b", "a" * 65, None, 1)
    ),
    ("vm.start", start(image="tiny"), ["image"]),
    ("vm.start", start(image={}), ["image"]),
    ("vm.start", start(image={"id": "x", "url": "http://x", "sha512": "00"}), ["image", "image.sha512", "image.url"]),
    ("vm.start", start(flavour="../small"), ["flavour"]),
    ("vm.start", start(tags=["ok", "a b", "<x>"]), ["tags[1]", "tags[2]"]),
    ("vm.start", start(tags=["a", "a"]), ["tags"]),
    ("vm.start", start(tags=[str(n) for n in range(33)]), ["tags"]),
    # networks
    ("vm.start", start(networks={}), ["networks"]),
    ("vm.start", start(networks=[{}]), ["networks[0].type"]),
    ("vm.start", start(networks=[{"type": "a"}, {"type": "b/c"}]), ["networks[1].type"]),
    ("vm.start", start(networks=[{"type": "a", "bridge": "br0"}]), ["networks[0].bridge"]),
    ("vm.start", start(networks=[{"type": "a", "mac": "02-00-00-00-00-01"}]), ["networks[0].mac"]),
    ("vm.start", start(networks=[{"type": "a", "mac": "02:00:00:00:00:01\n"}]), ["networks[0].mac"]),
    ("vm.start", start(networks=[{"type": "a", "addresses": []}]), ["networks[0].addresses"]),
    ("vm.start", start(networks=[{"type": "a", "addresses": ["x", "fe80::1%eth0", "::1/64"]}]),
     ["networks[0].addresses[0]", "networks[0].addresses[1]", "networks[0].addresses[2]"]),
    ("vm.start", start(networks=[{"type": "a"}] * 9), ["networks"]),
    # of later issues
    ("vm.start", start(user_data=5, ssh_keys="x", meta_data={"pin": ["1234"]}, hold="x"),
     ["hold", "meta_data.pin", "ssh_keys", "user_data"]),
    ("vm.start", start(disks=[{"scratch_gib": 1, "volume": "data"}]), ["disks[0]"]),
    ("vm.start", start(disks=[{"volume": "../etc"}]), ["disks[0].volume"]),
    ("vm.start", start(disks=[{"path": "/etc/shadow"}]), ["disks[0]", "disks[0].path"]),
    ("vm.start", start(disks=[{"cdrom": "tools", "read_only": True}]), ["disks[0]"]),
    ("vm.start", start(**{"we ird\n": 1}), ['["we ird\\n"]']),
    ("vm.start", start(xml="<domain/>", path="/dev/sda", command="rm"), ["command", "path", "xml"]),
    # selectors
    ("vm.stop", {}, [""]),
    ("vm.stop", {"vms": [UUID], "all": True}, [""]),
    ("vm.stop", {"tag": "a", "owner": "b", "image": "c"}, [""]),
    ("vm.stop", {"vms": []}, ["vms"]),
    ("vm.stop", {"vms": UUID}, ["vms"]),
    ("vm.stop", {"vms": [UUID.upper()]}, ["vms[0]"]),
    ("vm.stop", {"vms": [UUID, UUID]}, ["vms"]),
    ("vm.stop", {"vms": [UUID + "\n", "vma-" + UUID, "*", "debian"]}, ["vms[0]", "vms[1]", "vms[2]", "vms[3]"]),
    ("vm.stop", {"all": False}, ["all"]),
    ("vm.stop", {"all": 1}, ["all"]),
    ("vm.stop", {"group": "g"}, ["", "group"]),
    ("vm.stop", {"all": True, "grace_s": -1}, ["grace_s"]),
    ("vm.stop", {"all": True, "grace_s": 60.0}, ["grace_s"]),
    ("vm.kill", {"all": True, "grace_s": 60}, ["grace_s"]),
    ("vm.kill", {"owner": "a\x1b[2Jb"}, ["owner"]),
    ("vm.kill", {"owner": "a\u202eb"}, ["owner"]),
    ("vm.kill", {"owner": ""}, ["owner"]),
    ("vm.kill", {"owner": "x" * 513}, ["owner"]),
    ("vm.extend", {"all": True}, [""]),
    ("vm.extend", {"all": True, "lifetime_s": 1, "until": "2026-11-20T12:00:00Z"}, [""]),
    ("vm.extend", {"all": True, "until": "tomorrow"}, ["until"]),
    ("vm.extend", {"lifetime_s": 10}, [""]),
    ("host.drain", {"mode": "stop"}, ["mode"]),
    ("capacity.query", {}, [""]),
    ("capacity.query", {"flavour": "a", "cores": 1}, [""]),
    ("capacity.query", {"flavour": "a", "image": {"id": "x"}, "lifetime_s": 1}, ["image", "lifetime_s"]),
    ("capacity.query", {"flavour": "a", "count": 0, "for_s": 0, "from": "now"}, ["count", "for_s", "from"]),
    ("capacity.query", {"flavour": "a", "networks": [{"type": "a", "addresses": ["192.0.2.1"]}]},
     ["networks[0].addresses"]),
    ("image.revoke", {"id": "tiny", "action": "delete"}, ["action"]),
    ("image.revoke", {"id": "tiny", "version": 0}, ["version"]),
    ("image.revoke", {"sha512": "AB" * 64}, ["sha512"]),
    ("image.revoke", {"id": "tiny", "sha512": "ab" * 64}, [""]),
    ("image.revoke", {}, [""]),
    ("image.fetch", {"url": "https://a/b"}, [""]),
    ("image.fetch", {"id": "tiny", "format": "raw"}, [""]),
    ("image.fetch", {"id": "tiny", "fetch_by_s": 604801}, ["fetch_by_s"]),
    ("image.evict", {"id": "tiny", "sha512": "ab" * 64}, [""]),
    ("image.pin", {}, [""]),
    # the envelope
    ("jws", {"protected": "e", "payload": "e"}, ["signature"]),
    ("jws", {"protected": "e=", "payload": "e\n", "signature": ""}, ["payload", "protected", "signature"]),
    ("jws", {"protected": "e", "payload": "e", "signature": "e", "header": {"alg": "none"}}, ["header"]),
    ("jws", {"payload": "e", "signatures": []}, ["protected", "signature", "signatures"]),
)


@pytest.mark.parametrize(("name", "value", "paths"), BAD_ARGS)
def test_bad_with_all_paths(name: str, value: Any, paths: List[str]) -> None:
    found = problems(name, value)
    assert [path for path, _ in found] == paths
    assert all(accepted for _, accepted in found)


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (start(count=2.0), "at args.count: must be an integer, 1 to 1000, not 2.0"),
        (start(lifetime_s=None), "at args.lifetime_s: is missing; give an integer, 1 to 34560000"),
        (start(cores=2), "at args: must be exactly one of: flavour | cores, memory_mib, disk_gib"),
        (start(tags="x"), "at args.tags: must be a list, at most 32 items, not a text"),
        (start(tags=["x", "x"]), "at args.tags: must be a list in which nothing stands twice"),
        (start(networks=[{"type": "a", "mac": "aa"}]),
         'at args.networks[0].mac: must be six octets like 02:00:00:00:00:01, not "aa"'),
    ],
)
def test_words(value: Any, detail: str) -> None:
    with pytest.raises(Problems) as caught:
        schemas.check("vm.start", value, "args")
    assert caught.value.detail == detail


def test_unknown_members_are_told_what_is_known() -> None:
    assert problems("host.drain", {"by": 1}) == [("by", "no members")]
    assert problems("vm.kill", {"all": True, "force": 1}) == [("force", "all, image, owner, tag, vms")]


def test_a_long_text_that_may_be_a_secret_is_not_repeated() -> None:
    with pytest.raises(Problems) as caught:
        schemas.check("vm.start", start(count="hunter2"))
    assert "hunter2" not in json.dumps(caught.value.as_json())


def test_the_number_of_problems_is_bounded() -> None:
    assert len(problems("vm.start", start(tags=[" "] * 5000))) <= schemas.MOST_PROBLEMS
    assert len(problems("vm.start", start(**{f"x{n}": 1 for n in range(5000)}))) <= schemas.MOST_PROBLEMS


@pytest.mark.parametrize("name", ["", "no.such", "../core/schemas", "config.json", "VM.START", "vm.start\n", "/etc/x"])
def test_no_such_schema(name: str) -> None:
    with pytest.raises(LookupError):
        schemas.schema(name)


def test_random_damage_never_escapes_as_anything_but_problems() -> None:
    chance = random.Random(4711)
    junk: Tuple[Any, ...] = (None, True, 0, -1, 2.5, 10**15, "", "x", "<x/>", [], [[]], {}, {"a": {}}, [None], "a\n")
    for _ in range(600):
        name, value = chance.choice(GOOD)
        damaged = json.loads(json.dumps(value))
        for _ in range(chance.randrange(1, 3)):
            if isinstance(damaged, dict) and damaged:
                damaged[chance.choice([*damaged, "new", "all", "vms"])] = chance.choice(junk)
        problems(name, damaged)
        problems("command", damaged)
