"""`vmagent-site collect` as a command: until a signal comes, or until nothing more comes."""

from __future__ import annotations

import argparse
from typing import Any, Callable, TextIO, Tuple

from twisted.internet.defer import Deferred, TimeoutError

from vmagent.site import output
from vmagent.site.book import Book
from vmagent.site.commands import Code
from vmagent.site.database import Database
from vmagent.site.gathering import Gatherer
from vmagent.site.settings import Site

CONNECT_S = 30.0
QUIET_S = 3.0  # nothing came for so long: drained
HEAL_S = 60.0  # how long `--once` waits for snapshots
LOOK_S = 0.2


def place(said: argparse.Namespace, site: Site) -> str:
    """The database that is meant: of the command line, or of the configuration."""
    return str(said.database or site.database)


async def collect(said: argparse.Namespace, site: Site, reactor: Any, wall_s: Callable[[], float], out: TextIO,
                  err: TextIO) -> int:
    """Until a signal comes; with `--once` until nothing more comes."""
    where = place(said, site)

    def open_book() -> Tuple[Book, Callable[[], None]]:
        database = Database(where)
        return Book(database), database.close

    gatherer = Gatherer(site, reactor, wall_s, open_book)
    ended: Deferred[None] = Deferred()

    def shut() -> Deferred[None]:
        ended.callback(None)
        return Deferred.fromCoroutine(gatherer.stop())

    reactor.addSystemEventTrigger("before", "shutdown", shut)
    anew = await gatherer.open()
    try:
        connected = gatherer.connect(anew)
        if not said.once:
            err.write(f"vmagent-site: collecting into {where}\n")
            err.flush()
            await ended
            return Code.OK
        try:
            await connected.addTimeout(CONNECT_S, reactor)
        except TimeoutError:
            err.write(f"vmagent-site: no link to {', '.join(site.broker.urls)}: {gatherer.why}\n")
            return Code.SILENT
        return await _drained(gatherer, reactor, said, out)
    finally:
        await gatherer.stop()


async def _drained(gatherer: Gatherer, reactor: Any, said: argparse.Namespace, out: TextIO) -> int:
    began = gatherer.active_at = reactor.seconds()
    while True:
        pause: Deferred[None] = Deferred()
        reactor.callLater(LOOK_S, pause.callback, None)
        await pause
        now = reactor.seconds()
        quiet = gatherer.idle and now - gatherer.active_at > QUIET_S
        if quiet and (not gatherer.lacking or now - began > HEAL_S):
            break
    heard = gatherer.heard
    found = {"new": heard.new, "duplicates": heard.duplicates, "healed": heard.healed, "aside": len(heard.aside),
             "lacking": list(gatherer.lacking)}
    if said.json:
        output.as_json(out, found)
    else:
        out.write(f"{heard.new} new, {heard.duplicates} duplicates, {heard.healed} healed by snapshots, "
                  f"{len(heard.aside)} set aside\n")
    for host in gatherer.lacking:
        out.write("" if said.json else f"states are missing: {host}\n")
    return Code.FAILED if gatherer.lacking or heard.aside else Code.OK
