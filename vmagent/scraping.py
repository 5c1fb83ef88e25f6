"""Offers what was measured to whoever scrapes this host, where the site wants that.

An address that cannot be had is told as degraded and tried again, and keeps nobody from starting.
"""

from __future__ import annotations

import logging
from typing import Any, Optional, Protocol

from twisted.internet.defer import Deferred

from vmagent.errors import Fault
from vmagent.world import World

log = logging.getLogger("vmagent.scraping")
PART = "prometheus"


class Server(Protocol):
    """What offers it (export/http.py)."""

    def start(self) -> int: ...

    def stop(self) -> Deferred[Any]: ...


class Scraping:
    """server: None = the site wants none."""

    def __init__(self, world: World, server: Optional[Server]) -> None:
        self._world = world
        self._server = server
        self._offered = False

    async def look(self) -> None:
        """Offer it unless it is."""
        if self._server is None or self._offered:
            return
        try:
            port = self._server.start()
        except Fault as fault:
            self._world.degraded[PART] = fault.detail
            log.error("%s", fault)
            return
        self._offered = True
        self._world.degraded.pop(PART, None)
        log.info("/metrics is offered on port %d", port)

    async def stop(self) -> None:
        if self._server is not None and self._offered:
            self._offered = False
            await self._server.stop()
