"""`vmagent-site glue`: the site's GLUE document from its hosts' shares, wherever those come from.

From the hosts, asked now (host.snapshot carries host.capacity, which carries the share); from the collector's database;
or from files, as `vmagentctl glue` prints them or as a collector kept them.  What the hosts cannot know (the site's id
in the grid's registry, its public URL) is said on the command line.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, TextIO

from vmagent import givenfiles
from vmagent.core import strictjson
from vmagent.errors import Problem
from vmagent.render import gluesite

Shares = Dict[str, Mapping[str, Any]]
ACCEPTED = "a share as `vmagentctl glue` prints it, or a host.capacity message"


@dataclass(frozen=True)
class Said:
    """What the hosts cannot know.  None = not said."""

    gocdb_id: Optional[str] = None
    url: Optional[str] = None
    status_url: Optional[str] = None
    aup: Optional[str] = None


def share_of(told: Any) -> Optional[Mapping[str, Any]]:
    """The share in a share, in the data of host.capacity or in its event; None when there is none in it."""
    for one in (told, *(told.get(name) for name in ("glue", "data", "capacity"))) if isinstance(told, Mapping) else ():
        if isinstance(one, Mapping) and one.get(gluesite.SERVICE):
            return one
        if one is not told and isinstance(one, Mapping) and isinstance(one.get("glue"), Mapping):
            return share_of(one["glue"])
    return None


def host_of(share: Mapping[str, Any]) -> str:
    """Which host's it is."""
    return str(share[gluesite.SERVICE][0]["OtherInfo"]["Hosts"][0])


def from_files(names: Sequence[str]) -> Shares:
    """host -> share.  Problem `usage`: a file that cannot be read or holds none."""
    found: Shares = {}
    for name in names:
        try:
            share = share_of(strictjson.loads(givenfiles.content(name), givenfiles.MOST_BYTES))
            if share is None:
                raise Problem("usage", f"{name} is not {ACCEPTED}")
            found[host_of(share)] = share
        except (LookupError, TypeError):
            raise Problem("usage", f"{name} is not {ACCEPTED}") from None
    return found


def write(said: argparse.Namespace, shares: Shares, expected: Sequence[str], now_s: float, out: TextIO,
          tell: Callable[[str], None]) -> bool:
    """Write the document; whether every host that was given or is expected is in it."""
    found = gluesite.site(shares, now_s)
    for host, age_s in found.dropped.items():
        tell(f"{host}: its share is {age_s} s old and left out")
    missing = sorted(set(expected) - set(shares))
    for host in missing:
        tell(f"{host}: no share of it")
    if not found.hosts:
        tell("no host's share is young enough: there is no document")
        return False
    document = with_site(found.document, Said(said.gocdb_id, said.url, said.status_url, said.aup))
    out.write(json.dumps(document, indent=None if said.json else 2) + "\n")
    out.flush()
    return not found.dropped and not missing


def with_site(document: Mapping[str, List[Dict[str, Any]]], said: Said) -> Mapping[str, List[Dict[str, Any]]]:
    """The document with what was said of the site."""
    service, endpoint = document[gluesite.SERVICE][0], document["CloudComputingEndpoint"][0]
    if said.gocdb_id is not None:
        service["OtherInfo"] = {**service.get("OtherInfo", {}), "gocdb_id": said.gocdb_id}
    for of, name, value in ((endpoint, "URL", said.url), (service, "StatusInfo", said.status_url),
                            (service, "ServiceAUP", said.aup)):
        if value is not None:
            of[name] = value
    return document
