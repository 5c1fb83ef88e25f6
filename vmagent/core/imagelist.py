"""A HEPiX VMIC image list as a value: who endorses which images, until when (FORMATS 6.1).

Rules

1. What the format requires must be there, of the right type and of a sane size; else ValueError that names the place.
   Members beyond it are extensions of others and are passed over: lists in the field have many.
2. Names that a person or a command will say (identifiers, versions) are plain words, so that they can be said.
3. Times are UTC as `2026-11-20T12:00:00Z`.  Digests are taken in lower case.
4. The format of an image is `hv:format` (an extension); without it the ending of its URI tells, and without one it is
   raw.  A format that this agent does not start stays in the record: one such image does not void the list.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple, Union

from vmagent.core import dn, strictjson, walltime
from vmagent.core.imagemodel import LIST, ImageRecord
from vmagent.core.places import place, quoted
from vmagent.errors import Problem, Problems

LONGEST_LIST = 8 * 2**20  # bytes
MOST_IMAGES = 5000
LARGEST_IMAGE = 2**46  # bytes, 64 TiB
ENDINGS = {"qcow2": "qcow2", "vmdk": "vmdk", "vdi": "vdi", "vhdx": "vhdx", "ova": "ova"}

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:,/ +-]{0,63}")
_SHA512 = re.compile(r"[0-9A-Fa-f]{128}")
_DIGITS = re.compile(r"[0-9]{1,15}")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]{1,2000}")
_FORMAT = re.compile(r"[A-Za-z0-9._-]{1,16}")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_LONGEST_TEXT = 8192

Parts = Tuple[Union[str, int], ...]


@dataclass(frozen=True)
class ImageList:
    """One list; endorser and ca are distinguished names as the list writes them."""

    identifier: str
    version: str
    created_wall: str
    expires_wall: str
    endorser: str  # hv:dn
    ca: str  # hv:ca: who issued the endorser's certificate
    title: str
    images: Tuple[ImageRecord, ...]

    def image(self, id: str) -> Optional[ImageRecord]:
        """The image with this identifier."""
        return next((one for one in self.images if one.id == id), None)

    def endorses(self, sha512: str) -> Optional[ImageRecord]:
        """The image with this digest (hex, lower case)."""
        return next((one for one in self.images if one.sha512 == sha512), None)


def parse(raw: bytes) -> ImageList:
    """The text of a list, already freed from its signature.  ValueError, naming the place and what is wrong."""
    try:
        value = strictjson.loads(raw, LONGEST_LIST)
    except Problems as wrong:
        raise ValueError("; ".join(f"at {one.fields.get('path')}: {one.detail}" for one in wrong.problems)) from None
    except Problem as wrong:
        raise ValueError(wrong.detail) from None
    if not isinstance(value, dict):
        raise _wrong((), value, "an object with hv:imagelist")
    return _list(_Members(_object(value, "hv:imagelist", ()), ("hv:imagelist",)))


class _Members:
    """An object of the list, read member by member; every error knows its place."""

    def __init__(self, value: Mapping[str, Any], at: Parts) -> None:
        self._value = value
        self.at = at

    def below(self, name: str) -> _Members:
        return _Members(_object(self._value, name, self.at), (*self.at, name))

    def has(self, name: str) -> bool:
        return self._value.get(name) not in (None, "")

    def get(self, name: str) -> Any:
        if name not in self._value:
            raise ValueError(f"at {place((*self.at, name))}: missing")
        return self._value[name]

    def text(self, name: str) -> str:
        value = self.get(name)
        if not isinstance(value, str) or len(value) > _LONGEST_TEXT or _CONTROL.search(value):
            raise _wrong((*self.at, name), value, f"a text of at most {_LONGEST_TEXT} printable characters")
        return value

    def matching(self, name: str, pattern: re.Pattern[str], accepted: str) -> str:
        value = self.get(name)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise _wrong((*self.at, name), value, accepted)
        return value

    def word(self, name: str) -> str:
        return self.matching(name, _WORD, "1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit")

    def version(self) -> str:
        """A text; some tools write a bare number."""
        value = self.get("hv:version")
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return str(value)
        return self.matching("hv:version", _VERSION, "1 to 64 of A-Z a-z 0-9 . _ : , / + - and space")

    def time(self, name: str) -> str:
        return self._read(name, walltime.seconds, "a time in UTC like 2026-11-20T12:00:00Z")

    def name_of(self, name: str) -> str:
        return self._read(name, dn.parse, "a distinguished name, such as /DC=org/CN=A Person")

    def _read(self, name: str, read: Callable[[str], Any], accepted: str) -> str:
        text = self.text(name)
        try:
            read(text)
        except ValueError:
            raise _wrong((*self.at, name), text, accepted) from None
        return text

    def size(self) -> int:
        """Bytes; a whole number, which some tools write as a text."""
        value = self.get("hv:size")
        if isinstance(value, str) and _DIGITS.fullmatch(value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_IMAGE:
            raise _wrong((*self.at, "hv:size"), value, f"bytes, 1 to {LARGEST_IMAGE}")
        return value


def _list(of: _Members) -> ImageList:
    for name in ("dc:description", "dc:source", "hv:uri"):
        of.text(name)
    x509 = of.below("hv:endorser").below("hv:x509")
    for name in ("hv:email", "dc:creator"):
        x509.text(name)
    created, expires = of.time("dc:date:created"), of.time("dc:date:expires")
    if walltime.seconds(expires) <= walltime.seconds(created):
        raise _wrong((*of.at, "dc:date:expires"), expires, f"a time after dc:date:created, {created}")
    told = {"endorser": x509.name_of("hv:dn"), "list": of.word("dc:identifier"), "list_version": of.version()}
    return ImageList(
        identifier=told["list"], version=told["list_version"], created_wall=created, expires_wall=expires,
        endorser=told["endorser"], ca=x509.name_of("hv:ca"), title=of.text("dc:title"),
        images=_images(of.get("hv:images"), (*of.at, "hv:images"), told, of),
    )  # fmt: skip


def _images(value: Any, at: Parts, told: Dict[str, str], of: _Members) -> Tuple[ImageRecord, ...]:
    if not isinstance(value, list) or len(value) > MOST_IMAGES:
        raise _wrong(at, value, f"a list of at most {MOST_IMAGES} images")
    list_vo = of.text("ad:vo") if of.has("ad:vo") else ""
    images: Dict[str, ImageRecord] = {}
    for index, row in enumerate(value):
        if not isinstance(row, dict):
            raise _wrong((*at, index), row, "an object with hv:image")
        members = _Members(_object(row, "hv:image", (*at, index)), (*at, index, "hv:image"))
        image = _image(members, told, list_vo)
        if image.id in images:
            raise ValueError(f"at {place((*members.at, 'dc:identifier'))}: {quoted(image.id)} stands twice in the list")
        images[image.id] = image
    return tuple(images.values())


_DESCRIBED = ("dc:title", "dc:description", "sl:arch", "sl:os", "sl:osversion", "sl:comments", "hv:hypervisor")


def _image(of: _Members, told: Dict[str, str], list_vo: str) -> ImageRecord:
    for name in _DESCRIBED:
        of.text(name)
    of.version()
    uri = of.matching("hv:uri", _URI, "an absolute URI")
    return ImageRecord(
        id=of.word("dc:identifier"),
        sha512=of.matching("sl:checksum:sha512", _SHA512, "a SHA-512, 128 hexadecimal digits").lower(),
        format=_format(of, uri),
        source=LIST,
        url=uri,
        size=of.size(),
        created_wall=of.time("dc:date:created") if of.has("dc:date:created") else "",
        expires_wall=of.time("dc:date:expires") if of.has("dc:date:expires") else "",
        vo=of.text("ad:vo") if of.has("ad:vo") else list_vo,
        endorser=told["endorser"],
        list=told["list"],
        list_version=told["list_version"],
    )


def _format(of: _Members, uri: str) -> str:
    if of.has("hv:format"):
        return of.matching("hv:format", _FORMAT, "a format's name, such as qcow2").lower()
    path = re.split("[?#]", uri, maxsplit=1)[0]
    return ENDINGS.get(path.rpartition(".")[2].lower(), "raw")


def _object(value: Mapping[str, Any], name: str, at: Parts) -> Mapping[str, Any]:
    inner = _Members(value, at).get(name)
    if not isinstance(inner, dict):
        raise _wrong((*at, name), inner, "an object")
    return inner


def _wrong(at: Parts, value: Any, accepted: str) -> ValueError:
    shown = f"a list of {len(value)}" if isinstance(value, list) else quoted(value)
    where = place(at)
    return ValueError(f"{f'at {where}: ' if where else ''}{shown}; accepted: {accepted}")


# ---- versions ----

_PARTS = re.compile(r"[-,./]|[^-,./]+")
_RUNS = re.compile(r"[0-9]+|[^0-9]+")


def version_key(version: str) -> Sequence[Any]:
    """Orders versions as HEPiX tools do: by the parts between `-`, `,`, `.` and `/`, the separators compared too.

    Parts of digits compare as numbers and are higher than any other part; other parts compare by their runs of digits
    and letters, in the same way.  Of two versions of which one begins with the other, the longer is higher.
    So 2.9 < 2.10, 1.0-rc1 < 1.0.1, 20260102 < 20260110, a < a1 < b.
    """
    return tuple(_part_key(part) for part in _PARTS.findall(version))


def _part_key(part: str) -> Tuple[int, int, Sequence[Any]]:
    if part.isdigit():
        return (1, int(part), ())
    return (0, 0, tuple((1, int(run), "") if run.isdigit() else (0, 0, run) for run in _RUNS.findall(part)))
