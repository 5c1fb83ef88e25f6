"""From closed periods of usage to messages in the relay's spool: who publishes, when, and again when asked.

Rules

1. Rows first, marks last: what the store has from the mark on is read, written to the spool, and only then marked as
   exported.  `kill -9` in between means that the same is written again, never that something is not.
2. Nothing older follows something newer: each message tells the newest row of each segment and month; it is queued
   behind whatever waits, and what it supersedes is taken out of the queue, unless the relay has it already.  What is
   older than the archive's is not told at all: only a restored store has such rows.
3. One publication at a time.  Reading goes by batches; rendering, signing and writing are a lane's work.
4. A failure changes nothing but what is told as degraded; it is tried again after AGAIN_S.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, Awaitable, Callable, Dict, List, Mapping, Optional, Protocol, Sequence, Tuple

from twisted.internet.defer import Deferred, DeferredLock

from vmagent import ports
from vmagent.core import walltime
from vmagent.core.usagemodel import UsageRow
from vmagent.crashpoint import reach
from vmagent.errors import Fault, Problem
from vmagent.export.schedule import next_at
from vmagent.export.smime import Signer
from vmagent.export.spool import Spool
from vmagent.lanes import Lanes
from vmagent.render import apel, publicip, star, usage
from vmagent.render.usage import Row

log = logging.getLogger("vmagent.export")
WHO = "apel"  # in the store's marks
KEY = "apel"  # in the lane
BATCH = 500  # rows read at once
WRITE_S, LOOK_S = 120.0, 10.0  # a spool on a file system that hangs has an end
AGAIN_S = 600.0
ARCHIVED_MONTHS = 14
_TOLD = 20  # wrong rows that are named in the log


class Rows(Protocol):
    """The part of ports.Store that is needed here."""

    def usage(
        self, after: int, limit: int, vm: str = "", since: str = "", until: str = ""
    ) -> Deferred[Tuple[UsageRow, ...]]: ...

    def exported(self) -> Deferred[Mapping[str, int]]: ...


@dataclass(frozen=True)
class Queues:
    """Where which kind of message waits; None = that kind is not published."""

    cloud: Spool
    public_ip: Optional[Spool] = None
    storage: Optional[Spool] = None


@dataclass
class Outcome:
    """What one publication was, or would be."""

    records: int = 0
    messages: int = 0
    superseded: int = 0  # messages that were taken out of the queue
    wrong: List[str] = field(default_factory=list)  # rows that are in no record


class Publisher:
    """Built once; `look` is called each minute.

    mark(row): commit that rows up to this one are exported; trouble(text): what is wrong with publishing, "" = nothing;
    size(volume): bytes of a data volume, None = not known, called in the lane; every_s, offset_s: as in schedule.py.
    """

    def __init__(
        self, rows: Rows, queues: Queues, publisher: apel.Publisher, signer: Optional[Signer], lanes: Lanes,
        clock: ports.Clock, mark: Callable[[int], Awaitable[None]], trouble: Callable[[str], None],
        size: Callable[[str], Optional[int]], every_s: int, offset_s: int,
    ) -> None:  # fmt: skip
        self._rows = rows
        self._queues = queues
        self._publisher = publisher
        self._signer = signer
        self._lanes = lanes
        self._clock = clock
        self._mark = mark
        self._trouble = trouble
        self._size = size
        self._every_s = every_s
        self._offset_s = offset_s
        self._due = 0.0
        self._one_at_a_time: DeferredLock = DeferredLock()
        self._published = ""
        self._why = ""

    def _now(self) -> float:
        return walltime.seconds(self._clock.now().wall)

    async def look(self) -> None:
        """Publish if it is time; a wall clock that went far back does not put it off for long."""
        now = self._now()
        if self._due - self._every_s <= now < self._due:
            return
        self._due = now + AGAIN_S  # whatever it ends with
        try:
            await self.publish()
        except Fault as fault:
            self._tell(str(fault))
        else:
            self._due = next_at(now, self._every_s, self._offset_s)

    def _tell(self, why: str) -> None:
        if why != self._why:
            log.log(logging.WARNING if why else logging.INFO, "accounting is %s",
                    f"not published: {why}" if why else "published again")
        self._why = why
        self._trouble(why)

    async def publish(self) -> Outcome:
        """What the store has since the last time.  Faults: the store's, the spool's, the signer's."""
        await self._one_at_a_time.acquire()
        try:
            before = (await self._rows.exported()).get(WHO, 0)
            found: Dict[usage.Key, Row] = {}
            last, wrong = await self._read(found, before)
            outcome = await self._written(usage.ordered(found), wrong, snapshot=True)
            reach("accounts-queued")
            if last > before:
                await self._mark(last)
        finally:
            self._one_at_a_time.release()
        self._published = self._clock.now().wall
        self._tell(_complaint(outcome.wrong))
        return outcome

    async def resend(self, month: str, dry_run: bool) -> Outcome:
        """A whole month again, from the rows that are kept.  Problem `schema`: no month.  Faults as `publish`."""
        try:
            begin, end = usage.month_bounds(month)
        except ValueError as error:
            raise Problem("schema", str(error), path="args.month", accepted="YYYY-MM") from None
        await self._one_at_a_time.acquire()
        try:
            found: Dict[usage.Key, Row] = {}
            _, wrong = await self._read(found, 0, walltime.text(begin), walltime.text(end))
            rows = [row for row in usage.ordered(found) if usage.key(row)[1] == month]
            if dry_run:
                records, more = apel.of(rows, self._publisher)
                return Outcome(len(records), len(apel.messages(records)), 0, [*wrong, *more])
            return await self._written(rows, wrong, snapshot=False)
        finally:
            self._one_at_a_time.release()

    async def _read(
        self, found: Dict[usage.Key, Row], after: int, since: str = "", until: str = ""
    ) -> Tuple[int, List[str]]:
        """The newest rows into `found`; the last row's number, and the rows that are none."""
        wrong: List[str] = []
        while True:
            rows = await self._rows.usage(after, BATCH, "", since, until)
            for one in rows:
                after = one.row
                try:
                    usage.keep_newest(found, one.data)
                except (ValueError, KeyError, TypeError) as error:
                    wrong.append(f"row {one.row}: {error!r}")
            if len(rows) < BATCH:
                return after, wrong

    async def _written(self, rows: Sequence[Row], wrong: List[str], snapshot: bool) -> Outcome:
        outcome: Outcome = await self._lanes.run(KEY, WRITE_S, self._write, rows, self._now(), snapshot)
        outcome.wrong[:0] = wrong
        for text in outcome.wrong[:_TOLD]:
            log.error("a period of usage is in no record: %s", text)
        return outcome

    # ---- in the lane

    def _write(self, rows: Sequence[Row], now_s: float, snapshot: bool) -> Outcome:
        made, wrong = apel.of(rows, self._publisher)
        queue = self._queues.cloud
        records = _not_older(made, queue)
        outcome = Outcome(len(records), 0, 0, wrong)
        if len(records) < len(made):
            older = len(made) - len(records)
            log.warning("%d records are older than what was published: the store was restored", older)
        waiting = {name: apel.held((queue.read(name) or b"").decode("ascii", "replace")) for name in queue.untaken()}
        outcome.messages = self._put(queue, apel.messages(records), now_s)
        newest = {(one.vmuuid, one.month): one.at for one in records}
        for name, held in waiting.items():
            if held and all(newest.get(key, -1) >= at for key, at in held.items()):
                outcome.superseded += queue.drop(name)
        for beside, render in ((self._queues.public_ip if snapshot else None, self._addresses),
                               (self._queues.storage, self._storage)):
            if beside is not None:
                outcome.messages += self._put(beside, render(rows, now_s, wrong), now_s)
        queue.forget(_months_before(now_s, ARCHIVED_MONTHS))
        return outcome

    def _addresses(self, rows: Sequence[Row], now_s: float, wrong: List[str]) -> List[str]:
        return _rendered(lambda: publicip.messages(rows, self._publisher, int(now_s)), "public addresses", wrong)

    def _storage(self, rows: Sequence[Row], now_s: float, wrong: List[str]) -> List[str]:
        sized = (_sized(row, self._size) for row in rows)
        return _rendered(lambda: star.messages(sized, self._publisher), "volumes and snapshots", wrong)

    def _put(self, queue: Spool, texts: Sequence[str], now_s: float) -> int:
        for text in texts:
            queue.put(self._signer.sign(text, now_s) if self._signer else text.encode("ascii"), now_s)
        return len(texts)

    # ---- for people

    async def status(self) -> Dict[str, Any]:
        """How publishing stands.  Faults: the store's, the spool's."""
        marks = await self._rows.exported()
        first = await self._rows.usage(marks.get(WHO, 0), 1)
        waiting = await self._lanes.run(KEY, LOOK_S, self._queues.cloud.count)
        oldest = await self._lanes.run(KEY, LOOK_S, self._queues.cloud.oldest_s)
        return {
            "site_name": self._publisher.site_name,
            "published_at": self._published or None,
            "next_at": walltime.text(self._due) if self._due else None,
            "trouble": self._why,
            "exported_row": marks.get(WHO, 0),
            "unexported_since": first[0].data["to"] if first else None,
            "waiting": waiting,
            "waiting_since": walltime.text(oldest) if oldest else None,
        }


def _not_older(records: Sequence[apel.Record], queue: Spool) -> List[apel.Record]:
    """Without those of which the archive has a newer one: a restored store has old rows with an old mark."""
    if not records:
        return []
    told: Dict[Tuple[str, str], int] = {}
    for text in queue.archived(min(one.month for one in records)):
        for key, at in apel.held(text.decode("ascii", "replace")).items():
            told[key] = max(at, told.get(key, at))
    return [one for one in records if told.get((one.vmuuid, one.month), one.at) <= one.at]


def _rendered(render: Callable[[], List[str]], what: str, wrong: List[str]) -> List[str]:
    """A row that these cannot tell keeps back neither the records of VMs nor what comes after them."""
    try:
        return render()
    except (ValueError, KeyError, TypeError) as error:
        wrong.append(f"{what}: {error!r}")
        return []


def _complaint(wrong: Sequence[str]) -> str:
    return f"{len(wrong)} periods of usage are in no record; the log names them" if wrong else ""


def _sized(row: Row, size: Callable[[str], Optional[int]]) -> Row:
    """The row with the bytes of its volumes."""
    volumes = [{**one, "bytes": size(one["volume"])} for one in row["volumes"]]
    return {**row, "volumes": volumes}


def _months_before(now_s: float, months: int) -> str:
    year, month = map(int, usage.month_of(int(now_s)).split("-"))
    index = year * 12 + month - 1 - months
    return f"{index // 12:04d}-{index % 12 + 1:02d}"
