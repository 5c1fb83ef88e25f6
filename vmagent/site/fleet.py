"""All VMs of all hosts, as the events tell: the newest full state of each.

Rules: `vm.state` and `host.snapshot` are whole truths, so the newest one counts, and newest means greatest (epoch
number, sequence); what is older than the state held is ignored, in whatever order it comes.  A snapshot ends what it
does not name.  The last ENDED closed VMs are remembered, so that a late event cannot bring one back.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Tuple

PREFIX = "org.vmagent."
ENDED = 10_000
Position = Tuple[int, int]  # epoch number, sequence
NEVER: Position = (-1, -1)


@dataclass(frozen=True)
class Held:
    """The state of one VM; `gone` = closed, or named no more by a snapshot."""

    position: Position
    data: Mapping[str, Any]
    gone: bool = False


@dataclass
class Host:
    """What is known of one host."""

    name: str
    state: Mapping[str, Any]  # the data of host.state
    state_at: Position = NEVER
    snapshot_at: Position = NEVER
    snapshots: int = 0  # heard since we listen


class Fleet:
    """The view.  Feed it with events that a Collector called new."""

    def __init__(self) -> None:
        self.hosts: Dict[str, Host] = {}
        self._held: OrderedDict[Tuple[str, str], Held] = OrderedDict()

    def apply(self, event: Mapping[str, Any]) -> bool:
        """Take one event; whether it changed the view.  KeyError or ValueError when it is none of ours."""
        kind = str(event["type"])
        host = host_of(event)
        position = (int(event["epochnumber"]), int(event["sequence"]))
        if kind == PREFIX + "vm.state":
            return self._state(host, position, event["data"])
        if kind == PREFIX + "host.snapshot":
            return self._snapshot(host, position, event["data"])
        if kind == PREFIX + "host.state":
            return self._host(host, position, event["data"])
        return False

    def _entry(self, name: str) -> Host:
        return self.hosts.setdefault(name, Host(name, {}))

    def _host(self, name: str, position: Position, data: Mapping[str, Any]) -> bool:
        entry = self._entry(name)
        if position <= entry.state_at:
            return False
        entry.state, entry.state_at = data, position
        return True

    def _state(self, host: str, position: Position, data: Mapping[str, Any]) -> bool:
        key = (host, str(data["vm"]))
        held = self._held.get(key)
        entry = self._entry(host)
        if position <= (held.position if held else NEVER) or (held is None and position <= entry.snapshot_at):
            return False
        self._keep(key, Held(position, data, bool(data.get("closed"))))
        return True

    def _keep(self, key: Tuple[str, str], held: Held) -> None:
        self._held[key] = held
        self._held.move_to_end(key)
        if held.gone and len(self._held) > ENDED:
            oldest = next((one for one, each in self._held.items() if each.gone), key)
            del self._held[oldest]

    def _snapshot(self, host: str, position: Position, data: Mapping[str, Any]) -> bool:
        entry = self._entry(host)
        if position <= entry.snapshot_at:
            return False
        entry.snapshot_at = position
        entry.snapshots += 1
        self._host(host, position, data["host"])
        named = set()
        for state in data["vms"]:
            named.add(str(state["vm"]))
            self._state_at_snapshot(host, position, state)
        for (owner, vm), held in list(self._held.items()):
            if owner == host and vm not in named and held.position < position and not held.gone:
                self._keep((owner, vm), Held(position, held.data, True))
        return True

    def _state_at_snapshot(self, host: str, position: Position, data: Mapping[str, Any]) -> None:
        held = self._held.get((host, str(data["vm"])))
        if held is None or held.position < position:
            self._keep((host, str(data["vm"])), Held(position, data, bool(data.get("closed"))))

    def vms(self, gone: bool = False) -> List[Tuple[str, Mapping[str, Any]]]:
        """(host, data of vm.state), ordered by host and name; `gone`: those that are no more, too."""
        shown = [(host, held.data) for (host, _), held in self._held.items() if gone or not held.gone]
        return sorted(shown, key=lambda one: (one[0], str(one[1].get("name")), str(one[1]["vm"])))

    def state(self, vm: str) -> Mapping[str, Any]:
        """The newest state of a VM, wherever it is; empty when nothing is known."""
        found = [held for (_, id), held in self._held.items() if id == vm]
        return max(found, key=lambda held: held.position).data if found else {}


def host_of(event: Mapping[str, Any]) -> str:
    """`//SITE/HOST` -> `HOST`.  ValueError for a source of another form."""
    parts = str(event["source"]).split("/")
    if len(parts) != 4 or parts[:2] != ["", ""] or not parts[3]:
        raise ValueError(f"not a source of ours: {event['source']!r}")
    return parts[3]
