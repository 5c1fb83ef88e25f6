"""The `vmagent-site` command: arguments, reactor, clocks, exit codes.  What it does: commands.py and pki.py."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import logging
import sys
import time
from pathlib import Path
from typing import Any, List, Optional, Sequence

from twisted.internet.defer import Deferred, TimeoutError, ensureDeferred
from twisted.internet.error import ReactorNotRunning
from twisted.python.failure import Failure

from vmagent.errors import Fault, Problem
from vmagent.site import appliance, collected, gluing, output, pki
from vmagent.site.arguments import parser
from vmagent.site.commands import COMMANDS, Code, Run
from vmagent.site.controller import Controller
from vmagent.site.database import Database
from vmagent.site.reports import READERS, Reading, check
from vmagent.site.settings import Site, load

log = logging.getLogger("vmagent.site")
CONNECT_S = 30.0
GOODBYE_S = 10.0


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command; returns the exit code.  Wrong arguments raise SystemExit(2), as argparse does."""
    said = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        if said.verb == "pki":
            return _pki(said)
        if said.verb == "glue" and said.files:
            whole = gluing.write(said, gluing.from_files(said.files), (), time.time(), sys.stdout, _tell)
            return Code.OK if whole else Code.FAILED
        check(said)
        site = load(said.config)
        if said.verb in READERS and getattr(said, "collected", True):
            return _read(said, site)
        if said.verb == "start":
            said.args = appliance.start_args(said, site.ovf_networks, _tell)
        return _with_reactor(said, site)
    except Problem as problem:
        return _refused(problem)
    except Fault as fault:
        _tell(str(fault))
        return Code.FAILED


def _read(said: argparse.Namespace, site: Site) -> int:
    """A command on the collector's database; it needs neither broker nor reactor."""
    database = Database(collected.place(said, site), made=False)
    try:
        return READERS[said.verb](Reading(said, database, site.hosts, time.time, sys.stdout, sys.stderr))
    except KeyboardInterrupt:
        return 130
    finally:
        database.close()


def _tell(text: str) -> None:
    sys.stderr.write(f"vmagent-site: {text}\n")


def _refused(problem: Problem) -> int:
    for line in output.problem_lines(problem):
        sys.stderr.write(f"vmagent-site: {line}\n")
    if problem.type in ("configuration", "usage"):
        return Code.USAGE
    return Code.FAILED if problem.fields.get("status") == "failed" else Code.REFUSED


# -- the small CA


def _pki(said: argparse.Namespace) -> int:
    now = datetime.datetime.now(datetime.timezone.utc)
    try:
        print(*_pki_made(said, now), sep="\n")
    except (OSError, ValueError) as error:
        sys.stderr.write(f"vmagent-site: {error}\n")
        return Code.FAILED
    return Code.OK


def _pki_made(said: argparse.Namespace, now: datetime.datetime) -> List[Path]:
    """The files that were written."""
    if said.action == "init":
        return [pki.init(said.directory, said.name, now)]
    if said.action == "issue":
        return list(pki.issue(said.directory, said.name, said.kind, now, said.days, said.san))
    files = [said.directory / f"{name.replace(' ', '_')}.pem" for name in said.names]
    return [pki.crl(said.directory, now, files)]


# -- everything else needs the reactor


def _with_reactor(said: argparse.Namespace, site: Site) -> int:
    from twisted.internet import reactor  # here, because `--help` and `pki` need none

    clock: Any = reactor
    codes: List[int] = []
    going: List[Deferred[Any]] = []  # a coroutine that only waits for itself would be collected as garbage

    def ended(outcome: Any) -> None:
        codes.append(_code(outcome, said) if isinstance(outcome, Failure) else int(outcome))
        with contextlib.suppress(ReactorNotRunning):  # a signal stops it, too
            clock.stop()

    def begin() -> None:
        going.append(ensureDeferred(_run(said, site, clock)))
        going[0].addBoth(ended)

    clock.callWhenRunning(begin)
    clock.run()
    return codes[0] if codes else Code.OK if said.verb == "collect" else 130  # interrupted, as a service is ended


async def _run(said: argparse.Namespace, site: Site, clock: Any) -> int:
    if said.verb == "collect":
        return await collected.collect(said, site, clock, time.time, sys.stdout, sys.stderr)
    controller = Controller(site, clock, time.time)
    connected: Deferred[None] = controller.connect()
    connected.addTimeout(CONNECT_S, clock)
    try:
        try:
            await connected
        except TimeoutError:
            sys.stderr.write(f"vmagent-site: no link to {', '.join(site.broker.urls)}: {controller.link.why}\n")
            return Code.SILENT
        return await COMMANDS[said.verb](Run(said, controller, clock, site.hosts, sys.stdout, sys.stderr, time.time))
    finally:
        closed = controller.close()
        closed.addTimeout(GOODBYE_S, clock)
        closed.addErrback(_given_up)
        await closed


def _given_up(failure: Failure) -> None:
    """The broker does not say good-bye; we leave anyhow."""
    if not isinstance(failure.value, TimeoutError):
        failure.raiseException()


def _code(failure: Failure, said: argparse.Namespace) -> int:
    error = failure.value
    if isinstance(error, Problem):
        return _refused(error)
    if isinstance(error, TimeoutError):
        sys.stderr.write("vmagent-site: no answer in time; what becomes of the command is not known. It stays valid "
                         "for an hour; see `vmagent-site list`\n")
        return Code.SILENT
    if isinstance(error, Fault):
        sys.stderr.write(f"vmagent-site: {error}\n")
        return Code.SILENT
    log.error("this is a defect", exc_info=error)
    return Code.FAILED


if __name__ == "__main__":
    sys.exit(main())
