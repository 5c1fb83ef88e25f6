"""Every command of the documents, and where it is run.

A block of shell says so behind its fence, where no reader sees it:

    ```sh agent              our own commands: tests/broker and tests/real/test_documented_commands.py
    ```sh host               a whole host with systemd: run by level `hosts`
    ```sh rabbitmq           tests/broker/test_examples.py, against that broker
    ```sh activemq           the same
    ```sh not-run: WHY       cannot be run here; parsed all the same

What stands in a line of text as `code` and begins with one of our commands is `agent`; with a tool of the host, `host`:
told of, and not run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List, Tuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = tuple(sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]))
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
SHOWN = ("json", "jsonl", "yaml", "ini", "python", "text")  # languages of what is no command
KINDS = ("agent", "host", "rabbitmq", "activemq")
NOT_RUN = "not-run: "
OURS = ("vmagent", "vmagentctl", "vmagent-site", "check_vmagent", "check_vm_creation")
TOOLS = ("systemctl", "journalctl", "nft", "tc", "virsh", "sysctl", "firewall-cmd")
PLACEHOLDER = re.compile(r"\.\.\.|<[a-z]+>|\b[A-Z]{3,}\b")
MENTIONS = re.compile(r"virsh \S+|nft (list|monitor)|tc -s qdisc show dev|systemctl (edit vmagent|set-property)")
HISTORY = ("CHANGELOG.md", "SPECIFICATION.md")  # name commands, tell nobody to give them


@dataclass(frozen=True)
class Line:
    """One command line.  kind: one of KINDS, or "" = not run; why: the reason, then."""

    page: str
    number: int
    text: str
    kind: str
    why: str = ""
    inline: bool = False

    def __str__(self) -> str:
        return f"{self.page}:{self.number}: {self.text}"


def fences(page: Path) -> Iterator[Tuple[int, str, str]]:
    """(line number, what stands behind the fence, body) of every block."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        yield text[: found.start()].count("\n") + 1, found.group(1), found.group(2)


def joined(body: str) -> List[str]:
    """Command lines, continued ones as one."""
    return [line.strip() for line in body.replace("\\\n", " ").splitlines() if line.strip()]


def blocks(page: Path) -> Iterator[Line]:
    """The lines of every block of shell.  AssertionError for one that does not say where it is run."""
    for number, info, body in fences(page):
        language, _, kind = info.partition(" ")
        where = f"{page.name}:{number}: ```{info}"
        if language != "sh":
            assert info in SHOWN, f"{where}: one of sh, {', '.join(SHOWN)}"
            continue
        why = kind[len(NOT_RUN):] if kind.startswith(NOT_RUN) else ""
        assert kind in KINDS or why, f"{where}: where is it run? One of {', '.join(KINDS)}, or {NOT_RUN}WHY"
        for line in joined(body):
            yield Line(str(page.relative_to(ROOT)), number, line, "" if why else kind, why)


def inline(page: Path) -> Iterator[Line]:
    """Commands in lines of text: with an argument, and without a placeholder."""
    if page.name in HISTORY:
        return
    text = FENCE.sub(lambda found: "\n" * found.group(0).count("\n"), page.read_text(encoding="utf-8"))
    for number, row in enumerate(text.splitlines(), 1):
        for code in CODE.findall(row):
            words = code.split()
            if len(words) > 1 and words[0] in OURS + TOOLS and not PLACEHOLDER.search(code) \
                    and not MENTIONS.fullmatch(code):
                kind = "agent" if words[0] in OURS else "host"
                yield Line(str(page.relative_to(ROOT)), number, code, kind, inline=True)


def lines() -> List[Line]:
    """All of them, page by page."""
    return [line for page in PAGES for line in (*blocks(page), *inline(page))]
