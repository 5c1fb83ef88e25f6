"""TLS with real listeners: an unknown CA, another host's name and a missing client certificate are refused, on every
version of stomp.py; the end of the stream is noticed."""

from __future__ import annotations

import datetime
import ssl
import threading
from pathlib import Path
from typing import Any, Callable, List

import pytest

from tests.broker.conftest import Linked
from tests.support.loop import RealLoop
from tests.support.peer import Peer, Talk
from vmagent.broker import client as stompclient
from vmagent.broker.client import StompSession, Subscription, _verified
from vmagent.config import Tls
from vmagent.site import pki

Make = Callable[..., Linked]


def listener(ca: Path, name: str = "server", demand: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca / f"{name}.pem", ca / f"{name}.key")
    if demand:
        context.load_verify_locations(ca / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client(ca: Path, certificate: bool = True) -> Tls:
    return Tls(ca / "ca.pem", ca / "client.pem" if certificate else None, ca / "client.key" if certificate else None)


def refused(one: Linked, peer: Peer) -> str:
    """Why, after two attempts in which no frame reached the peer."""
    one.loop.until(lambda: one.link.state().failures >= 2)
    assert not any(state.up for state in one.states)
    assert peer.frames("CONNECT") == []
    return one.link.state().why


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_verified_server_and_a_client_certificate(linked: Make, ca: Path, host: str) -> None:
    with Peer(Talk.serve, listener(ca, demand=True)) as peer:
        one = linked(peer.url(host), tls=client(ca)).up()
        one.send("/queue/a", b"x" * 300_000)
        subject = peer.talks[0].socket.getpeercert()["subject"]  # type: ignore[attr-defined]
    assert subject == ((("commonName", "client"),),)


def test_an_unknown_ca(linked: Make, ca: Path, tmp_path: Path) -> None:
    pki.init(tmp_path / "other", "other CA", datetime.datetime.now(datetime.timezone.utc))
    with Peer(Talk.serve, listener(ca)) as peer:
        one = linked(peer.url("localhost"), tls=Tls(tmp_path / "other" / "ca.pem", None, None))
        assert "certificate" in refused(one, peer).lower()


def test_another_hosts_certificate(linked: Make, ca: Path) -> None:
    with Peer(Talk.serve, listener(ca, "elsewhere")) as peer:
        assert "localhost" in refused(linked(peer.url("localhost"), tls=client(ca)), peer)


def test_no_certificate_where_one_is_demanded(linked: Make, ca: Path) -> None:
    with Peer(Talk.serve, listener(ca, demand=True)) as peer:
        one = linked(peer.url("localhost"), tls=client(ca, certificate=False))
        refused(one, peer)


def test_tls_without_a_ca_is_no_link(linked: Make, ca: Path) -> None:
    with Peer(Talk.serve, listener(ca)) as peer:
        assert "broker.tls.ca" in refused(linked(peer.url("localhost"), tls=None), peer)


def test_a_library_that_does_not_verify_gets_no_passcode(linked: Make, ca: Path, tmp_path: Path) -> None:
    """The check after the handshake, by itself: a socket that verified nothing is refused."""
    class Transport:
        socket: Any

    transport = Transport()
    for mode, names in ((ssl.CERT_NONE, False), (ssl.CERT_REQUIRED, False)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = names
        context.verify_mode = mode
        transport.socket = type("Socket", (), {"context": context})
        assert not _verified(transport, {"subject": "x"}, "localhost")[0]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    transport.socket = type("Socket", (), {"context": context})
    assert _verified(transport, {"subject": "x"}, "localhost")[0]
    assert not _verified(transport, {}, "localhost")[0]


def test_the_end_of_the_stream_is_noticed_at_once(linked: Make, ca: Path) -> None:
    """8.3 and 9.0 would spin on it until the heart-beats are missed, and these are a minute away."""

    def ends(talk: Talk) -> None:
        talk.connect()
        talk.read()
        if talk.number > 1:
            talk.stall()

    with Peer(ends, listener(ca)) as peer:
        one = linked(peer.url("localhost"), tls=client(ca), heartbeat_s=60.0, receipt_s=60.0).up()
        one.link.send("/queue/a", b"x", {}).addErrback(lambda _: None)
        one.down(10).up(10)


def test_nobody_reads_while_connect_is_written(linked: Make, ca: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL lost 1 in 80 of them to a thread that read the server's first tickets meanwhile."""
    readers: List[List[str]] = []

    class Watched(StompSession):
        def _new_connection(self, *args: Any) -> Any:
            connection = super()._new_connection(*args)
            transmit = connection.transport.transmit

            def watched(frame: Any) -> None:
                if frame.cmd == "CONNECT":
                    readers.append([one.name for one in threading.enumerate() if one.name == f"from {self._url}"])
                transmit(frame)

            connection.transport.transmit = watched
            return connection

    monkeypatch.setattr(stompclient, "StompSession", Watched)
    with Peer(Talk.serve, listener(ca)) as peer:
        linked(peer.url("localhost"), tls=client(ca)).up().send("/queue/a", b"x")
    assert readers == [[]]


def test_a_stalled_tls_peer_is_cut_and_leaves_no_thread(linked: Make, ca: Path, loop: RealLoop) -> None:
    def stops(talk: Talk) -> None:
        talk.connect()
        if talk.number == 1:
            talk.stall()
        while True:
            talk.receipt(talk.read())

    before = set(threading.enumerate())
    with Peer(stops, listener(ca)) as peer:
        one = linked(peer.url("localhost"), tls=client(ca), receipt_s=0.5).up()
        for _ in range(40):
            one.link.send("/queue/a", b"x" * 1_000_000, {}).addErrback(lambda _: None)
        one.down().up().send("/queue/a", b"again")
        ours = ("broker ", "from ")
        loop.until(
            lambda: len([t for t in set(threading.enumerate()) - before if t.name.startswith(ours)]) == 2,
            what="the first session's threads are gone",
        )


def test_a_peer_that_accepts_and_never_shakes_hands(linked: Make, ca: Path) -> None:
    """A plain listener that says nothing: the TLS handshake is bounded."""
    with Peer(Talk.stall) as peer:
        one = linked(f"stomp+ssl://localhost:{peer.port}", tls=client(ca), receipt_s=0.3)
        one.loop.until(lambda: one.link.state().failures >= 2)


def test_rabbitmq_with_a_client_certificate(linked: Make, rabbitmq: Any, ca: Path, passcode_file: Path) -> None:
    members = {"login": "guest", "passcode_file": passcode_file}
    one = linked(rabbitmq.tls_url, Subscription("c", "/queue/tls"), tls=client(ca), **members).up()
    one.send("/queue/tls", b"over TLS")
    [frame] = one.take(1)
    assert frame.body == b"over TLS"
    one.link.ack(frame)
    without = linked(rabbitmq.tls_url, tls=client(ca, certificate=False), **members)
    without.loop.until(lambda: without.link.state().failures >= 2)
    assert not any(state.up for state in without.states)
