"""Which list is taken, and which image is trusted: each way to be wrong with its own type."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Optional

import pytest

from tests.support.imagelists import CA, ENDORSER, IDENTIFIER, NOW, image, text
from vmagent.core import walltime
from vmagent.core.imagelist import ImageList, parse
from vmagent.core.imagemodel import LIST, REQUEST, SITE, ImageRecord
from vmagent.core.policy import CatalogueImage, Endorser, ListSource, TrustPolicy
from vmagent.core.trust import Signature, VerifiedList, accepted, candidates, of_catalogue, verdict
from vmagent.errors import Problem

SHA = "ab" * 64
OTHER = "cd" * 64
NOW_S = walltime.seconds(NOW)
SOURCE = ListSource(IDENTIFIER, url="https://images.example.org/list", endorsers=(ENDORSER,))
SIGNED = Signature(ENDORSER, CA)
SECOND = "second-list"
STRANGER = "/DC=org/DC=example/CN=Somebody Else"


def fresh(**members: Any) -> ImageList:
    return parse(text(**members))


def held(lst: Optional[ImageList] = None, **members: Any) -> Dict[str, VerifiedList]:
    lst = lst or fresh()
    return {lst.identifier: VerifiedList(lst, NOW, lst.endorser, **members)}


def record(lst: Optional[ImageList] = None, **members: Any) -> ImageRecord:
    return dataclasses.replace((lst or fresh()).images[0], **members)


def policy(*sources: ListSource, **members: Any) -> TrustPolicy:
    return TrustPolicy(lists=sources or (SOURCE,), **members)


def type_of(problem: Optional[Problem]) -> str:
    return problem.type if problem is not None else ""


# ---- a list comes in


def test_a_list_is_accepted() -> None:
    accepted(fresh(), SIGNED, SOURCE, None, NOW_S)
    accepted(fresh(version="2"), SIGNED, SOURCE, fresh(version="1"), NOW_S)
    accepted(fresh(), SIGNED, SOURCE, fresh(), NOW_S)


def test_names_are_compared_as_names() -> None:
    rfc4514 = "CN=Image Endorser,DC=example,DC=org"
    lst = fresh(x509={"hv:dn": rfc4514, "hv:ca": "CN=CA,DC=example,DC=org"})
    accepted(lst, SIGNED, dataclasses.replace(SOURCE, endorsers=(rfc4514,)), None, NOW_S)


def test_a_plain_list_needs_a_source_that_allows_it() -> None:
    accepted(fresh(), None, dataclasses.replace(SOURCE, signature="none"), None, NOW_S)
    with pytest.raises(Problem) as caught:
        accepted(fresh(), None, SOURCE, None, NOW_S)
    assert caught.value.type == "list-signature"


REFUSED = {
    "list-signer": {"x509": {"hv:dn": STRANGER}},
    "list-endorser": {"source": {"endorsers": (STRANGER,)}},
    "list-identifier": {"identifier": "another-list"},
    "list-created": {"created": "2026-11-20T12:10:00Z"},
    "list-expired": {"expires": "2026-11-20T12:00:00Z"},
    "list-rollback": {"known": "2"},
}


def refusal(**members: Any) -> str:
    source = dataclasses.replace(SOURCE, **members.pop("source", {}))
    known = members.pop("known", None)
    with pytest.raises(Problem) as caught:
        accepted(fresh(**members), SIGNED, source, fresh(version=known) if known else None, NOW_S, 300)
    return caught.value.type


@pytest.mark.parametrize("type", REFUSED)
def test_each_way_for_a_list_to_be_wrong_has_its_type(type: str) -> None:
    assert refusal(**REFUSED[type]) == type


def test_the_order_is_that_of_hepix_tools() -> None:
    everything: Dict[str, Any] = {}
    for type, members in reversed(list(REFUSED.items())):
        if type != "list-expired":  # cannot be both: expires must be after created
            everything.update(members)
        assert refusal(**{**everything, **members}) == type


def test_the_issuer_must_be_the_one_the_list_names() -> None:
    assert refusal(x509={"hv:ca": STRANGER}) == "list-signer"


def test_a_clock_a_little_behind_is_not_the_future() -> None:
    accepted(fresh(created="2026-11-20T12:04:00Z"), SIGNED, SOURCE, None, NOW_S, 300)


def test_an_equal_version_made_earlier_is_a_rollback() -> None:
    known = fresh(version="1", created="2026-11-02T00:00:00Z")
    with pytest.raises(Problem) as caught:
        accepted(fresh(version="1"), SIGNED, SOURCE, known, NOW_S)
    assert caught.value.type == "list-rollback"


# ---- an image is used


def test_an_endorsed_image_is_trusted() -> None:
    assert verdict(record(), held(), policy(), NOW, "atlas") is None
    assert verdict(record(), held(), policy(), NOW, None) is None


@pytest.mark.parametrize("unendorsed, trusted", [("deny", ()), ("site", (SITE,)), ("request", (SITE, REQUEST))])
def test_what_may_start_without_endorsement(unendorsed: str, trusted: Any) -> None:
    for source in (SITE, REQUEST, LIST):
        found = verdict(ImageRecord("x", OTHER, "raw", source), {}, policy(unendorsed=unendorsed), NOW, "")
        expected = "" if source in trusted else "list-unknown" if source == LIST else "image-unendorsed"
        assert type_of(found) == expected


@pytest.mark.parametrize("source", [SITE, REQUEST])
def test_a_digest_that_a_list_names_is_endorsed_whoever_told_of_it(source: str) -> None:
    strict = policy(unendorsed="deny")
    assert verdict(ImageRecord("x", SHA, "raw", source), held(), strict, NOW, "") is None
    late = "2026-12-01T00:00:00.000Z"
    assert type_of(verdict(ImageRecord("x", SHA, "raw", source), held(), strict, late, "")) == "list-expired"


def test_what_was_revoked_here_stays_revoked() -> None:
    found = verdict(record(revoked_by="CN=sec", revoked_why="a root kit", revoked_wall=NOW), held(), policy(), NOW, "")
    assert found is not None and found.type == "image-revoked"
    assert "CN=sec" in found.detail and "a root kit" in found.detail
    own = ImageRecord("x", OTHER, "raw", SITE, revoked_by="a")
    assert type_of(verdict(own, {}, policy(), NOW, "")) == "image-revoked"


def rule(**members: Any) -> TrustPolicy:
    return policy(endorsers=(Endorser("CN=Image Endorser,DC=example,DC=org", **members),))


AT_USE = {
    "list not taken any more": ({"policy": TrustPolicy()}, "list-unknown"),
    "no copy": ({"lists": {}}, "list-unknown"),
    "endorser removed": ({"policy": policy(dataclasses.replace(SOURCE, endorsers=(STRANGER,)))}, "list-endorser"),
    "endorser denied": ({"policy": rule(decision="deny")}, "endorser-denied"),
    "list expired": ({"now": "2026-12-01T00:00:00.000Z"}, "list-expired"),
    "too old for the list": ({"policy": policy(dataclasses.replace(SOURCE, maximum_age_s=86400))}, "list-too-old"),
    "too old for the endorser": ({"policy": rule(maximum_age_s=86400)}, "list-too-old"),
    "gone": ({"lists": held(fresh(version="2", images=[image("z", OTHER)]))}, "image-withdrawn"),
    "another digest": ({"lists": held(fresh(version="2", images=[image(sha512=OTHER)]))}, "image-withdrawn"),
    "image expired": (
        {"lists": held(fresh(images=[image(**{"dc:date:expires": "2026-11-20T12:00:00Z"})]))}, "image-expired",
    ),
    "another VO by the list": ({"lists": held(fresh(vo="cms"))}, "image-vo"),
    "another VO by the site's row": ({"policy": policy(dataclasses.replace(SOURCE, vos=("cms*",)))}, "image-vo"),
    "another VO by the endorser's rule": ({"policy": rule(vos=("cms",))}, "image-vo"),
    "certificate revoked": ({"lists": held(void_type="certificate-revoked", void_why="so")}, "certificate-revoked"),
    "signature now wanted": (
        {"lists": {IDENTIFIER: VerifiedList(fresh(), NOW)}}, "list-signature",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", AT_USE)
def test_each_way_for_an_image_to_lose_its_trust(case: str) -> None:
    changed, type = AT_USE[case]
    found = verdict(record(), changed.get("lists", held()), changed.get("policy", policy()), changed.get("now", NOW),
                    "atlas")
    assert type_of(found) == type
    assert found is not None and found.fields["image"] == "golden" and found.fields["list"] == IDENTIFIER


def test_without_a_list_at_hand_it_counts_until_it_expires() -> None:
    assert verdict(record(), held(), policy(), "2026-11-30T23:59:59.000Z", "") is None
    assert type_of(verdict(record(), held(), policy(), "2026-12-01T00:00:00.000Z", "")) == "list-expired"


def test_the_right_vo_may_use_what_is_for_it() -> None:
    of_cms = fresh(vo="cms")
    both = policy(dataclasses.replace(SOURCE, vos=("cms", "atlas")), endorsers=(Endorser(ENDORSER, vos=("cm?",)),))
    assert verdict(record(of_cms), held(of_cms), both, NOW, "cms") is None
    assert verdict(record(of_cms), held(of_cms), both, NOW, None) is None
    assert type_of(verdict(record(of_cms), held(of_cms), both, NOW, "")) == "image-vo"


def test_one_list_that_endorses_it_is_enough() -> None:
    first, second = fresh(version="2", images=[]), fresh(identifier=SECOND, images=[image("same-bytes")])
    lists = {**held(first), **held(second)}
    both = policy(SOURCE, dataclasses.replace(SOURCE, identifier=SECOND))
    assert verdict(record(), lists, both, NOW, "") is None
    assert type_of(verdict(record(), lists, policy(SOURCE), NOW, "")) == "image-withdrawn"


# ---- names


def test_names_are_looked_up_in_the_site_s_own_catalogue_first() -> None:
    own = CatalogueImage("golden", "golden.qcow2", "qcow2", OTHER.upper())
    found = candidates("golden", {"golden": own}, held(), policy())
    assert found == (of_catalogue(own), record())
    assert found[0].sha512 == OTHER
    assert candidates("golden", {}, held(), policy()) == (record(),)
    assert candidates("golden", {}, {}, policy()) == candidates("x", {"golden": own}, held(), policy()) == ()


def test_a_list_that_the_site_does_not_take_names_nothing() -> None:
    assert candidates("golden", {}, held(), TrustPolicy()) == ()
