"""Images as text for people: `vmagentctl images`, `--running` VM by VM, `--downloads`.  A program reads `--json`."""

from __future__ import annotations

from typing import Any, Mapping

from vmagent.core import imagewords
from vmagent.local.tables import Row, Screen, span

WIDTH = 20  # of a bar, in characters


def _digest(screen: Screen, sha512: str) -> str:
    return sha512[: imagewords.SHORT] if screen.terminal else sha512


def images(screen: Screen, answer: Mapping[str, Any]) -> None:
    screen.table(imagewords.HEADER, imagewords.rows(answer, whole=not screen.terminal), "no images")
    unknown = imagewords.elsewhere(answer)
    if unknown:
        screen.line()
        screen.line("revoked, and not known here:")
        screen.table(imagewords.REVOCATIONS_HEADER, unknown)


def running(screen: Screen, answer: Mapping[str, Any]) -> None:
    """Who runs on what (R16)."""
    header = ("ID", "NAME", "PHASE", "OWNER", "IMAGE", "SHA512", "ENDORSER", "NOT TRUSTED", "DONE")
    screen.table(header, [
        (screen.id(one["vm"]), one["name"], one["phase"], one["owner"]["subject"], one["image"]["id"],
         _digest(screen, one["image"]["sha512"]), one["image"].get("endorser", ""), one["distrust"], one["done"])
        for one in answer["running"]
    ], "no VMs")


def downloads(screen: Screen, answer: Mapping[str, Any]) -> None:
    """What is being fetched, how far, for whom; with a bar on a terminal."""
    header = ("IMAGE", "STEP", "DONE", "OF", "PERCENT", "SINCE", "FOR", "FROM")
    screen.table(header, [_download(screen, one) for one in answer["downloads"]], "nothing is being fetched")


def _download(screen: Screen, one: Mapping[str, Any]) -> Row:
    percent = one["percent"]
    told = "" if percent is None else f"{percent} %"
    if screen.terminal and percent is not None:
        told = f"{bar(percent)} {told}"
    return (one["id"], one["step"], imagewords.size(one["done"]), imagewords.size(one["total"]) if one["total"] else "",
            told, span(one["since_s"]), ", ".join(_whom(screen, each) for each in one["for"]), one["url"])


def bar(percent: int) -> str:
    """A bar of WIDTH characters."""
    full = WIDTH * percent // 100
    return "#" * full + "." * (WIDTH - full)


def _whom(screen: Screen, one: Mapping[str, Any]) -> str:
    if "vm" in one:
        return " ".join(filter(None, (screen.id(one["vm"]), one["name"], one["owner"])))
    return f"image.fetch by {one['by']}"
