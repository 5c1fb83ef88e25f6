"""Fetching over real HTTPS: what a server may do wrong, and what becomes of it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.fetching import BYTES, Host
from tests.support.golden import MIB, NEEDED, TOOLS
from tests.support.imageserver import headed
from tests.support.waiting import until
from vmagent.core.actions import Action, Do
from vmagent.core.model import ImageRef
from vmagent.errors import Fault, FaultKind

pytestmark = pytest.mark.skipif(not TOOLS, reason=NEEDED)


def test_what_was_fetched_is_kept_read_only_under_its_digest(host: Host) -> None:
    image = host.offer()
    assert not host.images.here(image)
    host.fetched(image)
    assert host.images.here(image)
    path = host.cache / f"{image.sha512}.img"
    assert path.read_bytes() == BYTES
    assert path.stat().st_mode & 0o777 == 0o444
    assert host.names() == [".img", ".json"]
    file = host.turning.call(host.images.files)[0]
    assert (file.sha512, file.file_sha512) == (image.sha512, image.sha512)
    assert (file.size, file.virtual_size) == (3 * MIB, 3 * MIB)
    assert host.again().here(image)


def test_an_overlay_stands_on_what_was_fetched(host: Host) -> None:
    image = host.offer()
    host.fetched(image)
    of = host.spec(image)
    host.turning.call(host.images.perform, Action(Do.MAKE_OVERLAY, of))
    assert host.turning.call(host.images.leftovers) == {of.vm: frozenset({"overlay"})}
    with pytest.raises(Fault) as caught:
        host.turning.call(host.images.evict, image.sha512)
    assert caught.value.kind is FaultKind.BUSY
    host.turning.call(host.images.perform, Action(Do.CLEAN_UP, of))
    host.turning.call(host.images.evict, image.sha512)
    assert not host.images.here(image)
    assert host.names() == []


def test_twenty_vms_that_want_one_image_cause_one_download(host: Host) -> None:
    image = host.offer()
    host.settings(stall_s=20.0)
    host.again()
    host.server.scripts["/tiny.raw"] = lambda *a: host.server.over.wait(20) and host.server.serve(*a)
    for member in range(20):
        host.ask(image, member)
    host.server.over.set()
    until(lambda: len(host.told) == 20, 20, "all of them told")
    assert len(host.server.asked) == 1
    assert host.images.here(image)


def test_a_cut_connection_is_gone_on_from_where_it_stopped(host: Host) -> None:
    image = host.offer()
    host.server.scripts["/tiny.raw"] = host.server.cut(2 * MIB)
    fault = host.fault(image)
    assert fault.kind is FaultKind.BUSY, fault
    host.again()  # and the agent was restarted in between
    host.at_last(image)
    headers = host.server.asked[-1][1]
    assert headers["if-range"] == '"one"'
    assert 0 < int(headers["range"][6:-1]) <= 2 * MIB


def test_another_file_between_two_attempts_is_fetched_from_the_start(host: Host) -> None:
    image = host.offer(content=BYTES)
    host.server.files["/tiny.raw"] = os.urandom(3 * MIB)
    host.server.scripts["/tiny.raw"] = host.server.cut(2 * MIB)
    host.fault(image)
    host.offer(content=BYTES)
    host.server.etags["/tiny.raw"] = '"two"'
    host.at_last(image)


def test_a_file_that_changed_under_the_same_validator_is_not_mixed_in(host: Host) -> None:
    image = host.offer()
    host.server.files["/tiny.raw"] = os.urandom(3 * MIB)
    host.server.scripts["/tiny.raw"] = host.server.cut(2 * MIB)
    host.fault(image)
    host.offer()
    host.at_last(image)
    assert (host.cache / f"{image.sha512}.img").read_bytes() == BYTES
    assert "range" not in host.server.asked[-1][1]


def test_a_server_that_goes_on_elsewhere_is_refused(host: Host) -> None:
    image = host.offer()
    elsewhere = headed(206, ("Content-Range", f"bytes 0-{len(BYTES) - 1}/{len(BYTES)}"), body=BYTES)
    first = host.server.cut(2 * MIB)
    host.server.scripts["/tiny.raw"] = lambda *a: (elsewhere if a[2] else first)(*a)
    assert host.fault(image).kind is FaultKind.BUSY
    with pytest.raises(Fault, match="asked for bytes from") as caught:
        host.at_last(image)
    assert caught.value.kind is FaultKind.REFUSED


def test_a_server_that_stalls_is_given_up_for_now(host: Host) -> None:
    host.settings(stall_s=1.0)
    host.again()
    image = host.offer()
    host.server.scripts["/tiny.raw"] = host.server.stall(MIB)
    fault = host.fault(image)
    assert fault.kind is FaultKind.BUSY
    assert "no byte came within 1 s" in fault.detail
    host.at_last(image)


def test_a_server_that_drips_meets_the_deadline(host: Host) -> None:
    host.settings(deadline_s=1.0)
    host.again()
    image = host.offer()

    def drip(handler: Any, path: str, before: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(BYTES)))
        handler.end_headers()
        for at in range(100):
            handler.wfile.write(BYTES[at : at + 1])
            handler.wfile.flush()
            if host.server.over.wait(0.1):
                return

    host.server.scripts["/tiny.raw"] = drip
    fault = host.fault(image)
    assert fault.kind is FaultKind.BUSY
    assert "not whole within 1 s" in fault.detail


TEN_GB = 10 * 10**9
REFUSED = [
    (headed(200, ("Content-Length", TEN_GB)), {"size": len(BYTES)}, "image-size"),
    (headed(200, ("Content-Length", TEN_GB)), {}, "image-size"),
    (headed(200, ("Content-Length", 5), body=b"other"), {}, "image-digest"),
    (headed(404), {}, "the server says 404"),
    (headed(403), {}, "the server says 403"),
    (headed(302, ("Location", "file:///etc/passwd")), {}, "redirected"),
    (headed(302, ("Location", "http://localhost/tiny.raw")), {}, "redirected"),
    (headed(302, ("Location", "/tiny.raw")), {}, "more than 5 times"),
    (headed(302, ("Location", "https://user@localhost/x")), {}, "no login"),
    (headed(200, ("Content-Encoding", "gzip"), ("Content-Length", 5), body=b"other"), {}, "encoded"),
    (headed(200, ("Content-Length", 5), body=BYTES), {}, "image-digest"),
    (headed(200, ("Content-Length", 5), body=BYTES), {"size": len(BYTES)}, "image-size"),
    (headed(206, ("Content-Length", 5), body=b"other"), {}, "asked for bytes from 0"),
    (headed(206, ("Content-Range", "bytes 9-13/14"), ("Content-Length", 5), body=b"other"), {}, "asked for bytes from"),
    (headed(206, ("Content-Range", f"bytes 0-4/{TEN_GB}"), ("Content-Length", 5), body=b"other"), {}, "image-size"),
]


@pytest.mark.parametrize("script, of, why", REFUSED)
def test_what_asking_again_cannot_help_is_refused_for_good(host: Host, script: Any, of: Any, why: str) -> None:
    host.settings(largest_gib=1)
    host.again()
    host.server.scripts["/tiny.raw"] = script
    fault = host.fault(host.offer(**of))
    assert fault.kind is FaultKind.REFUSED
    assert why in fault.detail
    assert host.names() == []


def test_more_than_was_said_is_cut_off(host: Host) -> None:
    """Without a length there is nothing to check beforehand: what comes is counted."""

    def pour(handler: Any, path: str, before: int) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not host.server.over.is_set():
            handler.wfile.write(bytes(MIB))

    host.server.scripts["/tiny.raw"] = pour
    fault = host.fault(host.offer(size=len(BYTES)))
    assert fault.kind is FaultKind.REFUSED
    assert "image-size" in fault.detail


LENGTHS = [("Content-Length", 5), ("Content-Length", 6)]
PASSING = [
    headed(500), headed(503), headed(429), headed(416),
    headed(200, ("Content-Length", len(BYTES)), body=BYTES[:5]),
    headed(200, *LENGTHS, body=b"other"),
    headed(200, ("Content-Length", -5), body=b"other"),
    headed(200, ("Content-Length", "five"), body=b"other"),
    headed(200, ("Transfer-Encoding", "chunked"), body=b"5\r\nother\r\nmany\r\n"),
    headed(200, ("Transfer-Encoding", "chunked"), body=b"5\r\nother\r\n"),
    headed(200, ("Transfer-Encoding", "rot13"), body=b"other"),
]  # fmt: skip


@pytest.mark.parametrize("sick", PASSING, ids=range(len(PASSING)))
def test_what_may_pass_is_not_refused(host: Host, sick: Any) -> None:
    """A server that is sick, ends in the middle, or lies about the length."""
    host.server.scripts["/tiny.raw"] = sick
    assert host.fault(host.offer()).kind is FaultKind.BUSY


def test_what_may_pass_is_tried_again(host: Host) -> None:
    image = host.offer()
    sick = headed(503)
    host.server.scripts["/tiny.raw"] = lambda *a: sick(*a) if a[2] == 0 else host.server.serve(*a)
    assert host.fault(image).kind is FaultKind.BUSY
    host.at_last(image)


def test_a_failure_is_told_to_everybody_who_waits_and_nothing_is_begun_again_at_once(host: Host) -> None:
    image = host.offer()
    sick = headed(503)
    host.server.scripts["/tiny.raw"] = lambda *a: host.server.over.wait(20) and sick(*a)
    host.ask(image, 0)
    host.ask(image, 1)
    host.server.over.set()
    until(lambda: len(host.told) >= 2, 20)
    for member in (0, 1, 0, 1):
        with pytest.raises(Fault) as caught:
            host.ask(image, member)
        assert caught.value.kind is FaultKind.BUSY
    assert len(host.server.asked) <= 2


def test_a_redirect_within_https_is_followed(host: Host) -> None:
    image = dataclasses.replace(host.offer(), url=host.server.url("/from"))
    host.server.scripts["/from"] = headed(307, ("Location", "/tiny.raw"), ("Content-Length", 0))
    host.fetched(image)
    assert host.images.here(image)


def test_a_download_that_nobody_wants_any_more_ends(host: Host) -> None:
    image = host.offer()
    host.server.scripts["/tiny.raw"] = lambda *a: host.server.over.wait(20)
    host.ask(image)
    until(lambda: host.server.asked, 20)
    of = host.spec(image)
    assert host.turning.call(host.images.leftovers) == {of.vm: frozenset({"download"})}
    host.turning.call(host.images.perform, Action(Do.CLEAN_UP, of))
    assert host.images.downloads() == ()
    assert host.turning.call(host.images.leftovers) == {}


def test_progress_is_seen_while_it_goes_on(host: Host) -> None:
    image = host.offer()
    whole = host.server.over

    def slow(handler: Any, path: str, before: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(BYTES)))
        handler.end_headers()
        handler.wfile.write(BYTES[: 2 * MIB])
        handler.wfile.flush()
        whole.wait(20)

    host.settings(stall_s=20.0)
    host.again()
    host.server.scripts["/tiny.raw"] = slow
    host.ask(image)
    until(lambda: [one for one in host.images.downloads() if one.done == 2 * MIB], 20, "two of three MiB")
    download = host.images.downloads()[0]
    assert (download.total, download.step, download.url) == (len(BYTES), "fetching", image.url)


def test_two_at_a_time_and_the_others_wait(host: Host) -> None:
    go = host.server.over
    images = [host.offer(f"/{n}.raw", bytes([n]) + BYTES[: MIB - 1]) for n in range(3)]
    for n in range(3):
        host.server.scripts[f"/{n}.raw"] = lambda *a: go.wait(20) and host.server.serve(*a)
    host.settings(stall_s=20.0)
    host.again()
    for member, image in enumerate(images):
        host.ask(image, member)
    until(lambda: len(host.server.asked) == 2, 20)
    assert [one.step for one in host.images.downloads()] == ["fetching", "fetching", "waiting"]
    go.set()
    until(lambda: all(host.images.here(image) for image in images), 20)


# --- file: ----------------------------------------------------------------------------------------------------------


def offered(host: Host, name: str = "tiny.raw") -> ImageRef:
    directory = host.shelf.settings.fetch.files[0]
    (directory / name).write_bytes(BYTES)
    return ImageRef("tiny", hashlib.sha512(BYTES).hexdigest(), "raw", f"file://{directory}/{name}")


def test_a_file_of_an_allowed_directory_is_taken(host: Host) -> None:
    image = offered(host)
    host.fetched(image)
    assert (host.cache / f"{image.sha512}.img").read_bytes() == BYTES


def test_a_file_elsewhere_is_not(host: Host, tmp_path: Path) -> None:
    image = offered(host)
    (tmp_path / "secret").write_bytes(BYTES)
    (host.shelf.settings.fetch.files[0] / "link").symlink_to(tmp_path / "secret")
    for url in (f"file://{tmp_path}/secret", image.url.replace("tiny.raw", "../secret"), "file://other/tiny.raw",
                image.url.replace("tiny.raw", "%2e%2e/secret"), image.url.replace("tiny.raw", "link")):
        fault = host.fault(dataclasses.replace(image, url=url))
        assert fault.kind is FaultKind.REFUSED


# --- what it is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format, options", [
    ("vmdk", ""), ("vmdk", "subformat=streamOptimized"), ("vdi", ""), ("vhdx", ""), ("vhdx", "subformat=fixed"),
])  # fmt: skip
def test_other_formats_are_converted_once_and_keep_their_content(host: Host, format: str, options: str) -> None:
    directory = host.shelf.settings.fetch.files[0]
    (directory / "x.raw").write_bytes(BYTES)
    argv = ["qemu-img", "convert", "-f", "raw", "-O", format, *(["-o", options] if options else [])]
    subprocess.run([*argv, str(directory / "x.raw"), str(directory / "x")], check=True, capture_output=True)
    sha512 = hashlib.sha512((directory / "x").read_bytes()).hexdigest()
    image = ImageRef("x", sha512, format, f"file://{directory}/x")
    host.fetched(image)
    file = host.turning.call(host.images.files)[0]
    assert (file.sha512, file.file_format, file.virtual_size >= 3 * MIB) == (sha512, "qcow2", True)
    assert file.file_sha512 == hashlib.sha512(Path(file.path).read_bytes()).hexdigest() != sha512
    assert host.names() == [".img", ".json"]
    compare = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(directory / "x.raw"), file.path]
    assert subprocess.run(compare, capture_output=True).returncode == 0
    host.turning.call(host.images.perform, Action(Do.MAKE_OVERLAY, host.spec(image)))


def test_what_is_not_as_declared_never_gets_its_name(host: Host) -> None:
    image = dataclasses.replace(host.offer(), format="qcow2")
    fault = host.fault(image)
    assert fault.kind is FaultKind.REFUSED
    assert "declared as qcow2" in fault.detail
    assert host.names() == []
