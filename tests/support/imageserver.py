"""A real HTTPS server that serves images and misbehaves on demand, and Twisted's reactor in a thread of its own."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import ssl
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from tests.support.waiting import until

DAY = datetime.timedelta(days=1)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _signed(subject: str, issuer: str, key: Any, by: Any, ca: bool, host: str) -> x509.Certificate:
    now = datetime.datetime.now(datetime.timezone.utc)
    names: List[Any] = [x509.DNSName(host), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))] if host else []
    builder = x509.CertificateBuilder().subject_name(_name(subject)).issuer_name(_name(issuer))
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - DAY).not_valid_after(now + 10 * DAY)
    builder = builder.add_extension(x509.BasicConstraints(ca, None), True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
    return builder.sign(by, hashes.SHA256())


class Certificates:
    """A CA and a server's certificate under it, as files in `folder`."""

    def __init__(self, folder: Path, host: str = "localhost") -> None:
        by, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(_signed("CA", "CA", by, by, True, "").public_bytes(serialization.Encoding.PEM))
        self.server = folder / "server.pem"
        certificate = _signed("server", "CA", key, by, False, host).public_bytes(serialization.Encoding.PEM)
        form = serialization.PrivateFormat.PKCS8
        private = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        self.server.write_bytes(certificate + private)


Script = Callable[[Any, str, int], None]  # (handler, path, how many requests of this path came before)


class ImageServer:
    """files: path -> content, served with ranges and an ETag; scripts: path -> what answers instead."""

    def __init__(self, certificates: Certificates) -> None:
        self.files: Dict[str, bytes] = {}
        self.scripts: Dict[str, Script] = {}
        self.asked: List[Tuple[str, Dict[str, str]]] = []
        self.etags: Dict[str, str] = {}
        self.over = threading.Event()  # stalled handlers wait for it
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # noqa: N802 - http.server's name
                before = sum(path == self.path for path, _ in outer.asked)
                outer.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                outer.scripts.get(self.path, outer.serve)(self, self.path, before)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign] # a client that goes away is no news
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.present(certificates)
        plain, options = self._server.socket, {"server_side": True, "do_handshake_on_connect": False}
        self._server.socket = self._context.wrap_socket(plain, **options)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def present(self, certificates: Certificates) -> None:
        """What it shows to whoever connects from now on."""
        self.certificates = certificates
        self._context.load_cert_chain(certificates.server)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, path: str) -> str:
        return f"https://localhost:{self.port}{path}"

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def serve(
        self, handler: Any, path: str, before: int, cut_at: Optional[int] = None, stays: bool = False
    ) -> None:
        """The file, whole or from where it was asked; cut_at: the connection ends, or `stays`, after that byte."""
        content = self.files.get(path)
        if content is None:
            handler.send_error(404)
            return
        etag = self.etags.get(path, '"one"')
        start, asked = 0, handler.headers.get("Range", "")
        if asked and handler.headers.get("If-Range", etag) == etag:
            start = int(asked[len("bytes=") :].split("-")[0])
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", str(len(content) - start))
        handler.send_header("ETag", etag)
        handler.end_headers()
        handler.wfile.write(content[start : len(content) if cut_at is None else cut_at])
        handler.wfile.flush()
        if cut_at is not None:
            if stays:
                self.over.wait(60)
            handler.close_connection = True
            handler.connection.close()

    def cut(self, at: int, times: int = 1) -> Script:
        """The first `times` answers end after byte `at` of the file."""
        return lambda handler, path, before: self.serve(handler, path, before, at if before < times else None)

    def stall(self, at: int) -> Script:
        """The first answer tells the whole length, stops after byte `at` and stays open; later ones are whole."""

        def answer(handler: Any, path: str, before: int) -> None:
            self.serve(handler, path, before, None if before else at, stays=True)

        return answer


def headed(status: int, *headers: Tuple[str, Any], body: bytes = b"") -> Script:
    """An answer of these headers and this body, and of nothing else; then the connection ends."""

    def answer(handler: Any, path: str, before: int) -> None:
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True

    return answer


class Turning:
    """Twisted's one reactor, in a thread of its own.

    The one, because TLS there keeps time by no other (twisted.protocols.tls).  It turns once in a process: a fixture of
    the session's.
    """

    def __init__(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self._thread = threading.Thread(target=self.reactor.run, kwargs={"installSignalHandlers": False}, daemon=True)
        self._thread.start()

    def call(self, function: Callable[..., Any], *args: Any, seconds: float = 30.0) -> Any:
        """Make a call on the reactor and wait for what it returns; its failure is raised."""
        got: List[Any] = []

        def run() -> None:
            result: Deferred[Any] = maybeDeferred(function, *args)
            result.addBoth(got.append)

        self.reactor.callFromThread(run)
        until(lambda: got, seconds, "the reactor's answer")
        if isinstance(got[0], Failure):
            got[0].raiseException()
        return got[0]

    def stop(self) -> None:
        self.reactor.callFromThread(self.reactor.stop)
        self._thread.join(20)
