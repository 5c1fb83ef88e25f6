"""The files by which we and the broker know each other over TLS, looked at while they are in use.

Every new link reads them itself (client.py); here is told until when they are valid, whether they fit together, and
that they were renewed.  Blocking: called off the reactor.
"""

from __future__ import annotations

import dataclasses
import ssl
from typing import Iterator, Optional, Tuple

from vmagent.broker.trust import dates, stamp
from vmagent.config import Tls
from vmagent.core.validity import BROKER, BROKER_CA, Papers

NOTHING = Papers()


class OwnFiles:
    """`broker.tls` as it was when it was last looked at; without it there is nothing to say."""

    def __init__(self, tls: Optional[Tls]) -> None:
        self._tls = tls
        self._seen: Optional[Tuple[Tuple[int, int], ...]] = None
        self._papers = NOTHING

    def look(self) -> Papers:
        """Read again what changed.  Raises nothing: what is wrong is in `faults`."""
        if self._tls is None:
            return NOTHING
        seen = tuple(stamp(path) for path in (self._tls.ca, self._tls.certificate, self._tls.key) if path is not None)
        if seen == self._seen:
            return dataclasses.replace(self._papers, renewed=False)
        first, self._seen = self._seen is None, seen
        self._papers = _read(self._tls)
        return dataclasses.replace(self._papers, renewed=not first and not self._papers.faults)


def _read(tls: Tls) -> Papers:
    faults = tuple(_faults(tls))
    dated = []
    for kind, path in ((BROKER_CA, tls.ca), (BROKER, tls.certificate)):
        if path is not None:
            try:
                dated += dates(kind, path)
            except (OSError, ValueError) as error:
                faults = faults or ((kind, f"{path} cannot be read: {error}"),)
    return Papers(tuple(dated), faults)


def _faults(tls: Tls) -> Iterator[Tuple[str, str]]:
    """Do as the link would."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(str(tls.ca))
    except (OSError, ValueError) as error:
        yield BROKER_CA, f"{tls.ca} cannot be used as the broker's CA: {error}"
    if tls.certificate is None or tls.key is None:
        return
    try:
        context.load_cert_chain(str(tls.certificate), str(tls.key), password=lambda: b"")
    except (OSError, ValueError) as error:
        yield BROKER, f"{tls.certificate} and {tls.key} cannot be used together: {error}"
