"""Rows of text as aligned columns, for terminals without colour, files and pipes.

Nothing is cut, nothing is drawn; columns are two spaces apart, so `awk` and people both read it.  What a foreign
program chose (a domain's name) cannot move the cursor: characters that do not print are shown as `?`.
"""

from __future__ import annotations

from typing import List, Sequence

GAP = "  "


def clean(text: str) -> str:
    """The text in one line, without anything that a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)


def lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> List[str]:
    """The header and one line per row; every row has as many cells as the header."""
    table = [list(header), *([clean(cell) or "-" for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in table) for index in range(len(header))]
    return [GAP.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]
