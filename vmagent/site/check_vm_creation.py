"""check_vm_creation: does a VM start, become ready, and end on this host?  By the way that controllers use.

Starts the site's test image, waits until it is *ready* (running, network seen, storage attached), stops it, and waits
for the proof that it is over: the state that says `closed`, or a snapshot that names it no more.  Rules:

  - Whatever happens on the way, at the end the VM is killed unless it is proven over; a quarter of the time is kept
    for that.  What still goes wrong then is ended by its lease, which is little longer than the plug-in's own time.
  - SIGTERM and SIGINT end the work, not the cleaning up.  The alarm of export/plugin.py ends everything.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.python.failure import Failure

from vmagent import givenfiles
from vmagent.core import asking
from vmagent.errors import Fault, Problem
from vmagent.export import plugin
from vmagent.export.plugin import Result, Thresholds
from vmagent.render.nagios import Metric, Status, worst
from vmagent.site.controller import Controller, OpenLink
from vmagent.site.handle import Handle
from vmagent.site.settings import DEFAULT_PATH, Site, load

SERVICE = "vm creation"
OWN = ".check_vm_creation"  # of the name of its queue of replies
TIMEOUT_S = 600
RESERVE = 0.25  # of the time, for cleaning up; at most LONGEST_RESERVE_S
LONGEST_RESERVE_S = 60.0
LEASE_S = 120  # beyond the plug-in's own time
LOOK_S = 10.0  # a snapshot is asked for, should the closing state have been missed
GOODBYE_S = 3.0
LEAST_S = 1.0
DEFAULTS = {"connect": ("5", "20"), "accepted": ("10", "30"), "ready": ("120", "300"), "stopped": ("60", "180"),
            "over": ("30", "120"), "total": ("", "")}
STEPS = tuple(DEFAULTS)
WANTED = ("--image", "--flavour", "--cores", "--memory-mib", "--disk-gib", "--network", "--volume", "--scratch")
"""Options of a start that the check takes."""


def parser() -> plugin.Arguments:
    arguments = plugin.Arguments(
        SERVICE, "Start a VM on a host, wait until it is ready, stop it, and prove that it is over.", TIMEOUT_S,
        prog="check_vm_creation",
        epilog="examples:\n  check_vm_creation -H wn1.example.org --image try --flavour tiny --network public\n"
               "  check_vm_creation -H wn1.example.org --image try --cores 1 --memory-mib 128 --disk-gib 1 \\\n"
               "      -w ready=60 -c ready=180 -t 300\n\nexit codes: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN",
    )
    arguments.add_argument("-H", "--host", required=True, metavar="HOST", help="the host, as its agent is configured")
    arguments.add_argument("--config", type=Path, default=DEFAULT_PATH, metavar="FILE",
                           help=f"site, broker and key, as for vmagent-site (default {DEFAULT_PATH})")
    asking.add_options(arguments, [one for one in asking.START if one.flag in WANTED], ("image",))
    plugin.add_thresholds(arguments, DEFAULTS)
    return arguments


class Course:
    """One VM's life as the check sees it.  times: step -> seconds it took."""

    def __init__(self, controller: Controller, reactor: Any, said: argparse.Namespace, args: Mapping[str, Any]) -> None:
        self.times: Dict[str, float] = {}
        self._controller = controller
        self._reactor = reactor
        self._said = said
        self._args = args
        self._began = reactor.seconds()
        self._ends = self._began + said.timeout - min(LONGEST_RESERVE_S, RESERVE * said.timeout)
        self._waits: Optional[Deferred[Any]] = None
        self.step = STEPS[0]
        self.started: Optional[Handle] = None
        self.over = False
        self.link = ""  # what was known of it when the last step ended, in words

    def interrupt(self) -> None:
        """End the work now."""
        self._ends = self._reactor.seconds()
        if self._waits is not None:
            self._waits.cancel()

    async def run(self) -> None:
        """All steps.  Problem, Fault, TimeoutError and CancelledError end it where it stands (`step`)."""
        await self._timed("connect", self._controller.connect())
        self.started = self._controller.command(
            self._said.host, "vm.start", self._args, owner=None, reason="check_vm_creation",
            valid_s=float(self._said.timeout))
        await self._timed("accepted", self.started.accepted)
        await self._timed("ready", self.started.done)
        stopping = self._command("vm.stop")
        await self._timed("stopped", stopping.done)
        await self._timed("over", self.closed())
        self.over = True
        self.times["total"] = self._reactor.seconds() - self._began

    async def clean(self, within_s: float) -> bool:
        """Whether the VM is proven over, killing it if need be."""
        if self.started is None or self.over or self._refused():
            return True
        try:
            killed = self._command("vm.kill").done
            killed.addErrback(_settled)
            await killed.addTimeout(within_s / 2, self._reactor)
            await self.closed().addTimeout(within_s / 2, self._reactor)
        except (Fault, TimeoutError):
            return False
        return True

    def _refused(self) -> bool:
        """A start that was refused made nothing."""
        reply = None if self.started is None else self.started.reply
        return reply is not None and reply["status"] == "refused"

    def closed(self) -> Deferred[None]:
        """Fires when the VM is known to be no more."""
        assert self.started is not None
        ids, fleet = self.started.ids, self._controller.fleet
        gone: Deferred[None] = Deferred(lambda _: stop())
        timers: List[Any] = []

        def look(_: Any = None) -> None:
            live = {state["vm"] for _, state in fleet.vms()}
            if not gone.called and all(fleet.state(vm) and vm not in live for vm in ids):
                stop()
                gone.callback(None)

        def again() -> None:
            timers[:] = [self._reactor.callLater(LOOK_S, again)]
            self._controller.command(self._said.host, "host.report", {}, valid_s=LOOK_S).done.addErrback(_settled)

        def stop() -> None:
            forget()
            for timer in timers:
                if timer.active():
                    timer.cancel()

        forget = self._controller.watch(look)
        timers.append(self._reactor.callLater(LOOK_S, again))
        look()
        return gone

    def _command(self, verb: str) -> Handle:
        assert self.started is not None
        return self._controller.command(self._said.host, verb, {"vms": list(self.started.ids)},
                                        reason="check_vm_creation")

    async def _timed(self, step: str, waiting: Deferred[Any]) -> None:
        self.step = step
        at = self._reactor.seconds()
        self._waits = waiting
        waiting.addTimeout(max(0.01, self._ends - at), self._reactor)
        try:
            await waiting
        finally:
            self._waits, self.link = None, self._controller.link.why
        self.times[step] = self._reactor.seconds() - at

    def metrics(self, limits: Thresholds) -> List[Metric]:
        """Every step's time; one that was not come to is unknown."""
        return [Metric(step, self.times.get(step), "s", *limits[step], 0.0) for step in STEPS]


def _settled(failure: Failure) -> None:
    """A refusal is an answer: the VM is known no more, or the agent does not report to us."""
    if not isinstance(failure.value, Problem):
        failure.raiseException()


# -- the verdict


def verdict(course: Course, limits: Thresholds, error: Optional[BaseException], clean: bool, host: str) -> Result:
    """What is told."""
    metrics = course.metrics(limits)
    if error is None:
        late = [metric for metric in metrics if metric.status() is not Status.OK]
        text = f"{host}: ready after {course.times['ready'] + course.times['accepted']:.1f} s, over after " \
               f"{course.times['total']:.1f} s"
        if late:
            text += "; slow: " + ", ".join(f"{metric.label} took {metric.value:.1f} s" for metric in late)
        return Result(worst([metric.status() for metric in metrics]), text, metrics)
    status = Status.UNKNOWN if isinstance(error, CancelledError) else Status.CRITICAL
    text = f"{host}: {_why(course, error)}"
    if not clean:
        text += "; the VM could not be proven over: its lease ends it"
    return Result(status, text, metrics, [f"VM {vm}" for vm in (course.started.ids if course.started else ())])


def _why(course: Course, error: BaseException) -> str:
    if isinstance(error, CancelledError):
        return f"ended by a signal before it was {course.step}"
    if isinstance(error, TimeoutError):
        return f"not {course.step} in time" if course.step != "connect" else f"no broker in time: {course.link}"
    return f"not {course.step}: {error}"


# -- the process


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The plug-in; returns the exit code."""
    said = parser().parse_args(argv)
    return plugin.run(SERVICE, said.timeout, said.verbose, lambda: _checked(said), sys.stdout)


def _checked(said: argparse.Namespace) -> Result:
    try:
        site = load(said.config)
    except Problem as problem:
        return Result(Status.UNKNOWN, problem.detail)
    from twisted.internet import reactor  # here, because `--help` needs none

    loop: Any = reactor
    found: List[Any] = []

    def ended(outcome: Any) -> None:
        found.append(outcome)
        loop.stop()

    def begin() -> None:
        Deferred.fromCoroutine(_course(said, site, loop)).addBoth(ended)

    loop.callWhenRunning(begin)
    loop.run(installSignalHandlers=False)  # ours stand: plugin.watch's, and while it works `_interrupted`
    if isinstance(found[0], Failure):
        found[0].raiseException()
    result: Result = found[0]
    return result


def start_args(said: argparse.Namespace) -> Dict[str, Any]:
    """`args` of vm.start: what was said, and bounds in time, so that nothing outlives the plug-in for long."""
    args = asking.start_args(vars(said), givenfiles.content)
    return {**args, "name": "check_vm_creation", "tags": ["check_vm_creation"], "lifetime_s": said.timeout + LEASE_S,
            "start_by_s": said.timeout}


async def _course(said: argparse.Namespace, site: Site, reactor: Any, open_link: Optional[OpenLink] = None,
                  wall_s: Callable[[], float] = time.time) -> Result:
    # On the queue of a controller that runs it would take that one's replies, and lose its own to it.
    own = dataclasses.replace(site, replies=site.replies + OWN, subscription="")
    controller = Controller(own, reactor, wall_s, open_link=open_link)
    course = Course(controller, reactor, said, start_args(said))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: reactor.callFromThread(course.interrupt))
    error: Optional[BaseException] = None
    try:
        await course.run()
    except (Problem, Fault, TimeoutError, CancelledError) as caught:
        error = caught
    clean = await course.clean(max(LEAST_S, min(LONGEST_RESERVE_S, RESERVE * said.timeout) - GOODBYE_S))
    closing = controller.close()
    closing.addTimeout(GOODBYE_S, reactor)
    with contextlib.suppress(TimeoutError):
        await closing
    return verdict(course, plugin.thresholds(said, DEFAULTS), error, clean, said.host)


if __name__ == "__main__":
    sys.exit(main())
