"""Signed bodies: flattened JWS (RFC 7515, 7.2.2) with the signer's chain in `x5c` (PROTOCOL 3).

jwcrypto makes and checks the signature with the one algorithm that we name, so its own defaults (HS* among them, FACTS
F23) never count.  What may stand in the protected header is a list; everything else, `jku`, `jwk`, `x5u`, `b64`, `crit`
and algorithms of shared secrets included, is refused before any key is looked at.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any, Callable, Dict, Mapping, Protocol, Tuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from jwcrypto import jwk, jws
from jwcrypto.common import JWException

from vmagent.broker.trust import SMALLEST_RSA, Certificates, TrustStore, end_entity, rdns_of
from vmagent.core import dn, strictjson
from vmagent.core.commands import Signer
from vmagent.errors import Problem

MOST_CERTIFICATES = 10
LARGEST_CERTIFICATE = 16 * 1024  # bytes of DER
LARGEST_HEADER = 256 * 1024
HEADERS = frozenset({"alg", "x5c", "typ", "cty", "kid"})
_BASE64URL = re.compile("[A-Za-z0-9_-]*")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class Algorithm:
    """A signature algorithm and the keys that it goes with."""

    name: str
    keys: str  # for people
    fits: Callable[[Any], bool]  # a public key


def _rsa(key: Any) -> bool:
    return isinstance(key, rsa.RSAPublicKey) and key.key_size >= SMALLEST_RSA


def _p256(key: Any) -> bool:
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)


def _ed25519(key: Any) -> bool:
    return isinstance(key, ed25519.Ed25519PublicKey)


_BIG_RSA = f"RSA of at least {SMALLEST_RSA} bits"

ALGORITHMS: Mapping[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm("PS256", _BIG_RSA, _rsa),
        Algorithm("RS256", _BIG_RSA, _rsa),
        Algorithm("ES256", "EC P-256", _p256),
        Algorithm("EdDSA", "Ed25519", _ed25519),
    )
}


class EnvelopeLike(Protocol):
    """core.request.Envelope: three base64url texts."""

    @property
    def protected(self) -> str: ...

    @property
    def payload(self) -> str: ...

    @property
    def signature(self) -> str: ...


def sign(payload: bytes, key_pem: bytes, chain_pem: bytes) -> bytes:
    """The signed body.  chain_pem: the signer's certificate first, then what is needed up to the CA.

    RSA keys sign with PS256.  ValueError for a key that no algorithm takes, or that is not the certificate's.
    """
    private: Any = load_pem_private_key(key_pem, None)
    chain = [x509.load_pem_x509_certificate(block) for block in _PEM.findall(chain_pem)]
    if not chain or not _same_key(chain[0].public_key(), private.public_key()):
        raise ValueError("the first certificate of the chain is not the key's")
    name = next((one.name for one in ALGORITHMS.values() if one.fits(private.public_key())), None)
    if name is None:
        raise ValueError("the key is neither " + " nor ".join(sorted({one.keys for one in ALGORITHMS.values()})))
    ders = [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode("ascii") for certificate in chain]
    token = jws.JWS(payload)
    token.allowed_algs = [name]
    token.add_signature(jwk.JWK.from_pyca(private), name, json.dumps({"alg": name, "x5c": ders}))
    body: str = token.serialize()
    return body.encode("ascii")


class Verifier:
    """`security.commands: signed`.  Implements ports.Verifier; computes only, on what `trust` last read."""

    def __init__(self, trust: TrustStore) -> None:
        self._trust = trust

    def verify(self, envelope: EnvelopeLike, now_wall_s: float) -> Tuple[bytes, Signer]:
        """The payload and who signed it; with a proxy, the end entity behind it.

        Problems: `signature`, `algorithm`, and those of TrustStore.verify.
        """
        header = _header(envelope.protected)
        algorithm = _algorithm(header)
        chain = _chain(header)
        key = chain[0].public_key()
        if not algorithm.fits(key):
            raise Problem("algorithm", f"{algorithm.name} goes with {algorithm.keys}; the signer's key is another")
        payload = _payload(envelope, algorithm.name, key)
        return payload, _signer(end_entity(self._trust.verify(chain, now_wall_s)))

    def unsigned(self) -> Signer:
        """Nobody: here a command without a signature has no sender."""
        raise Problem("signature", "commands must be signed here (security.commands: signed)")


class Unsigned:
    """`security.commands: broker`: whoever may log in to the broker is believed.  A named, published choice.

    login: what the site calls those who may; the signer is "broker:<login>", to be named so in the authority table.
    """

    def __init__(self, login: str) -> None:
        self._signer = Signer(subject=f"broker:{login}")

    def verify(self, envelope: EnvelopeLike, now_wall_s: float) -> Tuple[bytes, Signer]:
        """A signature that nobody checks must not look like one that was."""
        raise Problem("signature", "signed commands are not taken here (security.commands: broker)")

    def unsigned(self) -> Signer:
        return self._signer


def _header(protected: str) -> Dict[str, Any]:
    header = strictjson.loads(_decoded(protected, "protected"), LARGEST_HEADER)
    if not isinstance(header, dict):
        raise Problem("signature", "the protected header is not an object")
    others = sorted(set(header) - HEADERS)
    if others:
        raise Problem("signature", f"not taken in the protected header: {', '.join(others)}", accepted=sorted(HEADERS))
    return header


def _algorithm(header: Mapping[str, Any]) -> Algorithm:
    name = header.get("alg")
    algorithm = ALGORITHMS.get(name) if isinstance(name, str) else None
    if algorithm is None:
        raise Problem("algorithm", "the algorithm of the signature is not taken here", accepted=sorted(ALGORITHMS))
    return algorithm


def _chain(header: Mapping[str, Any]) -> Certificates:
    """The certificates of `x5c`, the signer's first."""
    texts = header.get("x5c")
    if not isinstance(texts, list) or not 1 <= len(texts) <= MOST_CERTIFICATES:
        raise Problem("signature", f"x5c is a list of 1 to {MOST_CERTIFICATES} certificates")
    return tuple(_certificate(text) for text in texts)


def _certificate(text: Any) -> x509.Certificate:
    if not isinstance(text, str) or len(text) > LARGEST_CERTIFICATE * 4 // 3 + 4:
        raise Problem("signature", f"a certificate in x5c is base64 of at most {LARGEST_CERTIFICATE} bytes")
    try:
        certificate = x509.load_der_x509_certificate(base64.b64decode(text, validate=True))
        list(certificate.extensions)  # these and the key are parsed lazily: fail here
        certificate.public_key()
    except (ValueError, binascii.Error, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise Problem("certificate-untrusted", f"a certificate in x5c cannot be read: {error}") from None
    return certificate


def _payload(envelope: EnvelopeLike, algorithm: str, key: Any) -> bytes:
    for part in ("payload", "signature"):
        _decoded(getattr(envelope, part), part)
    parts = {"protected": envelope.protected, "payload": envelope.payload, "signature": envelope.signature}
    token = jws.JWS()
    token.allowed_algs = [algorithm]
    try:
        token.deserialize(json.dumps(parts))
        token.verify(jwk.JWK.from_pyca(key), alg=algorithm)
    except (JWException, ValueError, TypeError):
        raise Problem("signature", "the signature is not that of the first certificate in x5c") from None
    payload: bytes = token.payload
    return payload


def _decoded(text: str, part: str) -> bytes:
    """base64url without padding, strictly."""
    if not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
        raise Problem("signature", f"{part} is not base64url without padding")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _signer(certificate: x509.Certificate) -> Signer:
    rdns = rdns_of(certificate.subject)
    return Signer(dn.rfc4514(rdns), rdns, certificate.fingerprint(hashes.SHA256()).hex())


def _same_key(one: Any, other: Any) -> bool:
    return bool(_spki(one) == _spki(other))


def _spki(key: Any) -> Any:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
