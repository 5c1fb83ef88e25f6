"""JSON Schema (draft-07) of everything that comes in or goes out, and errors a person can act on.

A file `schema/NAME.json` is the contract; it may refer to itself (`#/definitions/x`) and to its neighbours
(`common.json#/definitions/x`).  References are written out while loading, so that every version of jsonschema from
3.2 on sees one flat schema and none ever looks for a file or a host.  Three things differ from jsonschema's defaults,
the same way in all versions: 2.0 is not an integer (FACTS F23), NaN and infinities are no numbers, and `$` in a
`pattern` is the end of the text, not the place before a last line feed.

A schema may say in `accepted` what it takes, in words; otherwise the words are made from its keywords.
Restrict member names with `propertyNames`, not `patternProperties`: only the former obeys the rule about `$`.
"""

from __future__ import annotations

import json
import math
import pkgutil
import re
from functools import cache
from itertools import islice
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Pattern, Tuple

from jsonschema import Draft7Validator, ValidationError, validators

from vmagent.core.places import place, quoted
from vmagent.errors import Problem, Problems

MOST_PROBLEMS = 20

_NAME = re.compile(r"[a-z]+(\.[a-z_]+)*")
_ANNOTATIONS = {"$ref", "description", "title", "default", "examples", "accepted"}


def check(name: str, value: Any, at: str = "") -> None:
    """Nothing, or `Problems` of type `schema`: each with `path` (below `at`) and, in words, what is `accepted`."""
    found: Dict[Tuple[str, str], Problem] = {}
    errors = list(islice(_validator(name).iter_errors(value), MOST_PROBLEMS))
    # Of another type altogether: what else its schema asks for is no news.
    alien = {tuple(error.absolute_path) for error in errors if error.validator == "type"}
    for error in errors:
        if error.validator != "type" and tuple(error.absolute_path) in alien:
            continue
        for problem in _problems(error, at):
            found.setdefault((problem.fields["path"], problem.detail), problem)
    if found:
        raise Problems([found[key] for key in sorted(found)][:MOST_PROBLEMS])


def errors(name: str, value: Any) -> Iterator[ValidationError]:
    """jsonschema's own errors, by the same strict rules, for a caller that words them itself."""
    found: Iterator[ValidationError] = _validator(name).iter_errors(value)
    return found


@cache
def schema(name: str) -> Mapping[str, Any]:
    """The schema with its references written out; shared, not to be changed.  LookupError: there is none."""
    flat = _inlined(_file(name), name, ())
    return {key: value for key, value in flat.items() if key != "definitions"}


@cache
def _file(name: str) -> Mapping[str, Any]:
    if not _NAME.fullmatch(name):
        raise LookupError(f"no schema is called {quoted(name)}")
    try:
        raw = pkgutil.get_data("vmagent", f"schema/{name}.json")
    except OSError:
        raw = None
    if raw is None:
        raise LookupError(f"no schema is called {quoted(name)}")
    document: Mapping[str, Any] = json.loads(raw)
    return document


def _inlined(node: Any, name: str, trail: Tuple[Tuple[str, str], ...]) -> Any:
    """`node` of file `name` with every reference replaced by what it means; `trail` finds circles."""
    if isinstance(node, list):
        return [_inlined(item, name, trail) for item in node]
    if not isinstance(node, dict):
        return node
    reference = node.get("$ref")
    if not isinstance(reference, str):
        return {key: _inlined(value, name, trail) for key, value in node.items()}
    if set(node) - _ANNOTATIONS:
        raise ValueError(f"schema {name}: draft-07 ignores what stands beside {reference}")
    file, _, pointer = reference.partition("#")
    target = (file[: -len(".json")] if file else name, pointer)
    if target in trail:
        raise ValueError(f"schema {name}: {reference} refers to itself")
    meant = _inlined(_pointed(*target), target[0], (*trail, target))
    return {**meant, **{key: value for key, value in node.items() if key != "$ref"}}


def _pointed(name: str, pointer: str) -> Any:
    node: Any = _file(name)
    for part in pointer.split("/")[1:]:
        node = node[part]
    return node


# ---- the validator: one behaviour for all versions ----


def _is_integer(_checker: Any, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(checker: Any, value: Any) -> bool:
    return _is_integer(checker, value) or (isinstance(value, float) and math.isfinite(value))


@cache
def _pattern(pattern: str) -> Pattern[str]:
    whole = pattern[:-1] + r"\Z" if pattern.endswith("$") else pattern
    return re.compile(whole, re.ASCII)


def _check_pattern(validator: Any, pattern: str, value: Any, _schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(value, "string") and not _pattern(pattern).search(value):
        yield ValidationError(f"does not match {pattern}")


_extend: Any = validators.extend
_Strict = _extend(
    Draft7Validator,
    validators={"pattern": _check_pattern},
    type_checker=Draft7Validator.TYPE_CHECKER.redefine("integer", _is_integer).redefine("number", _is_number),
)


@cache
def _validator(name: str) -> Any:
    return _Strict(schema(name))


# ---- words ----


def _problems(error: Any, at: str) -> Iterator[Problem]:
    """One error of jsonschema as Problems; decided on its keyword, never on its text."""
    parts = list(error.absolute_path)
    value, rules = error.instance, error.schema
    if error.validator == "additionalProperties" and error.validator_value is False:
        known = sorted(rules.get("properties", {}))
        for name in value:
            if name not in known:
                yield _problem(place([*parts, name], at), "is not known here", ", ".join(known) or "no members")
    elif error.validator == "required":
        for name in error.validator_value:
            if name not in value:
                accepted = _accepted(rules.get("properties", {}).get(name, {})) or "any value"
                yield _problem(place([*parts, name], at), f"is missing; give {accepted}", accepted)
    else:
        accepted = _ACCEPTED_BY.get(error.validator, _by_rules)(error)
        yield _problem(place(parts, at), f"must be {accepted}{_not_what(error)}", accepted)


def _problem(path: str, what: str, accepted: str) -> Problem:
    return Problem("schema", f"at {path or 'the top'}: {what}", path=path, accepted=accepted)


_TYPES = {
    "integer": "an integer",
    "number": "a number",
    "string": "a text",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
    "object": "an object",
}


def _not_what(error: Any) -> str:
    """What was there instead.  Texts are repeated only where they are words of the protocol: others may be secrets.

    What a schema calls `writeOnly` is secret whatever its type.
    """
    value = error.instance
    if error.schema.get("writeOnly"):
        return ""
    if isinstance(value, (bool, int, float)) or value is None:
        return f", not {quoted(value)}"
    if isinstance(value, str) and error.validator in ("enum", "const", "pattern"):
        return f", not {quoted(value)}"
    if error.validator == "type":
        kind = "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
        return f", not {_TYPES[kind]}"
    return ""


def _by_rules(error: Any) -> str:
    return _accepted(error.schema) or f"within {error.validator} {quoted(error.validator_value)}"


def _alternatives(error: Any) -> str:
    """`oneOf` and `anyOf` over members: each branch is named by the members it requires."""
    branches: List[Any] = error.validator_value
    names = [", ".join(branch.get("required", ())) or _accepted(branch) for branch in branches]
    return ("exactly one of: " if error.validator == "oneOf" else "at least one of: ") + " | ".join(names)


_ACCEPTED_BY: Mapping[str, Callable[[Any], str]] = {
    "oneOf": _alternatives,
    "anyOf": _alternatives,
    "uniqueItems": lambda error: "a list in which nothing stands twice",
}


def _accepted(rules: Mapping[str, Any]) -> str:
    """In words what a schema takes: `an integer, 1 to 64`."""
    if "accepted" in rules:
        return str(rules["accepted"])
    if "enum" in rules:
        return "one of " + ", ".join(quoted(word) for word in rules["enum"])
    if "const" in rules:
        return quoted(rules["const"])
    types = rules.get("type", ())
    words = [_TYPES[kind] for kind in ([types] if isinstance(types, str) else types)]
    sizes = [
        _span(rules.get("minimum"), rules.get("maximum"), ""),
        _span(rules.get("minLength"), rules.get("maxLength"), " characters"),
        _span(rules.get("minItems"), rules.get("maxItems"), " items"),
        f"like {rules['pattern']}" if "pattern" in rules else "",
    ]
    return ", ".join([" or ".join(words)] * bool(words) + [size for size in sizes if size])


def _span(low: Optional[float], high: Optional[float], unit: str) -> str:
    if low is None:
        return "" if high is None else f"at most {high}{unit}"
    return f"at least {low}{unit}" if high is None else f"{low} to {high}{unit}"
