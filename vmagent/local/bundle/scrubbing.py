"""Takes secrets out of what goes into an archive.  Pure: text in, text out.

Rules

1. What is known to be secret is never read into the archive at all (contexts, keys, the passcode's file); this is for
   what may stand in a log line, a setting or an answer all the same.
2. Every text passes `scrubbed`, whatever it is; values of settings pass `without_secrets` before, by their names.
3. Too much removed is a nuisance, too little an incident.
"""

from __future__ import annotations

import re
from typing import Any, Mapping, Pattern, Sequence, Tuple

GONE = "(removed)"
_NAMES = re.compile(r"login|passw|passcode$|passphrase|secret|token|user_?data|ssh_?keys?|meta_?data|credential", re.I)
_PATTERNS: Sequence[Tuple[Pattern[str], str]] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), GONE),
    (re.compile(r"\b((?:sk-)?(?:ssh|ecdsa)-[a-z0-9@.-]+) +[A-Za-z0-9+/=]{16,}[^\n\"]*"), rf"\1 {GONE}"),
    (re.compile(r"([a-z][a-z0-9+.-]*://)[^/\s\"'@]*@", re.I), rf"\1{GONE}@"),  # user:password@
    (re.compile(r"([a-z][a-z0-9+.-]*://[^\s\"'?#]*)[?#][^\s\"']*", re.I), rf"\1?{GONE}"),  # tokens in a query
    (re.compile(r"\b(Bearer|Basic) +[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {GONE}"),
    (re.compile(r"(?i)\b((?:user_?data|pass(?:code|word|phrase)|secret|token)\"?\s*[:=]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;}]+)"),
     rf"\1{GONE}"),
)  # fmt: skip


def without_secrets(value: Any) -> Any:
    """The same settings, what a name marks as secret replaced.  A file's name is none."""
    if isinstance(value, Mapping):
        return {name: GONE if _is_secret(name, inner) else without_secrets(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(inner) for inner in value]
    return value


def _is_secret(name: str, value: Any) -> bool:
    return value not in (None, "", [], {}) and not name.endswith("_file") and _NAMES.search(name) is not None


def scrubbed(text: str, known: Sequence[str] = ()) -> str:
    """known: secrets of this host, word for word."""
    for secret in known:
        text = text.replace(secret, GONE)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text
