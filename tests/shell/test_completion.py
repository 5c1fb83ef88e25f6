"""The completions in a real bash, held against the parsers."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

import pytest

from vmagent.manual import completion
from vmagent.manual.trees import COMMANDS, Command

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
every = pytest.mark.parametrize("command", COMMANDS, ids=lambda one: str(one.name))
ASK = """
ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); %s; echo "${COMPREPLY[*]}"; }
while read -r line; do eval "ask $line"; done
"""


def offered(command: Command, lines: Sequence[Sequence[str]], cwd: Path) -> List[List[str]]:
    """What is offered for the last word of each line."""
    function = "_" + command.name.replace("-", "_")
    script = completion.of_command(command) + ASK % function
    asked = "\n".join(" ".join(f"'{word}'" for word in line) for line in lines) + "\n"
    done = subprocess.run(["bash", "--norc", "-c", script], input=asked, capture_output=True, text=True, timeout=60,
                          cwd=cwd, check=True)  # fmt: skip
    assert done.stderr == ""
    return [line.split() for line in done.stdout.split("\n")[:-1]]


Parsers = Iterator[Tuple[Tuple[str, ...], argparse.ArgumentParser]]


def parsers(parser: argparse.ArgumentParser, path: Tuple[str, ...] = ()) -> Parsers:
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from parsers(below, (*path, name))


@every
def test_every_option_of_every_command_is_offered(command: Command, tmp_path: Path) -> None:
    known = list(parsers(command.parser()))
    lines = [[command.name, *path, "-"] for path, _ in known]
    for (path, parser), said in zip(known, offered(command, lines, tmp_path)):
        wanted = [flag for action in parser._actions for flag in action.option_strings]
        assert sorted(said) == sorted(wanted), path


@every
def test_every_sub_command_is_offered(command: Command, tmp_path: Path) -> None:
    wanted: Dict[Tuple[str, ...], List[str]] = {}
    for path, parser in parsers(command.parser()):
        subs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        wanted[path] = [name for sub in subs for name in sub.choices]
    lines = [[command.name, *path, ""] for path in wanted if wanted[path]]
    said = offered(command, lines, tmp_path) if lines else []
    assert said == [names for names in wanted.values() if names]


def one(line: str, command: str, cwd: Path) -> List[str]:
    (known,) = (each for each in COMMANDS if each.name == command)
    (said,) = offered(known, [[word.strip('"') for word in line.split(" ")]], cwd)
    return said


@pytest.fixture()
def files(tmp_path: Path) -> Path:
    (tmp_path / "site.yaml").touch()
    (tmp_path / "status").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("vmagentctl dra", ["drain"]),
        ("vmagentctl --socket dra", []),  # the value of an option, not a command
        ("vmagentctl --json dra", ["drain"]),
        ("vmagentctl --socket = /x dra", ["drain"]),
        ("vmagentctl revoke el9 --action s", ["stop"]),
        ("vmagentctl images ev", ["evict"]),
        ("vmagentctl doctor --config si", ["site.yaml"]),
        ("vmagentctl doctor --config = si", ["site.yaml"]),
        ("vmagentctl kill --grace ", []),
        ("vmagent-site pki issue x --kind ", ["client", "server", "host"]),
        ("vmagent-site pki init si", ["site.yaml"]),
        ("vmagent --config si", ["site.yaml"]),
        ("vmagent --gu", ["--guard"]),
    ],
)
def test_what_is_offered(line: str, said: List[str], files: Path) -> None:
    assert one(line, line.split()[0], files) == said
