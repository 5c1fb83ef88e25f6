"""A small certificate authority for trying things out and for tests.  A real site has its own.

Everything lies in one directory: `ca.pem`, `ca.key`, `ca.crl` (the form `security.ca_directory` reads), and `NAME.pem`,
`NAME.key` per certificate.  Keys are EC P-256, unencrypted, mode 0600.  `NAME.pem` holds the certificate alone: the CA
is known to whoever trusts it.  Time is handed in, with its zone.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from pathlib import Path
from typing import Iterable, List, Optional, Sequence, Tuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

KINDS = {
    "client": (ExtendedKeyUsageOID.CLIENT_AUTH,),  # signs commands, logs in to the broker
    "server": (ExtendedKeyUsageOID.SERVER_AUTH,),  # the broker
    "host": (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH),  # a hypervisor host
}
CA_DAYS = 3650
CRL_DAYS = 30
_EARLIER = datetime.timedelta(minutes=5)  # clocks differ
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,62}")


def init(directory: Path, name: str, now: datetime.datetime, days: int = CA_DAYS) -> Path:
    """Make the CA and its first, empty revocation list; the path of `ca.pem`.  FileExistsError if there is one."""
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    builder = _builder(subject, subject, key.public_key(), now, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(_usage(ca=True), critical=True)
    _write_key(directory / "ca.key", key)
    certificate = builder.sign(key, hashes.SHA256())
    _write(directory / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    crl(directory, now)
    return directory / "ca.pem"


def issue(
    directory: Path,
    common_name: str,
    kind: str,
    now: datetime.datetime,
    days: int = 365,
    san: Sequence[str] = (),
) -> Tuple[Path, Path]:
    """(certificate, key).  kind: client | server | host; san: DNS names and IP addresses.

    ValueError for a name, kind or number of days that cannot be; FileExistsError when the name is taken.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: one of {', '.join(KINDS)}")
    if days < 1:
        raise ValueError("days: at least 1")
    subject = _subject(common_name)
    ca, ca_key = _load(directory)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(subject, ca.subject, key.public_key(), now, days, ca_key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(ca=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(KINDS[kind]), critical=False)
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(_alternatives(san)), critical=False)
    certificate = builder.sign(ca_key, hashes.SHA256())
    stem = common_name.replace(" ", "_")
    paths = directory / f"{stem}.pem", directory / f"{stem}.key"
    _write_key(paths[1], key)
    _write(paths[0], certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return paths


def crl(directory: Path, now: datetime.datetime, revoke: Iterable[Path] = (), days: int = CRL_DAYS) -> Path:
    """Write `ca.crl` anew: all that was revoked before, and the certificates in these files.  Its path."""
    ca, ca_key = _load(directory)
    path = directory / "ca.crl"
    builder = x509.CertificateRevocationListBuilder().issuer_name(ca.subject)
    builder = builder.last_update(now - _EARLIER).next_update(now + datetime.timedelta(days=days))
    serials = {x509.load_pem_x509_certificate(file.read_bytes()).serial_number for file in revoke}
    before = x509.load_pem_x509_crl(path.read_bytes()) if path.exists() else None
    for entry in before or ():
        builder = builder.add_revoked_certificate(entry)
        serials.discard(entry.serial_number)
    for serial in sorted(serials):
        entry_builder = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - _EARLIER)
        builder = builder.add_revoked_certificate(entry_builder.build())
    builder = builder.add_extension(x509.CRLNumber(_next_number(before)), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
    )
    signed = builder.sign(ca_key, hashes.SHA256())
    _write(path, signed.public_bytes(serialization.Encoding.PEM), 0o644, replace=True)
    return path


def _next_number(before: Optional[x509.CertificateRevocationList]) -> int:
    if before is None:
        return 1
    return before.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number + 1


def _subject(common_name: str) -> x509.Name:
    if not _NAME.fullmatch(common_name):
        raise ValueError(f"name {common_name!r}: letters, digits, space and ._@-, at most 63, no path")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    days: int,
    issuer_key: Optional[ec.EllipticCurvePublicKey] = None,
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public_key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - _EARLIER).not_valid_after(now + datetime.timedelta(days=days))
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key or public_key)
    return builder.add_extension(signer, critical=False)


def _usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _alternatives(san: Sequence[str]) -> List[x509.GeneralName]:
    names: List[x509.GeneralName] = []
    for name in san:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            names.append(x509.DNSName(name))
    return names


def _load(directory: Path) -> Tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{directory / 'ca.key'} is not a key that this CA made")
    return x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes()), key


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(path, encoded, 0o600)


def _write(path: Path, content: bytes, mode: int, replace: bool = False) -> None:
    """Whole or not at all, and never wider than `mode`, not even for a moment."""
    if path.exists() and not replace:
        raise FileExistsError(f"{path} is there already")
    partial = path.with_name(path.name + ".new")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
