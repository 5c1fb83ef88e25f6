"""Rows leave the store on the broker's receipt and not before; order and ids hold through every interruption."""

from __future__ import annotations

from random import Random
from typing import Any, List, Sequence

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from tests.support import building
from tests.support.fake_link import FakeLink
from tests.support.memory_store import MemoryStore
from vmagent.broker.outbox import AGAIN_S, ASIDE_S, EXPIRY_S, REFUSALS, Outbox
from vmagent.core.changes import OutboxRow, Publish, SendReply
from vmagent.core.codec import canonical
from vmagent.errors import Fault, FaultKind

DESTINATIONS = {
    "events": "/topic/e", "usage": "/queue/u", "capacity": "/topic/c", "telemetry": "/topic/t", "replies": "/queue/r",
}  # fmt: skip


class Moody(MemoryStore):
    """Fails or waits when told."""

    failing = False
    held: List[Any] = []
    holding = False

    def outbox(self, after: int, limit: int) -> Deferred[Any]:
        if self.failing:
            return fail(Fault(FaultKind.UNKNOWN, "slow disk"))
        if self.holding:
            deferred: Deferred[Any] = Deferred()
            self.held.append((deferred, after, limit))
            return deferred
        return super().outbox(after, limit)

    def delivered(self, rows: Sequence[int]) -> Deferred[None]:
        return fail(Fault(FaultKind.UNKNOWN, "slow disk")) if self.failing else super().delivered(rows)

    def let_go(self) -> None:
        self.holding = False
        held, self.held = self.held, []
        for deferred, after, limit in held:
            super().outbox(after, limit).chainDeferred(deferred)


class Post:
    """An outbox between a store in memory and a fake link."""

    def __init__(self, window: int = 4) -> None:
        self.clock = Clock()
        self.store = Moody()
        self.store.held = []
        self.store.open(building.now())
        self.link = FakeLink()
        self.broken: List[int] = []  # rows that cannot be rendered
        self.outbox = Outbox(self.store, self.link, self.clock, "//s/h", DESTINATIONS, self._render, window)
        self.link.on_state = self.outbox.link_changed

    def _render(self, row: OutboxRow) -> bytes:
        if row.row in self.broken:
            raise KeyError("bug")
        return canonical(row.data).encode()

    def publish(self, *numbers: int, stream: str = "events") -> None:
        self.store.commit([Publish(stream, "org.vmagent.vm.state", "host", building.WALL, {"n": n}) for n in numbers])
        self.outbox.wake()

    def reply(self, destination: str, number: int = 0) -> None:
        self.store.commit([SendReply(destination, {"n": number})])
        self.outbox.wake()

    def receipt_all(self) -> None:
        while self.link.under_way():
            self.link.receipt(self.link.under_way()[0])

    def refuse_twice(self, body: bytes) -> None:
        """The broker answers this row with ERROR, whenever it is alone."""
        for _ in range(REFUSALS + 1):
            sent = self.link.under_way()
            self.link.down(culprit=sent[0] if [one.body for one in sent] == [body] else None)
            self.link.up()

    @property
    def sent(self) -> List[int]:
        """Numbers in the order of sending, repetitions included."""
        return [int(sent.body.decode().strip('{"n:}')) for sent in self.link.sent]

    def stored(self) -> List[int]:
        rows: List[Any] = []
        MemoryStore.outbox(self.store, 0, 10_000).addCallback(rows.extend)
        return [row.data["n"] for row in rows]


@pytest.fixture
def post() -> Post:
    return Post()


def test_a_row_goes_on_its_receipt(post: Post) -> None:
    post.link.up()
    post.publish(1)
    assert (post.sent, post.stored()) == ([1], [1])
    post.link.receipt(post.link.sent[0])
    assert post.stored() == []


def test_what_was_committed_while_down_goes_when_up(post: Post) -> None:
    post.publish(1, 2)
    assert post.sent == []
    post.link.up()
    assert post.sent == [1, 2]


def test_the_window_bounds_and_refills(post: Post) -> None:
    post.link.up()
    post.publish(*range(1, 11))
    assert post.sent == [1, 2, 3, 4]
    post.link.receipt(post.link.sent[0])
    assert post.sent == [1, 2, 3, 4, 5]
    while post.link.under_way():
        post.link.receipt(post.link.under_way()[0])
    assert post.sent == list(range(1, 11))
    assert post.stored() == []


def test_a_large_window_reads_in_batches() -> None:
    post = Post(window=8)
    reads: List[int] = []
    real = post.store.outbox
    post.store.outbox = lambda after, limit: reads.append(limit) or real(after, limit)  # type: ignore[assignment,func-returns-value]
    post.link.up()
    post.publish(*range(1, 101))
    while post.link.under_way():
        post.link.receipt(post.link.under_way()[0])
    assert post.sent == list(range(1, 101))
    assert len(reads) < 70


def test_a_lost_link_sends_again_from_the_oldest_without_a_receipt(post: Post) -> None:
    post.link.up()
    post.publish(*range(1, 7))
    post.link.receipt(post.link.sent[1])  # 2 is done, 5 goes
    post.link.down()
    assert post.stored() == [1, 3, 4, 5, 6]
    post.link.up()
    post.receipt_all()
    assert post.sent == [1, 2, 3, 4, 5, 1, 3, 4, 5, 6]


def test_the_same_row_has_the_same_id_and_body(post: Post) -> None:
    post.link.up()
    post.publish(1)
    post.link.down()
    post.link.up()
    first, again = post.link.sent
    assert first.headers == again.headers
    assert first.body == again.body


def test_headers(post: Post) -> None:
    post.link.up()
    post.publish(1, stream="telemetry")
    post.reply("/queue/mine", 2)
    epoch = post.store.epoch().id
    event, reply = post.link.sent
    assert event.destination == "/topic/t"
    assert event.expires_s == EXPIRY_S["telemetry"]
    assert event.headers["vma-id"] == f"{epoch}-telemetry-000000000001"
    assert event.headers["vma-source"] == "//s/h"
    assert reply.destination == "/queue/mine"
    assert reply.expires_s is None
    assert reply.headers["vma-kind"] == "reply"
    assert reply.headers["vma-id"] == f"{epoch}-replies-000000000002"


def test_state_and_usage_never_expire(post: Post) -> None:
    post.link.up()
    for stream in ("events", "usage"):
        post.publish(1, stream=stream)
    assert [sent.expires_s for sent in post.link.sent] == [None, None]


def test_a_reply_without_a_place_goes_to_the_sites_own(post: Post) -> None:
    post.link.up()
    post.reply("")
    assert post.link.sent[0].destination == "/queue/r"


def test_a_store_that_fails_to_forget_does_not_make_duplicates(post: Post) -> None:
    post.link.up()
    post.publish(1, 2)
    post.store.failing = True
    for sent in list(post.link.sent):
        post.link.receipt(sent)
    assert post.stored() == [1, 2]
    post.link.down()
    post.store.failing = False
    post.link.up()
    assert post.sent == [1, 2]
    post.clock.advance(AGAIN_S)
    assert post.stored() == []


def test_a_store_that_cannot_be_read_is_read_again(post: Post) -> None:
    post.store.failing = True
    post.link.up()
    post.publish(1)
    assert post.sent == []
    post.store.failing = False
    post.clock.advance(AGAIN_S)
    assert post.sent == [1]


def test_rows_read_for_a_lost_link_are_not_sent_twice(post: Post) -> None:
    post.store.holding = True
    post.link.up()
    post.publish(1, 2)
    post.link.down()
    post.link.up()
    post.store.let_go()
    post.receipt_all()
    assert post.sent == [1, 2]


def test_a_wake_during_a_read_is_not_lost(post: Post) -> None:
    post.link.up()
    post.store.holding = True
    post.publish(1)
    post.store.let_go()
    assert post.sent == [1]
    post.store.holding = True
    post.outbox.wake()
    rows = post.store.held.pop()
    post.store.commit([Publish("events", "t", "host", building.WALL, {"n": 2})])
    post.outbox.wake()
    post.store.holding = False
    rows[0].callback(())  # what the disk held before the second commit
    assert post.sent == [1, 2]


def test_a_send_that_fails_alone_is_repeated(post: Post) -> None:
    post.link.up()
    post.publish(1, 2, 3)
    post.link.refuse(post.link.sent[1], FaultKind.BUSY)
    post.clock.advance(AGAIN_S)
    assert post.sent == [1, 2, 3, 2]
    for sent in post.link.under_way():
        post.link.receipt(sent)
    assert post.stored() == []


def test_a_reply_to_nowhere_is_diverted_and_stops_nobody(post: Post) -> None:
    post.link.up()
    post.reply("/exchange/none/x", 1)
    post.publish(2)
    post.refuse_twice(b'{"n":1}')
    post.receipt_all()
    assert [(sent.destination, sent.body) for sent in post.link.sent[-2:]] == [
        ("/queue/r", b'{"n":1}'),
        ("/topic/e", b'{"n":2}'),
    ]
    assert post.stored() == []


def test_a_refused_row_is_set_aside_and_comes_back(post: Post) -> None:
    post.link.up()
    post.publish(1, stream="telemetry")
    post.publish(2)
    post.refuse_twice(b'{"n":1}')
    assert [sent.body for sent in post.link.under_way()] == [b'{"n":2}']
    post.receipt_all()
    assert post.stored() == [1]
    post.clock.advance(ASIDE_S)
    assert [sent.body for sent in post.link.under_way()] == [b'{"n":1}']


def test_a_row_that_cannot_be_rendered_stays_and_stops_nobody(post: Post, caplog: Any) -> None:
    post.broken = [1]
    post.link.up()
    post.publish(1, 2)
    post.link.receipt(post.link.sent[0])
    assert (post.sent, post.stored()) == ([2], [1])
    assert "KeyError" in caplog.text
    post.broken = []
    post.link.down()
    post.link.up()
    assert post.sent == [2, 1]


def test_a_single_error_by_chance_diverts_nothing(post: Post) -> None:
    post.link.up()
    post.reply("/queue/mine", 1)
    post.link.down(culprit=post.link.sent[0])
    post.link.up()
    assert [sent.destination for sent in post.link.sent] == ["/queue/mine", "/queue/mine"]


def test_after_a_loss_the_suspects_go_one_by_one_and_then_the_window_is_whole_again(post: Post) -> None:
    post.link.up()
    post.publish(*range(1, 11))
    post.link.down()
    post.link.up()
    for number in range(1, 5):
        assert [sent.body for sent in post.link.under_way()] == [b'{"n":%d}' % number]
        post.link.receipt(post.link.under_way()[0])
    assert len(post.link.under_way()) == 4


def test_suspects_that_the_store_dropped_do_not_narrow_the_window_for_ever(post: Post) -> None:
    post.link.up()
    post.publish(1, 2)
    post.link.down()
    post.store.delivered([1, 2])  # the spool was full
    post.link.up()
    post.publish(3, 4, 5)
    assert len(post.link.under_way()) == 3


def test_stopped_sends_nothing_more(post: Post) -> None:
    post.link.up()
    post.publish(1)
    post.outbox.stop()
    post.publish(2)
    post.clock.advance(1000)
    assert post.sent == [1]
    assert post.stored() == [1, 2]
    assert post.clock.getDelayedCalls() == []


@pytest.mark.parametrize("seed", range(50))
def test_nothing_is_lost_or_reordered_whatever_happens(seed: int) -> None:
    """Random receipts, losses, refusals, store failures, commits: in the end everything arrived, first arrivals in
    the order of commit, and nothing that had its receipt was sent again."""
    random = Random(seed)
    post = Post(window=random.choice([1, 3, 8]))
    committed, receipted = 0, set()

    def receipt() -> None:
        sent = post.link.under_way()[0]  # a broker confirms in order
        post.link.receipt(sent)
        receipted.add(sent.body)

    for _ in range(300):
        step = random.random()
        if step < 0.3:
            committed += 1
            post.publish(committed)
        elif step < 0.6 and post.link.under_way():
            receipt()
        elif step < 0.7:
            post.link.down() if post.link.state().up else post.link.up()
        elif step < 0.8:
            post.store.failing = random.random() < 0.5
        else:
            post.clock.advance(random.choice([0.1, AGAIN_S]))
        assert not any(sent.body in receipted for sent in post.link.under_way())
    post.store.failing = False
    post.link.up()
    for _ in range(1000):
        post.clock.advance(AGAIN_S)
        if post.link.under_way():
            receipt()
    assert post.stored() == []
    assert list(dict.fromkeys(post.sent)) == list(range(1, committed + 1))
