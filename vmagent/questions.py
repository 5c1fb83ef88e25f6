"""What verbs that change nothing are answered: who runs what, which snapshots there are, what there is room for."""

from __future__ import annotations

from typing import Any, Awaitable, Callable, Dict, Mapping, Sequence

from vmagent.consequences import Consequences, unseen
from vmagent.core import events, inquiry, snapshots
from vmagent.core.capacity import Here
from vmagent.core.commands import Command
from vmagent.core.model import Now, VmRecord
from vmagent.offering import Offering
from vmagent.world import World

CAPACITY = "capacity.query"


class Questions:
    """Answers.  parallel: how many VMs are started at a time; occi: vm.states -> what is told of them in OCCI."""

    def __init__(
        self, world: World, consequences: Consequences, offering: Offering, parallel: int,
        occi: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]],
    ) -> None:
        self._world = world
        self._consequences = consequences
        self._offering = offering
        self._parallel = parallel
        self._occi = occi

    def ground(self) -> Awaitable[Here]:
        """What an answer about capacity is reckoned from, read now."""
        return self._offering.here()

    def of_capacity(self, command: Command, here: Here) -> Dict[str, Any]:
        """`result` of capacity.query."""
        return inquiry.answer(command, here, self._parallel)

    def of_vms(self, command: Command, chosen: Sequence[VmRecord], now: Now) -> Dict[str, Any]:
        """`result` of a verb that looks at these VMs."""
        if command.verb == "vm.snapshot.list":
            told = [{"vm": one.vm, "name": one.spec.name, "snapshots": snapshots.told(one)} for one in chosen]
            return {"vms": told}
        states = [self._state(record, now) for record in chosen]
        return dict(self._occi(states)) if command.args.get("occi") else {"vms": states}

    def _state(self, record: VmRecord, now: Now) -> Mapping[str, Any]:
        observed = self._world.observed.get(record.vm) or unseen(record.vm)
        return events.vm_state(record, observed, now, self._consequences.policy)
