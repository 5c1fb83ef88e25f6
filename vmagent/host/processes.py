"""The host's process and interface tables (`ports.Processes`): what is really there, whatever libvirt believes.

Rules

1. "No process" is said only after a look at the whole process table; a remembered process serves to say "still there".
2. A process belongs to a VM when its arguments hold `-uuid` and then the VM's id: so libvirt starts QEMU.  (Xen's PV
   and PVH guests have no process; there the domain itself is the proof.)
3. A dying QEMU has lost its arguments before it is gone.  So it is remembered by process id and start time, and counts
   until that pair disappears or is a zombie, which holds nothing any more.
4. May be asked from several threads: what is remembered is only ever replaced or dropped as a whole.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, FrozenSet, Iterator, Mapping, Optional, Sequence, Tuple

_UUID = b"-uuid"
GONE = frozenset("ZX")
HALTED = frozenset("TtD")
_START_TIME = 19  # field 22 of proc_pid_stat(5), counted from the state, which is field 3


@dataclass(frozen=True)
class Process:
    pid: int
    started: int  # clock ticks since boot


class ProcProcesses:
    """proc, sys: where procfs and sysfs are mounted."""

    def __init__(self, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self._proc = proc
        self._net = sys / "class" / "net"
        self._known: Dict[str, Process] = {}

    def leftovers(self, vm: str, devices: Sequence[str]) -> FrozenSet[str]:
        """See ports.Processes."""
        found = set()
        if self._state(vm) is None:
            self._look()
        if self._state(vm) is not None:
            found.add("process")
        if self.present(devices):
            found.add("interface")
        return frozenset(found)

    def present(self, devices: Sequence[str]) -> FrozenSet[str]:
        """See ports.Processes."""
        return frozenset(device for device in devices if (self._net / device).exists())

    def plugged(self, devices: Sequence[str]) -> bool:
        """See ports.Processes."""
        return all((self._net / device / "master").exists() for device in devices)

    def halted(self, vms: Sequence[str]) -> FrozenSet[str]:
        """See ports.Processes."""
        states = {vm: self._state(vm) for vm in vms}
        if None in states.values():
            self._look()
            states = {vm: self._state(vm) for vm in vms}
        return frozenset(vm for vm, state in states.items() if state in HALTED)

    def pids(self, vms: Sequence[str]) -> Mapping[str, int]:
        """The process id of each that has a QEMU.  Quick when all have one and were seen before."""
        found = self._pids(vms)
        if len(found) < len(set(vms)):
            self._look(frozenset(vms) - found.keys())
            found = self._pids(vms)
        return found

    def _pids(self, vms: Sequence[str]) -> Mapping[str, int]:
        processes = {vm: self._known.get(vm) for vm in vms if self._state(vm) is not None}
        return {vm: process.pid for vm, process in processes.items() if process is not None}

    def lives(self, vms: Sequence[str]) -> Mapping[str, Process]:
        """The process of each that has a QEMU, with its start.  As quick as `pids`."""
        known = {vm: self._known.get(vm) for vm in self.pids(vms)}
        return {vm: process for vm, process in known.items() if process is not None}

    def remembered(self, vms: Sequence[str]) -> Mapping[str, Process]:
        """The process of each as it was last seen, without a look: who asks finds out whether it is still that one."""
        return {vm: process for vm in vms for process in [self._known.get(vm)] if process is not None}

    def _state(self, vm: str) -> Optional[str]:
        """State letter of the remembered process; None when there is none, or it is gone."""
        process = self._known.get(vm)
        if process is None:
            return None
        state, started = _stat(f"{self._proc}/{process.pid}")
        if started != process.started or state in GONE:
            self._known.pop(vm, None)
            return None
        return state

    def _look(self, wanted: FrozenSet[str] = frozenset()) -> None:
        """Go through the process table, until those wanted are found or to its end, and forget who is gone."""
        found: Dict[str, Process] = {}
        for path, vm in self._guests():
            found[vm] = Process(int(path.name), _stat(str(path))[1])
            if wanted and wanted <= found.keys():
                break
        for vm in set(self._known) - found.keys():
            self._state(vm)
        self._known.update(found)

    def _guests(self) -> Iterator[Tuple[Path, str]]:
        """The newest first, as a rule: those are asked for."""
        for pid in sorted((int(name) for name in os.listdir(self._proc) if name.isdigit()), reverse=True):
            path = self._proc / str(pid)
            vm = _vm_of(path)
            if vm is not None:
                yield path, vm


def _vm_of(path: Path) -> Optional[str]:
    try:
        arguments = (path / "cmdline").read_bytes().split(b"\0")
    except OSError:  # it ended meanwhile
        return None
    if _UUID not in arguments[:-1]:
        return None
    return arguments[arguments.index(_UUID) + 1].decode("ascii", "replace")


def kernel_text(path: str) -> str:
    """One of the kernel's small files, of less than a page.  Errors: OSError.

    Without Path and the layers of `open`, which cost several times as much: these are read for every guest.
    """
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(number, 4096).decode("utf-8", "replace")
    finally:
        os.close(number)


def _stat(path: str) -> Tuple[str, int]:
    """State letter of the main thread and start time; ("X", -1) when there is no such process."""
    try:
        text = kernel_text(f"{path}/stat")
    except OSError:
        return "X", -1
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return fields[0], int(fields[_START_TIME])
