"""Freezing a guest's file systems through an agent that answers late, never, with "no", or goes away."""

from __future__ import annotations

from typing import Any, List

import libvirt
import pytest

from vmagent.core.domainxml import AGENT_CHANNEL
from vmagent.errors import Fault, FaultKind
from vmagent.hypervisor import freezing

SILENT, NO = libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_INTERNAL_ERROR
FREEZE, THAW = "fsFreeze", "fsThaw"


def error(code: int) -> libvirt.libvirtError:
    raised = libvirt.libvirtError("as told")
    raised.err = (code, libvirt.VIR_FROM_QEMU, "as told", 2, None, None, None, -1, -1)
    return raised


class Guest:
    """A domain whose agent answers each call as the script says: 0, or the code of an error."""

    def __init__(self, *script: int, agent: str = "connected") -> None:
        self.script, self.agent = list(script), agent
        self.asked: List[str] = []
        self.limit = 0

    def isActive(self) -> bool:
        return True

    def XMLDesc(self, flags: int) -> str:
        target = f"<target type='virtio' name='{AGENT_CHANNEL}' state='{self.agent}'/>"
        return f"<domain><devices><channel type='unix'>{target}</channel></devices></domain>"

    def agentSetResponseTimeout(self, seconds: int, flags: int) -> None:
        self.limit = seconds

    def fsFreeze(self) -> int:
        return self._answer(FREEZE)

    def fsThaw(self) -> int:
        return self._answer(THAW)

    def _answer(self, what: str) -> int:
        assert self.limit == freezing.AGENT_S, "nobody waits for an agent without end"
        self.asked.append(what)
        code = self.script.pop(0)
        if code:
            raise error(code)
        return 1


def frozen(guest: Guest) -> Any:
    try:
        return freezing.freeze(guest)
    except Fault as fault:
        return fault.kind


@pytest.mark.parametrize(
    ("script", "outcome", "asked"),
    [
        ((0,), "", [FREEZE]),
        ((NO, 0), "libvirt: as told", [FREEZE, THAW]),
        ((NO, NO), "libvirt: as told", [FREEZE, THAW]),  # a "no" is an answer: Windows has thawed by itself
        ((SILENT, 0), "libvirt: as told", [FREEZE, THAW]),  # the thaw came after the freeze, and was answered
        ((SILENT, SILENT), FaultKind.REFUSED, [FREEZE, THAW]),
        ((libvirt.VIR_ERR_AGENT_UNSYNCED, SILENT), FaultKind.REFUSED, [FREEZE, THAW]),
    ],
)
def test_a_freeze_is_done_or_undone_or_nobody_can_say(script: Any, outcome: Any, asked: List[str]) -> None:
    guest = Guest(*script)
    assert frozen(guest) == outcome
    assert guest.asked == asked


@pytest.mark.parametrize("code", [SILENT, libvirt.VIR_ERR_AGENT_UNSYNCED, libvirt.VIR_ERR_OPERATION_TIMEOUT])
def test_a_thaw_that_is_not_answered_is_not_over(code: int) -> None:
    with pytest.raises(Fault) as caught:
        freezing.thaw(Guest(code))
    assert caught.value.kind is FaultKind.UNKNOWN and "may be frozen" in caught.value.detail


@pytest.mark.parametrize("code", [0, NO])
def test_any_answer_to_a_thaw_will_do(code: int) -> None:
    freezing.thaw(Guest(code))


def test_an_agent_that_went_away_over_a_freeze_is_not_taken_for_thawed() -> None:
    class Leaving(Guest):
        def fsFreeze(self) -> int:
            self.agent = "disconnected"
            return super().fsFreeze()

    assert frozen(Leaving(SILENT)) is FaultKind.REFUSED


def test_where_no_agent_listens_nobody_is_asked() -> None:
    guest = Guest(agent="disconnected")
    assert frozen(guest) == "no guest agent answers in it"
    freezing.thaw(guest)
    assert guest.asked == []
