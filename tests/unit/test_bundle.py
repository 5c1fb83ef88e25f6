"""`vmagentctl bundle`: everything that helps, nothing that is secret, also when nothing works."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import socket
import stat
import tarfile
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Tuple

import pytest

from tests.unit.test_doctor import SETTINGS, FakeHost
from tests.unit.test_doctor import _host as _host  # the fixture `host`
from vmagent.errors import Fault, FaultKind, Problem
from vmagent.local import ctl_bundle, ctl_parser, tables
from vmagent.local.bundle import collecting, scrubbing

PASSCODE = "hunter2-is-the-passcode"
SECRETS = {
    "passcode": PASSCODE,
    "login": "the-broker-login",
    "user data": "IyEvYmluL3NoIGVjaG8gc2VjcmV0",
    "ssh key": "AAAAC3NzaC1lZDI1NTE5AAAAIJnhZ9sUyKq0d1Z",
    "private key": "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49",
    "token of a URL": "t0k3n-in-a-query",
    "password of a URL": "pr0xy-passw0rd",
    "bearer": "eyJhbGciOiJub25lIn0.e30.",
}
CONFIG = SETTINGS.replace("login: me", f"login: {SECRETS['login']}").replace(
    "images: {",
    f"images: {{lists: [{{identifier: l, url: 'https://lists.example.org/l?token={SECRETS['token of a URL']}',"
    f" endorsers: ['/CN=e']}}], ",
)
KEY = f"-----BEGIN PRIVATE KEY-----\n{SECRETS['private key']}\n-----END PRIVATE KEY-----"
JOURNAL = f"""2026-11-21T12:00:00 host vmagent[1]: warning: fetching https://x.example.org/i?sig={SECRETS["token of a URL"]} failed
2026-11-21T12:00:01 host vmagent[1]: somebody logs {PASSCODE} and {KEY}
2026-11-21T12:00:02 host vmagent[1]: Authorization: Bearer {SECRETS["bearer"]}
2026-11-21T12:00:03 host vmagent[1]: no way to http://user:{SECRETS["password of a URL"]}@proxy.example.org:3128
2026-11-21T12:00:03 host vmagent[1]: ready
"""  # noqa: E501 - as the journal has it
ANSWERS: Mapping[str, Any] = {
    "status": {"host": "h", "degraded": {"broker": "refused"}, "passcode": PASSCODE},
    "doctor": {"version": "1"},
    "list": {"vms": [{"vm": "v", "user_data": SECRETS["user data"]}], "foreign": []},
    "audit": {"audit": [{"why": f"ssh-ed25519 {SECRETS['ssh key']} user@host", "verb": "vm.start"}]},
    "images": {"images": [{"url": f"https://x.example.org/i?token={SECRETS['token of a URL']}"}]},
    "capacity": {"meta_data": {"a": SECRETS["user data"]}, "free": 1},
    "downloads": {"why": f"user_data={SECRETS['user data']}"},
    "telemetry": {},
}


@pytest.fixture
def site(host: FakeHost, tmp_path: Path) -> Tuple[FakeHost, Path]:
    """A host with secrets in every place where one could be."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "vmagent.db").write_bytes(_sqlite(3) + PASSCODE.encode() * 100)
    path = tmp_path / "vmagent.yaml"
    places = f"directories: {{state: {tmp_path}/state, run: {tmp_path}}}\n"
    path.write_text(CONFIG + places)
    host.files["/etc/p"] = PASSCODE.encode() + b"\n"
    host.files[str(tmp_path / "state" / "vmagent.db")] = b""
    says = {
        "journalctl": JOURNAL, "qemu-img": "qemu-img version 9\n",
        "tc": '[{"kind": "tbf", "dev": "vma1234"}, {"kind": "noqueue", "dev": "foreign0"}]',
    }  # fmt: skip
    return dataclasses.replace(host, says={**host.says, **says}), path


def _sqlite(version: int) -> bytes:
    head = bytearray(b"SQLite format 3\0".ljust(100, b"\0"))
    head[16:18], head[28:32], head[60:64] = b"\x10\0", (7).to_bytes(4, "big"), version.to_bytes(4, "big")
    return bytes(head)


@contextlib.contextmanager
def agent(path: Path) -> Iterator[None]:
    """Answers each line with the answer above."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            link, _ = listener.accept()
            with link, link.makefile("rb") as lines:
                for line in lines:
                    asked = json.loads(line)
                    link.sendall(json.dumps({"id": asked["id"], "result": ANSWERS[asked["verb"]]}).encode() + b"\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(20)


def bundle(host: FakeHost, config: Path, *argv: str) -> Tuple[Dict[str, bytes], Dict[str, Any], Path]:
    """(content by name, what --json said, the file)."""
    path = config.parent / "out.tar.gz"
    said = ctl_parser.parser().parse_args(["bundle", "--config", str(config), "-o", str(path), "--json", *argv])
    out = io.StringIO()
    assert ctl_bundle.run(said, out, tables.Screen(out), host) == 0
    with tarfile.open(path) as archive:
        files = {entry.name.split("/", 1)[1]: archive.extractfile(entry).read()  # type: ignore[union-attr]
                 for entry in archive}
    return files, json.loads(out.getvalue()), path


def test_no_planted_secret_is_in_it_and_what_helps_is(site: Tuple[FakeHost, Path]) -> None:
    host, config = site
    with agent(config.parent / "vmagent.sock"):
        files, told, path = bundle(host, config)
    everything = b"\n".join(files.values()) + path.read_bytes()
    assert [what for what, secret in SECRETS.items() if secret.encode() in everything] == []
    assert told["missing"] == {} and files["missing.txt"] == b"nothing\n"
    assert set(files) == {"versions.txt", "config.json", "doctor.json", "journal.txt", "nft.json", "tc.json",
                          "store.json", "missing.txt", *(f"agent/{verb}.json" for verb in ANSWERS)}
    assert b"lists.example.org/l" in files["config.json"] and b"/etc/p" in files["config.json"]
    assert b": ready" in files["journal.txt"] and b"https://x.example.org/i" in files["journal.txt"]
    assert [one["dev"] for one in json.loads(files["tc.json"])] == ["vma1234"]
    assert json.loads(files["store.json"])["head"] == {"page_bytes": 4096, "pages": 7, "free_pages": 0, "schema": 3}
    assert b"vmagent: " in files["versions.txt"]


def test_each_secret_would_be_in_it_were_it_not_removed(
    site: Tuple[FakeHost, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the test above cannot go blind."""
    host, config = site
    monkeypatch.setattr(collecting, "scrubbed", lambda text, known=(): text)
    monkeypatch.setattr(collecting, "without_secrets", lambda value: value)
    with agent(config.parent / "vmagent.sock"):
        files, _, _ = bundle(host, config)
    everything = b"\n".join(files.values())
    assert [what for what, secret in SECRETS.items() if secret.encode() not in everything] == []


def test_nobody_else_may_read_it_and_nothing_is_replaced(site: Tuple[FakeHost, Path]) -> None:
    host, config = site
    _, _, path = bundle(host, config)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    with pytest.raises(Problem, match="cannot be written: File exists"):
        bundle(host, config)
    assert path.read_bytes() == before


def test_without_agent_and_programs_it_says_what_is_missing(site: Tuple[FakeHost, Path]) -> None:
    host, config = site
    for name in ("journalctl", "nft"):
        host.says[name] = Fault(FaultKind.REFUSED, f"{name} is not installed")  # type: ignore[assignment]
    files, told, _ = bundle(host, config)
    assert set(told["missing"]) == {"journal.txt", "nft.json", *(f"agent/{verb}.json" for verb in ANSWERS)}
    assert "no agent answers" in told["missing"]["agent/status.json"]
    assert b"journalctl is not installed" in files["missing.txt"]
    assert "config.json" in files and "doctor.json" in files and "store.json" in files


def test_without_a_configuration_the_rest_is_there(site: Tuple[FakeHost, Path]) -> None:
    host, config = site
    url = f"stomp://x:{SECRETS['password of a URL']}@b:1"
    config.write_text(f"site: s\nbroker: {{passcode: {PASSCODE}, passcode_file: /etc/p, urls: ['{url}']}}")
    host.files[str(config)] = config.read_bytes()
    files, told, _ = bundle(host, config, "--socket", str(config.parent / "none.sock"))
    assert "versions.txt" in files and "journal.txt" in files
    assert "cannot be read" in told["missing"]["config.json"]
    for secret in ("passcode", "password of a URL"):
        assert SECRETS[secret].encode() not in b"\n".join(files.values())


def test_each_piece_is_bounded(site: Tuple[FakeHost, Path]) -> None:
    host, config = site
    host.says["journalctl"] = "x" * (collecting.LARGEST + 1000) + "the end\n"
    files, _, _ = bundle(host, config)
    assert files["journal.txt"].endswith(b"the end\n") and b"cut off" in files["journal.txt"]
    assert len(files["journal.txt"]) < collecting.LARGEST + 100


@pytest.mark.parametrize("text", [
    "https://example.org/path/file.qcow2", "stomp+ssl://b1:61614", "passcode_file: /etc/vmagent/passcode",
    "the passcode is private", "Subject: /DC=org/DC=example/CN=A User", "ssh-ed25519 is a kind of key",
])  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert scrubbing.scrubbed(text) == text


@pytest.mark.parametrize("piece", ["x", "://", "://@", "a://b/", "ssh-", "ssh-a ", "token:\"", "-----BEGIN ", "Basic "])
def test_a_log_that_somebody_else_wrote_holds_nothing_up(piece: str) -> None:
    scrubbing.scrubbed(piece * (1 << 18))
