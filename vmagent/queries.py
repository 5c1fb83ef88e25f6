"""What the local socket may ask: each query joins the memory, the store and a fresh look into one view.

Layer 4: it knows the views of `local/` and the parts that hold the truth; it decides nothing and changes nothing.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Awaitable, Callable, Dict, List, Mapping, Sequence

from twisted.internet.defer import Deferred

import vmagent
from vmagent import ports
from vmagent.condition import Condition
from vmagent.core import imageviews
from vmagent.core.model import NicCounters, Now, Observed, VmRecord
from vmagent.core.paces import Paces
from vmagent.core.policy import Policy
from vmagent.core.samples import Reading
from vmagent.errors import Fault, Problem
from vmagent.imagecommands import ImageCommands
from vmagent.local import topview, views
from vmagent.offering import Offering
from vmagent.render import cloudwatch, occi
from vmagent.usagereport import UsageReport
from vmagent.world import World

Args = Mapping[str, Any]
MOST_AUDIT = 10_000
_WHOLE_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_NOT_COUNTED: Mapping[str, NicCounters] = {}


class Queries:
    """`table()` is what LocalServer takes."""

    def __init__(
        self,
        world: World,
        store: ports.Store,
        hypervisor: ports.Hypervisor,
        images: ports.Images,
        clock: ports.Clock,
        policy: Callable[[], Policy],
        condition: Condition,
        capabilities: Callable[[], Mapping[str, Any]],
        counters: Callable[[], Deferred[Mapping[str, NicCounters]]],
        catalogue: ImageCommands,
        offering: Offering,
        telemetry: Callable[[], Mapping[str, Any]],
        usage: UsageReport,
    ) -> None:
        self._world = world
        self._store = store
        self._hypervisor = hypervisor
        self._images = images
        self._clock = clock
        self._policy = policy
        self._condition = condition
        self._capabilities = capabilities
        self._counters = counters
        self._catalogue = catalogue
        self._offering = offering
        self._measured = telemetry  # -> Telemetry.view
        self._usage = usage
        self._paces = Paces()

    def table(self) -> Dict[str, Callable[[Args], Deferred[Any]]]:
        """verb -> callable(args) -> Deferred of plain JSON."""
        queries: Dict[str, Callable[[Args], Awaitable[Any]]] = {
            "list": self._list, "show": self._show, "who": self._who, "over": self._over, "audit": self._audit,
            "drain_check": self._drain_check, "status": self._status, "capacity": self._capacity,
            "doctor": self._doctor, "limits": self._limits, "images": self._list_images,
            "downloads": self._downloads, "telemetry": self._telemetry, "glue": self._glue,
            "usage": self._used, "top": self._top,
        }
        return {verb: _deferred(query) for verb, query in queries.items()}

    def _records(self) -> List[VmRecord]:
        return list(self._world.records.values())

    def _now(self) -> Now:
        return self._clock.now()

    async def _list(self, args: Args) -> Any:
        """args: `all` (ended VMs that are still remembered, too)."""
        records = self._records() + (list(self._world.recent.values()) if args.get("all") is True else [])
        return views.listing(records, self._world.observed, self._world.foreign, self._now())

    def _meant(self, args: Args) -> VmRecord:
        """args: `vm`: id, beginning of an id, or name."""
        return views.find(_text(args, "vm"), self._records() + list(self._world.recent.values()))

    async def _show(self, args: Args) -> Any:
        """args: `vm`; `occi`: also in the words of OCCI, as {resource, lines}."""
        shown = views.show(self._meant(args), self._world.observed, self._now(), self._policy())
        if args.get("occi") is not True:
            return shown
        resource = occi.compute(shown["state"], self._hypervisor.info().arch)
        return {**shown, "occi": {"resource": resource, "lines": occi.lines(resource)}}

    async def _limits(self, args: Args) -> Any:
        """What the kernel does not tell about counters hides nothing of the rest."""
        record, counters, why = self._meant(args), _NOT_COUNTED, ""
        try:
            counters = await self._counters()
        except Fault as fault:
            why = str(fault)
        return views.limits(record, self._newest(record.vm), self._now(), counters, why)

    async def _used(self, args: Args) -> Any:
        """args: `vm` (as above, or the whole id of one long ended; default all), `since`, `until` (moment.py)."""
        vm = str(args.get("vm") or "")
        whole = _WHOLE_ID.fullmatch(vm) is not None
        return await self._usage.view(vm if whole or not vm else self._meant(args).vm, args, self._now())

    async def _list_images(self, args: Args) -> Any:
        """What image.list answers, and VM by VM who runs on what."""
        await self._catalogue.look()
        return {**self._catalogue.listing(self._now()), "running": self._catalogue.running()}

    async def _downloads(self, args: Args) -> Any:
        """What is being fetched, how far, for whom."""
        records, pending = self._world.records, self._world.pending
        return imageviews.downloads(self._images.downloads(), records, pending, self._now())

    async def _telemetry(self, args: Args) -> Any:
        """args: `vm` (default: all), `as`: "cloudwatch" for its names and units (default: as host.telemetry)."""
        told = self._measured()
        if "vm" in args:
            vm = self._meant(args).vm
            told = {**told, "vms": [one for one in told["vms"] if one["vm"] == vm]}
        if args.get("as") is None:
            return told
        if args["as"] != "cloudwatch":
            raise Problem("schema", "cloudwatch is the only other form", path="args.as")
        return {"metrics": cloudwatch.metrics(told)}

    def _newest(self, vm: str) -> Mapping[str, Observed]:
        """The last look at this VM with the last at its network, which is looked at more often."""
        seen = self._world.observed.get(vm)
        if seen is None:
            return {}
        return {vm: dataclasses.replace(seen, network=self._world.network.get(vm, seen.network))}

    async def pacing(self, reading: Reading) -> None:
        """A listener of the sampler: what `top` shows."""
        self._paces.take(reading, {vm: [interface.device for interface in record.spec.interfaces]
                                   for vm, record in self._world.records.items()})

    async def _top(self, args: Args) -> Any:
        return topview.top(self._records(), self._world.observed, self._paces, self._now())

    async def _who(self, args: Args) -> Any:
        return views.who(self._records(), self._world.observed, self._now())

    async def _over(self, args: Args) -> Any:
        """args: `handle`: VM id, tag or command id."""
        handle = _text(args, "handle")
        stored = await self._store.records(handle)
        records = [self._world.records.get(record.vm, record) for record in stored]
        return views.over(handle, records, self._world.observed, self._now())

    async def _audit(self, args: Args) -> Any:
        """args: `limit` (default 100), `subject` (a VM id; default all)."""
        limit = args.get("limit", 100)
        if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MOST_AUDIT:
            raise Problem("schema", f"a number from 1 to {MOST_AUDIT} is expected", path="args.limit")
        rows: Sequence[Mapping[str, Any]] = await self._store.audit(limit, str(args.get("subject") or ""))
        return {"audit": [dict(row) for row in rows]}

    async def _drain_check(self, args: Args) -> Any:
        """args: `minutes`."""
        minutes = args.get("minutes", 10)
        if not isinstance(minutes, (int, float)) or isinstance(minutes, bool) or not 0 <= minutes <= 60 * 24 * 366:
            raise Problem("schema", "a number of minutes, 0 or more, is expected", path="args.minutes")
        return views.drain_check(self._records(), self._world.observed, self._world.foreign, self._now(), minutes,
                                 self._world.drained)

    async def _status(self, args: Args) -> Any:
        return views.status(self._records(), self._world.observed, self._policy(), self._hypervisor.info(),
                            self._world.epoch, {**self._facts(), "health": await self._condition.facts()})

    async def _capacity(self, args: Args) -> Any:
        """The data of host.capacity, reckoned now."""
        return await self._offering.view()

    async def _glue(self, args: Args) -> Any:
        """This host's share of its site's GLUE document, reckoned now."""
        return (await self._offering.view())["glue"]

    async def _doctor(self, args: Args) -> Any:
        """What only the running daemon knows."""
        info = self._hypervisor.info()
        return {**self._facts(), "hypervisor": {"connected": info.connected, "why": info.why,
                                                "domain_type": info.domain_type, "startable": info.startable},
                "capabilities": dict(self._capabilities())}

    def _facts(self) -> Dict[str, Any]:
        return {"version": vmagent.__version__, "wall": self._now().wall, "drained": self._world.drained,
                "degraded": dict(self._world.degraded), "broker": self._condition.broker()}


def _text(args: Args, name: str) -> str:
    value = args.get(name)
    if not isinstance(value, str) or not value:
        raise Problem("schema", "a text is expected", path=f"args.{name}")
    return value


def _deferred(query: Callable[[Args], Awaitable[Any]]) -> Callable[[Args], Deferred[Any]]:
    def call(args: Args) -> Deferred[Any]:
        return Deferred.fromCoroutine(query(args))  # type: ignore[arg-type]

    return call
