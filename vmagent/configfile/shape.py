"""The schema's verdict in words a person can act on: what was said, where, and what would be accepted instead.

An unknown setting is an error: an option that silently does nothing is how limits get lost (FACTS 4, row 22).
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any, Dict, Iterator, List, Tuple

from jsonschema import Draft7Validator, validators

from vmagent.configfile.defaults import Schema, accepted, at, settings
from vmagent.configfile.loading import Complaint, Parts
from vmagent.core.places import quoted

_LOGIN = re.compile("//[^/]*@")  # a passcode in a URL is refused, and not repeated in a log


def _whole(_checker: Any, value: Any) -> bool:
    """2.0 is no whole number here, though draft-07 says so (FACTS F23)."""
    return isinstance(value, int) and not isinstance(value, bool)


_CHECKER = Draft7Validator.TYPE_CHECKER.redefine("integer", _whole)
_Validator: Any = validators.extend(Draft7Validator, type_checker=_CHECKER)  # type: ignore[no-untyped-call]


def shape_complaints(values: Any, of: Schema) -> List[Complaint]:
    """Everything the schema refuses, in the order of the places."""
    found: Dict[Tuple[Parts, str], Complaint] = {}
    for error in _Validator(of).iter_errors(values):
        for complaint in _worded(error, of):
            found.setdefault((complaint.parts, complaint.detail), complaint)
    return sorted(found.values(), key=lambda c: [str(part) for part in c.parts])


def _worded(error: Any, of: Schema) -> Iterator[Complaint]:
    here: Parts = tuple(error.absolute_path)
    if error.validator == "additionalProperties":
        yield from _unknown(here, error.instance, of)
    elif error.validator == "required":
        yield from _missing(here, error.instance, of)
    elif "propertyNames" in error.absolute_schema_path:
        yield Complaint((*here, error.instance), "cannot be such a name", accepted(at(here, of)["propertyNames"]))
    elif error.validator == "uniqueItems":
        yield Complaint(here, "says one thing twice", "each entry once")
    elif error.validator in ("minItems", "maxItems"):
        bound = "at least" if error.validator == "minItems" else "at most"
        yield Complaint(here, f"has {len(error.instance)} entries", f"{bound} {error.validator_value}")
    else:
        yield Complaint(here, _LOGIN.sub("//...@", quoted(error.instance)), accepted(at(here, of)))


def _unknown(here: Parts, instance: Any, of: Schema) -> Iterator[Complaint]:
    known = list(at(here, of)["properties"])
    for name in instance:
        if name in known:
            continue
        elsewhere = [".".join(parts) for parts, _ in settings(of) if parts[-1] == name]
        close = get_close_matches(name, known, 1) or elsewhere[:1]
        hint = f"did you mean {close[0]}? " if close else ""
        yield Complaint((*here, name), "no such setting", f"{hint}known here: {', '.join(known)}")


def _missing(here: Parts, instance: Any, of: Schema) -> Iterator[Complaint]:
    declared = at(here, of)
    for name in declared["required"]:
        if name not in instance:
            yield Complaint((*here, name), "missing", accepted(declared["properties"][name]))
