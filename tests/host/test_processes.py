"""The process table: real processes for what they do, a made one for what cannot be brought about at will."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable, Iterator, List

import pytest

from tests.support import building
from tests.support.waiting import until
from tests.support.wires import ip
from vmagent.host.processes import ProcProcesses
from vmagent.host.room import facts

VM = building.spec(member=0).vm
OTHER = building.spec(member=1).vm
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """A process that looks like libvirt's QEMU to whoever reads its arguments."""
    started: List[subprocess.Popen] = []

    def go(*arguments: str) -> subprocess.Popen:
        code = "import sys; print('up', flush=True); sys.stdin.read()"
        argv = [sys.executable, "-c", code, *(arguments or ("-name", "guest=x", "-uuid", VM, "-S"))]
        child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        return child

    yield go
    for child in started:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            pipe.close()


def test_a_process_with_the_vm_s_uuid_is_left_over_until_it_is_gone(start: Start) -> None:
    processes = ProcProcesses()
    assert processes.leftovers(VM, ()) == frozenset()
    child = start()
    assert processes.leftovers(VM, ()) == {"process"}
    assert processes.leftovers(OTHER, ()) == frozenset()
    child.kill()
    until(lambda: processes.leftovers(VM, ()) == frozenset(), 5)


def test_a_new_process_is_found_after_the_old_one(start: Start) -> None:
    processes = ProcProcesses()
    first = start()
    assert processes.leftovers(VM, ()) == {"process"}
    first.kill()
    first.wait()
    start()
    assert processes.leftovers(VM, ()) == {"process"}


def test_the_uuid_alone_makes_no_qemu(start: Start) -> None:
    start("-name", f"guest={VM}", VM, "-smbios", f"uuid={VM}")
    start("-uuid")
    assert ProcProcesses().leftovers(VM, ()) == frozenset()


def test_a_stopped_process_is_halted_until_it_goes_on(start: Start) -> None:
    processes = ProcProcesses()
    child = start()
    start("-uuid", OTHER)
    assert processes.halted([VM, OTHER]) == frozenset()
    os.kill(child.pid, signal.SIGSTOP)
    until(lambda: processes.halted([VM, OTHER]) == {VM}, 5)
    os.kill(child.pid, signal.SIGCONT)
    until(lambda: processes.halted([VM, OTHER]) == frozenset(), 5)


def test_process_ids_are_of_those_that_live(start: Start) -> None:
    processes = ProcProcesses()
    assert processes.pids([VM]) == {}
    first, second = start(), start("-uuid", OTHER)
    assert processes.pids([VM, OTHER]) == {VM: first.pid, OTHER: second.pid}
    first.kill()
    first.wait()
    assert processes.pids([VM, OTHER]) == {OTHER: second.pid}
    again = start()
    assert processes.pids([VM]) == {VM: again.pid}
    assert processes.pids([]) == {}


def test_whoever_has_no_process_is_not_halted() -> None:
    assert ProcProcesses().halted([VM]) == frozenset()
    assert ProcProcesses().halted([]) == frozenset()


def test_interfaces_are_left_over_while_one_of_them_exists() -> None:
    processes = ProcProcesses()
    assert processes.leftovers(VM, ["va2222222222222", "lo"]) == {"interface"}
    assert processes.leftovers(VM, ["va2222222222222"]) == frozenset()


def test_an_interface_is_plugged_once_it_is_in_a_bridge() -> None:
    """Of two ends of a wire, one in a bridge."""
    processes, (one, other, bridge) = ProcProcesses(), ("zthplug0", "zthplug1", "zthplugbr")
    assert not processes.plugged([one])
    try:
        ip("link", "add", one, "type", "veth", "peer", "name", other)
        ip("link", "add", bridge, "type", "bridge")
        assert not processes.plugged([one])
        ip("link", "set", one, "master", bridge)
        assert processes.plugged([one]) and not processes.plugged([one, other])
    finally:
        for device in (one, bridge):
            subprocess.run(["ip", "link", "del", device], check=False, capture_output=True)


class Table:
    """A process table as files."""

    def __init__(self, root: Path) -> None:
        self.proc = root / "proc"
        self.proc.mkdir()
        (self.proc / "self").mkdir()

    def put(self, pid: int, state: str, vm: str = "", started: int = 100, name: str = "qemu") -> None:
        path = self.proc / str(pid)
        path.mkdir(exist_ok=True)
        (path / "cmdline").write_bytes(f"qemu\0-uuid\0{vm}\0-S\0".encode() if vm else b"")
        before = " ".join("0" for _ in range(18))
        (path / "stat").write_text(f"{pid} ({name}) {state} {before} {started} 0 0\n")

    def look(self) -> ProcProcesses:
        return ProcProcesses(self.proc, self.proc.parent / "sys")


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


@pytest.mark.parametrize("state, halted", [("T", True), ("t", True), ("D", True), ("S", False), ("R", False)])
def test_states_that_mean_halted(table: Table, state: str, halted: bool) -> None:
    table.put(7, state, VM)
    assert (VM in table.look().halted([VM])) is halted


def test_a_dying_qemu_without_arguments_is_still_there(table: Table) -> None:
    table.put(7, "S", VM)
    processes = table.look()
    assert processes.leftovers(VM, ()) == {"process"}
    table.put(7, "D")
    assert processes.leftovers(VM, ()) == {"process"}
    assert processes.halted([VM]) == {VM}
    table.put(7, "Z")
    assert processes.leftovers(VM, ()) == frozenset()


def test_a_process_id_used_again_is_another_process(table: Table) -> None:
    table.put(7, "S", VM, started=100)
    processes = table.look()
    assert processes.leftovers(VM, ()) == {"process"}
    table.put(7, "S", OTHER, started=200)
    assert processes.leftovers(VM, ()) == frozenset()
    assert processes.leftovers(OTHER, ()) == {"process"}


def test_a_name_may_hold_brackets_and_blanks(table: Table) -> None:
    table.put(7, "T", VM, name="a) S (b")
    assert table.look().halted([VM]) == {VM}


def test_the_host_s_facts_are_plausible() -> None:
    found = facts()
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert found.memory_mib * 2**20 <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") + 2**20
    assert found.memory_mib > 64
