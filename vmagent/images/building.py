"""The images of one host, wired: cache, downloads and `LocalImages` over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, FrozenSet, Mapping, Optional, Tuple
from urllib.parse import urlsplit

from vmagent.config import FetchSettings, ImageSettings
from vmagent.core.policy import CatalogueImage, Volume
from vmagent.images.cache import Cache, Shelf
from vmagent.images.downloads import Downloads
from vmagent.images.fetch import GIB, Bounds, Fetcher
from vmagent.images.local import Contexts, LocalImages
from vmagent.images.space import Space
from vmagent.images.web import Proxy, Web
from vmagent.lanes import Lanes


@dataclass(frozen=True)
class Surroundings:
    """What the images need of the rest.

    reactor: Twisted's; fetching: lanes of their own, for what takes long; chance(): 0 to 1; wall(): seconds since 1970;
    floor_gib(): that stay free; needed(): SHA-512s that wishes name; contexts: what a start gave its guests;
    disks(): of each VM that has a wish, the SHA-512 of what its own disk stands on, and its bytes.
    """

    reactor: Any
    fetching: Lanes
    chance: Callable[[], float]
    wall: Callable[[], float]
    floor_gib: Callable[[], int]
    needed: Callable[[], FrozenSet[str]]
    contexts: Contexts
    disks: Callable[[], Mapping[str, Tuple[str, int]]] = dict


def local_images(
    settings: ImageSettings, catalogue: Mapping[str, CatalogueImage], lanes: Lanes, around: Surroundings,
    volumes: Optional[Mapping[str, Volume]] = None,
) -> LocalImages:
    """Nothing is started yet."""
    kept, fetch = settings.cache, settings.fetch
    def floor() -> int:
        return around.floor_gib() * GIB

    shelf = Shelf(kept.directory, settings.overlays, kept.size_gib * GIB, floor, kept.part_keep_s, around.disks)
    cache = Cache(shelf, around.needed, around.wall)
    bounds = Bounds(fetch.largest_gib * GIB, fetch.stall_s, fetch.deadline_s)
    fetcher = Fetcher(web(fetch, around.reactor), around.fetching, around.reactor, bounds, fetch.files, cache.room)
    downloads = Downloads(fetcher, cache, around.fetching, around.reactor, around.chance, fetch.parallel,
                          floor, settings.largest_disk_gib * GIB)
    space = Space(settings.overlays, floor, around.disks)
    return LocalImages(settings, catalogue, lanes, around.contexts, cache, downloads, space, volumes)


def web(settings: FetchSettings, reactor: Any) -> Web:
    """The way to the images' servers."""
    proxy = urlsplit(settings.proxy) if settings.proxy else None
    return Web(reactor, settings.ca, Proxy(proxy.hostname or "", proxy.port or 3128) if proxy else None)
