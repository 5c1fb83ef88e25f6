"""The wiring of what tells the grid's accounting: cut from parts.py by its theory, for it hangs on the store alone."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from vmagent import ports
from vmagent.broker.link import Link
from vmagent.config import ApelSettings, Config
from vmagent.core.changes import Change, MarkExported
from vmagent.core.policy import Volume
from vmagent.errors import Fault, Problem
from vmagent.export.apel import WHO, Outcome, Publisher, Queues
from vmagent.export.relay import Relay
from vmagent.export.smime import Signer
from vmagent.export.spool import Spool
from vmagent.images import header
from vmagent.lanes import Lanes
from vmagent.local.protocol import RESEND
from vmagent.log import surprise
from vmagent.render import apel
from vmagent.world import World

log = logging.getLogger("vmagent.export")
PART = "accounting export"  # of host.state's `degraded`
SPREAD_S = 3600  # hosts publish within an hour of one another, not at once


class Apel:
    """Who publishes and who sends; without `accounting.apel` nobody does."""

    def __init__(self, publisher: Optional[Publisher], relay: Optional[Relay]) -> None:
        self._publisher = publisher
        self._relay = relay
        self._turn: Optional[Deferred[None]] = None  # the one under way
        self.exporters: Tuple[str, ...] = (WHO,) if publisher is not None else ()  # who must have what is pruned

    async def look(self) -> None:
        """Once a minute: begin a turn, unless one is under way.  A spool or a broker that hangs holds up nobody."""
        if self._turn is None:
            self._turn = turn = Deferred.fromCoroutine(self.turn())
            turn.addErrback(_told).addBoth(self._done)

    def _done(self, _: object) -> None:
        self._turn = None

    async def turn(self) -> None:
        """Publish if it is time, and send what waits.  Faults: the spool's, while it is sent from."""
        if self._publisher is not None:
            await self._publisher.look()
        if self._relay is not None:
            await self._relay.look()

    def queries(self) -> Dict[str, Callable[[Mapping[str, Any]], Deferred[Any]]]:
        """What the local socket may ask."""
        return {"accounting": lambda args: Deferred.fromCoroutine(self._status()),
                RESEND: lambda args: Deferred.fromCoroutine(self._resend(args))}

    async def _status(self) -> Dict[str, Any]:
        return {"apel": None if self._publisher is None else await self._publisher.status()}

    async def _resend(self, args: Mapping[str, Any]) -> Dict[str, Any]:
        """args: `month`, such as 2026-11; `dry_run`."""
        if self._publisher is None:
            raise Problem("no-accounting", "no accounting is published here: set accounting.apel", path="verb")
        dry_run = args.get("dry_run") is True
        outcome: Outcome = await self._publisher.resend(str(args.get("month")), dry_run)
        if self._relay is not None and not dry_run:
            await self._relay.look()
        return {"month": args["month"], "dry_run": dry_run, "records": outcome.records, "messages": outcome.messages,
                "superseded": outcome.superseded, "wrong": outcome.wrong}


def build(
    config: Config, store: ports.Store, world: World, clock: ports.Clock, lanes: Lanes, link: Link,
    volumes: Callable[[], Mapping[str, Volume]],
) -> Apel:
    """Nothing is written before the first `look`.  volumes: the site's, as they are now."""
    settings = config.apel
    if settings is None:
        return Apel(None, None)
    queues = _queues(settings)
    offset = int(hashlib.sha256(config.policy.host.encode()).hexdigest(), 16) % SPREAD_S

    async def mark(row: int) -> None:
        await world.transact(lambda: _marked(row))

    def trouble(why: str) -> None:
        world.degraded.pop(PART, None)
        if why:
            world.degraded[PART] = why

    pair = settings.sign
    publisher = Publisher(
        store, queues, apel.Publisher(settings.site_name, settings.cloud_service, settings.cpu_duration),
        None if pair is None else Signer(pair.certificate, pair.key), lanes, clock, mark, trouble,
        lambda volume: volume_bytes(volumes(), volume), settings.publish_hours * 3600, offset,
    )  # fmt: skip
    if settings.destination is None:
        return Apel(publisher, None)
    return Apel(publisher, Relay(queues.cloud, lanes, link.send, lambda: link.state().up, settings.destination))


def _queues(settings: ApelSettings) -> Queues:
    def queue(kind: str, directory: Any) -> Optional[Spool]:
        return None if directory is None else Spool(directory, settings.archive / kind)

    return Queues(Spool(settings.spool, settings.archive / "cloud"), queue("public-ip", settings.public_ip_spool),
                  queue("storage", settings.storage_spool))


def _told(failure: Failure) -> None:
    """Edge: nobody waits for this work."""
    if isinstance(failure.value, Fault):
        log.warning("%s", failure.value)
    else:
        surprise(log, "the accounting export failed", failure)


async def _marked(row: int) -> Tuple[Sequence[Change], None]:
    return (MarkExported(WHO, row),), None


def volume_bytes(volumes: Mapping[str, Volume], name: str) -> Optional[int]:
    """The size that a guest sees; None = not known: no such volume any more, unreadable, or of a storage pool."""
    volume = volumes.get(name)
    if volume is None or not volume.path:
        return None
    try:
        handle = os.open(volume.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if stat.S_ISBLK(os.fstat(handle).st_mode):
            return os.lseek(handle, 0, os.SEEK_END)
        return header.virtual_size(handle, volume.format)
    except (OSError, Fault):
        return None
    finally:
        os.close(handle)
