"""What a person may ask about images: one source for both command lines, as asking.py is for VMs."""

from __future__ import annotations

import argparse
import re
from typing import Any, Dict, Mapping

from vmagent.core.asking import span
from vmagent.core.imagemodel import FORMATS
from vmagent.core.revocation import ACTIONS
from vmagent.errors import Problem

_BYTES = "the SHA-512 of its bytes (128 hex digits)"
DESCRIBED = ("url", "sha512", "format", "size")
"""Options of a fetch that describe the image instead of naming it."""


def add_revocation(parser: argparse.ArgumentParser) -> None:
    """Which image is not to be trusted, and what is to become of who runs on it."""
    parser.add_argument("image", metavar="IMAGE", help=f"its id, or {_BYTES}")
    parser.add_argument("--action", choices=ACTIONS, default="forbid", help=(
        "report: only tell who runs it; forbid: refuse starts (default); pause, stop, kill: and what becomes of guests "
        "that run, if the site does not do more anyway"))
    parser.add_argument("--revocation", type=int, metavar="N", help=(
        "the site's count of revocations (default: the next one that the host knows of)"))


def revocation_args(said: Mapping[str, Any]) -> Dict[str, Any]:
    """The `args` of image.revoke."""
    args: Dict[str, Any] = {**named_args(said), "action": said["action"]}
    if said["revocation"] is not None:
        args["version"] = said["revocation"]
    return args


def add_named(parser: argparse.ArgumentParser) -> None:
    """An image that the host knows."""
    parser.add_argument("image", metavar="IMAGE", help=f"its id, or {_BYTES}")


def named_args(said: Mapping[str, Any]) -> Dict[str, Any]:
    """`id` or `sha512`."""
    return {"sha512" if re.fullmatch("[0-9a-f]{128}", said["image"]) else "id": said["image"]}


def add_fetch(parser: argparse.ArgumentParser) -> None:
    """Which image is to be fetched: one that the host knows, or one that is described."""
    parser.add_argument("image", nargs="?", metavar="IMAGE", help="its id; or describe it:")
    parser.add_argument("--url", metavar="URL", help="where it is, below what the site allows (images.requests)")
    parser.add_argument("--sha512", metavar="HEX", help="of what is there")
    parser.add_argument("--format", choices=FORMATS, help="of what is there; it is never guessed")
    parser.add_argument("--size", type=int, metavar="BYTES", help="of what is there, if known")
    parser.add_argument("--within", type=span, metavar="SPAN", help="give up after this long (default 1d)")


def fetch_args(said: Mapping[str, Any]) -> Dict[str, Any]:
    """The `args` of image.fetch.  Problem `usage`: neither named nor described, or both."""
    args = {name: said[name] for name in DESCRIBED if said[name] is not None}
    if bool(args) == bool(said["image"]) or (args and not {"url", "sha512", "format"} <= set(args)):
        raise Problem("usage", "name an image, or describe one by --url, --sha512 and --format")
    if said["image"]:
        args["id"] = said["image"]
    if said["within"] is not None:
        args["fetch_by_s"] = said["within"]
    return args
