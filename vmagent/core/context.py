"""What a user gives a guest to begin with: `user_data`, `ssh_keys`, `meta_data` of a start.  Pure.

Rules

1. All of it is secret.  It stands in the store in a row of its own, until the last VM of its command is closed, and in
   the guests' seeds; never in a wish, tag, event, reply, log or audit row.  What is told of a wrong value is its place,
   never its content, and a Context shows nothing of itself in `repr`.
2. `user_data` is base64 (RFC 4648 section 4), as EC2, OpenStack and OCCI take it: cloud-init's user data may be
   compressed, and JSON holds text only.  What it means is the guest's business, nothing looks inside.
3. The wish says only that there is a context, by a digest that nobody can guess from the content: it covers the digest
   of the signed command too.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Tuple, Union

from vmagent.core import codec
from vmagent.core.places import place
from vmagent.errors import Problem, Problems

MEMBERS = ("user_data", "ssh_keys", "meta_data")
KEY_TYPES = (
    "ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com",
)  # fmt: skip
RESERVED = (
    "dsmode", "instance-id", "instance_id", "local-hostname", "local_hostname", "network-config", "network-interfaces",
    "public-keys", "public_keys", "seedfrom", "vendor-data",
)  # fmt: skip
"""Members of NoCloud's meta-data that mean something to cloud-init: they are the agent's to say."""

Scalar = Union[str, int, float, bool, None]
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}\Z")
_KEY = "one line of an OpenSSH public key: TYPE BASE64 [COMMENT]; TYPE: " + ", ".join(KEY_TYPES)


@dataclass(frozen=True, repr=False)
class Context:
    """Checked; `user_data` still in base64, "" = none."""

    user_data: str = ""
    ssh_keys: Tuple[str, ...] = ()
    meta_data: Tuple[Tuple[str, Scalar], ...] = ()

    def __repr__(self) -> str:
        return "Context(secret)"

    @property
    def user_bytes(self) -> bytes:
        return base64.b64decode(self.user_data)

    @property
    def size(self) -> int:
        """Bytes of all of it: what `limits.context_bytes` counts.  User data as it is decoded."""
        values = [*self.ssh_keys, *(f"{name}{codec.canonical(value)}" for name, value in self.meta_data)]
        return len(self.user_bytes) + sum(len(value.encode()) for value in values)


NOTHING = Context()


def context(args: Mapping[str, Any]) -> Context:
    """Of the args of a schema-valid start.  Problems of type `context`, all at once; none repeats what it found."""
    user_data, keys, meta = args.get("user_data", ""), args.get("ssh_keys", ()), args.get("meta_data", {})
    problems = [] if _is_base64(user_data) else [_wrong(["user_data"], "base64 (RFC 4648) with its padding")]
    problems += [_wrong(["ssh_keys", index], _KEY) for index, key in enumerate(keys) if not is_public_key(key)]
    for name, value in meta.items():
        problems += _meta_problems(name, value)
    if problems:
        raise Problems(problems)
    return Context(user_data, tuple(keys), tuple(sorted(meta.items())))


def public(args: Mapping[str, Any]) -> Dict[str, Any]:
    """The args without what is secret: as they may be stored and shown."""
    return {name: value for name, value in args.items() if name not in MEMBERS}


def digest(of: Context, command_digest: str) -> str:
    """What the wish says of it; "" = there is none."""
    return "" if of == NOTHING else codec.digest([command_digest, of])


def from_json(raw: Mapping[str, Any]) -> Context:
    """What `core.codec` wrote.  ValueError, KeyError, TypeError."""
    meta = tuple((str(name), value) for name, value in raw["meta_data"])
    return Context(str(raw["user_data"]), tuple(map(str, raw["ssh_keys"])), meta)


def is_public_key(text: str) -> bool:
    """Whether it is one line of an OpenSSH public key (RFC 4253 section 6.6), without options."""
    type, _, rest = text.partition(" ")
    encoded, _, comment = rest.partition(" ")
    if type not in KEY_TYPES or not _printable(comment) or not _is_base64(encoded):
        return False
    blob = base64.b64decode(encoded)
    named = len(type).to_bytes(4, "big") + type.encode()
    return blob.startswith(named) and len(blob) > len(named)


def _is_base64(text: str) -> bool:
    try:
        return base64.b64encode(base64.b64decode(text, validate=True)).decode() == text
    except (binascii.Error, ValueError):
        return False


def _printable(text: str) -> bool:
    """No control characters, line ends of any kind or marks that change how text is shown."""
    return not any(unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp") for one in text)


def _meta_problems(name: str, value: Scalar) -> List[Problem]:
    if not _NAME.match(name) or name in RESERVED:
        accepted = f"a name of 1 to 64 of A-Z a-z 0-9 _ -, beginning with a letter, none of {', '.join(RESERVED)}"
        return [_wrong(["meta_data", name], accepted, "its name ")]
    if isinstance(value, str) and not _printable(value):
        return [_wrong(["meta_data", name], "printable text of one line, a number, true, false or null")]
    return []


def _wrong(parts: List[Any], accepted: str, what: str = "it ") -> Problem:
    path = place(parts, "args")
    return Problem("context", f"at {path}: {what}must be {accepted}", path=path, accepted=accepted)
