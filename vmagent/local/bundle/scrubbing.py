"""Takes secrets out of what goes into an archive.  Pure: text in, text out.

Rules

1. What is known to be secret is never read into the archive at all (contexts, keys, the passcode's file); this is for
   what may stand in a log line, a setting or an answer all the same.
2. Every text passes `scrubbed`, whatever it is; values of settings pass `without_secrets` before, by their names.
3. Too much removed is a nuisance, too little an incident.
4. Every pass takes time in proportion to the text, whatever is in it: others write into these logs.
"""

from __future__ import annotations

import re
from typing import Any, Mapping, Match, Pattern, Sequence, Tuple

GONE = "(removed)"
_NAMES = re.compile(r"login|passw|passcode$|passphrase|secret|token|user_?data|ssh_?keys?|meta_?data|credential", re.I)
_PATTERNS: Sequence[Tuple[Pattern[str], str]] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), GONE),
    (re.compile(r"\b((?:sk-)?(?:ssh|ecdsa)-[a-z0-9@.-]{1,64}) +[A-Za-z0-9+/=]{16,}[^\n\"]*"), rf"\1 {GONE}"),
    (re.compile(r"://[^/\s\"'@]*@"), f"://{GONE}@"),  # user:password@
    (re.compile(r"\b(Bearer|Basic) +[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {GONE}"),
    (re.compile(r"(?i)\b((?:user_?data|pass(?:code|word|phrase)|secret|token)\"?\s*[:=]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;}]+)"),
     rf"\1{GONE}"),
)  # fmt: skip
_WORD = re.compile(r"[^\s\"']+")


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
    return _WORD.sub(_without_query, text)


def _without_query(word: Match[str]) -> str:
    """An address, and nothing of what it asks: tokens stand there."""
    scheme, mark, rest = word[0].partition("://")
    asked = re.search("[?#]", rest)
    return f"{scheme}{mark}{rest[:asked.start()]}?{GONE}" if asked else word[0]
