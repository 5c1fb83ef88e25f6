"""What this host offers: host.capacity, reckoned from the newest memory, published at a change and every few minutes.

Rules: nothing is remembered but what was told last, and in the store how long starts took.  A message says how long it
may be believed, and which of its parts are older than itself; when the free disk cannot be read nothing is published,
and the last message runs out.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

from twisted.internet.defer import Deferred

from vmagent import ports
from vmagent.consequences import Consequences, phases
from vmagent.core import capacity, codec, events, starts
from vmagent.core.changes import Change, Publish, PutSetting
from vmagent.core.model import HypervisorInfo, Now
from vmagent.core.room import HostRoom
from vmagent.world import World

AGAIN_S = 120.0  # the same again after this long, well within its validity


class Offering:
    """Reckons and publishes.

    room, around: what admission starts from, and what lies around the guests; glue: (host.capacity, now) -> this
    host's share of its site's GLUE document.
    """

    def __init__(
        self,
        world: World,
        hypervisor: ports.Hypervisor,
        consequences: Consequences,
        clock: ports.Clock,
        room: Callable[[], Deferred[HostRoom]],
        around: Callable[[], Deferred[capacity.Around]],
        glue: Callable[[Mapping[str, Any], Now], Mapping[str, Any]],
    ) -> None:
        self._world = world
        self._hypervisor = hypervisor
        self._consequences = consequences
        self._clock = clock
        self._room = room
        self._around = around
        self._glue = glue
        self._told = ""
        self._told_at = 0.0

    async def here(self) -> capacity.Here:
        """Everything that the answers are reckoned from, read now.  Faults: of the disk."""
        room, around = await self._room(), await self._around()
        world, now = self._world, self._clock.now()
        records = tuple(world.records.values())
        measured = starts.lately(world.settings.get(starts.SETTING), (*world.recent.values(), *records), now)
        return capacity.Here(self._consequences.policy, records, phases(world), room, around, now, measured,
                             stale(self._hypervisor.info(), now))

    async def view(self) -> Dict[str, Any]:
        """The data of host.capacity."""
        here = await self.here()
        return self._whole(capacity.published(here), here.now)

    def _whole(self, data: Mapping[str, Any], now: Now) -> Dict[str, Any]:
        """With the rendering that goes along: made only for what is told, because most looks find nothing new."""
        return {**data, "glue": dict(self._glue(data, now))}

    async def changed(self) -> None:
        """Publish if it says something new, or the last is not young any more."""
        here = await self.here()
        digest, now = codec.digest(capacity.standing(here)), here.now
        if digest == self._told and now.at - self._told_at < AGAIN_S:
            return
        data = capacity.published(here)
        changes: List[Change] = [Publish("capacity", "org.vmagent.host.capacity", "host", now.wall,
                                         self._whole(data, now))]
        kept = starts.setting(here.starts)
        if kept != self._world.settings.get(starts.SETTING, []):
            changes.append(PutSetting(starts.SETTING, kept))

        async def decide() -> Tuple[Sequence[Change], None]:
            return changes, None

        await self._world.transact(decide)
        self._told, self._told_at = digest, now.at


def stale(info: HypervisorInfo, now: Now) -> Sequence[Mapping[str, Any]]:
    """Parts of what is told of this host that are older than the telling: {part, since, why}."""
    return () if info.connected else ({"part": "vms", "since": events.ago(info.since, now), "why": info.why},)
