"""The small CA: what it issues is verified by our own trust store; keys are private; nothing is overwritten."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from vmagent.broker.signing import Verifier, sign
from vmagent.broker.trust import TrustStore
from vmagent.config import SecuritySettings
from vmagent.core.request import envelope
from vmagent.errors import Problem
from vmagent.site import pki

NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.timezone.utc)


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    pki.init(tmp_path, "try-out CA", NOW)
    return tmp_path


def verified(ca: Path, name: str, now: datetime.datetime = NOW) -> str:
    """The CA's directory is a `security.ca_directory` of which only the CA's own files count."""
    trusted = ca / "trusted"
    trusted.mkdir(exist_ok=True)
    for file in ("ca.pem", "ca.crl"):
        (trusted / file).write_bytes((ca / file).read_bytes())
    body = sign(b"{}", (ca / f"{name}.key").read_bytes(), (ca / f"{name}.pem").read_bytes())
    verifier = Verifier(TrustStore(SecuritySettings("signed", trusted, "require", "refuse")))
    return verifier.verify(envelope(body, 1 << 20), now.timestamp())[1].subject


def test_what_it_issues_is_trusted(ca: Path) -> None:
    pki.issue(ca, "controller", "client", NOW)
    assert verified(ca, "controller") == "CN=controller"


def test_it_ends_when_it_should(ca: Path) -> None:
    pki.issue(ca, "controller", "client", NOW, days=2)
    assert verified(ca, "controller", NOW + datetime.timedelta(days=1.9))
    with pytest.raises(Problem) as caught:
        verified(ca, "controller", NOW + datetime.timedelta(days=2.1))
    assert caught.value.type == "certificate-expired"


def test_revoked_stays_revoked(ca: Path) -> None:
    one, _ = pki.issue(ca, "one", "client", NOW)
    two, _ = pki.issue(ca, "two", "client", NOW)
    pki.crl(ca, NOW, revoke=[one])
    pki.crl(ca, NOW, revoke=[two, one])
    pki.crl(ca, NOW)
    for name in ("one", "two"):
        with pytest.raises(Problem) as caught:
            verified(ca, name)
        assert caught.value.type == "certificate-revoked"
    crl = x509.load_pem_x509_crl((ca / "ca.crl").read_bytes())
    assert len(list(crl)) == 2
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 4


def test_keys_are_private(ca: Path) -> None:
    _, key = pki.issue(ca, "controller", "client", NOW)
    for path in (key, ca / "ca.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(path.suffix for path in ca.iterdir()) == [".crl", ".key", ".key", ".pem", ".pem"]


def test_kinds_and_names(ca: Path) -> None:
    path, _ = pki.issue(ca, "wn1.example.org", "host", NOW, san=("wn1.example.org", "192.0.2.1", "2001:db8::1"))
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["wn1.example.org"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.1", "2001:db8::1"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 64, "a\nb"])
def test_names_that_cannot_be(ca: Path, name: str) -> None:
    with pytest.raises(ValueError):
        pki.issue(ca, name, "client", NOW)


def test_kinds_and_days_that_cannot_be(ca: Path) -> None:
    with pytest.raises(ValueError, match="client, server, host"):
        pki.issue(ca, "x", "user", NOW)
    with pytest.raises(ValueError, match="days"):
        pki.issue(ca, "x", "client", NOW, days=0)


def test_nothing_is_overwritten(ca: Path) -> None:
    before = (ca / "ca.key").read_bytes()
    with pytest.raises(FileExistsError):
        pki.init(ca, "another", NOW)
    assert (ca / "ca.key").read_bytes() == before
    pki.issue(ca, "x", "client", NOW)
    with pytest.raises(FileExistsError):
        pki.issue(ca, "x", "client", NOW)
    for taken in ("ca",):
        with pytest.raises(FileExistsError):
            pki.issue(ca, taken, "client", NOW)
