"""Seven connections, each for one purpose, and libvirt's event loop.

    control  everything that changes a guest; may enter the QEMU monitor; `threads` calls at once, one per domain
    observe  looks, by calls that never enter the monitor; carries the event callbacks
    rescue   destroy only: it works while every control call hangs (FACTS F4)
    meter    two, for statistics that enter the monitor, one call at once on each (statistics.py)
    jobs     long jobs (snapshots), two at once, which may hold a guest for as long as their deadline (jobs.py)
    watchdog what ends a job or thaws a guest while the job's own thread hangs

The event loop is registered before the first open, once per process, and run by one daemon thread.  A callback does
one thing: it tells the reactor which domain to look at again.  Lost events are healed by the full resync, and after
every reconnect the callbacks are registered anew and everything is looked at.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Callable, List, Optional, Tuple

import libvirt
from twisted.internet.defer import Deferred

from vmagent.hypervisor.link import Link, Opened, Retry
from vmagent.lanes import Reactor

log = logging.getLogger("vmagent.hypervisor")
OBSERVE_THREADS = 2
RESCUE_THREADS = 4
METERS = 2
JOB_THREADS = 2
CLOSE_WAIT_S = 3.0  # a hung libvirtd does not hold back the end of the agent
_EVENTS = (
    libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
    libvirt.VIR_DOMAIN_EVENT_ID_REBOOT,
    libvirt.VIR_DOMAIN_EVENT_ID_WATCHDOG,
    libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON,
    libvirt.VIR_DOMAIN_EVENT_ID_TUNABLE,  # somebody changed the CPU limit
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
    libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE,
)
_loop_lock = threading.Lock()
_loop: List[threading.Thread] = []


def event_loop() -> None:
    """Start libvirt's event loop unless this process has it."""
    with _loop_lock:
        if _loop:
            return
        libvirt.registerErrorHandler(lambda context, error: None, None)  # errors are raised; stderr is not ours
        libvirt.virEventRegisterDefaultImpl()
        thread = threading.Thread(target=_turn, name="libvirt-events", daemon=True)
        _loop.append(thread)
        thread.start()


def _turn() -> None:
    pause = threading.Event()
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            log.exception("libvirt's event loop")
            pause.wait(1.0)


class Session:
    """The links.  gather(connection) runs on a thread; its facts go to on_up once observe, control and rescue are open.

    on_down(why): looking is not possible (any more); a lost control or rescue connection makes only actions fail.
    on_event(uuid): a hint; on_late(vm): a control or rescue call past its deadline has returned.
    """

    def __init__(
        self,
        uri: str,
        threads: int,
        reactor: Reactor,
        retry: Retry,
        gather: Callable[[libvirt.virConnect], Any],
        on_up: Callable[[Any], None],
        on_down: Callable[[str], None],
        on_event: Callable[[str], None],
        on_late: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._gather = gather
        self._on_up = on_up
        self._on_down = on_down
        self._on_event = on_event
        self._news: Optional[Any] = None  # facts that on_up was not told yet
        self.observe: Link[Any] = Link(
            "observe", uri, OBSERVE_THREADS, reactor, retry, self._watch, self._seeing, self._blind, lambda key: None
        )
        self.control = self._plain("control", uri, threads, retry, on_late)
        self.rescue = self._plain("rescue", uri, RESCUE_THREADS, retry, on_late)
        self.meters = tuple(self._plain(f"meter-{number}", uri, 1, retry, on_late) for number in range(METERS))
        self.jobs = self._plain("jobs", uri, JOB_THREADS, retry, on_late)
        self.watchdog = self._plain("watchdog", uri, JOB_THREADS, retry, lambda key: None)
        self._links: Tuple[Link[Any], ...] = (self.observe, self.control, self.rescue, *self.meters, self.jobs,
                                         self.watchdog)

    def start(self) -> None:
        event_loop()
        for link in reversed(self._links):
            link.start()

    def stop(self) -> Deferred[None]:
        """Fires when all is closed, or after CLOSE_WAIT_S."""
        closing = [thread for link in self._links for thread in link.stop()]
        done: Deferred[None] = Deferred()
        timer = self._reactor.callLater(CLOSE_WAIT_S, self._ended, done, None)

        def wait() -> None:
            for thread in closing:
                thread.join()
            self._reactor.callFromThread(self._ended, done, timer)

        threading.Thread(target=wait, name="libvirt-stop", daemon=True).start()
        return done

    def _ended(self, done: Deferred[None], timer: Optional[Any]) -> None:
        if timer is not None and timer.active():
            timer.cancel()
        if not done.called:
            done.callback(None)

    def _plain(self, name: str, uri: str, threads: int, retry: Retry, on_late: Callable[[str], None]) -> Link[Any]:
        def down(why: str) -> None:
            log.warning("libvirt (%s) is away: %s", name, why)

        def up(facts: bool) -> None:
            self._all_open()

        return Link(name, uri, threads, self._reactor, retry, lambda opened: True, up, down, on_late)

    def _seeing(self, facts: Any) -> None:
        self._news = facts
        self._all_open()

    def _blind(self, why: str) -> None:
        self._news = None
        self._on_down(why)

    def _all_open(self) -> None:
        if self._news is not None and self.control.connected and self.rescue.connected:
            facts, self._news = self._news, None
            self._on_up(facts)

    def _watch(self, opened: Opened[Any]) -> Any:
        """On a thread: callbacks first, so that nothing between them and the facts is missed."""
        for event in _EVENTS:
            try:
                opened.callbacks.append(opened.conn.domainEventRegisterAny(None, event, self._told, None))
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                    raise
        return self._gather(opened.conn)

    def _told(self, conn: libvirt.virConnect, domain: libvirt.virDomain, *rest: Any) -> None:
        """In libvirt's event loop."""
        self._reactor.callFromThread(self._on_event, domain.UUIDString())
