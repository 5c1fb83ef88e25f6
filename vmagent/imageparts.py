"""The wiring of what has to do with golden images, cut from parts.py for length: files, lists, who looks after both."""

from __future__ import annotations

import random
from typing import Any, Callable, FrozenSet, Mapping, Tuple

from vmagent import ports
from vmagent.broker.endorsers import TrustedEndorsers
from vmagent.broker.trust import TrustStore
from vmagent.config import Config
from vmagent.core import imagewishes, walltime
from vmagent.images.building import Surroundings, local_images, web
from vmagent.images.fetch import GIB
from vmagent.images.listsignature import LONGEST_SIGNED
from vmagent.images.local import Contexts, LocalImages
from vmagent.images.reading import UrlReader
from vmagent.images.subscriptions import Subscriptions
from vmagent.lanes import Lanes
from vmagent.world import World

LIST_S = 300.0  # the longest that fetching an image list may take


def files(
    config: Config, reactor: Any, clock: ports.Clock, chance: random.Random, lanes: Mapping[str, Lanes],
    world: Callable[[], World], contexts: Contexts, floor_gib: Callable[[], int],
) -> LocalImages:
    """Golden images, overlays and seeds on the local disk.  world(): it is made later."""
    around = Surroundings(reactor, lanes["fetching"], chance.random, lambda: walltime.seconds(clock.now().wall),
                          floor_gib, lambda: wished(world()), contexts, lambda: own_disks(world()))
    return local_images(config.images, config.policy.images, lanes["images"], around, config.policy.volumes)


def wished(world: World) -> FrozenSet[str]:
    """Golden images that must stay: of wishes that are not closed, pinned, and asked for by image.fetch.

    Called on a lane's thread: one copy of each, then no more looks.
    """
    used = frozenset(record.spec.image.sha512 for record in tuple(world.records.values()))
    return used | imagewishes.kept(world.settings, tuple(world.pending.values()))


def own_disks(world: World) -> Mapping[str, Tuple[str, int]]:
    """Of wishes that are not closed: VM id -> (SHA-512 of its golden image, bytes of its own disk).

    Called on a lane's thread, as `wished`.
    """
    specs = {vm: record.spec for vm, record in tuple(world.records.items())}
    return {vm: (spec.image.sha512, spec.disk_gib * GIB) for vm, spec in specs.items()}


def lists(
    config: Config, trust: TrustStore, lanes: Lanes, reactor: Any, clock: ports.Clock, chance: random.Random
) -> Subscriptions:
    """The image lists that the site takes."""
    fetch = config.images.fetch
    reader = UrlReader(web(fetch, reactor), lanes, reactor, fetch.stall_s, LIST_S, LONGEST_SIGNED)
    folder = config.directories.state / "lists"
    return Subscriptions(folder, TrustedEndorsers(trust), lanes, reactor, clock, chance.random, reader.read)


def heard(
    mark: Callable[[str], None], news: Callable[[str], None], jobs: Callable[[Callable[[str], None]], None],
    downloads: Callable[[Callable[[str], None]], None],
) -> None:
    """Whoever works beside the loop marks a VM when there is something new to see.

    That a download is over concerns the loop, when a VM waits for it, or the keeper of the cache (`news`).
    """
    def over(who: str) -> None:
        mark(who)
        news(who)

    jobs(mark)
    downloads(over)
