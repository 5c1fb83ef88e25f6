"""The way of started VMs to `ready`, and of a fetch to its end, for people: bars on a terminal, plain lines elsewhere;
on standard error.

Fed with events and replies; it decides nothing.  A line is written when a member's phase changes, or how far its image
is.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Sequence, TextIO, Tuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from vmagent.core import imagewords
from vmagent.core.columns import clean

STEPS = ("pending", "fetching", "starting", "running", "ready")


class Shown:
    """One display of the members of a bulk."""

    def __init__(self, ids: Sequence[str], out: TextIO) -> None:
        self._members = {vm: member for member, vm in enumerate(ids)}
        self._phases: Dict[str, Tuple[str, str]] = {}
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
            fetch = imagewords.fetch(data.get("fetch"))
            self.phase(data["vm"], str(data.get("phase")), fetch or str(data.get("reason") or ""), fetch)

    def phase(self, vm: str, phase: str, why: str = "", fetch: str = "") -> None:
        """A member is at this phase now; fetch: how far its image is."""
        if self._phases.get(vm) == (phase, fetch):
            return
        self._phases[vm] = (phase, fetch)
        if self._bars is not None:
            done = STEPS.index(phase) + 1 if phase in STEPS else None
            self._bars.update(self._tasks[vm], completed=done, phase=clean(fetch or phase))
        else:
            self._out.write(clean(f"member {self._members[vm]}  {vm}  {phase}  {why}".rstrip()) + "\n")
            self._out.flush()


class FetchShown:
    """One display of a fetch; nothing is shown of a command that fetches nothing."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._told = ""
        self._task: Optional[TaskID] = None
        self._bars = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[word]}"),
                              console=Console(file=out)) if out.isatty() else None  # fmt: skip

    def __enter__(self) -> FetchShown:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bars is not None:
            self._bars.stop()

    def reply(self, reply: Mapping[str, Any]) -> None:
        """A reply that tells how far it is moves it on."""
        result = reply.get("result") or {}
        why = f"  {result['why']}" if result.get("why") else ""
        word = clean(imagewords.fetch(result.get("fetch")) + why).strip()
        if not word or word == self._told:
            return
        self._told, id = word, clean(str(result["image"]["id"]))
        if self._bars is None:
            self._out.write(f"{id}  {word}\n")
            self._out.flush()
            return
        if self._task is None:
            self._task = self._bars.add_task(id, total=100, word=word)
        self._bars.update(self._task, completed=(result.get("fetch") or {}).get("percent") or 0, word=word)
