"""export/spool.py and export/smime.py: what the site's relay finds, read by python-dirq itself and by openssl."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Callable, Iterator, List

import pytest
from cryptography.hazmat.primitives import serialization
from dirq.QueueSimple import QueueSimple

from tests.support import certificates, confined
from vmagent.errors import Fault, FaultKind
from vmagent.export import spool as spooling
from vmagent.export.smime import MARGIN_S, Signer
from vmagent.export.spool import Spool

NOW = 1795219200.25
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(name="spool")
def fixture_spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "outgoing", tmp_path / "archive")


def relay(tmp_path: Path, take: int = 1000) -> List[bytes]:
    """What ssmsend takes, in its order, each removed once it is sent."""
    queue, sent = QueueSimple(str(tmp_path / "outgoing")), []
    name = queue.first()
    while name and len(sent) < take:
        if queue.lock(name):
            sent.append(queue.get(name))
            queue.remove(name)
        name = queue.next()
    queue.purge()
    return sent


def test_the_relay_s_own_library_reads_it_in_order(spool: Spool, tmp_path: Path) -> None:
    names = [spool.put(f"message {number}".encode(), NOW + number * 30) for number in range(5)]
    assert QueueSimple(str(tmp_path / "outgoing")).count() == spool.count() == 5
    assert names == sorted(names) and spool.oldest_s() == pytest.approx(NOW, abs=1e-3)
    assert relay(tmp_path) == [f"message {number}".encode() for number in range(5)]
    assert spool.count() == 0 and spool.oldest_s() == 0


@pytest.mark.parametrize("same", [True, False])
def test_a_clock_that_goes_back_lets_nothing_overtake(tmp_path: Path, same: bool) -> None:
    spool = Spool(tmp_path / "outgoing", tmp_path / "archive")
    for number, at in enumerate((NOW, NOW - 86400, NOW, NOW, NOW - 1)):
        if not same:  # after a restart it knows no more than the directory does
            spool = Spool(tmp_path / "outgoing", tmp_path / "archive")
        spool.put(str(number).encode(), at)
    assert relay(tmp_path) == [b"0", b"1", b"2", b"3", b"4"]


def test_a_message_that_was_taken_is_behind_none(spool: Spool, tmp_path: Path) -> None:
    first = spool.put(b"first", NOW)
    queue = QueueSimple(str(tmp_path / "outgoing"))
    assert queue.lock(first)
    assert spool.untaken() == [] and not spool.drop(first)
    assert spool.put(b"second", NOW - 60) > first
    assert [spool.read(name) for name in spool.untaken()] == [b"second"]
    assert queue.get(first) == b"first"
    spool.break_locks()
    assert len(spool.untaken()) == 2 and spool.read("00000000/00000000000000") is None


def test_the_same_time_again_writes_over_nothing(tmp_path: Path) -> None:
    for text in (b"a", b"b"):
        Spool(tmp_path / "outgoing", tmp_path / "archive").put(text, NOW)
        assert relay(tmp_path) == [text]
    assert sorted(Spool(tmp_path / "outgoing", tmp_path / "archive").archived("2026-11")) == [b"a", b"b"]
    assert list(Spool(tmp_path / "outgoing", tmp_path / "archive").archived("2026-12")) == []


def test_drop_takes_what_nobody_has_taken(spool: Spool, tmp_path: Path) -> None:
    names = [spool.put(text, NOW) for text in (b"a", b"b")]
    assert spool.drop(names[0]) and spool.drop(names[0])
    assert relay(tmp_path) == [b"b"] and not list((tmp_path / "outgoing").glob("*/*"))


def test_the_archive_keeps_a_copy_by_month_for_its_time(spool: Spool, tmp_path: Path) -> None:
    spool.put(b"november", NOW)
    spool.put(b"december", NOW + 20 * 86400)
    relay(tmp_path)
    archive = tmp_path / "archive"
    assert [one.read_bytes() for one in sorted(archive.glob("*/*"))] == [b"november", b"december"]
    assert sorted(one.name for one in archive.iterdir()) == ["2026-11", "2026-12"]
    (archive / "README").write_text("somebody else's")
    spool.forget("2026-12")
    assert sorted(one.name for one in archive.iterdir()) == ["2026-12", "README"]


@pytest.mark.parametrize("point", ["accounts-written", "accounts-archived"])
def test_killed_while_a_message_is_written(tmp_path: Path, point: str) -> None:
    script = ("import sys; from pathlib import Path; from vmagent.export.spool import Spool; here = Path(sys.argv[1]);"
              f"Spool(here / 'outgoing', here / 'archive').put(b'message', {NOW})")
    child = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, timeout=60, check=False,
                           env={**os.environ, "VMAGENT_CRASH_AT": point, "PYTHONPATH": str(ROOT)})
    assert child.returncode == -signal.SIGKILL
    assert relay(tmp_path) == []
    Spool(tmp_path / "outgoing", tmp_path / "archive").put(b"again", NOW)
    assert relay(tmp_path) == [b"again"]


@pytest.fixture(name="full")
def fixture_full() -> Iterator[Callable[[int], None]]:
    """No file may grow beyond so many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_and_leaves_nothing_half(spool: Spool, tmp_path: Path, full: Callable[[int], None]) -> None:
    spool.put(b"before", NOW)
    full(1000)
    with pytest.raises(Fault) as told:
        spool.put(b"x" * 5000, NOW)
    full(resource.RLIM_INFINITY)
    assert told.value.kind is FaultKind.FULL
    assert [path.name for path in tmp_path.rglob("*.tmp")] == []
    assert relay(tmp_path) == [b"before"]


def test_it_is_bounded(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spooling, "MOST_WAITING", 2)
    for _ in range(2):
        spool.put(b"x", NOW)
    with pytest.raises(Fault, match="does the relay run") as told:
        spool.put(b"x", NOW)
    assert told.value.kind is FaultKind.FULL


def test_a_place_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "outgoing").write_text("a file")
    with pytest.raises(Fault) as told:
        Spool(tmp_path / "outgoing", tmp_path / "archive").put(b"x", NOW)
    assert told.value.kind is FaultKind.AWAY


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_is_made_belongs_to_whom_the_directory_belongs(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "outgoing").mkdir()
    os.chown(tmp_path / "outgoing", 12345, 12346)
    path = tmp_path / "outgoing" / spool.put(b"x", NOW)
    assert [(one.stat().st_uid, one.stat().st_gid) for one in (path, path.parent)] == [(12345, 12346)] * 2
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(not confined.wanted(), reason="needs root, to make a directory of somebody else's")
def test_an_agent_that_is_not_root_gives_it_to_the_directory_s_group() -> None:
    """As the unit starts it, with its umask: whoever is in the group can take and remove it as the owner could."""
    relay_uid, group = 12345, 12346
    code = "import sys; from pathlib import Path; from vmagent.export.spool import Spool; " \
           f"print(Spool(Path(sys.argv[1]) / 'outgoing', Path(sys.argv[1]) / 'archive').put(b'x', {NOW}))"
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        confined.give(Path(folder))
        (Path(folder) / "outgoing").mkdir()
        os.chown(Path(folder) / "outgoing", relay_uid, group)
        (Path(folder) / "outgoing").chmod(0o770)
        said = subprocess.run([*confined.words([group]), sys.executable, "-c", code, folder], cwd=ROOT, check=True,
                              capture_output=True, text=True, umask=confined.umask()).stdout  # fmt: skip
        path = Path(folder) / "outgoing" / said.strip()
        assert [(one.stat().st_uid, one.stat().st_gid) for one in (path, path.parent)] == [(confined.uid(), group)] * 2
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o660, 0o770)


# ---- signatures


def signer(tmp_path: Path, key: object = None) -> Signer:
    authority = certificates.authority(key=key or certificates.rsa_key())
    return pair(tmp_path, authority.pem, authority.key)


def pair(tmp_path: Path, certificate: bytes, key: object) -> Signer:
    (tmp_path / "host.pem").write_bytes(certificate)
    (tmp_path / "host.key").write_bytes(key.private_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return Signer(tmp_path / "host.pem", tmp_path / "host.key")


def verified(tmp_path: Path, message: bytes) -> subprocess.CompletedProcess[bytes]:
    """As SSM's receiver does: `openssl smime -verify`, without the chain, which a test CA of that day has not."""
    command = ["openssl", "smime", "-verify", "-noverify", "-text", "-certfile", str(tmp_path / "host.pem")]
    return subprocess.run(command, input=message, capture_output=True, check=False, timeout=60)


@pytest.mark.parametrize("make", [certificates.rsa_key, certificates.p256_key])
def test_a_signed_message_is_verified_by_openssl(tmp_path: Path, make: Callable[[], object]) -> None:
    text = "APEL-cloud-message: v0.4\nVMUUID: x\n%%\n"
    message = signer(tmp_path, make()).sign(text, certificates.NOW_S)
    assert b"multipart/signed" in message and b"application/x-pkcs7-signature" in message and b"sha-256" in message
    answer = verified(tmp_path, message)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.replace(b"\r\n", b"\n") == text.encode()
    assert verified(tmp_path, message.replace(b"VMUUID: x", b"VMUUID: y")).returncode != 0


def test_its_body_begins_after_a_blank_line(tmp_path: Path) -> None:
    message = signer(tmp_path).sign("body\n", certificates.NOW_S).replace(b"\r\n", b"\n")
    assert b"Content-Type: text/plain\n\nbody\n" in message


def test_a_certificate_that_expires_within_a_day_signs_nothing(tmp_path: Path) -> None:
    mine = signer(tmp_path)
    ends = (certificates.NOW + 1000 * certificates.DAY).timestamp()
    assert mine.sign("x", ends - MARGIN_S)
    with pytest.raises(Fault, match="renew it") as told:
        mine.sign("x", ends - MARGIN_S + 1)
    assert told.value.kind is FaultKind.REFUSED


def test_a_renewed_certificate_counts_at_once_and_a_wrong_pair_is_told(tmp_path: Path) -> None:
    mine = signer(tmp_path)
    first = mine.sign("x", certificates.NOW_S)
    signer(tmp_path)
    assert mine.sign("x", certificates.NOW_S) != first and verified(tmp_path, first).returncode == 0
    pair(tmp_path, certificates.authority().pem, certificates.p256_key())
    with pytest.raises(Fault, match="is not the key of"):
        mine.sign("x", certificates.NOW_S)
    pair(tmp_path, certificates.authority(key=certificates.ed25519_key()).pem, certificates.ed25519_key())
    with pytest.raises(Fault, match="RSA or EC"):
        mine.sign("x", certificates.NOW_S)
    (tmp_path / "host.key").unlink()
    with pytest.raises(Fault, match="cannot be signed"):
        mine.sign("x", certificates.NOW_S)
