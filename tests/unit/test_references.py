"""What comments cite by the name of a working paper has a row in docs/design/0000-references.md; no row is idle."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator, List, Set

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/design/0000-references.md"
FILES = sorted(path for part in ("vmagent", "tests") for path in (ROOT / part).rglob("*")
               if path.suffix in (".py", ".json") and path != Path(__file__).resolve())
NUMBER = r"F?\d+(?:\.\d+)?"
PART = r"(?:note \d+|row \d+|[A-Z][a-z]+(?: [a-z]+)*)"  # of a section: "note 1", "Identity", "Store lost or restored"
CITED = re.compile(rf"\b(DESIGN|FACTS|FORMATS|PROTOCOL) ({NUMBER}(?:, {PART}|(?:,| and) {NUMBER})*)")


def citations(text: str) -> Iterator[str]:
    """`FACTS F6 and F7` is two of them; a line break or the mark of a comment may stand in the middle."""
    flat = re.sub(r"\s+(?:# )?\s*", " ", text)
    for paper, rest in CITED.findall(flat):
        section = ""
        for piece in re.findall(rf"{NUMBER}|{PART}", rest):
            if re.fullmatch(NUMBER, piece):
                section = piece
                yield f"{paper} {section}"
            else:
                yield f"{paper} {section}, {piece}"


def explained() -> List[str]:
    """The first cells of the rows that say something."""
    row = r"^\| ((?:DESIGN|FACTS|FORMATS|PROTOCOL) [^|]+?) \| \S"
    return re.findall(row, PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def cited(path: Path) -> Set[str]:
    return set(citations(path.read_text(encoding="utf-8")))


def test_whatever_is_cited_is_explained() -> None:
    known = set(explained())
    missing = {f"{path.relative_to(ROOT)}: {one}" for path in FILES for one in cited(path) - known}
    assert not missing


def test_no_row_is_there_twice_or_for_nobody() -> None:
    rows = explained()
    assert len(rows) == len(set(rows))
    assert set(rows) <= {one for path in FILES for one in cited(path)}


@pytest.mark.parametrize("text, found", (
    ("call (FACTS F3).", ["FACTS F3"]),
    ("among them, FACTS\nF23) never", ["FACTS F23"]),
    ("    # told (FACTS\n    # 4.10).", ["FACTS 4.10"]),
    ("(FACTS F6 and F7, FORMATS 9.3):", ["FACTS F6", "FACTS F7", "FORMATS 9.3"]),
    ("(DESIGN 1, 6).", ["DESIGN 1", "DESIGN 6"]),
    ("(DESIGN 6, note 5).", ["DESIGN 6", "DESIGN 6, note 5"]),
    ("(DESIGN 7, Store lost or restored).", ["DESIGN 7", "DESIGN 7, Store lost or restored"]),
    ("a payload of PROTOCOL 3, unsigned;", ["PROTOCOL 3"]),
    ('FORMATS = ("raw", "qcow2")', []),
))
def test_the_search_knows_every_form(text: str, found: List[str]) -> None:
    assert list(citations(text)) == found
