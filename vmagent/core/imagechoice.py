"""A golden image that a start itself describes, by URL, SHA-512 and format.

Rules

1. A request may name a URL only below what the site allows (`images.requests`), by default nothing.  Without SHA-512
   and format it is no description; both stand in the wish from here on.
2. Where that needs a list's endorsement, who gave it stands in the wish too; so a list that is not here for a while
   takes nothing away from who runs on it (revocation.py, rule 6).
3. A URL that could be read in two ways is refused: a login, a fragment, `..`, an escaped dot or slash, a backslash.
"""

from __future__ import annotations

import re
from typing import Any, Mapping, Optional
from urllib.parse import urlsplit

from vmagent.core import trust
from vmagent.core.imagemodel import REQUEST, ImageRecord, nameless
from vmagent.core.model import ImageRef
from vmagent.core.policy import Policy
from vmagent.core.startimage import Endorsements, StartImage, endorsed_by
from vmagent.errors import Problem

PATH = "args.image"
_ODD = re.compile(r"[^!-~]|[\"<>\\^`{|}]")
_CLIMBING = re.compile(r"(^|/)\.{1,2}(/|$)|%2e|%2f|%5c|%00", re.IGNORECASE)


def described(
    image: Mapping[str, Any], policy: Policy, known: Endorsements, vo: Optional[str], path: str = PATH
) -> StartImage:
    """`args.image` of a schema-valid start that has a URL, or what stands at `path`.

    Problems: `image-url`, and those of `trust.verdict`.
    """
    url, accepted = image["url"], list(policy.image_requests)
    try:
        check_url(url)
    except ValueError as error:
        raise Problem("image-url", f"this URL cannot be taken: {error}", path=f"{path}.url") from None
    if not any(url.startswith(prefix) for prefix in accepted):
        below = f"only below {', '.join(accepted)}" if accepted else "nowhere: name one by its id"
        detail = f"{policy.host} fetches images that a request describes {below}"
        raise Problem("image-url", detail, path=f"{path}.url", accepted=accepted)
    id = nameless(image["sha512"])
    record = ImageRecord(id, image["sha512"], image["format"], REQUEST, url, image.get("size", 0))
    reason = trust.verdict(record, known.lists, policy.trust, known.now_wall, vo)
    if reason is not None:
        raise Problem(reason.type, reason.detail, path=path, **reason.fields)
    by = record
    if REQUEST not in trust.ENOUGH[policy.trust.unendorsed]:
        by = endorsed_by(record, policy, known, vo) or record
    return StartImage(ImageRef(id, record.sha512, record.format, url, record.size, by.endorser, by.list,
                               by.list_version, REQUEST))  # fmt: skip


def check_url(url: str) -> None:
    """https: with a host, or file:, in one reading only.  ValueError, saying what would be accepted."""
    parts = urlsplit(url)
    if _ODD.search(url) or _CLIMBING.search(parts.path):
        raise ValueError("only plain characters, without .. or an escaped dot, slash or backslash, are accepted")
    if parts.fragment or "@" in parts.netloc:
        raise ValueError("no login and no fragment are accepted")
    if parts.scheme == "file" and not parts.netloc and not parts.query:
        return
    if parts.scheme != "https" or not parts.hostname:
        raise ValueError("https://HOST[:PORT]/PATH or file:///PATH is accepted")
    if parts.port is not None and not parts.port:
        raise ValueError("a port of 1 to 65535 is accepted")
