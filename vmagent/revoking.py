"""Revocation reaches running VMs: who runs on an image that is not trusted any more, and what is done about it (N3).

Rules

1. Looked at whenever something changes that trust depends on (revocations, lists, policy, a restart); at the instant
   at which an endorsement ends; and once a minute, for wall clocks are stepped.
2. What it decides is a wish, committed with the alert that tells it; the planner does the rest.  So `kill -9` before
   the commit means that the next look decides it, and after the commit that it is decided: nothing is done twice.
3. A wish that never ran is the planner's, which refuses to start it (plan.py); here it is only marked.
4. One security.alert per image, cause and deed names all its VMs with their owners (R14).
"""

from __future__ import annotations

import logging
from typing import Any, Callable, Dict, List, Protocol, Sequence, Tuple

from vmagent import ports
from vmagent.consequences import Consequences, unseen
from vmagent.core import codec, events, imageviews
from vmagent.core.changes import Change, Publish
from vmagent.core.model import ImageRef, Now, Phase, VmRecord
from vmagent.core.revocation import Distrust, judged, next_change_s
from vmagent.crashpoint import reach
from vmagent.errors import Fault
from vmagent.world import World

log = logging.getLogger("vmagent.revoking")
AGAIN_S = 5.0
"""How soon a look whose commit failed is made again."""

LONGEST_S = 86400.0
"""The longest sleep; the instant is reckoned anew then."""

_Deed = Tuple[ImageRef, str, str]  # image, cause, what was done


class Timer(Protocol):
    """The part of the reactor that this needs."""

    def callLater(self, delay: float, call: Any, *args: Any) -> Any: ...


class Revoker:
    """Finds the running VMs whose image is not trusted, and decides what becomes of them."""

    def __init__(
        self, world: World, consequences: Consequences, mark: Callable[[str], None], clock: ports.Clock, timer: Timer,
        begin: Callable[[Any], None],
    ) -> None:
        self._world = world
        self._consequences = consequences
        self._mark = mark
        self._clock = clock
        self._timer = timer
        self._begin = begin  # runs a coroutine that nobody waits for
        self._waiting: Any = None

    async def look(self) -> None:
        """One look at all of them.  A failing store is tried again; nothing is done before its record."""
        self._cancel()
        try:
            marks = await self._world.transact(self._decide)
        except Fault as fault:
            log.warning("the trust of running images could not be recorded: %s", fault)
            self._waiting = self._timer.callLater(AGAIN_S, self._again)
            return
        if marks:
            reach("revoked")
        for vm in marks:
            self._mark(vm)
        self._wake()

    def _wake(self) -> None:
        """Look again when the next endorsement ends."""
        users = imageviews.users(list(self._world.records.values()))
        images = tuple({record.spec.image for record in users})
        wait_s = next_change_s(images, self._world.lists, self._consequences.policy.trust, self._clock.now())
        if wait_s is not None:
            self._cancel()
            self._waiting = self._timer.callLater(min(wait_s, LONGEST_S), self._again)

    def stop(self) -> None:
        """Look no more."""
        self._cancel()

    def _again(self) -> None:
        self._waiting = None
        self._begin(self.look())

    def _cancel(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()

    async def _decide(self) -> Tuple[Sequence[Change], Sequence[str]]:
        now = self._clock.now()
        changes: List[Change] = []
        marks: List[str] = []
        deeds: Dict[_Deed, List[VmRecord]] = {}
        why: Dict[_Deed, Distrust] = {}
        for record in imageviews.users(list(self._world.records.values())):
            distrust = self._consequences.distrust(record.spec, now)
            if not record.journal.may_have_run:
                marks += [record.vm] if distrust else []
                continue
            after = judged(record, distrust, self._consequences.policy, now)
            if after == record:
                continue
            changes += self._consequences.of_record(record, after, now)
            marks.append(record.vm)
            if distrust is not None:
                deed = (record.spec.image, distrust.cause, after.journal.image_action)
                deeds.setdefault(deed, []).append(after)
                why[deed] = distrust
        changes += [self._alert(deed, why[deed], records, now) for deed, records in deeds.items()]
        return changes, marks

    def _alert(self, deed: _Deed, distrust: Distrust, records: Sequence[VmRecord], now: Now) -> Change:
        image, _, action = deed
        done = {"pause": "paused", "stop": "being stopped", "kill": "being killed"}.get(action, "left running")
        detail = f"{distrust.problem.detail}; running on it and {done}: {', '.join(one.vm for one in records)}"
        data = events.security_alert(
            kind="image-distrusted", detail=detail, now=now, problem=distrust.problem.type, action=action,
            image=codec.plain(image), vms=[imageviews.user(one, self._phase(one)) for one in records],
        )  # fmt: skip
        return Publish("events", "org.vmagent.security.alert", "host", now.wall, data)

    def _phase(self, record: VmRecord) -> Phase:
        return events.phase(record, self._world.observed.get(record.vm) or unseen(record.vm))
