"""One attempt to bring an image here: over https or out of a directory that the site allows, hashed as it comes.

Rules

1. An attempt goes on where the last one stopped: `Range` with `If-Range` (RFC 9110 13.1.5), so that another file than
   before comes whole.  A source without a strong validator is asked from the start.
2. Nothing is believed: not the length that is told (bounded beforehand and counted), not that the end is the end (the
   SHA-512 decides), not that bytes go on coming (stall and deadline).
3. A digest that is wrong after going on may be the fault of the old bytes: those go, and the next attempt begins from
   zero.  One that is wrong in one piece is refused for good.
4. Bytes are written and hashed on a lane; while it is behind, the connection is paused.

Faults: REFUSED when asking again cannot help, FULL, BUSY otherwise; the loop asks again.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Callable, List, Optional, Tuple
from urllib.parse import unquote, urlsplit

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from vmagent.core.model import ImageRef
from vmagent.errors import Fault, FaultKind
from vmagent.images.httpstatus import refused_status
from vmagent.images.part import Note, Part
from vmagent.images.places import mapped
from vmagent.images.walking import opened
from vmagent.images.web import Answer, Web
from vmagent.lanes import Lanes

GIB = 2**30
_BUNCH = 1 << 20  # bytes that are written at once
_AHEAD = 4 << 20  # bytes that may wait for the disk before the connection is paused
_COPIED = 64 << 20  # bytes of a file that are copied per turn on the lane
_HASH_S = 7200.0  # the longest that hashing what is there may take
_WRITE_S = 300.0
_LONGEST_VALIDATOR = 1024
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


Told = Callable[[int, int], None]
Lane = Callable[..., "Deferred[Any]"]


@dataclass(frozen=True)
class Bounds:
    """largest: bytes of any image; stall_s: without a byte; deadline_s: of one attempt."""

    largest: int
    stall_s: float
    deadline_s: float


class Fetcher:
    """reserve(bytes): make room for that many more, on a lane's thread; directories: where file: URLs may point."""

    def __init__(
        self, web: Web, lanes: Lanes, reactor: Any, bounds: Bounds, directories: Tuple[Path, ...],
        reserve: Callable[[int], None],
    ) -> None:
        self._web = web
        self._lanes = lanes
        self._reactor = reactor
        self._bounds = bounds
        self._directories = directories
        self._reserve = reserve

    async def fetch(self, image: ImageRef, part: Part, told: Told) -> None:
        """Until `part` holds all of `image`, on the disk.  told(done, total) as it goes on; total 0 = not known.

        Cancelling it ends the connection; what came so far stays to be gone on from.
        """
        key = f"fetch {image.sha512}"

        def lane(call: Callable[..., Any], *args: Any, most_s: float = _WRITE_S) -> Deferred[Any]:
            return self._lanes.run(key, most_s, mapped, call, *args)

        try:
            note = await lane(part.resume, image.url, most_s=_HASH_S)
            before = part.size
            told(before, image.size)
            if part.digest() != image.sha512:
                if image.url.startswith("file:"):
                    await self._copy(image, part, lane, told)
                else:
                    bounds = self._bounds
                    whole = Deferred.fromCoroutine(self._download(image, part, note, lane, told))
                    await whole.addTimeout(bounds.deadline_s, self._reactor, late("it was not whole"))
            await lane(part.settle)
            found = part.digest()
            if found != image.sha512:
                await lane(part.restart, Note(image.url, ""))
                kind = FaultKind.BUSY if before else FaultKind.REFUSED
                raise Fault(kind, f"image-digest: SHA-512 is {found}, asked for was {image.sha512}")
        finally:
            lane(part.close).addErrback(lambda _: None)

    def most(self, image: ImageRef) -> int:
        """Bytes that may come at most."""
        return image.size or self._bounds.largest

    def check_total(self, image: ImageRef, total: int) -> None:
        """What the source says of its size, before a byte of it is read.  Faults: REFUSED."""
        if image.size and total != image.size:
            raise Fault(FaultKind.REFUSED, f"image-size: the source has {total} bytes, asked for were {image.size}")
        if total > self._bounds.largest:
            most = self._bounds.largest // GIB
            raise Fault(FaultKind.REFUSED, f"image-size: the source has {total} bytes, at most {most} GiB are fetched")

    async def _download(self, image: ImageRef, part: Part, note: Note, lane: Lane, told: Told) -> None:
        asked = {"Range": f"bytes={part.size}-", "If-Range": note.validator} if part.size and note.validator else {}
        trust = await lane(self._web.trust)
        asking = Deferred.fromCoroutine(self._web.open(image.url, asked, trust))
        answer = await asking.addTimeout(self._bounds.stall_s, self._reactor, late("no answer"))
        try:
            total = await self._begun(answer, image, part, lane)
            flow = Flow()
            flow.begin(answer)
            while True:
                chunks = await flow.next().addTimeout(self._bounds.stall_s, self._reactor, late("no byte came"))
                if not chunks:
                    break
                if part.size + sum(map(len, chunks)) > (total or self.most(image)):
                    raise Fault(FaultKind.REFUSED, f"image-size: more than {total or self.most(image)} bytes came")
                await lane(part.write, chunks)
                told(part.size, total)
            if part.size < total or not (flow.sure or part.digest() == image.sha512):
                raise Fault(FaultKind.BUSY, f"it ended after {part.size} of {total or 'unknown'} bytes")
        finally:
            answer.abort()

    async def _begun(self, answer: Answer, image: ImageRef, part: Part, lane: Lane) -> int:
        """The headers: where it begins and how much it is, 0 = not told.  Room is made for it.  Faults."""
        going_on = answer.status == 206
        if answer.status not in (200, 206):
            if answer.status == 416:
                await lane(part.restart, Note(image.url, ""))
                raise Fault(FaultKind.BUSY, "the server has no such range; from the start again")
            raise refused_status(answer.status)
        if answer.header("content-encoding").lower() not in ("", "identity"):
            raise Fault(FaultKind.REFUSED, f"image-source: encoded as {answer.header('content-encoding')[:40]!r}")
        total = _ranged(answer, part.size) if going_on else answer.length
        if total:
            self.check_total(image, total)
        if not going_on:
            await lane(part.restart, Note(image.url, _validator(answer)))
        await lane(self._reserve, max(0, (total or image.size) - part.size))
        return total or image.size

    async def _copy(self, image: ImageRef, part: Part, lane: Lane, told: Told) -> None:
        total = await lane(self._opened_size, image, part)
        while await lane(self._copied, image, part):
            told(part.size, total)

    def _opened_size(self, image: ImageRef, part: Part) -> int:
        directory, parts = file_place(image.url, self._directories)
        with opened(directory, parts, str(directory)) as file:
            total = os.fstat(file).st_size
        self.check_total(image, total)
        part.restart(Note(image.url, ""))
        self._reserve(total)
        return total

    def _copied(self, image: ImageRef, part: Part) -> bool:
        """One turn; False at the end."""
        directory, parts = file_place(image.url, self._directories)
        with opened(directory, parts, str(directory)) as file:
            for _ in range(_COPIED // _BUNCH):
                chunk = os.pread(file, _BUNCH, part.size)
                if not chunk:
                    return False
                if part.size + len(chunk) > self.most(image):
                    raise Fault(FaultKind.REFUSED, f"image-size: the file grew beyond {self.most(image)} bytes")
                part.write([chunk])
        return True


def file_place(url: str, directories: Tuple[Path, ...]) -> Tuple[Path, Tuple[str, ...]]:
    """Which of the allowed directories a file: URL is below, and the way from there.  Faults: REFUSED."""
    parts = urlsplit(url)
    path = PurePosixPath(unquote(parts.path))
    odd = parts.netloc not in ("", "localhost") or parts.query or parts.fragment or "\0" in str(path)
    if not odd and path.is_absolute() and ".." not in path.parts:
        for directory in directories:
            if PurePosixPath(directory) in path.parents:
                return directory, path.relative_to(directory).parts
    allowed = ", ".join(map(str, directories)) or "none"
    raise Fault(FaultKind.REFUSED, f"image-source: {url[:200]}: not below a directory of images.fetch.files: {allowed}")


def late(what: str) -> Callable[[Any, float], Any]:
    """For addTimeout: a Fault instead of a cancellation."""

    def told(result: Any, seconds: float) -> Any:
        if isinstance(result, Failure) and isinstance(result.value, CancelledError):
            raise Fault(FaultKind.BUSY, f"{what} within {seconds:g} s")
        return result

    return told


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 19 else 0


def _ranged(answer: Answer, size: int) -> int:
    """The whole's size out of Content-Range, which must begin where we are."""
    found = _RANGE.fullmatch(answer.header("content-range"))
    if found is None or _number(found.group(1)) != size:
        said = answer.header("content-range")[:60]
        raise Fault(FaultKind.REFUSED, f"image-source: asked for bytes from {size}, the server sends {said!r}")
    return _number(found.group(2))


def _validator(answer: Answer) -> str:
    """A weak ETag may not stand in If-Range (RFC 9110 13.1.5); a date may, if nothing better is told."""
    etag = answer.header("etag")
    chosen = etag if etag and not etag.startswith("W/") else answer.header("last-modified")
    return chosen if len(chosen) <= _LONGEST_VALIDATOR and chosen.isprintable() else ""


class Flow:
    """A body as bunches of chunks, taken when the taker is ready; the sender is paused when too much waits."""

    def __init__(self) -> None:
        self._chunks: List[bytes] = []
        self._waits = 0  # bytes
        self._producer: Any = None
        self._taker: Optional[Deferred[List[bytes]]] = None
        self._over: Any = None  # None = it goes on; [] = that was all; a Failure
        self.sure = False  # it ended where the server had said that it would

    def begin(self, answer: Answer) -> None:
        self._producer, ended = answer.deliver(self._take)
        ended.addCallbacks(self._ended, self._end)

    def next(self) -> Deferred[List[bytes]]:
        """What has come; [] at the end.  Fails with Fault BUSY when the connection broke."""
        self._taker = Deferred()
        taker = self._taker
        self._serve()
        return taker

    def _take(self, data: bytes) -> None:
        self._chunks.append(data)
        self._waits += len(data)
        if self._taker is None and self._waits >= _AHEAD:
            self._producer.pauseProducing()
        self._serve()

    def _ended(self, sure: bool) -> None:
        self.sure = sure
        self._end([])

    def _end(self, how: Any) -> None:
        self._over = how
        self._serve()

    def _serve(self) -> None:
        taker = self._taker
        if taker is None or not (self._chunks or self._over is not None):
            return
        self._taker = None
        if self._chunks:
            chunks, self._chunks = self._chunks, []
            paused, self._waits = self._waits >= _AHEAD, 0
            if paused and self._over is None:
                self._producer.resumeProducing()
            taker.callback(chunks)
        else:
            taker.callback(self._over)
