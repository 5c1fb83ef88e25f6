"""What a controller holds of a command that it sent: the ids known beforehand, and two things to wait for.

`accepted` and `done` give a new Deferred each time they are read, fired at once when the answer is there already: any
number may wait, nobody has to.  They fail with a Problem (refused: nothing was done; failed: it says what), or with a
Fault: UNKNOWN when no answer came while the command was valid, REFUSED when the broker does not take it.
"""

from __future__ import annotations

from typing import Any, Callable, List, Mapping, Optional, Tuple, Union

from twisted.internet.defer import Deferred

from vmagent.errors import Fault, Problem

Reply = Mapping[str, Any]
FINAL = ("done", "failed", "refused")


class Answer:
    """Something that is known later, once, for as many as ask."""

    def __init__(self) -> None:
        self.value: Union[None, Reply, Exception] = None
        self._waiting: List[Deferred[Reply]] = []

    def wait(self) -> Deferred[Reply]:
        one: Deferred[Reply] = Deferred(self._forget)
        if self.value is None:
            self._waiting.append(one)
        else:
            _fire(one, self.value)
        return one

    def _forget(self, one: Deferred[Reply]) -> None:
        self._waiting.remove(one)

    def settle(self, value: Union[Reply, Exception]) -> None:
        """The first value counts."""
        if self.value is None:
            self.value = value
            waiting, self._waiting = self._waiting, []
            for one in waiting:
                _fire(one, value)


def _fire(one: Deferred[Reply], value: Union[Reply, Exception]) -> None:
    if isinstance(value, Exception):
        one.errback(value)
    else:
        one.callback(value)


class Handle:
    """A command on its way.  id: the command's; host: "*" = every host; ids: VM ids it concerns, as far as known."""

    def __init__(self, id: str, host: str, verb: str, ids: Tuple[str, ...] = ()) -> None:
        self.id = id
        self.host = host
        self.verb = verb
        self.ids = ids
        self.reply: Optional[Reply] = None  # the newest
        self.refusals: List[Problem] = []  # of a command to every host: who did not want to
        self._listeners: List[Callable[[Reply], None]] = []
        self._accepted = Answer()
        self._done = Answer()

    @property
    def accepted(self) -> Deferred[Reply]:
        """The first reply that is not a refusal."""
        return self._accepted.wait()

    @property
    def done(self) -> Deferred[Reply]:
        """The last reply, of a command that had its whole effect."""
        return self._done.wait()

    @property
    def settled(self) -> bool:
        """Whether nothing more is to come."""
        return self._done.value is not None

    @property
    def answered(self) -> bool:
        """Whether any reply came."""
        return self.reply is not None

    @property
    def members(self) -> Tuple[Mapping[str, Any], ...]:
        """One entry per VM of the newest reply: {vm, member, status, problem?}; empty before the first."""
        result = (self.reply or {}).get("result") or {}
        return tuple(result.get("members") or ())

    def hear(self, listener: Callable[[Reply], None]) -> None:
        """Call `listener` with every reply from now on, those that only tell how far it is too."""
        self._listeners.append(listener)

    def take(self, reply: Reply) -> None:
        """A reply came; what waits is settled once, by the first reply that does."""
        self.reply = reply
        for listener in self._listeners:
            listener(reply)
        status = reply["status"]
        if not self.ids:
            self.ids = tuple(str(one["vm"]) for one in self.members if "vm" in one)
        if status == "refused":
            self._accepted.settle(problem_of(reply))
        else:
            self._accepted.settle(reply)
        if status in FINAL:
            self._done.settle(reply if status == "done" else problem_of(reply))

    def fail(self, fault: Fault) -> None:
        """No answer will come."""
        self._accepted.settle(fault)
        self._done.settle(fault)


def problem_of(reply: Reply) -> Problem:
    """The reply's problem as the exception it was at the agent; `status` and `members` stand in its fields."""
    body = reply.get("problem") or {}
    fields = {name: value for name, value in body.items() if name not in ("type", "title", "detail")}
    result = reply.get("result") or {}
    fields["status"] = reply["status"]
    fields["members"] = result.get("members") or []
    return Problem(str(body.get("type", reply["status"])), str(body.get("detail", "no reason was given")), **fields)
