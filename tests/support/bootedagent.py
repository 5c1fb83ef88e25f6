"""The package on a booted host: installed, configured for one bridge and one tiny image, asked by vmagentctl.

No broker answers there: the local socket is the way in, and what the agent holds it holds without anybody outside.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, List

from tests.support import bootsector
from tests.support.bootedhost import BootedHost
from tests.support.package import build

BRIDGE = "br0"
INSTANCE = "vma"
TABLE = f"vmagent_{INSTANCE}"
SUBNET = "10.77.0"
HOLD_S = 3
CAP = 40
RATE = "20mbit"
IMAGE = bootsector.BUSY.ljust(bootsector.DISK_BYTES, b"\0")
ASK = b"""import json, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect("/run/vmagent/vmagent.sock")
link.sendall(sys.argv[1].encode() + b"\\n")
for line in link.makefile():
    print(line, end="")
    if not json.loads(line).get("more"):
        break
"""  # vmagentctl's own imports take seconds in there
CONFIG = {
    "site": "TEST", "host": "booted.test.example.org", "instance": INSTANCE,
    "broker": {"urls": ["stomp://127.0.0.1:61613"]},
    "security": {"commands": "broker"},
    "networks": {"public": {"bridge": BRIDGE, "addressing": "controller", "subnets": [f"{SUBNET}.0/24"]}},
    "flavours": {"tiny": {"cores": 1, "memory_mib": 32, "disk_gib": 1, "cpu_cap_core_percent": CAP}},
    "images": {"catalogue": {"busy": {
        "file": "busy.raw", "format": "raw", "sha512": hashlib.sha512(IMAGE).hexdigest()}}},
    "limits": {"cores": 2, "memory_mib": 256, "disk_gib": 2, "lifetime_s": 3600, "count": 4},
    "capacity": {"reserved_memory_mib": 256, "disk_floor_gib": 1},
    "hypervisor": {"emulation": "allow"},
    "intervals": {"hold_s": HOLD_S},
}  # fmt: skip


def install(host: BootedHost) -> None:
    """As an administrator would: the package, a configuration, an image, a bridge.  Once per host."""
    if host.run("rpm -q vmagent").code == 0:
        return
    with tempfile.TemporaryDirectory() as folder:
        built = build(Path(folder))
        host.put({f"/var/tmp/{name}.rpm": built[name].read_bytes() for name in ("python3-vmagent", "vmagent")})
    host.sh("rpm -i --nodeps /var/tmp/python3-vmagent.rpm /var/tmp/vmagent.rpm", 120)
    host.sh("systemctl -q disable vmagent vmagent-guard", 120)
    host.put({"/etc/vmagent/vmagent.yaml": json.dumps(CONFIG).encode(), "/var/lib/vmagent/images/busy.raw": IMAGE})
    host.put({
        f"/etc/systemd/network/{BRIDGE}.netdev": f"[NetDev]\nName={BRIDGE}\nKind=bridge\n".encode(),
        f"/etc/systemd/network/{BRIDGE}.network":
            f"[Match]\nName={BRIDGE}\n[Network]\nAddress={SUBNET}.1/24\nConfigureWithoutCarrier=yes\n".encode(),
    })  # fmt: skip
    host.put({"/var/tmp/ask.py": ASK})
    host.sh("networkctl reload")
    host.until(f"ip -br addr show dev {BRIDGE} | grep -q {SUBNET}.1/", 20, "the bridge")
    host.sh("vmagent --check-config")


def ask(host: BootedHost, verb: str, **args: Any) -> Any:
    """The answer to one query on the local socket; of a stream, all its parts."""
    line = json.dumps({"id": 1, "verb": verb, "args": args})
    answers = [json.loads(line) for line in host.sh(f"python3 -IS /var/tmp/ask.py {shlex.quote(line)}").splitlines()]
    assert all("result" in each for each in answers), answers
    return answers[0]["result"] if len(answers) == 1 else [each["result"] for each in answers[:-1]]


def events(host: BootedHost, kind: str) -> List[Any]:
    """The data of the events of this kind so far, oldest first."""
    found = ask(host, "events", limit=500)
    return [event["data"] for event in found if event["type"] == f"org.vmagent.{kind}"]


def wait(host: BootedHost, condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Until it is so, asking once a second: a question costs that host as much as a second of work."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            log = host.sh("journalctl -b -u vmagent -o cat | grep -v 'no link' | tail -30")
            raise AssertionError(f"not within {seconds:.0f} s: {what}\n{log}")
        time.sleep(1.0)
