"""Golden images as values: what was told of one, what lies on the disk, how far a download is.

Rules

1. An image is its SHA-512: that of the bytes which its source offers and its endorser signed.  A file that was
   converted here is found by the same digest, and has one of its own.
2. Whether an image is trusted is never a member here: trust.py says it anew each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Optional, Tuple

SITE, LIST, REQUEST = "site", "list", "request"
"""Who told us of an image: the site's own catalogue, a signed list, a command that named URL and SHA-512."""

FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx")
"""Formats that a guest can be started from here."""


@dataclass(frozen=True)
class BootFile:
    """A kernel or an initial RAM disk: a file of the site's, as vouched for as a golden image."""

    file: str  # below the image directory
    sha512: str  # hex


@dataclass(frozen=True)
class Boot:
    """How a guest begins where there is no firmware that could boot its disk: Xen's PV and PVH."""

    guest: str  # PV | PVH
    kernel: Optional[BootFile] = None  # None = the bootloader of dom0 finds it on the guest's own disk
    initrd: Optional[BootFile] = None
    cmdline: str = ""

    @property
    def files(self) -> Tuple[BootFile, ...]:
        return tuple(one for one in (self.kernel, self.initrd) if one is not None)


HVM, PV, PVH = "hvm", "pv", "pvh"
"""Kinds of guests: with firmware; Xen's paravirtual; Xen's paravirtual with the processor's help."""


@dataclass(frozen=True)
class ImageRecord:
    """What was told of one image, by one source."""

    id: str
    sha512: str  # hex, of what the source offers
    format: str  # raw | qcow2 | vmdk | vdi | vhdx
    source: str  # SITE | LIST | REQUEST
    url: str = ""  # https: or file:; "" = a file of the site's that is there
    size: int = 0  # bytes; 0 = not told
    endorser: str = ""  # subject DN of who signed the list
    list: str = ""  # identifier of the list
    list_version: str = ""
    created_wall: str = ""
    expires_wall: str = ""  # "" = never
    vo: str = ""
    revoked_by: str = ""  # "" = it is not
    revoked_why: str = ""
    revoked_wall: str = ""


@dataclass(frozen=True)
class ImageFile:
    """A verified golden file on this disk."""

    sha512: str  # of what was fetched: its ImageRecord's
    path: str
    file_sha512: str  # of this file; another one than sha512 when it was converted
    file_format: str  # raw | qcow2
    size: int  # bytes on the disk
    virtual_size: int  # bytes that a guest sees
    last_used_wall: str = ""


@dataclass(frozen=True)
class Download:
    """One download that is under way."""

    sha512: str
    url: str
    done: int  # bytes
    total: int  # bytes; 0 = not known
    since: float  # boot time
    step: str = "fetching"  # waiting (for its turn) | fetching | inspecting | converting
    waiting: Tuple[str, ...] = ()  # ids of the VMs and of the image.fetch commands that want it


@dataclass(frozen=True)
class Fetching:
    """How far a download is, in steps that are worth telling."""

    step: str  # a Download's
    percent: Optional[int]  # in tens, rounded down; None = its size is not known


@dataclass(frozen=True)
class Pin:
    """What the site wants kept in the cache whatever room is needed; it is about bytes."""

    sha512: str
    id: str  # what they were called then
    by: str  # who signed it; "local:<user>"
    why: str
    wall: str


@dataclass(frozen=True)
class Kept:
    """What this host's cache holds, and what of it must stay; both by SHA-512."""

    files: Mapping[str, ImageFile]
    pins: Mapping[str, Pin]


@dataclass(frozen=True)
class Revocation:
    """What the site said against an image: by `id`, whatever its bytes, or by `sha512`, whatever its name."""

    id: str  # "" when it is about the bytes
    sha512: str  # "" when it is about the name
    version: int  # the site's count of revocations; from 1
    action: str  # report | forbid | pause | stop | kill: see revocation.py
    by: str  # who signed it; "local:<user>"
    why: str
    wall: str

    @property
    def key(self) -> str:
        """What it is about; the newest version about it counts."""
        return f"sha512:{self.sha512}" if self.sha512 else f"id:{self.id}"


def fetching(download: Download) -> Fetching:
    """The same, told in tens of percent."""
    percent = min(100, download.done * 100 // download.total) // 10 * 10 if download.total > 0 else None
    return Fetching(download.step, percent)


def nameless(sha512: str) -> str:
    """The id of an image that is known by its bytes alone."""
    return f"sha512-{sha512[:16]}"


def golden_format(format: str) -> str:
    """What the golden file of an image of this format is: QEMU's own two stay as they are, all others become qcow2."""
    return format if format in ("raw", "qcow2") else "qcow2"
