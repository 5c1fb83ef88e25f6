"""The composition root: builds every part, wires them in one readable place, starts and stops them in order.

The only importer of the reactor, and the only place that reads the machine's clocks.
Order of a start: socket (so that an administrator can look at once), store, first observation *attempted*, then the
broker's commands and READY=1.  Order of a stop: nothing new is taken; guests, rules and limits are not touched.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, List

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from vmagent import configfile, folders
from vmagent import log as logs
from vmagent.config import Config, reloaded
from vmagent.core import walltime
from vmagent.core.changes import Stored
from vmagent.core.model import Now
from vmagent.errors import Fault, FaultKind, Problem
from vmagent.parts import Parts, build
from vmagent.reconciler import within

log = logging.getLogger("vmagent.daemon")
reactor: Any = _reactor
EXIT_FAILED = 1
EXIT_IN_VAIN = 2  # starting again does not help: the unit does not (RestartPreventExitStatus=)
DAY_S = 86400.0
FIRST_LOOK_S = 5.0
OFFERING_S = 10.0  # how soon a change of what is free is published
STATE_MODE = 0o711  # QEMU's own user must pass through to its overlay


class SystemClock:
    """Implements ports.Clock.  CLOCK_BOOTTIME goes on while the host sleeps, and no clock step moves it."""

    def __init__(self) -> None:
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()

    def now(self) -> Now:
        return Now(boottime(), walltime.text(time.time()), self._boot_id)


def boottime() -> float:
    """Seconds since boot, suspend included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def notify(state: str) -> None:
    """Tell the service manager (sd_notify(3)); nothing happens where there is none.

    The library's own call blocks while the manager does not read: a frozen manager would freeze the agent.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as link:
        try:
            link.sendto(state.encode("utf-8"), address)
        except OSError as error:
            log.warning("the service manager does not take %r: %s", state, error)


def _usable(state: Path) -> Path:
    """The state directory, made if it is not there.  Problem `configuration`: this user cannot work in it, or with what
    is in it: a store that root restored.
    """
    try:
        folders.made(state, STATE_MODE)
        for path in (state, *state.glob("vmagent.*")):
            folders.writable(path)
    except OSError as error:
        raise Problem("configuration", f"at directories.state: {error.strerror or error}",
                      path="directories.state") from None
    return state


def _own(path: Path) -> int:
    """Two agents never share a state directory; the lock goes with the process.  Problem `state-in-use`."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Problem("state-in-use", f"another agent runs on {path.parent}; stop it, or give this one its own "
                      "directories.state", path="directories.state") from None
    return handle


class Daemon:
    """One run of the agent."""

    def __init__(self, config: Config, path: Path) -> None:
        self._config = config
        self._path = path
        self._lock = _own(_usable(config.directories.state) / "vmagent.lock")
        self.parts: Parts = build(config, reactor, SystemClock(), random.SystemRandom())
        self._loops: List[LoopingCall] = []
        self.code = 0

    # -- start

    def start(self) -> None:
        """Begin; a failure that nothing can mend ends the process with its reason."""
        Deferred.fromCoroutine(self._start()).addErrback(self._fatal)

    async def _start(self) -> None:
        parts = self.parts
        parts.local.listen()
        stored = await self._opened()
        parts.world.load(stored)
        self._tell_epoch(stored)
        await parts.recovery.restored()
        await parts.recovery.recall()
        await parts.keepers.accountant.start(stored.accounts)
        await parts.images.start()
        await parts.endorse()
        await parts.keepers.revoker.look()
        await parts.keepers.images.work()
        await parts.network()
        parts.hypervisor.start(parts.hint, parts.connection)
        await self._first_look()
        await parts.keepers.holder.hold(whole=True)
        await parts.announcer.state()
        await parts.announcer.snapshot()
        await parts.offer()
        await parts.measuring.scraping.look()
        parts.channel.link.start()
        self._every(self._config.intervals.resync_s, parts.recovery.resync)
        self._every(self._config.intervals.hold_s, parts.hold)
        self._every(self._config.telemetry.fine_s, parts.measuring.sampler.turn)
        self._every(60.0, parts.minute)
        self._every(OFFERING_S, parts.offering.changed)
        self._every(DAY_S, parts.prune)
        self._every(self._config.intervals.host_state_s, parts.announcer.state)
        self._snapshot_later()
        self._watchdog()
        notify("READY=1\nSTATUS=running")
        logs.event(log, "agent-ready", "ready", epoch=stored.epoch.id)

    async def _opened(self) -> Stored:
        """The store, open.  Problem `store-newer`: however often it is tried, this version cannot use it."""
        try:
            return await self.parts.store.open(self.parts.clock.now())
        except Fault as fault:
            if fault.kind is not FaultKind.REFUSED:
                raise
            raise Problem("store-newer", fault.detail, path=str(self._config.directories.state)) from None

    def _tell_epoch(self, stored: Stored) -> None:
        epoch = stored.epoch
        log.info("store open: epoch %d, %d VMs", epoch.number, len(stored.records))
        if epoch.set_aside:
            logs.event(log, "store-corrupt", f"the store could not be read: set aside as {epoch.set_aside}",
                       file=epoch.set_aside, epoch=epoch.id)
        if epoch.cause != "first":
            logs.event(log, "store-epoch", f"epoch {epoch.number} of the store began: {epoch.cause}", epoch=epoch.id,
                       reason=epoch.cause)

    async def _first_look(self) -> None:
        """Attempt one observation; a libvirt that hangs holds nobody up."""
        with suppress(Fault):
            await within(reactor, self.parts.connected, FIRST_LOOK_S)
        await self.parts.recovery.resync()

    def _fatal(self, failure: Any) -> None:
        known = isinstance(failure.value, (Fault, Problem, OSError))
        log.critical("cannot start: %s", failure.value, exc_info=None if known else failure.value)
        in_vain = isinstance(failure.value, Problem) and failure.value.type == "store-newer"
        self.code = EXIT_IN_VAIN if in_vain else EXIT_FAILED
        if reactor.running:
            reactor.stop()

    def _every(self, seconds: float, call: Any) -> None:
        async def once() -> None:
            try:
                await call()
            except (Fault, Problem) as error:
                log.warning("%s: %s", getattr(call, "__qualname__", call), error)

        def turn() -> Deferred[None]:
            return Deferred.fromCoroutine(once()).addErrback(self._surprise)

        loop = LoopingCall(turn)
        loop.clock = reactor
        self._loops.append(loop)
        loop.start(seconds, now=False)

    def _surprise(self, failure: Any) -> None:
        logs.surprise(log, "a periodic task failed", failure)

    def _snapshot_later(self) -> None:
        """Every ten minutes with jitter, so that a thousand hosts do not speak at once."""
        delay = self._config.intervals.snapshot_s * random.uniform(0.8, 1.2)

        def turn() -> None:
            self._snapshot_later()
            Deferred.fromCoroutine(self.parts.announcer.snapshot()).addErrback(self._surprise)

        reactor.callLater(delay, turn)

    # -- life

    def _watchdog(self) -> None:
        """Prove our own progress: this turn of the reactor, and no step of the loop that nobody owns any more.

        An outage outside (broker, libvirt, disk) is published as degraded and never starves it.
        """
        period = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6 / 3
        if period <= 0:
            return

        def turn() -> None:
            reactor.callLater(period, turn)
            if self.parts.reconciler.healthy():
                notify("WATCHDOG=1")

        turn()

    def reload(self) -> None:
        """SIGHUP: the site's policy is in force at once, `security.authority` with it, and changed CA files are read.

        All else waits for a restart and is named: `security.crl`, `ca_directory` and `proxy_certificates`, too.
        """
        notify(f"RELOADING=1\nMONOTONIC_USEC={int(time.monotonic() * 1e6)}")
        try:
            fresh = configfile.read(self._path, self._config.policy.host)
        except Problem as problem:
            logs.event(log, "config-refused", f"the old configuration stays: {problem}", file=str(self._path),
                       reason=str(problem))
        else:
            self._take(fresh)
        notify("READY=1")

    def _take(self, fresh: Config) -> None:
        self._config, waiting = reloaded(self._config, fresh)
        logs.setup(self._config.log_level)
        self.parts.adopt_policy(self._config.policy)
        logs.event(log, "config-read", "the configuration was read again", file=str(self._path))
        if waiting:
            log.warning("these changes need a restart: %s", ", ".join(waiting))

    def stop(self) -> Deferred[None]:
        """SIGTERM: take nothing new, close what can be closed; guests, rules and limits stay."""
        notify("STOPPING=1")
        logs.event(log, "agent-stopping", "stopping; guests, rules and limits stay as they are")
        for loop in self._loops:
            if loop.running:
                loop.stop()
        return Deferred.fromCoroutine(self.parts.stop()).addErrback(self._surprise)


def run(config: Config, path: Path) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    reactor.seconds = boottime  # wall time by default, and then a clock step moves every callLater (FACTS F11)
    logs.setup(config.log_level)
    try:
        daemon = Daemon(config, path)
    except Problem as problem:
        log.critical("cannot start: %s", problem)
        return EXIT_FAILED
    reactor.addSystemEventTrigger("before", "shutdown", daemon.stop)
    signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(daemon.reload))
    reactor.callWhenRunning(daemon.start)
    reactor.run()
    return daemon.code
