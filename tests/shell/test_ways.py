"""The way to an image's server: through the site's proxy, and only to a server that is who it says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Iterator

import pytest

from tests.support.fetching import Host
from tests.support.golden import MIB, NEEDED, TOOLS
from tests.support.imageserver import Certificates, headed
from tests.support.proxy import Proxy
from vmagent.errors import Fault, FaultKind

pytestmark = pytest.mark.skipif(not TOOLS, reason=NEEDED)
ELSEWHERE = "images.example.invalid"


@pytest.fixture
def proxy(host: Host) -> Iterator[Proxy]:
    """The host's proxy from now on."""
    made = Proxy()
    host.settings(proxy=made.url)
    host.again()
    yield made
    made.close()


def target(host: Host, name: str = "localhost") -> str:
    return f"{name}:{host.server.port}"


@pytest.fixture
def elsewhere(host: Host, tmp_path: Path) -> Host:
    """The server's certificate is for another name than localhost, under a CA that the site believes."""
    (tmp_path / "elsewhere").mkdir()
    certificates = Certificates(tmp_path / "elsewhere", ELSEWHERE)
    host.server.present(certificates)
    host.settings(ca=certificates.ca)
    host.again()
    return host


# --- the proxy ------------------------------------------------------------------------------------------------------


def test_everything_goes_through_the_proxy_redirects_too(host: Host, proxy: Proxy) -> None:
    image = dataclasses.replace(host.offer(), url=host.server.url("/from"))
    host.server.scripts["/from"] = headed(307, ("Location", "/tiny.raw"), ("Content-Length", 0))
    host.fetched(image)
    assert host.images.here(image)
    assert proxy.asked == [target(host)] * 2
    assert len(host.server.asked) == 2


def test_only_the_proxy_need_know_the_server_s_name(elsewhere: Host, proxy: Proxy) -> None:
    image = elsewhere.offer()
    image = dataclasses.replace(image, url=image.url.replace("localhost", ELSEWHERE))
    elsewhere.fetched(image)
    assert elsewhere.images.here(image)
    assert proxy.asked == [target(elsewhere, ELSEWHERE)]


@pytest.mark.parametrize("status, kind", [
    (403, FaultKind.REFUSED), (407, FaultKind.REFUSED), (429, FaultKind.BUSY), (502, FaultKind.BUSY),
    (301, FaultKind.REFUSED),
])  # fmt: skip
def test_a_proxy_that_says_no(host: Host, proxy: Proxy, status: int, kind: FaultKind) -> None:
    proxy.script = proxy.says(b"HTTP/1.1 %d No\r\nContent-Length: 2\r\n\r\nno" % status)
    fault = host.fault(host.offer())
    assert (fault.kind, f"the proxy says {status}" in fault.detail) == (kind, True), fault
    assert not host.server.asked


@pytest.mark.parametrize("answer, stays, why", [
    (b"", False, "closed the connection"),
    (b"", True, "no answer within"),
    (b"HTTP/1.1 200", False, "closed the connection"),
    (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", True, "speaks no HTTP"),
    (b"HTTP/1.1 2OO Fine\r\n\r\n", True, "speaks no HTTP"),
    (bytes(range(256)) * 1000, True, "has no end"),
])  # fmt: skip
def test_a_proxy_that_answers_nonsense_is_not_believed(
    host: Host, proxy: Proxy, answer: bytes, stays: bool, why: str
) -> None:
    host.settings(stall_s=1.0)
    host.again()
    proxy.script = proxy.says(answer, stays)
    fault = host.fault(host.offer())
    assert (fault.kind, why in fault.detail) == (FaultKind.BUSY, True), fault


def test_nonsense_inside_the_tunnel_is_no_server(host: Host, proxy: Proxy) -> None:
    proxy.script = proxy.says(b"HTTP/1.1 200 Yes\r\n\r\n" + bytes(1000), True)
    fault = host.fault(host.offer())
    assert (fault.kind, "TLS" in fault.detail) == (FaultKind.REFUSED, True), fault


def test_a_proxy_that_is_not_there_is_tried_again(host: Host) -> None:
    gone = Proxy()
    gone.close()
    host.settings(proxy=gone.url)
    host.again()
    assert host.fault(host.offer()).kind is FaultKind.BUSY
    assert not host.server.asked


def test_a_tunnel_that_ends_in_the_middle_is_gone_on_from_there(host: Host, proxy: Proxy) -> None:
    proxy.script = proxy.ends(2 * MIB)
    image = host.offer()
    fault = host.fault(image)
    assert fault.kind is FaultKind.BUSY, fault
    host.at_last(image)
    (_, first), (_, second) = host.server.asked
    assert "range" not in first
    assert MIB < int(second["range"][len("bytes=") : -1]) <= 2 * MIB
    assert proxy.asked == [target(host)] * 2


# --- who answers ----------------------------------------------------------------------------------------------------


def refusal(host: Host) -> Fault:
    """Why nothing is asked of the server at all."""
    fault = host.fault(host.offer())
    assert not host.server.asked
    assert host.names() == []
    return fault


def test_a_certificate_of_another_host_is_refused(elsewhere: Host) -> None:
    fault = refusal(elsewhere)
    assert (fault.kind, "TLS" in fault.detail) == (FaultKind.REFUSED, True), fault


def test_through_the_proxy_too(elsewhere: Host, proxy: Proxy) -> None:
    fault = refusal(elsewhere)
    assert (fault.kind, "TLS" in fault.detail) == (FaultKind.REFUSED, True), fault
    assert proxy.asked == [target(elsewhere)]


@pytest.mark.parametrize("proxied", [False, True])
def test_a_server_under_another_ca_is_refused(host: Host, tmp_path: Path, proxied: bool) -> None:
    (tmp_path / "other").mkdir()
    through = Proxy()
    try:
        host.settings(ca=Certificates(tmp_path / "other").ca, proxy=through.url if proxied else None)
        host.again()
        fault = refusal(host)
    finally:
        through.close()
    assert (fault.kind, "TLS" in fault.detail) == (FaultKind.REFUSED, True), fault


def test_a_ca_file_without_a_certificate_is_refused(host: Host, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("none")
    host.settings(ca=tmp_path / "empty.pem")
    host.again()
    fault = refusal(host)
    assert (fault.kind, "holds no CA certificate" in fault.detail) == (FaultKind.REFUSED, True), fault


def test_headers_without_an_end_are_not_kept(host: Host) -> None:
    def pour(handler: object, path: str, before: int) -> None:
        handler.wfile.write(b"HTTP/1.1 200 Fine\r\n")  # type: ignore[attr-defined]
        while not host.server.over.is_set():
            handler.wfile.write(b"X-More: yes\r\n" * 1000)  # type: ignore[attr-defined]

    host.server.scripts["/tiny.raw"] = pour
    fault = host.fault(host.offer())
    assert (fault.kind, "before an answer" in fault.detail) == (FaultKind.REFUSED, True), fault
