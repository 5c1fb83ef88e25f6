"""Which guests are stuck: found without entering the QEMU monitor, and cleared only by it (DESIGN 6).

A guest is stuck when a call to its monitor is past its deadline (`late`), or when its QEMU's main thread was in state
T or D in two looks at least HALTED_APART_S apart.  It is cleared by one monitor call that succeeded (`answered`) or by
its end (`ended`).  While a guest is suspected or stuck it is looked at every HALTED_APART_S: one read in /proc; nothing
is done for healthy guests.

All on the reactor's thread.
"""

from __future__ import annotations

import logging
from typing import Any, Callable, Dict, FrozenSet, Protocol, Sequence, Set

log = logging.getLogger("vmagent.hypervisor")
HALTED_APART_S = 5.0


class Timer(Protocol):
    """The part of the reactor that is needed here."""

    def callLater(self, __delay: float, __call: Callable[..., Any], *args: Any) -> Any: ...

    def seconds(self) -> float: ...


class Health:
    """halted(vms): those whose QEMU main thread is in state T or D now; probe(vm): make one call to its monitor, and
    tell `answered` or `late`; changed(vm): it became stuck, or is no more.
    """

    def __init__(
        self,
        timer: Timer,
        halted: Callable[[Sequence[str]], FrozenSet[str]],
        probe: Callable[[str], None],
        changed: Callable[[str], None],
    ) -> None:
        self._timer = timer
        self._halted = halted
        self._probe = probe
        self._changed = changed
        self._since: Dict[str, float] = {}  # suspected: halted since
        self._stuck: Set[str] = set()
        self._watched: Dict[str, Any] = {}  # vm -> the next look

    def stuck(self) -> FrozenSet[str]:
        return frozenset(self._stuck)

    def halted(self, vm: str) -> bool:
        """Whether its monitor would not answer now: stuck, or halted at this moment (which makes it a suspect)."""
        self.look((vm,))
        return vm in self._stuck or vm in self._since

    def look(self, vms: Sequence[str]) -> None:
        """One look at live guests."""
        self.seen(vms, self._halted(vms) if vms else frozenset())

    def seen(self, vms: Sequence[str], halted: FrozenSet[str]) -> None:
        """Somebody looked at these live guests."""
        now = self._timer.seconds()
        for vm in vms:
            if vm not in halted:
                self._since.pop(vm, None)
            elif now - self._since.setdefault(vm, now) >= HALTED_APART_S:
                self._is_stuck(vm, "its QEMU does not run")
            if vm in self._since or vm in self._stuck:
                self._watch(vm)

    def late(self, vm: str) -> None:
        """A call to its monitor is past its deadline."""
        self._is_stuck(vm, "its monitor does not answer")
        self._watch(vm)

    def answered(self, vm: str) -> None:
        """A call to its monitor succeeded."""
        self._since.pop(vm, None)
        if vm in self._stuck:
            self._stuck.discard(vm)
            log.info("guest %s answers again", vm, extra={"vm": vm})
            self._changed(vm)

    def ended(self, vm: str) -> None:
        """It has no QEMU any more."""
        self._since.pop(vm, None)
        self._stuck.discard(vm)

    def stop(self) -> None:
        for call in self._watched.values():
            call.cancel()
        self._watched.clear()

    def _is_stuck(self, vm: str, why: str) -> None:
        if vm not in self._stuck:
            self._stuck.add(vm)
            log.warning("guest %s is stuck: %s", vm, why, extra={"vm": vm})
            self._changed(vm)

    def _watch(self, vm: str) -> None:
        if vm not in self._watched:
            self._watched[vm] = self._timer.callLater(HALTED_APART_S, self._again, vm)

    def _again(self, vm: str) -> None:
        del self._watched[vm]
        if vm not in self._since and vm not in self._stuck:
            return
        self.look((vm,))
        if vm in self._stuck and vm not in self._since:
            self._probe(vm)
