"""Scratch disks: raw files of the wished size in which nothing is allocated, made fresh with the overlay."""

from __future__ import annotations

import os
from pathlib import Path

from vmagent.images.overlay import GIB
from vmagent.images.places import PRIVATE, settle


def make_scratch(size_gib: int, target: Path, temporary: Path) -> None:
    """Make or replace `target` by way of `temporary`, on the same file system.  Errors: OSError."""
    file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE)
    try:
        os.ftruncate(file, size_gib * GIB)
    finally:
        os.close(file)
    settle(temporary, target)
