"""How the agent itself fares, in numbers that a monitor can judge: told with `status` on the local socket.

Rules: nothing is judged here; what cannot be found out now is None, never 0, and hides nothing of the rest.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Awaitable, Callable, Dict, Optional

from vmagent import ports
from vmagent.channel import Channel
from vmagent.core import walltime
from vmagent.core.policy import Policy
from vmagent.errors import Fault
from vmagent.world import World

LOOKED_AT = 100  # of the messages that wait, the oldest: beyond so many replies there is an event


class Condition:
    """`facts()` is what `status` shows as `health`."""

    def __init__(
        self,
        store: ports.Store,
        images: ports.Images,
        way: Channel,
        clock: ports.Clock,
        world: World,
        policy: Callable[[], Policy],
    ) -> None:
        self._store = store
        self._images = images
        self._way = way
        self._clock = clock
        self._world = world
        self._policy = policy

    def broker(self) -> Dict[str, Any]:
        """The state of the link: {up, url, since, why, failures}."""
        return dataclasses.asdict(self._way.link.state())

    async def facts(self) -> Dict[str, Any]:
        """{link_s, spool_age_s, published_age_s, certificates, disk_free_gib, disk_floor_gib}.

        link_s: seconds since the link to the broker came or went; spool_age_s: age of the oldest event that waits for
        the broker, 0 = none waits (a reply has no time); published_age_s: since the broker last took a message, None =
        not since the start.
        """
        now = self._clock.now()
        published = self._way.outbox.published_at
        return {
            "link_s": round(max(0.0, now.at - self._way.link.state().since), 1),
            "spool_age_s": await _known(self._spool_age_s(now.wall)),
            "published_age_s": None if published is None else round(max(0.0, now.at - published), 1),
            "certificates": {one["file"]: one["days_left"] for one in self._world.certificates},
            "disk_free_gib": await _known(self._free_gib()),
            "disk_floor_gib": self._policy().disk_floor_gib,
        }

    async def _spool_age_s(self, wall: str) -> float:
        times = [row.time_wall for row in await self._store.outbox(0, LOOKED_AT) if row.time_wall]
        return round(max([0.0, *(walltime.seconds(wall) - walltime.seconds(one) for one in times[:1])]), 1)

    async def _free_gib(self) -> float:
        return float(await self._images.free_gib())


async def _known(asked: Awaitable[float]) -> Optional[float]:
    try:
        return await asked
    except Fault:
        return None
