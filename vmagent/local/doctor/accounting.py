"""Checks of what is told to the grid's accounting."""

from __future__ import annotations

from typing import Any, Mapping, Optional

from cryptography import x509

from vmagent.core import walltime
from vmagent.local.doctor.findings import Check, Facts, Finding, expiry, fail, joined, ok, unknown, warn
from vmagent.local.doctor.trust import ends_at, loaded, private

DAY_S = 86400.0
LATE_DAYS, LOST_DAYS = 7.0, 30.0  # where EGI's own probe of last publication warns and is critical
_MEND = "vmagentctl accounting status; journalctl -u vmagent"


def published(facts: Facts) -> Finding:
    """What is not published in time is booked in the wrong month, and after a while not at all."""
    if facts.config.apel is None:
        return ok("no accounting is published (setting accounting.apel)")
    told = _told(facts)
    if told is None:
        return unknown("known only to the running agent", "see the check `agent`")
    if told["trouble"]:
        return warn(str(told["trouble"]), _MEND)
    oldest = _aged(facts, told["unexported_since"], "usage that is not published", _MEND)
    relay = "see that the relay (ssmsend) runs, and that it may read and remove what lies there"
    waiting = _aged(facts, told["waiting_since"], f"a message in {facts.config.apel.spool}", relay)
    return joined([oldest, waiting], oldest)


def _told(facts: Facts) -> Optional[Mapping[str, Any]]:
    told = ((facts.live or {}).get("accounting") or {}).get("apel")
    return told if isinstance(told, Mapping) else None


def _aged(facts: Facts, wall: Optional[str], what: str, mend: str) -> Finding:
    days = 0.0 if wall is None else (facts.host.wall() - walltime.seconds(wall)) / DAY_S
    if days >= LATE_DAYS:
        return (fail if days >= LOST_DAYS else warn)(f"{what} is {days:.0f} days old", mend)
    return ok("published in time")


def signature(facts: Facts) -> Finding:
    """Within a day of its end the certificate signs nothing."""
    apel = facts.config.apel
    if apel is None or apel.sign is None:
        return ok("messages are not signed by this host")
    found = loaded(facts, apel.sign.certificate, x509.load_pem_x509_certificate)
    if found is None:
        return fail(f"{apel.sign.certificate} holds no certificate", "put a PEM certificate there")
    until = ends_at(found, "not_valid_after") or 0.0
    own = expiry(facts, str(apel.sign.certificate), until, "renew the host's certificate")
    return joined([own, private(facts, apel.sign.key)], own)


CHECKS = (
    Check("accounting", "usage is published", published),
    Check("accounting-certificate", "the certificate that signs usage", signature),
)
