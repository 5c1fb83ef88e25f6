"""The manual pages: one of every command, from its parser; one of the configuration, from its schema.

In an epilog a paragraph with a heading of its own (`examples:`) becomes a section of that name, or belongs to its
sub-command; the exit codes stand once, at the program.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, Iterator, List, Mapping, Set, Tuple

from vmagent import __version__
from vmagent.configfile.rendering import fact
from vmagent.manual import roff
from vmagent.manual.trees import Argument, Command, Node, tree

_SECTIONS = {"exit codes": "EXIT STATUS", "examples": "EXAMPLES", "signals": "SIGNALS"}
_EXPLAINED = "/usr/share/doc/vmagent"
Blocks = Dict[str, List[str]]


def of_command(command: Command) -> str:
    """The page of a program and all its sub-commands."""
    top, *below = tree(command.parser())
    prose, blocks = _epilog(top.epilog)
    lines = [roff.title(command.name, command.section, __version__), *_name(command.name, top.description)]
    lines += [roff.heading("SYNOPSIS"), _synopsis(command.name, top)]
    lines += [roff.heading("DESCRIPTION"), *roff.paragraph(top.description)]
    for one in prose:
        lines += [".PP", *roff.paragraph(one)]
    lines += [roff.heading("OPTIONS"), *_arguments(top.arguments)]
    if below:
        lines += [roff.heading("COMMANDS"), *roff.paragraph("Every command takes the options above, too.")]
    common = {one.flags for one in top.arguments}
    for node in below:
        lines += _sub_command(command.name, node, common)
    for title, body in blocks.items():
        lines += [roff.heading(_SECTIONS.get(title, title.upper())), *roff.literal(body)]
    return _ended(lines, command.also)


def of_configuration(schema: Mapping[str, Any]) -> str:
    """vmagent.yaml(5): every setting by its place, with what the commented example says of it."""
    lines = [roff.title("vmagent.yaml", 5, __version__), *_name("vmagent.yaml", "Configuration of vmagent.")]
    lines += [roff.heading("DESCRIPTION"), *roff.paragraph("Every setting of the agent, as YAML."), ".PP"]
    lines += roff.paragraph(
        "It stands in /etc/vmagent/vmagent.yaml; vmagent.d/*.yaml beside it are laid over it, sorted by name. Below, "
        "NAME stands for a name that the site chooses, [] for each member of a list."
    )
    lines.append(roff.heading("SETTINGS"))
    for place, setting, required in settings(schema):
        lines += roff.tagged(roff.bold(place), setting.get("description", ""))
        lines += [".br", *roff.paragraph(_stated(setting, required))]
    lines += [roff.heading("FILES"), *roff.literal(["/etc/vmagent/vmagent.yaml", "/etc/vmagent/vmagent.d/*.yaml"])]
    return _ended(lines, ("vmagent(8)", "vmagentctl(1)"))


def settings(schema: Mapping[str, Any], above: str = "") -> Iterator[Tuple[str, Mapping[str, Any], bool]]:
    """(place, its schema, whether it is required) of every setting, in the order of the schema."""
    for name, setting in schema.get("properties", {}).items():
        place = f"{above}.{name}" if above else name
        yield place, setting, name in schema.get("required", ())
        yield from settings(setting, place)
        if isinstance(setting.get("additionalProperties"), dict):
            yield from settings(setting["additionalProperties"], f"{place}.NAME")
        if isinstance(setting.get("items"), dict):
            yield from settings(setting["items"], f"{place}[]")


def _stated(setting: Mapping[str, Any], required: bool) -> str:
    if "properties" in setting and "shorthand" not in setting:
        return "required" if required else "optional"  # its members say the rest
    return fact(dict(setting), required)


def _name(name: str, description: str) -> List[str]:
    return [roff.heading("NAME"), rf"{roff.text(name)} \- {roff.text(description.rstrip('.'))}"]


def _synopsis(program: str, node: Node) -> str:
    parts = [roff.bold(" ".join((program, *node.path)))]
    optional = [one for one in node.arguments if one.flags and not one.required]
    parts += [f"[{roff.italic('OPTION')}...]"] if optional else []
    parts += [_tag(one) for one in node.arguments if one.flags and one.required]
    parts += [roff.italic(one.value) for one in node.arguments if not one.flags]
    parts += [roff.italic("COMMAND") + " ..."] if node.commands else []
    return " ".join(parts)


def _tag(one: Argument) -> str:
    shown = ", ".join(roff.bold(flag) for flag in one.flags)
    return " ".join(part for part in (shown, roff.italic(one.value) if one.value else "") if part)


def _arguments(arguments: Iterable[Argument]) -> Iterator[str]:
    for one in arguments:
        if one.flags or one.help:
            yield from roff.tagged(_tag(one), one.help)


def _sub_command(program: str, node: Node, common: Set[Tuple[str, ...]]) -> Iterator[str]:
    prose, blocks = _epilog(node.epilog)
    yield roff.heading(" ".join(node.path), "SS")
    yield _synopsis(program, node)
    yield ".PP"
    yield from roff.paragraph(node.description)
    for one in prose:
        yield from (".PP", *roff.paragraph(one))
    yield from _arguments(one for one in node.arguments if not one.flags or one.flags not in common)
    if "examples" in blocks:
        yield ".PP"
        yield from roff.literal(blocks["examples"])


def _epilog(epilog: str) -> Tuple[List[str], Blocks]:
    """(paragraphs of prose, blocks by their heading)."""
    prose: List[str] = []
    blocks: Blocks = {}
    for part in epilog.strip("\n").split("\n\n"):
        first, *rest = part.splitlines() or [""]
        name, _, told = first.partition(": ")
        if told and name in _SECTIONS:  # all on one line
            first, rest = f"{name}:", [told, *rest]
        if first.endswith(":") and rest:
            blocks[first[:-1]] = [line[2:] if line.startswith("  ") else line for line in rest]
        elif part:
            prose.append(part)
    return prose, blocks


def _ended(lines: List[str], also: Tuple[str, ...]) -> str:
    lines.append(roff.heading("SEE ALSO"))
    lines += [roff.text(", ".join(also)) + ".", ".PP", f"The handbook is in {roff.text(_EXPLAINED)}."]
    return "\n".join(lines) + "\n"
