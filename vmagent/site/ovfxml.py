"""XML of an OVF envelope, read by a parser that takes no more than an envelope needs.  Pure.

Rules

1. No document type, so no entity of any kind: nothing is expanded and nothing is looked up.
2. Size, depth, number of elements and attributes are bounded before anything is built.
3. Names are (namespace, local name); what is in no namespace has "" there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, Iterator, List, Optional, Tuple
from xml.parsers import expat

from vmagent.errors import Problem

MOST_BYTES = 4 << 20
DEEPEST = 32
MOST_ELEMENTS = 20_000
MOST_ATTRIBUTES = 64
_BETWEEN = "\x1f"  # no character of an XML name or of a namespace's URI

Name = Tuple[str, str]


@dataclass
class Element:
    """One element; `text` is all text directly in it, without white space around it."""

    name: Name
    attributes: Dict[Name, str]
    children: List[Element] = field(default_factory=list)
    text: str = ""

    def get(self, local: str, *namespaces: str) -> str:
        """An attribute in one of these namespaces, or in none; "" = it is not there."""
        found = (self.attributes.get((namespace, local)) for namespace in (*namespaces, ""))
        return next((one for one in found if one is not None), "")

    def all(self, *locals: str) -> Iterator[Element]:
        """Children of these local names, whatever their namespace."""
        return (child for child in self.children if child.name[1] in locals)

    def first(self, local: str) -> Optional[Element]:
        return next(self.all(local), None)

    def said(self, local: str) -> str:
        """The text of the first child of that name; "" = there is none."""
        child = self.first(local)
        return "" if child is None else child.text


def read(raw: bytes) -> Element:
    """The document's element.  Problem `ovf`."""
    if len(raw) > MOST_BYTES:
        raise Problem("ovf", f"the envelope has {len(raw)} bytes; at most {MOST_BYTES} are read")
    return _Reader().read(raw)


class _Reader:
    def __init__(self) -> None:
        self._open: List[Element] = []
        self._texts: List[List[str]] = []  # of the open elements
        self._root: Optional[Element] = None
        self._count = 0
        self._parser = parser = expat.ParserCreate(namespace_separator=_BETWEEN)
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = self._doctype
        parser.EntityDeclHandler = self._doctype
        parser.ExternalEntityRefHandler = self._doctype
        parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)

    def read(self, raw: bytes) -> Element:
        try:
            self._parser.Parse(raw, True)
        except expat.ExpatError as error:
            raise Problem("ovf", f"the envelope is no XML: {error}") from None
        except (LookupError, ValueError) as error:  # of an encoding that nobody knows
            raise Problem("ovf", f"the envelope cannot be read: {error}") from None
        if self._root is None:
            raise Problem("ovf", "the envelope is empty")
        return self._root

    def _start(self, name: str, attributes: Dict[str, str]) -> None:
        self._count += 1
        at = f"line {self._parser.CurrentLineNumber}"
        if self._count > MOST_ELEMENTS:
            raise Problem("ovf", f"the envelope has more than {MOST_ELEMENTS} elements")
        if len(self._open) >= DEEPEST:
            raise Problem("ovf", f"{at}: elements stand deeper than {DEEPEST}")
        if len(attributes) > MOST_ATTRIBUTES:
            raise Problem("ovf", f"{at}: more than {MOST_ATTRIBUTES} attributes")
        element = Element(_name(name), {_name(key): value for key, value in attributes.items()})
        if self._open:
            self._open[-1].children.append(element)
        else:
            self._root = element
        self._open.append(element)
        self._texts.append([])

    def _end(self, _name: str) -> None:
        self._open.pop().text = "".join(self._texts.pop()).strip()

    def _text(self, text: str) -> None:
        if self._open:
            self._texts[-1].append(text)

    def _doctype(self, *_: object) -> int:
        raise Problem("ovf", "the envelope has a document type or entities: these are refused")


def _name(text: str) -> Name:
    namespace, between, local = text.rpartition(_BETWEEN)
    return (namespace, local) if between else ("", text)
