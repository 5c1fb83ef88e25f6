"""Blocking calls on own daemon threads, FIFO per key, each with a deadline.

Rules

1. Two calls of one key are never under way together, and they begin in the order they were asked for.
2. At most `threads` calls are under way at once; free threads go round the waiting keys, one call each.
3. A deadline counts from the moment the call begins.  When it passes, the Deferred fails with Fault UNKNOWN and the
   call goes on: nobody can stop a thread.  Its key stays blocked until it returns; then `on_late(key)` says: observe
   again.
4. Waiting has a bound too: a call that has waited as long as its own deadline fails with Fault BUSY as soon as nothing
   can be expected any more, that is when its key, or every thread, is held by calls past their deadline.  A long queue
   behind healthy calls is not a failure.
5. Whatever the call raises goes to the errback; what nobody waits for any more is logged with its traceback.

Theory: all book-keeping happens on the reactor's thread, so there is no lock.  A worker thread knows only its
generation's queue; it takes a job, runs it and hands the outcome over by `callFromThread`.  The reactor's own pool is
never used: one stuck call there keeps the process from ending and blocks name resolution (FACTS F5).
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Callable, Deque, Dict, List, Optional, Protocol, Set, Tuple, TypeVar

from twisted.internet.defer import Deferred

from vmagent.errors import Fault, FaultKind

log = logging.getLogger("vmagent.lanes")
T = TypeVar("T")


class Delayed(Protocol):
    """What `callLater` hands back."""

    def active(self) -> Any: ...

    def cancel(self) -> None: ...


class Reactor(Protocol):
    """The part of Twisted's reactor that lanes need; seconds() is the boot clock (FACTS F11)."""

    def callFromThread(self, __call: Callable[..., Any], *args: Any) -> Any: ...

    def callLater(self, __delay: float, __call: Callable[..., Any], *args: Any) -> Any: ...

    def seconds(self) -> float: ...


@dataclass(frozen=True)
class Overdue:
    """A call past its deadline that has not returned."""

    key: str
    since: float  # reactor.seconds() when it began
    seconds_over: float  # how long its deadline is passed


@dataclass(frozen=True)
class _Outcome:
    """What a call came to."""

    value: Any = None
    error: Optional[BaseException] = None


class _Job:
    """One call on its way: queued, then running, then gone."""

    def __init__(self, key: str, deadline_s: float, call: Callable[[], Any]) -> None:
        self.key = key
        self.deadline_s = deadline_s
        self.call = call
        self.answer: Optional[Deferred[Any]] = None  # None once somebody was told
        self.timer: Optional[Delayed] = None
        self.waited_enough = False
        self.since = 0.0
        self.overdue = False
        self.threads: Optional[_Threads] = None

    def stop_timer(self) -> None:
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        self.timer = None

    def tell(self, outcome: _Outcome) -> bool:
        """Fire the Deferred; False when its owner was told before or does not want to know."""
        answer, self.answer = self.answer, None
        if answer is None:
            return False
        if outcome.error is None:
            answer.callback(outcome.value)
        else:
            answer.errback(outcome.error)
        return True


class _Threads:
    """One generation of worker threads, made when needed."""

    def __init__(self, name: str, limit: int, finished: Callable[[_Job, _Outcome], None]) -> None:
        self._name = name
        self._limit = limit
        self._finished = finished  # called on the worker's thread
        self._jobs: SimpleQueue[Optional[_Job]] = SimpleQueue()
        self._made = 0
        self.running: Set[_Job] = set()

    @property
    def free(self) -> bool:
        return len(self.running) < self._limit

    def start(self, job: _Job) -> None:
        self.running.add(job)
        if len(self.running) > self._made:
            self._made += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._made}", daemon=True).start()
        self._jobs.put(job)

    def end(self) -> None:
        """Every thread ends when it is next idle."""
        for _ in range(self._made):
            self._jobs.put(None)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            try:
                outcome = _Outcome(job.call())
            except BaseException as error:  # noqa: BLE001 - edge: for the errback; a lost one would block its key for ever
                outcome = _Outcome(error=error)
            self._finished(job, outcome)
            del job, outcome  # an idle thread keeps nothing alive


class Lanes:
    """Keyed lanes; see the module's rules.  Every method is called on the reactor's thread and returns at once.

    name: of the threads; threads: 1 or more, the most calls at once per generation of threads; on_late(key): a call
    past its deadline has returned after all.
    """

    def __init__(
        self, name: str, threads: int, reactor: Reactor, on_late: Optional[Callable[[str], None]] = None
    ) -> None:
        self._name = name
        self._limit = threads
        self._reactor = reactor
        self._on_late = on_late
        self._generation = 1
        self._threads = self._new_threads()
        self._waiting: OrderedDict[str, Deque[_Job]] = OrderedDict()  # in the order in which keys have their turn
        self._running: Dict[str, _Job] = {}
        self._stopped = False

    def run(self, key: str, deadline_s: float, call: Callable[..., T], *args: Any) -> Deferred[T]:
        """`call(*args)` on a thread.  Faults: UNKNOWN (past the deadline), BUSY (waited too long, or stopped).

        Cancelling the Deferred takes a waiting call out of the queue; a running one goes on, its result is dropped.
        """
        job = _Job(key, deadline_s, lambda: call(*args))
        answer: Deferred[T] = Deferred(lambda _: self._cancelled(job))
        job.answer = answer
        if self._stopped:
            job.tell(self._busy(key, "stopped"))
            return answer
        self._waiting.setdefault(key, deque()).append(job)
        job.timer = self._reactor.callLater(deadline_s, self._waited, job)
        self._dispatch()
        return answer

    def busy(self, key: str) -> bool:
        """Whether a call of this key is under way or waits."""
        return key in self._running or key in self._waiting

    @property
    def idle(self) -> bool:
        """Nothing is under way on the threads of now, and nothing waits."""
        return not self._threads.running and not self._waiting

    def overdue(self) -> Tuple[Overdue, ...]:
        """Calls past their deadline that have not returned, of every generation, longest first."""
        now = self._reactor.seconds()
        late = [Overdue(j.key, j.since, now - j.since - j.deadline_s) for j in self._running.values() if j.overdue]
        return tuple(sorted(late, key=lambda o: -o.seconds_over))

    def abandoned(self) -> int:
        """Calls still under way on threads that were replaced."""
        return sum(job.threads is not self._threads for job in self._running.values())

    def replace_threads(self) -> None:
        """Go on with fresh threads.  The old ones end when their calls return; those keys stay blocked until then."""
        self._threads.end()
        self._generation += 1
        self._threads = self._new_threads()
        self._dispatch()

    def stop(self) -> None:
        """Accept nothing more; waiting calls fail with BUSY, idle threads end, stuck ones are left to the process."""
        self._stopped = True
        self._threads.end()
        waiting: List[_Job] = [job for queue in self._waiting.values() for job in queue]
        self._waiting.clear()
        for job in waiting:
            job.stop_timer()
            job.tell(self._busy(job.key, "stopped"))

    def _new_threads(self) -> _Threads:
        def finished(job: _Job, outcome: _Outcome) -> None:
            self._reactor.callFromThread(self._finished, job, outcome)

        return _Threads(f"{self._name}-{self._generation}", self._limit, finished)

    def _busy(self, key: str, why: str) -> _Outcome:
        return _Outcome(error=Fault(FaultKind.BUSY, f"lane {self._name}, {key}: {why}"))

    def _dispatch(self) -> None:
        """Start what may start, one call per key and turn."""
        while self._threads.free and not self._stopped:
            key = next((k for k in self._waiting if k not in self._running), None)
            if key is None:
                return
            self._start(self._take(key))

    def _take(self, key: str) -> _Job:
        queue = self._waiting[key]
        job = queue.popleft()
        if not queue:
            del self._waiting[key]
        return job

    def _start(self, job: _Job) -> None:
        job.stop_timer()
        job.since = self._reactor.seconds()
        job.threads = self._threads
        self._running[job.key] = job
        job.timer = self._reactor.callLater(job.deadline_s, self._passed, job)
        self._threads.start(job)

    def _passed(self, job: _Job) -> None:
        """The deadline of a running call."""
        job.overdue = True
        log.warning("lane %s: a call on %s is past its deadline of %g s", self._name, job.key, job.deadline_s)
        detail = f"lane {self._name}, {job.key}: no answer within {job.deadline_s:g} s"
        job.tell(_Outcome(error=Fault(FaultKind.UNKNOWN, detail)))
        self._give_up()

    def _waited(self, job: _Job) -> None:
        job.waited_enough = True
        self._give_up()

    def _give_up(self) -> None:
        """Rule 4: fail what has waited long enough behind calls that may never return."""
        all_held = not self._threads.free and all(job.overdue for job in self._threads.running)
        hopeless: List[_Job] = []
        for key, queue in self._waiting.items():
            if all_held or (key in self._running and self._running[key].overdue):
                hopeless += [job for job in queue if job.waited_enough]
        for job in hopeless:
            self._forget(job)
        for job in hopeless:
            job.tell(self._busy(job.key, "an earlier call has not returned"))

    def _forget(self, job: _Job) -> None:
        job.stop_timer()
        queue = self._waiting.get(job.key)
        if queue is not None and job in queue:
            queue.remove(job)
            if not queue:
                del self._waiting[job.key]

    def _cancelled(self, job: _Job) -> None:
        job.answer = None
        if self._running.get(job.key) is not job:
            self._forget(job)

    def _finished(self, job: _Job, outcome: _Outcome) -> None:
        job.stop_timer()
        del self._running[job.key]
        if job.threads is not None:
            job.threads.running.discard(job)
        if job.key in self._waiting:
            self._waiting.move_to_end(job.key)  # it had its turn
        self._dispatch()
        if not job.tell(outcome):
            self._late(job, outcome)

    def _late(self, job: _Job, outcome: _Outcome) -> None:
        if outcome.error is not None:
            log.warning("lane %s, %s: a call nobody waits for failed", self._name, job.key, exc_info=outcome.error)
        if job.overdue and self._on_late is not None:
            self._on_late(job.key)
