"""vmagentctl: the administrator's command on a hypervisor host.

It parses (ctl_parser.py), asks the agent on its socket (ctl_client.py, ctl_commands.py) and shows the answer
(tables.py).  Here everything is put together, and every way to fail becomes an exit code and a text that helps.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Optional, Sequence, TextIO

from vmagent.errors import Problem
from vmagent.local import ctl_bundle, ctl_doctor, ctl_parser, tables
from vmagent.local.ctl_client import Client, Unreachable
from vmagent.local.ctl_commands import COMMANDS
from vmagent.local.ctl_session import Code, Session

INTERRUPTED = 130
FAILURES = ("fault", "internal")
"""Problems after which something may have been done: exit code 1, not 3."""


def main(argv: Optional[Sequence[str]] = None, out: Optional[TextIO] = None, err: Optional[TextIO] = None) -> int:
    """The command; returns the exit code.  Wrong arguments raise SystemExit(2), as argparse does."""
    said = ctl_parser.parser().parse_args(argv)
    out, err = out or sys.stdout, err or sys.stderr
    try:
        code = _run(said, out)
        out.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `vmagentctl events | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        return Code.OK
    except Unreachable as away:
        err.write(unreachable_text(away))
        return Code.UNREACHABLE
    except Problem as problem:
        return _refused(problem, err)


def _run(said: argparse.Namespace, out: TextIO) -> int:
    screen = tables.Screen(out)
    if said.verb == "doctor":
        return ctl_doctor.run(said, out, screen)
    if said.verb == "bundle":
        return ctl_bundle.run(said, out, screen)
    with Client(said.socket or ctl_parser.DEFAULT_SOCKET) as client:
        return COMMANDS[said.verb](Session(said, client, out, screen, _ask))


def _refused(problem: Problem, err: TextIO) -> int:
    for line in tables.problems(problem.as_json()):
        err.write(f"vmagentctl: {line}\n")
    if problem.type == "usage":
        return Code.USAGE
    return Code.NO if problem.type in FAILURES else Code.REFUSED


def unreachable_text(away: Unreachable) -> str:
    """What to do when no agent answers."""
    return (
        f"vmagentctl: no agent answers on {away.path} ({away.why})\n"
        "  is it running?   systemctl status vmagent\n"
        "  start it:        systemctl start vmagent\n"
        "  its log:         journalctl -u vmagent -e\n"
        "  another socket:  vmagentctl --socket PATH ... (`directories.run` in the agent's configuration)\n"
        "  what is wrong:   vmagentctl doctor (works without the agent)\n"
        "Guests run on without the agent; nothing is stopped because it is away.\n"
    )


def _ask(question: str) -> bool:
    """A question on the terminal; nobody there means no."""
    if not sys.stdin.isatty():
        return False
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


if __name__ == "__main__":
    sys.exit(main())
