"""A site around a booted host: a broker out here, a CA, a controller that signs, a collector that listens.

The host reaches our loopback at 10.0.2.2 (QEMU's user network), so the broker is a real one with a port of its own.
Commands go out by `vmagent-site`, as a controller's would; what hosts publish is heard by a plain STOMP client.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping

from tests.support import bootedagent
from tests.support.agent import HOST, SITE, Controller
from tests.support.bootedhost import BootedHost
from tests.support.brokers import RabbitMQ
from tests.support.package import ROOT
from vmagent.site import pki

OUTSIDE = "10.0.2.2"
OWNER = {"subject": "/DC=org/DC=example/CN=A User", "fqan": "/vo.example/Role=NULL"}
COMMAND_S = 400  # a start in an emulated host on a busy machine
SKEW_S = 30  # for so long after a store was restored commands are refused


class BootedSite:
    """Close it when done."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        now = datetime.datetime.now(datetime.timezone.utc)
        pki.init(folder, "vmagent test CA", now)
        pki.issue(folder, "controller", "client", now)
        (folder / "rabbitmq").mkdir()
        self.broker = RabbitMQ(folder / "rabbitmq")
        self.broker.start()
        (folder / "passcode").write_text("guest")
        (folder / "site.yaml").write_text(json.dumps({
            "site": SITE, "profile": "rabbitmq", "urls": [self.broker.url], "login": "guest",
            "passcode_file": "passcode", "key": "controller.key", "chain": "controller.pem", "owner": OWNER,
            "replies": f"/queue/vmagent.{SITE}.replies.booted",
        }))  # fmt: skip
        self.collector = Controller(self.broker.port, (folder / "controller.key").read_bytes(),
                                    (folder / "controller.pem").read_bytes())  # fmt: skip

    def close(self) -> None:
        self.collector.close()
        self.broker.stop()

    def admit(self, host: BootedHost, **members: Any) -> None:
        """Configure the agent that is installed there as one of this site's: broker, CA, who may do what; members:
        other parts of its configuration.
        """
        place = "/etc/vmagent/site"
        files = {f"{place}/{name}": (self._folder / name).read_bytes() for name in ("ca.pem", "ca.crl")}
        host.put({**files, "/etc/vmagent/passcode": b"guest"})
        host.sh(f"chmod 600 /etc/vmagent/passcode && chown {bootedagent.user(host)} /etc/vmagent/passcode")
        bootedagent.configure(host, {
            "host": HOST, "site": SITE,
            "broker": {"profile": "rabbitmq", "urls": [f"stomp://{OUTSIDE}:{self.broker.port}"], "login": "guest",
                       "passcode_file": "/etc/vmagent/passcode", "reconnect_max_s": 2},
            "security": {"ca_directory": place, "clock_skew_s": SKEW_S,
                         "authority": [{"signer": "CN=controller", "verbs": ["*"], "scope": "all"}]},
            **members,
        })  # fmt: skip

    def command(self, *words: str) -> Mapping[str, Any]:
        """One command of vmagent-site's, which must work; its answer."""
        argv = [sys.executable, "-m", "vmagent.site", "--config", str(self._folder / "site.yaml"), *words, "--json"]
        done = subprocess.run(argv, cwd=ROOT, env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True,
                              text=True, timeout=COMMAND_S, check=False)  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.returncode}: {done.stdout} {done.stderr[-3000:]}"
        answer: Dict[str, Any] = json.loads(done.stdout)
        return answer

    def published(self, vm: str) -> List[Mapping[str, Any]]:
        """Every state of the VM that came so far, oldest first."""
        return self.collector.states(vm)
