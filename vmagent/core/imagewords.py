"""Images in words for both command lines: rows of text from what image.list answers, and how far a fetch is.

Rules: nothing is read but members of the published schemas, so the words are the same on the host and at the other end
of a broker; what an older agent does not tell is left empty.
"""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Tuple

HEADER = ("IMAGE", "SHA512", "FORMAT", "SOURCE", "ENDORSER", "LIST", "EXPIRES", "RUNNING", "TRUSTED", "REVOKED",
          "CACHED", "LAST USED", "PINNED")  # fmt: skip
REVOCATIONS_HEADER = ("IMAGE", "VERSION", "ACTION", "BY", "WHY", "AT")
SHORT = 12  # characters of a SHA-512 that tell images apart to a person
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))

Row = Tuple[str, ...]


def rows(answer: Mapping[str, Any], whole: bool) -> List[Row]:
    """One row per image, under HEADER; whole: every digit of each SHA-512."""
    return [_row(one, whole) for one in answer["images"]]


def _row(one: Mapping[str, Any], whole: bool) -> Row:
    digest = one["sha512"] if whole else one["sha512"][:SHORT]
    file = one.get("cached")
    return (
        one["id"], digest, one["format"], one["source"], one.get("endorser") or "",
        " ".join(filter(None, (one.get("list"), one.get("list_version")))), one.get("expires") or "",
        str(one["running"]), "yes" if one["trusted"] else f"no: {one['problem']['type']}", _revoked(one["revoked"]),
        _cached(file, one["sha512"], whole), (file or {}).get("last_used") or "", _pinned(one.get("pinned")),
    )  # fmt: skip


def _revoked(said: Optional[Mapping[str, Any]]) -> str:
    return f"{said['action']} by {said['by']}: {said['why']}" if said else ""


def _cached(file: Optional[Mapping[str, Any]], sha512: str, whole: bool) -> str:
    """Its size; where it was converted also what it is now, by its own digest."""
    if not file:
        return ""
    own = file["sha512"] if whole else file["sha512"][:SHORT]
    return size(file["size"]) + ("" if file["sha512"] == sha512 else f" as {file['format']} {own}")


def _pinned(pin: Optional[Mapping[str, Any]]) -> str:
    return f"by {pin['by']}: {pin['why']}".removesuffix(": ") if pin else ""


def elsewhere(answer: Mapping[str, Any]) -> List[Row]:
    """What was revoked and is not known here, under REVOCATIONS_HEADER."""
    unknown = [one for one in answer["revocations"] if not _here(one, answer["images"])]
    return [(one["id"] or one["sha512"], str(one["version"]), one["action"], one["by"], one["why"], one["at"])
            for one in unknown]  # fmt: skip


def _here(said: Mapping[str, Any], images: Any) -> bool:
    return any(said["id"] in ("", one["id"]) and said["sha512"] in ("", one["sha512"]) for one in images)


def size(count: int) -> str:
    """Bytes in the largest unit that fits: `2.5 GiB`, `700 B`."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def fetch(how_far: Optional[Mapping[str, Any]]) -> str:
    """How far a fetch is, of a reply's `result.fetch` or a vm.state's `fetch`: `fetching 30 %`; "" = not told."""
    if not how_far:
        return ""
    percent = how_far.get("percent")
    known = percent is not None and how_far["step"] == "fetching"
    return f"{how_far['step']} {percent} %" if known else str(how_far["step"])
