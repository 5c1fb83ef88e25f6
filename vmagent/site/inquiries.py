"""`vmagent-site query-capacity`: one host is asked, or all at once; their answers are added up.

A host that does not answer in time is named and counts for nothing; so the sum is what is certain.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence, TextIO

from twisted.internet.defer import Deferred

from vmagent import givenfiles
from vmagent.core import capacityasking, columns
from vmagent.core.model import Owner
from vmagent.site.controller import EVERY_HOST, Controller
from vmagent.site.handle import Handle, Reply

Answers = Dict[str, Mapping[str, Any]]


async def ask(
    controller: Controller, reactor: Any, said: Mapping[str, Any], hosts: Sequence[str], timeout_s: float
) -> Answers:
    """host -> its answer, of those that answered in time.  Problem: the one host that was asked refuses."""
    host = said["host"]
    owner = Owner(said["owner"], said["fqan"]) if said["owner"] else None
    args = capacityasking.query_args(said, givenfiles.content)
    handle = controller.command(host, "capacity.query", args, owner=owner, valid_s=max(60.0, 2 * timeout_s))
    return await _collected(handle, reactor, [host] if host != EVERY_HOST else hosts, timeout_s)


async def _collected(handle: Handle, reactor: Any, expected: Sequence[str], timeout_s: float) -> Answers:
    found: Answers = {}
    enough: Deferred[None] = Deferred()

    def heard(reply: Reply) -> None:
        if reply["status"] == "done":
            found[str(reply["result"]["host"])] = reply["result"]
        if expected and set(expected) <= set(found) and not enough.called:
            enough.callback(None)

    def failed(reason: Any) -> None:
        if not enough.called:
            enough.errback(reason)

    handle.hear(heard)
    handle.done.addErrback(failed)
    timer = reactor.callLater(timeout_s, lambda: None if enough.called else enough.callback(None))
    try:
        await enough
    finally:
        if timer.active():
            timer.cancel()
    return found


def summed(answers: Answers, silent: Sequence[str]) -> Mapping[str, Any]:
    """{possible: now, then, yours: null when nobody told; hosts, silent}."""
    results = [answers[host] for host in sorted(answers)]
    yours = [one["yours"]["possible"] for one in results if one["yours"] is not None]
    return {
        "possible": {**{when: sum(one[when]["possible"] for one in results) for when in ("now", "then")},
                     "yours": sum(yours) if yours else None},
        "enough": bool(results) and sum(one["then"]["possible"] for one in results) >= results[0]["asked"]["count"],
        "hosts": results,
        "silent": list(silent),
    }  # fmt: skip


def show(out: TextIO, total: Mapping[str, Any]) -> None:
    """A row per host, and the sum."""
    rows: List[Sequence[str]] = [capacityasking.row(one) for one in total["hosts"]]
    if not rows:
        out.write("no host answered\n")
        return
    out.write("\n".join(columns.lines(capacityasking.HEADER, rows)) + "\n")
    now, then, yours = (total["possible"][name] for name in ("now", "then", "yours"))
    mine = "" if yours is None else f", {yours} of them yours"
    out.write(f"{now} now, {then} then{mine}: {'enough' if total['enough'] else 'not enough'}\n")
    if len(rows) == 1:
        for line in capacityasking.details(total["hosts"][0]):
            out.write(columns.clean(f"why not more  {line}") + "\n")
