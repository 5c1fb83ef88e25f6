"""`vmagentctl top`: asks again and again, and shows it in place.

Rules: at most one query per second; the terminal is written to once per answer, whole, so that nothing flickers; `q`
ends it, and the terminal is then as it was.  Where there is no terminal the lines come one after the other.
"""

from __future__ import annotations

import json
import os
import select
import sys
import termios
import tty
from typing import Any, List, Optional, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from vmagent.errors import Problem
from vmagent.local import toplines
from vmagent.local.ctl_session import Code, Session
from vmagent.local.tables import STYLES

LEAST_S = 1


class Keys:
    """The keyboard, key by key, while it is entered.  Where stdin is no terminal there is none: only time passes."""

    def __init__(self, source: Optional[TextIO] = None) -> None:
        self._source = source or sys.stdin
        self._before: Optional[List[Any]] = None

    def __enter__(self) -> Keys:
        if self._source.isatty():
            self._before = termios.tcgetattr(self._source)
            tty.setcbreak(self._source)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._before is not None:
            termios.tcsetattr(self._source, termios.TCSADRAIN, self._before)

    def quit_within(self, seconds: float) -> bool:
        """Wait so long; at once True when `q` is pressed.  Any other key shows the newest at once."""
        ready, _, _ = select.select([self._source] if self._before is not None else [], [], [], seconds)
        if not ready:
            return False
        typed = os.read(self._source.fileno(), 64)
        return not typed or b"q" in typed.lower()


def top(session: Session) -> int:
    said = session.said
    if said.every < LEAST_S:
        raise Problem("usage", f"--every is at least {LEAST_S}s", path="--every")
    if said.once or said.json or not session.screen.terminal:
        return _plain(session)
    with Keys() as keys, Live(console=Console(file=session.out, highlight=False), screen=True,
                              auto_refresh=False) as live:
        while True:
            size = live.console.size
            live.update(_picture(_lines(session, size.width, size.height)), refresh=True)
            if keys.quit_within(said.every):
                return Code.OK


def _plain(session: Session) -> int:
    while True:
        answer = session.client.ask("top")
        rows = toplines.chosen(answer["vms"], session.said.filter, session.said.sort)
        if session.said.json:
            session.out.write(json.dumps({**answer, "vms": rows}) + "\n")
        else:
            session.out.write("\n".join(toplines.lines(answer, rows)) + "\n")
        session.out.flush()
        if session.said.once:
            return Code.OK
        session.pause(session.said.every)


def _lines(session: Session, width: int, height: int) -> List[str]:
    answer = session.client.ask("top")
    rows = toplines.chosen(answer["vms"], session.said.filter, session.said.sort)
    return [*toplines.lines(answer, rows, width, height - 1), "q ends"]


def _picture(lines: List[str]) -> Text:
    """The head bold, each phase in its colour."""
    picture = Text(no_wrap=True, overflow="crop")
    for number, line in enumerate(lines):
        words = [word for word in line.split() if word in STYLES]
        picture.append(line + ("\n" if number < len(lines) - 1 else ""),
                       style="bold" if number == 1 else STYLES[words[0]] if words else "")
    return picture
