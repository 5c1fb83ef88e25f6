"""Who speaks for the host, wired: what it can enforce, what it has room for, and who publishes both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Mapping

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

import vmagent
from vmagent import ports
from vmagent.announcer import Announcer
from vmagent.config import Config
from vmagent.consequences import Consequences
from vmagent.core import limitviews
from vmagent.core.capacity import Around
from vmagent.core.policy import Policy
from vmagent.core.room import HostRoom, of_driver, of_host, written_gib
from vmagent.errors import Fault
from vmagent.host import room as rooms
from vmagent.imagecommands import ImageCommands
from vmagent.kernelparts import Kernel
from vmagent.lanes import Lanes
from vmagent.offering import Offering
from vmagent.questions import Questions
from vmagent.render import glue, occi
from vmagent.world import World

OVERHEAD = "memory_overhead_mib"  # the setting that holds what was learned
AROUND_S = 5.0


@dataclass(frozen=True)
class Speakers:
    """room: what admission may promise, read now; capabilities: what this host can really enforce."""

    announcer: Announcer
    offering: Offering
    questions: Questions
    room: Callable[[], Deferred[HostRoom]]
    capabilities: Callable[[], Mapping[str, Any]]


def speakers(
    config: Config, world: World, store: ports.Store, hypervisor: ports.Hypervisor, images: ports.Images,
    kernel: Kernel, consequences: Consequences, clock: ports.Clock, files: Lanes, commands: ImageCommands,
) -> Speakers:
    """Built, silent yet."""
    room = _room(hypervisor, images, kernel, world, consequences)
    capabilities = _capabilities(hypervisor, kernel, consequences)
    announcer = Announcer(world, store, hypervisor, consequences, clock, config.security.commands,
                          vmagent.__version__, capabilities, commands.here)
    url = config.broker.urls[0]
    offering = Offering(world, hypervisor, consequences, clock, room, _around(files, consequences),
                        lambda data, now: glue.share(announcer.host(now), data, commands.here(now), url))
    announcer.capacity = offering.view
    questions = Questions(
        world, consequences, offering, config.hypervisor.threads,
        lambda states: occi.collection(occi.compute(state, hypervisor.info().arch) for state in states))
    return Speakers(announcer, offering, questions, room, capabilities)


def _capabilities(
    hypervisor: ports.Hypervisor, kernel: Kernel, consequences: Consequences
) -> Callable[[], Mapping[str, Any]]:
    return lambda: limitviews.capabilities(hypervisor.info(), kernel.firewall.info(), kernel.shaper.info(),
                                           kernel.cgroups.version(), consequences.policy.snapshots)


def _bridges(policy: Policy) -> Any:
    return {network.bridge for network in policy.networks.values()}


def _around(files: Lanes, consequences: Consequences) -> Callable[[], Deferred[Around]]:
    """Drivers that do not answer in time leave it unknown."""

    def read() -> Deferred[Around]:
        bridges = _bridges(consequences.policy)
        answer: Deferred[Around] = files.run("around", AROUND_S, lambda: rooms.around(bridges))
        answer.addErrback(unknown)
        return answer

    def unknown(failure: Failure) -> Around:
        if not isinstance(failure.value, Fault):
            failure.raiseException()
        return Around()

    return read


def _room(
    hypervisor: ports.Hypervisor, images: ports.Images, kernel: Kernel, world: World, consequences: Consequences
) -> Callable[[], Deferred[HostRoom]]:
    """What admission may promise.  With libvirt away nobody knows what it can start: then the wish waits for it."""
    here = rooms.facts()

    def of(free_gib: int, written: int) -> HostRoom:
        info, low = hypervisor.info(), rooms.low(_bridges(consequences.policy))
        return HostRoom(
            *of_host(info, here.cores, here.memory_mib), free_gib, world.drained, info.startable or not info.connected,
            **of_driver(info),
            memory_overhead_mib=world.settings.get(OVERHEAD, 0),
            shaping=bool(kernel.shaper.info().qdisc), filtering=kernel.firewall.info().tracking != "none",
            descriptors_free=low.descriptors_free, tasks_free=low.tasks_free,
            ports_free=low.ports_free, disk_written_gib=written,
        )  # fmt: skip

    async def read() -> HostRoom:
        """Used before free: what is written in between is promised to nobody, rather than twice."""
        written = written_gib(world.records.values(), await _used(images))
        return of(await images.free_gib(), written)

    return lambda: Deferred.fromCoroutine(read())


async def _used(images: ports.Images) -> Mapping[str, int]:
    """Nothing when it cannot be read: then all that was promised counts as not written."""
    try:
        return await images.used()
    except Fault:
        return {}
