"""The files: strict YAML with the place of every value, and drop-ins laid over the main file.

Rules

1. Only texts, whole decimal numbers, finite decimals, true/false, null, lists and mappings.  A key is a text and stands
   once.  Aliases, tags and control characters are refused: two people must not read one file in two ways.
2. Drop-ins are `<file>.d/*.yaml` and, for `name.yaml`, `name.d/*.yaml` beside it, sorted by file name.
   Mappings merge member by member, everything else replaces; the later file wins.
3. A section whose settings are all commented out says nothing.
4. Where the schema has a `shorthand`, a bare value is that member: `cores: 8` is `cores: {maximum: 8}`.

Every value travels as a Spot that knows its `file:line`, so merging cannot lose where something was said.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Mapping, Set, Tuple, Union

import yaml

from vmagent.core.places import place, quoted

Parts = Tuple[Union[str, int], ...]
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,15})")
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_TAG = "tag:yaml.org,2002:"
_HINT = "a text that begins with one of * & ! % @ ` { [ needs quotes"
_MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class Spot:
    """A value and where it was said; members of mappings and lists are Spots too."""

    value: Any
    origin: str  # "file:line"


@dataclass(frozen=True)
class Complaint:
    """What is wrong, where, and what would be right; `parts` is empty for a whole file."""

    parts: Parts
    detail: str
    accepted: str
    origin: str = ""


def files(main: Path) -> List[Path]:
    """The main file and its drop-ins, in the order in which they are read."""
    directories = {main.with_name(main.name + ".d"), main.with_name(main.stem + ".d")}
    drop_ins = [f for d in directories if d.is_dir() for f in d.iterdir() if not f.name.startswith(".")]
    chosen = [f for f in drop_ins if f.suffix in (".yaml", ".yml")]
    return [main] + sorted(chosen, key=lambda f: (f.name, str(f)))


def load(main: Path, schema: Mapping[str, Any]) -> Tuple[Spot, List[Complaint]]:
    """All files as one mapping; what cannot be read is complained about and left out."""
    whole = Spot({}, str(main))
    complaints: List[Complaint] = []
    for file in files(main):
        if file.suffix == ".yml":
            complaints.append(Complaint((), "would not be read", "a drop-in named *.yaml", str(file)))
            continue
        reader = _Reader(file)
        spot = reader.read()
        complaints += reader.complaints
        whole = merged(whole, _without_empty(_written_out(spot, schema), schema))
    return whole, complaints


def merged(under: Spot, over: Spot) -> Spot:
    """Mappings merge deep, everything else is replaced."""
    if not (isinstance(under.value, dict) and isinstance(over.value, dict)):
        return over
    members = dict(under.value)
    for name, spot in over.value.items():
        members[name] = merged(members[name], spot) if name in members else spot
    return Spot(members, over.origin)


def plain(spot: Spot) -> Any:
    """The value without its places."""
    if isinstance(spot.value, dict):
        return {name: plain(member) for name, member in spot.value.items()}
    if isinstance(spot.value, list):
        return [plain(member) for member in spot.value]
    return spot.value


def origins(spot: Spot, parts: Parts = ()) -> Dict[str, str]:
    """Where each value was said, by its place as `core.places` writes it."""
    found = {place(parts): spot.origin}
    members: Iterable[Tuple[Union[str, int], Spot]] = ()
    if isinstance(spot.value, dict):
        members = spot.value.items()
    elif isinstance(spot.value, list):
        members = enumerate(spot.value)
    for name, member in members:
        found.update(origins(member, (*parts, name)))
    return found


def _written_out(spot: Spot, schema: Mapping[str, Any]) -> Spot:
    """Rule 4, before merging: so a drop-in can add a minimum to the maximum that the main file says."""
    if "shorthand" in schema and not isinstance(spot.value, dict):
        return Spot({schema["shorthand"]: spot}, spot.origin)
    if not isinstance(spot.value, dict):
        return spot
    settings: Mapping[str, Any] = schema.get("properties", {})
    return Spot({name: _written_out(one, settings.get(name, {})) for name, one in spot.value.items()}, spot.origin)


def _without_empty(spot: Spot, schema: Mapping[str, Any]) -> Spot:
    """Rule 3: `broker:` with nothing below reads as null in YAML."""
    if not isinstance(spot.value, dict):
        return spot
    sections: Mapping[str, Any] = schema.get("properties", {})
    kept = {}
    for name, member in spot.value.items():
        section = sections.get(name, {})
        if member.value is not None or section.get("type") != "object":
            kept[name] = _without_empty(member, section)
    return Spot(kept, spot.origin)


class _Reader:
    """Reads one file and collects what is wrong with it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.complaints: List[Complaint] = []
        self._met: Set[int] = set()

    def read(self) -> Spot:
        """The file's mapping; an empty one when nothing can be read."""
        nothing = Spot({}, str(self._file))
        node = self._node()
        if node is None:
            return nothing
        spot = self._spot(node, ())
        if isinstance(spot.value, dict):
            return spot
        if spot.value is not None:
            self._complain((), node, f"the file is {quoted(plain(spot))}", "settings, one `name: value` a line")
        return nothing

    def _node(self) -> Any:
        """YAML's tree; None after a complaint or for an empty file."""
        try:
            raw = self._file.read_bytes()
            if len(raw) > _MAX_BYTES:
                raise ValueError(f"{len(raw)} bytes")
            loader = yaml.SafeLoader(raw.decode("utf-8"))
            return loader.get_single_node()
        except OSError as error:
            self._complain((), None, f"cannot be read: {error.strerror}", "a readable file")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f":{mark.line + 1}" if mark else ""
            what = f"not YAML: {error.problem or error.context}"
            self.complaints.append(Complaint((), what, _HINT, f"{self._file}{line}"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            what = f"not YAML: {' '.join(str(error).split())}"
            self._complain((), None, what, f"UTF-8 without control characters, at most {_MAX_BYTES >> 20} MiB")
        return None

    def _origin(self, node: Any) -> str:
        return f"{self._file}:{node.start_mark.line + 1}" if node is not None else str(self._file)

    def _complain(self, parts: Parts, node: Any, detail: str, accepted: str) -> None:
        self.complaints.append(Complaint(parts, detail, accepted, self._origin(node)))

    def _spot(self, node: Any, parts: Parts) -> Spot:
        value: Any = None
        if id(node) in self._met:
            self._complain(parts, node, "an alias (*name)", f"the value itself; {_HINT}")
        elif isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            self._met.add(id(node))
            value = self._mapping(node, parts)
        elif isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            self._met.add(id(node))
            value = [self._spot(member, (*parts, index)) for index, member in enumerate(node.value)]
        elif isinstance(node, yaml.ScalarNode):
            self._met.add(id(node))
            value = self._scalar(node, parts)
        else:
            self._complain(parts, node, f"has the tag {node.tag}", "a value without a tag")
        return Spot(value, self._origin(node))

    def _mapping(self, node: Any, parts: Parts) -> Dict[str, Spot]:
        members: Dict[str, Spot] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != _TAG + "str":
                name = quoted(getattr(key, "value", "a list or mapping"))
                self._complain(parts, key, f"the name {name} is not a text", "a text; put it in quotes")
                continue
            if key.value in members:
                first = members[key.value].origin
                self._complain((*parts, key.value), key, f"stands twice, first at {first}", "one of the two")
                continue
            members[key.value] = self._spot(value, (*parts, key.value))
        return members

    def _scalar(self, node: Any, parts: Parts) -> Any:
        read = _SCALARS.get(node.tag)
        if read is None:
            self._complain(parts, node, f"has the tag {node.tag}", "a value without a tag")
            return None
        try:
            return read(node.value)
        except ValueError as error:
            self._complain(parts, node, f"{quoted(node.value)} cannot be taken", str(error))
            return None


def _text(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError("one line without control characters")
    return value


def _whole(value: str) -> int:
    if not _WHOLE.fullmatch(value):
        raise ValueError("a plain decimal number without leading zero, _ or :, at most 16 digits; or a text in quotes")
    return int(value)


def _decimal(value: str) -> float:
    wrong = "a plain decimal number such as 2.5"
    try:
        number = float(value)
    except ValueError:
        raise ValueError(wrong) from None
    if not math.isfinite(number):
        raise ValueError(wrong)
    return number


def _truth(value: str) -> bool:
    words = {"true": True, "false": False}
    if value.lower() not in words:
        raise ValueError("true or false, or a text in quotes")
    return words[value.lower()]


_SCALARS: Mapping[str, Callable[[str], Any]] = {
    _TAG + "str": _text,
    _TAG + "int": _whole,
    _TAG + "float": _decimal,
    _TAG + "bool": _truth,
    _TAG + "null": lambda _: None,
    _TAG + "timestamp": _text,
}
