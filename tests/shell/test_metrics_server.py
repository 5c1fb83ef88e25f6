"""/metrics over real sockets: what is offered, to whom, and what is cut."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Tuple

import pytest

from tests.support.imageserver import Certificates, Turning
from tests.support.waiting import until
from vmagent.errors import Fault, FaultKind
from vmagent.export import http
from vmagent.export.http import MetricsServer
from vmagent.render.prometheus import CONTENT_TYPE

LOCAL = ("127.0.0.1", 0)
PAGE = "vmagent_up 1\n# EOF\n"
Offer = Callable[..., int]


@pytest.fixture(name="offer")
def _offer(turning: Turning) -> Iterator[Offer]:
    """Start a server; its port."""
    made: List[MetricsServer] = []

    def offer(page: str = PAGE, tls: Optional[Tuple[Path, Path]] = None, listen: Tuple[str, int] = LOCAL) -> int:
        made.append(MetricsServer(listen, tls, turning.reactor, lambda: page, CONTENT_TYPE))
        return int(turning.call(made[-1].start))

    yield offer
    for server in made:
        turning.call(server.stop)


def connected(port: int) -> socket.socket:
    link = socket.create_connection(LOCAL[:1] + (port,), 20)
    link.settimeout(20)
    return link


def rest(link: Any) -> bytes:
    """Everything until the other end closes."""
    got = b""
    while True:
        try:
            more = link.recv(65536)
        except ConnectionResetError:
            return got
        if not more:
            return got
        got += more


def asked(port: int, request: bytes) -> Tuple[bytes, bytes]:
    with connected(port) as link:
        link.sendall(request)
        head, _, body = rest(link).partition(b"\r\n\r\n")
        return head, body


def get(path: str = "/metrics", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode()


def test_the_page_and_the_end_of_the_connection(offer: Offer) -> None:
    head, body = asked(offer(), get())
    assert head.startswith(b"HTTP/1.1 200 ") and body == PAGE.encode()
    assert f"content-type: {CONTENT_TYPE}".encode() in head.lower()
    assert b"server:" not in head.lower(), "what it is made of is nobody's business"


def test_head_has_no_body(offer: Offer) -> None:
    head, body = asked(offer(), get(method="HEAD"))
    assert head.startswith(b"HTTP/1.1 200 ") and body == b""


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metrics/x", "/metrics2", "/../metrics", "//metrics"])
def test_nothing_else_is_there(offer: Offer, path: str) -> None:
    assert asked(offer(), get(path))[0].startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("length", ["content-length: 5", "transfer-encoding: chunked"])
def test_who_sends_a_body_is_cut(offer: Offer, length: str) -> None:
    request = get(method="POST").replace(b"Host: here", f"Host: here\r\n{length}".encode())
    assert asked(offer(), request) == (b"", b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_else_is_done(offer: Offer, method: str) -> None:
    assert asked(offer(), get(method=method))[0].startswith(b"HTTP/1.1 405 ")


def test_a_page_that_cannot_be_made_tells_nothing_of_why(turning: Turning, caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> str:
        raise RuntimeError("secret")

    server = MetricsServer(LOCAL, None, turning.reactor, fails, CONTENT_TYPE)
    port = turning.call(server.start)
    try:
        head, body = asked(port, get())
    finally:
        turning.call(server.stop)
    assert head.startswith(b"HTTP/1.1 500 ") and b"secret" not in body


def test_who_asks_nothing_is_cut(offer: Offer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "DEADLINE_S", 0.3)
    with connected(offer()) as link:
        assert rest(link) == b""


def test_who_does_not_read_its_answer_is_cut(
    offer: Offer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(http, "DEADLINE_S", 0.5)
    page = "x" * 2**25
    with connected(offer(page)) as link, caplog.at_level("INFO"):
        link.sendall(get())
        until(lambda: "took longer" in caplog.text, 20, "it is cut")
        assert len(rest(link)) < len(page)


def test_more_than_a_few_are_turned_away_and_places_come_free(offer: Offer) -> None:
    port = offer()
    waiting = [connected(port) for _ in range(http.MOST)]
    try:
        def full() -> bool:
            with connected(port) as link:
                link.sendall(get())
                return rest(link) == b""

        until(full, 20, "no place is left")
        waiting.pop().close()
        until(lambda: not full(), 20, "a place came free")
    finally:
        for link in waiting:
            link.close()


def test_an_address_that_cannot_be_had_is_told(offer: Offer) -> None:
    port = offer()
    with pytest.raises(Fault) as caught:
        offer(listen=("127.0.0.1", port))
    assert caught.value.kind is FaultKind.REFUSED and str(port) in str(caught.value)


def test_stopped_it_takes_nobody(turning: Turning) -> None:
    server = MetricsServer(LOCAL, None, turning.reactor, lambda: PAGE, CONTENT_TYPE)
    port = turning.call(server.start)
    turning.call(server.stop)
    with pytest.raises(ConnectionRefusedError):
        connected(port)
    turning.call(server.stop)


# -- TLS


def secured(port: int, ca: Path, most: Optional[ssl.TLSVersion] = None) -> bytes:
    context = ssl.create_default_context(cafile=str(ca))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # the tests' CA says less than newer Pythons ask
    if most is not None:
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = most
    with context.wrap_socket(connected(port), server_hostname="localhost") as link:
        link.sendall(get())
        return rest(link).partition(b"\r\n\r\n")[2]


def test_with_tls_and_only_with_tls(offer: Offer, certificates: Certificates) -> None:
    port = offer(tls=(certificates.server, certificates.server))
    assert secured(port, certificates.ca) == PAGE.encode()
    assert b"vmagent_up" not in b"".join(asked(port, get()))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        secured(port, certificates.ca, ssl.TLSVersion.TLSv1_1)


def test_a_renewed_certificate_counts_for_the_next_connection(offer: Offer, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("old", "new", "served")]
    for folder in folders:
        folder.mkdir()
    old, new = Certificates(folders[0]), Certificates(folders[1])
    served = folders[2] / "both.pem"
    served.write_bytes(old.server.read_bytes())
    port = offer(tls=(served, served))
    assert secured(port, old.ca) == PAGE.encode()
    served.write_text("half written")
    assert secured(port, old.ca) == PAGE.encode(), "what cannot be read leaves what there was"
    served.write_bytes(new.server.read_bytes())
    assert secured(port, new.ca) == PAGE.encode()


def test_a_certificate_that_cannot_be_read_is_told(offer: Offer, tmp_path: Path) -> None:
    with pytest.raises(Fault) as caught:
        offer(tls=(tmp_path / "none.pem", tmp_path / "none.pem"))
    assert caught.value.kind is FaultKind.REFUSED
