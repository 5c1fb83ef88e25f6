"""Whose a VM is, as accounting portals name people and groups (FORMATS 1.2, 1.3, 7).

A certificate's subject is written in the slash form, without a proxy's own part; any other identifier (Check-in's) as
it is.  A group is an FQAN with Role and Capability; what does not begin with `/` reads as the VO as a whole.
"""

from __future__ import annotations

import re
from typing import Any, Mapping, Tuple

from vmagent.core import dn
from vmagent.render import words

_OPENSSL = {"EMAILADDRESS": "emailAddress", "SERIALNUMBER": "serialNumber", "STREET": "street"}
"""Attribute types that OpenSSL does not write in capitals."""
_ENTITLEMENT = re.compile(r"urn:[^#]*?:group:([^#]+)(?:#.*)?", re.DOTALL)  # AARC-G002
_VO = re.compile(r"/([^/]+)")


def user(owner: Mapping[str, Any]) -> str:
    """`/DC=org/DC=example/CN=Jane Doe`; "" = nobody is named."""
    subject = str(owner["subject"])
    try:
        rdns = dn.without_proxy(dn.parse(subject))
    except ValueError:
        return words.line(subject)
    named = tuple(tuple((_OPENSSL.get(kind, kind), value) for kind, value in rdn) for rdn in rdns)
    return words.line(dn.slash(named))


def fqan(owner: Mapping[str, Any]) -> str:
    """`/vo/group/Role=R/Capability=NULL`, or the VO alone; "" = neither is known.

    The first of several (`;`) counts, as it does for the reader.  One that is too long is not cut, for half a role is
    another role: it becomes its VO.
    """
    text = str(owner["fqan"]).split(";")[0].strip()
    groups, role, capability = _parts(text)
    if not groups:
        return words.line(text) or words.line(str(owner["vo"]))
    whole = "/" + "/".join(groups)
    full = words.line(f"{whole}/Role={role}/Capability={capability}", 10 * words.LONGEST)
    return full if len(full) <= words.LONGEST else words.line(f"/{groups[0]}")


def vo(owner: Mapping[str, Any]) -> str:
    """The VO's name; "" = not known."""
    found = _VO.match(fqan(owner))
    return words.line(str(owner["vo"])) or (found.group(1) if found else fqan(owner))


def role(owner: Mapping[str, Any]) -> str:
    """The role's name; "" = none."""
    return words.line(_parts(str(owner["fqan"]).split(";")[0].strip())[1])


def _parts(text: str) -> Tuple[Tuple[str, ...], str, str]:
    """(groups, role, capability) of an FQAN or an entitlement; no groups: it is neither."""
    found = _ENTITLEMENT.fullmatch(text)
    if found is not None:
        parts = found.group(1).split(":")
    elif text.startswith("/"):
        parts = text.split("/")
    else:
        return (), "", ""
    role, capability, groups = "NULL", "NULL", []
    for part in filter(None, parts):
        name, equals, value = part.partition("=")
        if equals and name.lower() == "role":
            role = value or "NULL"
        elif equals and name.lower() == "capability":
            capability = value or "NULL"
        else:
            groups.append(part)
    return tuple(groups), role, capability
