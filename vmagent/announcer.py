"""What the host says of itself: host.state when it changes and at least every few minutes, host.snapshot now and then.

The snapshot is the whole truth with the last sequence of each stream before it, so that a collector that missed
something can start anew from it.  It is published at start, on request (host.report) and about every ten minutes.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

from vmagent import ports
from vmagent.consequences import Consequences, unseen
from vmagent.core import codec, events
from vmagent.core.changes import Change, Publish
from vmagent.core.commands import VERBS
from vmagent.core.model import Now
from vmagent.world import World

CHANGING = ("at", "up_s")  # members of host.state that change by themselves


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
        certificates: Callable[[], Mapping[str, int]],
        capabilities: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._world = world
        self._store = store
        self._hypervisor = hypervisor
        self._consequences = consequences
        self._clock = clock
        self._security = security
        self._version = version
        self._certificates = certificates  # -> file: whole days left
        self._capabilities = capabilities  # what this host can enforce (limitviews.capabilities)
        self._told = ""

    def host(self, now: Now) -> Dict[str, Any]:
        """The data of host.state as it is now."""
        info = self._hypervisor.info()
        return events.host_state(
            info, self._consequences.policy, now, epoch=self._world.epoch, version=self._version,
            drained=self._world.drained, degraded=self._world.degraded,
            commands=[f"{verb}/1" for verb in VERBS], security=self._security, certificates=self._certificates(),
            capabilities=self._capabilities(),
        )

    async def state(self) -> None:
        """Publish host.state."""
        now = self._clock.now()
        data = self.host(now)
        self._told = _digest(data)
        await self._publish([Publish("events", "org.vmagent.host.state", "host", now.wall, data)])

    async def changed(self) -> None:
        """Publish host.state if it says something new."""
        if _digest(self.host(self._clock.now())) != self._told:
            await self.state()

    async def snapshot(self) -> None:
        """Publish host.snapshot."""
        await self._publish(await self.snapshot_changes(self._clock.now()))

    async def snapshot_changes(self, now: Now) -> List[Change]:
        """What publishes a snapshot, for a commit that holds more."""
        policy = self._consequences.policy
        states = [events.vm_state(record, self._world.observed.get(record.vm) or unseen(record.vm), now, policy)
                  for record in self._world.records.values()]
        sequences = await self._store.sequences()
        data = events.host_snapshot(self.host(now), states, self._world.foreign, sequences, self._world.epoch, now)
        return [Publish("events", "org.vmagent.host.snapshot", "host", now.wall, data)]

    async def _publish(self, changes: Sequence[Change]) -> None:
        async def decide() -> Tuple[Sequence[Change], None]:
            return changes, None

        await self._world.transact(decide)


def _digest(data: Mapping[str, Any]) -> str:
    return codec.digest({name: value for name, value in data.items() if name not in CHANGING})
