"""capacity.query: how many, when, why not more, how long it takes, and how many of them are the asker's to have."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Optional

import pytest

from tests.support import building as b
from tests.support.offered import FLAVOURS, here, room
from tests.unit.test_capacity import resources, vm
from vmagent.core import dn, inquiry, request
from vmagent.core.capacity import Here
from vmagent.core.commands import Command, Signer
from vmagent.core.model import Outcome
from vmagent.core.policy import Authority, Policy, Volume
from vmagent.errors import Problems

ME = Signer(b.SIGNER, dn.parse(b.SIGNER), "ab" * 32)


def query(signer: Signer = ME, fqan: Optional[str] = "/vo.example/Role=NULL", **args: Any) -> Command:
    if "cores" not in args:
        args.setdefault("flavour", "small")
    payload: Dict[str, Any] = {
        "schema": "capacity.query/1", "id": b.COMMAND, "issued_at": "2026-11-20T11:59:59Z",
        "valid_until": "2026-11-20T12:59:59Z", "target": "wn017.site.example.org", "args": args,
        "on_behalf_of": None if fqan is None else {"subject": b.USER, "fqan": fqan},
    }  # fmt: skip
    return request.parse(payload, "d" * 64, signer, "local" if signer.local else "broker")


def told(of: Here, command: Optional[Command] = None, **args: Any) -> Dict[str, Any]:
    return inquiry.answer(command or query(**args), of, 4)


def granting(*rows: Authority, **kw: Any) -> Policy:
    return b.policy(authority=rows, flavours=FLAVOURS, memory_overhead_mib=0, **kw)


# ---- how many and when


def test_now_and_why_not_more() -> None:
    answer = told(here(vm(1)), count=4)
    assert (answer["enough"], answer["enough_in_s"], answer["now"]["possible"]) == (True, 0, 4)
    assert resources(answer["now"]["reasons"]) == ["cores"]
    assert answer["asked"] == {"count": 4, "from": None, "for_s": None}
    assert answer["then"] == answer["now"]
    assert answer["valid_until"] == "2026-11-20T12:05:00.000Z"


def test_more_than_there_is_and_when_there_will_be_enough() -> None:
    of = here(vm(1, lifetime_s=1500), vm(2, lifetime_s=4000))
    answer = told(of, count=4)
    assert (answer["enough"], answer["now"]["possible"], answer["enough_in_s"]) == (False, 0, 600)
    assert [(one["in_s"], one["possible"]) for one in answer["later"]] == [(600, 4), (3600, 8), (21600, 8)]
    assert told(of, count=9)["enough_in_s"] is None


def test_at_a_time_of_the_askers() -> None:
    of = here(vm(1, lifetime_s=1500))  # ends 500 s from now
    answer = told(of, count=8, **{"from": "2026-11-20T12:08:20Z"})
    assert (answer["then"]["in_s"], answer["then"]["possible"], answer["enough"]) == (500, 8, True)
    answer = told(of, count=8, **{"from": "2026-11-20T12:08:19Z"})
    assert (answer["then"]["possible"], answer["enough"]) == (4, False)
    past = told(of, **{"from": "2026-11-20T11:00:00Z"})
    assert past["then"] == past["now"]


def test_a_port_of_a_bridge_comes_back_with_the_vm_that_had_it() -> None:
    of = here(vm(1, lifetime_s=1500), room=room(ports_free={b.BRIDGE: 0}))
    answer = told(of, networks=[{"type": "public"}], **{"from": "2026-11-20T12:08:20Z"})
    assert (answer["now"]["possible"], resources(answer["now"]["reasons"])) == (0, ["ports"])
    assert (answer["then"]["possible"], resources(answer["then"]["reasons"])) == (1, ["ports"])


def test_there_is_no_such_time() -> None:
    with pytest.raises(Problems) as caught:
        query(**{"from": "2026-02-30T12:00:00Z"})
    assert caught.value.fields["path"] == "args.from"


def test_all_the_reasons_together() -> None:
    answer = told(here(room=room(drained=True)), cores=99, memory_mib=99999, disk_gib=999, for_s=9999999,
                  networks=[{"type": "moon"}])
    assert answer["now"]["possible"] == 0
    assert resources(answer["now"]["reasons"]) == [
        "drained", "unknown-network", "over-limit", "over-limit", "over-limit", "over-limit", "cores", "memory_mib",
        "disk_gib"]  # fmt: skip
    assert resources(told(here(), flavour="none")["now"]["reasons"]) == ["unknown-flavour"]


def test_addresses_run_out_too() -> None:
    policy = b.policy(flavours=FLAVOURS, networks={"public": b.network(pools=("192.0.2.100-192.0.2.102",))})
    answer = told(here(policy=policy), networks=[{"type": "public"}, {"type": "public"}])
    assert (answer["now"]["possible"], resources(answer["now"]["reasons"])) == (1, ["addresses"])


def test_a_volume_that_is_written_is_one_vms_alone() -> None:
    volumes = {"w": Volume("w", "/srv/w", writable=True), "theirs": Volume("theirs", "/srv/t", vos=("other",))}
    of = here(policy=dataclasses.replace(here().policy, volumes=volumes))
    answer = told(of, disks=[{"volume": "w"}])["now"]
    assert (answer["possible"], answer["reasons"][0]["type"]) == (1, "volume-in-use")
    answer = told(of, disks=[{"volume": "theirs", "read_only": True}])["now"]
    assert (answer["possible"], answer["reasons"][0]["type"]) == (0, "not-authorised")


# ---- how long


def test_how_long_until_all_of_them_run() -> None:
    def took(n: int) -> Any:
        return vm(n, closed=True, outcome=Outcome.FINISHED, timings_ms=(("resumed", 2000),))

    answer = told(here(recent=(took(11), took(12))), count=9)
    assert answer["start_s"] == {"median": 2.0, "p95": 2.0, "all": 6.0, "measured": 2}
    assert told(here(), count=9)["start_s"] == {"median": None, "p95": None, "all": None, "measured": 0}


# ---- whose (I10)


def test_what_the_askers_vo_holds_and_may_have() -> None:
    most = b.maxima(cores=2, memory_mib=1024, count=10, lifetime_s=3600)
    rows = (Authority(b.SIGNER, ("vm.*", "capacity.query"), vos=("vo.*",), flavours=("small",), maxima=most),
            Authority(b.SIGNER, ("*",), vos=("other",)), Authority("CN=somebody", ("*",)))
    yours = told(here(vm(1), policy=granting(*rows)))["yours"]
    assert (yours["vo"], yours["may_start"], yours["reasons"], yours["possible"]) == ("vo.example", True, [], 4)
    assert (yours["holds"]["vms"]["total"], yours["holds"]["cores"]) == (1, 4)
    assert yours["grants"] == [{
        "networks": ["public"], "flavours": ["small"], "own_sizes": False, "count": 10, "lifetime_s": 3600,
        "largest": {"cores": 2, "memory_mib": 1024, "disk_gib": 90},
    }]  # fmt: skip


def test_room_that_is_not_the_askers_to_have() -> None:
    most = b.maxima(memory_mib=256)
    answer = told(here(policy=granting(Authority(b.SIGNER, ("*",), networks=("none",), maxima=most))),
                  networks=[{"type": "public"}])
    assert answer["now"]["possible"] == 8, "the host has room"
    assert (answer["yours"]["may_start"], answer["yours"]["possible"]) == (False, 0)
    assert {one["path"] for one in answer["yours"]["reasons"]} == {"args.networks[0].type", "args.flavour"}
    asks_only = told(here(policy=granting(Authority(b.SIGNER, ("capacity.query",)))))["yours"]
    assert (asks_only["may_start"], asks_only["grants"]) == (False, [])


def test_on_the_socket_nobody_is_limited_and_without_an_owner_there_is_no_vo() -> None:
    local = Signer("local:root")
    assert told(here(), query(local, None))["yours"] is None
    yours = told(here(policy=granting()), query(local))["yours"]
    assert (yours["may_start"], yours["possible"], yours["grants"][0]["own_sizes"]) == (True, 8, True)


def test_bandwidth_that_nothing_can_limit_here() -> None:
    answer = told(here(room=room(shaping=False)), networks=[{"type": "public", "bandwidth_in_kbit": 1000}])
    assert resources(answer["now"]["reasons"])[0] == "not-supported-here"
