"""The schema as the one place of defaults, units and ranges.

`filled` lays the defaults under what was said; `settings` walks the schema for whoever documents it.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, Mapping, Tuple

from vmagent.core import schemas

Schema = Mapping[str, Any]


def schema() -> Schema:
    """The configuration's schema, as shipped."""
    return schemas.schema("config")


def filled(value: Any, of: Schema) -> Any:
    """`value` with the default of every setting that was not said; wrong values pass through unchanged."""
    if isinstance(value, list):
        return [filled(member, of.get("items", {})) for member in value]
    if not isinstance(value, dict):
        return value
    declared: Mapping[str, Schema] = of.get("properties", {})
    out: Dict[str, Any] = {}
    for name, setting in declared.items():
        if name in value:
            out[name] = filled(value[name], setting)
        elif "default" in setting:
            out[name] = filled(setting["default"], setting)
    named = of.get("additionalProperties")
    for name in value:
        if name not in declared:
            out[name] = filled(value[name], named if isinstance(named, dict) else {})
    return out


def settings(of: Schema, parts: Tuple[str, ...] = ()) -> Iterator[Tuple[Tuple[str, ...], Schema]]:
    """Every setting below this one, depth first; `*` stands for a name that the site chooses, or for a row."""
    for name, setting in of.get("properties", {}).items():
        yield (*parts, name), setting
        yield from settings(setting, (*parts, name))
    for key in ("additionalProperties", "items"):
        member = of.get(key)
        if isinstance(member, dict) and member.get("type") == "object":
            yield from settings(member, (*parts, "*"))


def accepted(setting: Schema) -> str:
    """What may be said here, in words."""
    items = setting.get("items")
    if isinstance(items, dict) and "properties" not in items:
        return "a list; each: " + accepted(items)
    if "accepted" in setting:
        return str(setting["accepted"])
    if "shorthand" in setting:
        members: Mapping[str, Schema] = setting["properties"]
        short = setting["shorthand"]
        return f"the {short} alone, or {{{', '.join(members)}}}; each {accepted(members[short])}"
    if "enum" in setting:
        return " | ".join(setting["enum"])
    kinds = setting.get("type", "object")
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    words = {"integer": "a whole number", "number": "a number", "string": "a text", "array": "a list", "null": "null",
             "boolean": "true or false"}
    told = [words.get(kind, "settings") for kind in kinds]
    if "minimum" in setting:
        told[0] += f", {setting['minimum']} to {setting['maximum']}"
    if setting.get("unit"):
        told[0] += f" {setting['unit']}" if "minimum" in setting else f", {setting['unit']}"
    return " or ".join(told)


def at(place: Tuple[Any, ...], of: Schema) -> Schema:
    """The schema of one place in a configuration; an empty one where nothing is declared."""
    for part in place:
        if isinstance(part, int):
            of = of.get("items", {})
            continue
        below = of.get("properties", {})
        named = of.get("additionalProperties")
        of = below[part] if part in below else named if isinstance(named, dict) else {}
    return of
