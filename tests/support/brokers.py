"""Real brokers on private ports with private data, run by process id and ended afterwards.

`kill()` is `kill -9`; `start()` again finds the same data.  Each instance is independent of the machine's own service.
"""

from __future__ import annotations

import abc
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Dict, Iterator, List, Optional, TypeVar

from vmagent.config import Tls

RABBIT_HOME = Path("/usr/lib/rabbitmq")
ACTIVEMQ_JAR = Path("/usr/share/java/activemq-run.jar")
ACTIVEMQ_HOME = Path("/usr/share/activemq")
ACTIVEMQ_STOMP = Path("/usr/share/java/activemq-stomp.jar")
START_S = 90.0
B = TypeVar("B", bound="_Broker")


def free_ports(count: int) -> List[int]:
    """As many, each another one: held together, for the kernel may give one that was let go at once again."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(each.getsockname()[1]) for each in sockets]


class _Broker(abc.ABC):
    """A process group of our own that listens on `port`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port, self.tls_port, self._epmd_port, self._node_port = free_ports(4)
        self._processes: List[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return f"stomp://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._run(*self._command(), env=self._environment())
        deadline = time.monotonic() + START_S
        while not self._listens():
            if time.monotonic() > deadline or self._processes[-1].poll() is not None:
                raise AssertionError(f"the broker did not start: {self.output()}")
            time.sleep(0.1)

    def alive(self) -> bool:
        return self._listens()

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        process = self._processes.pop()
        with contextlib.suppress(ProcessLookupError):  # it ended by itself: what stands beside it must end all the same
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        while self._processes:
            self.kill()

    def keeps(self, queue: str) -> bool:
        """Whether this queue would outlive `kill`."""
        return True

    def output(self) -> str:
        return (self.directory / "out").read_text("utf-8", "replace")[-3000:]

    @abc.abstractmethod
    def _command(self) -> List[str]: ...

    @abc.abstractmethod
    def _environment(self) -> Dict[str, str]: ...

    def _run(self, *command: str, env: Dict[str, str]) -> None:
        with (self.directory / "out").open("ab") as out:
            self._processes.append(
                subprocess.Popen(
                    command, env=env, cwd=self.directory, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


class RabbitMQ(_Broker):
    """Login guest, passcode guest; with `tls` also a TLS listener that demands a client certificate."""

    profile = "rabbitmq"

    def __init__(self, directory: Path, tls: Optional[Tls] = None) -> None:
        super().__init__(directory)
        lines = ["listeners.tcp = none", f"stomp.listeners.tcp.1 = 127.0.0.1:{self.port}"]
        if tls is not None:
            lines += [
                f"stomp.listeners.ssl.1 = 127.0.0.1:{self.tls_port}",
                f"ssl_options.cacertfile = {tls.ca}",
                f"ssl_options.certfile = {tls.certificate}",
                f"ssl_options.keyfile = {tls.key}",
                "ssl_options.verify = verify_peer",
                "ssl_options.fail_if_no_peer_cert = true",
            ]
        (directory / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (directory / "enabled_plugins").write_text("[rabbitmq_stomp].\n")

    @staticmethod
    def installed() -> bool:
        return next(RABBIT_HOME.glob("lib/*/sbin/rabbitmq-server"), None) is not None

    @property
    def tls_url(self) -> str:
        return f"stomp+ssl://localhost:{self.tls_port}"

    def keeps(self, queue: str) -> bool:
        """RabbitMQ writes down that there is a new queue up to two seconds later, whatever it gave a receipt for until
        then: killed before, it forgets the queue, and its messages with it.
        """
        name = queue.rsplit("/", 1)[-1].encode()
        places = ("LATEST.LOG", "rabbit_durable_queue.DC*")
        return any(name in path.read_bytes() for each in places for path in self.directory.glob(f"mnesia/*/{each}"))

    def start(self) -> None:
        """With an epmd of our own in front, so that none is left behind."""
        if not self._processes:
            self._run("epmd", "-port", str(self._epmd_port), env=self._environment())
        super().start()

    def _command(self) -> List[str]:
        return [str(next(RABBIT_HOME.glob("lib/*/sbin/rabbitmq-server")))]

    def _environment(self) -> Dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin"),
            "HOME": str(self.directory),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": f"vma{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._node_port),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        }


class ActiveMQ(_Broker):
    """ActiveMQ Classic with KahaDB; no login."""

    profile = "activemq"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        (directory / "lib").mkdir()
        if not (ACTIVEMQ_HOME / "lib" / ACTIVEMQ_STOMP.name).exists():
            (directory / "lib" / ACTIVEMQ_STOMP.name).symlink_to(ACTIVEMQ_STOMP)
        (directory / "activemq.xml").write_text(
            f"""<beans xmlns="http://www.springframework.org/schema/beans"
 xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
 xsi:schemaLocation="http://www.springframework.org/schema/beans
  http://www.springframework.org/schema/beans/spring-beans.xsd
  http://activemq.apache.org/schema/core http://activemq.apache.org/schema/core/activemq-core.xsd">
<broker xmlns="http://activemq.apache.org/schema/core" brokerName="vma" dataDirectory="{directory}/data" useJmx="false">
 <persistenceAdapter><kahaDB directory="{directory}/data/kahadb" journalMaxFileLength="4mb"/></persistenceAdapter>
 <transportConnectors><transportConnector name="stomp" uri="stomp://127.0.0.1:{self.port}"/></transportConnectors>
</broker></beans>
"""
        )

    @staticmethod
    def installed() -> bool:
        return ACTIVEMQ_JAR.exists() and ACTIVEMQ_STOMP.exists() and shutil.which("java") is not None

    def _command(self) -> List[str]:
        here = self.directory
        places = {"home": ACTIVEMQ_HOME, "base": here, "data": here / "data", "conf": here}
        return [
            "java",
            *("-Xms64m", "-Xmx256m", "-XX:TieredStopAtLevel=1", f"-Djava.io.tmpdir={here}"),
            *(f"-Dactivemq.{name}={path}" for name, path in places.items()),
            *("-cp", str(ACTIVEMQ_JAR), "org.apache.activemq.console.Main"),
            *("start", f"xbean:file:{here}/activemq.xml"),
        ]

    def _environment(self) -> Dict[str, str]:
        return {"PATH": os.environ.get("PATH", "/usr/bin")}


@contextlib.contextmanager
def started(broker: B) -> Iterator[B]:
    """It runs meanwhile; nothing of it is left afterwards, also when it does not come up."""
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()
