"""export/apel.py and export/relay.py: rows to messages, when, once, in order, and again when asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping

import pytest
from dirq.QueueSimple import QueueSimple
from twisted.internet.defer import Deferred, fail, succeed

from tests.support import apel_reader, certificates
from tests.support.apel_reader import Database
from tests.support.publishing import GONE, Publishing, sent
from tests.support.usage_rows import VM, row
from tests.unit.test_apel_siblings import volume
from vmagent.core import walltime
from vmagent.errors import Fault, FaultKind, Problem
from vmagent.export.relay import Relay
from vmagent.export.schedule import next_at
from vmagent.export.smime import Signer

Make = Callable[..., Publishing]


@pytest.fixture(name="make")
def fixture_make(tmp_path: Path) -> Iterator[Make]:
    made: List[Publishing] = []

    def make(**members: Any) -> Publishing:
        made.append(Publishing(tmp_path, **members))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def hour(number: int, vm: str = VM, **changes: Any) -> Dict[str, Any]:
    """The numbered hour of a VM that runs since midnight; from 1."""
    begun = walltime.seconds("2026-11-21T00:00:00Z") + 3600 * (number - 1)
    return row(walltime.text(begun), walltime.text(begun + 3600), vm=vm, period=number,
               started_at="2026-11-21T00:00:00Z", **changes)


def walls(texts: List[str]) -> List[int]:
    return [int(fields["WallDuration"]) for text in texts for fields in apel_reader.load(text)]


def test_the_newest_row_of_each_vm_is_published_once(make: Make) -> None:
    one = make()
    for number in (1, 2, 3):
        one.rows.add(hour(number))
        one.rows.add(hour(number, VM[:-1] + "2"))
    outcome = one.publish()
    assert (outcome.records, outcome.messages, outcome.superseded) == (2, 1, 0)
    assert walls(sent(one.here / "outgoing")) == [10800, 10800]
    assert one.rows.marks == {"apel": 6} and one.publish().messages == 0
    assert one.troubles[-1] == ""


def test_what_a_newer_record_supersedes_is_taken_out_of_the_queue(make: Make) -> None:
    one = make()
    for number in (1, 2, 3):
        one.rows.add(hour(number))
        outcome = one.publish()
        assert outcome.superseded == (number > 1)
    assert walls(sent(one.here / "outgoing")) == [10800]


def test_what_the_relay_has_taken_stays_and_is_before_the_newer(make: Make) -> None:
    one = make()
    one.rows.add(hour(1))
    one.publish()
    queue = QueueSimple(str(one.here / "outgoing"))
    first = queue.first()
    assert queue.lock(first)
    one.rows.add(hour(2))
    assert one.publish().superseded == 0
    assert apel_reader.load(queue.get(first).decode())[0]["WallDuration"] == "3600"
    queue.unlock(first)  # it was not sent: the next run of the relay begins with it
    assert walls(sent(one.here / "outgoing")) == [3600, 7200]


def test_a_message_with_something_that_nothing_supersedes_stays(make: Make) -> None:
    one = make()
    one.rows.add(hour(1))
    one.rows.add(hour(1, VM[:-1] + "2", status="completed", final=True))
    one.publish()
    one.rows.add(hour(2))
    assert one.publish().superseded == 0
    assert walls(sent(one.here / "outgoing")) == [3600, 3600, 7200]


def test_a_store_that_fails_after_the_queue_repeats_and_loses_nothing(make: Make) -> None:
    one = make()
    one.rows.add(hour(1))
    one.rows.add(hour(2))
    marks = one.rows.mark

    async def lost(row: int) -> None:
        raise GONE

    one.publisher._mark = lost
    with pytest.raises(Fault):
        one.publish()
    assert one.rows.marks == {}
    again = make(rows=one.rows)  # the agent's next run
    again.publisher._mark = marks
    again.rows.add(hour(3))
    assert again.publish().superseded == 1
    assert walls(sent(one.here / "outgoing")) == [10800] and one.rows.marks == {"apel": 3}


def test_a_failure_is_told_tried_again_and_taken_back(make: Make) -> None:
    one = make()
    one.rows.add(hour(1))
    one.rows.failing = True
    one.settle(one.publisher.look())
    assert "the store is away" in one.troubles[-1]
    one.rows.failing = False
    one.at("2026-11-21T10:06:00Z")
    one.settle(one.publisher.look())
    assert one.rows.marks == {}, "not each minute"
    one.at("2026-11-21T10:16:00Z")
    one.settle(one.publisher.look())
    assert one.rows.marks == {"apel": 1} and one.troubles[-1] == ""


def test_a_broken_row_is_told_and_spoils_nothing(make: Make) -> None:
    one = make()
    one.rows.add(hour(1, total=None))
    one.rows.add(hour(1, VM[:-1] + "2"))
    outcome = one.publish()
    assert (outcome.records, len(outcome.wrong)) == (1, 1)
    assert "1 periods of usage are in no record" in one.troubles[-1]
    assert one.rows.marks == {"apel": 2}


def test_it_looks_each_minute_and_publishes_when_it_is_time(make: Make) -> None:
    one = make(wall="2026-11-30T22:00:00.000Z")
    told = []
    times = ["11-30T22:00", "11-30T22:01", "11-30T23:49", "11-30T23:50", "11-30T23:59", "12-01T00:00", "12-01T00:05",
             "12-01T00:06", "12-02T00:00", "12-02T00:01"]
    for wall in times:
        one.at(f"2026-{wall}:00Z")
        one.rows.add(hour(1, VM[:-4] + f"{len(told):04d}"))
        before = dict(one.rows.marks)
        one.settle(one.publisher.look())
        told.append(wall) if one.rows.marks != before else told.append("")
    assert [wall for wall in told if wall] == [times[number] for number in (0, 3, 5, 6, 8)]


def test_a_clock_that_went_back_for_good_puts_nothing_off(make: Make) -> None:
    one = make(wall="2027-11-21T10:00:00.000Z")
    one.settle(one.publisher.look())
    one.rows.add(hour(1))
    one.at("2026-11-21T10:00:00Z")
    one.settle(one.publisher.look())
    assert one.rows.marks == {"apel": 1}


def test_never_later_than_a_day_and_at_both_sides_of_each_month() -> None:
    now = walltime.seconds("2026-01-01T00:00:00Z")
    end, times = walltime.seconds("2027-01-02T00:00:00Z"), []
    while now < end:
        then = next_at(now, 86400, 7200)
        assert now < then <= now + 86400
        now = then
        times.append(now)
    for month in range(2, 13):
        edge = walltime.seconds(f"2026-{month:02d}-01T00:00:00Z")
        assert {edge - 600, edge + 300} <= set(times)


def test_every_batch_is_read(make: Make) -> None:
    one = make()
    for number in range(1203):
        one.rows.add(hour(1, f"{VM[:-4]}{number:04d}"))
    assert (one.publish().records, one.rows.marks) == (1203, {"apel": 1203})
    texts = sent(one.here / "outgoing")
    assert len(texts) == 13 and len(walls(texts)) == 1203


def test_a_month_is_sent_again_from_the_rows(make: Make) -> None:
    one = make()
    edge = [("2026-10-31T23:00:00Z", "2026-11-01T00:00:00Z"), ("2026-11-01T00:00:00Z", "2026-11-01T01:00:00Z")]
    for number, (begun, end) in enumerate(edge, 1):
        one.rows.add(row(begun, end, period=number, started_at="2026-10-31T23:00:00Z"))
    one.publish()
    database = Database()
    for text in sent(one.here / "outgoing"):
        database.take(text)
    kept = dict(database.rows)
    for month, wall in (("2026-10", 3600), ("2026-11", 7200)):
        planned = one.settle(one.publisher.resend(month, True))
        assert (planned.records, planned.messages) == (1, 1) and sent(one.here / "outgoing") == []
        assert one.settle(one.publisher.resend(month, False)) == planned
        (text,) = sent(one.here / "outgoing")
        assert walls([text]) == [wall]
        database.take(text)
    assert database.rows == kept and one.rows.marks == {"apel": 2}
    assert one.settle(one.publisher.resend("2026-09", False)).records == 0


def test_what_is_no_month_is_refused(make: Make) -> None:
    with pytest.raises(Problem, match="2026-11"):
        make().settle(make().publisher.resend("2026-13", True))


def test_sent_again_it_overtakes_nothing_that_waits(make: Make) -> None:
    one = make()
    one.rows.add(hour(1))
    one.publish()
    one.rows.add(hour(2))  # not published yet, and told all the same: it is the newest
    one.settle(one.publisher.resend("2026-11", False))
    one.publish()
    assert walls(sent(one.here / "outgoing")) == [7200]


def test_a_restored_store_tells_nothing_older_than_was_told(make: Make) -> None:
    one = make()
    for number in (1, 2, 3):
        one.rows.add(hour(number))
    one.publish()
    assert walls(sent(one.here / "outgoing")) == [10800]
    restored = make()  # a copy from before the last hour, not exported yet
    for number in (1, 2):
        restored.rows.add(hour(number))
    restored.rows.add(hour(2, VM[:-1] + "2"))
    assert restored.publish().records == 1
    assert restored.settle(restored.publisher.resend("2026-11", False)).records == 1
    assert walls(sent(one.here / "outgoing")) == [7200]
    restored.rows.add(hour(4))
    restored.publish()
    assert walls(sent(one.here / "outgoing")) == [14400]


def test_signed_messages_are_published_and_superseded_as_well(make: Make, tmp_path: Path) -> None:
    authority = certificates.authority(key=certificates.rsa_key())
    (tmp_path / "host.pem").write_bytes(authority.pem)
    (tmp_path / "host.key").write_bytes(authority.key.private_bytes(
        certificates.serialization.Encoding.PEM, certificates.serialization.PrivateFormat.PKCS8,
        certificates.serialization.NoEncryption()))
    one = make(signer=Signer(tmp_path / "host.pem", tmp_path / "host.key"))
    for number in (1, 2):
        one.rows.add(hour(number))
        assert one.publish().superseded == number - 1
    (text,) = sent(tmp_path / "outgoing")
    assert text.startswith("MIME-Version: 1.0") and "WallDuration: 7200" in text
    (tmp_path / "host.key").unlink()
    one.rows.add(hour(3))
    one.settle(one.publisher.look())
    assert "cannot be signed" in one.troubles[-1] and one.rows.marks == {"apel": 2}


def test_addresses_and_volumes_have_queues_of_their_own(make: Make, tmp_path: Path) -> None:
    one = make(extra=True)
    had = volume(bytes=None, attached_at="2026-11-21T00:10:00Z")
    told = hour(1, volumes=[had, {**had, "volume": "of unknown size"}])
    told["footprint"]["public_addresses"] = ["192.0.2.7"]
    one.rows.add(told)
    assert one.publish().messages == 3
    (addresses,), (volumes,) = sent(tmp_path / "ip"), sent(tmp_path / "star")
    assert json.loads(addresses)["UsageRecords"][0]["IPCount"] == 1
    assert volumes.count("<sr:StorageUsageRecord>") == 1 and str(2**30) in volumes
    assert len(sent(tmp_path / "outgoing")) == 1


def test_addresses_that_cannot_be_told_keep_nothing_else_back(make: Make, tmp_path: Path) -> None:
    one = make(extra=True)
    told = hour(1, volumes=[{"volume": "data", "attached_at": "yesterday"}])
    told["footprint"]["public_addresses"] = ["nowhere"]
    one.rows.add(told)
    outcome = one.publish()
    assert (outcome.messages, len(outcome.wrong), one.rows.marks) == (1, 2, {"apel": 1})
    assert "2 periods" in one.troubles[-1] and len(sent(tmp_path / "outgoing")) == 1


def test_after_a_surprise_it_waits_too(make: Make) -> None:
    one = make()
    one.rows.add(hour(1))

    async def surprising(row: int) -> None:
        raise ZeroDivisionError

    one.publisher._mark = surprising
    with pytest.raises(ZeroDivisionError):
        one.settle(one.publisher.look())
    one.at("2026-11-21T10:06:00Z")
    one.settle(one.publisher.look())  # not each minute: it does not even try
    assert one.spool.count() == 1


def test_how_it_stands(make: Make) -> None:
    one = make()
    one.rows.add(hour(1))
    one.rows.add(hour(2))
    before = one.settle(one.publisher.status())
    assert before["unexported_since"] == "2026-11-21T01:00:00.000Z"
    assert (before["waiting"], before["published_at"]) == (0, None)
    one.settle(one.publisher.look())
    after = one.settle(one.publisher.status())
    assert (after["unexported_since"], after["waiting"], after["exported_row"]) == (None, 1, 2)
    assert after["waiting_since"] == after["published_at"] == "2026-11-21T10:05:00.000Z"
    assert after["next_at"] == "2026-11-22T00:00:00.000Z"


# ---- over the broker


class Broker:
    """Keeps what was sent; fails when told to."""

    def __init__(self) -> None:
        self.got: List[bytes] = []
        self.names: List[str] = []
        self.up, self.failing = True, 0

    def send(self, destination: str, body: bytes, headers: Mapping[str, str]) -> Deferred[None]:
        assert destination == "/queue/accounting" and headers["content-type"] == "text/plain"
        self.got.append(body)
        self.names.append(headers["empa-id"])
        if self.failing:
            self.failing -= 1
            return fail(Fault(FaultKind.UNKNOWN, "no receipt"))
        return succeed(None)


def relay(one: Publishing, broker: Broker) -> Relay:
    return Relay(one.spool, one.lanes, broker.send, lambda: broker.up, "/queue/accounting")


def test_over_the_broker_each_goes_on_its_receipt_in_order(make: Make) -> None:
    one, broker = make(), Broker()
    names = [one.spool.put(text, 1.0) for text in (b"a", b"b", b"c")]
    way = relay(one, broker)
    broker.failing = 1
    assert one.settle(way.look()) == 0 and one.spool.untaken() == names
    assert one.settle(way.look()) == 3 and one.spool.count() == 0
    assert broker.got == [b"a", b"a", b"b", b"c"] and broker.names == [names[0], *names]
    broker.up = False
    one.spool.put(b"d", 1.0)
    assert one.settle(way.look()) == 0 and one.spool.count() == 1


def test_what_a_dead_agent_had_taken_is_sent(make: Make) -> None:
    one, broker = make(), Broker()
    name = one.spool.put(b"a", 1.0)
    assert QueueSimple(str(one.here / "outgoing")).lock(name)
    assert one.settle(relay(one, broker).look()) == 1 and broker.got == [b"a"]
