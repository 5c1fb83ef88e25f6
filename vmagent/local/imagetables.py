"""Images as text for people: `vmagentctl images`, with `--running` VM by VM.  A program reads `--json`."""

from __future__ import annotations

from typing import Any, Mapping

from vmagent.local.tables import Screen

SHORT = 12  # characters of a SHA-512 that a terminal shows


def _digest(screen: Screen, sha512: str) -> str:
    return sha512[:SHORT] if screen.terminal else sha512


def _revoked(image: Mapping[str, Any]) -> str:
    said = image["revoked"]
    return f"{said['action']} by {said['by']}: {said['why']}" if said else ""


def images(screen: Screen, answer: Mapping[str, Any]) -> None:
    header = ("IMAGE", "SHA512", "FORMAT", "SOURCE", "ENDORSER", "LIST", "EXPIRES", "RUNNING", "TRUSTED", "REVOKED")
    screen.table(header, [
        (one["id"], _digest(screen, one["sha512"]), one["format"], one["source"], one["endorser"] or "",
         " ".join(filter(None, (one["list"], one["list_version"]))), one["expires"] or "", str(one["running"]),
         "yes" if one["trusted"] else f"no: {one['problem']['type']}", _revoked(one))
        for one in answer["images"]
    ], "no images")
    unknown = [one for one in answer["revocations"] if not _here(one, answer["images"])]
    if unknown:
        screen.line()
        screen.line("revoked, and not known here:")
        rows = [(one["id"] or one["sha512"], str(one["version"]), one["action"], one["by"], one["why"], one["at"])
                for one in unknown]
        screen.table(("IMAGE", "VERSION", "ACTION", "BY", "WHY", "AT"), rows)


def _here(said: Mapping[str, Any], images: Any) -> bool:
    return any(said["id"] in ("", one["id"]) and said["sha512"] in ("", one["sha512"]) for one in images)


def running(screen: Screen, answer: Mapping[str, Any]) -> None:
    """Who runs on what (R16)."""
    header = ("ID", "NAME", "PHASE", "OWNER", "IMAGE", "SHA512", "ENDORSER", "NOT TRUSTED", "DONE")
    screen.table(header, [
        (screen.id(one["vm"]), one["name"], one["phase"], one["owner"]["subject"], one["image"]["id"],
         _digest(screen, one["image"]["sha512"]), one["image"].get("endorser", ""), one["distrust"], one["done"])
        for one in answer["running"]
    ], "no VMs")
