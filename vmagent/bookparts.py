"""The wiring of accounting: who keeps the accounts, and who hears of what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Awaitable, Callable, List, Mapping

from vmagent import ports
from vmagent.accounting import Accountant
from vmagent.announcer import Announcer
from vmagent.chronicle import Feeds
from vmagent.consequences import Consequences
from vmagent.core.changes import Change
from vmagent.core.model import Now
from vmagent.core.room import of_host
from vmagent.host import room
from vmagent.kernelparts import Kernel
from vmagent.usagereport import UsageReport
from vmagent.world import World


@dataclass(frozen=True)
class Books:
    """Who keeps the accounts, and who tells what stands in them."""

    accountant: Accountant
    usage: UsageReport


def books(
    world: World, feeds: Feeds, store: ports.Store, kernel: Kernel, images: ports.Images, consequences: Consequences,
    clock: ports.Clock, reactor: Any, hypervisor: ports.Hypervisor,
) -> Books:
    """The accountant hears of every commit."""
    here = room.facts()
    accountant = Accountant(world, store, kernel.firewall, clock, reactor, lambda: consequences.policy,
                            lambda: of_host(hypervisor.info(), here.cores, here.memory_mib), images.used)
    feeds.add(accountant)
    return Books(accountant, UsageReport(world, store, accountant, lambda: consequences.policy))


def reporting(
    announcer: Announcer, usage: UsageReport
) -> Callable[[Mapping[str, Any], Now], Awaitable[List[Change]]]:
    """What host.report publishes: a snapshot, or the periods of usage that its args name."""

    async def report(args: Mapping[str, Any], now: Now) -> List[Change]:
        wanted = args.get("usage")
        return await announcer.snapshot_changes(now) if wanted is None else await usage.resent(wanted, now)

    return report
