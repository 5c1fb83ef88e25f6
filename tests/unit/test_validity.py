"""What is published and told of certificates and revocation lists, by their dates."""

from __future__ import annotations

from typing import Any, Dict

import pytest

from vmagent.core import schemas, validity, walltime
from vmagent.core.validity import BROKER, BROKER_CA, CA, CRL, DAY_S, Dated, Papers

NOW_S = walltime.seconds("2026-11-21T12:00:00Z")


def dated(kind: str, days: float, file: str = "/etc/x.pem", begins: float = -10) -> Dated:
    return Dated(kind, file, "CN=x", NOW_S + begins * DAY_S, NOW_S + days * DAY_S)


def told(*some: Dated, **kw: Any) -> Dict[str, str]:
    return validity.troubles(Papers(some, **kw), 14, NOW_S)


def test_of_each_kind_the_first_to_end_is_published() -> None:
    some = (dated(CA, 30, "/b"), dated(CA, 3.5, "/a"), dated(CRL, 7, "/r0"), dated(BROKER, -0.5, "/host.pem"))
    assert validity.published(some, NOW_S) == [
        {"kind": "broker", "file": "/host.pem", "days_left": -1, "ends_at": "2026-11-21T00:00:00.000Z"},
        {"kind": "ca", "file": "/a", "days_left": 3, "ends_at": "2026-11-25T00:00:00.000Z"},
        {"kind": "crl", "file": "/r0", "days_left": 7, "ends_at": "2026-11-28T12:00:00.000Z"},
    ]
    items = schemas.schema("event.host.state")["properties"]["certificates"]["items"]["properties"]
    assert {"kind", "file", "days_left", "ends_at"} == set(items)
    assert set(items["kind"]["enum"]) == set(validity.PARTS)


@pytest.mark.parametrize(
    ("one", "part", "words"),
    [
        (dated(BROKER, -1, "/host.pem"), "certificate", "/host.pem (CN=x) expired on 2026-11-20 12:00 UTC"),
        (dated(BROKER, 13), "certificate", "expires on 2026-12-04"),
        (dated(BROKER, 40, begins=2), "certificate", "is not valid before 2026-11-23"),
        (dated(BROKER_CA, 1), "broker-ca", "expires on 2026-11-22"),
        (dated(CA, -100), "ca", "expired on 2026-08-13"),
        (dated(CRL, -1), "crl", "expired on 2026-11-20"),
    ],
)
def test_what_ends_is_told_with_file_and_date(one: Dated, part: str, words: str) -> None:
    (found,) = told(one).items()
    assert found[0] == part and words in found[1]


@pytest.mark.parametrize("one", [dated(BROKER, 15), dated(CA, 14), dated(CRL, 1)])
def test_what_is_far_enough_is_not(one: Dated) -> None:
    assert told(one) == {}


def test_the_text_is_the_same_tomorrow() -> None:
    papers = Papers((dated(BROKER, 10),))
    assert validity.troubles(papers, 14, NOW_S) == validity.troubles(papers, 14, NOW_S + DAY_S)


def test_many_are_counted_and_files_that_cannot_be_used_come_first() -> None:
    found = told(*(dated(CA, -n, f"/{n}.pem") for n in range(1, 6)), faults=((CA, "/bad.pem: no PEM"),))
    assert found["ca"].startswith("/bad.pem: no PEM; /5.pem") and found["ca"].endswith("; and 3 more")


def test_usable_is_about_ours_alone() -> None:
    assert validity.usable((dated(BROKER, 1), dated(CA, -1)), NOW_S)
    assert not validity.usable((dated(BROKER, -1),), NOW_S)
    assert not validity.usable((dated(BROKER, 5, begins=1),), NOW_S)
