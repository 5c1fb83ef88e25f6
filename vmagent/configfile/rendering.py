"""The configuration for people: the commented example made from the schema, and what is in force with its sources."""

from __future__ import annotations

import textwrap
from typing import Any, Dict, Iterator, List, Mapping

import yaml

from vmagent.configfile.defaults import Schema, accepted, filled
from vmagent.configfile.loading import Parts
from vmagent.core.places import place

_WIDTH = 118
_HEAD = """\
# vmagent: every setting, with its default, unit and range.
#
# Made from the schema by `python3 -m vmagent.configfile --example`; a test holds the two equal.
# A setting that is commented out has its default; take away its # to set it.
# Drop-ins: vmagent.yaml.d/*.yaml and vmagent.d/*.yaml beside this file, sorted by name; mappings merge, lists and
# values replace, the later file wins.  An unknown setting is an error.
#
# `vmagent --check-config` tells all errors at once, each with its file, its place and what would be accepted.
# `vmagent --show-config` shows what is in force, and which file said it.
#
# No secret stands here: passcodes and keys are named by their files.
"""


def scalar(value: Any) -> str:
    """A value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return text.replace("\n...", "").strip()


def example(of: Schema) -> str:
    """The whole of etc/vmagent.yaml."""
    lines = _HEAD.splitlines()
    required = of.get("required", ())
    for name, setting in of["properties"].items():
        lines.append("")
        section = "properties" in setting
        lines += _section(name, setting) if section else _setting(name, setting, "", name in required)
    return "\n".join(lines) + "\n"


def _section(name: str, of: Schema) -> Iterator[str]:
    """A section is live, its settings are commented out: to set one, take away one #."""
    yield from _prose(of["description"], "")
    yield f"{name}:"
    for index, (member, setting) in enumerate(of["properties"].items()):
        if index:
            yield ""
        yield from _setting(member, setting, "  ", member in of.get("required", ()))


def _prose(text: str, indent: str) -> List[str]:
    mark = indent + "# "
    return textwrap.wrap(text, _WIDTH, initial_indent=mark, subsequent_indent=mark, break_on_hyphens=False)


def fact(of: Schema, required: bool) -> str:
    """What is taken when a setting is not given, and what would be accepted; of a mapping its members say that."""
    if "shorthand" in of:
        return accepted(of)  # the line below shows all of its default
    default = "required" if required else f"default: {scalar(of['default'])}" if "default" in of else "optional"
    nested = of.get("type") in ("object", ["object", "null"]) or "properties" in of.get("items", {})
    return default if nested else f"{default}; accepted: {accepted(of)}"


def _default(of: Schema) -> Any:
    """A setting with a shorthand is one line, whole."""
    return filled(of["default"], of) if "shorthand" in of else of["default"]


def _setting(name: str, of: Schema, indent: str, required: bool) -> Iterator[str]:
    yield from _prose(of["description"], indent)
    shown = of["examples"][0] if "examples" in of else _default(of)
    if "properties" not in of or shown:
        yield from _prose(fact(of, required), indent)
    yield from _value(name, of, shown, indent, 0)


def _commented(name: str, of: Schema, shown: Any, indent: str, depth: int, required: bool) -> Iterator[str]:
    """A setting below a commented one; its explanation is a comment of YAML even without the leading #."""
    deeper = "  " * depth
    for line in [*_prose(of["description"], deeper), *_prose(fact(of, required), deeper)]:
        yield f"{indent}#{line}"
    yield from _value(name, of, shown, indent, depth)


def _value(name: str, of: Schema, shown: Any, indent: str, depth: int) -> Iterator[str]:
    deeper = "  " * depth
    start = f"{indent}#{deeper}"
    named = of.get("additionalProperties")
    rows = of.get("items", {})
    if isinstance(shown, dict) and isinstance(named, dict):
        yield f"{start}{name}:"
        for key, member in shown.items():
            yield f"{start}  {key}:"
            yield from _members(named, member, indent, depth + 2)
    elif isinstance(shown, dict) and "properties" in of and "shorthand" not in of:
        yield f"{start}{name}:"
        yield from _members(of, shown, indent, depth + 1)
    elif isinstance(shown, list) and "properties" in rows:
        yield f"{start}{name}:"
        for member in shown:
            yield f"{start}  -"
            yield from _members(rows, member, indent, depth + 2)
    else:
        yield f"{start}{name}: {scalar(shown)}"


def _members(of: Schema, shown: Mapping[str, Any], indent: str, depth: int) -> Iterator[str]:
    for name, setting in of["properties"].items():
        value = shown.get(name, setting.get("default"))
        yield from _commented(name, setting, value, indent, depth, name in of.get("required", ()))


def show(values: Any, sources: Mapping[str, str]) -> str:
    """What is in force as YAML, each line with the file that said it."""
    lines: List[str] = []
    _show(values, sources, (), "", lines)
    return "\n".join(lines) + "\n"


def _show(values: Dict[str, Any], sources: Mapping[str, str], parts: Parts, indent: str, lines: List[str]) -> None:
    for name, value in values.items():
        here: Parts = (*parts, name)
        if isinstance(value, dict) and value:
            lines.append(f"{indent}{scalar(name)}:")
            _show(value, sources, here, indent + "  ", lines)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{indent}{scalar(name)}:  # {sources.get(place(here), 'default')}")
            lines += [f"{indent}- {scalar(row)}" for row in value]
        else:
            lines.append(f"{indent}{scalar(name)}: {scalar(value)}  # {sources.get(place(here), 'default')}")
