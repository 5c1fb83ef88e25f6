"""Checks of certificates, revocation lists, secrets' files and the clock."""

from __future__ import annotations

import calendar
import datetime
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning

from vmagent.errors import Fault
from vmagent.local.doctor.findings import Check, Facts, Finding, Level, expiry, fail, joined, ok, unknown, warn
from vmagent.local.doctor.users import agent_user


def ends_at(thing: Any, name: str) -> Optional[float]:
    """`not_valid_after` or `next_update`, as wall seconds; cryptography before 42 knows only the naive form, in UTC."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        moment: Optional[datetime.datetime] = getattr(thing, name)
    return None if moment is None else float(calendar.timegm(moment.utctimetuple()))


def loaded(facts: Facts, path: Path, parse: Callable[[bytes], Any]) -> Any:
    """The parsed PEM file, or None."""
    raw = facts.host.read(path)
    try:
        return None if raw is None else parse(raw)
    except ValueError:
        return None


def certificate(facts: Facts) -> Finding:
    """Our own, towards the broker."""
    tls = facts.config.broker.tls
    if tls is None:
        return warn("the link to the broker is not encrypted", "set broker.tls and a stomp+ssl:// URL")
    if tls.certificate is None or tls.key is None:
        return ok("none is configured; the broker knows us by login")
    found = loaded(facts, tls.certificate, x509.load_pem_x509_certificate)
    if found is None:
        return fail(f"{tls.certificate} holds no certificate", "put a PEM certificate there")
    until = ends_at(found, "not_valid_after")
    own = expiry(facts, str(tls.certificate), until or 0.0, "renew the host's certificate")
    return joined([own, private(facts, tls.key)], own)


def private(facts: Facts, path: Path) -> Finding:
    """A key or passcode that others may read is no secret."""
    owned = facts.host.owned(path)
    if owned is None:
        return fail(f"{path} is missing", f"put it there, with mode 600, or correct the setting that names {path}")
    others, best = (0o037, 640) if owned.group == agent_user(facts) != "root" else (0o077, 600)
    if owned.mode & others:
        return fail(f"{path} has mode {owned.mode:o}: others may read it", f"chmod {best} {path}")
    return ok(f"{path} is private")


def passcode(facts: Facts) -> Finding:
    path = facts.config.broker.passcode_file
    return ok("no passcode is configured") if path is None else private(facts, path)


def authorities(facts: Facts) -> Finding:
    """The CAs whose signers are believed."""
    security = facts.config.security
    if security.commands == "broker":
        return warn("commands are not signed: the broker's login alone is believed", "set security.commands: signed")
    files = [path for path in facts.host.list(security.ca_directory) if path.suffix == ".pem"]
    found: List[Finding] = []
    for path in files:
        parsed = loaded(facts, path, x509.load_pem_x509_certificate)
        if parsed is None:
            found.append(warn(f"{path} holds no certificate", "remove it, or put a PEM certificate there"))
        else:
            until = ends_at(parsed, "not_valid_after")
            found.append(expiry(facts, str(path), until or 0.0, "install the CA's new certificate"))
    mend = "install the site's CA certificates (*.pem) there, or set security.ca_directory"
    whole = joined(found, fail(f"{security.ca_directory} holds no CA certificate: no command is believed", mend))
    return ok(f"{len(files)} CA certificates in {security.ca_directory}") if whole.level is Level.OK else whole


def revocations(facts: Facts) -> Finding:
    """Each CA's newest list; without one its signers are refused (security.crl: require)."""
    security = facts.config.security
    if security.commands == "broker":
        return ok("not needed: commands are not signed")
    newest: Dict[bytes, Optional[float]] = {}
    names: Dict[bytes, str] = {}
    for path in facts.host.list(security.ca_directory):
        if path.suffix == ".pem":
            parsed = loaded(facts, path, x509.load_pem_x509_certificate)
            if parsed is not None:
                subject = parsed.subject.public_bytes()
                names[subject] = str(path)
                newest.setdefault(subject, None)
        elif path.suffix in (".crl", ".r0"):
            parsed = loaded(facts, path, x509.load_pem_x509_crl)
            if parsed is not None:
                issuer = parsed.issuer.public_bytes()
                newest[issuer] = max(newest.get(issuer) or 0.0, ends_at(parsed, "next_update") or 0.0)
    found = [_revocation(facts, name, newest[subject]) for subject, name in sorted(names.items())]
    whole = joined(found, unknown("there is no CA whose list could be looked for", "see the check `ca`"))
    return ok(f"{len(names)} CAs have a valid revocation list") if whole.level is Level.OK else whole


def _revocation(facts: Facts, ca: str, until: Optional[float]) -> Finding:
    mend = "fetch revocation lists regularly (fetch-crl), as *.crl or *.r0 in PEM"
    if until is not None:
        return expiry(facts, f"the revocation list of {ca}", until, mend)
    if facts.config.security.crl == "require":
        return fail(f"{ca} has no revocation list: its signers are refused", f"{mend}, or security.crl: when_present")
    return warn(f"{ca} has no revocation list", mend)


def clock(facts: Facts) -> Finding:
    """Wall time decides about commands' validity and certificates, never about run time."""
    mend = "start chronyd or systemd-timesyncd"
    for argv, good, bad in (
        (("chronyc", "-n", "tracking"), "Leap status     : Normal", "Not synchronised"),
        (("timedatectl", "show", "-p", "NTPSynchronized"), "NTPSynchronized=yes", "NTPSynchronized=no"),
    ):
        try:
            said = facts.host.run(*argv)
        except Fault:
            continue
        if good in said:
            return ok(f"synchronised, says {argv[0]}")
        if bad in said:
            return warn(f"not synchronised, says {argv[0]}: commands may be refused as stale", mend)
    return unknown("neither chronyc nor timedatectl tells whether the clock is synchronised", mend)


CHECKS = (
    Check("certificate", "our certificate", certificate),
    Check("passcode", "the broker's passcode is private", passcode),
    Check("ca", "CA certificates", authorities),
    Check("crl", "revocation lists", revocations),
    Check("clock", "the clock is synchronised", clock),
)
