"""GLUE 2.1: one host's share, and the sum over a site, against a reader as strict as the one that publishes them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Dict, List, Mapping

import pytest

from tests.support import building as b
from tests.support.controlled import host_state
from tests.support.offered import GPU, here, room
from tests.unit.test_capacity import vm
from vmagent.core import capacity, hostview
from vmagent.core.capacity import Around
from vmagent.core.model import HypervisorInfo, Owner, Seen
from vmagent.core.policy import Authority
from vmagent.render import glue, gluesite

INFO = HypervisorInfo("qemu:///system", "QEMU", "kvm", "x86_64", "9.0", "7.2", 8, 16384, True, 1.0)
IMAGE = {"id": "el9", "sha512": "ab" * 64, "format": "qcow2", "url": "https://a/b", "endorser": None, "expires": None,
         "cached": None, "trusted": True}
URL = "stomp+ssl://broker.example.org:61614"
NOW_S = 1795176000.0  # of building.WALL


def share(*records: Any, host: str = "wn1", images: Any = (IMAGE,), state: Any = None, **kw: Any) -> glue.Document:
    of = here(*records, **kw)
    rows = of.policy.authority if "policy" in kw else (Authority(b.SIGNER, ("*",), vos=("vo.example",)),)
    policy = dataclasses.replace(of.policy, host=host, site="EXAMPLE", authority=rows)
    of = dataclasses.replace(of, policy=policy)
    served = hostview.served(INFO, policy, records, of.phases, of.now, of.room.drained, ())
    told = {**host_state(host), **served, "site": "EXAMPLE", **(state or {})}
    return glue.share(told, capacity.published(of), images, URL)


def one(document: Mapping[str, Any], kind: str, name: str = "") -> Dict[str, Any]:
    (found,) = [each for each in document[kind] if not name or each["Name"] == name]
    return dict(found)


def read(document: Mapping[str, Any]) -> Dict[str, List[str]]:
    """As the reader of the federation's catalogue takes a site: VO -> types and images; it fails on what is missing."""
    service, endpoint = document["CloudComputingService"][0], document["CloudComputingEndpoint"][0]
    assert service["CreationTime"] and int(service["Validity"]) > 0 and endpoint["URL"]
    assert service["Associations"]["AdminDomain"][0] == "EXAMPLE"
    found: Dict[str, List[str]] = {}
    for each in document["Share"]:
        assert each["ProjectID"]
        vo = next(policy["Associations"]["PolicyUserDomain"][0] for policy in document["MappingPolicy"]
                  if each["ID"] in policy["Associations"]["Share"])
        found[vo] = [offered["Name"] for kind in ("CloudComputingInstanceType", "CloudComputingImage")
                     for offered in document[kind] if each["ID"] in offered["Associations"]["Share"]]
    return found


def values(tree: Any) -> List[Any]:
    if isinstance(tree, dict):
        return [value for each in tree.values() for value in values(each)]
    return [value for each in tree for value in values(each)] if isinstance(tree, list) else [tree]


# ---- one host


def test_a_share_is_read_as_the_federation_reads_it() -> None:
    document = share(vm(1))
    assert read(document) == {"vo.example": ["large", "small", "el9"]}
    assert json.loads(json.dumps(document)) == document
    assert None not in values(document)


def test_what_is_sold_allocated_and_free() -> None:
    manager = one(share(vm(1)), "CloudComputingManager")
    assert (manager["TotalCPUs"], manager["TotalRAM"], manager["InstanceMaxCPU"]) == (8, 16384, 8)
    assert (manager["HypervisorName"], manager["InstanceMinRAM"]) == ("test", 16)
    other = manager["OtherInfo"]
    assert (other["AllocatedCPUs"], other["FreeCPUs"], other["FreeRAM"]) == (4, 4, 12288)


def test_what_nobody_gets_is_not_free() -> None:
    document = share(vm(1), room=room(drained=True))
    assert one(document, "CloudComputingManager")["OtherInfo"]["FreeCPUs"] == 0
    assert one(document, "Share")["InstanceMaxCPU"] == 0
    assert one(document, "CloudComputingEndpoint")["ServingState"] == "draining"


def test_vms_that_nobody_can_see_are_left_out_and_never_nought() -> None:
    runs, gone = vm(1), vm(2, spec={"owner": Owner("/CN=B", "/other/Role=NULL")})
    document = share(runs, gone, seen={gone.vm: b.observed(Seen.UNKNOWN, gone.spec)})
    service = one(document, "CloudComputingService")
    assert service["TotalVM"] == 2 and not {"RunningVM", "SuspendedVM", "HaltedVM"} & set(service)
    seen = one(document, "Share", "vo.example at EXAMPLE")
    assert (seen["TotalVM"], seen["RunningVM"], seen["HaltedVM"]) == (1, 1, 0)
    assert "RunningVM" not in one(document, "Share", "other at EXAMPLE")


def test_vos_are_those_of_the_authority_table_and_of_the_vms() -> None:
    rows = (Authority(b.SIGNER, ("*",), vos=("named", "/grouped/prod/*", "any*", "*")),)
    document = share(vm(1), policy=dataclasses.replace(here().policy, authority=rows))
    assert sorted(read(document)) == ["grouped", "named", "vo.example"]
    assert one(document, "AccessPolicy")["Rule"] == ["VO:grouped", "VO:named", "VO:vo.example"]
    assert one(document, "CloudComputingService")["Complexity"] == "endpointType=1,share=3"


def test_what_a_core_is_worth_is_the_range_of_a_site_where_hosts_differ() -> None:
    slow, fast = (share(around=Around(cpu_model=name), host=name) for name in ("Slow", "Fast"))
    assert one(slow, "CloudComputingManager")["OtherInfo"]["CPUModel"] == "Slow"
    assert "CPUModel" not in one(share(around=Around()), "CloudComputingManager")["OtherInfo"]
    both = one(gluesite.merged([slow, fast]), "CloudComputingManager")["OtherInfo"]
    assert both["CPUModel"] == "Fast, Slow"


def test_starts_that_nobody_measured_are_left_out() -> None:
    assert "StartSecondsMedian" not in one(share(), "CloudComputingService")["OtherInfo"]


@pytest.mark.parametrize(
    ("state", "health"),
    [({}, "ok"), ({"degraded": [{"part": "image-list x", "why": "404"}]}, "warning"),
     ({"degraded": [{"part": "libvirt", "why": "away"}]}, "critical"),
     ({"degraded": [{"part": "firewall", "why": "nft"}]}, "critical")],
)
def test_health(state: Any, health: str) -> None:
    endpoint = one(share(state=state), "CloudComputingEndpoint")
    assert endpoint["HealthState"] == health
    assert ("HealthStateInfo" in endpoint) == (health != "ok")


def test_devices_and_images() -> None:
    far = {**IMAGE, "id": "bad", "trusted": False}
    document = share(images=(IMAGE, far), around=Around({}, (GPU, dataclasses.replace(GPU, driver=None))))
    gpu = one(document, "CloudComputingVirtualAccelerator")
    assert (gpu["Type"], gpu["Number"], gpu["OtherInfo"]["SetAside"]) == ("GPU", 2, 1)
    assert [each["Name"] for each in document["CloudComputingImage"]] == ["el9"], "what is not trusted is not offered"
    assert share(around=Around())["CloudComputingVirtualAccelerator"] == []


# ---- a site


def site(*documents: glue.Document, now_s: float = NOW_S) -> gluesite.Site:
    return gluesite.site({f"wn{n}": each for n, each in enumerate(documents, 1)}, now_s)


def test_a_site_is_the_sum_of_its_hosts() -> None:
    found = site(share(vm(1)), share(vm(2), vm(3), host="wn2"), share(host="wn3", room=room(cores=16)))
    document = found.document
    service, manager = one(document, "CloudComputingService"), one(document, "CloudComputingManager")
    assert (service["TotalVM"], service["RunningVM"], service["OtherInfo"]["Hosts"]) == (3, 3, ["wn1", "wn2", "wn3"])
    assert (manager["TotalCPUs"], manager["OtherInfo"]["FreeCPUs"]) == (32, 4 + 0 + 16)
    assert (manager["InstanceMaxCPU"], manager["InstanceMinCPU"]) == (8, 1)
    assert one(document, "Share")["InstanceMaxCPU"] == 8, "the largest that starts anywhere"
    assert one(document, "CloudComputingInstanceType", "small")["OtherInfo"]["PossibleNow"] == 4 + 0 + 16
    assert read(document) == {"vo.example": ["large", "small", "el9"]}
    assert (found.hosts, found.dropped) == (("wn1", "wn2", "wn3"), {})


def test_the_order_of_hosts_does_not_matter_and_one_alone_is_itself() -> None:
    hosts = [share(vm(1)), share(vm(2), host="wn2"), share(host="wn3")]
    assert gluesite.merged(hosts)["CloudComputingManager"] == gluesite.merged(hosts[::-1])["CloudComputingManager"]
    alone = site(share(vm(1))).document
    assert one(alone, "CloudComputingManager") == one(share(vm(1)), "CloudComputingManager")


def test_health_is_the_worst_and_a_site_serves_while_one_host_does() -> None:
    sick = share(host="wn2", room=room(drained=True), state={"degraded": [{"part": "libvirt", "why": "away"}]})
    endpoint = one(site(share(), sick).document, "CloudComputingEndpoint")
    assert (endpoint["HealthState"], endpoint["ServingState"]) == ("critical", "production")
    assert endpoint["HealthStateInfo"] == "libvirt: away"
    assert one(site(sick).document, "CloudComputingEndpoint")["ServingState"] == "closed"


def test_what_one_host_does_not_know_is_not_known_of_the_site() -> None:
    gone = vm(2)
    blind = share(gone, host="wn2", seen={gone.vm: b.observed(Seen.UNKNOWN, gone.spec)})
    service = one(site(share(vm(1)), blind).document, "CloudComputingService")
    assert service["TotalVM"] == 2 and "RunningVM" not in service


def test_hosts_older_than_five_minutes_are_dropped_and_named() -> None:
    young, old = share(vm(1), now=b.now(2000.0, "2026-11-20T11:55:00.000Z")), share(vm(2), host="wn2")
    found = site(young, old, now_s=NOW_S)
    assert (found.hosts, found.dropped) == (("wn1", "wn2"), {})
    assert one(found.document, "CloudComputingService")["CreationTime"] == "2026-11-20T11:55:00.000Z"
    found = site(young, old, now_s=NOW_S + 1)
    assert (found.hosts, found.dropped) == (("wn2",), {"wn1": 301})
    assert one(found.document, "CloudComputingService")["TotalVM"] == 1
    assert site(young, now_s=NOW_S + 1).document == {}


def test_networks_of_one_kind_are_said_only_when_all_hosts_agree() -> None:
    inside = [{**hostview.network(b.network()), "kind": "private", "type": "inner"}]
    both = site(share(), share(host="wn2", state={"networks": inside})).document
    assert one(both, "Share")["NetworkInfo"] == "inner, public" and "DefaultNetworkType" not in one(both, "Share")
    assert one(site(share(), share(host="wn2")).document, "Share")["DefaultNetworkType"] == "public"
