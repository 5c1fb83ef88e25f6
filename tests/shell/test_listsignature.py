"""Image lists with real signatures: each of the eight ways to be wrong is refused, with its own type."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any, Dict, Optional

import pytest

from tests.support import imagelists
from tests.support.certificates import DAY, NOW, authority, grid_name
from tests.support.endorsing import NAME, SOURCE, Endorsing, sign
from vmagent.core import walltime
from vmagent.core.imagelist import parse
from vmagent.core.policy import ListSource
from vmagent.core.trust import VerifiedList
from vmagent.errors import Problem
from vmagent.images.listcheck import again, taken
from vmagent.images.listsignature import LONGEST_SIGNED, opened

NOW_S = walltime.seconds(imagelists.NOW)
STRANGER = "/DC=org/DC=example/CN=Somebody Else"


@pytest.fixture
def site(tmp_path: Path) -> Endorsing:
    return Endorsing(tmp_path / "ca")


def take(site: Endorsing, raw: bytes, source: ListSource = SOURCE, known: Optional[str] = None, now_s: float = NOW_S,
         **settings: str) -> VerifiedList:  # fmt: skip
    before = parse(imagelists.text(version=known)) if known else None
    return taken(raw, source, site.endorsers(**settings), before, now_s, 300).verified


def refusal(site: Endorsing, raw: bytes, **rest: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        take(site, raw, **rest)
    assert caught.value.detail
    return caught.value


@pytest.mark.parametrize("form", ["SMIME", "OPAQUE", "PEM", "DER"])
def test_a_signed_list_is_taken_in_every_form(site: Endorsing, form: str) -> None:
    found = take(site, site.signed(form=form, version="3"))
    assert found.list == parse(imagelists.text(version="3"))
    assert (found.signer, found.verified_wall, found.void_type) == (imagelists.ENDORSER, imagelists.NOW, "")


def test_a_mime_header_signed_along_with_it_is_left_out(site: Endorsing) -> None:
    raw = sign(imagelists.text(), site.endorser, "SMIME", "-text")
    assert b"Content-Type: text/plain" in raw
    assert take(site, raw).list == parse(imagelists.text())


def test_the_chain_may_need_a_certificate_between(site: Endorsing) -> None:
    between = site.ca.issue("Between", ca=True, ends=NOW + 100 * DAY)
    endorser = between.issue(NAME, ends=NOW + 100 * DAY)
    site.write("between.r0", between.crl(ends=NOW + 100 * DAY))
    raw = site.signed(endorser, x509={"hv:ca": "/DC=org/DC=example/CN=Between"})
    assert take(site, raw).signer == imagelists.ENDORSER


# ---- the eight ways


def changed(raw: bytes) -> bytes:
    assert raw.count(b"images of a VO") == 1
    return raw.replace(b"images of a VO", b"images of a vo")


WRONG: Dict[str, Dict[str, Any]] = {
    "list-signer": {"x509": {"hv:dn": STRANGER}},
    "list-endorser": {"source": dataclasses.replace(SOURCE, endorsers=(STRANGER,))},
    "list-identifier": {"identifier": "another"},
    "list-created": {"created": "2026-11-21T00:00:00Z"},
    "list-expired": {"expires": "2026-11-20T00:00:00Z"},
    "list-rollback": {"version": "9", "known": "10"},
    "list-format": {"images": [imagelists.image(size=0)]},
}


@pytest.mark.parametrize("type", WRONG)
def test_each_way_to_be_wrong_has_its_type(site: Endorsing, type: str) -> None:
    members = dict(WRONG[type])
    rest = {name: members.pop(name) for name in ("source", "known") if name in members}
    assert refusal(site, site.signed(**members), **rest).type == type


def test_a_changed_content_has_no_valid_signature(site: Endorsing) -> None:
    found = refusal(site, changed(site.signed()))
    assert found.type == "list-signature" and "verify" in found.detail


@pytest.mark.parametrize("raw", [
    b"", b"{}", imagelists.text(), b"Content-Type: multipart/signed; boundary=x\n\n--x\n", b"-----BEGIN PKCS7-----\n",
    b"\x30\x03\x02\x01\x00", b"\x00" * 1000, b"x" * (LONGEST_SIGNED + 1),
])  # fmt: skip
def test_what_is_not_signed_is_refused(site: Endorsing, raw: bytes) -> None:
    assert refusal(site, raw).type == "list-signature"


def test_a_signature_over_nothing_here_is_refused(site: Endorsing) -> None:
    """Detached, and the content is not in it."""
    raw = site.signed(form="DER")
    detached = sign(imagelists.text(), site.endorser, "SMIME")
    start = detached.index(b"MI")
    base64 = detached[start : detached.index(b"\n\n", start)]
    pem = b"-----BEGIN PKCS7-----\n" + base64 + b"\n-----END PKCS7-----\n"
    assert refusal(site, pem).type == "list-signature"
    assert take(site, raw)


def test_two_signers_are_one_too_many(site: Endorsing, tmp_path: Path) -> None:
    other = site.ca.issue("Other", ends=NOW + 100 * DAY)
    for name, content in (("o.pem", other.pem), ("o.key", other.key_pem)):
        (tmp_path / name).write_bytes(content)
    raw = sign(imagelists.text(), site.endorser, "DER", "-signer", str(tmp_path / "o.pem"), "-inkey",
               str(tmp_path / "o.key"))  # fmt: skip
    found = refusal(site, raw)
    assert found.type == "list-signature" and "2 signers" in found.detail


def test_enciphered_is_not_signed(site: Endorsing, tmp_path: Path) -> None:
    (tmp_path / "c.pem").write_bytes(site.endorser.pem)
    argv = ["openssl", "cms", "-encrypt", "-outform", "DER", "-aes256", str(tmp_path / "c.pem")]
    raw = subprocess.run(argv, input=imagelists.text(), capture_output=True, check=True).stdout
    assert refusal(site, raw).type == "list-signature"


# ---- certificates


def test_a_stranger_s_ca_is_not_believed(site: Endorsing) -> None:
    raw = site.signed(authority().issue(NAME, ends=NOW + 100 * DAY))
    assert refusal(site, raw).type == "certificate-untrusted"


def test_the_same_name_below_another_ca_of_the_site_is_somebody_else(site: Endorsing) -> None:
    second = authority("Second")
    site.write("second.pem", second.pem)
    site.write("second.r0", second.crl(ends=NOW + 100 * DAY))
    raw = site.signed(second.issue(NAME, ends=NOW + 100 * DAY))
    assert refusal(site, raw).type == "list-signer"


def test_a_revoked_endorser_is_refused(site: Endorsing) -> None:
    site.revoke(site.endorser)
    assert refusal(site, site.signed()).type == "certificate-revoked"


def test_revocation_lists_count_as_for_commands(site: Endorsing) -> None:
    site.revoke(ends=NOW + DAY)
    assert refusal(site, site.signed()).type == "crl-expired"
    (site.directory / "ca.r0").unlink()
    assert refusal(site, site.signed()).type == "crl-missing"
    assert take(site, site.signed(), crl="when_present")


def test_times_and_strength_of_the_certificate_count(site: Endorsing) -> None:
    assert refusal(site, site.signed(site.ca.issue(NAME, ends=NOW + DAY))).type == "certificate-expired"
    late = site.ca.issue(NAME, begins=NOW + 90 * DAY, ends=NOW + 100 * DAY)
    assert refusal(site, site.signed(late)).type == "certificate-not-yet-valid"
    a_ca = site.ca.issue(NAME, ca=True, ends=NOW + 100 * DAY)
    assert refusal(site, site.signed(a_ca)).type == "certificate-untrusted"


def test_a_proxy_signs_no_list_whatever_the_site_takes_for_commands(site: Endorsing) -> None:
    proxy = site.endorser.proxy(ends=NOW + 90 * DAY)
    assert refusal(site, site.signed(proxy), proxies="accept").type == "proxy-certificate"


def test_names_with_other_letters_come_through(site: Endorsing) -> None:
    endorser = site.ca.issue(grid_name("J\u00fcrgen, the + Endorser"), ends=NOW + 100 * DAY)
    dn = "/DC=org/DC=example/CN=J\u00fcrgen, the + Endorser"
    raw = site.signed(endorser, x509={"hv:dn": dn})
    assert take(site, raw, dataclasses.replace(SOURCE, endorsers=(dn,))).signer == dn


# ---- plain lists, and copies that were taken before


def test_a_plain_list_is_taken_where_the_site_says_so(site: Endorsing) -> None:
    plain = dataclasses.replace(SOURCE, signature="none")
    found = take(site, imagelists.text(), plain)
    assert (found.list.version, found.signer) == ("1", "")
    assert refusal(site, b"{}", source=plain).type == "list-format"


def test_a_kept_copy_outlives_its_time_but_not_its_signer(site: Endorsing) -> None:
    raw = site.signed(expires="2026-11-20T00:00:00Z")
    found = again(raw, SOURCE, site.endorsers(), NOW_S)
    assert (found.verified.list.version, found.verified.void_type, found.doubt) == ("1", "", None)
    site.revoke(site.endorser)
    found = again(raw, SOURCE, site.endorsers(), NOW_S)
    assert found.verified.void_type == "certificate-revoked" and "revoked" in found.verified.void_why


def test_a_revocation_list_out_of_date_says_nothing_about_a_kept_copy(site: Endorsing) -> None:
    site.revoke(ends=NOW + DAY)
    found = again(site.signed(), SOURCE, site.endorsers(), NOW_S)
    assert found.verified.void_type == ""
    assert found.doubt is not None and found.doubt.type == "crl-expired"


def test_a_kept_copy_that_somebody_changed_is_not_used(site: Endorsing) -> None:
    for raw in (changed(site.signed()), b"", site.signed(identifier="another")):
        with pytest.raises(Problem) as caught:
            again(raw, SOURCE, site.endorsers(), NOW_S)
        assert caught.value.type in ("list-signature", "list-format")


def test_the_certificates_come_along_with_the_signer_first(site: Endorsing) -> None:
    assert opened(site.signed()).certificates[0].strip() == site.endorser.pem.strip()
