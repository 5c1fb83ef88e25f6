"""Network namespaces for the thread that asks; threads and children that it starts inherit them."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Iterator

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _done(answer: int, what: str) -> None:
    if answer:
        raise OSError(ctypes.get_errno(), what)


class Apart:
    """From here to `close` this thread is in a network namespace of its own, where no name and no address is taken."""

    def __init__(self) -> None:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        _done(_libc.unshare(_CLONE_NEWNET), "unshare")

    def close(self) -> None:
        _done(_libc.setns(self._home, _CLONE_NEWNET), "setns back")
        os.close(self._home)


@contextlib.contextmanager
def inside(space: str) -> Iterator[None]:
    """This thread is in the named network namespace for a while; "" = it stays where it is."""
    if not space:
        yield
        return
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{space}") as away:
        _done(_libc.setns(away.fileno(), _CLONE_NEWNET), f"setns {space}")
        try:
            yield
        finally:
            _done(_libc.setns(home.fileno(), _CLONE_NEWNET), "setns back")
