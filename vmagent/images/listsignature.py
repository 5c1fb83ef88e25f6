"""The signature of an image list: S/MIME or PKCS#7, checked by `openssl cms` in a bounded child (FORMATS 6.3, step 1).

Rules

1. Here it is settled only that the holder of one certificate signed exactly this content.  Whether that certificate is
   believed (its chain, its CA, revocation, strength) is settled where the signers of commands are, by the same code and
   settings: `-noverify` leaves it to us, and the program's own list of trusted CAs is never asked.
2. Exactly one signer.  A message that also enciphers, or carries no signature, is refused.
3. Taken are multipart/signed and application/pkcs7-mime as mail has them, and PKCS#7 with its content inside as PEM or
   DER.
4. The content is what was signed, without the MIME header that some tools sign along with it.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Sequence, Tuple

from vmagent import children
from vmagent.core.imagelist import LONGEST_LIST
from vmagent.core.trust import Signature
from vmagent.errors import Problem

LONGEST_SIGNED = 2 * LONGEST_LIST  # bytes: base64, and the signature
MOST_CERTIFICATES = 10
_OPENSSL_S = 30.0
_LIMITS = children.Limits(memory_mib=512, cpu_s=20)
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_HEADER = re.compile(rb"\A(?:[A-Za-z-]+:[^\r\n]*\r?\n(?:[ \t][^\r\n]*\r?\n)*){1,10}\r?\n")


class Endorsers(Protocol):
    """Who may be believed to be whom: certificates as PEM, the signer's first."""

    def signature(self, certificates: Sequence[bytes]) -> Signature:
        """Whose they are.  Problem `list-signature` when they cannot be read, `proxy-certificate`."""

    def check(self, certificates: Sequence[bytes], now_wall_s: float) -> None:
        """Their chain up to a CA of the site, now.  Problems: those of certificates (certificate-revoked...)."""


@dataclass(frozen=True)
class Opened:
    """What was signed, and the certificates that came along, PEM, the signer's first."""

    content: bytes
    certificates: Tuple[bytes, ...]


def opened(raw: bytes) -> Opened:
    """A signed list, its signature checked.  Blocking.  Problem `list-signature`; Faults: those of `children.run`."""
    if len(raw) > LONGEST_SIGNED:
        raise _wrong(f"{len(raw)} bytes; at most {LONGEST_SIGNED} are read")
    with tempfile.TemporaryDirectory(prefix="vmagent-") as name:
        signer, others = Path(name, "signer.pem"), Path(name, "others.pem")
        argv = ["openssl", "cms", "-verify", "-noverify", "-inform", _form(raw), "-signer", str(signer),
                "-certsout", str(others)]  # fmt: skip
        try:
            content = children.run(argv, _OPENSSL_S, stdin=raw, limits=_LIMITS, longest=LONGEST_LIST)
        except children.ChildFailed as failed:
            raise _wrong(_last_words(failed.complaint)) from failed
        signers, given = _PEM.findall(signer.read_bytes()), _PEM.findall(others.read_bytes())
    if len(signers) != 1:
        raise _wrong(f"{len(signers)} signers; one is taken")
    chain = (signers[0], *(one for one in given if one != signers[0]))
    if len(chain) > MOST_CERTIFICATES:
        raise _wrong(f"{len(chain)} certificates; at most {MOST_CERTIFICATES} are taken")
    return Opened(_without_header(content), chain)


def _form(raw: bytes) -> str:
    if raw.startswith(b"-----BEGIN"):
        return "PEM"
    return "DER" if raw.startswith(b"\x30") else "SMIME"


def _without_header(content: bytes) -> bytes:
    """The header was signed as well, so to leave it out changes nothing that anybody could have forged."""
    found = _HEADER.match(content)
    return content[found.end() :] if found else content


def _last_words(complaint: str) -> str:
    """OpenSSL's reason out of `40A7:error:1700009E:CMS routines:CMS_verify:content verify error:crypto/cms.c:402:`."""
    lines = [line for line in complaint.splitlines() if ":error:" in line]
    parts = lines[-1].split(":") if lines else []
    return parts[5] if len(parts) > 5 and parts[5] else "not a signed message"


def _wrong(detail: str) -> Problem:
    return Problem("list-signature", f"the list's signature is not valid: {detail}")
