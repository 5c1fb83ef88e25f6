"""Signatures and chains: each thing that must be refused is refused, by its type; what is right is taken."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Callable, Dict, Optional

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from tests.support import certificates as made
from tests.support.certificates import DAY, NOW, NOW_S, Holder, authority, grid_name
from vmagent.broker import signing
from vmagent.broker.signing import Unsigned, Verifier, sign
from vmagent.broker.trust import TrustStore
from vmagent.config import SecuritySettings
from vmagent.core.request import Envelope, envelope
from vmagent.errors import Problem

PAYLOAD = b'{"schema":"vm.query/1"}'


class Site:
    """A CA directory, as an administrator would have it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = authority()
        self.write("ca.pem", self.ca.pem)
        self.write("ca.r0", self.ca.crl())

    def write(self, file: str, content: bytes) -> None:
        (self.directory / file).write_bytes(content)

    def trust(self, crl: str = "require", proxies: str = "refuse") -> TrustStore:
        return TrustStore(SecuritySettings("signed", self.directory, crl, proxies))

    def verify(self, raw: bytes, now_s: float = NOW_S, **policy: str) -> Any:
        return Verifier(self.trust(**policy)).verify(envelope(raw, 1 << 20), now_s)

    def refused(self, raw: bytes, now_s: float = NOW_S, **policy: str) -> str:
        with pytest.raises(Problem) as caught:
            self.verify(raw, now_s, **policy)
        assert caught.value.detail
        return caught.value.type


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def signed_by(holder: Holder, payload: bytes = PAYLOAD) -> bytes:
    return sign(payload, holder.key_pem, holder.chain_pem)


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def header_of(raw: bytes) -> Dict[str, Any]:
    protected = json.loads(raw)["protected"]
    header: Dict[str, Any] = json.loads(base64.urlsafe_b64decode(protected + "=" * (-len(protected) % 4)))
    return header


def with_header(holder: Holder, change: Callable[[Dict[str, Any]], Any]) -> bytes:
    """A body whose header was changed *before* it was signed (ES256): only the header can be the reason."""
    header = header_of(signed_by(holder))
    header = change(header) or header
    protected = b64(json.dumps(header).encode())
    signature = holder.key.sign(f"{protected}.{b64(PAYLOAD)}".encode(), ec.ECDSA(hashes.SHA256()))
    r, s = decode_dss_signature(signature)
    raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    return json.dumps({"protected": protected, "payload": b64(PAYLOAD), "signature": b64(raw)}).encode()


# ---- what is right ----


@pytest.mark.parametrize(
    ("key", "algorithm"), [(made.rsa_key, "PS256"), (made.p256_key, "ES256"), (made.ed25519_key, "EdDSA")]
)
def test_every_kind_of_key(site: Site, key: Callable[[], Any], algorithm: str) -> None:
    user = site.ca.issue("user", key())
    raw = signed_by(user)
    assert header_of(raw)["alg"] == algorithm
    assert set(json.loads(raw)) == {"protected", "payload", "signature"}
    payload, signer = site.verify(raw)
    assert payload == PAYLOAD
    assert signer.subject == "CN=user,DC=example,DC=org"
    assert signer.rdns == ((("DC", "org"),), (("DC", "example"),), (("CN", "user"),))
    assert signer.thumbprint == hashlib.sha256(user.certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def test_rs256_is_taken_too(site: Site) -> None:
    from jwcrypto import jwk, jws

    user = site.ca.issue("user", made.rsa_key())
    token = jws.JWS(PAYLOAD)
    header = {**header_of(signed_by(user)), "alg": "RS256"}
    token.add_signature(jwk.JWK.from_pem(user.key_pem), "RS256", json.dumps(header))
    assert site.verify(token.serialize().encode())[0] == PAYLOAD


def test_the_body_that_our_header_helper_makes_is_right(site: Site) -> None:
    assert site.verify(with_header(site.ca.issue("user"), lambda header: None))[0] == PAYLOAD


def test_any_payload(site: Site) -> None:
    payload = bytes(range(256))
    assert site.verify(signed_by(site.ca.issue("user"), payload))[0] == payload


def test_a_chain_with_an_intermediate(site: Site) -> None:
    middle = site.ca.issue("Middle CA", ca=True)
    site.write("middle.crl", middle.crl())
    user = Holder(*_below(middle, "user"))
    assert site.verify(signed_by(user))[1].subject == "CN=user,DC=example,DC=org"


def _below(middle: Holder, common: str) -> Any:
    user = middle.issue(common)
    return user.certificate, user.key, (middle.certificate,)


def test_names_of_all_kinds(site: Site) -> None:
    subject = made.name(
        (NameOID.COUNTRY_NAME, "NL"), (NameOID.ORGANIZATION_NAME, "a, b+c"), (NameOID.EMAIL_ADDRESS, "x@y.org"),
        (NameOID.COMMON_NAME, "Zoë"),
    )  # fmt: skip
    signer = site.verify(signed_by(site.ca.issue(subject)))[1]
    assert signer.rdns == ((("C", "NL"),), (("O", "a, b+c"),), (("EMAILADDRESS", "x@y.org"),), (("CN", "Zoë"),))
    assert signer.subject == "CN=Zoë,EMAILADDRESS=x@y.org,O=a\\, b\\+c,C=NL"


# ---- the envelope ----


@pytest.mark.parametrize("part", ["protected", "payload", "signature"])
def test_any_changed_bit_is_seen(site: Site, part: str) -> None:
    body = json.loads(signed_by(site.ca.issue("user")))
    trust = Verifier(site.trust())
    middle = len(body[part]) // 2
    for at in (0, middle, len(body[part]) - 2):
        other = "A" if body[part][at] != "A" else "B"
        changed = {**body, part: body[part][:at] + other + body[part][at + 1 :]}
        with pytest.raises(Problem):
            trust.verify(envelope(json.dumps(changed).encode(), 1 << 20), NOW_S)


def test_another_ones_certificate(site: Site) -> None:
    one, other = site.ca.issue("one"), site.ca.issue("other")
    der = base64.b64encode(other.certificate.public_bytes(serialization.Encoding.DER)).decode()
    assert site.refused(with_header(one, lambda header: {**header, "x5c": [der]})) == "signature"


@pytest.mark.parametrize("name", ["jku", "jwk", "x5u", "b64", "crit", "zip", "x5t"])
def test_header_members_that_could_mislead(site: Site, name: str) -> None:
    value = ["exp"] if name == "crit" else "https://example.org/"
    assert site.refused(with_header(site.ca.issue("user"), lambda header: {**header, name: value})) == "signature"


@pytest.mark.parametrize("alg", ["none", "None", "HS256", "HS512", "RS384", "ES384", "ES256K", "", None, 7, ["ES256"]])
def test_algorithms_that_are_not_taken(site: Site, alg: Any) -> None:
    assert site.refused(with_header(site.ca.issue("user"), lambda header: {**header, "alg": alg})) == "algorithm"


def test_an_unsigned_token(site: Site) -> None:
    header = {**header_of(signed_by(site.ca.issue("user"))), "alg": "none"}
    body = {"protected": b64(json.dumps(header).encode()), "payload": b64(PAYLOAD), "signature": ""}
    with pytest.raises(Problem) as caught:
        Verifier(site.trust()).verify(Envelope(**body, digest=""), NOW_S)
    assert caught.value.type == "algorithm"


def test_the_public_key_as_a_shared_secret(site: Site) -> None:
    """The classic confusion: HS256 keyed with the RSA public key's PEM."""
    import hmac

    user = site.ca.issue("user", made.rsa_key())
    public = user.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    protected = b64(json.dumps({**header_of(signed_by(user)), "alg": "HS256"}).encode())
    mac = hmac.new(public, f"{protected}.{b64(PAYLOAD)}".encode(), "sha256").digest()
    body = {"protected": protected, "payload": b64(PAYLOAD), "signature": b64(mac)}
    assert site.refused(json.dumps(body).encode()) == "algorithm"


@pytest.mark.parametrize("alg", ["RS256", "PS256", "EdDSA"])
def test_an_algorithm_for_another_kind_of_key(site: Site, alg: str) -> None:
    assert site.refused(with_header(site.ca.issue("user"), lambda header: {**header, "alg": alg})) == "algorithm"


def test_short_rsa_keys(site: Site) -> None:
    user = site.ca.issue("user", made.rsa_key(1024))
    with pytest.raises(ValueError, match="2048"):
        signed_by(user)
    der = base64.b64encode(user.certificate.public_bytes(serialization.Encoding.DER)).decode()
    header = lambda header: {**header, "x5c": [der], "alg": "PS256"}  # noqa: E731
    assert site.refused(with_header(site.ca.issue("other"), header)) == "algorithm"


def test_a_short_key_between_signer_and_anchor(site: Site) -> None:
    middle = site.ca.issue("Middle CA", made.rsa_key(1024), ca=True)
    site.write("middle.crl", middle.crl())
    assert site.refused(signed_by(Holder(*_below(middle, "user")))) in ("algorithm", "certificate-untrusted")


def test_p384_has_no_algorithm(site: Site) -> None:
    with pytest.raises(ValueError, match="P-256"):
        signed_by(site.ca.issue("user", ec.generate_private_key(ec.SECP384R1())))


def test_a_key_that_is_not_the_certificates(site: Site) -> None:
    user = site.ca.issue("user")
    with pytest.raises(ValueError, match="not the key's"):
        sign(PAYLOAD, site.ca.issue("other").key_pem, user.chain_pem)


@pytest.mark.parametrize(
    ("x5c", "expected"),
    [
        (None, "signature"),
        ([], "signature"),
        ("text", "signature"),
        ([7], "signature"),
        (["A" * 30_000], "signature"),
        (["AAAA"], "certificate-untrusted"),
        (["!"], "certificate-untrusted"),
    ],
)
def test_wrong_x5c(site: Site, x5c: Any, expected: str) -> None:
    assert site.refused(with_header(site.ca.issue("user"), lambda header: {**header, "x5c": x5c})) == expected


def test_too_many_certificates(site: Site) -> None:
    user = site.ca.issue("user")
    most = signing.MOST_CERTIFICATES
    assert site.refused(with_header(user, lambda header: {**header, "x5c": header["x5c"] * (most + 1)})) == "signature"
    assert site.verify(with_header(user, lambda header: {**header, "x5c": header["x5c"] * most}))


@pytest.mark.parametrize("protected", ["", "e", "e30=", "e 30", "bm90IGpzb24", b64(b'{"alg":"ES256","alg":"ES256"}')])
def test_a_protected_header_that_is_none(site: Site, protected: str) -> None:
    with pytest.raises(Problem) as caught:
        Verifier(site.trust()).verify(Envelope(protected, b64(PAYLOAD), "", ""), NOW_S)
    assert caught.value.type in ("signature", "json", "algorithm")


# ---- the chain ----


def test_a_stranger(site: Site) -> None:
    assert site.refused(signed_by(authority("Other CA").issue("user"))) == "certificate-untrusted"


def test_a_stranger_with_our_cas_name(site: Site) -> None:
    assert site.refused(signed_by(authority("CA").issue("user"))) == "certificate-untrusted"


def test_self_signed(site: Site) -> None:
    assert site.refused(signed_by(authority("user"))) == "certificate-untrusted"


def test_the_ca_itself_signs_no_command(site: Site) -> None:
    assert site.refused(signed_by(site.ca)) == "certificate-untrusted"
    middle = site.ca.issue("Middle CA", ca=True)
    assert site.refused(signed_by(middle)) == "certificate-untrusted"


def test_a_user_is_no_ca(site: Site) -> None:
    user = site.ca.issue("user")
    below = Holder(*_below(user, "below"))
    assert site.refused(signed_by(below)) == "certificate-untrusted"


def test_a_path_that_is_too_long(site: Site) -> None:
    middle = site.ca.issue("Middle CA", ca=True, path_length=0)
    lower = middle.issue("Lower CA", ca=True)
    user = lower.issue("user")
    site.write("m.crl", middle.crl())
    site.write("l.crl", lower.crl())
    chain = Holder(user.certificate, user.key, (lower.certificate, middle.certificate))
    assert site.refused(signed_by(chain)) == "certificate-untrusted"


def test_a_key_usage_without_signatures(site: Site) -> None:
    assert site.refused(signed_by(site.ca.issue("user", sign_only=False))) == "certificate-untrusted"
    assert site.verify(signed_by(site.ca.issue("user", sign_only=None)))


def test_time_is_the_one_handed_in(site: Site) -> None:
    raw = signed_by(site.ca.issue("user", begins=NOW - DAY, ends=NOW + DAY))
    assert site.verify(raw)
    assert site.refused(raw, NOW_S + 86_401) == "certificate-expired"
    assert site.refused(raw, NOW_S - 86_402) == "certificate-not-yet-valid"
    assert site.verify(raw, NOW_S + 86_399)


def test_time_does_not_depend_on_the_time_zone(site: Site, tmp_path: Path) -> None:
    """Of both pyOpenSSLs: the time is UTC whatever TZ says."""
    import time

    before = os.environ.get("TZ")
    try:
        os.environ["TZ"] = "Pacific/Kiritimati"
        time.tzset()
        test_time_is_the_one_handed_in(site)
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


def test_a_ca_that_expired(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.ca = authority(ends=NOW - DAY)
    site.write("ca.pem", site.ca.pem)
    site.write("ca.r0", site.ca.crl())
    assert site.refused(signed_by(site.ca.issue("user"))) == "certificate-expired"


def sha1_signed(site: Site) -> Optional[bytes]:
    try:
        return signed_by(site.ca.issue("user", hash=hashes.SHA1()))  # noqa: S303
    except Exception as error:  # noqa: BLE001 - newer cryptography refuses to make one
        assert "SHA1" in repr(error) or "Unsupported" in repr(error)
        return None


def test_a_sha1_signature(site: Site) -> None:
    raw = sha1_signed(site)
    if raw is None:
        pytest.skip("this cryptography makes no SHA-1 signature")
    assert site.refused(raw) in ("algorithm", "certificate-untrusted")


# ---- revocation ----


def test_revoked(site: Site) -> None:
    good, bad = site.ca.issue("good"), site.ca.issue("bad")
    site.write("ca.r0", site.ca.crl(bad))
    assert site.verify(signed_by(good))
    assert site.refused(signed_by(bad)) == "certificate-revoked"
    assert site.refused(signed_by(bad), crl="when_present") == "certificate-revoked"


def test_no_crl(site: Site) -> None:
    os.unlink(site.directory / "ca.r0")
    raw = signed_by(site.ca.issue("user"))
    assert site.refused(raw) == "crl-missing"
    assert site.verify(raw, crl="when_present")


@pytest.mark.parametrize("policy", ["require", "when_present"])
def test_an_old_crl(site: Site, policy: str) -> None:
    site.write("ca.r0", site.ca.crl(ends=NOW - DAY / 2))
    assert site.refused(signed_by(site.ca.issue("user")), crl=policy) == "crl-expired"


@pytest.mark.parametrize("policy", ["require", "when_present"])
def test_a_forged_crl(site: Site, policy: str) -> None:
    site.write("ca.r0", authority("CA").crl())
    assert site.refused(signed_by(site.ca.issue("user")), crl=policy) == "crl-missing"


def test_every_level_needs_its_crl(site: Site) -> None:
    middle = site.ca.issue("Middle CA", ca=True)
    raw = signed_by(Holder(*_below(middle, "user")))
    assert site.refused(raw) == "crl-missing"
    assert site.verify(raw, crl="when_present")
    site.write("m.crl", middle.crl())
    assert site.verify(raw)
    site.write("ca.r0", site.ca.crl(middle))
    assert site.refused(raw) == "certificate-revoked"
    assert site.refused(raw, crl="when_present") == "certificate-revoked"


# ---- proxies ----


def test_proxies_by_policy(site: Site) -> None:
    user = site.ca.issue("user")
    raw = signed_by(_proxied(user))
    assert site.refused(raw) == "proxy-certificate"
    _, signer = site.verify(raw, proxies="accept")
    assert signer.subject == "CN=user,DC=example,DC=org"
    assert signer.thumbprint == user.certificate.fingerprint(hashes.SHA256()).hex()


def _proxied(user: Holder) -> Holder:
    proxy = user.proxy()
    return Holder(proxy.certificate, proxy.key, (user.certificate,))


def test_a_proxy_of_a_revoked_user(site: Site) -> None:
    user = site.ca.issue("user")
    site.write("ca.r0", site.ca.crl(user))
    assert site.refused(signed_by(_proxied(user)), proxies="accept") == "certificate-revoked"


def test_a_proxy_with_another_name(site: Site) -> None:
    user = site.ca.issue("user")
    proxy = user.issue(grid_name("somebody else"), proxy=True)
    raw = signed_by(Holder(proxy.certificate, proxy.key, (user.certificate,)))
    assert site.refused(raw, proxies="accept") in ("proxy-certificate", "certificate-untrusted")


def test_an_expired_proxy(site: Site) -> None:
    user = site.ca.issue("user")
    proxy = user.proxy(begins=NOW - 2 * DAY, ends=NOW - DAY)
    raw = signed_by(Holder(proxy.certificate, proxy.key, (user.certificate,)))
    assert site.refused(raw, proxies="accept") == "certificate-expired"


# ---- the directory ----


def test_reload_sees_what_changed(site: Site) -> None:
    trust = site.trust()
    user = site.ca.issue("user")
    verifier = Verifier(trust)
    raw = envelope(signed_by(user), 1 << 20)
    assert verifier.verify(raw, NOW_S)
    assert not trust.reload()
    site.write("ca.r0", site.ca.crl(user))
    assert trust.reload()
    with pytest.raises(Problem) as caught:
        verifier.verify(raw, NOW_S)
    assert caught.value.type == "certificate-revoked"


def test_one_bad_file_does_not_cost_the_others(site: Site) -> None:
    site.write("bad.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    site.write("empty.crl", b"")
    trust = site.trust()
    assert [re.sub(":.*", "", text).rsplit("/")[-1] for text in trust.unreadable] == ["bad.pem", "empty.crl"]
    assert Verifier(trust).verify(envelope(signed_by(site.ca.issue("user")), 1 << 20), NOW_S)


def test_several_in_one_file(site: Site) -> None:
    other = authority("Other CA")
    site.write("ca.pem", site.ca.pem + other.pem + other.crl())
    assert site.verify(signed_by(other.issue("user")))
    assert site.verify(signed_by(site.ca.issue("user")))


def test_an_empty_directory_trusts_nobody(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    assert site.refused(signed_by(site.ca.issue("user"))) == "certificate-untrusted"
    assert site.trust().dated == ()


def test_how_long_each_is_valid(site: Site) -> None:
    """Of an issuer's lists only the one that lasts longest counts."""
    site.write("other.pem", authority("Other CA", ends=NOW + 3 * DAY).pem)
    site.write("old.crl", site.ca.crl(ends=NOW + 1 * DAY))
    ends = {(one.kind, Path(one.file).name): (one.ends_s - NOW_S) / 86400 for one in site.trust().dated}
    assert ends == {("ca", "ca.pem"): 1000.0, ("ca", "other.pem"): 3.0, ("crl", "ca.r0"): 7.0}


# ---- without signatures ----


def test_broker_mode_names_its_signer_and_takes_no_signature(site: Site) -> None:
    unsigned = Unsigned("controllers")
    assert unsigned.unsigned().subject == "broker:controllers"
    assert unsigned.unsigned().rdns == ()
    with pytest.raises(Problem):
        unsigned.verify(envelope(signed_by(site.ca.issue("user")), 1 << 20), NOW_S)


def test_signed_mode_has_no_unsigned_sender(site: Site) -> None:
    with pytest.raises(Problem) as caught:
        Verifier(site.trust()).unsigned()
    assert caught.value.type == "signature"
