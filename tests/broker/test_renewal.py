"""Certificates that are renewed under a running link, with real files and real TLS."""

from __future__ import annotations

import datetime
import os
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import pytest
from twisted.internet.defer import Deferred, succeed

from tests.broker.conftest import Linked
from tests.broker.test_tls import client, listener
from tests.support.building import now
from tests.support.certificates import Holder, authority
from tests.support.peer import Peer, Talk
from vmagent.broker.ownfiles import OwnFiles
from vmagent.certifying import Certificates
from vmagent.config import Tls
from vmagent.core import walltime
from vmagent.core.validity import Papers
from vmagent.site import pki

Make = Callable[..., Linked]
REAL_S = datetime.datetime.now(datetime.timezone.utc).timestamp()


class Here:
    """What of the world and the clock is used."""

    def __init__(self, at_s: float = REAL_S) -> None:
        self.at_s = at_s
        self.certificates: Any = ()
        self.degraded: Dict[str, str] = {"libvirt": "away"}

    def now(self) -> Any:
        return now(wall=walltime.text(self.at_s))


class Watched:
    """Certificates over real files; what it asked the link for."""

    def __init__(self, tls: Optional[Tls], renew: Optional[Callable[[str], None]] = None, at_s: float = REAL_S) -> None:
        self.here = Here(at_s)
        self.asked: List[str] = []
        own = OwnFiles(tls)

        def read() -> Deferred[Papers]:
            return succeed(own.look())

        self._certificates = Certificates(self.here, self.here, read, renew or self.asked.append, 14)  # type: ignore[arg-type]

    def look(self) -> Here:
        done: List[Any] = []
        Deferred.fromCoroutine(self._certificates.look()).addBoth(done.append)
        assert done == [None]
        return self.here


@pytest.fixture
def own(ca: Path, tmp_path: Path) -> Path:
    """A directory of our own with a copy of the CA, which can issue."""
    shutil.copytree(ca, tmp_path / "own")
    return tmp_path / "own"


def put(own: Path, name: str) -> None:
    """Another certificate in place of the client's, as an administrator or certbot does it."""
    for suffix in (".key", ".pem"):
        put_file(own / f"client{suffix}", (own / f"{name}{suffix}").read_bytes())


def put_file(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.chmod(0o600)
    before = path.stat().st_mtime_ns
    os.utime(fresh, ns=(before + 1_000_000, before + 1_000_000))
    os.replace(fresh, path)


def test_a_renewed_certificate_is_in_use_without_a_restart(linked: Make, own: Path) -> None:
    pki.issue(own, "renewed", "client", datetime.datetime.now(datetime.timezone.utc))
    with Peer(Talk.serve, listener(own, demand=True)) as peer:
        one = linked(peer.url("localhost"), tls=client(own)).up()
        watched = Watched(client(own), one.link.renew)
        assert watched.look().degraded == {"libvirt": "away"}
        assert watched.look() and len(peer.talks) == 1  # nothing changed: nothing is made anew
        put(own, "renewed")
        watched.look()
        one.loop.until(lambda: len(peer.talks) == 2 and one.link.state().up, what="the link with the new certificate")
        one.send("/queue/a", b"x")
        names = [talk.socket.getpeercert()["subject"] for talk in peer.talks[1:]]  # type: ignore[attr-defined]
    assert names == [((("commonName", "renewed"),),)]


def test_a_key_that_does_not_fit_leaves_the_link_alone_and_is_told(own: Path) -> None:
    pki.issue(own, "renewed", "client", datetime.datetime.now(datetime.timezone.utc))
    watched = Watched(client(own))
    watched.look()
    put_file(own / "client.key", (own / "renewed.key").read_bytes())
    assert "cannot be used together" in watched.look().degraded["certificate"]
    assert watched.asked == []
    put_file(own / "client.pem", (own / "renewed.pem").read_bytes())
    assert watched.look().degraded == {"libvirt": "away"}
    assert len(watched.asked) == 1


def files(own: Path, holder: Holder, above: Holder) -> Tls:
    (own / "h.pem").write_bytes(holder.pem)
    (own / "h.key").write_bytes(holder.key_pem)
    (own / "above.pem").write_bytes(above.pem)
    return Tls(own / "above.pem", own / "h.pem", own / "h.key")


def test_an_expired_one_is_told_with_its_file_and_date_and_not_taken(tmp_path: Path) -> None:
    day = datetime.timedelta(days=1)
    today = datetime.datetime.fromtimestamp(REAL_S, datetime.timezone.utc)
    above = authority()
    good = above.issue("host", begins=today - 9 * day, ends=today + 90 * day)
    old = above.issue("host", begins=today - 9 * day, ends=today - 2 * day)
    watched = Watched(files(tmp_path, good, above))
    watched.look()
    put_file(tmp_path / "h.key", old.key_pem)
    put_file(tmp_path / "h.pem", old.pem)
    here = watched.look()
    told = here.degraded["certificate"]
    assert f"{tmp_path}/h.pem" in told and f"expired on {(today - 2 * day).date()}" in told
    ours = next(one for one in here.certificates if one["kind"] == "broker")
    assert ours["days_left"] == -2 or ours["days_left"] == -3
    assert watched.asked == []


def test_one_that_is_valid_later_is_taken_when_it_is(tmp_path: Path) -> None:
    day = datetime.timedelta(days=1)
    today = datetime.datetime.fromtimestamp(REAL_S, datetime.timezone.utc)
    above = authority()
    good = above.issue("host", begins=today - 9 * day, ends=today + 30 * day)
    next_one = above.issue("host", begins=today + 5 * day, ends=today + 90 * day)
    watched = Watched(files(tmp_path, good, above))
    watched.look()
    put_file(tmp_path / "h.key", next_one.key_pem)
    put_file(tmp_path / "h.pem", next_one.pem)
    assert "is not valid before" in watched.look().degraded["certificate"]
    assert watched.asked == []
    watched.here.at_s += 6 * 86400
    assert "certificate" not in watched.look().degraded
    assert len(watched.asked) == 1


def test_without_tls_there_is_nothing_to_say() -> None:
    here = Watched(None).look()
    assert (here.certificates, here.degraded) == ((), {"libvirt": "away"})


def test_missing_files_are_told_and_raise_nothing(tmp_path: Path) -> None:
    here = Watched(Tls(tmp_path / "no-ca.pem", tmp_path / "no.pem", tmp_path / "no.key")).look()
    assert "no-ca.pem" in here.degraded["broker-ca"] and "no.pem" in here.degraded["certificate"]
