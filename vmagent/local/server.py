"""The local socket's file and listener (PROTOCOL 4).

Rules: the file is 0660 in the run directory, owned by the agent's user and the administrators' group; when a readers'
group exists as well it is 0666, because a file has one group only, and the peers' credentials alone decide (see
peers.py).  A lock beside it belongs to whoever listens; a socket that nobody listens on is removed, one that answers is
never stolen.
"""

from __future__ import annotations

import fcntl
import grp
import logging
import os
import socket
import stat
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Protocol

from twisted.internet.defer import Deferred, maybeDeferred

from vmagent import folders, ports
from vmagent.config import SocketSettings
from vmagent.core import walltime
from vmagent.errors import Problem
from vmagent.local import peers, protocol
from vmagent.local.feed import LiveFeed
from vmagent.local.session import Commands, Deeds, Queries, Services, Sessions

log = logging.getLogger("vmagent.local")


class Reactor(Protocol):
    """The part of Twisted's reactor that the server needs."""

    @property
    def listenUNIX(self) -> Callable[..., Any]: ...


class LocalServer:
    """Listens on the local socket from `listen` to `stop`.

    commands(payload, signer): a complete payload of PROTOCOL 3 -> Deferred of the reply.
    queries[verb](args), deeds[verb](args, signer) -> Deferred of the result; the verbs `command` and `events` are the
    server's own.
    host: what `target` becomes.  Construction resolves the groups: Problem `configuration`.
    """

    def __init__(
        self,
        settings: SocketSettings,
        reactor: Reactor,
        commands: Commands,
        queries: Queries,
        feed: LiveFeed,
        clock: ports.Clock,
        host: str,
        deeds: Deeds,
    ) -> None:
        self._path = settings.path
        self._reactor = reactor
        self._clock = clock
        self._host = host
        self._access = peers.resolve(settings)
        services = Services(self._access, _identify, commands, queries, feed, self._fill, deeds)
        self._sessions = Sessions(services)
        self._port: Optional[Any] = None
        self._lock: Optional[int] = None

    def _fill(self, payload: Mapping[str, Any]) -> Dict[str, Any]:
        wall = self._clock.now().wall
        until = walltime.text(walltime.seconds(wall) + protocol.VALID_FOR_S)
        return protocol.filled(payload, self._host, wall, until)

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._sessions.open)

    def listen(self) -> None:
        """Open the socket.  Problem `socket-in-use` when another agent listens there; OSError from the file system."""
        folders.made(self._path.parent, 0o755)
        self._lock = _own(self._path.with_name(self._path.name + ".lock"))
        try:
            _clear(self._path)
            before = os.umask(0o177)
            try:
                self._port = self._reactor.listenUNIX(str(self._path), self._sessions, mode=0o600)
            finally:
                os.umask(before)
            self._hand_over()
            os.chmod(self._path, self._access.mode)
        except BaseException:
            self.stop()
            raise

    def _hand_over(self) -> None:
        """To its group.  Problem `configuration`: only a member of a group, or root, may do that."""
        try:
            os.chown(self._path, -1, self._access.owning_gid)
        except PermissionError:
            us, group = folders.user(os.geteuid()), grp.getgrgid(self._access.owning_gid).gr_name
            raise Problem("configuration", f"at socket: the agent's user {us} is not in group {group}, so the socket "
                          f"cannot be given to it: usermod -aG {group} {us}, then restart", path="socket") from None

    def stop(self) -> Deferred[None]:
        """Close every connection and remove the socket."""
        for session in tuple(self._sessions.open):
            session.close()
        port, self._port = self._port, None
        if port is not None and not self._path.exists():
            self._path.touch()  # somebody removed the socket; Twisted closes a listener only when it can do so itself
        closed: Deferred[None] = maybeDeferred(port.stopListening if port is not None else lambda: None)
        closed.addBoth(self._stopped)
        return closed

    def _stopped(self, outcome: Any) -> Any:
        self._unlock()
        return outcome

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _identify(transport: Any) -> peers.Peer:
    return peers.credentials(transport.socket)


def _own(path: Path) -> int:
    """Hold the lock of this socket; the kernel gives it up when the process ends, however that happens."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise Problem("socket-in-use", f"another agent holds {path}", path=str(path)) from None
    return lock


def _clear(path: Path) -> None:
    """Make room for the socket: remove one that nobody answers on; refuse to remove anything else."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise Problem("socket-in-use", f"{path} is there and is no socket; move it away", path=str(path))
    if _answers(path):
        raise Problem("socket-in-use", f"somebody listens on {path} already", path=str(path))
    log.info("removing %s, left behind by an agent that ended without closing it", path)
    path.unlink()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True  # its queue is full: somebody listens
        return True
