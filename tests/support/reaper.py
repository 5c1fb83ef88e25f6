"""Runs a command and, as long as that runs, buries whatever it orphans: `reaper.py COMMAND [ARGUMENT ...]`.

Theory.  libvirt waits for a QEMU to be gone, and a QEMU is a daemon: it is gone when the process that orphans go to has
waited for it.  systemd does so at once; the first process of a container may take two seconds for each guest.  So this
one asks for the orphans below it (PR_SET_CHILD_SUBREAPER, prctl(2)).  It passes SIGINT and SIGTERM on, ends as the
command does, and takes the command with it when it is killed.  It needs nothing but Python and Linux.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


def _with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    command = subprocess.Popen(sys.argv[1:], preexec_fn=_with_parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os.kill(command.pid, number))
    while True:
        pid, status = os.wait()
        if pid == command.pid:
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


if __name__ == "__main__":
    sys.exit(main())
