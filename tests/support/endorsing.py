"""Endorsers with certificates and a CA directory, and lists really signed by `openssl cms`."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any, Optional

from tests.support import imagelists
from tests.support.certificates import DAY, NOW, Holder, authority
from vmagent.broker.endorsers import TrustedEndorsers
from vmagent.broker.trust import TrustStore
from vmagent.config import SecuritySettings
from vmagent.core.policy import ListSource

NAME = "Image Endorser"
SOURCE = ListSource(imagelists.IDENTIFIER, path="list", endorsers=(imagelists.ENDORSER,))


class Endorsing:
    """A CA directory as a site has it, and an endorser below that CA."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.ca = authority()
        self.endorser = self.ca.issue(NAME, ends=NOW + 100 * DAY)
        self.write("ca.pem", self.ca.pem)
        self.revoke()

    def write(self, file: str, content: bytes) -> None:
        (self.directory / file).write_bytes(content)

    def revoke(self, *holders: Holder, ends: Any = NOW + 100 * DAY) -> None:
        """The CA's revocation list from now on."""
        self.write("ca.r0", self.ca.crl(*holders, ends=ends))

    def trust(self, crl: str = "require", proxies: str = "refuse") -> TrustStore:
        return TrustStore(SecuritySettings("signed", self.directory, crl, proxies))

    def endorsers(self, **settings: str) -> TrustedEndorsers:
        return TrustedEndorsers(self.trust(**settings))

    def signed(self, by: Optional[Holder] = None, form: str = "SMIME", **members: Any) -> bytes:
        """A signed list; members: of imagelists.text."""
        return sign(imagelists.text(**members), by or self.endorser, form)


def sign(content: bytes, by: Holder, form: str = "SMIME", *options: str) -> bytes:
    """`content` as multipart/signed ("SMIME"), or with the content inside ("OPAQUE", "PEM", "DER")."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "key.pem").write_bytes(by.key_pem)
        (folder / "certificate.pem").write_bytes(by.pem)
        (folder / "above.pem").write_bytes(by.chain_pem[len(by.pem) :])
        inside = () if form == "SMIME" else ("-nodetach",)
        above = ("-certfile", "above.pem") if by.above else ()
        argv = ["openssl", "cms", "-sign", "-signer", "certificate.pem", "-inkey", "key.pem", *above, "-outform",
                "SMIME" if form == "OPAQUE" else form, *inside, *options]  # fmt: skip
        return subprocess.run(argv, cwd=folder, input=content, capture_output=True, check=True).stdout
