"""The link on real RabbitMQ and real ActiveMQ: what FORMATS 9.2 and FACTS F17 say, and what the profiles promise."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Callable, List, Set, Tuple

import pytest

from tests.broker.conftest import Linked
from tests.support import building
from tests.support.memory_store import MemoryStore
from vmagent.broker.client import Subscription
from vmagent.broker.outbox import Outbox
from vmagent.broker.profiles import PREFETCH_FRAMES
from vmagent.core.changes import Publish, SendReply
from vmagent.core.codec import canonical
from vmagent.errors import Fault, FaultKind
from vmagent.lanes import Lanes
from vmagent.store.store import SqliteStore

Connect = Callable[..., Linked]
BODY = '{"word":"é \U0001f600","zero":"\\u0000"}'.encode()


@pytest.fixture
def queue() -> str:
    return f"/queue/vmagent.site.{uuid.uuid4().hex}"


@pytest.fixture
def topic() -> str:
    return f"/topic/vmagent.site.{uuid.uuid4().hex}"


def test_bytes_arrive_as_they_were_sent(connect: Connect, queue: str) -> None:
    """Digests are over the body's bytes: not one may change."""
    one = connect(Subscription("c", queue)).up()
    one.send(queue, BODY + b"\0\xff", **{"vma-id": "e-1", "content-type": "application/json"})
    [frame] = one.take(1)
    assert frame.body == BODY + b"\0\xff"
    assert frame.headers["vma-id"] == "e-1"
    assert frame.headers["subscription"] == "c"
    one.link.ack(frame)
    one.send(queue, b"after the ack")  # the connection survived it


def test_what_was_not_acknowledged_comes_again(connect: Connect, queue: str) -> None:
    """More often than a dead-letter limit would allow (6 on ActiveMQ, 10 on Artemis): so often may the agent crash."""
    sender = connect().up()
    sender.send(queue, b"kept")
    for _ in range(12):
        reader = connect(Subscription("c", queue)).up()
        assert reader.take(1)[0].body == b"kept"
        reader.stop()
    reader = connect(Subscription("c", queue)).up()
    reader.link.ack(reader.take(1)[0])
    reader.stop()
    reader = connect(Subscription("c", queue)).up()
    sender.send(queue, b"next")
    assert reader.take(1)[0].body == b"next"


def test_prefetch_bounds_what_is_handed_out(connect: Connect, queue: str) -> None:
    one = connect().up()
    for number in range(PREFETCH_FRAMES + 5):
        one.send(queue, b"%d" % number)
    reader = connect(Subscription("c", queue)).up()
    frames = reader.take(PREFETCH_FRAMES)
    one.send(queue, b"a round trip later")
    reader.send(queue, b"and one on the reader's own link")
    assert reader.frames == []
    for frame in frames:
        reader.link.ack(frame)
    assert [frame.body for frame in reader.take(5)] == [b"%d" % (PREFETCH_FRAMES + n) for n in range(5)]


def test_a_durable_subscription_keeps_what_came_while_away(connect: Connect, topic: str) -> None:
    name = f"vmagent.site.{uuid.uuid4().hex}"
    subscription = Subscription(name, topic, durable=True)
    reader = connect(subscription, client_id=name).up()
    reader.stop()
    connect().up().send(topic, b"while you were away")
    reader = connect(subscription, client_id=name).up()
    [frame] = reader.take(1)
    assert frame.body == b"while you were away"
    assert frame.headers["subscription"] == name
    reader.link.ack(frame)
    reader.stop()


def test_an_expired_message_is_gone(connect: Connect, queue: str) -> None:
    """The wall clock of the test link is a constant: real expiry needs the real one."""
    one = connect(wall_s=time.time).up()
    one.loop.result(one.link.send(queue, b"late", {}, expires_s=0.3))
    one.send(queue, b"in time")
    one.loop.idle(1.0)
    reader = connect(Subscription("c", queue)).up()
    assert [frame.body for frame in reader.take(1)] == [b"in time"]


def test_an_idle_link_lives_on_heartbeats(connect: Connect, queue: str) -> None:
    """ActiveMQ cuts a link that was silent for one period and a half: shorter ones fail with the load."""
    one = connect(Subscription("c", queue), heartbeat_s=1.5).up()
    one.loop.idle(7.0)
    assert one.link.state().failures == 0
    one.send(queue, b"still there")
    one.take(1)


def test_several_hundred_in_order(connect: Connect, queue: str) -> None:
    one = connect(Subscription("c", queue), window=20).up()
    sends = [one.link.send(queue, b"%d" % n, {}) for n in range(300)]
    for number in range(300):
        [frame] = one.take(1)
        assert frame.body == b"%d" % number
        one.link.ack(frame)
    for send in sends:
        one.loop.result(send)


def test_killed_and_started_again_under_load(connect: Connect, broker: Any, queue: str) -> None:
    """kill -9 of the broker: what had a receipt is there afterwards; what had none is sent again, with the same id."""
    everything = {str(number) for number in range(200)}
    sender = connect(window=20).up()
    receipted: Set[str] = set()
    sender.loop.until(lambda: sender.link.state().up)
    sender.send(queue, b"first", **{"vma-id": "first"})
    sender.loop.until(lambda: broker.keeps(queue), 30, "the queue is written down")
    sends = [sender.link.send(queue, id.encode(), {"vma-id": id}) for id in sorted(everything)]
    for id, send in zip(sorted(everything), sends):
        send.addCallbacks(lambda _, id: receipted.add(id), lambda failure: None, callbackArgs=(id,))
    sender.loop.until(lambda: len(receipted) >= 60)
    broker.kill()
    sender.down()
    assert 60 <= len(receipted) < 200
    broker.start()
    sender.up(90)
    for id in sorted(everything - receipted):
        sender.send(queue, id.encode(), **{"vma-id": id})
    reader = connect(Subscription("c", queue)).up(90)
    seen: List[str] = []
    with contextlib.suppress(AssertionError):
        reader.loop.until(lambda: _drain(reader, seen) and everything <= set(seen), 30)
    lost = sorted(everything - set(seen))
    assert not lost, f"{lost}; with a receipt: {sorted(receipted.intersection(lost))}"


def _drain(reader: Linked, seen: List[str]) -> bool:
    """Acknowledge what is there; a duplicate carries the same id."""
    while reader.frames:
        frame = reader.frames.pop(0)
        assert frame.headers["vma-id"] == frame.body.decode()
        seen.append(frame.headers["vma-id"])
        reader.link.ack(frame)
    return True


def test_a_send_to_nowhere_costs_the_link_and_it_comes_back(rabbitmq: Any, linked: Any, passcode_file: Any) -> None:
    """RabbitMQ's ERROR about a channel names no frame: alone under way it is REFUSED, in company only AWAY."""
    one = linked(rabbitmq.url, login="guest", passcode_file=passcode_file).up()
    for bodies, kind in (([b"x"], FaultKind.REFUSED), ([b"x", b"y"], FaultKind.AWAY)):
        sends = [one.link.send("/exchange/not-there/x", body, {}) for body in bodies]
        for send in sends[1:]:
            send.addErrback(lambda _: None)
        with pytest.raises(Fault) as caught:
            one.loop.result(sends[0])
        assert caught.value.kind is kind
        one.up()


def test_a_reply_to_nowhere_stops_nothing(rabbitmq: Any, linked: Any, passcode_file: Any, queue: str) -> None:
    """RabbitMQ closes the link on it without saying which frame it was: the outbox finds it and sends it elsewhere."""
    one = linked(rabbitmq.url, Subscription("c", queue), login="guest", passcode_file=passcode_file)
    store = MemoryStore()
    store.open(building.now())
    event = Publish("events", "org.vmagent.vm.state", "host", building.WALL, {"n": 1})
    store.commit([event, SendReply("/exchange/not-there/x", {"n": 2}), event, event])
    places = {"events": queue, "replies": queue}
    outbox = Outbox(store, one.link, one.loop, "//site/host", places, lambda row: b"%d" % row.row, 10)
    one.on_state = outbox.link_changed
    one.loop.until(lambda: {frame.body for frame in one.frames} == {b"1", b"2", b"3", b"4"}, 60)
    one.loop.until(lambda: not one.loop.result(store.outbox(0, 10)))
    outbox.stop()


def test_a_half_open_predecessor_only_delays(linked: Any, activemq: Any) -> None:
    """"Already connected" with our client id: retried until the old connection is gone."""
    name = f"vmagent.site.{uuid.uuid4().hex}"
    old = linked(activemq.url, profile="activemq", client_id=name).up()
    new = linked(activemq.url, profile="activemq", client_id=name)
    new.loop.until(lambda: new.link.state().failures >= 2)
    assert name in new.link.state().why
    old.stop()
    new.up()


def test_the_outbox_through_a_killed_broker(connect: Connect, broker: Any, tmp_path: Path, queue: str) -> None:
    """Store, outbox and link together, the broker killed twice: every event arrives, first arrivals in order, a
    repetition has the same id and body, and the store is empty in the end."""
    one = connect(window=10)
    lanes = Lanes("store", 1, one.loop)
    store = SqliteStore(tmp_path / "vmagent.db", lanes, 10_000, 10**8)
    one.loop.result(store.open(building.now()))
    outbox = Outbox(
        store, one.link, one.loop, "//site/host", {"events": queue, "replies": queue},
        lambda row: canonical(row).encode(), 10,
    )
    one.on_state = outbox.link_changed
    one.up()
    reader = connect(Subscription("c", queue)).up()
    arrived: List[Tuple[str, bytes]] = []

    def collect(count: int) -> bool:
        while reader.frames:
            frame = reader.frames.pop(0)
            arrived.append((frame.headers["vma-id"], frame.body))
            reader.link.ack(frame)
        return len(dict(arrived)) >= count

    for run in range(3):
        for number in range(100):
            event = Publish("events", "org.vmagent.vm.state", "host", building.WALL, {"n": 100 * run + number})
            one.loop.result(store.commit([event]))
            outbox.wake()
        if run < 2:
            one.loop.until(lambda run=run: collect(100 * run + 30))
            broker.kill()
            one.down()
            starting = threading.Thread(target=broker.start)  # the loop must turn, or the store's deadlines pass
            starting.start()
            one.loop.until(lambda thread=starting: not thread.is_alive(), 90)
    one.loop.until(lambda: collect(300), 90, f"{len(dict(arrived))} of 300")
    one.loop.until(lambda: not one.loop.result(store.outbox(0, 10)))
    assert len(set(arrived)) == 300  # a repetition is the same, to the byte
    firsts = list(dict.fromkeys(id for id, _ in arrived))
    assert firsts == [f"{store.epoch().id}-events-{number:012d}" for number in range(1, 301)]
    outbox.stop()
    one.loop.result(store.close())
    lanes.stop()
