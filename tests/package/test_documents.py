"""The documents as a site, and the wire as an AsyncAPI document that AsyncAPI's own parser accepts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Mapping

import jsonschema
import pytest

from vmagent.core import events, schemas
from vmagent.core.commands import VERBS

pytest.importorskip("mkdocs", reason="the site is built with the newest versions only")
ROOT = Path(__file__).resolve().parents[2]
NODE = os.environ.get("VMAGENT_TEST_NODE", "")  # a folder with node_modules/@asyncapi/parser
PARSE = """
import { readFileSync } from "node:fs";
import parser from "@asyncapi/parser";
const { document, diagnostics } = await new parser.Parser().parse(readFileSync(process.argv[2], "utf8"));
const worse = diagnostics.filter((one) => one.severity < 2);
for (const one of worse) console.log(one.code, one.path.join("."), one.message);
process.exit(document && worse.length === 0 ? 0 : 1);
"""


def build(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(source / "share" / "build-docs"), str(folder)], capture_output=True,
                          text=True, check=False, timeout=240)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wire(site: Path) -> Mapping[str, Any]:
    document: Mapping[str, Any] = json.loads((site / "asyncapi.json").read_text(encoding="utf-8"))
    return document


def test_every_verb_message_and_page_has_its_place(site: Path) -> None:
    places = [*(f"verbs/{name}" for name in VERBS), *(f"messages/{name}" for name in events.TYPES), "settings"]
    places += [str(page.relative_to(ROOT / "docs").with_suffix("")) for page in (ROOT / "docs").rglob("*.md")
               if page.name != "README.md"]
    assert [place for place in places if not (site / place / "index.html").exists()] == []


def test_a_page_says_what_its_schema_says(site: Path) -> None:
    page = (site / "verbs" / "vm.start" / "index.html").read_text(encoding="utf-8")
    for word in ("lifetime_s", "networks[].addresses", "size of the disk in GiB"):
        assert word in page
    assert "intervals.hold_s" in (site / "settings" / "index.html").read_text(encoding="utf-8")


def test_a_broken_link_is_an_error(tmp_path: Path) -> None:
    for name in ("docs", "share", "vmagent"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("CHANGELOG.md", "SPECIFICATION.md"):
        shutil.copy(ROOT / name, tmp_path)
    with open(tmp_path / "docs" / "protocol.md", "a", encoding="utf-8") as page:
        page.write("\n[nowhere](nowhere.md)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0 and "nowhere.md" in done.stdout + done.stderr


def test_every_verb_and_message_is_on_some_channel(wire: Mapping[str, Any]) -> None:
    on = {name for channel in wire["channels"].values() for name in channel["messages"]}
    assert on == {*VERBS, *events.TYPES, "reply"} == set(wire["components"]["messages"])


def test_its_schemas_are_those_that_the_agent_checks_with(wire: Mapping[str, Any]) -> None:
    start = wire["components"]["messages"]["vm.kill"]["payload"]["schema"]
    command = {
        "schema": "vm.kill/1", "id": "82c94e50-6c1f-41d8-91a7-7ee525fc6bbf", "issued_at": "2026-11-20T12:00:00.000Z",
        "valid_until": "2026-11-20T13:00:00.000Z", "target": "wn001.example.org", "args": {"all": True},
    }  # fmt: skip
    validator = jsonschema.Draft7Validator(start)
    schemas.check("command", command)
    assert list(validator.iter_errors(command)) == []
    for wrong in ({**command, "schema": "vm.stop/1"}, {**command, "args": {"everybody": True}}):
        assert list(validator.iter_errors(wrong))


@pytest.mark.skipif(not NODE or not shutil.which("node"), reason="needs node and @asyncapi/parser")
def test_the_official_parser_accepts_it_and_would_refuse_another(
    site: Path, wire: Mapping[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "node_modules").symlink_to(Path(NODE, "node_modules"))
    (tmp_path / "parse.mjs").write_text(PARSE, encoding="utf-8")
    wrong = {**wire, "operations": {"commands": {**wire["operations"]["commands"], "action": "obey"}}}
    (tmp_path / "wrong.json").write_text(json.dumps(wrong), encoding="utf-8")

    def said(document: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["node", "parse.mjs", str(document)], cwd=tmp_path, capture_output=True, text=True,
                              check=False, timeout=120)

    right = said(site / "asyncapi.json")
    assert right.returncode == 0, right.stdout + right.stderr
    assert "obey" in (refused := said(tmp_path / "wrong.json")).stdout or refused.returncode == 1
