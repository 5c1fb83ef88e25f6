"""One whole look at the host: at start, after every reconnect, and once a minute.

It finds what events did not tell: domains of ours without a record, records whose domain changed, foreign domains.
Start-up is nothing but the first of these (DESIGN 2).
"""

from __future__ import annotations

import logging
from typing import List, Optional, Sequence, Tuple

from vmagent import adoption, ports
from vmagent.consequences import Consequences
from vmagent.core.changes import Change
from vmagent.core.model import DomainSeen, HostSeen, VmRecord
from vmagent.errors import Fault
from vmagent.observer import Observer
from vmagent.reconciler import Reconciler
from vmagent.world import World

log = logging.getLogger("vmagent.recovery")


class Recovery:
    """The full resync."""

    def __init__(
        self,
        world: World,
        store: ports.Store,
        observer: Observer,
        reconciler: Reconciler,
        consequences: Consequences,
        clock: ports.Clock,
    ) -> None:
        self._world = world
        self._store = store
        self._observer = observer
        self._reconciler = reconciler
        self._consequences = consequences
        self._clock = clock
        self._looking = False
        self._wanted = False

    async def restored(self) -> None:
        """After an older store was put back: nothing out of that copy is ever started again."""
        epoch = self._world.epoch
        if epoch.cause != "restored":
            return
        old = [r for r in self._world.records.values()
               if r.accepted_wall < epoch.born_wall and adoption.doubtful(r)]
        await self._change([(record, adoption.distrusted(record)) for record in old])

    async def recall(self) -> None:
        """Closed members of commands that still owe a reply come back into memory."""
        for row in list(self._world.pending.values()):
            for vm in row.members:
                if self._world.find(vm) is None:
                    self._world.learn(row, await self._store.records(vm))

    async def resync(self) -> None:
        """Look at everything.  Asked again while it looks, it looks once more: a storm of events costs two looks."""
        self._wanted = True
        if self._looking:
            return
        self._looking = True
        try:
            while self._wanted:
                self._wanted = False
                await self._look()
        finally:
            self._looking = False

    async def _look(self) -> None:
        try:
            seen = await self._observer.look_all()
        except Fault as fault:
            log.warning("cannot look at the hypervisor: %s", fault)
            self._reconciler.mark_all()
            return
        await self._adopt(seen)
        for record in list(self._world.records.values()):
            domain = seen.domains.get(record.vm)
            if domain is None or self._observer.changed(domain):
                self._reconciler.mark(record.vm)

    async def _adopt(self, seen: HostSeen) -> None:
        """Rebuild the records that are missing and catch up those that are older than their tag."""
        for domain in seen.domains.values():
            if domain.tag is None:
                continue
            record = self._world.records.get(domain.vm)
            if record is None:
                await self._rebuild(domain)
            else:
                after = adoption.caught_up(record, domain.tag, self._clock.now())
                if after is not None:
                    await self._change([(record, after)])

    async def _rebuild(self, domain: DomainSeen) -> None:
        assert domain.tag is not None
        now = self._clock.now()
        known = await self._store.records(domain.vm)
        if known:
            record = adoption.came_back(known[0], now)
        else:
            record = adoption.from_tag(domain, domain.tag, now, self._consequences.policy)
        log.warning("%s: %s", domain.vm, record.reasons[-1].why)
        await self._change([(None, record)])
        self._reconciler.mark(domain.vm)

    async def _change(self, pairs: Sequence[Tuple[Optional[VmRecord], VmRecord]]) -> None:
        """Commit these records unless they changed meanwhile; then the next resync looks again."""

        async def decide() -> Tuple[Sequence[Change], None]:
            now = self._clock.now()
            changes: List[Change] = []
            for before, after in pairs:
                if self._world.records.get(after.vm) is before:
                    changes += self._consequences.of_record(before, after, now)
            return changes, None

        await self._world.transact(decide)
