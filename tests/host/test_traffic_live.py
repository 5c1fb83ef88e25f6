"""With real network stacks at every end: neighbours are found, addresses are checked and leased, connections work."""

from __future__ import annotations

import contextlib
import select
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Dict, Iterator, Tuple

import pytest

from tests.support import frames, traffic
from tests.support.spaces import inside
from tests.support.traffic import A2, HOST, NEIGHBOUR, A, B, Ground, batch, ran
from tests.support.traffic_rules import WAYS, grounds
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(not traffic.READY, reason=traffic.NEEDED)

STATIONS = {"a": A, "b": B, "outside": NEIGHBOUR, "host": HOST}
AMOUNT = 300_000


class Live:
    """The ground with everybody awake."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        batch(f"addr add {HOST.v4}/24 dev {ground.bridge}", f"addr add {HOST.v6}/64 dev {ground.bridge} nodad")
        self.spaces: Dict[str, str] = {"host": ""}
        for end in ("a", "b", "outside"):
            self.spaces[end] = ground.awake(end, STATIONS[end])
        for end in ("a", "b", "outside"):
            ran("ip", "-n", self.spaces[end], "addr", "add", f"{STATIONS[end].v6}/64", "dev", "far")
        for end in ("a", "b", "outside"):
            until(lambda end=end: "tentative" not in self.addresses(end), 20, "addresses are checked")

    def addresses(self, end: str) -> str:
        return ran("ip", "-n", self.spaces[end], "-6", "addr", "show", "dev", "far")

    def socket(self, end: str, kind: int, family: int) -> socket.socket:
        with inside(self.spaces[end]):
            made = socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, kind)
        made.settimeout(10)
        return made


@pytest.fixture(scope="module", params=WAYS)
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    for ground in grounds("ztl", request.param):
        yield Live(ground)


@pytest.fixture
def guarded(request: pytest.FixtureRequest) -> bool:
    return bool(request.node.callspec.params["live"] != "unguarded")


def address(end: str, family: int) -> str:
    return STATIONS[end].v6 if family == 6 else STATIONS[end].v4


def echo(server: socket.socket) -> None:
    """Everything that one client says, back to it."""
    with contextlib.suppress(OSError):
        connection, _ = server.accept()
        with connection:
            while True:
                got = connection.recv(65536)
                if not got:
                    return
                connection.sendall(got)


def exchanged(live: Live, start: str, to: str, port: int, family: int) -> bool:
    """Whether a connection carries data, both ways."""
    kind = socket.SOCK_STREAM
    with live.socket(to, kind, family) as server, live.socket(start, kind, family) as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address(to, family), port))
        server.listen(1)
        thread = threading.Thread(target=echo, args=(server,), daemon=True)
        thread.start()
        client.connect((address(to, family), port))
        sender = threading.Thread(target=client.sendall, args=(bytes(AMOUNT),), daemon=True)
        sender.start()
        got = 0
        while got < AMOUNT:
            more = client.recv(65536)
            assert more, f"closed after {got} bytes"
            got += len(more)
        sender.join(10)
        client.shutdown(socket.SHUT_WR)
        thread.join(10)
        return got == AMOUNT


ROUTES = (
    ("a", "outside", 80), ("a", "b", 80), ("a", "host", 8080),
    ("outside", "b", 80), ("host", "b", 8000), ("b", "outside", 80),
)  # fmt: skip


@pytest.mark.parametrize("family", (4, 6))
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route[0]}-{route[1]}")
def test_connections_carry_data(live: Live, route: Tuple[str, str, int], family: int) -> None:
    assert exchanged(live, *route, family)


@pytest.mark.parametrize("family", (4, 6))
@pytest.mark.parametrize("route", (("a", "outside"), ("a", "b"), ("outside", "b")), ids="-".join)
def test_datagrams_are_answered(live: Live, route: Tuple[str, str], family: int) -> None:
    """Large ones too, in fragments."""
    start, to = route
    with live.socket(to, socket.SOCK_DGRAM, family) as server, live.socket(start, socket.SOCK_DGRAM, family) as client:
        server.bind((address(to, family), 53))
        client.bind((address(start, family), 0))
        for size in (1, 1000, 5000):
            client.sendto(bytes(size), (address(to, family), 53))
            got, asker = server.recvfrom(65536)
            server.sendto(got, asker)
            assert len(client.recv(65536)) == size


@pytest.mark.parametrize("size", (56, 4000))
@pytest.mark.parametrize("family", (4, 6))
def test_pings_are_answered(live: Live, family: int, size: int) -> None:
    for to in ("outside", "host"):
        asked = ("ping", f"-{family}", "-c1", "-W5", f"-s{size}", address(to, family))
        assert "1 received" in ran("ip", "netns", "exec", live.spaces["a"], *asked)


def test_a_denied_connection_is_never_made(live: Live, guarded: bool) -> None:
    """Behind a good one from the same end, so that no time need pass: the listener has heard the good one only."""
    with live.socket("b", socket.SOCK_STREAM, 4) as denied, live.socket("b", socket.SOCK_STREAM, 4) as good:
        for server, port in ((denied, 22), (good, 80)):
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((B.v4, port))
            server.listen(1)
        with live.socket("a", socket.SOCK_STREAM, 4) as first, live.socket("a", socket.SOCK_STREAM, 4) as second:
            first.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                first.connect((B.v4, 22))
            second.connect((B.v4, 80))
            assert (not select.select([denied], [], [], 0)[0]) == guarded


def test_a_taken_address_is_found_out(live: Live) -> None:
    """Duplicate address detection works both ways: the guest tells of its address, and hears when one is taken."""
    own = f"{A2.v6}/64"
    for first, second in (("a", "outside"), ("outside", "a")):
        ran("ip", "-n", live.spaces[first], "addr", "add", own, "dev", "far", "nodad")
        ran("ip", "-n", live.spaces[second], "addr", "add", own, "dev", "far")
        until(lambda end=second: "dadfailed" in live.addresses(end), 20, "the address is found to be taken")
        for end in (first, second):
            ran("ip", "-n", live.spaces[end], "addr", "del", own, "dev", "far")


@pytest.mark.skipif(not shutil.which("busybox"), reason="needs busybox")
def test_a_guest_gets_its_lease(live: Live, tmp_path: Path) -> None:
    settings = tmp_path / "udhcpd.conf"
    settings.write_text(
        f"start {A.v4}\nend {A.v4}\ninterface far\npidfile {tmp_path}/pid\nlease_file {tmp_path}/leases\n"
        f"static_lease {A.mac} {A.v4}\noption subnet 255.255.255.0\n"
    )
    (tmp_path / "leases").touch()
    told = tmp_path / "told"
    script = tmp_path / "script"
    script.write_text(f'#!/bin/sh\necho "$1 $ip" >> {told}\n')
    script.chmod(0o700)
    with inside(live.spaces["outside"]):
        server = subprocess.Popen(["busybox", "udhcpd", "-f", str(settings)], stderr=subprocess.DEVNULL)
    try:
        with inside(live.spaces["a"]):
            subprocess.run(
                ["busybox", "udhcpc", "-i", "far", "-n", "-q", "-f", "-t", "10", "-T", "1", "-s", str(script)],
                check=True, capture_output=True, timeout=30,
            )  # fmt: skip
    finally:
        server.kill()
        server.wait()
    assert f"bound {A.v4}" in told.read_text()


def test_the_neighbours_know_the_right_machines(live: Live, guarded: bool) -> None:
    """After all this, and after a guest's lie about the host's address to somebody who just spoke with it."""
    with inside(live.spaces["a"]), open("/proc/sys/net/ipv4/neigh/far/locktime", "w") as believing:
        believing.write("0")
    ran("ip", "netns", "exec", live.spaces["a"], "ping", "-c1", "-W5", HOST.v4)
    lie = frames.arp(B.mac, 2, (B.mac, HOST.v4), (A.mac, A.v4), A.mac)
    live.ground.ports["b"].send(lie)
    live.ground.arrived("b", "a")
    listed = ran("ip", "-n", live.spaces["a"], "neigh", "show", HOST.v4)
    assert (B.mac not in listed) == guarded
