"""Distinguished names: two written forms, one value (FORMATS 7).

Grid software writes `/C=NL/O=x/CN=y` (OpenSSL's oneline, most significant first), RabbitMQ and Java `CN=y,O=x,C=NL`
(RFC 4514, least significant first).  Names are compared as lists of RDNs, most significant first, attribute types in
one spelling, values exactly: two spellings of a value are two names.

The slash form is ambiguous by nature: a `/` begins a new RDN only where `TYPE=` follows, so `CN=host/wn1.example.org`
is one value; a value that itself contains `/TYPE=` can be written in RFC 4514 only.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Dict, Iterator, List, Tuple

from vmagent.core.commands import Rdns

_TYPE = r"(?:[A-Za-z][A-Za-z0-9-]*|(?:[Oo][Ii][Dd]\.)?[0-9]+(?:\.[0-9]+)+)"
_SLASH = re.compile(rf"/(?={_TYPE}=)")
_PLUS = re.compile(rf"\+(?={_TYPE}=)")
_PAIR = re.compile(rf"\s*({_TYPE})\s*=(.*)", re.DOTALL)
_HEX_PAIRS = re.compile(r"(?:\\x[0-9A-Fa-f]{2})+")
_PROXY = re.compile(r"proxy|limited proxy|[0-9]+")
_LONGEST = 2048

# RFC 4514 section 3, RFC 4519, and what OpenSSL calls them; everything else keeps its own name in upper case.
_SPELLINGS: Dict[str, str] = {
    "2.5.4.3": "CN", "COMMONNAME": "CN",
    "2.5.4.4": "SN", "SURNAME": "SN",
    "2.5.4.5": "SERIALNUMBER",
    "2.5.4.6": "C", "COUNTRYNAME": "C",
    "2.5.4.7": "L", "LOCALITYNAME": "L",
    "2.5.4.8": "ST", "STATEORPROVINCENAME": "ST", "S": "ST",
    "2.5.4.9": "STREET", "STREETADDRESS": "STREET",
    "2.5.4.10": "O", "ORGANIZATIONNAME": "O",
    "2.5.4.11": "OU", "ORGANIZATIONALUNITNAME": "OU",
    "2.5.4.42": "GN", "GIVENNAME": "GN",
    "0.9.2342.19200300.100.1.1": "UID", "USERID": "UID",
    "0.9.2342.19200300.100.1.25": "DC", "DOMAINCOMPONENT": "DC",
    "1.2.840.113549.1.9.1": "EMAILADDRESS", "EMAIL": "EMAILADDRESS", "E": "EMAILADDRESS",
}  # fmt: skip


@lru_cache(maxsize=1024)
def parse(text: str) -> Rdns:
    """Either form (a leading `/` is the slash form) as canonical RDNs.  ValueError when it is none."""
    if not 0 < len(text) <= _LONGEST:
        raise ValueError(f"a distinguished name has 1 to {_LONGEST} characters")
    return canonical(_slash_rdns(text) if text.startswith("/") else _rfc4514_rdns(text))


def canonical(rdns: Rdns) -> Rdns:
    """The same name with attribute types in one spelling and the parts of each RDN in one order."""
    return tuple(tuple(sorted((_type(kind), value) for kind, value in rdn)) for rdn in rdns)


def same(one: Rdns, other: Rdns) -> bool:
    """Whether two names are the same; an empty name is nobody's."""
    return bool(one) and canonical(one) == canonical(other)


def without_proxy(rdns: Rdns) -> Rdns:
    """The end entity behind a proxy certificate's subject: trailing `CN=proxy` and `CN=<digits>` are taken off."""
    while len(rdns) > 1 and len(rdns[-1]) == 1 and rdns[-1][0][0] == "CN" and _PROXY.fullmatch(rdns[-1][0][1]):
        rdns = rdns[:-1]
    return rdns


def rfc4514(rdns: Rdns) -> str:
    """`CN=y,O=x,C=NL`."""
    return ",".join("+".join(f"{kind}={_escaped(value)}" for kind, value in rdn) for rdn in reversed(rdns))


def slash(rdns: Rdns) -> str:
    """`/C=NL/O=x/CN=y`."""
    return "".join("/" + "+".join(f"{kind}={value}" for kind, value in rdn) for rdn in rdns)


def _type(kind: str) -> str:
    upper = kind.upper()
    return _SPELLINGS.get(upper[4:] if upper.startswith("OID.") else upper, upper)


def _pair(text: str) -> Tuple[str, str]:
    found = _PAIR.fullmatch(text)
    if found is None:
        raise ValueError("each part of a distinguished name is TYPE=value")
    return found.group(1), found.group(2)


# ---- slash form ----


def _slash_rdns(text: str) -> Rdns:
    first, *rest = _SLASH.split(text)
    if first or not rest:
        raise ValueError("the slash form is /TYPE=value/TYPE=value")
    return tuple(tuple(_slash_pair(part) for part in _PLUS.split(rdn)) for rdn in rest)


def _slash_pair(text: str) -> Tuple[str, str]:
    kind, value = _pair(text)
    # OpenSSL writes other bytes than printable ASCII as \xHH.
    return kind, _HEX_PAIRS.sub(lambda found: _utf8(found.group().replace("\\x", "")), value)


def _utf8(digits: str) -> str:
    try:
        return bytes.fromhex(digits).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("escaped bytes that are not UTF-8") from None


# ---- RFC 4514 ----


def _rfc4514_rdns(text: str) -> Rdns:
    rdns: List[Tuple[Tuple[str, str], ...]] = []
    for rdn in _split(text, ","):
        rdns.insert(0, tuple(_rfc4514_pair(part) for part in _split(rdn, "+")))
    return tuple(rdns)


def _split(text: str, at: str) -> Iterator[str]:
    """The parts between unescaped separators."""
    start = index = 0
    while index < len(text):
        if text[index] == "\\":
            index += 1
        elif text[index] == at:
            yield text[start:index]
            start = index + 1
        index += 1
    yield text[start:]


def _rfc4514_pair(text: str) -> Tuple[str, str]:
    kind, raw = _pair(text)
    return kind, _unescaped(_trimmed(raw))


def _trimmed(raw: str) -> str:
    """Spaces around a value do not count, unless the last one is escaped."""
    value = raw.strip(" ")
    backslashes = len(value) - len(value.rstrip("\\"))
    return value + " " if backslashes % 2 and len(raw.lstrip(" ")) > len(value) else value


def _unescaped(raw: str) -> str:
    out = bytearray()
    index = 0
    while index < len(raw):
        character = raw[index]
        if character == "\\":
            width, octets = _escape(raw, index)
            out += octets
            index += width
            continue
        if character in '"<>;\x00':
            raise ValueError(f"{character!r} must be escaped in a distinguished name")
        out += character.encode("utf-8")
        index += 1
    try:
        return out.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("escaped bytes that are not UTF-8") from None


def _escape(raw: str, index: int) -> Tuple[int, bytes]:
    """(characters taken, what they mean) of the escape at `index`."""
    pair = raw[index + 1 : index + 3]
    if re.fullmatch("[0-9A-Fa-f]{2}", pair):
        return 3, bytes.fromhex(pair)
    if pair[:1] and pair[0] in ' "#+,;<=>\\':
        return 2, pair[0].encode("ascii")
    raise ValueError("a backslash stands before a special character or two hexadecimal digits")


def _escaped(value: str) -> str:
    text = re.sub(r'[\\",+;<>]', lambda found: "\\" + found.group(), value)
    text = re.sub("[\x00-\x1f\x7f]", lambda found: f"\\{ord(found.group()):02x}", text)
    if text.startswith((" ", "#")):
        text = "\\" + text
    if value.endswith(" ") and len(value) > 1:
        text = text[:-1] + "\\ "
    return text
