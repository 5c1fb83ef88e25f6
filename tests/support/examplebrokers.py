"""Brokers with the very files of docs/examples/brokers: only port and folders are others.

`permissions(kind)` reads who may do what out of those files: user -> (destinations read, destinations written).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Set, Tuple

from tests.support.brokers import ActiveMQ, RabbitMQ

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples" / "brokers"
PORT = "61614"
FOLDER = "/etc/rabbitmq/"
SITE = "vmagent.EXAMPLE"
HOSTS = ("wn001.example.org", "wn002.example.org")
PEOPLE = ("portal", "operator", "monitoring", "collector")
QUEUES = ("wn001.example.org.commands", "wn002.example.org.commands", "usage", "replies", "replies.portal",
          "replies.check_vm_creation", "replies.collector")
TOPICS = ("commands", "events", "capacity", "telemetry")
DESTINATIONS = (*(f"/queue/{SITE}.{one}" for one in QUEUES), *(f"/topic/{SITE}.{one}" for one in TOPICS))
Rights = Mapping[str, Tuple[Set[str], Set[str]]]


class ExampleRabbitMQ(RabbitMQ):
    """TLS only; the certificate says who one is."""

    def __init__(self, directory: Path, certificates: Path) -> None:
        super().__init__(directory)
        self.port = self.tls_port
        tls = directory / "tls"
        tls.mkdir()
        for name, source in (("ca.pem", "ca.pem"), ("broker.pem", "localhost.pem"), ("broker.key", "localhost.key")):
            shutil.copy(certificates / source, tls / name)
        for path in (EXAMPLES / "rabbitmq").iterdir():
            text = path.read_text(encoding="utf-8").replace(FOLDER, f"{directory}/")
            text = text.replace(f"= {PORT}", f"= {self.port}")
            (directory / path.name).write_text(text, encoding="utf-8")

    def ctl(self, line: str) -> subprocess.CompletedProcess[str]:
        """`rabbitmqctl ...` against this broker."""
        tool = next(Path(self._command()[0]).parent.glob("rabbitmqctl"))
        words = line.split()
        assert words[0] == "rabbitmqctl", line
        return subprocess.run(["sh", "-c", f"{tool} {line[len(words[0]):]}"], env=self._environment(), text=True,
                              capture_output=True, check=False, timeout=60)


class ExampleActiveMQ(ActiveMQ):
    """TLS only; the certificate says who one is.  The stores are made as brokers.md says."""

    def __init__(self, directory: Path, certificates: Path) -> None:
        super().__init__(directory)
        self.port = self.tls_port
        for path in (EXAMPLES / "activemq").iterdir():
            text = path.read_text(encoding="utf-8").replace(f":{PORT}?", f":{self.port}?")
            (directory / path.name).write_text(text, encoding="utf-8")
        for name in ("ca.pem", "localhost.pem", "localhost.key"):
            shutil.copy(certificates / name, directory / name.replace("localhost", "broker"))

    @property
    def tls_url(self) -> str:
        return f"stomp+ssl://localhost:{self.tls_port}"

    def shell(self, lines: Sequence[str]) -> None:
        """Run these in the folder of the broker's configuration."""
        for line in lines:
            done = subprocess.run(["sh", "-c", line], cwd=self.directory, text=True, capture_output=True, check=False,
                                  timeout=60)
            assert done.returncode == 0, line + done.stdout + done.stderr

    def _command(self) -> List[str]:
        java, *rest = super()._command()
        return [java, f"-Djava.security.auth.login.config={self.directory}/login.config", *rest]


# ---- who may do what, out of the files


def permissions(kind: str) -> Rights:
    return {"rabbitmq": _rabbitmq, "activemq": _activemq, "artemis": _artemis}[kind]()


def _rabbitmq() -> Rights:
    said = json.loads((EXAMPLES / "rabbitmq" / "vmagent.json").read_text(encoding="utf-8"))
    topics = {row["user"]: row for row in said["topic_permissions"] if row["exchange"] == "amq.topic"}
    found: Dict[str, Tuple[Set[str], Set[str]]] = {}
    for row in said["permissions"]:
        user = row["user"]

        def may(right: str, name: str, row: Mapping[str, Any] = row) -> bool:
            return re.search(row[right], name) is not None

        def may_topic(right: str, name: str, row: Mapping[str, Any] = topics[user]) -> bool:
            return re.search(row[right], name) is not None

        reads, writes = set(), set()
        for destination in DESTINATIONS:
            _, kind, name = destination.split("/")
            if kind == "queue":  # a SEND declares the queue first
                reads |= {destination} if may("configure", name) and may("read", name) else set()
                writes |= {destination} if may("configure", name) and may("write", "amq.default") else set()
            else:
                reads |= {destination} if may("read", "amq.topic") and may_topic("read", name) else set()
                writes |= {destination} if may("write", "amq.topic") and may_topic("write", name) else set()
        # Who reads a queue must declare it, too: it then may write to it.  That is RabbitMQ's, not what is wanted.
        found[user] = reads, writes - {each for each in reads if each.startswith("/queue/")}
    return found


def _groups(path: Path) -> Mapping[str, Set[str]]:
    """user -> the groups that it is in."""
    found: Dict[str, Set[str]] = {user: set() for user in (*HOSTS, *PEOPLE)}
    for line in path.read_text(encoding="utf-8").splitlines():
        group, equals, users = line.partition("=")
        if equals and not line.startswith("#"):
            for user in users.split(","):
                found[user.strip()].add(group.strip())
    return found


def _of_groups(rows: Iterable[Tuple[str, str, str]], groups: Mapping[str, Set[str]]) -> Rights:
    """rows: (destination, groups that read, groups that write)."""
    found: Dict[str, Tuple[Set[str], Set[str]]] = {user: (set(), set()) for user in groups}
    for destination, *rights in rows:
        for user, member_of in groups.items():
            for which, allowed in enumerate(rights):
                if member_of & set(allowed.split(",")):
                    found[user][which].add(destination)
    return found


def _activemq() -> Rights:
    tree = xml.parse(EXAMPLES / "activemq" / "activemq.xml")
    rows = []
    for entry in tree.iter("{http://activemq.apache.org/schema/core}authorizationEntry"):
        kind = "queue" if "queue" in entry.attrib else "topic"
        rows.append((f"/{kind}/{entry.attrib[kind]}", entry.attrib["read"], entry.attrib["write"]))
    return _of_groups(rows, _groups(EXAMPLES / "activemq" / "groups.properties"))


def _artemis() -> Rights:
    tree = xml.parse(EXAMPLES / "artemis" / "broker.xml")
    name = "{urn:activemq:core}"
    rows = []
    for setting in tree.iter(f"{name}security-setting"):
        of = {one.attrib["type"]: one.attrib["roles"] for one in setting.iter(f"{name}permission")}
        kind = "topic" if "createNonDurableQueue" in of else "queue"  # a subscription's own queue
        rows.append((f"/{kind}/{setting.attrib['match']}", of["consume"], of["send"]))
    return _of_groups(rows, _groups(EXAMPLES / "artemis" / "cert-roles.properties"))
