"""The two error families, and the wire form of the first.

Problem: refused, nothing was done.  Fault: failed while doing, the outcome may be unknown.
A decision is never taken on an error's text: on a Problem's `type` or a Fault's `kind` only.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Dict, Mapping, Sequence, Tuple


class Problem(Exception):
    """A refusal (RFC 9457 in its members): nothing was done.

    type: stable code such as `no-capacity`; title: the same in words; detail: what a person can do about it.
    fields: the members that matter, such as `path`, `needed`, `free`, `accepted`.
    """

    def __init__(self, type: str, detail: str, **fields: Any) -> None:
        super().__init__(detail)
        self.type = type
        self.detail = detail
        self.fields: Mapping[str, Any] = fields

    def as_json(self) -> Dict[str, Any]:
        """The wire form."""
        body: Dict[str, Any] = {"type": self.type, "title": self.type.replace("-", " "), "detail": self.detail}
        body.update(self.fields)
        return body

    def __str__(self) -> str:
        return f"{self.type}: {self.detail}"


class Problems(Problem):
    """Several refusals at once: all the reasons, not the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        first = problems[0]
        fields = dict(first.fields)
        if len(problems) > 1:
            fields["also"] = [p.as_json() for p in problems[1:]]
        super().__init__(first.type, first.detail, **fields)
        self.problems: Tuple[Problem, ...] = tuple(problems)


def reasons(problem: Problem) -> Tuple[Problem, ...]:
    """Every refusal that it holds, one by one."""
    return problem.problems if isinstance(problem, Problems) else (problem,)


class FaultKind(str, Enum):
    """What a failure means for the next step of the loop."""

    UNKNOWN = "outcome-unknown"  # a deadline passed or a link broke: observe again
    AWAY = "away"  # the other side cannot be reached at all
    GONE = "gone"  # the subject does not exist (any more)
    BUSY = "busy"  # try again later
    REFUSED = "refused"  # asked again it fails again: give up
    FULL = "full"  # no space left


class Fault(Exception):
    """An effect failed while it was attempted."""

    def __init__(self, kind: FaultKind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.detail}"
