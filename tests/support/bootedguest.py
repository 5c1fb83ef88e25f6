"""A guest that speaks, in a booted host: whether it is the very same one, and whether it still answers.

Nothing here asks the agent: a guest must go on whatever becomes of it.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.support.bootedhost import BootedHost

ANSWER_S = 60.0
SPEAK = b"""import os, select, subprocess, sys, time, tty
path = subprocess.check_output(["virsh", "-q", "ttyconsole", sys.argv[1]], text=True).strip()
line = os.open(path, os.O_RDWR | os.O_NOCTTY)
tty.setraw(line)
while select.select([line], [], [], 0)[0]:
    os.read(line, 4096)  # what was said before we asked
os.write(line, b"k")
heard, end = b"", time.monotonic() + float(sys.argv[2])
while b"k" not in heard or heard.count(b".") < 3:
    if time.monotonic() > end:
        sys.exit(f"it says {heard!r}")
    if select.select([line], [], [], 1)[0]:
        heard += os.read(line, 512)
"""


class Same(NamedTuple):
    """What changes when a guest is another one: `was == now` is the proof that nothing happened to it."""

    domain: str  # libvirt's number, new at each start
    pid: str
    began: str  # of QEMU, clock ticks since boot: a pid may be given again


def same(host: BootedHost, name: str) -> Same:
    """Of the domain of this name, which must run."""
    domain = host.sh(f"virsh -q domid {name}").strip()
    pid = host.sh(f"pgrep -f -- '^[^ ]*qemu.* guest={name},'").strip()
    return Same(domain, pid, host.sh(f"cut -d' ' -f22 /proc/{pid}/stat").strip())


def answers(host: BootedHost, name: str) -> None:
    """It says back what is said to it, and goes on with its dots."""
    host.put({"/var/tmp/speak.py": SPEAK})
    done = host.run(f"python3 -IS /var/tmp/speak.py {name} {ANSWER_S:.0f}", ANSWER_S + 60)
    if done.code:
        state = host.run(f"virsh -q domstate --reason {name}; journalctl -b -u vmagent -o cat | tail -30").text
        raise AssertionError(f"{done.text}\n{state}")
