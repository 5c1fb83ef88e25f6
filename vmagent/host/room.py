"""What this host has: the facts that admission starts from (R9).  Read at start and when capacity is published."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil

MIB = 2**20


@dataclass(frozen=True)
class Facts:
    """cores: that this process may run on; memory_mib: all of the host's, used or not."""

    cores: int
    memory_mib: int


def facts() -> Facts:
    return Facts(len(os.sched_getaffinity(0)), psutil.virtual_memory().total // MIB)
