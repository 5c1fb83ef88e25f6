"""The layers (DESIGN 4) and habits of the source, read with `ast`: nothing is imported or run."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from functools import lru_cache
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "vmagent").rglob("*.py"))

LAYER0 = {"core", "errors"}
LAYER1 = {"ports", "config", "configfile", "log", "lanes", "children", "crashpoint", "folders", "givenfiles"}
LAYER2 = {"hypervisor", "host", "images", "broker", "local", "store", "render", "export"}
LAYER3 = {"reconciler", "world", "consequences", "observer", "intake", "announcer", "adoption", "recovery",
          "certifying",
          "chronicle", "holding", "sweeping", "counting", "snapshotting", "revoking", "imagecommands", "imagekeeping",
          "metering", "sampling", "telemetry", "scraping",
          "offering", "questions"}
# From parts on: its wiring, cut for length.
TOP = {"__main__", "daemon", "parts", "imageparts", "kernelparts", "meterparts", "bookparts", "channel", "speaking",
       "queries"}
TOP |= {"apelparts"}
TOP |= {"condition"}

MAY: Dict[str, Set[str]] = dict.fromkeys(LAYER0, LAYER0)
MAY.update({part: LAYER0 | LAYER1 | {""} for part in LAYER1})
MAY.update({part: LAYER0 | LAYER1 | {""} for part in LAYER2})
LAYER3 |= {"adopter"}
LAYER3 |= {"accounting", "bookings", "usagereport"}
MAY.update({part: LAYER0 | LAYER3 | {"ports", "crashpoint", "config", "log", ""} for part in LAYER3})
MAY.update({part: LAYER0 | LAYER1 | LAYER2 | LAYER3 | TOP | {""} for part in TOP})
MAY["render"] = LAYER0
MAY["export"] = MAY["export"] | {"render", "local.ctl_client"}  # a plug-in is a client of the local socket
MAY["site"] = LAYER0 | {"schema", "render", "broker.client", "broker.signing", "crashpoint", "config", "log", ""}
MAY["site"] |= {"lanes", "givenfiles", "broker.profiles", "broker.link"}  # what broker.client is made of
MAY["site"] |= {"export.plugin"}  # the frame of its plug-in
MAY["manual"] = LAYER0 | {"__main__", "local", "site", "export", "configfile", ""}  # reads what programs are
MAY[""] = MAY["schema"] = set()

ONLY: Dict[str, Tuple[str, ...]] = {
    "libvirt": ("hypervisor/",),
    "stomp": ("broker/client.py",),
    "sqlite3": ("store/", "site/database.py"),
    "twisted.internet.reactor": ("daemon.py", "site/__main__.py", "site/check_vm_creation.py"),
    "systemd": ("daemon.py", "log.py"),
    "jsonschema": ("core/schemas.py",),
    "yaml": ("configfile/", "site/"),
}
IMPURE = {"time", "random", "os", "logging", "threading", "socket", "subprocess", "secrets", "twisted", "asyncio", "io"}
CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
BROAD = ("Exception", "BaseException")
CLOCK_OWNERS = ("daemon.py", "site/__main__.py", "site/check_vm_creation.py")  # the programs
LONGEST_FILE, LONGEST_FUNCTION = 400, 45


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "vmagent"))


def part(path: Path) -> str:
    """The package or module below vmagent that a file belongs to."""
    parts = path.relative_to(ROOT / "vmagent").with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


@lru_cache(maxsize=1000)
def nodes(path: Path) -> Tuple[ast.AST, ...]:
    """All nodes of a file, the module first."""
    return tuple(ast.walk(ast.parse(path.read_text(), str(path))))


def imports(path: Path) -> Iterator[str]:
    """Every imported name in full: `from a import b` is a.b."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, of: str) -> bool:
    return module == of or module.startswith(of + ".")


every = pytest.mark.parametrize("path", FILES, ids=[name(path) for path in FILES])


@every
def test_layers(path: Path) -> None:
    own = part(path)
    for module in imports(path):
        if module.startswith("vmagent."):
            below = module.split(".")[1:]
            exists = (ROOT / "vmagent" / below[0]).is_dir() or (ROOT / "vmagent" / f"{below[0]}.py").is_file()
            target = below[0] if exists else ""  # "": a name of the package itself, such as __version__
            allowed = target == own or target in MAY[own] or ".".join(below[:2]) in MAY[own]
            assert allowed, f"{name(path)} must not import {module}"


@every
def test_only_one_importer(path: Path) -> None:
    for module in imports(path):
        for foreign, owners in ONLY.items():
            if within(module, foreign):
                assert name(path).startswith(owners), f"{name(path)} must not import {module}"


@pytest.mark.parametrize("path", [p for p in FILES if part(p) in LAYER0 | {"render"}], ids=name)
def test_the_core_is_pure(path: Path) -> None:
    impure = [module for module in imports(path) if module.split(".")[0] in IMPURE]
    assert not impure, f"{name(path)} imports {impure}"


@every
def test_nobody_reads_the_wall_clock(path: Path) -> None:
    if name(path).startswith(CLOCK_OWNERS):
        return
    read = [n for n in nodes(path) if isinstance(n, ast.Attribute) and n.attr in {c.split(".")[1] for c in CLOCKS}]
    texts = ["." + ast.unparse(node) for node in read]
    found = [text for text in texts if any(text.endswith("." + clock) for clock in CLOCKS)]
    found += [module for module in imports(path) if module in CLOCKS]
    assert not found, f"{name(path)} reads {found}: a clock is handed in"


@every
def test_names_and_sizes(path: Path) -> None:
    assert path.stem not in ("utils", "util", "common", "helpers", "helper", "manager", "misc")
    module = nodes(path)[0]
    assert isinstance(module, ast.Module)
    if path.stat().st_size:
        assert ast.get_docstring(module), f"{name(path)} has no docstring"
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST_FILE, f"{name(path)} has {lines} lines"
    for node in nodes(path):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{name(path)}: {node.name} has {length} lines"


def comments(path: Path) -> Dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


@every
def test_broad_excepts_are_edges_and_say_why(path: Path) -> None:
    said = comments(path)
    for node in nodes(path):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{name(path)}:{node.lineno}: bare except"
            last = node.body[-1]
            if isinstance(last, ast.Raise) and last.exc is None:
                continue  # cleans up and lets it go on
            if any(isinstance(n, ast.Name) and n.id in BROAD for n in ast.walk(node.type)):
                why = said.get(node.lineno, "")
                assert re.search(r"\bedge\b", why), f"{name(path)}:{node.lineno}: broad, without `# edge: why`"



def test_every_part_has_its_layer() -> None:
    unknown: List[str] = sorted({part(path) for path in FILES} - set(MAY))
    assert not unknown, f"say in LAYER0 to LAYER3 where {unknown} belong"
