"""What was just committed, for those who watch on the local socket.

Rules: only events are shown (what collectors see too: no secrets, no replies).  The last KEPT are remembered, so that
`vmagentctl events` has something to show at once.  A watcher's callback must not raise and must not block.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Callable, Deque, Dict, List, Sequence

from vmagent.core.changes import Change, Publish

KEPT = 500
Entry = Dict[str, Any]  # {"time", "type", "subject", "data"}
Watcher = Callable[[Entry], None]


class LiveFeed:
    """Implements `ports.Feed`."""

    def __init__(self) -> None:
        self._recent: Deque[Entry] = deque(maxlen=KEPT)
        self._watchers: List[Watcher] = []

    def publish(self, changes: Sequence[Change]) -> None:
        """Called after each commit with what it held."""
        for change in changes:
            if isinstance(change, Publish) and change.stream == "events":
                entry = {
                    "time": change.time_wall,
                    "type": change.type,
                    "subject": change.subject,
                    "data": change.data,
                }
                self._recent.append(entry)
                for watcher in tuple(self._watchers):
                    watcher(entry)

    def recent(self, limit: int) -> Sequence[Entry]:
        """The newest `limit` entries, oldest first."""
        return list(self._recent)[-limit:] if limit > 0 else []

    @property
    def watchers(self) -> int:
        """How many watch now."""
        return len(self._watchers)

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Call `watcher` with every new entry, until the returned function is called (once)."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)
