"""Answers as text: one JSON line for programs, aligned columns for people."""

from __future__ import annotations

import json
from typing import Any, List, Mapping, Sequence, TextIO, Tuple

from vmagent.core import columns, duration, imagewords, limitwords
from vmagent.errors import Problem
from vmagent.site.fleet import Fleet

State = Mapping[str, Any]


def as_json(out: TextIO, value: Any) -> None:
    """One line."""
    out.write(json.dumps(value) + "\n")
    out.flush()


def vms(out: TextIO, states: Sequence[Tuple[str, State]]) -> None:
    """(host, vm.state data) as a table."""
    header = ("HOST", "ID", "NAME", "PHASE", "LEASE", "OWNER", "IMAGE", "ADDRESSES")
    rows = [_vm(host, state) for host, state in states]
    out.write("\n".join(columns.lines(header, rows)) + "\n" if rows else "no VMs\n")


def _vm(host: str, state: State) -> Sequence[str]:
    lease = state.get("lease") or {}
    addresses = [one for interface in state.get("interfaces") or () for one in interface.get("addresses") or ()]
    left = int(lease.get("granted_s", 0)) - int(lease.get("used_s", 0))
    phase = f"{state['phase']} ({state['outcome']})" if state.get("outcome") else str(state["phase"])
    return (host, str(state["vm"]), str(state.get("name", "")), phase, f"{duration.text(max(0, left))} left",
            str((state.get("owner") or {}).get("subject", "")), str((state.get("image") or {}).get("id", "")),
            " ".join(addresses))


def limits(out: TextIO, states: Sequence[State]) -> None:
    """Limits wanted and proven, and the rules, of each of these VMs (vm.state data)."""
    blocks = [_limits(state) for state in states]
    out.write("\n\n".join("\n".join(block) for block in blocks) + "\n" if blocks else "no VMs\n")


def _limits(state: State) -> List[str]:
    found = state["limits"]
    lines = [columns.clean(f"{state['vm']}  {state['name']}  {state['phase']}, seen {state['age_s']:g} s ago"),
             *columns.lines(limitwords.HEADER, limitwords.rows(found)),
             *(f"by {source}" for source in limitwords.sources(found))]
    if found["wanted"]["interfaces"]:
        lines += ["", *columns.lines(limitwords.RULES_HEADER, limitwords.rules(found))]
    return lines


def hosts(out: TextIO, fleet: Fleet, names: Sequence[str]) -> None:
    """The hosts that answered."""
    header = ("HOST", "VMS", "HYPERVISOR", "DRAINED", "DEGRADED", "VERSION", "EPOCH")
    rows = []
    for name in names:
        state = fleet.hosts[name].state
        hypervisor = state.get("hypervisor") or {}
        count = sum(1 for host, _ in fleet.vms() if host == name)
        away = "" if hypervisor.get("connected", True) else " AWAY"
        rows.append((name, str(count), f"{hypervisor.get('domain_type', '?')}{away}",
                     "yes" if state.get("drained") else "no",
                     "; ".join(f"{one['part']}: {one['why']}" for one in state.get("degraded") or ()) or "no",
                     str(state.get("version", "")), str((state.get("epoch") or {}).get("number", ""))))
    out.write("\n".join(columns.lines(header, rows)) + "\n" if rows else "no host answered\n")


def images(out: TextIO, answer: State) -> None:
    """What a host knows of images (image.list)."""
    rows = imagewords.rows(answer, whole=False)
    out.write("\n".join(columns.lines(imagewords.HEADER, rows)) + "\n" if rows else "no images\n")
    unknown = imagewords.elsewhere(answer)
    if unknown:
        out.write("\nrevoked, and not known there:\n")
        out.write("\n".join(columns.lines(imagewords.REVOCATIONS_HEADER, unknown)) + "\n")


def event(out: TextIO, body: Mapping[str, Any]) -> None:
    """One event in one line."""
    data = body["data"]
    words = [str(data[name]) for name in ("name", "phase", "outcome", "kind", "before_s", "reason", "detail")
             if data.get(name) not in (None, "")]
    host = str(body["source"]).rsplit("/", 1)[-1]
    kind = str(body["type"]).replace("org.vmagent.", "")
    out.write(columns.clean(f"{body['time']}  {host}  {kind}  {body['subject']}  {' '.join(words)}".rstrip()) + "\n")
    out.flush()


def members(out: TextIO, entries: Sequence[Mapping[str, Any]]) -> None:
    """One line per member of a reply."""
    for one in entries:
        detail = (one.get("problem") or {}).get("detail", "")
        member = str(one.get("member", ""))
        out.write(columns.clean(f"{member:>3}  {one.get('vm', '-')}  {one['status']}  {detail}".rstrip()) + "\n")


def problems(problem: Mapping[str, Any]) -> List[str]:
    """Every reason of a problem, one line each."""
    accepted = problem.get("accepted")
    tail = f" (accepted: {accepted if isinstance(accepted, str) else json.dumps(accepted)})" if accepted else ""
    path = f"at {problem['path']}: " if problem.get("path") else ""
    first = columns.clean(f"{problem.get('type')}: {path}{problem.get('detail')}{tail}")
    return [first, *(line for one in problem.get("also", ()) for line in problems(one))]


def problem_lines(problem: Problem) -> List[str]:
    """The same of an exception; a configuration's problem says its own place."""
    body = problem.as_json()
    if problem.type == "configuration":
        return [str(one["detail"]) for one in (body, *body.get("also", ()))]
    return problems(body)
