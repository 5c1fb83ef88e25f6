"""The image lists that the site takes: read or fetched again and again, verified, kept for the next start.

Rules

1. The last list that was taken counts until a better one is: what cannot be had, or is refused, changes nothing but
   what people see (`troubles`), and is tried again sooner, with full jitter.
2. The text that was taken is kept under the list's identifier in the state directory, before it counts.  So a restart
   without a network goes on with it, and a roll-back is seen across restarts.
3. Refreshes have jitter: half to one and a half of the period, the first one after a restart anywhere in it; a list
   that is not here yet is fetched at once.
4. Every minute the signers' certificates are asked about again (`look`), and local files that changed are read.
5. A URL can hold an access token: it is never logged and never published.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Any, Callable, Coroutine, Dict, Mapping, Optional, Protocol, Set, Tuple

from twisted.internet.defer import Deferred

from vmagent import ports
from vmagent.core import walltime
from vmagent.core.imagelist import ImageList
from vmagent.core.policy import ListSource, TrustPolicy
from vmagent.core.trust import VerifiedList
from vmagent.errors import Fault, FaultKind, Problem
from vmagent.images import listcheck
from vmagent.images.listcheck import Checked
from vmagent.images.listsignature import LONGEST_SIGNED, Endorsers
from vmagent.images.places import PRIVATE, fault_of, settle
from vmagent.lanes import Delayed, Lanes
from vmagent.log import event, surprise

log = logging.getLogger("vmagent.images")
WORK_S = 90.0
SOONEST_S = 60.0  # cap of the first retry's jitter; it doubles with each further failure, up to the period
_ENDING = ".list"


class Timers(Protocol):
    """The part of the reactor that is needed."""

    def callLater(self, __delay: float, __call: Callable[..., Any], *args: Any) -> Any: ...


class Subscriptions:
    """lanes: one thread does; get: a URL's text; chance: 0 <= x < 1."""

    def __init__(
        self,
        folder: Path,
        endorsers: Endorsers,
        lanes: Lanes,
        timers: Timers,
        clock: ports.Clock,
        chance: Callable[[], float],
        get: Callable[[str], Deferred[bytes]],
    ) -> None:
        self._folder = folder
        self._endorsers = endorsers
        self._lanes = lanes
        self._reactor = timers
        self._clock = clock
        self._chance = chance
        self._get = get
        self._changed: Callable[[], None] = lambda: None
        self._policy = TrustPolicy()
        self._skew_s = 0.0
        self._held: Dict[str, Checked] = {}
        self._troubles: Dict[str, str] = {}
        self._failures: Dict[str, int] = {}
        self._stamps: Dict[str, Tuple[int, ...]] = {}
        self._timers: Dict[str, Delayed] = {}
        self._busy: Set[str] = set()

    @property
    def lists(self) -> Mapping[str, VerifiedList]:
        """By identifier, as they stand now."""
        return {source.identifier: self._held[source.identifier].verified for source in self._policy.lists
                if source.identifier in self._held}  # fmt: skip

    @property
    def troubles(self) -> Mapping[str, str]:
        """Identifier -> why its newest text is not in use, or its signer is in doubt."""
        return dict(self._troubles)

    async def start(self, policy: TrustPolicy, skew_s: float, changed: Callable[[], None]) -> None:
        """Take the kept copies over, then keep all fresh; `changed()` when lists or troubles did.  Never raises."""
        self._changed = changed
        self._policy, self._skew_s = policy, skew_s
        for source in policy.lists:
            await self._recall(source)
        if policy.lists:
            self._changed()
        for source in policy.lists:
            known = source.identifier in self._held
            self._later(source.identifier, self._chance() * policy.refresh_s if known else 0.0)

    def adopt(self, policy: TrustPolicy, skew_s: float) -> None:
        """The site's policy changed: what is not taken any more is gone at once, what is new is fetched at once."""
        before = {source.identifier: source for source in self._policy.lists}
        self._policy, self._skew_s = policy, skew_s
        for identifier in set(before) - {source.identifier for source in policy.lists}:
            self._forget(identifier)
        for source in policy.lists:
            if before.get(source.identifier) != source:
                self._begin(self._renew(source))
        self._changed()

    def stop(self) -> None:
        """No further refresh."""
        for timer in self._timers.values():
            if timer.active():
                timer.cancel()
        self._timers.clear()

    async def look(self) -> None:
        """Rule 4."""
        before = (self.lists, self.troubles)
        for identifier, held in list(self._held.items()):
            checked = await self._lanes.run("lists", WORK_S, listcheck.believed, held, self._endorsers, self._now_s())
            if self._held.get(identifier) is held:
                self._hold(identifier, checked)
        for source in self._policy.lists:
            if source.path and self._stamps.get(source.identifier) != await self._stamped(source):
                await self.refresh(source.identifier)
        if before != (self.lists, self.troubles):
            self._changed()

    async def refresh(self, identifier: str) -> None:
        """Read or fetch it now, and plan the next time.  Never raises for what is wrong with the list."""
        source = self._policy.source(identifier)
        if source is None or identifier in self._busy:
            return
        self._busy.add(identifier)
        before = self.lists, self.troubles
        try:
            await self._try(source)
        finally:
            self._busy.discard(identifier)
        if self._policy.source(identifier) != source:
            self._later(identifier, 0.0)
            return
        failures = self._failures.get(identifier, 0)
        period = float(self._policy.refresh_s)
        soon = min(period, SOONEST_S * 2 ** min(failures, 20))
        self._later(identifier, self._chance() * soon if failures else (0.5 + self._chance()) * period)
        if before != (self.lists, self.troubles):
            self._changed()

    # -- one list

    async def _try(self, source: ListSource) -> None:
        identifier = source.identifier
        held = self._held.get(identifier)
        try:
            if source.path:
                self._stamps[identifier] = await self._stamped(source)
                raw = await self._lanes.run("lists", WORK_S, _read, Path(source.path))
            else:
                raw = await self._get(source.url)
            known = held.verified.list if held is not None else None
            checked = await self._lanes.run("lists", WORK_S, self._take, raw, source, known, self._now_s())
        except (Problem, Fault) as error:
            if self._policy.source(identifier) == source:
                self._failures[identifier] = self._failures.get(identifier, 0) + 1
                self._trouble(identifier, error)
            return
        if self._policy.source(identifier) == source:
            self._failures.pop(identifier, None)
            self._hold(identifier, checked)
            if known is None or known.version != checked.verified.list.version:
                _tell_taken(checked.verified)

    def _take(self, raw: bytes, source: ListSource, known: Optional[ImageList], now_s: float) -> Checked:
        """On the lane: verify, then keep."""
        checked = listcheck.taken(raw, source, self._endorsers, known, now_s, self._skew_s)
        self._keep(source.identifier, raw)
        return checked

    def _keep(self, identifier: str, raw: bytes) -> None:
        target = self._folder / (identifier + _ENDING)
        temporary = target.with_name(target.name + ".part")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "wb") as file:
                file.write(raw)
            settle(temporary, target)
        except OSError as error:
            raise fault_of(error, target) from error

    async def _recall(self, source: ListSource) -> None:
        """The copy that was taken before, if there is one."""
        path = self._folder / (source.identifier + _ENDING)
        try:
            checked = await self._lanes.run("lists", WORK_S, _recalled, path, source, self._endorsers, self._now_s())
        except (Problem, Fault) as error:
            self._trouble(source.identifier, error)
            return
        if checked is not None:
            self._hold(source.identifier, checked)

    async def _renew(self, source: ListSource) -> None:
        """A new or changed subscription."""
        if source.identifier not in self._held:
            await self._recall(source)
        await self.refresh(source.identifier)

    def _forget(self, identifier: str) -> None:
        timer = self._timers.pop(identifier, None)
        if timer is not None and timer.active():
            timer.cancel()
        for known in (self._held, self._troubles, self._failures, self._stamps):
            known.pop(identifier, None)

    def _hold(self, identifier: str, checked: Checked) -> None:
        self._held[identifier] = checked
        if checked.doubt is not None:
            self._trouble(identifier, checked.doubt)
        elif identifier not in self._failures:
            self._troubles.pop(identifier, None)

    def _trouble(self, identifier: str, error: Exception) -> None:
        """Logged when it is news."""
        why = str(error)
        if self._troubles.get(identifier) != why:
            problem = error.type if isinstance(error, Problem) else None
            event(log, "list-refused", f"image list {identifier}: {why}", list=identifier, problem=problem, reason=why)
        self._troubles[identifier] = why

    # -- time, and work that nobody waits for

    def _later(self, identifier: str, delay_s: float) -> None:
        timer = self._timers.pop(identifier, None)
        if timer is not None and timer.active():
            timer.cancel()
        if self._policy.source(identifier) is not None:
            turn = self._reactor.callLater(delay_s, lambda: self._begin(self.refresh(identifier)))
            self._timers[identifier] = turn

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        Deferred.fromCoroutine(work).addErrback(lambda failure: surprise(log, "an image list's refresh", failure))

    def _now_s(self) -> float:
        return walltime.seconds(self._clock.now().wall)

    async def _stamped(self, source: ListSource) -> Tuple[int, ...]:
        try:
            return await self._lanes.run("lists", WORK_S, _stamp, Path(source.path))
        except Fault:
            return ()


def _recalled(path: Path, source: ListSource, endorsers: Endorsers, now_s: float) -> Optional[Checked]:
    return listcheck.again(_read(path), source, endorsers, now_s) if path.exists() else None


def _read(path: Path) -> bytes:
    """A regular file of at most LONGEST_SIGNED bytes.  Faults: REFUSED."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Fault(FaultKind.REFUSED, f"{path}: not a regular file")
            return file.read(LONGEST_SIGNED + 1)
    except OSError as error:
        raise fault_of(error, path) from error


def _stamp(path: Path) -> Tuple[int, ...]:
    try:
        seen = path.stat()
    except OSError:
        return ()
    return (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


def _tell_taken(verified: VerifiedList) -> None:
    lst = verified.list
    signed = f"signed by {verified.signer}" if verified.signer else "the site's own"
    event(log, "list-taken", f"image list {lst.identifier}: version {lst.version}, {len(lst.images)} images, until "
          f"{lst.expires_wall}, {signed}", list=lst.identifier, signer=verified.signer or None, count=len(lst.images))
