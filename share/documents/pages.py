"""Pages from the schemas: one per verb, one per published message, one of all settings.  Pure.

A page says no more than its schema does; whoever finds it wanting writes a better `description` there.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

from vmagent.configfile import defaults
from vmagent.core import events, schemas
from vmagent.core.commands import VERBS, Verb

Schema = Mapping[str, Any]
_KINDS = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false", "array": "list",
          "object": "object", "null": "null"}
_BOUNDS = {"minimum": "from", "maximum": "to", "maxLength": "of at most", "maxItems": "of at most"}


def pages() -> Dict[str, str]:
    """Path below the documents' folder -> Markdown."""
    made = {f"messages/{name}.md": _message(name) for name in sorted(events.TYPES)}
    made.update({f"verbs/{verb.name}.md": _verb(verb) for verb in VERBS.values()})
    made["verbs/reply.md"] = _page("reply", schemas.schema("reply"))
    made["messages/envelope.md"] = _page("The envelope", schemas.schema("cloudevent"))
    made["settings.md"] = _settings()
    return made


def _message(name: str) -> str:
    return _page(events.PREFIX + name, schemas.schema(f"event.{name}"))


def _verb(verb: Verb) -> str:
    notes = [f"{verb.title[0].upper()}{verb.title[1:]}."]
    if verb.topic:
        notes.append("It is also taken on the topic to every host.")
    if verb.selects:
        notes.append("It is for the VMs that its selector names.")
    return _page(verb.name, schemas.schema(verb.name), " ".join(notes))


def _page(title: str, schema: Schema, text: str = "") -> str:
    head = [f"# `{title}`" if "." in title else f"# {title}", "", text or f"{schema['title']}.", ""]
    return "\n".join([*head, *_table(members(schema)), ""])


def members(schema: Schema, above: str = "") -> Iterator[Tuple[str, Schema, bool]]:
    """(place, its schema, whether it must be there), depth first; `x[]` is each of a list, `x.*` each of free names."""
    required = set(schema.get("required", ()))
    for name, of in schema.get("properties", {}).items():
        yield above + name, of, name in required
        yield from _below(above + name, of)
    named = schema.get("additionalProperties")
    if isinstance(named, dict) and named:
        yield above + "*", named, False
        yield from _below(above + "*", named)


def _below(place: str, of: Schema) -> Iterator[Tuple[str, Schema, bool]]:
    for inner, mark in ((of, ""), (of.get("items", {}), "[]")):
        if isinstance(inner, dict):
            yield from members(inner, f"{place}{mark}.")


def _table(rows: Iterator[Tuple[str, Schema, bool]]) -> List[str]:
    lines = [f"| `{place}` | {kind(of)} | {'yes' if must else ''} | {_cell(str(of.get('description', '')))} |"
             for place, of, must in rows]
    return ["| member | kind | always | meaning |", "|---|---|---|---|", *lines] if lines else ["No members."]


def kind(of: Schema) -> str:
    """What may stand there, in words."""
    if "const" in of:
        return f"`{of['const']}`"
    if "enum" in of:
        return " \\| ".join("null" if each is None else f"`{each}`" for each in of["enum"])
    named = of.get("type", ())
    words = [_KINDS[each] for each in ([named] if isinstance(named, str) else named)]
    bounds = [f"{word} {of[key]}" for key, word in _BOUNDS.items() if key in of]
    return " ".join([" or ".join(words), *bounds]).strip() or "any"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _settings() -> str:
    lines = ["# Settings", "", "All settings of the agent with their defaults; `etc/vmagent.yaml` has them commented.",
             "", "| setting | accepted | default | meaning |", "|---|---|---|---|"]
    for parts, of in defaults.settings(defaults.schema()):
        lines.append(f"| `{'.'.join(parts)}` | {_cell(defaults.accepted(of))} | {_default(of)} |"
                     f" {_cell(str(of.get('description', '')))} |")
    return "\n".join([*lines, ""])


def _default(of: Schema) -> str:
    if "default" not in of:
        return "none: it must be set"
    value = of["default"]
    empty: Sequence[Any] = ("", [], {}, None)
    return "" if value in empty and not isinstance(value, (bool, int)) else f"`{_cell(str(value))}`"
