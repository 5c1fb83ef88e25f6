"""The local socket: who may do what, one refusal per reason, bounds on requests and on readers, the file itself."""

from __future__ import annotations

import grp
import io
import json
import os
import pwd
import socket
import stat
import tempfile
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.testing import StringTransport

from tests.support.building import WALL, now
from tests.support.waiting import until
from vmagent.config import SocketSettings
from vmagent.core.changes import Publish
from vmagent.core.commands import Signer
from vmagent.errors import Fault, FaultKind, Problem
from vmagent.local import ctl, protocol
from vmagent.local.ctl_client import Client, Unreachable
from vmagent.local.feed import LiveFeed
from vmagent.local.peers import Access, Peer, Right, credentials, resolve
from vmagent.local.server import LocalServer
from vmagent.local.session import CLIENTS, PENDING, REQUESTS, Services, Sessions

ADMIN, READER = 1001, 1002
ACCESS = Access(ADMIN, READER, {0: "root", 5000: "alice"})
ROOT = Peer(1, 0, frozenset({0}))
ALICE = Peer(2, 5000, frozenset({100, ADMIN}))
BOB = Peer(3, 5001, frozenset({100, READER}))
MALLORY = Peer(4, 5002, frozenset({100}))


class Transport(StringTransport):
    """A client that can be cut off, and that stalls when told to."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class Agent:
    """What stands behind the socket in these tests, and a factory of connections."""

    def __init__(self) -> None:
        self.feed = LiveFeed()
        self.taken: List[Tuple[Mapping[str, Any], Signer]] = []
        self.hanging: List[Deferred[Any]] = []
        self.peer = ROOT
        queries: Dict[str, Callable[[Mapping[str, Any]], Deferred[Any]]] = {
            "list": lambda args: succeed({"vms": [], "asked": dict(args)}),
            "refuse": lambda args: fail(Problem("not-found", "no such VM", handle="x")),
            "raise": self._raise,
            "fault": lambda args: fail(Fault(FaultKind.AWAY, "libvirt is away")),
            "broken": lambda args: fail(ZeroDivisionError("secret")),
            "hang": self._hang,
        }
        fill = lambda payload: {"issued_at": "then", **payload}  # noqa: E731
        deeds = {protocol.ADOPT: self._take, protocol.DISOWN: self._take}
        self.sessions = Sessions(Services(ACCESS, lambda _: self.peer, self._take, queries, self.feed, fill, deeds))

    def _take(self, payload: Mapping[str, Any], signer: Signer) -> Deferred[Mapping[str, Any]]:
        self.taken.append((payload, signer))
        return succeed({"command": payload.get("id"), "status": "accepted"})

    def _raise(self, args: Mapping[str, Any]) -> Deferred[Any]:
        raise Problem("schema", "at once", path="args")

    def _hang(self, args: Mapping[str, Any]) -> Deferred[Any]:
        self.hanging.append(Deferred())
        return self.hanging[-1]

    def connect(self, peer: Peer = ROOT) -> Tuple[Any, Transport]:
        self.peer = peer
        session = self.sessions.buildProtocol(None)
        transport = Transport()
        session.makeConnection(transport)
        return session, transport

    def say(self, *changes: str) -> None:
        self.feed.publish([Publish("events", "org.vmagent.vm.state", s, WALL, {"n": s}) for s in changes])


def ask(session: Any, verb: str, args: Optional[Mapping[str, Any]] = None, id: Any = 1) -> None:
    session.dataReceived(json.dumps({"id": id, "verb": verb, "args": args or {}}).encode() + b"\n")


def said(transport: Transport) -> List[Dict[str, Any]]:
    """The lines written since the last call."""
    text = transport.value()
    transport.clear()
    return [json.loads(line) for line in text.splitlines()]


def kill(verb: str = "vm.kill/1") -> Dict[str, Any]:
    return {"schema": verb, "id": "c1", "args": {"vms": ["x"]}}


# -- who may what


@pytest.mark.parametrize(
    ("peer", "right"), [(ROOT, Right.CHANGE), (ALICE, Right.CHANGE), (BOB, Right.LOOK), (MALLORY, Right.NONE)]
)
def test_rights_by_numeric_ids(peer: Peer, right: Right) -> None:
    assert ACCESS.right(peer) is right


def test_without_groups_only_root_may_anything() -> None:
    access = Access(None, None, {})
    assert access.right(ROOT) is Right.CHANGE
    assert access.right(Peer(9, 7, frozenset())) is Right.NONE
    assert access.right(ALICE) is Right.NONE


def test_the_signer_is_the_account_or_its_number() -> None:
    assert ACCESS.signer(ALICE).subject == "local:alice"
    assert ACCESS.signer(BOB).subject == "local:5001"
    assert ACCESS.signer(ROOT).local


@pytest.mark.parametrize("access", [Access(1, None, {}), Access(None, 1, {}), Access(1, 1, {}), Access(None, None, {})])
def test_one_group_makes_0660(access: Access) -> None:
    assert access.mode == 0o660
    assert access.owning_gid == (1 if access != Access(None, None, {}) else -1)


def test_two_groups_leave_it_to_the_credentials() -> None:
    assert ACCESS.mode == 0o666


def test_a_group_that_does_not_exist_is_told_when_the_configuration_is_read() -> None:
    with pytest.raises(Problem) as caught:
        resolve(SocketSettings(Path("x"), "no-such-group-here", ""))
    assert caught.value.type == "configuration"
    assert "socket.admin_group" in caught.value.detail


def test_the_kernel_says_who_is_there() -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        peer = credentials(here)
    assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
    assert peer.groups >= set(os.getgroups()) | {os.getegid()}


def test_strangers_get_one_refusal_and_are_closed() -> None:
    agent = Agent()
    session, transport = agent.connect(MALLORY)
    ask(session, "list")
    (line,) = said(transport)
    assert (line["id"], line["problem"]["type"]) == (None, "not-authorised")
    assert transport.disconnecting
    assert not agent.sessions.open


def test_readers_look_but_do_not_change() -> None:
    agent = Agent()
    session, transport = agent.connect(BOB)
    ask(session, "list", {"a": 1}, id="q")
    ask(session, "command", kill(), id=2)
    ask(session, "command", kill("no.such/1"), id=3)
    ask(session, "command", kill("vm.query/1"), id=4)
    first, second, third, fourth = said(transport)
    assert first == {"id": "q", "result": {"vms": [], "asked": {"a": 1}}}
    assert second["problem"]["type"] == third["problem"]["type"] == "not-authorised"
    assert fourth["result"]["status"] == "accepted"
    assert [payload["schema"] for payload, _ in agent.taken] == ["vm.query/1"]


def test_who_adopts_is_an_administrator_and_is_named() -> None:
    agent = Agent()
    for peer, allowed in ((ALICE, True), (BOB, False)):
        session, transport = agent.connect(peer)
        for verb in (protocol.ADOPT, protocol.DISOWN):
            ask(session, verb, {"vm": "db1"})
            (answer,) = said(transport)
            assert ("result" in answer) is allowed
            assert allowed or answer["problem"]["type"] == "not-authorised"
    assert [signer for _, signer in agent.taken] == [Signer("local:alice")] * 2


def test_administrators_change_under_their_own_name() -> None:
    agent = Agent()
    session, transport = agent.connect(ALICE)
    ask(session, "command", kill())
    assert said(transport) == [{"id": 1, "result": {"command": "c1", "status": "accepted"}}]
    assert agent.taken == [({**kill(), "issued_at": "then"}, Signer("local:alice"))]


# -- every refusal on its own line, and the connection goes on


@pytest.mark.parametrize(
    ("line", "id", "type"),
    [
        (b"{", None, "json"),
        (b'{"id": 1, "id": 2, "verb": "list"}', None, "json"),
        (b"[]", None, "schema"),
        (b'{"verb": "list"}', None, "schema"),
        (b'{"id": true, "verb": "list"}', None, "schema"),
        (b'{"id": "", "verb": "list"}', None, "schema"),
        (b'{"id": 7}', 7, "schema"),
        (b'{"id": 7, "verb": "list", "args": []}', 7, "schema"),
        (b'{"id": 7, "verb": "list", "extra": 1}', 7, "schema"),
        (b'{"id": 7, "verb": "nonsense"}', 7, "unknown-verb"),
        (b'{"id": 7, "verb": "refuse"}', 7, "not-found"),
        (b'{"id": 7, "verb": "raise"}', 7, "schema"),
        (b'{"id": 7, "verb": "fault"}', 7, "fault"),
        (b'{"id": 7, "verb": "events", "args": {"limit": -1}}', 7, "schema"),
    ],
)
def test_bad_requests(line: bytes, id: Any, type: str) -> None:
    agent = Agent()
    session, transport = agent.connect()
    session.dataReceived(line + b"\n")
    (answer,) = said(transport)
    assert (answer["id"], answer["problem"]["type"]) == (id, type)
    ask(session, "list")
    assert "result" in said(transport)[0]


def test_a_failure_inside_is_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    agent = Agent()
    session, transport = agent.connect()
    ask(session, "broken")
    (answer,) = said(transport)
    assert answer["problem"]["type"] == "internal"
    assert "secret" not in json.dumps(answer)
    assert "ZeroDivisionError" in caplog.text


def test_a_line_without_end_closes_the_connection() -> None:
    agent = Agent()
    session, transport = agent.connect()
    session.dataReceived(b"x" * (protocol.LONGEST_REQUEST + 1))
    (answer,) = said(transport)
    assert answer["problem"]["type"] == "too-large"
    assert transport.disconnecting


# -- bounds


def test_at_most_so_many_clients_and_one_place_for_root() -> None:
    agent = Agent()
    kept = [agent.connect(BOB) for _ in range(CLIENTS)]
    _, late = agent.connect(BOB)
    assert said(late)[0]["problem"]["type"] == "busy"
    assert late.disconnecting
    session, root = agent.connect(ROOT)
    ask(session, "list")
    assert "result" in said(root)[0]
    session.connectionLost()
    kept[0][0].connectionLost()
    session, again = agent.connect(BOB)
    ask(session, "list")
    assert "result" in said(again)[0]


def test_at_most_so_many_requests_under_way() -> None:
    agent = Agent()
    session, transport = agent.connect()
    for number in range(REQUESTS + 1):
        ask(session, "hang", id=number)
    (refused,) = said(transport)
    assert (refused["id"], refused["problem"]["type"]) == (REQUESTS, "busy")
    agent.hanging[0].callback("done")
    assert said(transport) == [{"id": 0, "result": "done"}]
    ask(session, "list", id="next")
    assert said(transport)[0]["id"] == "next"


def test_a_reader_that_stalls_is_cut_off_at_the_bound() -> None:
    agent = Agent()
    session, transport = agent.connect(BOB)
    ask(session, "events", {"follow": True, "limit": 0})
    other, healthy = agent.connect(BOB)
    ask(other, "events", {"follow": True, "limit": 0})
    session.pauseProducing()
    written = 0
    while not transport.aborted:
        agent.say("x" * 65536)
        written += 65536
        assert written < 2 * PENDING
    assert transport.value() == b""
    assert written >= PENDING / 2  # an entry holds the text twice
    assert not healthy.aborted
    session.connectionLost()
    healthy.clear()
    agent.say("after")
    assert said(healthy)[0]["result"]["subject"] == "after"


def test_a_reader_that_only_pauses_gets_everything_in_order() -> None:
    agent = Agent()
    session, transport = agent.connect(BOB)
    ask(session, "events", {"follow": True, "limit": 0})
    session.pauseProducing()
    agent.say("1", "2", "3")
    assert transport.value() == b""
    session.resumeProducing()
    agent.say("4")
    assert [line["result"]["subject"] for line in said(transport)] == ["1", "2", "3", "4"]


def test_answers_that_come_after_the_client_went_are_dropped() -> None:
    agent = Agent()
    session, transport = agent.connect()
    ask(session, "hang")
    session.connectionLost()
    agent.hanging[0].callback("late")
    assert transport.value() == b""


# -- events


def test_events_show_the_past_and_end() -> None:
    agent = Agent()
    agent.say("a", "b", "c")
    session, transport = agent.connect(BOB)
    ask(session, "events", {"limit": 2})
    first, second, last = said(transport)
    assert (first["more"], first["result"]["subject"], second["result"]["subject"]) == (True, "b", "c")
    assert last == {"id": 1, "result": None}


def test_events_follow_until_the_client_goes() -> None:
    agent = Agent()
    session, transport = agent.connect(BOB)
    ask(session, "events", {"follow": True})
    agent.say("a")
    (line,) = said(transport)
    assert line == {
        "id": 1, "more": True,
        "result": {"time": WALL, "type": "org.vmagent.vm.state", "subject": "a", "data": {"n": "a"}},
    }
    session.connectionLost()
    agent.say("b")
    assert transport.value() == b""
    assert agent.feed.watchers == 0


def test_only_events_are_shown() -> None:
    agent = Agent()
    agent.feed.publish([Publish("usage", "org.vmagent.vm.usage", "vm/1", WALL, {})])
    assert agent.feed.recent(10) == []
    assert agent.feed.recent(0) == []


# -- the file, on a real reactor


class Clock:
    def now(self) -> Any:
        return now()


class Running:
    """A LocalServer on a reactor of its own, in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self.reactor = SelectReactor()
        self.taken: List[Mapping[str, Any]] = []
        self.feed = LiveFeed()
        # Root may do everything; anybody else runs these tests as a member of the administrators' group.
        settings = SocketSettings(path, "" if os.geteuid() == 0 else grp.getgrgid(os.getegid()).gr_name, "")
        queries = {"list": lambda args: succeed({"vms": []})}
        self.server = LocalServer(settings, self.reactor, self._take, queries, self.feed, Clock(), "wn017", {})
        self._thread = threading.Thread(target=self.reactor.run, kwargs={"installSignalHandlers": False}, daemon=True)
        self._thread.start()

    def _take(self, payload: Mapping[str, Any], signer: Signer) -> Deferred[Mapping[str, Any]]:
        self.taken.append({**payload, "signer": signer.subject})
        return succeed({"command": payload["id"], "status": "accepted"})

    def call(self, what: Callable[[], Any]) -> Any:
        """Make a call on the reactor and wait for what it returns."""
        got: List[Any] = []

        def run() -> None:
            try:
                answer = what()
            except (Problem, OSError) as error:
                got.append(error)
                return
            if isinstance(answer, Deferred):
                answer.addBoth(got.append)
            else:
                got.append(answer)

        self.reactor.callFromThread(run)
        until(lambda: got, what="the reactor's answer")
        if isinstance(got[0], Exception):
            raise got[0]
        return got[0]

    def end(self) -> None:
        self.call(self.server.stop)
        self.reactor.callFromThread(self.reactor.stop)
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture()
def running(tmp_path: Path) -> Iterator[Running]:
    agent = Running(tmp_path / "run" / "vmagent.sock")
    yield agent
    agent.end()


def talk(path: Path, *lines: Mapping[str, Any]) -> List[Dict[str, Any]]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        with client.makefile("rwb") as file:
            for line in lines:
                file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            return [json.loads(file.readline()) for _ in lines]


def test_the_socket_answers_and_goes_with_the_server(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "run" / "vmagent.sock"
    running.call(running.server.listen)
    mode = os.stat(path).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
    assert talk(path, {"id": 1, "verb": "list"}) == [{"id": 1, "result": {"vms": []}}]
    running.call(running.server.stop)
    assert not path.exists()


def test_what_a_local_client_leaves_out_is_filled_in(running: Running, tmp_path: Path) -> None:
    running.call(running.server.listen)
    talk(tmp_path / "run" / "vmagent.sock", {"id": 1, "verb": "command", "args": kill()})
    assert running.taken == [{
        **kill(), "target": "wn017", "issued_at": WALL, "valid_until": "2026-11-20T12:05:00.000Z",
        "signer": f"local:{pwd.getpwuid(os.geteuid()).pw_name}",
    }]


def test_the_command_speaks_to_the_server(running: Running, tmp_path: Path) -> None:
    running.call(running.server.listen)
    running.feed.publish([Publish("events", "org.vmagent.vm.state", "vm/a", WALL, {"phase": "ready"})])
    path = tmp_path / "run" / "vmagent.sock"
    with Client(path, patience_s=20) as client:
        assert client.ask("list") == {"vms": []}
        assert [entry["subject"] for entry in client.stream("events")] == ["vm/a"]
        with pytest.raises(Problem) as caught:
            client.ask("nonsense")
        assert caught.value.type == "unknown-verb"
    out = io.StringIO()
    assert ctl.main(["--socket", str(path), "events"], out, out) == 0
    assert out.getvalue() == f"{WALL}  vm.state  vm/a  ready\n"
    assert ctl.main(["--socket", str(path), "drain", "--json"], out, out) == 0
    assert running.taken[0]["schema"] == "host.drain/1"
    running.call(running.server.stop)
    assert ctl.main(["--socket", str(path), "list"], out, out) == 4


def test_a_server_that_hangs_up_is_unreachable(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)
        with Client(path, patience_s=20) as client:
            server.accept()[0].close()
            with pytest.raises(Unreachable):
                client.ask("list")
        with Client(path, patience_s=0.05) as client, pytest.raises(Unreachable) as caught:
            client.ask("list")
    assert "no answer" in str(caught.value)


def test_a_socket_left_behind_is_replaced(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "run" / "vmagent.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    running.call(running.server.listen)
    assert talk(path, {"id": 1, "verb": "list"})


def test_a_socket_that_answers_is_never_stolen(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "run" / "vmagent.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(path))
        alive.listen(1)
        before = os.stat(path).st_ino
        with pytest.raises(Problem) as caught:
            running.call(running.server.listen)
        assert os.stat(path).st_ino == before
    assert caught.value.type == "socket-in-use"


def test_two_agents_do_not_share_a_socket(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "run" / "vmagent.sock"
    running.call(running.server.listen)
    second = Running(path)
    try:
        with pytest.raises(Problem) as caught:
            second.call(second.server.listen)
    finally:
        second.end()
    assert caught.value.type == "socket-in-use"
    assert talk(path, {"id": 1, "verb": "list"})


def test_an_agent_whose_socket_was_removed_still_holds_its_place(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "run" / "vmagent.sock"
    running.call(running.server.listen)
    path.unlink()
    second = Running(path)
    try:
        with pytest.raises(Problem) as caught:
            second.call(second.server.listen)
        assert caught.value.type == "socket-in-use"
        assert running.call(running.server.stop) is None
        second.call(second.server.listen)
        assert talk(path, {"id": 1, "verb": "list"})
    finally:
        second.end()


def test_something_that_is_no_socket_is_left_alone(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "run" / "vmagent.sock"
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(Problem):
        running.call(running.server.listen)
    assert path.read_text() == "precious"


def test_a_real_client_that_does_not_read_is_cut_off(running: Running, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs a peer with a right")
    running.call(running.server.listen)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "run" / "vmagent.sock"))
        client.sendall(b'{"id": 1, "verb": "events", "args": {"follow": true}}\n')
        until(lambda: running.server.clients == 1)
        event = Publish("events", "t", "s", WALL, {"x": "x" * 100_000})

        def flood() -> int:
            for _ in range(10):
                running.feed.publish([event])
            return 1

        for _ in range(3 * PENDING // 1_000_000 + 2):
            running.call(flood)
        until(lambda: running.server.clients == 0, what="the stalled client is gone")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_another_account_is_refused_by_a_socket_it_can_reach(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "run" / "vmagent.sock"
    running.call(running.server.listen)
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as client:
        os.chmod(folder, 0o755)
        reachable = Path(folder) / "link"
        os.link(path, reachable)
        os.chmod(reachable, 0o666)
        groups = os.getgroups()
        os.setgroups([])
        os.setegid(65534)
        os.seteuid(65534)
        try:
            client.connect(str(reachable))
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)
        client.settimeout(20)
        with client.makefile("rb") as file:
            assert json.loads(file.readline())["problem"]["type"] == "not-authorised"
            assert file.readline() == b""
