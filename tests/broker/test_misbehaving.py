"""The link against a peer that misbehaves: it notices, fails what was under way, and connects again."""

from __future__ import annotations

import socket
import threading
from typing import Any, Callable

import pytest

from tests.broker.conftest import Linked
from tests.support.loop import RealLoop
from tests.support.peer import Peer, Talk
from vmagent.broker.client import Subscription
from vmagent.errors import Fault, FaultKind

Make = Callable[..., Linked]


def once(bad: Callable[[Talk], None]) -> Callable[[Talk], None]:
    """Misbehave on the first connection, behave on all others."""
    return lambda talk: bad(talk) if talk.number == 1 else talk.serve()


def fault_of(loop: RealLoop, deferred: Any) -> FaultKind:
    with pytest.raises(Fault) as caught:
        loop.result(deferred)
    return caught.value.kind


def test_a_receipt_completes_a_send(linked: Make) -> None:
    with Peer(Talk.serve) as peer:
        linked(peer.url()).up().send("/queue/a", b'{"a":"\xc3\xa9\\u0000"}', **{"vma-id": "7"})
        [sent] = peer.frames("SEND")
    assert sent.body == b'{"a":"\xc3\xa9\\u0000"}'
    assert sent.headers["destination"] == "/queue/a"
    assert sent.headers["vma-id"] == "7"
    assert sent.headers["persistent"] == "true"


def test_the_handshake(linked: Make, tmp_path: Any) -> None:
    passcode = tmp_path / "passcode"
    passcode.write_text("a:b\\c\n")
    with Peer(Talk.serve) as peer:
        linked(peer.url(), login="me", passcode_file=passcode, profile="activemq", client_id="vma.s.h").up()
        headers = peer.frames("CONNECT")[0].headers
    assert headers["passcode"] == "a:b\\c"
    assert headers["login"] == "me"
    assert headers["host"] == "/"
    assert headers["client-id"] == "vma.s.h"
    assert headers["heart-beat"] == "2000,2000"
    assert headers["accept-version"] == "1.0,1.1,1.2"


def test_a_passcode_never_reaches_a_log(linked: Make, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    passcode = tmp_path / "passcode"
    passcode.write_text("s3cr3t")
    caplog.set_level("DEBUG")
    with Peer(once(lambda talk: talk.write("ERROR", {"message": "no"}))) as peer:
        linked(peer.url(), login="me", passcode_file=passcode).up()
    assert "s3cr3t" not in caplog.text


def test_a_missing_passcode_is_told_and_tried_again(linked: Make, tmp_path: Any, loop: RealLoop) -> None:
    with Peer(Talk.serve) as peer:
        one = linked(peer.url(), login="me", passcode_file=tmp_path / "none").down()
        assert "none" in one.link.state().why
        (tmp_path / "none").write_text("x")
        one.up()


def test_nobody_listens(linked: Make, loop: RealLoop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"stomp://127.0.0.1:{closed.getsockname()[1]}"
    one = linked(url)
    loop.until(lambda: one.link.state().failures >= 2)
    assert "refused" in one.link.state().why
    assert fault_of(loop, one.link.send("/queue/a", b"x", {})) is FaultKind.AWAY


def test_the_second_url_is_tried(linked: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"stomp://127.0.0.1:{closed.getsockname()[1]}"
    with Peer(Talk.serve) as peer:
        assert linked([url, peer.url()]).up().link.state().url == peer.url()


def test_accepts_and_never_answers_connect(linked: Make) -> None:
    with Peer(once(Talk.stall)) as peer:
        linked(peer.url(), receipt_s=0.3).down().up()


def test_stops_reading(linked: Make, loop: RealLoop) -> None:
    """The owner thread hangs in send (FACTS F7): the receipt deadline frees it and a new one takes over."""

    def stops(talk: Talk) -> None:
        talk.connect()
        talk.stall()

    before = set(threading.enumerate())
    with Peer(once(stops)) as peer:
        one = linked(peer.url(), receipt_s=0.5).up()
        faults = [one.link.send("/queue/a", b"x" * 1_000_000, {}) for _ in range(40)]
        assert fault_of(loop, faults[0]) is FaultKind.UNKNOWN
        assert {fault_of(loop, fault) for fault in faults[1:]} <= {FaultKind.AWAY, FaultKind.UNKNOWN}
        one.up().send("/queue/a", b"again")
        name = f"broker {peer.url()}"
        loop.until(lambda: len([t for t in set(threading.enumerate()) - before if t.name == name]) == 1)
        assert peer.frames("SEND")[-1].body == b"again"


def test_silent_but_open(linked: Make) -> None:
    """Heart-beats were promised and stop: noticed without sending anything."""

    def silent(talk: Talk) -> None:
        talk.connect("100,100")
        talk.stall()

    with Peer(once(silent)) as peer:
        one = linked(peer.url(), heartbeat_s=0.1).up().down()
        assert "heart-beat" in one.link.state().why
        one.up()


def test_heartbeats_keep_an_idle_link(linked: Make, loop: RealLoop) -> None:
    beats = 0

    def beating(talk: Talk) -> None:
        nonlocal beats
        talk.connect("100,100")
        while not talk.ended.wait(0.1):
            talk.socket.sendall(b"\n")
            beats += 1

    with Peer(beating) as peer:
        one = linked(peer.url(), heartbeat_s=0.1).up()
        loop.until(lambda: beats > 12)
        assert one.link.state().failures == 0
        assert len(peer.talks) == 1


def test_cuts_in_the_middle_of_a_frame(linked: Make, loop: RealLoop) -> None:
    def cuts(talk: Talk) -> None:
        talk.connect()
        talk.read()
        talk.socket.sendall(b"RECEIPT\nreceipt-")

    with Peer(once(cuts)) as peer:
        one = linked(peer.url()).up()
        assert fault_of(loop, one.link.send("/queue/a", b"1", {})) is FaultKind.AWAY
        one.up().send("/queue/a", b"1")


def test_an_error_names_the_frame(linked: Make, loop: RealLoop) -> None:
    """The frame that the ERROR's receipt-id names is refused; the others only lost their link."""

    def refuses(talk: Talk) -> None:
        talk.connect()
        talk.read()
        second = talk.read()
        talk.write("ERROR", {"message": "no such place", "receipt-id": second.headers["receipt"]}, b"more\n")

    with Peer(once(refuses)) as peer:
        one = linked(peer.url()).up()
        sends = [one.link.send("/queue/a", b"%d" % n, {}) for n in range(3)]
        kinds = [fault_of(loop, send) for send in sends]
        assert kinds == [FaultKind.AWAY, FaultKind.REFUSED, FaultKind.AWAY]
        assert "no such place" in one.states[-1].why
        one.up()


def test_an_error_instead_of_connected(linked: Make) -> None:
    with Peer(once(lambda talk: talk.write("ERROR", {"message": "bad login"}))) as peer:
        one = linked(peer.url()).down()
        assert "bad login" in one.link.state().why
        one.up()


def test_a_late_receipt_changes_nothing(linked: Make, loop: RealLoop) -> None:
    late = threading.Event()

    def lates(talk: Talk) -> None:
        talk.connect()
        frame = talk.read()
        late.wait(20)
        talk.receipt(frame)
        talk.stall()

    with Peer(once(lates)) as peer:
        one = linked(peer.url(), receipt_s=0.3).up()
        assert fault_of(loop, one.link.send("/queue/a", b"1", {})) is FaultKind.UNKNOWN
        late.set()
        one.up().send("/queue/a", b"2")
        assert [frame.body for frame in peer.frames("SEND")] == [b"1", b"2"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xfe\0HTTP/1.1 400 Bad Request\r\n\r\n\0",
        b"RECEIPT\n\n\0",
        b"RECEIPT\nreceipt-id:nobody\n\n\0",
        b"MESSAGE\n\n\0",
        b"MESSAGE\ncontent-length:x\n\nabc\0",
        b"\0\0\0\0",
        b"CONNECTED\nheart-beat:a,b\n\n\0",
        b"ERROR\n\n\xff\xfe\0",
        b"MESSAGE\nack:\\q\nmessage-id:1\n\n\0",
    ],
)
def test_garbage_does_not_kill_the_link_for_ever(linked: Make, loop: RealLoop, garbage: bytes) -> None:
    def babbles(talk: Talk) -> None:
        talk.connect()
        talk.socket.sendall(garbage)

    with Peer(once(babbles)) as peer:
        one = linked(peer.url())
        loop.until(lambda: len(peer.talks) >= 2 and one.link.state().up)
        one.send("/queue/a", b"1")


def test_a_flood_without_an_end_is_cut(linked: Make) -> None:
    """No frame ever ends, so nothing is heard: the heart-beat watch bounds what is read."""

    def floods(talk: Talk) -> None:
        talk.connect("100,100")
        while not talk.ended.wait(0.01):
            talk.socket.sendall(b"x" * 1000)

    with Peer(once(floods)) as peer:
        linked(peer.url(), heartbeat_s=0.1).up().down().up()


def test_a_refused_subscription_keeps_the_link_down(linked: Make) -> None:
    def refuses(talk: Talk) -> None:
        talk.connect()
        frame = talk.read()
        assert frame.command == "SUBSCRIBE"
        talk.write("ERROR", {"message": "forbidden", "receipt-id": frame.headers["receipt"]})

    with Peer(once(refuses)) as peer:
        one = linked(peer.url(), Subscription("c", "/queue/c")).down()
        assert not any(state.up for state in one.states)
        one.up()
        headers = peer.frames("SUBSCRIBE")[-1].headers
        assert (headers["ack"], headers["prefetch-count"], headers["id"]) == ("client-individual", "16", "c")


@pytest.mark.parametrize(
    ("version", "header", "expected"),
    [
        ("1.2", {"ack": "a-1", "message-id": "m-1", "subscription": "c"}, {"id": "a-1"}),
        ("1.1", {"message-id": "m-1", "subscription": "c"}, {"message-id": "m-1", "subscription": "c"}),
        ("1.0", {"message-id": "m-1"}, {"message-id": "m-1"}),
    ],
)
def test_the_ack_of_every_version(linked: Make, loop: RealLoop, version: str, header: Any, expected: Any) -> None:
    def serves(talk: Talk) -> None:
        talk.connect(version=version)
        talk.receipt(talk.read())
        body = b'{"zero":"\0","word":"\xc3\xa9"}'
        talk.write("MESSAGE", {"destination": "/queue/c", "content-length": str(len(body)), **header}, body)
        while True:
            talk.receipt(talk.read())

    with Peer(serves) as peer:
        one = linked(peer.url(), Subscription("c", "/queue/c")).up()
        [frame] = one.take(1)
        assert frame.body == b'{"zero":"\0","word":"\xc3\xa9"}'
        one.link.ack(frame)
        loop.until(lambda: peer.frames("ACK"))
        headers = dict(peer.frames("ACK")[0].headers)
        headers.pop("receipt")
        assert headers == expected


def test_a_frame_of_a_lost_session_is_not_acknowledged_on_the_next(linked: Make, loop: RealLoop) -> None:
    def cuts(talk: Talk) -> None:
        talk.connect()
        talk.receipt(talk.read())
        talk.write("MESSAGE", {"destination": "/queue/c", "ack": "1"}, b"{}")

    with Peer(once(cuts)) as peer:
        one = linked(peer.url(), Subscription("c", "/queue/c"))
        [frame] = one.take(1)
        loop.until(lambda: len(peer.talks) == 2 and one.link.state().up)
        one.link.ack(frame)
        one.send("/queue/a", b"after")
        assert peer.frames("ACK") == []


def test_the_window_bounds_what_is_under_way(linked: Make, loop: RealLoop) -> None:
    go = threading.Event()

    def holds(talk: Talk) -> None:
        talk.connect()
        first = [talk.read() for _ in range(3)]
        go.wait(20)
        for frame in first:
            talk.receipt(frame)
        while True:
            talk.receipt(talk.read())

    with Peer(holds) as peer:
        one = linked(peer.url(), window=3).up()
        sends = [one.link.send("/queue/a", b"%d" % n, {}) for n in range(10)]
        loop.until(lambda: len(peer.frames("SEND")) == 3)
        loop.turn(0.1)
        assert len(peer.frames("SEND")) == 3
        go.set()
        for send in sends:
            loop.result(send)
        assert [frame.body for frame in peer.frames("SEND")] == [b"%d" % n for n in range(10)]


def test_stop_says_goodbye_and_stays_stopped(linked: Make, loop: RealLoop) -> None:
    with Peer(Talk.serve) as peer:
        one = linked(peer.url(), Subscription("c", "/queue/c")).up()
        one.stop()
        assert len(peer.frames("DISCONNECT")) == 1
        assert fault_of(loop, one.link.send("/queue/a", b"x", {})) is FaultKind.AWAY
        assert len(peer.talks) == 1
        assert loop.getDelayedCalls() == []


def test_stop_while_the_peer_stalls(linked: Make, loop: RealLoop) -> None:
    with Peer(Talk.stall) as peer:
        one = linked(peer.url())
        loop.until(lambda: peer.talks)
        one.stop()
        assert loop.getDelayedCalls() == []
