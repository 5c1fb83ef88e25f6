"""What each sub-command of vmagent-site does, as coroutines on a connected Controller.

`COMMANDS` is the whole list but `pki`, which needs no broker.  A coroutine returns an exit code; Problems, Faults and
TimeoutError go up to __main__.py, which turns them into codes 3 and 4.  Results go to `out`, the way there to `err`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Awaitable, Callable, Dict, List, Mapping, Sequence, TextIO, Tuple

from twisted.internet.defer import Deferred

from vmagent.core import asking, imageasking
from vmagent.core.model import Owner
from vmagent.errors import Problem
from vmagent.render import occi
from vmagent.site import gluing, inquiries, output
from vmagent.site.arguments import ANSWER_S, WAIT_S
from vmagent.site.controller import EVERY_HOST, Controller, Event
from vmagent.site.handle import Handle, Reply
from vmagent.site.progress import FetchShown, Shown


class Code(IntEnum):
    """Exit codes; the help says the same."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    SILENT = 4


SHOWN_OF_LIMITS = ("vm", "name", "phase", "since", "age_s", "limits")
"""Members of vm.state that `limits` shows."""


@dataclass(frozen=True)
class Run:
    """One run of vmagent-site."""

    said: argparse.Namespace
    controller: Controller
    reactor: Any
    hosts: Sequence[str]  # those that should answer; () = not known
    out: TextIO
    err: TextIO
    wall_s: Callable[[], float]  # the wall clock, seconds since 1970

    def within(self, waiting: Deferred[Any], seconds: float) -> Deferred[Any]:
        """The same, failing with twisted's TimeoutError."""
        waiting.addTimeout(seconds, self.reactor)
        return waiting

    def tell(self, text: str) -> None:
        self.err.write(text + "\n")
        self.err.flush()


# -- commands to one host


async def start(run: Run) -> int:
    """`said.args`: prepared before the reactor ran, for that may read large files."""
    said = run.said
    owner = Owner(said.owner, said.fqan) if said.owner else None
    handle = await run.controller.start(said.host, owner=owner, reason=said.reason, **said.args)
    with Shown(handle.ids, run.err) as shown:
        forget = run.controller.watch(shown.event)
        try:
            reply = await _answered(run, handle)
        finally:
            forget()
    return _result(run, handle, reply)


async def on_vms(run: Run) -> int:
    """stop, kill, pause, resume, reboot, restart, revert, extend."""
    said = run.said
    args = asking.selector_args(vars(said), tuple(said.vms))
    if getattr(said, "grace", None) is not None:
        args["grace_s"] = said.grace
    if getattr(said, "to", None) is not None:
        args["snapshot"] = said.to
    args.update(getattr(said, "volume", None) or {})
    if said.verb == "extend":
        args["lifetime_s"] = said.lifetime
    handle = run.controller.command(said.host, f"vm.{said.verb}", args, reason=said.reason)
    return _result(run, handle, await _answered(run, handle))


async def limits(run: Run) -> int:
    """Without an option that changes something it only looks: limits as vm.query tells them, asked now."""
    said = run.said
    args = asking.selector_args(vars(said), tuple(said.vms))
    if asking.changes_limits(vars(said)):
        changes = asking.limits_args(vars(said))
        handle = run.controller.command(said.host, "vm.limits", {**args, **changes}, reason=said.reason)
        return _result(run, handle, await _answered(run, handle))
    reply = await _answered(run, run.controller.command(said.host, "vm.query", args))
    states = reply["result"]["vms"]
    if said.json:
        output.as_json(run.out, {"vms": [{name: state[name] for name in SHOWN_OF_LIMITS} for state in states]})
    else:
        output.limits(run.out, states)
    return Code.OK


async def snapshot(run: Run) -> int:
    """Without an option it only looks."""
    verb, more = asking.snapshot_args(vars(run.said))
    args = {**asking.selector_args(vars(run.said), tuple(run.said.vms)), **more}
    handle = run.controller.command(run.said.host, verb, args, reason=run.said.reason)
    return _result(run, handle, await _answered(run, handle))


async def on_host(run: Run) -> int:
    """drain, undrain."""
    said = run.said
    handle = run.controller.command(said.host, f"host.{said.verb}", {}, reason=said.reason)
    return _result(run, handle, await _answered(run, handle))


async def revoke(run: Run) -> int:
    """On one host, or on all: then the first answer will do, for each host keeps the command until it reads it."""
    said = run.said
    handle = await run.controller.revoke(said.host, reason=said.reason, **imageasking.revocation_args(vars(said)))
    code = _result(run, handle, await _answered(run, handle))
    if said.host == EVERY_HOST:
        run.tell("this is what the first host answered; each one's images say its revocation_version (host.state)")
    return code


async def query(run: Run) -> int:
    """The full states of VMs, or the same in the words of OCCI."""
    said = run.said
    args = {**asking.selector_args(vars(said), tuple(said.vms)), **({"occi": True} if said.occi else {})}
    reply = await _answered(run, run.controller.command(said.host, "vm.query", args))
    result = reply["result"]
    if said.json:
        output.as_json(run.out, result)
    elif said.occi:
        run.out.write("\n\n".join("\n".join(occi.lines(one)) for one in result["resources"]) + "\n")
    else:
        output.vms(run.out, [(said.host, state) for state in result["vms"]])
    return Code.OK


async def images(run: Run) -> int:
    """list, fetch, evict, pin, unpin, revoke."""
    said = run.said
    if said.does == "revoke":
        return await revoke(run)
    if said.does == "list":
        reply = await _answered(run, run.controller.command(said.host, "image.list", {}))
        (output.as_json if said.json else output.images)(run.out, reply["result"])
        return Code.OK
    args = imageasking.fetch_args(vars(said)) if said.does == "fetch" else imageasking.named_args(vars(said))
    handle = run.controller.command(said.host, f"image.{said.does}", args, reason=said.reason)
    with FetchShown(run.err) as shown:
        handle.hear(shown.reply)
        reply = await _answered(run, handle)
    return _result(run, handle, reply)


async def _answered(run: Run, handle: Handle) -> Reply:
    """The first reply, or with --wait the last one.  A failure with members is an answer too."""
    wait = getattr(run.said, "wait", False)
    seconds = run.said.timeout if run.said.timeout is not None else WAIT_S if wait else ANSWER_S
    try:
        reply: Reply = await run.within(handle.done if wait else handle.accepted, seconds)
        return reply
    except Problem:
        if handle.reply is None or handle.reply["status"] != "failed":
            raise
        return handle.reply


def _result(run: Run, handle: Handle, reply: Reply) -> int:
    result: Dict[str, Any] = {"command": handle.id, "status": reply["status"], "members": list(handle.members),
                              **{k: v for k, v in (reply.get("result") or {}).items() if k != "members"}}
    if reply.get("problem"):
        result["problem"] = reply["problem"]
        for line in output.problems(reply["problem"]):
            run.tell(line)
    if run.said.json:
        output.as_json(run.out, result)
    else:
        output.members(run.out, handle.members)
        run.out.write(f"{reply['status']}  command {handle.id}\n")
    return Code.OK if reply["status"] in ("accepted", "done") else Code.FAILED


# -- looking at many hosts


async def listing(run: Run) -> int:
    answered, silent = await _reports(run, EVERY_HOST)
    shown = [(host, state) for host, state in run.controller.fleet.vms() if host in answered]
    if run.said.json:
        output.as_json(run.out, {"vms": [{**state, "host": host} for host, state in shown], "hosts": answered,
                                 "silent": silent})
    else:
        output.vms(run.out, shown)
    return _who_was_silent(run, answered, silent)


async def report(run: Run) -> int:
    answered, silent = await _reports(run, run.said.host or EVERY_HOST)
    fleet = run.controller.fleet
    if run.said.json:
        output.as_json(run.out, {"hosts": {name: fleet.hosts[name].state for name in answered}, "silent": silent})
    else:
        output.hosts(run.out, fleet, answered)
    return _who_was_silent(run, answered, silent)


async def _reports(run: Run, host: str) -> Tuple[List[str], List[str]]:
    """Ask for snapshots and listen until all known hosts answered, or the time is over: (answered, silent)."""
    expected = set(run.hosts if host == EVERY_HOST else [host])
    answered: Dict[str, bool] = {}
    enough: Deferred[None] = Deferred()

    def heard(event: Event) -> None:
        if event["type"] == "org.vmagent.host.snapshot":
            answered[str(event["source"]).rsplit("/", 1)[-1]] = True
            if expected and expected <= set(answered) and not enough.called:
                enough.callback(None)

    def refused(reason: Any) -> None:
        if not enough.called:
            enough.errback(reason)

    forget = run.controller.watch(heard)
    handle = await run.controller.report(host)
    handle.done.addErrback(refused)
    timer = run.reactor.callLater(run.said.timeout, lambda: None if enough.called else enough.callback(None))
    try:
        await enough
    finally:
        forget()
        if timer.active():
            timer.cancel()
    for refusal in handle.refusals:
        run.tell(f"a host refuses: {refusal}")
    return sorted(answered), sorted(expected - set(answered))


def _who_was_silent(run: Run, answered: Sequence[str], silent: Sequence[str]) -> int:
    for name in silent:
        run.tell(f"no answer within {run.said.timeout} s: {name}")
    if not answered and not silent:
        run.tell(f"no host answered within {run.said.timeout} s")
    return Code.OK if answered and not silent else Code.FAILED


async def query_capacity(run: Run) -> int:
    """Exit code 0 only when there is room for all that were asked for, and every host that is known has answered."""
    said = run.said
    answers = await inquiries.ask(run.controller, run.reactor, vars(said), run.hosts, said.timeout)
    expected = run.hosts if said.host == EVERY_HOST else [said.host]
    silent = sorted(set(expected) - set(answers))
    total = inquiries.summed(answers, silent)
    if said.json:
        output.as_json(run.out, total)
    else:
        inquiries.show(run.out, total)
    code = _who_was_silent(run, sorted(answers), silent)
    return code if total["enough"] else Code.FAILED


async def glue(run: Run) -> int:
    """The site's GLUE document, of every host that answers now."""
    shares: gluing.Shares = {}

    def heard(event: Event) -> None:
        share = gluing.share_of(event["data"]) if event["type"] == "org.vmagent.host.snapshot" else None
        if share is not None:
            shares[str(event["source"]).rsplit("/", 1)[-1]] = share

    forget = run.controller.watch(heard)
    try:
        answered, silent = await _reports(run, EVERY_HOST)
    finally:
        forget()
    whole = gluing.write(run.said, shares, [*answered, *silent], run.wall_s(), run.out, run.tell)
    return Code.OK if whole else Code.FAILED


async def watch(run: Run) -> int:
    """Until interrupted.  Missing events and a link that is lost are told in the log, on standard error."""

    def show(event: Event) -> None:
        if run.said.json:
            output.as_json(run.out, event)
        else:
            output.event(run.out, event)

    run.controller.watch(show)
    await Deferred()
    return Code.OK


COMMANDS: Mapping[str, Callable[[Run], Awaitable[int]]] = {
    "start": start,
    "stop": on_vms,
    "kill": on_vms,
    "pause": on_vms,
    "resume": on_vms,
    "reboot": on_vms,
    "attach": on_vms,
    "detach": on_vms,
    "restart": on_vms,
    "revert": on_vms,
    "snapshot": snapshot,
    "extend": on_vms,
    "limits": limits,
    "query": query,
    "drain": on_host,
    "undrain": on_host,
    "revoke": revoke,
    "images": images,
    "list": listing,
    "report": report,
    "glue": glue,
    "query-capacity": query_capacity,
    "watch": watch,
}
