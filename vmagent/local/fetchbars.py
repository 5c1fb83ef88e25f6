"""How far fetches are, while one waits: moving bars on a terminal, elsewhere a line whenever something changed."""

from __future__ import annotations

from typing import Any, Dict, Mapping, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from vmagent.core import imagewords
from vmagent.core.columns import clean


class Bars:
    """A display to be entered.  An image that `show` does not name any more is over."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._told: Dict[str, str] = {}
        self._tasks: Dict[str, TaskID] = {}
        self._bars = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[word]}"),
                              console=Console(file=out)) if out.isatty() else None  # fmt: skip

    def __enter__(self) -> Bars:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, fetches: Mapping[str, Mapping[str, Any]]) -> None:
        """fetches: image id -> {step, percent}, as in the protocol."""
        for id, how_far in fetches.items():
            self._one(id, imagewords.fetch(how_far), how_far.get("percent"))
        for id in set(self._told) - set(fetches):
            self._one(id, "over", 100)

    def _one(self, id: str, word: str, percent: Any) -> None:
        if self._told.get(id) == word:
            return
        self._told[id] = word
        if self._bars is None:
            self._out.write(clean(f"{id}  {word}") + "\n")
            self._out.flush()
            return
        if id not in self._tasks:
            self._tasks[id] = self._bars.add_task(clean(id), total=100, word=word)
        self._bars.update(self._tasks[id], completed=percent or 0, word=word)
