"""The site's trust in images as it is published (I2): the policy, and each list as it stands here.

Where a list comes from is said in one word: its URL can hold an access token, its path is nobody else's business.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional

from vmagent.core.policy import ListSource, TrustPolicy
from vmagent.core.trust import VerifiedList


def published(policy: TrustPolicy, lists: Mapping[str, VerifiedList]) -> Dict[str, Any]:
    """`image_trust` of host.state."""
    return {
        "unendorsed": policy.unendorsed,
        "endorsers": [
            {"subject": one.subject, "decision": one.decision, "vos": list(one.vos), "maximum_age_s": one.maximum_age_s}
            for one in policy.endorsers
        ],
        "lists": [_list(source, lists.get(source.identifier)) for source in policy.lists],
    }


def _list(source: ListSource, held: Optional[VerifiedList]) -> Dict[str, Any]:
    return {
        "identifier": source.identifier,
        "from": "file" if source.path else "url",
        "signature": source.signature,
        "endorsers": list(source.endorsers),
        "vos": list(source.vos),
        "maximum_age_s": source.maximum_age_s,
        "here": None if held is None else _copy(held),
    }


def _copy(held: VerifiedList) -> Dict[str, Any]:
    return {
        "version": held.list.version,
        "created_at": held.list.created_wall,
        "expires_at": held.list.expires_wall,
        "endorser": held.list.endorser,
        "images": len(held.list.images),
        "void": f"{held.void_type}: {held.void_why}" if held.void_type else None,
    }
