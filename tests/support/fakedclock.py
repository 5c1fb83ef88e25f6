"""A wall clock that a test can step under an agent's feet, by libfaketime; the boot clock goes on as it does."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Dict

from tests.support.agent import Agent
from vmagent.core import walltime

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


class WallClock:
    """ahead_s: how far the agent's wall clock is ahead of the machine's; whole seconds."""

    def __init__(self, folder: Path) -> None:
        assert LIBRARY is not None, "the package faketime is missing"
        self._stamp = folder / "faketime"
        self.ahead_s = 0
        self.step(0)

    def start(self, agent: Agent) -> None:
        """An agent that lives by this clock."""
        env = {"LD_PRELOAD": str(LIBRARY), "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1",
               "FAKETIME_TIMESTAMP_FILE": str(self._stamp)}
        agent.start(env=env)
        assert agent.process is not None
        for left in Path("/dev/shm").glob(f"*faketime_s*_{agent.process.pid}"):  # a killed process would leave them
            left.unlink()

    def step(self, seconds: int) -> None:
        self.ahead_s += seconds
        fresh = self._stamp.with_suffix(".new")
        fresh.write_text(f"{self.ahead_s:+d}s\n")
        os.replace(fresh, self._stamp)

    def now(self) -> float:
        return time.time() + self.ahead_s

    def members(self) -> Dict[str, Any]:
        """Of a command that this clock takes for fresh."""
        return {"issued_at": walltime.text(self.now()), "valid_until": walltime.text(self.now() + 3600)}
