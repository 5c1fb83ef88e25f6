"""Is an image trusted, here and now?  Said anew each time from the lists as last verified and the site's policy.

Rules

1. An image is its SHA-512 (imagemodel.py): endorsed is what a list that the site takes names by that digest, whatever
   the record calls it.  One list that endorses it is enough.
2. `accepted` is asked once, when a list comes in: everything that is said about the list itself, in the order of HEPiX
   tools (FORMATS 6.3), each with its own problem type.  `verdict` is asked at every use: what may have changed since.
3. Revocation is mostly absence: a newer list without the image, or with another digest.  While no newer list can be
   had, the one that is there counts until it expires or is older than the site allows.
4. What a person revoked here, by command, stays revoked, endorsed or not.

Problem types.  Of a list: list-signature (listsignature.py), list-format, list-signer, list-endorser, list-identifier,
list-created, list-expired, list-rollback.  Of an image at use: image-revoked, image-unendorsed, list-unknown,
list-endorser, endorser-denied, list-expired, list-too-old, image-withdrawn, image-expired, image-vo, and what made the
list void since (certificate-revoked and the like).
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Iterator, List, Mapping, Optional, Sequence, Tuple

from vmagent.core import dn, walltime
from vmagent.core.imagelist import ImageList, version_key
from vmagent.core.imagemodel import LIST, REQUEST, SITE, ImageRecord
from vmagent.core.policy import CatalogueImage, Endorser, ListSource, TrustPolicy
from vmagent.errors import Problem

ENOUGH: Mapping[str, Tuple[str, ...]] = {"deny": (), "site": (SITE,), "request": (SITE, REQUEST)}
"""`unendorsed` -> sources whose images need no list."""


@dataclass(frozen=True)
class Signature:
    """Whose signature it is: subject and issuer of the certificate, slash form."""

    subject: str
    issuer: str


@dataclass(frozen=True)
class VerifiedList:
    """A list that was accepted.  void_*: what was found since that takes its endorsement away, such as a revoked
    certificate; "" = nothing.
    """

    list: ImageList
    verified_wall: str
    signer: str = ""  # slash form; "" = a plain list of the site's
    void_type: str = ""
    void_why: str = ""


# ---- a list comes in ----


def accepted(
    fresh: ImageList,
    signature: Optional[Signature],
    source: ListSource,
    known: Optional[ImageList],
    now_s: float,
    skew_s: float = 0.0,
) -> None:
    """Whether `fresh` may be used from now on.  signature None: a plain list, whose source must allow that.

    known: the list that was used so far.  Problems: list-signature, list-signer, list-endorser, list-identifier,
    list-created, list-expired, list-rollback; the first that applies.
    """
    if signature is None and source.signature != "none":
        raise Problem("list-signature", f"list {source.identifier} is not signed")
    if signature is not None and not (_same(signature.subject, fresh.endorser) and _same(signature.issuer, fresh.ca)):
        raise Problem("list-signer", f"the list names {fresh.endorser} of {fresh.ca} as its endorser, but it is signed "
                      f"by {signature.subject} of {signature.issuer}", signer=signature.subject)
    if not _among(fresh.endorser, source.endorsers):
        raise _not_authorised(fresh.endorser, source)
    if fresh.identifier != source.identifier:
        raise Problem("list-identifier", f"this is list {fresh.identifier}, wanted was {source.identifier}",
                      found=fresh.identifier, accepted=source.identifier)
    if walltime.seconds(fresh.created_wall) > now_s + skew_s:
        now = walltime.text(now_s)
        raise Problem("list-created", f"created at {fresh.created_wall}, that is in the future: it is {now}", now=now)
    if now_s >= walltime.seconds(fresh.expires_wall):
        raise _expired(fresh)
    if known is not None and _age_key(fresh) < _age_key(known):
        raise Problem("list-rollback", f"version {fresh.version} of {fresh.created_wall} is older than version "
                      f"{known.version} of {known.created_wall}, which is known here", known=known.version)


def _age_key(one: ImageList) -> Tuple[Sequence[Any], float]:
    """An equal version is told apart by when it was made."""
    return version_key(one.version), walltime.seconds(one.created_wall)


# ---- an image is used ----


def verdict(
    image: ImageRecord,
    lists: Mapping[str, VerifiedList],
    policy: TrustPolicy,
    now_wall: str,
    vo: Optional[str],
) -> Optional[Problem]:
    """Why the image must not be used; None = it may.  lists: by identifier; vo: for whom, None = for nobody yet.

    The reason is that of the list which the image came from, if it came from one.
    """
    if image.revoked_by:
        why = f": {image.revoked_why}" if image.revoked_why else ""
        return _about(image, "image-revoked", f"revoked by {image.revoked_by} at {image.revoked_wall}{why}")
    if image.source in ENOUGH[policy.unendorsed]:
        return None
    reasons: List[Problem] = []
    for identifier in _asked(image, lists):
        reason = _reason(image, identifier, lists.get(identifier), policy, walltime.seconds(now_wall), vo)
        if reason is None:
            return None
        reasons.append(reason)
    return reasons[0] if reasons else _about(image, "image-unendorsed", "no list that this site takes endorses it")


def candidates(
    id: str, catalogue: Mapping[str, CatalogueImage], lists: Mapping[str, VerifiedList], policy: TrustPolicy
) -> Tuple[ImageRecord, ...]:
    """Every image of this name: the site's own first, then the lists' in the order in which the site names them."""
    own = catalogue.get(id)
    found = [of_catalogue(own)] if own is not None else []
    for source in policy.lists:
        held = lists.get(source.identifier)
        image = held.list.image(id) if held is not None else None
        found += [image] if image is not None else []
    return tuple(found)


def of_catalogue(image: CatalogueImage) -> ImageRecord:
    """The site's own image as a record."""
    return ImageRecord(image.id, image.sha512.lower(), image.format, SITE, image.url, image.size)


def _asked(image: ImageRecord, lists: Mapping[str, VerifiedList]) -> Iterator[str]:
    """The image's own list, then every other one that has its digest."""
    if image.source == LIST:
        yield image.list
    for identifier, held in lists.items():
        if (identifier != image.list or image.source != LIST) and held.list.endorses(image.sha512) is not None:
            yield identifier


def _reason(
    image: ImageRecord, identifier: str, held: Optional[VerifiedList], policy: TrustPolicy, now_s: float,
    vo: Optional[str],
) -> Optional[Problem]:
    """Why this list does not make the image trusted."""
    source = policy.source(identifier)
    if source is None:
        return _about(image, "list-unknown", f"list {identifier} is not taken by this site")
    if held is None:
        return _about(image, "list-unknown", f"no verified copy of list {identifier} is here")
    rule = rule_of(held.list.endorser, policy)
    return (
        _list_reason(image, held, source, rule, now_s)
        or _image_reason(image, held.list, now_s)
        or _vo_reason(image, held.list, source, rule, vo)
    )  # fmt: skip


def _list_reason(
    image: ImageRecord, held: VerifiedList, source: ListSource, rule: Endorser, now_s: float
) -> Optional[Problem]:
    lst = held.list
    if held.void_type:
        return _about(image, held.void_type, f"list {lst.identifier}: {held.void_why}")
    if not held.signer and source.signature != "none":
        return _about(image, "list-signature", f"list {lst.identifier} is not signed")
    if not _among(lst.endorser, source.endorsers):
        problem = _not_authorised(lst.endorser, source)
        return _about(image, problem.type, problem.detail)
    if rule.decision == "deny":
        return _about(image, "endorser-denied", f"this site takes nothing from {lst.endorser}")
    if now_s >= walltime.seconds(lst.expires_wall):
        return _about(image, "list-expired", _expired(lst).detail)
    age_s = now_s - walltime.seconds(lst.created_wall)
    most = [one for one in (source.maximum_age_s, rule.maximum_age_s) if one is not None]
    if most and age_s > min(most):
        return _about(image, "list-too-old", f"list {lst.identifier} was made at {lst.created_wall}; this site takes "
                      f"it for {min(most)} s")
    return None


def _image_reason(image: ImageRecord, lst: ImageList, now_s: float) -> Optional[Problem]:
    current = lst.endorses(image.sha512)
    if current is None:
        other = " (it names another SHA-512 for it)" if lst.image(image.id) is not None else ""
        return _about(image, "image-withdrawn", f"not in version {lst.version} of list {lst.identifier}{other}")
    if current.expires_wall and now_s >= walltime.seconds(current.expires_wall):
        return _about(image, "image-expired", f"its endorsement ended at {current.expires_wall}")
    return None


def _vo_reason(
    image: ImageRecord, lst: ImageList, source: ListSource, rule: Endorser, vo: Optional[str]
) -> Optional[Problem]:
    current = lst.endorses(image.sha512)
    if vo is None or current is None:
        return None
    if current.vo and current.vo != vo:
        return _about(image, "image-vo", f"endorsed for VO {current.vo}, not for {vo or 'an owner without a VO'}")
    if not all(any(fnmatchcase(vo, pattern) for pattern in patterns) for patterns in (source.vos, rule.vos)):
        return _about(image, "image-vo", f"this site takes it from this list for other VOs only, not for "
                      f"{vo or 'an owner without a VO'}")
    return None


def rule_of(endorser: str, policy: TrustPolicy) -> Endorser:
    """What the site says about this endorser; about one who is not named, nothing."""
    return next((one for one in policy.endorsers if _same(one.subject, endorser)), Endorser(endorser))


def _about(image: ImageRecord, type: str, why: str) -> Problem:
    told = {"endorser": image.endorser, "list": image.list, "list_version": image.list_version}
    return Problem(type, f"image {image.id}: {why}", image=image.id, sha512=image.sha512,
                   **{name: value for name, value in told.items() if value})


def _not_authorised(endorser: str, source: ListSource) -> Problem:
    return Problem("list-endorser", f"{endorser} may not endorse list {source.identifier} on this site",
                   endorser=endorser, accepted=list(source.endorsers))


def _expired(one: ImageList) -> Problem:
    return Problem("list-expired", f"list {one.identifier}, version {one.version}, expired at {one.expires_wall}",
                   expires=one.expires_wall)


def _same(one: str, other: str) -> bool:
    """Names as RDN lists: two forms of one name are one name."""
    try:
        return dn.same(dn.parse(one), dn.parse(other))
    except ValueError:
        return False


def _among(name: str, names: Sequence[str]) -> bool:
    return any(_same(name, one) for one in names)
