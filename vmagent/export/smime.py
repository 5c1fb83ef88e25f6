"""Messages signed by the host, as SSM's receiver checks them: S/MIME, SHA-256, detached, the text as `text/plain`.

The receiver finds "no blank line between header and body" in a message without the inner `text/plain` (FORMATS 2.1).
It takes RSA and EC keys.  A certificate's last day is not worth beginning: its messages would arrive expired.
"""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs7

from vmagent.errors import Fault, FaultKind

MARGIN_S = 86400
_EPOCH = datetime.datetime(1970, 1, 1)


class Signer:
    """Reads both files at each message, so that a renewed certificate is used at once.  Blocking: for a lane's thread.

    certificate, key: PEM, the key without passphrase.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key

    def sign(self, text: str, now_s: float) -> bytes:
        """The whole message.  Faults: REFUSED (unreadable, no pair, expires within a day)."""
        try:
            certificate = x509.load_pem_x509_certificate(self._certificate.read_bytes())
            key = serialization.load_pem_private_key(self._key.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise Fault(FaultKind.REFUSED, f"messages cannot be signed: {error}") from error
        if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
            raise Fault(FaultKind.REFUSED, f"{self._key}: messages are signed with an RSA or EC key")
        if _public(key.public_key()) != _public(certificate.public_key()):
            raise Fault(FaultKind.REFUSED, f"{self._key} is not the key of {self._certificate}")
        left_s = _until(certificate) - now_s
        if left_s < MARGIN_S:
            raise Fault(FaultKind.REFUSED, f"{self._certificate} expires in {left_s / 3600:.0f} h: renew it, for the "
                        "receiver would not take its messages")
        builder = pkcs7.PKCS7SignatureBuilder().set_data(text.encode("ascii"))
        builder = builder.add_signer(certificate, key, hashes.SHA256())
        options = [pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.Text]
        return builder.sign(serialization.Encoding.SMIME, options)


def _public(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _until(certificate: x509.Certificate) -> float:
    """cryptography before 42 knows only the naive form, in UTC."""
    aware = getattr(certificate, "not_valid_after_utc", None)
    naive: datetime.datetime = aware.replace(tzinfo=None) if aware else certificate.not_valid_after
    return (naive - _EPOCH).total_seconds()
