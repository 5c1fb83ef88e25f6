"""The schema's verdict in words a person can act on: what was said, where, and what would be accepted instead.

An unknown setting is an error: an option that silently does nothing is how limits get lost (FACTS 4.22).
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any, Dict, Iterator, List, Tuple

from vmagent.configfile.defaults import accepted, at, schema, settings
from vmagent.configfile.loading import Complaint, Parts
from vmagent.core import schemas
from vmagent.core.places import quoted

_LOGIN = re.compile("//[^/]*@")  # a passcode in a URL is refused, and not repeated in a log


def shape_complaints(values: Any) -> List[Complaint]:
    """Everything the schema refuses, in the order of the places."""
    found: Dict[Tuple[Parts, str], Complaint] = {}
    for error in schemas.errors("config", values):
        for complaint in _worded(error):
            found.setdefault((complaint.parts, complaint.detail), complaint)
    return sorted(found.values(), key=lambda c: [str(part) for part in c.parts])


def _worded(error: Any) -> Iterator[Complaint]:
    here: Parts = tuple(error.absolute_path)
    if error.validator == "additionalProperties":
        yield from _unknown(here, error.instance)
    elif error.validator == "required":
        yield from _missing(here, error.instance)
    elif "propertyNames" in error.absolute_schema_path:
        yield Complaint((*here, error.instance), "cannot be such a name", accepted(at(here, schema())["propertyNames"]))
    elif error.validator == "uniqueItems":
        yield Complaint(here, "says one thing twice", "each entry once")
    elif error.validator in ("minItems", "maxItems"):
        bound = "at least" if error.validator == "minItems" else "at most"
        yield Complaint(here, f"has {len(error.instance)} entries", f"{bound} {error.validator_value}")
    else:
        yield Complaint(here, _LOGIN.sub("//...@", quoted(error.instance)), accepted(at(here, schema())))


def _unknown(here: Parts, instance: Any) -> Iterator[Complaint]:
    known = list(at(here, schema())["properties"])
    for name in instance:
        if name in known:
            continue
        elsewhere = [".".join(parts) for parts, _ in settings(schema()) if parts[-1] == name]
        close = get_close_matches(name, known, 1) or elsewhere[:1]
        hint = f"did you mean {close[0]}? " if close else ""
        yield Complaint((*here, name), "no such setting", f"{hint}known here: {', '.join(known)}")


def _missing(here: Parts, instance: Any) -> Iterator[Complaint]:
    declared = at(here, schema())
    for name in declared["required"]:
        if name not in instance:
            yield Complaint((*here, name), "missing", accepted(declared["properties"][name]))
