"""Certificate chains up to the site's own CA directory, with revocation, at the time that is handed in.

OpenSSL decides, through pyOpenSSL, and it decides by *code*, never by text.  One path serves pyOpenSSL 21.0 and the
newest, which differ in how they take a CRL object: certificates and CRLs go in as one PEM bundle, `load_locations`.

Two stores: the chain is built and checked in one without CRL checks; then every certificate below the anchor is
checked for revocation on its own, in one with CRL_CHECK.  So `when_present` can leave out an issuer that has no CRL,
without a way for `require` to leave out any.

X509_STRICT is not set: what it refuses depends on the OpenSSL version, and it refuses accredited grid CAs (basic
constraints not critical, no key identifiers).  CA flag, path length, key usage and name constraints are checked anyway,
and on top: no MD5 or SHA-1 signature below the anchor, no RSA key under 2048 bits, the signer's own certificate is no
CA and may sign.
"""

from __future__ import annotations

import logging
import re
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Dict, FrozenSet, Iterator, List, Mapping, NoReturn, Tuple, Union

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from OpenSSL import crypto

from vmagent.config import SecuritySettings
from vmagent.core import dn
from vmagent.core.commands import Rdns
from vmagent.core.validity import CA, CRL, Dated
from vmagent.errors import Problem

log = logging.getLogger("vmagent.broker")

PATTERNS = ("*.pem", "*.crl", "*.r0")
SMALLEST_RSA = 2048
_EPOCH = datetime(1970, 1, 1)
_PROXY_INFO = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")  # RFC 3820
_BLOCK = re.compile(rb"-----BEGIN (CERTIFICATE|X509 CRL)-----.+?-----END \1-----", re.DOTALL)
_WEAK = frozenset({"md2", "md4", "md5", "sha1"})

# X509_V_ERR_* of OpenSSL's x509_vfy.h; what is not here is "certificate-untrusted".
_TYPES: Mapping[int, Tuple[str, str]] = {
    3: ("crl-missing", "no revocation list of its issuer in the CA directory"),
    8: ("crl-missing", "the revocation list of its issuer has a bad signature"),
    9: ("certificate-not-yet-valid", "it is not valid yet"),
    10: ("certificate-expired", "it has expired"),
    11: ("crl-expired", "the revocation list of its issuer is not valid yet"),
    12: ("crl-expired", "the revocation list of its issuer has expired: fetch a new one"),
    23: ("certificate-revoked", "its issuer has revoked it"),
    33: ("crl-missing", "nobody known has signed the revocation list"),
    35: ("crl-missing", "the signer of the revocation list must not sign one"),
    36: ("crl-missing", "the revocation list has a critical extension that is not understood"),
    38: ("proxy-certificate", "its proxy path is too long"),
    40: ("proxy-certificate", "proxy certificates are not accepted here"),
    44: ("crl-missing", "the revocation list is about something else"),
    67: ("proxy-certificate", "a proxy's name must be its issuer's and one more CN"),
}

Certificates = Tuple[x509.Certificate, ...]
_Ending = Union[x509.Certificate, x509.CertificateRevocationList]


class TrustStore:
    """The CA directory as it was when it was last read.  `reload` reads files; everything else only computes."""

    def __init__(self, settings: SecuritySettings) -> None:
        self._settings = settings
        self._seen: Dict[str, Tuple[int, int]] = {}
        self._anchors: Certificates = ()
        self._crls: Tuple[x509.CertificateRevocationList, ...] = ()
        self._with_crl: FrozenSet[bytes] = frozenset()
        self._chains, self._revocations = crypto.X509Store(), crypto.X509Store()
        self.unreadable: Tuple[str, ...] = ()  # files that were left out, each with its reason
        self.dated: Tuple[Dated, ...] = ()  # each CA certificate, and the newest revocation list of each issuer
        self.reload()

    def reload(self) -> bool:
        """Read the directory again if a name, size or time in it changed; whether it did.  Call it off the reactor.

        A file that cannot be read is left out, logged and listed in `unreadable`; the others count.
        """
        paths = sorted({path for pattern in PATTERNS for path in self._settings.ca_directory.glob(pattern)})
        seen = {str(path): stamp(path) for path in paths}
        if seen == self._seen:
            return False
        anchors: Dict[bytes, x509.Certificate] = {}
        crls: Dict[bytes, x509.CertificateRevocationList] = {}
        unreadable, dated = [], []
        for path in paths:
            try:
                _read(path, anchors, crls)
                dated += dates(CA, path)
            except (OSError, ValueError, UnsupportedAlgorithm) as error:
                unreadable.append(f"{path}: {error}")
                log.error("left out of the trusted certificates: %s: %s", path, error)
        bundle = b"\n".join([*anchors, *crls])
        flags = crypto.X509StoreFlags.ALLOW_PROXY_CERTS if self._settings.proxy_certificates == "accept" else 0
        self._chains = _store(bundle, flags)
        self._revocations = _store(bundle, flags | crypto.X509StoreFlags.CRL_CHECK)
        self._anchors, self._crls = tuple(anchors.values()), tuple(crls.values())
        self._with_crl = frozenset(crl.issuer.public_bytes() for crl in self._crls)
        self.unreadable, self.dated, self._seen = tuple(unreadable), _newest(dated), seen
        log.info("trusted: %d certificates, %d revocation lists", len(anchors), len(crls))
        return True

    def verify(self, chain: Certificates, now_wall_s: float) -> Certificates:
        """The chain from the signer's certificate (first) up to an anchor of ours (last).

        Problems: certificate-untrusted, certificate-expired, certificate-not-yet-valid, certificate-revoked,
        crl-missing, crl-expired, proxy-certificate, algorithm.
        """
        if self._settings.proxy_certificates != "accept" and any(map(is_proxy, chain)):
            raise Problem("proxy-certificate", "proxy certificates are not accepted here (security.proxy_certificates)")
        if not self._anchors:
            raise Problem("certificate-untrusted", f"no CA certificate in {self._settings.ca_directory}")
        others = [_openssl(certificate) for certificate in chain[1:]]
        verified = _verified(self._chains, _openssl(chain[0]), others, now_wall_s)
        for certificate in verified[:-1]:
            _require_strength(certificate)
            if not is_proxy(certificate) and self._wants_crl(certificate):
                _verified(self._revocations, _openssl(certificate), others, now_wall_s)
        _require_signer(end_entity(verified))
        return verified

    def _wants_crl(self, certificate: x509.Certificate) -> bool:
        return self._settings.crl != "when_present" or certificate.issuer.public_bytes() in self._with_crl


def is_proxy(certificate: x509.Certificate) -> bool:
    """Whether it is an RFC 3820 proxy."""
    return any(extension.oid == _PROXY_INFO for extension in certificate.extensions)


def end_entity(chain: Certificates) -> x509.Certificate:
    """The person or robot behind the proxies: the first certificate that is none."""
    return next(certificate for certificate in chain if not is_proxy(certificate))


def rdns_of(name: x509.Name) -> Rdns:
    """A certificate's subject or issuer, canonical."""
    pairs = (tuple((one.oid.dotted_string, _text(one.value)) for one in rdn) for rdn in name.rdns)
    return dn.canonical(tuple(pairs))


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _require_signer(certificate: x509.Certificate) -> None:
    for extension in certificate.extensions:
        value: Any = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise Problem("certificate-untrusted", f"{_name(certificate)} is a CA: it signs no commands or lists")
        if isinstance(value, x509.KeyUsage) and not value.digital_signature:
            raise Problem("certificate-untrusted", f"{_name(certificate)}: its key usage forbids signatures")


def _require_strength(certificate: x509.Certificate) -> None:
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        raise Problem("algorithm", f"{_name(certificate)} is signed in a way that is not known") from None
    if algorithm is not None and algorithm.name in _WEAK:
        raise Problem("algorithm", f"{_name(certificate)} is signed with {algorithm.name}")
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < SMALLEST_RSA:
        raise Problem("algorithm", f"{_name(certificate)}: RSA of {key.key_size} bits; at least {SMALLEST_RSA}")


def _store(bundle: bytes, flags: int) -> crypto.X509Store:
    store = crypto.X509Store()
    store.set_flags(flags)
    if bundle:
        with tempfile.NamedTemporaryFile(prefix="vmagent-") as file:
            file.write(bundle)
            file.flush()
            store.load_locations(file.name)
    return store


def _verified(store: crypto.X509Store, leaf: crypto.X509, others: List[crypto.X509], now_wall_s: float) -> Certificates:
    store.set_time(_EPOCH + timedelta(seconds=int(now_wall_s)))  # taken as UTC
    try:
        chain = crypto.X509StoreContext(store, leaf, others).get_verified_chain()
    except crypto.X509StoreContextError as error:
        _refuse(error)
    return tuple(certificate.to_cryptography() for certificate in chain)


def _refuse(error: crypto.X509StoreContextError) -> NoReturn:
    """`errors` is [code, depth, text]; pyOpenSSL 21.0 has it as the exception's argument."""
    code, depth, text = getattr(error, "errors", None) or error.args[0]
    type, why = _TYPES.get(code, ("certificate-untrusted", f"no way to a trusted CA ({text})"))
    name = _name(error.certificate.to_cryptography())
    raise Problem(type, f"{name}: {why}", openssl_code=code, depth=depth) from None


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()


def _openssl(certificate: x509.Certificate) -> crypto.X509:
    return crypto.X509.from_cryptography(certificate)


def stamp(path: Path) -> Tuple[int, int]:
    """Differs once the file does; (0, 0) when it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


def dates(kind: str, path: Path) -> List[Dated]:
    """Of every certificate (`kind`) and revocation list ("crl") in a PEM file.  OSError, ValueError."""
    found = []
    for word, block in _blocks(path.read_bytes()):
        if word == b"CERTIFICATE":
            one = x509.load_pem_x509_certificate(block)
            found.append(Dated(kind, str(path), _name(one), _at(one, "not_valid_before"), _at(one, "not_valid_after")))
        else:
            crl = x509.load_pem_x509_crl(block)
            issuer = crl.issuer.rfc4514_string()
            found.append(Dated(CRL, str(path), issuer, _at(crl, "last_update"), _at(crl, "next_update")))
    return found


def _newest(dated: List[Dated]) -> Tuple[Dated, ...]:
    """Of revocation lists only the one that lasts longest; without an end it says nothing."""
    lists: Dict[str, Dated] = {}
    for one in dated:
        if one.kind == CRL and one.ends_s >= lists.get(one.name, one).ends_s:
            lists[one.name] = one
    some = [one for one in dated if one.kind != CRL] + list(lists.values())
    return tuple(dict.fromkeys(one for one in some if one.ends_s != float("inf")))


def _read(
    path: Path, anchors: Dict[bytes, x509.Certificate], crls: Dict[bytes, x509.CertificateRevocationList]
) -> None:
    """Every certificate and revocation list of a PEM file; the keys remove what two files both have."""
    blocks = list(_blocks(path.read_bytes()))
    if not blocks:
        raise ValueError("no PEM certificate or revocation list in it")
    for kind, block in blocks:
        if kind == b"CERTIFICATE":
            certificate = x509.load_pem_x509_certificate(block)
            list(certificate.extensions)  # parsed lazily: fail here
            anchors[block] = certificate
        else:
            crls[block] = x509.load_pem_x509_crl(block)


def _blocks(pem: bytes) -> Iterator[Tuple[bytes, bytes]]:
    for found in _BLOCK.finditer(pem):
        yield found.group(1), found.group(0)


def _at(dated: _Ending, name: str) -> float:
    """One of its times, in seconds since 1970.  cryptography before 42 has naive UTC times only; a CRL may have no end.
    """
    moment = getattr(dated, f"{name}_utc", None) or getattr(dated, name)
    return float("inf") if moment is None else float(moment.replace(tzinfo=timezone.utc).timestamp())
