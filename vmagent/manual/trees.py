"""The commands and their parsers as plain values.

argparse has no public way to look into a parser; the members that are read here (`_actions`, `choices` of its
sub-commands, `_get_formatter`) are the same from Python 3.9 on, and the tests would see one that is gone.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Tuple

from vmagent import __main__ as agent
from vmagent.export import check_vmagent
from vmagent.local import ctl_parser
from vmagent.site import arguments as site
from vmagent.site import check_vm_creation

FILE_WORDS = ("FILE", "DIRECTORY", "PATH")
"""Metavariables whose value is a file's name."""


@dataclass(frozen=True)
class Command:
    """A program with a manual page in this section.  also: other pages of ours that its readers want."""

    name: str
    section: int
    parser: Callable[[], argparse.ArgumentParser]
    also: Tuple[str, ...]


COMMANDS: Tuple[Command, ...] = (
    Command("vmagent", 8, agent.arguments, ("vmagentctl(1)", "vmagent.yaml(5)", "systemctl(1)", "virsh(1)")),
    Command("vmagentctl", 1, ctl_parser.parser, ("vmagent(8)", "vmagent.yaml(5)", "vmagent-site(1)")),
    Command("vmagent-site", 1, site.parser, ("vmagentctl(1)", "vmagent(8)")),
    Command("check_vmagent", 8, check_vmagent.parser, ("check_vm_creation(8)", "vmagent(8)")),
    Command("check_vm_creation", 8, check_vm_creation.parser, ("check_vmagent(8)", "vmagent-site(1)")),
)


@dataclass(frozen=True)
class Argument:
    """One option or operand.  flags: () = an operand; value: its metavariable, "" = a switch."""

    flags: Tuple[str, ...]
    value: str
    help: str
    required: bool
    choices: Tuple[str, ...]
    is_file: bool


@dataclass(frozen=True)
class Node:
    """One parser of the tree.  path: the sub-commands that lead to it, () = the program itself."""

    path: Tuple[str, ...]
    description: str
    epilog: str
    arguments: Tuple[Argument, ...]
    commands: Tuple[str, ...]


def tree(parser: argparse.ArgumentParser, path: Tuple[str, ...] = ()) -> Iterator[Node]:
    """The program and every sub-command, parents first."""
    subs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    commands = tuple(name for sub in subs for name in sub.choices)
    own = tuple(_argument(parser, action) for action in parser._actions if action not in subs and _shown(action))
    yield Node(path, parser.description or "", parser.epilog or "", own, commands)
    for sub in subs:
        abouts = {choice.dest: choice.help or "" for choice in sub._choices_actions}
        for name, below in sub.choices.items():
            if below.description is None:
                below.description = _sentence(abouts.get(name, ""))
            yield from tree(below, (*path, name))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." if text else ""


def _shown(action: argparse.Action) -> bool:
    return action.help is not argparse.SUPPRESS


def _argument(parser: argparse.ArgumentParser, action: argparse.Action) -> Argument:
    formatter: Any = parser._get_formatter()
    flags = tuple(action.option_strings)
    value = "" if action.nargs == 0 else _value(action)
    choices = tuple(str(one) for one in action.choices or ())
    help = formatter._expand_help(action) if action.help else ""
    word = value.split()[0] if value else ""
    is_file = action.type is Path or word.rstrip(".]") in FILE_WORDS
    return Argument(flags, value, re.sub(r"\s+", " ", help), bool(action.required), choices, is_file)


def _value(action: argparse.Action) -> str:
    default = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    word = action.metavar if isinstance(action.metavar, str) else default
    several = {"*": f"[{word}...]", "+": f"{word}...", "?": f"[{word}]"}
    return several.get(str(action.nargs), word)
