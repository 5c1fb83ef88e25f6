"""Which image a start means: the site's catalogue, the lists it takes, and what becomes of the wish."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict

import pytest

from tests.support import building, imagelists
from tests.support.imagelists import ENDORSER, IDENTIFIER, NOW, image, text
from vmagent.core import imagechoice, revocation
from vmagent.core.imagelist import parse
from vmagent.core.model import ImageRef
from vmagent.core.policy import CatalogueImage, ListSource, Policy, TrustPolicy
from vmagent.core.startimage import Endorsements, StartImage, chosen
from vmagent.core.trust import VerifiedList
from vmagent.errors import Problem

SECOND = "second-list"
OWN = "ab" * 64
LISTED = "cd" * 64
CATALOGUE = {"own": CatalogueImage("own", "own.raw", "raw", OWN, 7)}


def known(*rows: Any, **members: Any) -> Endorsements:
    lst = parse(text(images=rows or [image("listed", LISTED)], version="42", **members))
    return Endorsements({lst.identifier: VerifiedList(lst, NOW, lst.endorser)}, NOW)


def policy(**trust: Any) -> Policy:
    sources = tuple(ListSource(name, path="/x", endorsers=(ENDORSER,)) for name in (IDENTIFIER, SECOND))
    return building.policy(images=CATALOGUE, trust=TrustPolicy(lists=sources, **trust))


def refusal(id: str, of: Policy, endorsed: Endorsements, vo: str = "atlas") -> Problem:
    with pytest.raises(Problem) as caught:
        chosen(id, of, endorsed, vo)
    return caught.value


def test_an_image_of_a_list_brings_its_provenance_into_the_wish() -> None:
    found = chosen("listed", policy(), known(), "atlas")
    ref = ImageRef("listed", LISTED, "qcow2", imagelists.URI, 4096, ENDORSER, IDENTIFIER, "42", "list")
    assert found == StartImage(ref)


def test_an_image_of_the_site_is_the_site_s_unless_a_list_endorses_it_too() -> None:
    assert chosen("own", policy(), known(), "") == StartImage(ImageRef("own", OWN, "raw"), 7)
    both = chosen("own", policy(), known(image("same-bytes", OWN)), "").ref
    assert (both.id, both.url, both.endorser, both.list, both.list_version) == ("own", "", ENDORSER, IDENTIFIER, "42")
    late = dataclasses.replace(known(image("same-bytes", OWN)), now_wall="2027-01-01T00:00:00.000Z")
    assert chosen("own", policy(), late, "").ref == ImageRef("own", OWN, "raw")


def test_the_site_s_word_is_enough_for_an_image_of_its_own_wherever_it_is_fetched_from() -> None:
    url = "https://images.example.org/own.raw"
    fetched = {"own": CatalogueImage("own", "", "raw", OWN, 7, url, 4096)}
    site = dataclasses.replace(policy(), images=fetched)
    for endorsed in (known(), known(image("same-bytes", OWN))):
        ref = chosen("own", site, endorsed, "atlas").ref
        assert (ref.url, ref.source) == (url, "site")
        assert unendorsed_now({}, ref, "site") is None  # nor when the list that endorses it too is not here any more
    assert unendorsed_now({}, chosen("own", site, known(), "atlas").ref, "deny").problem.type == "image-unendorsed"


def test_a_site_may_want_a_list_s_endorsement_for_its_own_images_too() -> None:
    strict = policy(unendorsed="deny")
    assert refusal("own", strict, known()).type == "image-unendorsed"
    assert chosen("own", strict, known(image("same-bytes", OWN)), "").ref.endorser == ENDORSER


def test_an_image_that_a_request_describes_brings_the_endorsement_that_it_needs() -> None:
    described = {"url": "https://images.example.org/a", "sha512": OWN, "format": "raw"}
    entry = known(image("same-bytes", OWN))

    def ref(unendorsed: str) -> ImageRef:
        site = dataclasses.replace(policy(unendorsed=unendorsed), image_requests=("https://images.example.org/",))
        return imagechoice.described(described, site, entry, "atlas").ref

    for unendorsed in ("deny", "site"):
        assert (ref(unendorsed).endorser, ref(unendorsed).list) == (ENDORSER, IDENTIFIER)
        assert unendorsed_now({}, ref(unendorsed), unendorsed) is None
        gone = known(image("another", LISTED)).lists
        found = unendorsed_now(gone, ref(unendorsed), unendorsed)
        assert found is not None and found.problem.type == "image-withdrawn"
    assert (ref("request").endorser, ref("request").list) == ("", "")
    assert unendorsed_now({}, ref("request"), "request") is None


def unendorsed_now(lists: Any, ref: ImageRef, unendorsed: str) -> Any:
    """What becomes of a guest that runs on it."""
    now = building.now(wall=NOW)
    return revocation.unendorsed(revocation.record_of(ref), lists, policy(unendorsed=unendorsed).trust, now, "atlas")


def test_what_nobody_knows_is_unknown_and_what_there_is_is_told() -> None:
    found = refusal("x", policy(), known())
    assert (found.type, found.fields["path"], found.fields["accepted"]) == (
        "unknown-image", "args.image.id", ["listed", "own"],
    )  # fmt: skip
    assert refusal("x", policy(), Endorsements()).fields["accepted"] == ["own"]
    assert refusal("listed", building.policy(images=CATALOGUE), known()).type == "unknown-image"
    many = known(*(image(f"i{index}", f"{index:0128x}") for index in range(60)))
    assert len(refusal("x", policy(), many).fields["accepted"]) == 50


NOT_TRUSTED: Dict[str, Endorsements] = {
    "list-expired": dataclasses.replace(known(), now_wall="2026-12-01T00:00:00.000Z"),
    "image-vo": known(vo="cms"),
    "not-supported-here": known(image("listed", LISTED, **{"hv:format": "OVA"})),
    "image-expired": known(image("listed", LISTED, **{"dc:date:expires": "2026-11-02T00:00:00Z"})),
}


@pytest.mark.parametrize("type", NOT_TRUSTED)
def test_what_is_not_trusted_does_not_start(type: str) -> None:
    found = refusal("listed", policy(), NOT_TRUSTED[type])
    assert (found.type, found.fields["path"]) == (type, "args.image.id")


def test_of_two_lists_with_one_name_the_first_that_is_trusted_is_taken() -> None:
    first, second = known(vo="cms"), known(image("listed", OWN), identifier=SECOND)
    both = Endorsements({**first.lists, **second.lists}, NOW)
    assert chosen("listed", policy(), both, "atlas").ref.sha512 == OWN
    assert chosen("listed", policy(), both, "cms").ref.sha512 == LISTED


def test_without_an_owner_no_vo_is_asked_about() -> None:
    assert chosen("listed", policy(), known(vo="cms"), None).ref.id == "listed"
