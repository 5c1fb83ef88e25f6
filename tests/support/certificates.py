"""Certificates of every kind that a verifier must take or refuse, made in memory."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any, Optional, Sequence, Tuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

NOW_S = 1_790_000_000.0
NOW = datetime.datetime.fromtimestamp(NOW_S, datetime.timezone.utc)
DAY = datetime.timedelta(days=1)
PROXY_INFO = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")
# ProxyCertInfo { proxyPolicy { policyLanguage id-ppl-inheritAll } }
INHERIT_ALL = bytes.fromhex("300c300a06082b06010505071501")


def rsa_key(bits: int = 2048) -> Any:
    return rsa.generate_private_key(65537, bits)


def p256_key() -> Any:
    return ec.generate_private_key(ec.SECP256R1())


def ed25519_key() -> Any:
    return ed25519.Ed25519PrivateKey.generate()


def name(*pairs: Tuple[Any, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs])


def grid_name(common: str) -> x509.Name:
    return name(
        (NameOID.DOMAIN_COMPONENT, "org"), (NameOID.DOMAIN_COMPONENT, "example"), (NameOID.COMMON_NAME, common)
    )


@dataclass(frozen=True)
class Holder:
    """A certificate with its key; `above` are the certificates up to, and without, the anchor."""

    certificate: x509.Certificate
    key: Any
    above: Tuple[x509.Certificate, ...] = ()

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def chain_pem(self) -> bytes:
        return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in (self.certificate, *self.above))

    @property
    def key_pem(self) -> bytes:
        return bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    def issue(
        self,
        subject: Any,
        key: Any = None,
        ca: bool = False,
        begins: datetime.datetime = NOW - DAY,
        ends: datetime.datetime = NOW + 100 * DAY,
        sign_only: Optional[bool] = True,
        proxy: bool = False,
        hash: Any = None,
        path_length: Optional[int] = None,
    ) -> Holder:
        """A certificate below this one.  sign_only None: without key usage; False: key usage without signatures."""
        key = key or p256_key()
        subject = subject if isinstance(subject, x509.Name) else grid_name(subject)
        issuer = self.certificate.subject
        extensions = _extensions(ca, sign_only, proxy, path_length)
        signed = _signed(subject, issuer, key, self.key, begins, ends, extensions, hash)
        return Holder(signed, key, (self.certificate, *self.above) if self.certificate.issuer != issuer else ())

    def proxy(self, **changes: Any) -> Holder:
        """An RFC 3820 proxy of this one."""
        pairs = [(attribute.oid, str(attribute.value)) for attribute in self.certificate.subject]
        subject = name(*pairs, (NameOID.COMMON_NAME, "1234567"))
        return self.issue(subject, proxy=True, **changes)

    def crl(
        self, *revoked: Holder, ends: datetime.datetime = NOW + 7 * DAY, begins: datetime.datetime = NOW - DAY
    ) -> bytes:
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        builder = builder.last_update(begins).next_update(ends)
        for holder in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(holder.certificate.serial_number)
            builder = builder.add_revoked_certificate(entry.revocation_date(NOW - DAY).build())
        return builder.sign(self.key, _hash(self.key)).public_bytes(serialization.Encoding.PEM)


def authority(common: str = "CA", key: Any = None, ends: datetime.datetime = NOW + 1000 * DAY) -> Holder:
    """A self-signed CA."""
    key = key or p256_key()
    subject = grid_name(common)
    return Holder(_signed(subject, subject, key, key, NOW - 10 * DAY, ends, _extensions(True, None, False, None)), key)


def _extensions(ca: bool, sign_only: Optional[bool], proxy: bool, path_length: Optional[int]) -> Sequence[Any]:
    extensions = [] if proxy else [(x509.BasicConstraints(ca, path_length if ca else None), True)]
    if ca or sign_only is not None:
        extensions.append((_usage(ca, bool(sign_only)), True))
    if proxy:
        extensions.append((x509.UnrecognizedExtension(PROXY_INFO, INHERIT_ALL), True))
    return extensions


def _usage(ca: bool, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signs and not ca,
        content_commitment=False,
        key_encipherment=not ca,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _hash(key: Any) -> Any:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def _signed(
    subject: x509.Name, issuer: x509.Name, key: Any, by: Any, begins: Any, ends: Any, extensions: Any, hash: Any = None
) -> x509.Certificate:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begins).not_valid_after(ends)
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    return builder.sign(by, hash or _hash(by))
