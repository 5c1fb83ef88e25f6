"""A list's text over real HTTPS: whole, or a Fault that says why."""

from __future__ import annotations

from typing import Any, Callable, Iterator

import pytest

from tests.support.imageserver import Certificates, ImageServer, Turning
from vmagent.errors import Fault, FaultKind
from vmagent.images.reading import UrlReader
from vmagent.images.web import Web
from vmagent.lanes import Lanes

LONGEST = 100_000
TEXT = b"{}" * 20_000


class Reading:
    """A reader and its server."""

    def __init__(self, certificates: Certificates, turning: Turning) -> None:
        self.server = ImageServer(certificates)
        self._turning = turning
        self.lanes = Lanes("reading", 1, turning.reactor)
        web = Web(turning.reactor, certificates.ca, None)
        self.reader = UrlReader(web, self.lanes, turning.reactor, 1.0, 3.0, LONGEST)

    def read(self, path: str) -> bytes:
        text: bytes = self._turning.call(self.reader.read, self.server.url(path))
        return text

    def fault(self, path: str) -> Fault:
        with pytest.raises(Fault) as caught:
            self.read(path)
        return caught.value


@pytest.fixture
def reading(certificates: Certificates, turning: Turning) -> Iterator[Reading]:
    one = Reading(certificates, turning)
    yield one
    one.server.close()
    one.lanes.stop()


def answering(send: Callable[[Any], None]) -> Callable[[Any, str, int], None]:
    def script(handler: Any, path: str, before: int) -> None:
        send(handler)

    return script


def test_the_whole_text_is_handed_over(reading: Reading) -> None:
    reading.server.files["/list"] = TEXT
    assert reading.read("/list") == TEXT


def test_what_is_not_there_is_refused(reading: Reading) -> None:
    fault = reading.fault("/nothing")
    assert (fault.kind, "404" in fault.detail) == (FaultKind.REFUSED, True)


def test_a_text_that_is_too_long_is_refused(reading: Reading) -> None:
    reading.server.files["/list"] = bytes(LONGEST + 1)
    assert reading.fault("/list").kind is FaultKind.REFUSED


def test_a_text_that_broke_off_is_not_used(reading: Reading) -> None:
    reading.server.files["/list"] = TEXT
    reading.server.scripts["/list"] = reading.server.cut(1000)
    assert reading.fault("/list").kind is FaultKind.BUSY


def test_a_text_without_a_known_end_is_not_used(reading: Reading) -> None:
    def endless(handler: Any) -> None:
        handler.protocol_version = "HTTP/1.0"
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(TEXT)
        handler.close_connection = True

    reading.server.scripts["/list"] = answering(endless)
    assert reading.fault("/list").kind is FaultKind.BUSY


def test_a_server_that_drips_is_given_up(reading: Reading) -> None:
    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        while not reading.server.over.wait(0.4):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    reading.server.scripts["/list"] = answering(drip)
    assert "not whole" in reading.fault("/list").detail
