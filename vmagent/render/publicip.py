"""Public addresses in use as an APEL public IP message, version 0.2 (FORMATS 1.7).

A snapshot: how many addresses of each IP version each user has now.  It is this host's share; addresses of one VM are
on one host, so a site adds the hosts' shares.
"""

from __future__ import annotations

import ipaddress
import json
from collections import Counter
from typing import Any, Dict, Iterable, List, Tuple

from vmagent.render import owners, usage, words
from vmagent.render.apel import CLOUD_TYPE, Publisher
from vmagent.render.usage import Row

TYPE = "APEL Public IP message"
VERSION = "0.2"  # the published schema says v0.2, its only readers 0.2
MOST_RECORDS = 1000
UNKNOWN = "unknown"  # these members may not be null


def messages(rows: Iterable[Row], publisher: Publisher, at: int) -> List[str]:
    """Of the newest row of each segment that has not ended; at: seconds since 1970.  [] = no address is in use."""
    found: Counter[Tuple[str, str, str, int]] = Counter()
    for row in rows:
        if usage.over(row):
            continue
        owner = row["owner"]
        user, vo, fqan = (read(owner) or UNKNOWN for read in (owners.user, owners.vo, owners.fqan))
        for address in row["footprint"].get("public_addresses", ()):
            found[(user, vo, fqan, ipaddress.ip_interface(address).version)] += 1
    records = [_record(who, count, publisher, at) for who, count in sorted(found.items())]
    return [_message(records[first : first + MOST_RECORDS]) for first in range(0, len(records), MOST_RECORDS)]


def _record(who: Tuple[str, str, str, int], count: int, publisher: Publisher, at: int) -> Dict[str, Any]:
    user, vo, fqan, version = who
    return {
        "MeasurementTime": at, "SiteName": words.line(publisher.site_name),
        "CloudComputeService": words.line(publisher.cloud_service) or None, "CloudType": CLOUD_TYPE,
        "LocalUser": user, "LocalGroup": vo, "GlobalUserName": user, "FQAN": fqan, "IPVersion": version,
        "IPCount": count,
    }  # fmt: skip


def _message(records: List[Dict[str, Any]]) -> str:
    return json.dumps({"Type": TYPE, "Version": VERSION, "UsageRecords": records}, ensure_ascii=True) + "\n"
