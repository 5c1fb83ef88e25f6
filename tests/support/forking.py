"""Our commands without the second that Python takes to import them: one process that has, and forks for each.

As a program it reads lines of JSON ({"name", "argv", "output", "folder"}), and for each writes {"pid"} and at its end
{"pid", "code"}.  Nothing of Twisted's reactor is in it: each child gets its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional

ROOT = Path(__file__).resolve().parents[2]


class Done(NamedTuple):
    """What became of a command.  text: both of its outputs, as they came."""

    code: int
    text: str


class Commands:
    """From construction to `close`.  folder: where they run, and their home."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forking"], cwd=ROOT, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder), "COLUMNS": "200"},
        )

    def run(self, name: str, argv: List[str], until: Optional[Callable[[int, Path], object]] = None,
            ended_by: int = signal.SIGINT) -> Done:
        """To its end; with `until(pid, output)`, until that has come back, and then by this signal."""
        self._number += 1
        output = self._folder / f"output-{self._number}"
        output.touch()
        assert self._process.stdin is not None
        job = {"name": name, "argv": argv, "output": str(output), "folder": str(self._folder)}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        pid = self._said()["pid"]
        if until is not None:
            try:
                until(pid, output)
            finally:
                os.kill(pid, ended_by)
        code = self._said()["code"]
        return Done(code, output.read_text(encoding="utf-8", errors="replace"))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)

    def _said(self) -> Mapping[str, Any]:
        assert self._process.stdout is not None
        said: Mapping[str, Any] = json.loads(self._process.stdout.readline())
        return said


def mains() -> Dict[str, Callable[[List[str]], int]]:
    """Entry points by the names of the commands."""
    from vmagent.__main__ import main as agent
    from vmagent.export.check_vmagent import main as check
    from vmagent.local.ctl import main as ctl
    from vmagent.site.__main__ import main as site
    from vmagent.site.check_vm_creation import main as creation

    return {"vmagent": agent, "vmagentctl": ctl, "vmagent-site": site, "check_vmagent": check,
            "check_vm_creation": creation}


def child(main: Callable[[List[str]], int], job: Mapping[str, Any]) -> None:
    """Never returns."""
    code = 70
    try:
        os.chdir(job["folder"])
        output = os.open(job["output"], os.O_WRONLY | os.O_APPEND)
        for number, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
            os.dup2(source, number)
        code = int(main(list(job["argv"])))
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    except KeyboardInterrupt:
        code = 130
    except Exception:  # noqa: BLE001 - a child never goes on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    known = mains()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(known[job["name"]], job)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    serve()
