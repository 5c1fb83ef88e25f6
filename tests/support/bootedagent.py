"""The package on a booted host: installed, configured for one bridge and two tiny images, asked by vmagentctl.

By itself no broker answers there: the local socket is the way in, and what the agent holds it holds without anybody
outside.  tests/support/bootedsite.py puts a site around it.  Which user the agent is, the unit says.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shlex
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping

import vmagent
from tests.support import bootsector
from tests.support.bootedhost import BootedHost
from tests.support.package import build, copied

BRIDGE = "br0"
INSTANCE = "vma"
TABLE = f"vmagent_{INSTANCE}"
SUBNET = "10.77.0"
HOLD_S = 3
RPM_S = 300.0  # what the package compiles takes a minute in there, three on a busy machine
CAP = 40
RATE = "20mbit"
IMAGES = {name: code.ljust(bootsector.DISK_BYTES, b"\0")
          for name, code in (("busy", bootsector.BUSY), ("speaks", bootsector.SPEAKS))}  # fmt: skip
PACKAGES = ("python3-vmagent", "vmagent")
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
    "images": {"catalogue": {
        name: {"file": f"{name}.raw", "format": "raw", "sha512": hashlib.sha512(content).hexdigest()}
        for name, content in IMAGES.items()}},
    "limits": {"cores": 2, "memory_mib": 256, "disk_gib": 2, "lifetime_s": 3600, "count": 4},
    "capacity": {"reserved_memory_mib": 256, "disk_floor_gib": 1},
    "hypervisor": {"emulation": "allow"},
    "intervals": {"hold_s": HOLD_S},
}  # fmt: skip


@functools.cache
def built(version: str = "") -> Mapping[str, bytes]:
    """The two packages that such a host needs, of this checkout; version: as if it had another number."""
    with tempfile.TemporaryDirectory() as folder:
        checkout = copied(Path(folder) / "checkout")
        if version:
            place = checkout / "vmagent/__init__.py"
            place.write_text(place.read_text().replace(f'"{vmagent.__version__}"', f'"{version}"'))
        made = build(Path(folder) / "made", checkout)
        return {name: made[name].read_bytes() for name in PACKAGES}


def rpm(host: BootedHost, how: str, version: str = "") -> str:
    """Install or upgrade (`rpm HOW`) to these packages; what rpm said."""
    where = f"/var/tmp/rpm-{version}"
    host.put({f"{where}/{name}.rpm": content for name, content in built(version).items()})
    return host.sh(f"rpm {how} --nodeps {' '.join(f'{where}/{name}.rpm' for name in PACKAGES)}", RPM_S)


def bridge(host: BootedHost) -> None:
    """The bridge that guests are plugged into: the administrator's, never ours."""
    host.put({
        f"/etc/systemd/network/{BRIDGE}.netdev": f"[NetDev]\nName={BRIDGE}\nKind=bridge\n".encode(),
        f"/etc/systemd/network/{BRIDGE}.network":
            f"[Match]\nName={BRIDGE}\n[Network]\nAddress={SUBNET}.1/24\nConfigureWithoutCarrier=yes\n".encode(),
    })  # fmt: skip
    host.sh("networkctl reload")
    host.until(f"ip -br addr show dev {BRIDGE} | grep -q {SUBNET}.1/", 20, "the bridge")


def configure(host: BootedHost, changes: Mapping[str, Any] = {}) -> None:  # noqa: B006 - never written to
    """What stands in the installed package's configuration (CONFIG but for `changes`), and the images that it names."""
    files: Dict[str, bytes] = {f"/var/lib/vmagent/images/{name}.raw": content for name, content in IMAGES.items()}
    host.put({**files, "/etc/vmagent/vmagent.yaml": json.dumps({**CONFIG, **changes}).encode(), "/var/tmp/ask.py": ASK})
    host.sh("vmagent --check-config")


def install(host: BootedHost) -> None:
    """As an administrator would: the package, a configuration, an image, a bridge.  Once per host."""
    if host.run("rpm -q vmagent").code == 0:
        return
    rpm(host, "-i")
    host.sh("systemctl -q disable vmagent vmagent-guard", 120)
    bridge(host)
    configure(host)


def user(host: BootedHost) -> str:
    """Whom the unit names."""
    return host.sh("systemctl show -p User --value vmagent.service").strip() or "root"


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
