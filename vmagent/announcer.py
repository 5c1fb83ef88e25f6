"""What the host says of itself: host.state when it changes and at least every few minutes, host.snapshot now and then.

The snapshot is the whole truth with the last sequence of each stream before it, so that a collector that missed
something can start anew from it.  It is published at start, on request (host.report) and about every ten minutes.
"""

from __future__ import annotations

import logging
from typing import Any, Awaitable, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from vmagent import ports
from vmagent.consequences import Consequences, phases, unseen
from vmagent.core import codec, events, hostview, imageviews
from vmagent.core.changes import Change, Publish
from vmagent.core.commands import VERBS
from vmagent.core.model import Now
from vmagent.core.revocation import version
from vmagent.errors import Fault
from vmagent.offering import stale
from vmagent.world import World

log = logging.getLogger("vmagent.announcer")
CHANGING = ("at", "up_s", "valid_until")  # members of host.state that change by themselves


class Announcer:
    """Publishes the host's own messages."""

    def __init__(
        self,
        world: World,
        store: ports.Store,
        hypervisor: ports.Hypervisor,
        consequences: Consequences,
        clock: ports.Clock,
        security: str,
        version: str,
        capabilities: Callable[[], Mapping[str, Any]],
        images: Callable[[Now], Sequence[Mapping[str, Any]]],
    ) -> None:
        self.capacity: Callable[[], Awaitable[Optional[Mapping[str, Any]]]] = _unknown
        self._world = world
        self._store = store
        self._hypervisor = hypervisor
        self._consequences = consequences
        self._clock = clock
        self._security = security
        self._version = version
        self._capabilities = capabilities  # what this host can enforce (limitviews.capabilities)
        self._images = images  # -> imageviews.image of every image but those that only stand in a list
        self._told = ""
        self._images_told: Optional[Mapping[str, str]] = None  # id and sha512 -> digest; None = nothing was told yet

    def host(self, now: Now) -> Dict[str, Any]:
        """The data of host.state as it is now."""
        info = self._hypervisor.info()
        state = events.host_state(
            info, self._consequences.policy, now, epoch=self._world.epoch, version=self._version,
            drained=self._world.drained, degraded=self._world.degraded,
            commands=[f"{verb}/1" for verb in VERBS], security=self._security, certificates=self._world.certificates,
            capabilities=self._capabilities(), lists=self._world.lists,
        )
        records = tuple(self._world.records.values())
        more = hostview.served(info, self._consequences.policy, records, phases(self._world), now, self._world.drained,
                               stale(info, now))
        return {**state, **more, "revocation_version": version(self._world.revocations)}

    async def state(self) -> None:
        """Publish host.state."""
        now = self._clock.now()
        data = self.host(now)
        self._told = _digest(data)
        await self._publish([Publish("events", "org.vmagent.host.state", "host", now.wall, data)])

    async def changed(self) -> None:
        """Publish host.state if it says something new, and image.state of every image that changed."""
        if _digest(self.host(self._clock.now())) != self._told:
            await self.state()
        await self._changed_images(self._clock.now())

    async def _changed_images(self, now: Now) -> None:
        """How many run on it alone is no news: each vm.state says what it runs on.  Nor is its last use."""
        views = self._images(now)
        told, self._images_told = self._images_told, _digests(views)
        if told is None:
            return
        changed = [view for view in views if told.get(_key(view)) != self._images_told[_key(view)]]
        if changed:
            await self._publish([Publish("events", "org.vmagent.image.state", f"image/{view['sha512']}", now.wall, view)
                                 for view in changed])

    async def snapshot(self) -> None:
        """Publish host.snapshot."""
        await self._publish(await self.snapshot_changes(self._clock.now()))

    async def snapshot_changes(self, now: Now) -> List[Change]:
        """What publishes a snapshot, for a commit that holds more."""
        policy = self._consequences.policy
        states = [events.vm_state(record, self._world.observed.get(record.vm) or unseen(record.vm), now, policy)
                  for record in self._world.records.values()]
        sequences = await self._store.sequences()
        images = self._images(now)
        self._images_told = _digests(images)
        data = events.host_snapshot(self.host(now), states, self._world.foreign, sequences, self._world.epoch, now,
                                    images, await self._capacity())
        return [Publish("events", "org.vmagent.host.snapshot", "host", now.wall, data)]

    async def _capacity(self) -> Optional[Mapping[str, Any]]:
        """None while the free disk cannot be read: the rest of the truth is told all the same."""
        try:
            return await self.capacity()
        except Fault as fault:
            log.warning("what is free here is not known: %s", fault)
            return None

    async def _publish(self, changes: Sequence[Change]) -> None:
        async def decide() -> Tuple[Sequence[Change], None]:
            return changes, None

        await self._world.transact(decide)


async def _unknown() -> None:
    """Until somebody is there who knows what is free."""


def _digest(data: Mapping[str, Any]) -> str:
    return codec.digest({name: value for name, value in data.items() if name not in CHANGING})


def _key(view: Mapping[str, Any]) -> str:
    return f"{view['id']} {view['sha512']}"


def _digests(views: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
    return {_key(view): codec.digest(imageviews.news(view)) for view in views}
