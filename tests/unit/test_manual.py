"""The manual says everything that the parsers and the schema have, and its source is harmless whatever they say."""

from __future__ import annotations

import argparse
import re
from typing import Any, Iterator, List, Tuple

import pytest

from vmagent.configfile.defaults import schema
from vmagent.manual import pages, roff
from vmagent.manual.__main__ import made
from vmagent.manual.trees import COMMANDS, Command, tree

every = pytest.mark.parametrize("command", COMMANDS, ids=lambda one: str(one.name))


def shown(page: str) -> str:
    """The text of a page as a reader sees it, without its layout."""
    plain = re.sub(r"\\f[BIR]", "", page).replace(r"\-", "-").replace(r"\e", "\\")
    for source, sign in ((r"\(aq", "'"), (r"\(ti", "~"), (r"\(ga", "`"), (r"\(ha", "^"), (r"\(dq", '"')):
        plain = plain.replace(source, sign)
    return re.sub(r"\s+", " ", plain.replace(r"\&", ""))


def flags(parser: argparse.ArgumentParser, path: Tuple[str, ...] = ()) -> Iterator[Tuple[Tuple[str, ...], str]]:
    """(sub-command, flag) of all there are, found without the code under test: by what the help says."""
    for line in parser.format_help().split("\n\nex")[0].splitlines():
        for flag in re.findall(r"(?:^  |, )(--?[a-z][\w-]*)", line):
            yield path, flag
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from flags(below, (*path, name))


@every
def test_every_command_and_option_is_in_its_page(command: Command) -> None:
    page = pages.of_command(command)
    found = set(flags(command.parser()))
    assert len(found) >= 6
    parts = re.split(r'^\.SS "(.+)"$', page, flags=re.MULTILINE)
    texts = dict(zip(["", *parts[1::2]], parts[0::2]))
    for path, flag in found:
        name = " ".join(path).replace("-", r"\-")
        assert name in texts, f"{path} has no section"
        assert roff.bold(flag) in texts[name] or roff.bold(flag) in texts[""], f"{path} {flag}"


@every
def test_every_help_is_in_its_page(command: Command) -> None:
    said = shown(pages.of_command(command))
    for node in tree(command.parser()):
        assert node.description and " ".join(node.description.split()) in said, node.path
        for one in node.arguments:
            assert one.help in said, one


@every
def test_exit_codes_stand_once(command: Command) -> None:
    page = pages.of_command(command)
    assert page.count('.SH "EXIT STATUS"') == 1 and "exit codes:" not in page


def places(of: Any, above: str = "") -> Iterator[str]:
    """Every place with a description below this schema, found by walking all of it."""
    if isinstance(of, dict):
        for name, value in of.items():
            if name == "properties":
                for member, setting in value.items():
                    yield member
                    yield from places(setting)
            elif name in ("items", "additionalProperties"):
                yield from places(value)


def test_every_setting_is_in_the_page_of_the_configuration() -> None:
    page = pages.of_configuration(schema())
    named: List[str] = [place for place, _, _ in pages.settings(schema())]
    assert sorted(place.split(".")[-1].replace("[]", "") for place in named) == sorted(places(schema()))
    for place in named:
        assert roff.bold(place) in page, place
    assert "accepted: a whole number, 1 to 4 calls" in shown(page)
    assert shown(page).count("required") >= 2


@pytest.mark.parametrize("line", [".so /etc/passwd", "'br", r"\*[x]", "a - b", 'say "x"', "näher", ""])
def test_text_stays_text(line: str) -> None:
    for source in roff.paragraph(line) + list(roff.literal([line]))[2:-2]:
        assert not source.startswith((".", "'")) and source.isascii()
        assert not re.search(r"\\(?![e(&\[-])", source)


def test_pages_and_completions_of_all() -> None:
    names = set(made())
    assert {f"man/{name}" for name in ("man5/vmagent.yaml.5", "man8/vmagent.8", "man1/vmagentctl.1")} <= names
    assert {f"bash-completion/{command.name}" for command in COMMANDS} <= names
