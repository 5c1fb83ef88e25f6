"""Which images are fetched now, for whom, and what came of it.

Rules

1. One download per SHA-512, however many VMs wait; at most `parallel` are under way, the others wait for their turn.
2. Nobody waits here: who asked is told by `news` when it is over, and asks again.  A failure is raised to each of them
   once, when it does.  What failed from another URL than one's own is no answer: then one's own is tried.
3. After a failure that may pass nothing is begun again before a pause that grows (with jitter, so that a site's hosts
   do not come together); whoever asks before is told BUSY.  Asking again is the loop's job.
4. A download that nobody wants any more ends; its bytes stay to be gone on from.
5. The bytes are fetched, proven (inspection.py), converted where that is needed, and only then put into the cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Set, Tuple

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from vmagent.core.imagemodel import Download, ImageFile, golden_format
from vmagent.core.model import ImageRef
from vmagent.crashpoint import reach
from vmagent.errors import Fault, FaultKind
from vmagent.images.cache import Cache
from vmagent.images.fetch import Fetcher
from vmagent.images.golden import sha512_of
from vmagent.images.inspection import convert, converted_size, inspect
from vmagent.images.part import Part
from vmagent.images.places import PRIVATE, mapped
from vmagent.lanes import Lanes
from vmagent.log import event, surprise

log = logging.getLogger("vmagent.images")
PAUSE_FIRST_S, PAUSE_MOST_S = 2.0, 300.0
_PROVE_S = 4 * 3600.0
_DISCARD_S = 60.0


@dataclass
class _Job:
    """One download, and who waits for it."""

    image: ImageRef
    download: Download
    waiting: Set[str]
    work: Optional[Deferred[None]] = None  # None = it waits for its turn


@dataclass(frozen=True)
class _Pause:
    """After a failure that may pass."""

    failures: int
    until: float
    fault: Fault


class Downloads:
    """chance(): 0 to 1; floor(): bytes that stay free; largest: bytes that a guest may see of an image."""

    def __init__(
        self, fetcher: Fetcher, cache: Cache, lanes: Lanes, reactor: Any, chance: Callable[[], float], parallel: int,
        floor: Callable[[], int], largest: int,
    ) -> None:
        self._fetcher = fetcher
        self._cache = cache
        self._lanes = lanes
        self._reactor = reactor
        self._chance = chance
        self._parallel = parallel
        self._floor = floor
        self._largest = largest
        self._jobs: Dict[str, _Job] = {}  # by SHA-512, in the order in which they were asked for
        self._failed: Dict[str, Fault] = {}  # VM id -> what it is told when it asks again
        self._pauses: Dict[str, _Pause] = {}  # by SHA-512
        self.news: Callable[[str], None] = lambda vm: None

    def ask(self, vm: str, image: ImageRef) -> None:
        """See ports.Images, FETCH_IMAGE.  Faults: REFUSED, FULL, BUSY."""
        fault = self._failed.pop(vm, None)
        if fault is not None:
            raise fault
        if self._cache.has(image.sha512):
            self._reactor.callLater(0, self.news, vm)  # it came just now
            return
        job = self._jobs.get(image.sha512)
        if job is None:
            pause = self._pauses.get(image.sha512)
            if pause is not None and self._reactor.seconds() < pause.until:
                raise pause.fault
            since = self._reactor.seconds()
            job = _Job(image, Download(image.sha512, image.url, 0, image.size, since, "waiting"), set())
            self._jobs[image.sha512] = job
        job.waiting.add(vm)
        self._go_on()

    def drop(self, vm: str) -> None:
        """This VM wants nothing any more."""
        self._failed.pop(vm, None)
        for sha512, job in list(self._jobs.items()):
            job.waiting.discard(vm)
            if not job.waiting:
                if job.work is None:
                    del self._jobs[sha512]
                else:
                    job.work.cancel()

    def waiting(self) -> Set[str]:
        """VMs that wait."""
        return {vm for job in self._jobs.values() for vm in job.waiting}

    def now(self) -> Tuple[Download, ...]:
        return tuple(dataclasses.replace(job.download, waiting=tuple(sorted(job.waiting)))
                     for job in self._jobs.values())

    def _go_on(self) -> None:
        under_way = sum(job.work is not None for job in self._jobs.values())
        for job in list(self._jobs.values()):
            if job.work is None and under_way < self._parallel:
                under_way += 1
                job.work = Deferred()  # taken, should it end before it is known
                job.work = Deferred.fromCoroutine(self._bring(job))
                job.work.addBoth(self._over, job)

    async def _bring(self, job: _Job) -> None:
        image = job.image
        self._step(job, "fetching")
        part = Part(self._cache.part_path(image.sha512), self._floor())

        def told(done: int, total: int) -> None:
            job.download = dataclasses.replace(job.download, done=done, total=total)

        key = f"fetch {image.sha512}"
        try:
            await self._fetcher.fetch(image, part, told)
        except Fault as fault:
            if fault.kind is FaultKind.REFUSED:
                await self._lanes.run(key, _DISCARD_S, mapped, part.discard)
            raise
        reach("fetched")
        self._step(job, "inspecting")
        virtual_size: int = await self._lanes.run(key, _PROVE_S, mapped, self._prove, image)
        reach("inspected")
        if golden_format(image.format) != image.format:
            self._step(job, "converting")
        await self._lanes.run(key, _PROVE_S, mapped, self._keep, image, virtual_size)

    def _step(self, job: _Job, step: str) -> None:
        job.download = dataclasses.replace(job.download, step=step)

    def _over(self, result: Any, job: _Job) -> None:
        sha512 = job.image.sha512
        self._jobs.pop(sha512, None)
        if not isinstance(result, Failure):
            self._pauses.pop(sha512, None)
            event(log, "image-fetched", f"{job.image.id}: fetched from {job.image.url}", image=job.image.id)
        elif not isinstance(result.value, CancelledError):
            self._failure(result, job)
        for vm in sorted(job.waiting):
            self.news(vm)
        self._go_on()

    def _failure(self, failure: Failure, job: _Job) -> None:
        fault: Any = failure.value
        if not isinstance(fault, Fault):
            surprise(log, f"fetching {job.image.id} failed", failure)
            fault = Fault(FaultKind.BUSY, f"{type(fault).__name__}: {fault}")
        kind = fault.kind if fault.kind in (FaultKind.REFUSED, FaultKind.FULL) else FaultKind.BUSY
        told = Fault(kind, f"image {job.image.id} from {job.image.url}: {fault.detail}")
        event(log, "image-not-fetched", told.detail, image=job.image.id, fault=kind.value)
        if kind is FaultKind.BUSY:
            before = self._pauses.get(job.image.sha512)
            failures = 1 + (before.failures if before else 0)
            pause = min(PAUSE_MOST_S, PAUSE_FIRST_S * 2 ** min(failures - 1, 10)) * (0.5 + self._chance() / 2)
            self._pauses[job.image.sha512] = _Pause(failures, self._reactor.seconds() + pause, told)
        self._failed.update(dict.fromkeys(job.waiting, told))

    # -- on a lane

    def _prove(self, image: ImageRef) -> int:
        path = self._cache.part_path(image.sha512)
        with self._gone_if_refused(image), path.open("rb") as file:
            return inspect(file.fileno(), path, image.format, self._largest)

    def _keep(self, image: ImageRef, virtual_size: int) -> None:
        path = self._cache.part_path(image.sha512)
        wanted = golden_format(image.format)
        if wanted == image.format:
            self._cache.put(ImageFile(image.sha512, "", image.sha512, wanted, 0, virtual_size), path)
            return
        made = self._cache.made_path(image.sha512)
        os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, PRIVATE))
        try:
            with self._gone_if_refused(image):
                digest = self._converted(image, path, made, virtual_size)
            self._cache.put(ImageFile(image.sha512, "", digest, wanted, 0, virtual_size), made)
        finally:
            made.unlink(missing_ok=True)

    def _converted(self, image: ImageRef, path: Path, made: Path, virtual_size: int) -> str:
        """Fill `made`; its SHA-512."""
        largest = converted_size(path, image.format)
        self._cache.room(largest)
        convert(path, image.format, made, largest)
        reach("converted")
        with made.open("rb") as file:
            if inspect(file.fileno(), made, golden_format(image.format), self._largest) != virtual_size:
                raise Fault(FaultKind.REFUSED, f"converting changed the size of the disk from {virtual_size} bytes")
            return sha512_of(file.fileno())

    @contextlib.contextmanager
    def _gone_if_refused(self, image: ImageRef) -> Iterator[None]:
        """What will never be used takes no room."""
        try:
            yield
        except Fault as fault:
            if fault.kind is FaultKind.REFUSED:
                Part(self._cache.part_path(image.sha512), 0).discard()
            raise
