"""Looks every minute at the files that say who is who: renewed ones are in use without a restart, what ends is told.

The CA directory and its revocation lists count from the look on.  A renewed certificate of ours, or CA of the broker,
is taken by making the link anew at once, while somebody is still looking: not at the next loss, months later.  Files
that do not fit together, or are not valid now, leave a link that lives alone.  Nothing of this holds anything else up.
"""

from __future__ import annotations

import logging
from typing import Callable, Dict

from twisted.internet.defer import Deferred

from vmagent import ports
from vmagent.core import validity, walltime
from vmagent.core.validity import Papers
from vmagent.log import event
from vmagent.world import World

log = logging.getLogger("vmagent.daemon")


class Certificates:
    """What was read last, in `world.certificates` and `world.degraded`."""

    def __init__(
        self, world: World, clock: ports.Clock, read: Callable[[], Deferred[Papers]], renew: Callable[[str], None],
        warn_days: float,
    ) -> None:
        self._world = world
        self._clock = clock
        self._read = read
        self._renew = renew  # the link to the broker, because of what
        self._warn_days = warn_days
        self._owed = False  # a renewed certificate that the link does not use yet
        self._told: Dict[str, str] = {}

    async def look(self) -> None:
        """Faults: UNKNOWN, when the files cannot be read in time."""
        papers = await self._read()
        now_s = walltime.seconds(self._clock.now().wall)
        self._world.certificates = tuple(validity.published(papers.dated, now_s))
        self._tell(validity.troubles(papers, self._warn_days, now_s))
        self._owed = self._owed or papers.renewed
        if self._owed and not papers.faults and validity.usable(papers.dated, now_s):
            self._owed = False
            event(log, "certificates-renewed", "renewed files of broker.tls are taken: the link is made anew")
            self._renew("made anew with the renewed files of broker.tls")

    def _tell(self, troubles: Dict[str, str]) -> None:
        for part in self._told.keys() - troubles.keys():
            self._world.degraded.pop(part, None)
        self._world.degraded.update(troubles)
        for part, why in troubles.items():
            if self._told.get(part) != why:
                event(log, "certificate-ends", why, reason=why)
        self._told = troubles
