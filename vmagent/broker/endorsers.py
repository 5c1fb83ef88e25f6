"""Who signed an image list, believed as the signers of commands are: same CAs, same revocation, same strength.

Proxy certificates sign no lists, whatever the site takes for commands: a list lives longer than a proxy.
"""

from __future__ import annotations

from typing import Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from vmagent.broker.trust import Certificates, TrustStore, is_proxy, rdns_of
from vmagent.core import dn
from vmagent.core.trust import Signature
from vmagent.errors import Problem


class TrustedEndorsers:
    """Certificates as PEM, the signer's first.  Only computes, on what `trust` last read."""

    def __init__(self, trust: TrustStore) -> None:
        self._trust = trust

    def signature(self, certificates: Sequence[bytes]) -> Signature:
        """Whose they are, by name alone.  Problems: list-signature, proxy-certificate."""
        signer = _read(certificates)[0]
        if is_proxy(signer):
            raise Problem("proxy-certificate", "an image list is not signed with a proxy certificate")
        return Signature(dn.slash(rdns_of(signer.subject)), dn.slash(rdns_of(signer.issuer)))

    def check(self, certificates: Sequence[bytes], now_wall_s: float) -> None:
        """Their chain up to a CA of the site.  Problems: list-signature, and those of TrustStore.verify."""
        self._trust.verify(_read(certificates), now_wall_s)


def _read(certificates: Sequence[bytes]) -> Certificates:
    try:
        chain = tuple(x509.load_pem_x509_certificate(one) for one in certificates)
        for one in chain:
            list(one.extensions)  # parsed lazily: fail here
            one.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise Problem("list-signature", f"a certificate that cannot be read: {error}") from None
    return chain
