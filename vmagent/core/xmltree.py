"""XML built as a tree: every value is refused that XML cannot carry, nothing is ever pasted."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Optional, Union
from xml.etree.ElementTree import Element

_NOT_TEXT = re.compile("[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # no control characters at all


def text(value: Union[str, int]) -> str:
    """The value as XML's text.  ValueError: not allowed there."""
    written = str(value)
    if _NOT_TEXT.search(written):
        raise ValueError(f"not allowed in XML: {written[:80]!r}")
    return written


def add(
    parent: Element, element: str, content: Optional[Union[str, int]] = None, /, **attributes: Union[str, int]
) -> Element:
    """A child; an attribute with the value "" is left out."""
    written = {key: text(value) for key, value in attributes.items() if value != ""}
    child = ElementTree.SubElement(parent, element, written)
    if content is not None:
        child.text = text(content)
    return child
