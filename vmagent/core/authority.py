"""Who may do this, and to whose VMs: default deny (PROTOCOL 3, Authority).

A row is about a signer when it names the signer's certificate (`sha256:<hex>`) or its subject (compared as a list of
RDNs, dn.py).  A command is allowed when *one* row about its signer grants all of it: rows are not added up, so a row
that allows big VMs for one VO does not lend its size to another.  Members are granted one by one, each by some row.

What a row grants, for a start: the verb, the VO (or FQAN) of the owner, every network, the flavour ("" when sizes are
given, so only `*` grants free sizes) and the row's own maxima beside the site's.  Without `on_behalf_of` the owner is
the signer itself, who has no VO: only `*` grants that.
For verbs on VMs: the verb and the scope.  `own` = VMs whose controller is this signer; `vo` = VMs of owners in the
row's VOs; `all`.  The row's maxima limit an extension too, in `lifetime_s`; an absolute `until` is then refused,
because how much time it means is not known here.  They limit what a vm.limits names, VM by VM, by what it comes to: a
number taken back to the site's default must fit too.

The local socket has authorised its peer by credentials: a local signer passes.
"""

from __future__ import annotations

import dataclasses
import re
from fnmatch import fnmatchcase
from typing import List, Optional, Sequence, Tuple

from vmagent.core import dn, limits, request
from vmagent.core.asked import Asked, asked, outside
from vmagent.core.commands import VERBS, Command, Rdns, Signer
from vmagent.core.model import Owner, VmRecord, VmSpec
from vmagent.core.policy import Authority, Policy
from vmagent.errors import Problem, Problems

MOST_NAMED = 20

_Why = Tuple[str, str]  # (path, reason)


def authorise(command: Command, policy: Policy, members: Sequence[VmRecord], specs: Sequence[VmSpec]) -> None:
    """Nothing, or Problems `not-authorised`: every reason of every row about the signer.

    `members`: the VMs a selector chose.  `specs`: what admission made of a start, if it was asked before; they are
    checked beside the request itself, so it does not matter who is asked first.  Also `owner-needed` (local start).
    """
    starts = command.verb == "vm.start"
    if starts:
        request.owner_of(command)
    if command.signer.local:
        return
    rows = [row for row in policy.authority if about(row, command.signer)]
    if not rows:
        raise _denied(command, [("", f"no row of this site's authority table names {command.signer.subject}")])
    named = [row for row in rows if matches(command.verb, row.verbs)]
    if not named:
        verbs = sorted({verb for verb in VERBS for row in rows if matches(verb, row.verbs)})
        raise _denied(command, [("schema", f"this signer may use {', '.join(verbs) or 'no verb'}")])
    if VERBS[command.verb].everybody:
        _one_row_grants(command, named, [_everybody_s(row) for row in named])
    if starts:
        _one_row_grants(command, named, [_start_reasons(row, command, policy, specs) for row in named])
    elif VERBS[command.verb].selects:
        _one_row_grants(command, named, [_extend_reasons(row, command) for row in named])
        _each_member_granted(command, [row for row in named if not _extend_reasons(row, command)], members)
    if command.verb == "vm.limits":
        _new_limits_granted(command, named, policy, members)


def known(signer: Signer, policy: Policy) -> bool:
    """Whether the table says anything about this signer; a stranger is told nothing beside that."""
    return signer.local or any(about(row, signer) for row in policy.authority)


def starting(command: Command, policy: Policy) -> List[Authority]:
    """The rows by which this signer may start VMs for this command's owner: what else they grant differs."""
    owner = request.owner_of(command)
    return [row for row in policy.authority
            if about(row, command.signer) and matches("vm.start", row.verbs) and _speaks_for(row, owner)]


def about(row: Authority, signer: Signer) -> bool:
    """Whether this row is about this signer; a row that cannot be read is about nobody.

    Who is known by the broker's login alone (`security.commands: broker`) has no certificate: its whole name counts.
    """
    if signer.subject.startswith("broker:") and not signer.rdns:
        return row.signer == signer.subject
    if row.signer.startswith("sha256:"):
        return bool(signer.thumbprint) and row.signer[len("sha256:") :].lower() == signer.thumbprint.lower()
    try:
        return dn.same(dn.parse(row.signer), signer.rdns)
    except ValueError:
        return False


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of a row's shell-style patterns is about this name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _one_row_grants(command: Command, rows: Sequence[Authority], reasons: Sequence[List[_Why]]) -> None:
    if all(reasons):
        raise _denied(command, [why for of_row in reasons for why in of_row])


def _denied(command: Command, reasons: Sequence[_Why]) -> Problems:
    told = list(dict.fromkeys(reasons))[:MOST_NAMED]
    return Problems(
        [Problem("not-authorised", f"{command.verb} refused: {why}", **({"path": path} if path else {}))
         for path, why in told]
    )  # fmt: skip


# ---- starts ----


def _start_reasons(row: Authority, command: Command, policy: Policy, specs: Sequence[VmSpec]) -> List[_Why]:
    """Why this row does not grant this start; empty = it does."""
    owners = {request.owner_of(command)} | {spec.owner for spec in specs}
    args = command.args
    networks = {network["type"]: f"args.networks[{i}].type" for i, network in enumerate(args.get("networks", ()))}
    for spec in specs:
        networks.update((one.network, "args.networks") for one in spec.interfaces if one.network not in networks)
    reasons = [
        ("on_behalf_of", f"this signer speaks for the VOs {', '.join(row.vos)}, not for {owner.fqan or 'no VO'}")
        for owner in sorted(owners, key=str)
        if not _speaks_for(row, owner)
    ]
    reasons += [
        (path, f"this signer may use the networks {', '.join(row.networks)}, not {name}")
        for name, path in networks.items()
        if not matches(name, row.networks)
    ]
    flavour = args.get("flavour", "")
    if not matches(flavour, row.flavours):
        what = f"not {flavour}" if flavour else "not sizes of its own"
        reasons.append(("args.flavour", f"this signer may use the flavours {', '.join(row.flavours)}, {what}"))
    return reasons + _size_reasons(row, command, policy, specs)


def _speaks_for(row: Authority, owner: Owner) -> bool:
    return matches(owner.vo, row.vos) or (bool(owner.fqan) and matches(owner.fqan, row.vos))


def _size_reasons(row: Authority, command: Command, policy: Policy, specs: Sequence[VmSpec]) -> List[_Why]:
    if row.maxima is None:
        return []
    try:
        what = asked(command.args, policy)
    except Problem:
        return []  # a flavour that does not exist has no size; admission refuses it
    wants = dict.fromkeys([what, *(_of_spec(what, spec) for spec in specs)])
    over = [one for want in wants for one in outside(want, row.maxima)]
    return [(one.path, f"{one} for this signer") for one in over]


def _of_spec(what: Asked, spec: VmSpec) -> Asked:
    return dataclasses.replace(
        what, cores=spec.cores, memory_mib=spec.memory_mib, disk_gib=spec.disk_gib,
        limits=spec.limits, keep_s=spec.keep_s,
    )  # fmt: skip


def _everybody_s(row: Authority) -> List[_Why]:
    return [] if row.scope == "all" else [("", f"it concerns everybody's VMs, and this signer's scope is {row.scope}")]


# ---- verbs on VMs ----


def _extend_reasons(row: Authority, command: Command) -> List[_Why]:
    if command.verb != "vm.extend" or row.maxima is None:
        return []
    if "until" in command.args:
        return [("args.until", "this signer has its own longest lifetime: give lifetime_s instead")]
    if command.args["lifetime_s"] > row.maxima.lifetime_s:
        return [("args.lifetime_s", f"lifetime_s at most {row.maxima.lifetime_s} for this signer")]
    return []


def _each_member_granted(command: Command, rows: Sequence[Authority], members: Sequence[VmRecord]) -> None:
    """Ids are named only where the command named them: a refusal tells nobody which VMs there are."""
    strange = [record.vm for record in members if not any(in_scope(row, command.signer, record) for row in rows)]
    if not strange:
        return
    scopes = ", ".join(sorted({row.scope for row in rows}))
    named = [vm for vm in strange if vm in command.args.get("vms", ())][:MOST_NAMED]
    detail = f"{command.verb} refused: {len(strange)} of the {len(members)} VMs are not within this signer's scope"
    raise Problems([Problem("not-authorised", f"{detail} ({scopes})", path="args", scope=scopes, vms=named)])


def _new_limits_granted(
    command: Command, rows: Sequence[Authority], policy: Policy, members: Sequence[VmRecord]
) -> None:
    """For each VM one row that holds it in its scope and the new limits within its maxima."""
    for record in members:
        try:
            change = limits.changed(command.args, record.spec, policy)
        except Problem:
            continue  # refused when it is applied, in other words
        own = [row for row in rows if in_scope(row, command.signer, record)]
        _one_row_grants(command, own, [_over(row, change, record.spec) for row in own])


def _over(row: Authority, change: limits.Change, spec: VmSpec) -> List[_Why]:
    if row.maxima is None:
        return []
    over = limits.outside(change.limits, row.maxima, spec.cores, paths=change.paths)
    return [(one.path, f"{one} for this signer") for one in over]


def in_scope(row: Authority, signer: Signer, record: VmRecord) -> bool:
    """Whether the row's scope holds this VM."""
    if row.scope == "all":
        return True
    if row.scope == "vo":
        return _speaks_for(row, record.spec.owner)
    return row.scope == "own" and _same_signer(record.spec.controller, signer)


def _same_signer(controller: str, signer: Signer) -> bool:
    if controller == signer.subject:
        return True
    controller_rdns = _rdns(controller)
    return controller_rdns is not None and dn.same(controller_rdns, signer.rdns)


def _rdns(text: str) -> Optional[Rdns]:
    if not re.match("[A-Za-z0-9.]+=|/", text):
        return None
    try:
        return dn.parse(text)
    except ValueError:
        return None
