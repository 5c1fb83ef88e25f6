"""vmagentctl images: what is asked, what is shown, and how a fetch is followed to its end."""

from __future__ import annotations

import io
import json
from typing import Any, Dict, List, Mapping, Optional, Tuple

import pytest

from tests.support import building
from vmagent.core import codec, imageviews, imagewords, request, schemas
from vmagent.core.changes import CommandRow
from vmagent.core.commands import Signer
from vmagent.core.imagemodel import Download, ImageFile, ImageRecord, Kept, Pin
from vmagent.core.model import ImageRef
from vmagent.errors import Problem
from vmagent.local import ctl_parser, tables
from vmagent.local.ctl_commands import COMMANDS
from vmagent.local.ctl_session import Session
from vmagent.local.imagetables import bar

FAR, OWN = "cd" * 64, "12" * 64
FILE = ImageFile(FAR, "/c/x.img", OWN, "qcow2", 5 * 2**29, 2**34, building.WALL)
PIN = Pin(FAR, "far", "local:root", "every morning", building.WALL)
TOLD = (ImageRecord("far", FAR, "vmdk", "site", "https://images.example.org/far"),
        ImageRecord("near", OWN, "raw", "site"))
IMAGES = {**imageviews.listing(TOLD, [], {}, lambda one: None, Kept({FAR: FILE}, {FAR: PIN})), "running": []}
VM = building.record(spec={"image": ImageRef("far", FAR, "vmdk")})
COMMAND = "6f1c2f9e-0000-4000-8000-000000000001"
ASKED = CommandRow(COMMAND, "", "image.fetch/1", "local:root", "local", "", "", "", (), "accepted",
                   {"result": {"image": {"id": "far"}}}, building.WALL, {})  # fmt: skip
UNDER_WAY = Download(FAR, "https://images.example.org/far", 3 * 2**28, 2**30, 940.0, "fetching", (COMMAND, VM.vm))
DOWNLOADS = imageviews.downloads([UNDER_WAY], {VM.vm: VM}, {COMMAND: ASKED}, building.now())
IMAGE = codec.plain(ImageRef("far", FAR, "vmdk"))


class Agent:
    """Answers; `replies` to one command, sent again and again, in turn."""

    def __init__(self, *replies: Mapping[str, Any], **answers: List[Any]) -> None:
        self.replies = list(replies)
        self.answers: Dict[str, List[Any]] = {"images": [IMAGES], "downloads": [DOWNLOADS], **answers}
        self.payloads: List[Mapping[str, Any]] = []

    def ask(self, verb: str, args: Optional[Mapping[str, Any]] = None) -> Any:
        if verb == "status":
            return {"wall": building.WALL}
        if verb != "command":
            found = self.answers[verb]
            return found.pop(0) if len(found) > 1 else found[0]
        payload = dict(args or {})
        filled = {"issued_at": building.WALL, "valid_until": "2026-11-20T13:00:00.000Z", "target": "h", **payload}
        schemas.check("command", filled)
        schemas.check(payload["schema"].split("/")[0], payload["args"])
        self.payloads.append(payload)
        return {"command": payload["id"], **self.replies.pop(0)}


def run(agent: Agent, *argv: str, out: Optional[io.StringIO] = None) -> Tuple[int, str]:
    said = ctl_parser.parser().parse_args(["images", *argv])
    out = out or io.StringIO()
    pauses: List[float] = []
    session = Session(said, agent, out, tables.Screen(out), lambda question: False, pauses.append)  # type: ignore[arg-type]
    code = int(COMMANDS["images"](session))
    return code, out.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def reply(status: str, fetch: Any = None, **more: Any) -> Dict[str, Any]:
    return {"status": status, "result": {"image": IMAGE, "fetch": fetch}, **more}


def test_what_the_cache_holds_is_shown_with_both_digests_its_last_use_and_its_pin() -> None:
    code, text = run(Agent())
    head, far, near = ([cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines())
    assert code == 0 and head == list(imagewords.HEADER)
    assert far[-3:] == [f"2.5 GiB as qcow2 {OWN}", building.WALL, "by local:root: every morning"]
    assert near[-3:] == ["-", "-", "-"]
    assert json.loads(run(Agent(), "--json")[1]) == json.loads(json.dumps(IMAGES))


def test_downloads_say_how_far_they_are_and_for_whom() -> None:
    code, text = run(Agent(), "--downloads")
    line = text.splitlines()[1]
    assert code == 0
    for word in ("far", "fetching", "768.0 MiB", "1.0 GiB", "75 %", "1m", f"{VM.vm} worker {building.USER}",
                 "image.fetch by local:root", "https://images.example.org/far"):
        assert word in line
    assert "#" not in line
    assert json.loads(run(Agent(), "--downloads", "--json")[1])["downloads"][0]["percent"] == 75
    assert run(Agent(downloads=[{"downloads": []}]), "--downloads")[1] == "nothing is being fetched\n"


def test_on_a_terminal_there_is_a_bar() -> None:
    assert bar(75) == "#" * 15 + "." * 5
    assert "####" in run(Agent(), "--downloads", out=Terminal())[1]


def test_downloads_are_followed_until_nothing_is_fetched() -> None:
    later = {"downloads": [{**DOWNLOADS["downloads"][0], "step": "inspecting"}]}
    agent = Agent(downloads=[DOWNLOADS, DOWNLOADS, later, {"downloads": []}])
    assert run(agent, "--downloads", "--follow") == (0, "far  fetching 75 %\nfar  inspecting\nfar  over\n")
    moving = run(Agent(downloads=[DOWNLOADS, {"downloads": []}]), "--downloads", "-f", out=Terminal())
    assert moving[0] == 0 and "far" in moving[1]
    with pytest.raises(Problem):
        run(Agent(), "--follow")


@pytest.mark.parametrize(("argv", "verb", "args"), [
    (["fetch", "far"], "image.fetch", {"id": "far"}),
    (["fetch", "far", "--within", "2h"], "image.fetch", {"id": "far", "fetch_by_s": 7200}),
    (["fetch", "--url", "https://a/b", "--sha512", FAR, "--format", "raw", "--size", "9"], "image.fetch",
     {"url": "https://a/b", "sha512": FAR, "format": "raw", "size": 9}),
    (["pin", "far"], "image.pin", {"id": "far"}),
    (["unpin", FAR], "image.unpin", {"sha512": FAR}),
])  # fmt: skip
def test_actions_are_commands_that_the_agent_accepts(argv: List[str], verb: str, args: Mapping[str, Any]) -> None:
    agent = Agent(reply("done"))
    assert run(agent, *argv, "--reason", "why")[0] == 0
    (payload,) = agent.payloads
    assert (payload["schema"], payload["args"], payload["reason"]) == (f"{verb}/1", args, "why")


@pytest.mark.parametrize("argv", [[], ["far", "--url", "https://a/b"], ["--url", "https://a/b", "--format", "raw"]])
def test_a_fetch_names_one_image_or_describes_one(argv: List[str]) -> None:
    with pytest.raises(Problem) as caught:
        run(Agent(), "fetch", *argv)
    assert caught.value.type == "usage"


def test_a_fetch_is_followed_by_sending_the_same_again() -> None:
    steps = [None, {"step": "fetching", "percent": 10}, {"step": "fetching", "percent": 10},
             {"step": "converting", "percent": 100}]
    agent = Agent(*(reply("accepted", step) for step in steps), reply("done"))
    code, text = run(agent, "fetch", "far", "--wait")
    assert code == 0
    assert text.splitlines()[:2] == ["far  fetching 10 %", "far  converting"]
    assert text.splitlines()[2].startswith("done  command ")
    assert len(agent.payloads) == 5 and len({json.dumps(one, sort_keys=True) for one in agent.payloads}) == 1
    parsed = request.parse({**agent.payloads[0], "target": "h"}, "", Signer("local:root"), "local")
    assert (parsed.verb, parsed.issued_wall) == ("image.fetch", building.WALL)


@pytest.mark.parametrize(("status", "type", "code"), [
    ("done", "", 0), ("failed", "image-in-use", 1), ("refused", "image-pinned", 3),
])  # fmt: skip
def test_an_eviction_is_followed_to_its_end(status: str, type: str, code: int) -> None:
    problem = {"problem": {"type": type, "title": type, "detail": "because"}} if type else {}
    agent = Agent(*[reply("accepted")] * (status != "refused"), reply(status, **problem))
    got, text = run(agent, "evict", "far")
    assert (got, text.split()[0]) == (code, status)
    assert type in text
