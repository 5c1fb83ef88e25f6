"""What was accounted, for those who ask: `vmagentctl usage`, and `host.report` that publishes periods again.

The store is read in pages, so that a year of five hundred guests is never in memory.
"""

from __future__ import annotations

from typing import Any, AsyncIterator, Callable, Dict, List, Mapping, Tuple

from vmagent import ports
from vmagent.accounting import Accountant
from vmagent.core import moment, usagesums, usageviews
from vmagent.core.changes import Change, Publish
from vmagent.core.model import Now
from vmagent.core.policy import Policy
from vmagent.core.usagemodel import Closed, Kind, UsageRow
from vmagent.errors import Problem
from vmagent.world import World

PAGE = 500
MOST_ROWS = 2000
"""In one answer, and published again by one command."""
RECENTLY = "24h"


class UsageReport:
    """Reads only."""

    def __init__(
        self, world: World, store: ports.Store, accountant: Accountant, policy: Callable[[], Policy]
    ) -> None:
        self._world = world
        self._store = store
        self._accountant = accountant
        self._policy = policy

    async def view(self, vm: str, args: Mapping[str, Any], now: Now) -> Dict[str, Any]:
        """Closed periods of one VM ("" = of all: their sums alone) and what is open.

        args: `since`, `until` as in moment.py; without them one VM is told from its beginning, all those of a day.
        """
        since, until = self._between(args, now, "" if vm else RECENTLY)
        sums, count = usagesums.Sums(), 0
        rows: List[Dict[str, Any]] = []
        async for row in self._rows(vm, since, until):
            sums.add(row.data)
            count += 1
            if vm and len(rows) < MOST_ROWS:
                rows.append(dict(row.data))
        return {"since": since or None, "until": until or None, "vms": sums.told(), "rows": rows,
                "left_out": max(0, count - len(rows)) if vm else 0, "open": self._open(vm)}

    def _between(self, args: Mapping[str, Any], now: Now, default: str) -> Tuple[str, str]:
        since, until = (str(args.get(name) or "") for name in ("since", "until"))
        since = since or default
        return (moment.wall(since, now.wall, "args.since") if since else "",
                moment.wall(until, now.wall, "args.until") if until else "")

    def _open(self, vm: str) -> List[Dict[str, Any]]:
        """The periods that are not closed yet, as they are now."""
        found = []
        for account in self._accountant.accounts.values():
            record = self._world.find(account.vm)
            if account.kind is not Kind.OVER and vm in ("", account.vm) and record is not None:
                found.append(usageviews.data(Closed(account), record, self._policy()))
        return found

    async def _rows(self, vm: str, since: str, until: str) -> AsyncIterator[UsageRow]:
        after = 0
        while True:
            page = await self._store.usage(after, PAGE, vm, since, until)
            for row in page:
                yield row
            if len(page) < PAGE:
                return
            after = page[-1].row

    async def resent(self, wanted: Mapping[str, Any], now: Now) -> List[Change]:
        """What publishes the periods that overlap `from` to `to` once more.  Problem `too-many-periods`."""
        rows = await self._store.usage(0, MOST_ROWS + 1, "", wanted["from"], wanted["to"])
        if len(rows) > MOST_ROWS:
            detail = f"more than {MOST_ROWS} periods overlap that time; ask for a shorter one, and again for the rest"
            raise Problem("too-many-periods", detail, path="args.usage", limit=MOST_ROWS)
        return [
            Publish("usage", "org.vmagent.vm.usage", f"vm/{row.vm}", now.wall, {**row.data, "resent": True})
            for row in rows
        ]
