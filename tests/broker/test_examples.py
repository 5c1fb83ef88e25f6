"""The files of docs/examples/brokers, as they stand there, in real brokers: work is done, and nobody does another's."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from tests.broker.conftest import Linked
from tests.support.brokers import started
from tests.support.examplebrokers import HOSTS, PEOPLE, SITE, ExampleActiveMQ, ExampleRabbitMQ
from tests.unit.test_docs import FENCE, ROOT
from vmagent.broker.client import Subscription
from vmagent.config import Tls
from vmagent.errors import Fault
from vmagent.site import pki

ONE, OTHER = HOSTS
PORTAL, OPERATOR, MONITORING, COLLECTOR = PEOPLE
COMMANDS = f"/queue/{SITE}.{ONE}.commands"
EVERYONE = f"/topic/{SITE}.commands"
EVENTS = f"/topic/{SITE}.events"
REPLIES = f"/queue/{SITE}.replies.portal"
USAGE = f"/queue/{SITE}.usage"
COLLECTED = f"/queue/{SITE}.replies.collector"
PAGE = (ROOT / "docs/operations/brokers.md").read_text(encoding="utf-8")
TOO_LARGE = 16 * 1024 * 1024 + 1
As = Callable[..., Linked]


def shown(kind: str) -> List[str]:
    """The command lines of the page's blocks of this kind."""
    lines = [line for info, body in FENCE.findall(PAGE) if info == kind
             for line in body.replace("\\\n", " ").splitlines()]
    assert lines, kind
    return lines


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("example-ca")
    now = datetime.datetime.now(datetime.timezone.utc)
    pki.init(folder, "example CA", now)
    pki.issue(folder, "localhost", "server", now, san=("localhost", "127.0.0.1"))
    for host in HOSTS:
        pki.issue(folder, host, "host", now)
    for name in (*PEOPLE, "stranger"):
        pki.issue(folder, name, "client", now)
    return folder


@pytest.fixture(scope="session")
def example_rabbitmq(tmp_path_factory: Any, certificates: Path) -> Iterator[ExampleRabbitMQ]:
    if not ExampleRabbitMQ.installed():
        pytest.skip("rabbitmq-server is not installed")
    broker = ExampleRabbitMQ(tmp_path_factory.mktemp("example-rabbitmq"), certificates)
    with started(broker):
        yield broker


@pytest.fixture(scope="session")
def example_activemq(tmp_path_factory: Any, certificates: Path) -> Iterator[ExampleActiveMQ]:
    if not ExampleActiveMQ.installed():
        pytest.skip("activemq is not installed")
    broker = ExampleActiveMQ(tmp_path_factory.mktemp("example-activemq"), certificates)
    broker.shell(shown("sh activemq"))
    with started(broker):
        yield broker


@pytest.fixture(params=["rabbitmq", "activemq"])
def example(request: Any) -> Any:
    return request.getfixturevalue(f"example_{request.param}")


@pytest.fixture
def enter(linked: Callable[..., Linked], example: Any, certificates: Path) -> As:
    """A link with this name's certificate; "" = without one."""

    def make(name: str, *subscriptions: Subscription, ca: Path = certificates, **changes: Any) -> Linked:
        tls = Tls(certificates / "ca.pem", ca / f"{name}.pem" if name else None, ca / f"{name}.key" if name else None)
        members = {"profile": example.profile, "tls": tls, **changes}
        return linked(example.tls_url, *subscriptions, **members)

    return make


def agent(enter: As, host: str) -> Linked:
    """With the subscriptions of an agent."""
    name = f"{SITE}.{host}"
    return enter(host, Subscription("commands", f"/queue/{SITE}.{host}.commands"),
                 Subscription(name, EVERYONE, durable=True), client_id=name)


def taken(one: Linked, count: int = 1) -> List[bytes]:
    frames = one.take(count)
    for frame in frames:
        one.link.ack(frame)
    return sorted(frame.body for frame in frames)


def refused(one: Linked) -> None:
    """Two attempts, and not in once."""
    one.loop.until(lambda: one.link.state().failures >= 2, 30, f"refusals: {one.link.state()}")
    assert not any(state.up for state in one.states), one.states


def test_agent_controller_and_collector_do_their_work(enter: As) -> None:
    host = agent(enter, ONE).up()
    portal = enter(PORTAL, Subscription("replies", REPLIES), Subscription(f"{SITE}.{PORTAL}", EVENTS, durable=True),
                   client_id=f"{SITE}.{PORTAL}").up()
    collector = enter(COLLECTOR, Subscription("usage", USAGE), Subscription("events", EVENTS),
                      Subscription("capacity", f"/topic/{SITE}.capacity"),
                      Subscription("telemetry", f"/topic/{SITE}.telemetry")).up()
    portal.send(COMMANDS, b"start")
    portal.send(EVERYONE, b"report")
    assert taken(host, 2) == [b"report", b"start"]
    host.send(REPLIES, b"accepted")
    host.send(EVENTS, b"state")
    host.send(USAGE, b"used")
    host.send(f"/topic/{SITE}.capacity", b"room")
    host.send(f"/topic/{SITE}.telemetry", b"load")
    assert taken(portal, 2) == [b"accepted", b"state"]
    assert taken(collector, 4) == [b"load", b"room", b"state", b"used"]


def test_what_comes_while_an_agent_is_away_is_kept(enter: As) -> None:
    agent(enter, ONE).up().stop()
    portal = enter(PORTAL).up()
    portal.send(EVERYONE, b"revoke")
    portal.send(COMMANDS, b"kill")
    assert taken(agent(enter, ONE).up(), 2) == [b"kill", b"revoke"]


@pytest.mark.parametrize("who, destination", (
    (OTHER, COMMANDS), (OTHER, REPLIES), (OTHER, USAGE), (OTHER, EVENTS),
    (MONITORING, REPLIES), (PORTAL, COMMANDS), (PORTAL, USAGE), (PORTAL, f"/queue/{SITE}.replies"),
))
def test_nobody_reads_what_is_another_s(enter: As, who: str, destination: str) -> None:
    refused(enter(who, Subscription("mine", destination)))


@pytest.mark.parametrize("who, destination", (
    (OTHER, COMMANDS), (OTHER, EVERYONE), (PORTAL, EVENTS), (PORTAL, USAGE), (PORTAL, COLLECTED),
))
def test_nobody_writes_what_is_another_s(enter: As, who: str, destination: str) -> None:
    listening = enter(COLLECTOR, Subscription("events", EVENTS), Subscription("replies", COLLECTED))
    listening.up()
    writer = enter(who).up()
    with pytest.raises(Fault):
        writer.send(destination, b"not mine to say")
    host = agent(enter, ONE).up()
    enter(PORTAL).up().send(COMMANDS, b"after it")
    assert taken(host) == [b"after it"] and listening.frames == []


def test_a_name_is_no_proof(enter: As, tmp_path: Path) -> None:
    """The certificate counts, whatever login says."""
    (tmp_path / "passcode").write_text("guest")
    for login in (ONE, "guest"):
        one = enter(OTHER, Subscription("mine", COMMANDS), login=login, passcode_file=tmp_path / "passcode")
        refused(one)


def test_without_a_certificate_of_the_site_nobody_comes_in(enter: As, tmp_path: Path) -> None:
    pki.init(tmp_path, "another CA", now := datetime.datetime.now(datetime.timezone.utc))
    pki.issue(tmp_path, ONE, "host", now)
    refused(enter(""))
    refused(enter(ONE, ca=tmp_path))
    refused(enter("stranger", Subscription("mine", COMMANDS)))


def test_a_frame_that_is_too_large_is_refused(enter: As) -> None:
    host = agent(enter, ONE).up()
    host.send(EVENTS, b"x" * (TOO_LARGE // 2))
    with pytest.raises(Fault):
        host.send(EVENTS, b"x" * TOO_LARGE)
    host.up()


# ---- what only one of them is


def only(example: Any, kind: str) -> None:
    if example.profile != kind:
        pytest.skip(f"of {kind} alone")


@pytest.mark.parametrize("pattern", (">", f"{SITE}.>", f"{SITE}.{ONE}.*"))
def test_a_pattern_opens_no_queue_of_another(enter: As, example: Any, pattern: str) -> None:
    only(example, "activemq")
    host = agent(enter, ONE).up()
    spy = enter(OTHER, Subscription("all", f"/queue/{pattern}"))
    portal = enter(PORTAL).up()
    for number in range(4):
        portal.send(COMMANDS, b"%d" % number)
    assert taken(host, 4) == [b"0", b"1", b"2", b"3"] and spy.frames == []


def test_the_queue_of_a_durable_subscription_is_its_host_s(enter: As, example: Any) -> None:
    only(example, "rabbitmq")
    agent(enter, ONE).up()
    name = f"{SITE}.{ONE}"
    refused(enter(OTHER, Subscription(name, EVERYONE, durable=True), client_id=name))
    refused(enter(OTHER, Subscription("mine", f"/amq/queue/{name}")))


def test_rabbitmq_s_default_exchange_leads_everywhere(enter: As, example: Any) -> None:
    """The page says so: who may send to one queue may send to each, by another kind of name.  Hence signatures."""
    only(example, "rabbitmq")
    host = agent(enter, ONE).up()
    enter(OTHER).up().send(f"/amq/queue/{SITE}.{ONE}.commands", b"noise")
    assert taken(host) == [b"noise"]


def test_another_host_is_added_as_the_page_says(enter: As, example: Any, certificates: Path) -> None:
    only(example, "rabbitmq")
    for line in shown("sh rabbitmq"):
        done = example.ctl(line)
        assert done.returncode == 0, line + done.stdout + done.stderr
    if not (certificates / "wn003.example.org.pem").exists():
        pki.issue(certificates, "wn003.example.org", "host", datetime.datetime.now(datetime.timezone.utc))
    agent(enter, "wn003.example.org").up().send(EVENTS, b"here")
    refused(enter("wn003.example.org", Subscription("mine", COMMANDS)))
