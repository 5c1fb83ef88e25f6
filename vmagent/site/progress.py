"""The way of started VMs to `ready`, for people: bars on a terminal, plain lines elsewhere; on standard error.

Fed with events and replies; it decides nothing.  A line is written when a member's phase changes.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Sequence, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from vmagent.core.columns import clean

STEPS = ("pending", "fetching", "starting", "running", "ready")


class Shown:
    """One display of the members of a bulk."""

    def __init__(self, ids: Sequence[str], out: TextIO) -> None:
        self._members = {vm: member for member, vm in enumerate(ids)}
        self._phases: Dict[str, str] = {}
        self._out = out
        self._bars: Optional[Progress] = None
        self._tasks: Dict[str, TaskID] = {}
        if out.isatty():
            self._bars = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[phase]}"),
                                  console=Console(file=out))
            for vm, member in self._members.items():
                self._tasks[vm] = self._bars.add_task(f"{member} {vm}", total=len(STEPS), phase="sent")

    def __enter__(self) -> Shown:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bars is not None:
            self._bars.stop()

    def event(self, event: Mapping[str, Any]) -> None:
        """A vm.state of one of the members moves it on; everything else is none of ours."""
        data = event["data"]
        if event["type"] == "org.vmagent.vm.state" and data.get("vm") in self._members:
            self.phase(data["vm"], str(data.get("phase")), str(data.get("reason") or ""))

    def phase(self, vm: str, phase: str, why: str = "") -> None:
        """A member is at this phase now."""
        if self._phases.get(vm) == phase:
            return
        self._phases[vm] = phase
        if self._bars is not None:
            done = STEPS.index(phase) + 1 if phase in STEPS else None
            self._bars.update(self._tasks[vm], completed=done, phase=clean(phase))
        else:
            self._out.write(clean(f"member {self._members[vm]}  {vm}  {phase}  {why}".rstrip()) + "\n")
            self._out.flush()
