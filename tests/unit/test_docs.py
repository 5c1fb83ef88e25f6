"""The documents are held against the code: examples, tables, commands, settings and links."""

from __future__ import annotations

import argparse
import ast
import functools
import inspect
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set, Tuple

import pytest

from tests.support import documented
from tests.support.documented import CODE, FENCE, PAGES, ROOT, blocks
from vmagent import configfile
from vmagent.__main__ import FAILED, OK, USAGE, arguments
from vmagent.apelparts import Apel
from vmagent.broker import trust
from vmagent.broker.profiles import PROFILES
from vmagent.broker.signing import ALGORITHMS
from vmagent.core import events, request, schemas
from vmagent.core.alarms import ALARMS
from vmagent.core.commands import VERBS, Signer
from vmagent.core.limits import Outside
from vmagent.core.model import Outcome, Phase
from vmagent.export import check_vmagent
from vmagent.local import ctl_parser, protocol
from vmagent.local.ctl_session import Code as LocalCode
from vmagent.local.doctor import CHECKS
from vmagent.queries import Queries
from vmagent.site import arguments as site_arguments
from vmagent.site import check_vm_creation
from vmagent.site.commands import Code as SiteCode

PROTOCOL = (ROOT / "docs/protocol.md").read_text(encoding="utf-8")
TROUBLE = (ROOT / "docs/operations/troubleshooting.md").read_text(encoding="utf-8")
BROKERS = "\n" + (ROOT / "docs/operations/brokers.md").read_text(encoding="utf-8")
SOMEBODY = Signer("CN=controller")


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def rows(text: str, heading: str) -> List[List[str]]:
    """The cells of the first table below a heading, without its head."""
    below = text.split(f"\n{heading}\n", 1)[1]
    lines = re.search(r"^\|.*\n\|[-|]+\|\n((?:\|.*\n)+)", below, re.MULTILINE)
    assert lines is not None, heading
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.group(1).splitlines()]


def words(cell: str) -> List[str]:
    return CODE.findall(cell)


# ---- examples


EXAMPLES = [json.loads(body) for kind, body in FENCE.findall(PROTOCOL) if kind == "json"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: str(e.get("schema") or e.get("type") or e.get("status")))
def test_every_example_fits_its_schema(example: Dict[str, Any]) -> None:
    if "schema" in example:
        request.parse(example, "0" * 64, SOMEBODY, "broker")
    elif "specversion" in example:
        schemas.check("cloudevent", example)
        name = example["type"][len(events.PREFIX):]
        schemas.check(f"event.{name}", example["data"])
        assert example["id"] == f"{example['epoch']}-{example['stream']}-{example['sequence']}"
        assert example["dataschema"] == f"urn:vmagent:schema:{name}:{events.TYPES[name]}"
    elif "status" in example:
        schemas.check("reply", example)
    else:
        schemas.check("jws", example)


def test_requests_on_the_local_socket_are_read_and_every_look_is_named() -> None:
    lines = [line for kind, body in FENCE.findall(PROTOCOL) if kind == "jsonl" for line in body.splitlines()]
    asked = [protocol.request(line.encode()) for line in lines]
    assert [one.changes for one in asked] == [False, False, False, False, True]
    nobody: Any = None
    looks = set(Queries(*[nobody] * len(inspect.signature(Queries).parameters)).table()) | {protocol.EVENTS}
    looks |= set(Apel(None, None).queries()) - {protocol.RESEND}
    part = PROTOCOL.split("The other verbs only look: ", 1)[1].split(". ", 1)[0]
    assert set(words(part)) == looks


def test_every_verb_status_and_alert_has_an_example() -> None:
    assert {e["schema"].split("/")[0] for e in EXAMPLES if "schema" in e} == set(VERBS)
    assert {e["status"] for e in EXAMPLES if "status" in e} >= {"accepted", "done", "refused"}
    assert {e["type"] for e in EXAMPLES if "specversion" in e} >= {"org.vmagent.vm.state", "org.vmagent.stream.gap"}


# ---- tables


def test_the_table_of_verbs_is_the_code_s() -> None:
    yes = {"yes": True, "no": False}
    told = {words(name)[0]: (title, yes[selects], yes[topic])
            for name, title, selects, topic in rows(PROTOCOL, "## Verbs")}
    assert told == {verb.name: (verb.title, verb.selects, verb.topic) for verb in VERBS.values()}


def test_every_member_of_a_start_is_explained() -> None:
    told = {word for row in rows(PROTOCOL, "### vm.start") for word in words(row[0])}
    assert told == set(schemas.schema("vm.start")["properties"])


def test_every_member_of_new_limits_and_of_a_rule_is_explained() -> None:
    changes = {word for row in rows(PROTOCOL, "### vm.limits") for word in words(row[0])}
    assert changes == set(schemas.schema("vm.limits")["properties"]) - set(schemas.schema("vm.kill")["properties"])
    below = PROTOCOL.split("**Firewall rules.**", 1)[1]
    told = re.findall(r"^\| `([a-z]+)` \|", below.split("```", 1)[0], re.MULTILINE)
    rule = schemas.schema("vm.limits")["properties"]["networks"]["items"]["properties"]["firewall"]["properties"]
    assert set(told) == set(rule["inbound"]["items"]["properties"])


def test_capabilities_and_kinds_of_alert_are_named() -> None:
    part = PROTOCOL.split("`capabilities` in `host.state`", 1)[1].split("\n\n", 1)[0]
    known = set(schemas.schema("event.host.state")["properties"]["capabilities"]["properties"]) - {"start", "emulated"}
    assert known <= {word.split(".")[0] for word in words(part)}
    assert set(events.HELD) <= set(words(PROTOCOL.split("Kinds of `security.alert`", 1)[1].split("\n\n", 1)[0]))


def test_every_member_of_a_command_is_explained() -> None:
    told = {word for row in rows(PROTOCOL, "## A command") for word in words(row[0])}
    assert told == set(schemas.schema("command")["properties"])


def test_algorithms_events_phases_and_outcomes_are_the_code_s() -> None:
    assert {word for row in rows(PROTOCOL, "## Signing") for word in words(row[0])} == set(ALGORITHMS)
    assert {words(row[0])[0] for row in rows(PROTOCOL, "## Events")} == set(events.TYPES)
    for name, kinds in (("Phases: ", Phase), ("Outcomes: ", Outcome)):
        listed = PROTOCOL.split(f"\n{name}", 1)[1].split("\n\n", 1)[0].split("**")[0]
        assert {member.value for member in kinds} <= set(words(listed))  # type: ignore[attr-defined]


# ---- problem types


PASSED_ON = {
    "local/ctl_client.py": "what the agent said",
    "site/handle.py": "what the agent said",
    "core/progress.py": "the first member's own",
    "core/verbs.py": "what limits.changed said",
    "core/limits.py": "one of Outside.problem's two",
    "core/startimage.py": "what trust.verdict said",
    "core/imagechoice.py": "what trust said",
    "broker/trust.py": "one of trust._TYPES",
}
"""Files that make a Problem of a type that is neither written out nor a parameter, and where it comes from."""


def called(node: ast.AST) -> str:
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def types_in(path: Path) -> Iterator[str]:
    """Every type that this file gives a Problem: written out, or handed to a function that makes one of it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    makers: Dict[str, Tuple[int, str]] = {}
    for function in [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]:
        names = [arg.arg for arg in function.args.args]
        for call in [n for n in ast.walk(function) if called(n) == "Problem"]:
            assert isinstance(call, ast.Call)
            form, name = shape(call.args[0])
            if name in names:
                makers[function.name] = (names.index(name), form)
            elif name:
                assert str(path.relative_to(ROOT / "vmagent")) in PASSED_ON, f"{path}:{call.lineno}"
            else:
                yield form
    for call in [n for n in ast.walk(tree) if called(n) in makers]:
        assert isinstance(call, ast.Call)
        at, form = makers[called(call)]
        word, name = shape(call.args[at])
        if not name:
            yield form.format(word)


def shape(node: ast.expr) -> Tuple[str, str]:
    """(the text or its form with a {}, the name that fills it; "" = none)."""
    if isinstance(node, ast.Constant):
        return str(node.value), ""
    if isinstance(node, ast.JoinedStr):
        fixed = "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
        holes = [p.value for p in node.values if isinstance(p, ast.FormattedValue)]
        return fixed, holes[0].id if isinstance(holes[0], ast.Name) else "?"
    return "{}", node.id if isinstance(node, ast.Name) else "?"


@functools.cache
def in_the_code() -> Set[str]:
    found = {type for path in sorted((ROOT / "vmagent").rglob("*.py")) for type in types_in(path)}
    outside = {Outside("", "", 1, 1, below).problem("").type for below in (True, False)}
    return found | {type for type, _ in trust._TYPES.values()} | outside


def in_the_page() -> List[str]:
    part = PROTOCOL.split("\n## Problems\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| `([a-z-]+)` \|", part, re.MULTILINE)


def test_every_problem_type_is_explained_once() -> None:
    told = in_the_page()
    assert len(told) == len(set(told))
    # ctl_client's and handle's defaults are calls, not texts: a peer that sends no type
    assert set(told) - {"unknown"} == in_the_code()


def test_the_search_for_problem_types_finds_every_form() -> None:
    """So that the test above cannot go blind."""
    found = in_the_code()
    assert {"json", "unknown-image", "superseded", "not-ready", "certificate-revoked", "lifetime"} <= found
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", type) for type in found)


# ---- operations


def paragraphs(text: str) -> Set[str]:
    """Ids that have a paragraph of their own: a heading with the id in code, and words below it."""
    return {match.group(1) for match in re.finditer(r"^### `([a-z-]+)`.*\n\n(?=\S[^#\n]{20})", text, re.MULTILINE)}


def test_every_check_and_alarm_has_its_paragraph() -> None:
    assert paragraphs(TROUBLE) == {"configuration"} | {check.id for check in CHECKS} | {
        *ALARMS, *events.HELD, *events.OF_IMAGES, *events.OF_THE_HOST}


def test_exit_codes_are_the_code_s() -> None:
    text = (ROOT / "docs/operations/running.md").read_text(encoding="utf-8")
    table = rows(text, "## Exit codes")
    said = [{int(row[0]) for row in table if row[column]} for column in (1, 2, 3)]
    assert said == [{OK, FAILED, USAGE}, {int(code) for code in LocalCode}, {int(code) for code in SiteCode}]


def test_every_broker_profile_is_explained() -> None:
    told = {words(row[0])[0] for row in rows(BROKERS, "# Brokers")}
    assert told == set(PROFILES)


# ---- settings, commands and links


def settings() -> Set[str]:
    found: Set[str] = set()

    def walk(schema: Any, path: str) -> None:
        for part in (schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())):
            for name, inner in part.get("properties", {}).items():
                here = f"{path}.{name}" if path else name
                found.add(here)
                walk(inner, here)
            for inner, tail in ((part.get("additionalProperties"), ".*"), (part.get("items"), "")):
                if isinstance(inner, dict):
                    walk(inner, path + tail)

    walk(schemas.schema("config"), "")
    return found


SECTIONS = {path.split(".")[0] for path in settings() if "." in path}


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "SPECIFICATION.md"], ids=page_id)  # it names the future
def test_settings_that_are_named_exist(page: Path) -> None:
    known = settings()
    for word in CODE.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        name = word.split(":")[0].strip()
        named = re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", name) and name.split(".")[0] in SECTIONS
        assert not named or name in known or name in events.TYPES or name in VERBS, f"{page.name}: {name}"


def commands(page: Path) -> Iterator[str]:
    """Command lines of ours in code spans and shell blocks, joined over continued lines, without what a shell adds."""
    text = page.read_text(encoding="utf-8")
    lines: List[str] = []
    for kind, body in FENCE.findall(text):
        if kind.startswith("sh "):
            lines += body.replace("\\\n", " ").splitlines()
    lines += CODE.findall(FENCE.sub("", text))
    for line in lines:
        found = re.match(r"(?:sudo )?(vmagent|vmagentctl|vmagent-site|check_\w+)(?= )(.*)", line.strip())
        if found and "..." not in line:
            yield found.group(1) + re.split(r"\s+(?:\||&&|>|#)", found.group(2) + " ")[0]


PARSERS = {"vmagent": arguments, "vmagentctl": ctl_parser.parser, "vmagent-site": site_arguments.parser,
           "check_vmagent": check_vmagent.parser, "check_vm_creation": check_vm_creation.parser}


def exists(parser: argparse.ArgumentParser, argv: List[str]) -> bool:
    """Whether the sub-command and every option are there; a bare mention need not give what is required."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and argv and not argv[0].startswith("-"):
            return argv[0] in action.choices and exists(action.choices[argv[0]], argv[1:])
    flags = {flag for action in parser._actions for flag in action.option_strings}
    return all(word.split("=")[0] in flags for word in argv if word.startswith("-"))


SAID = [(page, body) for page in PAGES if page.parent.name == "operations"
        for kind, body in FENCE.findall(page.read_text(encoding="utf-8")) if kind == "yaml"]


@pytest.mark.parametrize(("page", "body"), SAID, ids=[page.name for page, _ in SAID])
def test_configurations_that_are_shown_can_be_read(page: Path, body: str, tmp_path: Path) -> None:
    """A fragment together with what is required."""
    required = {"site": "site: EXAMPLE\n", "broker": "broker: {urls: ['stomp://127.0.0.1:61613']}\n"}
    head = "".join(text for name, text in required.items() if not re.search(rf"^{name}:", body, re.MULTILINE))
    (tmp_path / "vmagent.yaml").write_text(head + body, encoding="utf-8")
    configfile.read(tmp_path / "vmagent.yaml", "wn001.example.org")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_that_are_quoted_exist(page: Path) -> None:
    for line in commands(page):
        name, *argv = shlex.split(line)
        parser = PARSERS[name]()
        mention = len(argv) == 1 or all(word.startswith("--") for word in argv)
        if mention:
            assert exists(parser, argv), f"{page.name}: {line}"
            continue
        try:
            parser.parse_args(argv)
        except SystemExit as ended:
            assert not ended.code, f"{page.name}: {line}"


@pytest.mark.parametrize("script", ("quickstart", "run-tests"))
def test_options_of_the_scripts_exist(script: str) -> None:
    known = set(re.findall(r"add_argument\(\"(--[a-z-]+)\"", (ROOT / script).read_text(encoding="utf-8")))
    for page in PAGES:
        for line in re.findall(rf"\./{script}([^`\n;#|]*)", page.read_text(encoding="utf-8")):
            assert set(re.findall(r"--[a-z-]+", line)) <= known, f"{page.name}: {script}{line}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_block_says_where_it_is_run(page: Path) -> None:
    for line in blocks(page):
        done = subprocess.run(["bash", "-n", "-c", line.text], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}: {done.stderr}"


def test_a_block_without_a_word_is_found(tmp_path: Path) -> None:
    page = ROOT / "docs" / "README.md"
    for info in ("sh", "", "console", "sh somewhere", "sh not-run: "):
        (tmp_path / "page.md").write_text(f"```{info}\nvmagentctl list\n```\n")
        with pytest.raises(AssertionError, match="page.md:1"):
            list(blocks(tmp_path / "page.md"))
    assert list(blocks(page)) == []


NOT_RUN = {
    ("README.md", "cd"), ("README.md", "sudo"), ("README.md", "./run-tests"), ("apel.md", "install"),
    ("apel.md", "usermod"), ("install-and-configure.md", "rpm/build"), ("install-and-configure.md", "dnf"),
    ("networks.md", "nmcli"), ("selinux.md", "semanage"), ("selinux.md", "restorecon"), ("selinux.md", "ausearch"),
    ("selinux.md", "ls"), ("selinux.md", "setenforce"), ("adoption.md", "vmagentctl"),
}


def test_what_is_not_run_says_why() -> None:
    """The whole list, so that it cannot grow unseen."""
    assert {(Path(line.page).name, line.text.split()[0]) for line in documented.lines() if not line.kind} == NOT_RUN


def test_the_search_for_commands_finds_some() -> None:
    assert sum(1 for page in PAGES for _ in commands(page)) > 40


@pytest.mark.parametrize("name, options", (("vmagentctl", ctl_parser.parser), ("vmagent-site", site_arguments.parser)))
def test_every_sub_command_stands_somewhere_in_the_documents(name: str, options: Any) -> None:
    known = next(a for a in options()._actions if isinstance(a, argparse._SubParsersAction)).choices
    quoted = {shlex.split(line)[1] for page in PAGES for line in commands(page) if line.startswith(f"{name} ")}
    assert set(known) <= quoted


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_index_names_every_document() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    linked = {(ROOT / "docs" / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)\)", index)}
    assert {page for page in (ROOT / "docs").rglob("*.md") if page.name != "README.md"} <= linked
