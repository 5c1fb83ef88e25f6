"""Run a foreign program: arguments as a list, text on stdin, standard output back.  Blocking: for lanes' threads only.

Rules

1. No shell, a fixed environment (`LC_ALL=C`, a system PATH), files made by the child are private to its user.
2. A deadline: when it passes, the child's whole process group is killed and the outcome is unknown.
3. A bound on what the child may say.  A child that says more is killed.
4. What reads somebody else's data (a guest's image) also gets limits on memory and CPU time, set before its program
   is loaded, and none of the agent's capabilities (an agent that is root cannot take them away); and it ends with the
   thread that waits for it, so `kill -9` of the agent leaves none behind.
5. A failure is a Fault: UNKNOWN past the deadline, REFUSED when it is not installed, says too much or exits with an
   error (`ChildFailed`).  Its own words are for people; nobody decides on them.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

from vmagent.errors import Fault, FaultKind

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LONGEST_OUTPUT = 16 * 2**20  # bytes
LONGEST_COMPLAINT = 2000  # bytes of stderr kept
_CHUNK = 65536
_DYING_S = 1.0  # a killed child that takes longer (state D) is left to itself


@dataclass(frozen=True)
class Limits:
    """For a child that reads what a guest or an image wrote."""

    memory_mib: int  # address space
    cpu_s: int
    file_bytes: int = 0  # that any one file it writes may have; 0 = not limited
    before: Tuple[str, ...] = ()  # words in front of the program, such as `unshare --net --`


class ChildFailed(Fault):
    """The program ran and exited with an error; `status` is its exit status, negative for a signal."""

    def __init__(self, program: str, status: int, complaint: str) -> None:
        super().__init__(FaultKind.REFUSED, f"{program} failed ({status}): {complaint or 'it said nothing'}")
        self.status = status
        self.complaint = complaint


def run(
    argv: Sequence[str],
    deadline_s: float,
    stdin: bytes = b"",
    limits: Optional[Limits] = None,
    longest: int = LONGEST_OUTPUT,
) -> bytes:
    """Standard output of `argv`.  deadline_s: more than 0; longest: bytes of output allowed.  Faults: rule 5."""
    deadline = time.monotonic() + deadline_s
    child = _start(argv, stdin, limits)
    try:
        output, complaint = _listen(child, deadline, longest)
        _wait(child, deadline)
    except subprocess.TimeoutExpired:
        raise Fault(FaultKind.UNKNOWN, f"{argv[0]}: no end within {deadline_s:g} s") from None
    except _TooMuch:
        raise Fault(FaultKind.REFUSED, f"{argv[0]}: said more than {longest} bytes") from None
    finally:
        _end(child)
    if child.returncode != 0:
        raise ChildFailed(argv[0], child.returncode, complaint.decode("utf-8", "replace").strip())
    return output


class _TooMuch(Exception):
    """More output than was allowed."""


def _start(argv: Sequence[str], stdin: bytes, limits: Optional[Limits]) -> subprocess.Popen[bytes]:
    if shutil.which(argv[0], path=PATH) is None:
        raise Fault(FaultKind.REFUSED, f"{argv[0]} is not installed")
    with os.fdopen(os.memfd_create("stdin"), "w+b") as text:
        text.write(stdin)
        text.seek(0)
        try:
            return subprocess.Popen(
                _limited(argv, limits),
                stdin=text,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env={"PATH": PATH, "LC_ALL": "C"},
                start_new_session=True,
                umask=0o077,
            )
        except OSError as error:
            raise Fault(FaultKind.BUSY, f"{argv[0]} cannot be started: {error.strerror}") from error


def _limited(argv: Sequence[str], limits: Optional[Limits]) -> List[str]:
    """Set by programs in front of it: no Python runs between fork and exec of a threaded process."""
    if limits is None:
        return list(argv)
    words = ["setpriv", "--pdeathsig", "KILL", "--inh-caps=-all", "--ambient-caps=-all", "--", "prlimit", "--core=0"]
    words += [f"--as={limits.memory_mib * 2**20}", f"--cpu={limits.cpu_s}"]
    if limits.file_bytes:
        words.append(f"--fsize={limits.file_bytes}")
    return [*words, "--", *limits.before, *argv]


def _listen(child: subprocess.Popen[bytes], deadline: float, longest: int) -> Tuple[bytes, bytes]:
    """Standard output and what is kept of standard error, once both are closed."""
    assert child.stdout is not None and child.stderr is not None
    said = {child.stdout.fileno(): bytearray(), child.stderr.fileno(): bytearray()}
    output, complaint = said.values()
    with selectors.DefaultSelector() as selector:
        for each in said:
            selector.register(each, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(child.args, 0)
            for key, _ in selector.select(left):
                chunk = os.read(key.fd, _CHUNK)
                if not chunk:
                    selector.unregister(key.fd)
                said[key.fd] += chunk
            if len(output) > longest:
                raise _TooMuch
            del complaint[LONGEST_COMPLAINT:]
    return bytes(output), bytes(complaint)


def _wait(child: subprocess.Popen[bytes], deadline: float) -> None:
    """Its end, without polling: Popen.wait with a time-out sleeps and looks, sleeps and looks."""
    handle = os.pidfd_open(child.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(handle, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise subprocess.TimeoutExpired(child.args, 0)
    finally:
        os.close(handle)
    child.wait()


def _end(child: subprocess.Popen[bytes]) -> None:
    """Nothing of it stays: not its pipes, nor anything in its process group."""
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_DYING_S)
