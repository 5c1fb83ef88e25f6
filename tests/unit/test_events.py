"""Published messages: phases, full states, and the envelope (PROTOCOL 2).  All that is built here fits its schema."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any, Dict, Mapping

import pytest

import vmagent
from tests.support import building as b
from tests.support import imagelists
from vmagent.core import events, hostview, limitviews, schemas
from vmagent.core.alarms import ALARMS
from vmagent.core.changes import Epoch, OutboxRow
from vmagent.core.commands import VERBS
from vmagent.core.drivers import PROFILES
from vmagent.core.imagelist import parse
from vmagent.core.model import (
    CpuLimit,
    Desired,
    FirewallInfo,
    ForeignSeen,
    HypervisorInfo,
    Journal,
    Observed,
    Outcome,
    Phase,
    Reason,
    Seen,
    ShaperInfo,
    VmRecord,
)
from vmagent.core.policy import Endorser, ListSource, TrustPolicy
from vmagent.core.snapshotmodel import SnapshotRules
from vmagent.core.trust import VerifiedList
from vmagent.errors import Problems

DEVICE = b.spec().interfaces[0].device
EPOCH = Epoch("b3c1c7d0-1111-4222-8333-444455556666", 7, b.WALL, "first", "/var/lib/aside")
RUNS = b.record(journal=b.ran())
INFO = HypervisorInfo("qemu:///system", "QEMU", "kvm", "x86_64", "9.0.0", "7.2.0", 8, 16384, True, 12.0)
OVERLAY = frozenset({"overlay"})


def seen_ready(**kw: Any) -> Observed:
    return b.observed(network_seen=(DEVICE,), **kw)


# -- ready


def test_ready_needs_run_proof_disk_and_a_frame() -> None:
    assert events.is_ready(RUNS, seen_ready())
    assert not events.is_ready(RUNS, b.observed())
    assert not events.is_ready(RUNS, seen_ready(disks=("vdb",)))
    assert not events.is_ready(RUNS, b.observed(Seen.PAUSED, network_seen=(DEVICE,)))
    assert not events.is_ready(b.record(), seen_ready())
    assert not events.is_ready(b.record(journal=b.ran(paused_by="start")), seen_ready())


def test_every_interface_must_have_spoken() -> None:
    vm = b.spec().vm
    two = b.spec(interfaces=(b.interface(vm), b.interface(vm, 1)))
    record = b.record(spec=two, journal=b.ran())
    assert not events.is_ready(record, b.observed(of=two, network_seen=(DEVICE,)))
    assert events.is_ready(record, b.observed(of=two, network_seen=tuple(i.device for i in two.interfaces)))


def test_without_interfaces_storage_alone() -> None:
    record = b.record(spec={"interfaces": ()}, journal=b.ran())
    assert events.is_ready(record, b.observed(of=record.spec))
    assert not events.is_ready(record, b.observed(of=record.spec, disks=()))


def test_the_root_disk_of_every_driver_counts() -> None:
    for profile in PROFILES.values():
        assert events.is_ready(RUNS, seen_ready(disks=profile.disk_names))
        assert not events.is_ready(RUNS, seen_ready(disks=profile.disk_names[1:]))


# -- phases


@pytest.mark.parametrize(
    ("record", "observed", "phase"),
    [
        (b.record(), b.observed(Seen.UNKNOWN), Phase.PENDING),
        (b.record(), b.observed(Seen.MISSING), Phase.FETCHING),
        (b.record(), b.observed(Seen.MISSING, leftovers=OVERLAY), Phase.STARTING),
        (b.record(), b.observed(Seen.OFF), Phase.STARTING),
        (b.record(journal={"attempt_boot": b.BOOT}), b.observed(Seen.UNKNOWN), Phase.UNKNOWN),
        (b.record(journal={"attempt_boot": b.BOOT, "paused_by": "start"}), b.observed(Seen.PAUSED), Phase.STARTING),
        (b.record(journal=b.ran(paused_by="resume")), b.observed(Seen.PAUSED), Phase.STARTING),
        (b.record(), b.observed(), Phase.STARTING),
        (RUNS, b.observed(), Phase.RUNNING),
        (RUNS, seen_ready(), Phase.READY),
        (b.record(journal=b.ran(ready_at=1.0)), b.observed(), Phase.READY),
        (RUNS, b.observed(Seen.PAUSED), Phase.PAUSED),
        (b.record(desired=Desired.PAUSED, journal=b.ran(paused_by="command")), b.observed(Seen.PAUSED), Phase.PAUSED),
        (b.record(desired=Desired.PAUSED), b.observed(Seen.SAVED), Phase.PAUSED),
        (b.record(desired=Desired.STOP, journal=b.ran()), b.observed(), Phase.STOPPING),
        (b.record(desired=Desired.STOP, journal=b.ran()), b.observed(Seen.PAUSED), Phase.STOPPING),
        (RUNS, b.observed(Seen.STOPPING), Phase.STOPPING),
        (RUNS, b.observed(Seen.OFF), Phase.STOPPING),
        (b.record(desired=Desired.STOP), b.observed(Seen.MISSING), Phase.STOPPING),
        (dataclasses.replace(RUNS, outcome=Outcome.LOST), b.observed(Seen.OFF), Phase.STOPPED),
        (dataclasses.replace(RUNS, outcome=Outcome.LOST), b.observed(Seen.MISSING), Phase.STOPPED),
        (dataclasses.replace(RUNS, outcome=Outcome.LOST), b.observed(), Phase.STOPPING),
        (dataclasses.replace(RUNS, outcome=Outcome.LOST), b.observed(Seen.UNKNOWN), Phase.UNKNOWN),
        (dataclasses.replace(RUNS, outcome=Outcome.LOST, closed=True), b.observed(Seen.UNKNOWN), Phase.STOPPED),
        (RUNS, b.observed(Seen.STUCK), Phase.STUCK),
        (RUNS, b.observed(Seen.FOREIGN), Phase.FOREIGN),
        (RUNS, b.observed(Seen.UNKNOWN), Phase.UNKNOWN),
    ],
)
def test_phases(record: VmRecord, observed: Observed, phase: Phase) -> None:
    assert events.phase(record, observed) is phase


def test_there_is_a_phase_for_everything_and_stopped_only_after_an_end() -> None:
    journals = (Journal(), Journal(attempt_boot=b.BOOT, paused_by="start"), b.ran(), b.ran(paused_by="command"))
    for desired, seen, journal in itertools.product(Desired, Seen, journals):
        phase = events.phase(b.record(desired=desired, journal=journal), b.observed(seen))
        assert phase is not Phase.STOPPED
        if seen is Seen.UNKNOWN and journal.attempt_boot:
            assert phase is Phase.UNKNOWN


# -- vm.state


def state(record: VmRecord = RUNS, observed: Any = None, at: float = 1000.0) -> Dict[str, Any]:
    return events.vm_state(record, observed or b.observed(), b.now(at), b.policy())


def test_every_state_fits_its_schema() -> None:
    journals = (Journal(), b.ran(alarms=tuple(ALARMS)), b.ran(ended_at=1200.0, ended_boot=b.BOOT))
    for desired, seen, journal, outcome in itertools.product(Desired, Seen, journals, (None, Outcome.KILLED)):
        record = b.record(
            desired=desired, journal=journal, outcome=outcome, reasons=(Reason("agent", "because", b.WALL),),
            timings_ms=(("defined", 12),),
        )  # fmt: skip
        data = state(record, b.observed(seen), 1500.5)
        schemas.check("event.vm.state", data)
        json.dumps(data, allow_nan=False)


def test_the_schema_demands_every_member_and_allows_more() -> None:
    data = state()
    schemas.check("event.vm.state", {**data, "later": 1})
    for name in data:
        with pytest.raises(Problems):
            schemas.check("event.vm.state", {k: v for k, v in data.items() if k != name})


def test_a_state_says_what_was_asked_and_what_was_proven() -> None:
    data = state(observed=b.observed(at=990.0), at=1000.0)
    assert data["limits"]["wanted"]["cpu"] == {"cap_core_percent": 50, "weight": 100}
    assert data["cpu_cap_core_percent"] == 50
    assert data["limits"]["proven"]["cpu"]["proven_at"] == "2026-11-20T11:59:50.000Z"
    assert (data["observed_at"], data["age_s"]) == ("2026-11-20T11:59:50.000Z", 10.0)
    assert data["owner"] == {"subject": b.USER, "fqan": "/vo.example/Role=NULL", "vo": "vo.example"}
    assert data["lease"] == {
        "granted_s": 3600, "used_s": 0, "started_at": b.WALL, "ends_at": "2026-11-20T13:00:00.000Z",
    }  # fmt: skip
    drifted = state(observed=b.observed(cpu=CpuLimit(100_000, -1)))
    assert "cpu" not in drifted["limits"]["proven"]
    assert drifted["limits"]["drift"] == [
        {"what": "cpu", "device": "", "found": "libvirt says no cap, not 50 % of a core"},
    ]


def test_each_proof_has_the_time_of_its_own_look() -> None:
    network = dataclasses.replace(b.proven_network(RUNS.spec), at=995.0)
    proven = state(observed=b.observed(at=990.0, network=network), at=1000.0)["limits"]["proven"]
    assert set(proven) == set(limitviews.PROVEN)
    looks = {"cpu": 50, "memory": 50, "disk_io": 50, "bandwidth": 55, "firewall": 55}
    assert {name: one["proven_at"] for name, one in proven.items()} == {
        name: f"2026-11-20T11:59:{second}.000Z" for name, second in looks.items()
    }


def test_what_was_never_seen_has_no_time() -> None:
    assert state(b.record(), b.observed(Seen.UNKNOWN, at=0.0))["observed_at"] is None


def test_time_alone_is_no_news() -> None:
    def digest(at: float, age_s: float = 3.0, **kw: Any) -> str:
        return events.state_digest(state(observed=b.observed(at=at, **kw), at=at + age_s))

    assert digest(1000.0) == digest(2222.25)
    assert digest(1000.0) == digest(1000.0, age_s=61.5)
    assert digest(1000.0) != digest(1000.0, reason="ioerror")


def test_the_time_of_a_network_s_proof_alone_is_no_news() -> None:
    networks = [dataclasses.replace(b.proven_network(RUNS.spec), at=at) for at in (980.0, 995.0)]
    assert len({events.state_digest(state(observed=b.observed(network=one))) for one in networks}) == 1


@pytest.mark.parametrize(
    ("journal", "news"), [(Journal(attempt_boot=b.BOOT, paused_by="start"), False), (b.ran(), True)]
)
def test_proofs_are_news_once_a_vm_has_started_not_one_by_one_before(journal: Journal, news: bool) -> None:
    seen = Seen.RUNNING if news else Seen.PAUSED
    record = b.record(journal=journal)
    looks = [b.observed(seen), b.observed(seen, cpu=None), b.observed(seen, network=None)]
    assert len({events.state_digest(state(record, look)) for look in looks}) == (3 if news else 1)


def test_every_word_is_news() -> None:
    first = events.state_digest(state())
    news = [
        state(dataclasses.replace(RUNS, generation=2)),
        state(dataclasses.replace(RUNS, lifetime_s=7200)),
        state(dataclasses.replace(RUNS, desired=Desired.PAUSED)),
        state(dataclasses.replace(RUNS, reasons=(Reason("a", "b", b.WALL),))),
        state(b.record(journal=b.ran(alarms=("stuck",)))),
        state(observed=b.observed(Seen.PAUSED)),
        state(observed=b.observed(cpu=None)),
        state(dataclasses.replace(RUNS, spec=b.spec(cpu_weight=200))),
        state(observed=b.observed(network=None)),
    ]
    assert first not in {events.state_digest(data) for data in news}


def test_the_digest_leaves_the_data_alone() -> None:
    data = state()
    before = json.dumps(data)
    events.state_digest(data)
    assert json.dumps(data) == before


# -- the other messages


def members(**kw: Any) -> Dict[str, Any]:
    """What host_state is told beside the host and the policy."""
    told: Dict[str, Any] = {
        "epoch": EPOCH, "version": "0.1.0", "drained": False, "degraded": {"broker": "away"},
        "commands": [f"{verb}/1" for verb in VERBS], "security": "signed",
        "certificates": [{"file": "/etc/c.pem", "days_left": 30}],
        "capabilities": limitviews.capabilities(
            INFO, FirewallInfo("conntrack", "works"), ShaperInfo("tbf+fq_codel", "works"), 2, SnapshotRules()),
        "lists": {},
    }  # fmt: skip
    return {**told, **kw}


def host(**kw: Any) -> Dict[str, Any]:
    more = hostview.served(INFO, b.policy(), (), {}, b.now(), False, ())
    return {**events.host_state(INFO, b.policy(), b.now(), **members(**kw)), **more}


def test_host_state_fits_its_schema_and_tells_no_paths_of_the_store() -> None:
    data = host()
    schemas.check("event.host.state", data)
    assert "set_aside" not in data["epoch"]
    assert data["degraded"] == [{"part": "broker", "why": "away"}]
    for name in data:
        with pytest.raises(Problems):
            schemas.check("event.host.state", {k: v for k, v in data.items() if k != name})


def test_the_trust_in_images_is_published_without_places_or_tokens() -> None:
    lst = parse(imagelists.text(version="42"))
    names = ("new", lst.identifier)
    sources = tuple(ListSource(name, url="https://x/?token=secret", endorsers=("/CN=a",)) for name in names)
    policy = b.policy(trust=TrustPolicy("deny", sources, (Endorser("/CN=b", "deny", maximum_age_s=3600),)))
    held = VerifiedList(lst, b.WALL, "/CN=a", "certificate-revoked", "its issuer has revoked it")
    data = {**host(), **events.host_state(INFO, policy, b.now(), **members(lists={lst.identifier: held}))}
    schemas.check("event.host.state", data)
    told = data["image_trust"]
    assert told["unendorsed"] == "deny" and "token" not in json.dumps(data)
    assert told["endorsers"] == [{"subject": "/CN=b", "decision": "deny", "vos": ["*"], "maximum_age_s": 3600}]
    assert [one["here"] and one["here"]["version"] for one in told["lists"]] == [None, "42"]
    assert told["lists"][1]["here"]["void"] == "certificate-revoked: its issuer has revoked it"


def test_host_snapshot_fits_its_schema() -> None:
    foreign = (ForeignSeen("5f1c2f9e-6d5b-4f0e-9d51-0d6a7a1b2c3d", "db1", Seen.RUNNING, "no-tag"),)
    data = events.host_snapshot(host(), [state()], foreign, {"events": 41, "capacity": 0}, EPOCH, b.now())
    schemas.check("event.host.snapshot", data)
    assert data["sequences"] == {"capacity": 0, "events": 41}
    assert data["foreign"][0]["seen"] == "running"


def test_warning_alert_and_gap_fit_their_schemas() -> None:
    warning = events.lease_warning(RUNS, b.now(4010.0), 600)
    schemas.check("event.vm.lease.warning", warning)
    assert (warning["before_s"], warning["remaining_s"]) == (600, 590)
    alert = events.security_alert(kind="frames-refused", detail="9 frames", now=b.now(), who="x", count=9)
    schemas.check("event.security.alert", alert)
    for kind in (*ALARMS, *events.HELD):
        schemas.check("event.security.alert", events.security_alert(kind=kind, detail="d", now=b.now(), vm=RUNS.vm))
    held = {"vm": RUNS.vm, "devices": (DEVICE,), "found": ["chain missing"], "count": 3, "repaired": True}
    schemas.check("event.security.alert", events.security_alert(kind="firewall-drift", detail="d", now=b.now(), **held))
    for name, wrong in (("devices", DEVICE), ("found", "text"), ("count", 0), ("repaired", "yes")):
        with pytest.raises(Problems):
            alert = events.security_alert(kind="spoofed", detail="d", now=b.now(), **{**held, name: wrong})
            schemas.check("event.security.alert", alert)
    gap = events.stream_gap("telemetry", 5, 9, "spool full", b.now())
    schemas.check("event.stream.gap", gap)
    assert gap["count"] == 5


# -- the envelope


def row(**kw: Any) -> OutboxRow:
    members: Dict[str, Any] = {
        "row": 3, "stream": "events", "sequence": 42, "epoch": EPOCH.id, "epoch_number": 7, "destination": "",
        "type": "org.vmagent.vm.state", "subject": f"vm/{RUNS.vm}", "time_wall": b.WALL, "data": {"vm": RUNS.vm},
    }  # fmt: skip
    members.update(kw)
    return OutboxRow(**members)


def test_the_envelope_is_the_protocols() -> None:
    event = events.cloud_event(row(), "//site.example.org/wn017.site.example.org")
    assert event == {
        "specversion": "1.0",
        "id": f"{EPOCH.id}-events-000000000042",
        "source": "//site.example.org/wn017.site.example.org",
        "type": "org.vmagent.vm.state",
        "subject": f"vm/{RUNS.vm}",
        "time": b.WALL,
        "datacontenttype": "application/json",
        "dataschema": "urn:vmagent:schema:vm.state:1",
        "stream": "events",
        "sequence": "000000000042",
        "epoch": EPOCH.id,
        "epochnumber": 7,
        "data": {"vm": RUNS.vm},
    }
    schemas.check("cloudevent", event)


def test_the_same_row_is_the_same_event() -> None:
    assert events.cloud_event(row(), "//a/b") == events.cloud_event(row(), "//a/b")
    ids = {events.cloud_event(row(stream=s, sequence=n), "//a/b")["id"] for s in ("events", "usage") for n in (1, 2)}
    assert len(ids) == 4


def test_every_type_has_a_schema_of_its_name_and_version() -> None:
    for name, version in events.TYPES.items():
        flat: Mapping[str, Any] = schemas.schema(f"event.{name}")
        assert flat["$id"] == f"urn:vmagent:schema:{name}:{version}"
        event = events.cloud_event(row(type=events.PREFIX + name), "//a/b")
        assert event["dataschema"] == flat["$id"]


def test_every_type_published_anywhere_is_declared() -> None:
    found = set()
    for path in Path(vmagent.__file__).parent.rglob("*.py"):
        found |= set(re.findall(r'"org\.vmagent\.([a-z.]*[a-z])"', path.read_text(encoding="utf-8")))
    assert found <= set(events.TYPES)
