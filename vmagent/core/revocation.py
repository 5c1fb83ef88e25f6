"""Images that are not trusted any more, and what that means for a guest that runs on one.

Rules

1. Starts are refused at once, whatever the site's policy for running guests; a wish that never ran is a start.
2. For guests that ran already the site's `images.on_revoked` decides.  A revocation may ask for more, never for less.
3. Each thing is done and told once per VM and cause: the journal holds the cause and the strictest of what was done
   (`image_cause`, `image_action`), in the same commit as the telling.  A stricter demand for the same cause is new.
4. When the image is trusted again the journal says so, and nothing is undone: whoever paused for it resumes.
5. A revocation is about a name (`id`) or about bytes (`sha512`).  The newest version about it counts, so a newer one
   with `report` takes back a mistake.  Where both kinds are about one image the stricter one counts.
6. What a guest was admitted with (ImageRef) is asked about, not what has its name now.  A list that the site takes and
   of which no copy was read yet says nothing: it is decided when the list that was there expires, not at once.
   That an image left the site's own catalogue revokes nothing: nobody can name it any more, that is all.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Optional, Sequence, Tuple, Union

from vmagent.core import trust, walltime
from vmagent.core.ending import because, begin_stop, journaled
from vmagent.core.imagemodel import LIST, ImageRecord, Revocation
from vmagent.core.model import Desired, ImageRef, Now, VmRecord
from vmagent.core.policy import Policy, TrustPolicy
from vmagent.core.trust import VerifiedList
from vmagent.errors import Problem

ACTIONS: Tuple[str, ...] = ("report", "forbid", "pause", "stop", "kill")
"""What a revocation may ask for, the laxest first.

report: who runs it is told, nothing is refused; forbid: no start of it; pause, stop, kill: and what is to become of the
guests that run.  `images.on_revoked` knows all but `forbid`.
"""
_ENDING = (Desired.STOP, Desired.ABSENT)
Revocations = Mapping[str, Revocation]


@dataclass(frozen=True)
class Distrust:
    """Why an image is not trusted.  cause: the same text as long as it is the same reason; least: of ACTIONS."""

    cause: str
    problem: Problem
    least: str = "forbid"


def against(image: Union[ImageRef, ImageRecord], revocations: Revocations) -> Optional[Revocation]:
    """What the site said against this image; the stricter one of two."""
    said = [one for one in (revocations.get(f"sha512:{image.sha512}"), revocations.get(f"id:{image.id}")) if one]
    return max(said, key=lambda one: (ACTIONS.index(one.action), one.version), default=None)


def refused(image: Union[ImageRef, ImageRecord], revocations: Revocations) -> Optional[Distrust]:
    """By a revocation that forbids: Problem `image-revoked`."""
    said = against(image, revocations)
    if said is None or said.action == "report":
        return None
    detail = f"image {image.id} was revoked by {said.by}: {said.why or 'no reason was given'}"
    problem = Problem("image-revoked", detail, image=image.id, by=said.by, at=said.wall, version=said.version)
    return Distrust(f"image-revoked {said.version}", problem, said.action)


def record_of(image: ImageRef) -> ImageRecord:
    """What a guest was admitted with, as the record that trust.py judges."""
    return ImageRecord(
        image.id, image.sha512, image.format, image.source, image.url, image.size, image.endorser, image.list,
        image.list_version,
    )  # fmt: skip


def unendorsed(
    image: ImageRecord, lists: Mapping[str, VerifiedList], policy: TrustPolicy, now: Now, vo: Optional[str]
) -> Optional[Distrust]:
    """What trust.py says about an image that was admitted once; rule 6."""
    if image.list and image.source not in trust.ENOUGH[policy.unendorsed]:
        image = dataclasses.replace(image, source=LIST)  # the site's own, which needs the list all the same
    problem = trust.verdict(image, lists, policy, now.wall, vo)
    if problem is None or (problem.type == "list-unknown" and policy.source(image.list) is not None):
        return None
    return Distrust(f"{problem.type} {image.list}".rstrip(), problem)


def next_change_s(
    images: Sequence[ImageRef], lists: Mapping[str, VerifiedList], policy: TrustPolicy, now: Now
) -> Optional[float]:
    """Seconds until time alone may take the trust of one of these away; None = never."""
    now_s = walltime.seconds(now.wall)
    instants = [at for image in images for held in lists.values() for at in _instants(image, held, policy)]
    return min((at - now_s for at in instants if at > now_s), default=None)


def _instants(image: ImageRef, held: VerifiedList, policy: TrustPolicy) -> Iterator[float]:
    """Wall seconds at which this list's endorsement of the image ends."""
    entry = held.list.endorses(image.sha512)
    if entry is None:
        return
    yield walltime.seconds(held.list.expires_wall)
    if entry.expires_wall:
        yield walltime.seconds(entry.expires_wall)
    source, rule = policy.source(held.list.identifier), trust.rule_of(held.list.endorser, policy)
    for most_s in (source.maximum_age_s if source else None, rule.maximum_age_s):
        if most_s is not None:
            yield walltime.seconds(held.list.created_wall) + most_s + 1  # older than, not as old as


def version(revocations: Revocations) -> int:
    """The newest that this host knows; 0 = it knows none."""
    return max((one.version for one in revocations.values()), default=0)


def stricter(one: str, other: str) -> str:
    """Of two ACTIONS; "" is laxer than all."""
    return max(one, other, key=lambda action: ACTIONS.index(action) if action else -1)


def judged(record: VmRecord, distrust: Optional[Distrust], policy: Policy, now: Now) -> VmRecord:
    """The wish of a guest that may have run, as its image's trust wants it.  The same record when nothing is new."""
    journal = record.journal
    if distrust is None:
        if not journal.image_cause:
            return record
        return because(journaled(record, image_cause="", image_action=""), "agent", "its image is trusted again", now)
    action = stricter(policy.on_revoked, distrust.least)
    done = journal.image_action
    if journal.image_cause == distrust.cause and stricter(action, done) == done:
        return record
    why = f"its image is not trusted any more: {distrust.problem.detail}"
    if action != done:
        record = _DO.get(action, _told)(record, policy, now, why)
    record = journaled(record, image_cause=distrust.cause, image_action=stricter(action, done))
    return because(record, "agent", why, now)


def _told(record: VmRecord, policy: Policy, now: Now, why: str) -> VmRecord:
    return record


def _paused(record: VmRecord, policy: Policy, now: Now, why: str) -> VmRecord:
    return record if record.desired in _ENDING else dataclasses.replace(record, desired=Desired.PAUSED)


def _stopped(record: VmRecord, policy: Policy, now: Now, why: str) -> VmRecord:
    return record if record.desired in _ENDING else begin_stop(record, "image", policy.grace_s, now, why)


def _killed(record: VmRecord, policy: Policy, now: Now, why: str) -> VmRecord:
    """A disk that is to be kept outlives it, as it outlives vm.kill; a ladder under way ends now."""
    keeps = record.spec.keep_s > 0 and record.desired is not Desired.ABSENT
    record = dataclasses.replace(record, desired=Desired.STOP if keeps else Desired.ABSENT)
    return journaled(record, end_cause=record.journal.end_cause or "image", grace_s=0)


_DO: Mapping[str, Any] = {"pause": _paused, "stop": _stopped, "kill": _killed}
