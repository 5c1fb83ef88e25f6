"""Taking and undoing a snapshot of a guest whose agent falls silent, on a domain that is only a chain of files."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, List, Tuple

import libvirt
import pytest

from tests.support import building
from vmagent.core.actions import Action, Do
from vmagent.core.domainxml import AGENT_CHANNEL
from vmagent.core.drivers import of_driver
from vmagent.core.snapshotmodel import Job, SnapshotState, layer_file
from vmagent.errors import Fault, FaultKind
from vmagent.hypervisor import layers

SILENT = libvirt.VIR_ERR_AGENT_UNRESPONSIVE


def error(code: int) -> libvirt.libvirtError:
    raised = libvirt.libvirtError("as told")
    raised.err = (code, libvirt.VIR_FROM_QEMU, "as told", 2, None, None, None, -1, -1)
    return raised


class Guest:
    """silent: which calls its agent does not answer, by number from 1; full: QEMU finds no room for a layer."""

    def __init__(self, overlay: str, *silent: int, full: bool = False) -> None:
        self.files = [overlay, "/golden.qcow2"]
        self.silent, self.full = silent, full
        self.asked: List[str] = []

    def isActive(self) -> bool:
        return True

    def XMLDesc(self, flags: int) -> str:
        below = ""
        for file in reversed(self.files[1:]):
            below = f"<backingStore type='file'><source file='{file}'/>{below}</backingStore>"
        disk = f"<disk><target dev='vda'/><source file='{self.files[0]}'/>{below}</disk>"
        agent = f"<channel><target name='{AGENT_CHANNEL}' state='connected'/></channel>"
        memory = "<memory>1</memory><currentMemory>1</currentMemory>"
        return f"<domain>{memory}<devices>{disk}{agent}</devices></domain>"

    def agentSetResponseTimeout(self, seconds: int, flags: int) -> None: ...

    def fsFreeze(self) -> int:
        return self._answer("freeze")

    def fsThaw(self) -> int:
        return self._answer("thaw")

    def _answer(self, what: str) -> int:
        self.asked.append(what)
        if len([one for one in self.asked if one in ("freeze", "thaw")]) in self.silent:
            raise error(SILENT)
        return 1

    def snapshotCreateXML(self, xml: str, flags: int) -> None:
        self.asked.append("snapshot")
        if self.full:
            raise error(libvirt.VIR_ERR_INTERNAL_ERROR)
        self.files.insert(0, layer_file(self.files[0], "a"))

    def blockJobInfo(self, disk: str, flags: int) -> Any:
        return {}

    def blockCommit(self, disk: str, base: str, top: Any, bandwidth: int, flags: int) -> None:
        self.asked.append("commit")
        del self.files[0]


def did(guest: Guest, do: Do, quiesce: str = "required", **kw: Any) -> Any:
    """What came of the job: its JobDone, or the kind of its Fault."""
    wanted = building.snapshot("a", SnapshotState.CREATING, quiesce=quiesce, **kw)
    action = Action(do, building.spec(), job=Job(wanted, ("a",), 60.0))
    profile = of_driver("QEMU")
    watch = layers.Watch(threading.Event(), lambda: "", lambda percent: None)
    assert profile is not None
    try:
        return layers.perform(guest, action, profile, guest.files[-2], watch)
    except Fault as fault:
        return fault.kind


@pytest.fixture
def overlay(tmp_path: Path) -> str:
    return str(tmp_path / "vm.qcow2")


def test_the_guest_is_frozen_for_the_snapshot_alone(overlay: str) -> None:
    guest = Guest(overlay)
    assert did(guest, Do.TAKE_SNAPSHOT).quiesced
    assert guest.asked == ["thaw", "freeze", "snapshot", "thaw"]


@pytest.mark.parametrize("quiesce", ["required", "if_possible"])
@pytest.mark.parametrize(
    ("silent", "asked"), [((1,), ["thaw"]), ((2, 3), ["thaw", "freeze", "thaw"])], ids=["before", "over the freeze"]
)
def test_no_snapshot_is_taken_where_nobody_knows(
    overlay: str, quiesce: str, silent: Tuple[int, ...], asked: List[str]
) -> None:
    guest = Guest(overlay, *silent)
    assert did(guest, Do.TAKE_SNAPSHOT, quiesce) is FaultKind.REFUSED
    assert guest.asked == asked and len(guest.files) == 2


def test_a_freeze_that_only_failed_is_no_reason_not_to_where_it_need_not_be(overlay: str) -> None:
    assert did(Guest(overlay, 2), Do.TAKE_SNAPSHOT) is FaultKind.REFUSED
    guest = Guest(overlay, 2)
    assert not did(guest, Do.TAKE_SNAPSHOT, "if_possible").quiesced
    assert guest.asked == ["thaw", "freeze", "thaw", "snapshot"]


def test_one_that_was_taken_is_not_done_before_its_guest_is_let_go(overlay: str) -> None:
    guest = Guest(overlay, 3, 4)
    for _ in range(2):
        assert did(guest, Do.TAKE_SNAPSHOT) is FaultKind.UNKNOWN  # asked for again
    assert not did(guest, Do.TAKE_SNAPSHOT).quiesced
    assert guest.asked == ["thaw", "freeze", "snapshot", "thaw", "thaw", "thaw"] and len(guest.files) == 3


def test_undoing_is_not_over_before_its_guest_is_let_go(overlay: str) -> None:
    guest = Guest(overlay, 3, 4, 5)
    assert did(guest, Do.TAKE_SNAPSHOT) is FaultKind.UNKNOWN
    assert did(guest, Do.DELETE_SNAPSHOT) is FaultKind.UNKNOWN
    assert guest.asked[-3:] == ["thaw", "commit", "thaw"] and len(guest.files) == 2  # the disk does not wait for it
    did(guest, Do.DELETE_SNAPSHOT)
    assert guest.asked[-2:] == ["thaw", "thaw"]


def test_who_froze_nothing_asks_nobody(overlay: str) -> None:
    guest = Guest(overlay, 1, 2, 3)
    assert not did(guest, Do.TAKE_SNAPSHOT, "no").quiesced
    assert did(guest, Do.DELETE_SNAPSHOT, "required", created_wall=building.WALL) is not FaultKind.UNKNOWN
    assert guest.asked == ["snapshot", "commit"]


def test_an_error_of_qemu_on_a_disk_without_room_is_said_as_that(overlay: str, monkeypatch: Any) -> None:
    assert did(with_room := Guest(overlay), Do.TAKE_SNAPSHOT).quiesced and with_room.asked[-1] == "thaw"
    monkeypatch.setattr(layers, "_EMPTY_LAYER", 2**62)
    guest = Guest(overlay, full=True)
    assert did(guest, Do.TAKE_SNAPSHOT) is FaultKind.FULL
    assert guest.asked == ["thaw", "freeze", "snapshot", "thaw"]
