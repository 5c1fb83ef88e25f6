"""A VM in the words of OCCI 1.2: the names of its state and attributes, as JSON and as text (FORMATS 5.1).

Rules: OCCI is a vocabulary here, there is no OCCI server; what it has no word for stays in vm.state.  A VM that nobody
can see has no `occi.compute.state`: the format has no word for "not known", and it is neither off nor broken.  Memory
is in GB of 2^30 bytes.  Templates are mixins of ours: `urn:vmagent:template:resource#FLAVOUR` and `...:os#IMAGE`.
"""

from __future__ import annotations

import json
from typing import Any, Dict, Iterable, List, Mapping, Optional

Json = Dict[str, Any]
State = Mapping[str, Any]

INFRASTRUCTURE = "http://schemas.ogf.org/occi/infrastructure#"
IP_INTERFACE = "http://schemas.ogf.org/occi/infrastructure/networkinterface#ipnetworkinterface"
ACTION = "http://schemas.ogf.org/occi/infrastructure/compute/action#"
TEMPLATE = "urn:vmagent:template:"
ARCHITECTURES = {"x86_64": "x64", "i686": "x86"}

STATES: Mapping[str, Optional[str]] = {
    "pending": "waiting", "fetching": "waiting", "starting": "waiting",
    "running": "active", "ready": "active", "stopping": "active",
    "paused": "suspended", "stopped": "inactive", "stuck": "error",
    "unknown": None, "foreign": None,
}  # fmt: skip
"""Phase -> occi.compute.state; None = the format has no word for it."""
BROKEN = ("crashed", "failed", "lost")
"""Outcomes of a stopped VM that are `error`."""
ACTIONS: Mapping[str, Iterable[str]] = {"active": ("stop", "restart", "suspend"), "suspended": ("start", "stop"),
                                        "waiting": ("stop",), "error": ("stop",)}
"""What can be asked of a VM in this state; one that has ended is never started again."""


def state(of: State) -> Optional[str]:
    """`occi.compute.state` of a vm.state; None = it cannot be said."""
    if of["phase"] == "stopped" and of.get("outcome") in BROKEN:
        return "error"
    return STATES[of["phase"]]


def compute(of: State, arch: str = "") -> Json:
    """The data of a vm.state as a resource of kind compute.  arch: of its host, "" = not known."""
    word, id = state(of), str(of["vm"])
    attributes: Json = {
        "occi.compute.architecture": ARCHITECTURES.get(arch),
        "occi.compute.cores": of["cores"],
        "occi.compute.memory": of["memory_mib"] / 1024,
        "occi.compute.state": word,
        "occi.compute.state.message": _message(of),
    }
    offered = ACTIONS.get(word or "", ()) if not of.get("outcome") else ()
    return {
        "kind": INFRASTRUCTURE + "compute",
        "mixins": [*([f"{TEMPLATE}resource#{of['flavour']}"] if of.get("flavour") else []),
                   f"{TEMPLATE}os#{of['image']['id']}"],
        "id": id,
        "title": of["name"],
        "attributes": {name: value for name, value in attributes.items() if value is not None},
        "actions": [ACTION + name for name in offered],
        "links": [*_interfaces(of, word), *_disks(of, word)],
    }


def _message(of: State) -> str:
    outcome = f" ({of['outcome']})" if of.get("outcome") else ""
    return f"{of['phase']}{outcome}" + (f": {of['reason']}" if of.get("reason") else "")


def _up(word: Optional[str]) -> Optional[str]:
    """State of what hangs on a VM in this state."""
    return None if word is None else "active" if word == "active" else "inactive"


def _interfaces(of: State, word: Optional[str]) -> List[Json]:
    return [_interface(str(of["vm"]), index, one, word) for index, one in enumerate(of["interfaces"])]


def _interface(vm: str, index: int, one: State, word: Optional[str]) -> Json:
    """OCCI has one address per interface: the first of IPv4, else the first; all of them stand beside."""
    addresses = [str(address).split("/")[0] for address in one["addresses"]]
    first = next((address for address in addresses if ":" not in address), addresses[0] if addresses else None)
    attributes = {
        "occi.networkinterface.interface": f"eth{index}",
        "occi.networkinterface.mac": one["mac"],
        "occi.networkinterface.state": _up(word),
        "occi.networkinterface.address": first,
        "occi.networkinterface.allocation": "static" if first else None,
        "vmagent.networkinterface.addresses": " ".join(addresses) or None,
    }
    return _link(f"{vm}-nic-{index}", "networkinterface", "network", str(one["network"]), attributes, [IP_INTERFACE])


def _disks(of: State, word: Optional[str]) -> List[Json]:
    """Its own disk and those beside it."""
    vm = str(of["vm"])
    own = _link(f"{vm}-disk-0", "storagelink", "storage", vm, {"occi.storagelink.state": _up(word)})
    more = []
    for index, one in enumerate(of.get("disks") or (), 1):
        attributes = {"occi.storagelink.deviceid": one["serial"], "occi.storagelink.state": _up(word)}
        target = one.get("volume") or f"{vm}-{one['serial']}"
        more.append(_link(f"{vm}-disk-{index}", "storagelink", "storage", str(target), attributes))
    return [own, *more]


def _link(id: str, kind: str, of: str, target: str, attributes: Mapping[str, Any], mixins: Iterable[str] = ()) -> Json:
    return {
        "kind": INFRASTRUCTURE + kind,
        "mixins": list(mixins),
        "id": id,
        "attributes": {name: value for name, value in attributes.items() if value is not None},
        "target": {"location": f"/{of}/{target}", "kind": INFRASTRUCTURE + of},
    }


def collection(resources: Iterable[Json]) -> Json:
    """Several resources as one document."""
    return {"resources": list(resources)}


# ---- text


def lines(resource: Mapping[str, Any]) -> List[str]:
    """The resource in OCCI's text rendering, a line each."""
    found = [_category(resource["kind"], "kind"), *(_category(mixin, "mixin") for mixin in resource["mixins"])]
    own = {"occi.core.id": resource["id"], "occi.core.title": resource["title"], **resource["attributes"]}
    found += [f"X-OCCI-Attribute: {name}={_value(value)}" for name, value in sorted(own.items())]
    return found + [_line(link) for link in resource["links"]]


def _category(identifier: str, kind: str) -> str:
    scheme, _, term = identifier.rpartition("#")
    return f'Category: {term}; scheme="{scheme}#"; class="{kind}"'


def _value(value: Any) -> str:
    """Numbers bare, texts quoted in ASCII."""
    return json.dumps(value)


def _line(link: Mapping[str, Any]) -> str:
    target, kinds = link["target"], " ".join([link["kind"], *link["mixins"]])
    term = link["kind"].rpartition("#")[2]
    parts = [f"Link: <{target['location']}>", f'rel="{target["kind"]}"', f'self="/link/{term}/{link["id"]}"',
             f'category="{kinds}"', *(f"{name}={_value(value)}" for name, value in sorted(link["attributes"].items()))]
    return "; ".join(parts)
