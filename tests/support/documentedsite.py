"""The site of the documents, and their commands of ours, run as they stand there.

EXAMPLE, wn001.example.org, el9-worker, worker-7, batch-4711: `prepared` writes the files that they name.  What needs a
guest is for tests/real/test_documented_commands.py, all else for tests/broker/test_documented_commands.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Tuple

import psutil

from tests.support import documented, envelopes
from tests.support.agent import Agent
from tests.support.documented import Line
from tests.support.forking import Commands, Done
from tests.support.waiting import until
from tests.unit.test_docs import PARSERS
from vmagent.local.ctl_parser import VERBS_ON_VMS

HOST, SITE = "wn001.example.org", "EXAMPLE"
VM = "worker-7"
START = ["start", "--owner", "/DC=org/DC=example/CN=A User", "--image", "el9-worker", "--flavour", "small",
         "--lifetime", "2h", "--network", "public", "--name", VM, "--tag", "batch-4711"]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO3B0yC6l0yX8pQ3ZVtCzXb5b7m8m7l6pY8m4bJ8m2bJ me@example.org"
OF_IMAGES = "docs/operations/images.md"
CHOOSING = {"limits", *(name for name, _, _ in VERBS_ON_VMS)}  # without a VM they mean nothing, which no parser says
LINKS = "net_connections" if hasattr(psutil.Process, "net_connections") else "connections"  # before psutil 6
NEEDS_A_VM = ("worker-7", "batch-4711", "3fa1", "5fb4f6cc", "--owned-by", "--all --yes")
ENDLESS = {
    "vmagentctl events -f": signal.SIGINT, "vmagentctl top": signal.SIGINT, "vmagent-site watch": signal.SIGINT,
    "vmagent-site top": signal.SIGINT, "vmagent-site collect": signal.SIGTERM,
}
"""Those that go on until somebody ends them, and how."""
CODES: Mapping[str, Tuple[int, ...]] = {
    "vmagentctl doctor": (0, 1),
    "vmagentctl over": (0, 1, 2),
    "vmagentctl drain --check": (0, 1),
    "vmagentctl capacity --flavour": (0, 1),
    "vmagent-site query-capacity": (0, 1),
    "check_": (0, 1, 2),
}
"""Beginnings of commands whose exit code is the answer to a question: what it is here, nobody knows beforehand."""


class Place:
    """The site of the documents, and how its commands are run."""

    def __init__(self, agent: Agent, folder: Path, commands: Commands) -> None:
        self.agent = agent
        self.folder = folder
        self.commands = commands
        site, socket = ["--config", str(folder / "site.yaml")], ["--socket", self._socket]
        self._before = {
            "vmagent": ["--config", str(agent.config_file)], "vmagentctl": socket, "check_vmagent": socket,
            "vmagent-site": site, "check_vm_creation": site,
        }

    @property
    def _socket(self) -> str:
        return str(self.agent.folder / "run" / "vmagent.sock")

    def run(self, text: str) -> Done:
        """One line of shell: a command of ours, or two words of the system."""
        words = shlex.split(text, comments=True)
        target = ""
        if ">" in words:
            words, target = words[: words.index(">")], words[words.index(">") + 1]
        if words[0] not in self._before:
            return self._of_the_system(text)
        name, *argv = [word.replace("~/", f"{self.folder}/") for word in words]
        if name in ("vmagentctl",) and argv[0] in ("doctor", "bundle"):
            argv += ["--config", str(self.agent.config_file)]
        plain = " ".join(words)
        until_then = (self._at_work, ENDLESS[plain]) if plain in ENDLESS else ()
        done = self.commands.run(name, [*self._before[name], *argv], *until_then)
        if target:
            (self.folder / target).write_text(done.text, encoding="utf-8")
        return done

    def _of_the_system(self, text: str) -> Done:
        """With the folders of this agent in the place of those of an installed one."""
        for there, here in (("/var/lib/vmagent", self.agent.folder / "state"), ("/var/backups", self.folder)):
            text = text.replace(there, str(here))
        done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=False, cwd=self.folder)
        return Done(done.returncode, done.stdout + done.stderr)

    @staticmethod
    def _at_work(pid: int, output: Path) -> None:
        """It has said something, or it listens to the broker and has nothing to say."""
        def working() -> bool:
            links = getattr(psutil.Process(pid), LINKS)(kind="tcp")
            return output.stat().st_size > 0 or any(link.status == psutil.CONN_ESTABLISHED for link in links)

        until(working, 30, "it works")

    def vm(self) -> str:
        """The id of worker-7, which is started when it does not run; of one that ends, the end is waited for."""
        until(lambda: all(row["desired"] in ("run", "paused") for row in self._rows()), 60, "an earlier one has ended")
        if not self._rows():
            for line in ("vmagentctl undrain", shlex.join(["vmagentctl", *START])):
                done = self.run(line)
                assert done.code == 0, done.text
        until(lambda: self._rows() and self._rows()[0]["phase"] in ("running", "ready", "paused"), 90, VM)
        return str(self._rows()[0]["vm"])

    def taken(self) -> None:
        """No snapshot is being made or unmade any more, for whoever would go back to one, or take the next."""
        def at_work() -> bool:
            shown = [self.agent.ask("show", vm=row["vm"])["state"] for row in self._rows()]
            return any(one["state"] not in ("there", "gone", "failed") for state in shown for one in state["snapshots"])

        until(lambda: not at_work(), 60, "snapshots are there or gone")

    def nobody(self) -> None:
        """No VM is left, for whoever would evict an image."""
        if self.agent.ask("list")["vms"]:
            assert self.run("vmagentctl kill --all --yes").code == 0
            until(lambda: not self.agent.ask("list")["vms"], 60, "all have ended")

    def _rows(self) -> List[Mapping[str, Any]]:
        return [row for row in self.agent.ask("list")["vms"] if row["name"] == VM]


def prepared(folder: Path, agent: Agent, broker_port: int, trust: Path) -> Place:
    """The files that commands name; the agent runs, and the broker's own login is taken.  Close its `commands`."""
    (folder / ".ssh").mkdir()
    (folder / ".ssh" / "id_ed25519.pub").write_text(KEY)
    (folder / "worker.yaml").write_text("#cloud-config\n{}\n")
    (folder / "worker.ova").write_bytes(envelopes.archive(list(envelopes.package(b"boot" * 1024).items())))
    (folder / "site.yaml").write_text(json.dumps({
        "site": SITE, "urls": [f"stomp://127.0.0.1:{broker_port}"], "profile": "rabbitmq", "login": "guest",
        "passcode_file": "passcode", "key": str(trust / "controller.key"), "chain": str(trust / "controller.pem"),
        "hosts": [HOST], "database": "collector.db", "reconnect_max_s": 2}))
    made = Place(agent, folder, Commands(folder))
    assert made.run("vmagent-site collect --once").code == 0
    for name in ("wn001", "wn002"):
        share = made.run("vmagentctl glue").text.replace(HOST, f"{name}.example.org")
        (folder / f"{name}.json").write_text(share)
    return made


def config(config: Mapping[str, Any], network: str, catalogue: Mapping[str, Any]) -> Dict[str, Any]:
    """The same agent's, as the documents have it.  network: the first three numbers of a /24; catalogue: of images."""
    small = {"cores": 1, "memory_mib": 128, "disk_gib": 1}
    public = {"bridge": config["networks"]["public"]["bridge"], "addressing": "host-pool",
              "subnets": [f"{network}.0/24"], "pools": [f"{network}.100-{network}.150"]}
    return {
        **config, "site": SITE, "host": HOST, "flavours": {"tiny": small, "small": small},
        "networks": {"public": public}, "snapshots": {"allowed": True, "revert": "allow"},
        "images": {**config["images"], "catalogue": dict(catalogue)},
        "limits": {**config["limits"], "cores": 16, "memory_mib": 65536, "disk_gib": 100, "count": 1000},
        "accounting": {"apel": {"site_name": "EXAMPLE-SITE", "destination": f"/queue/vmagent.{SITE}.apel"}},
    }


def as_it_stands(line: Line) -> str:
    return line.text


def faults(place: Place, lines: List[Line], ready: Callable[[Line], str] = as_it_stands) -> List[str]:
    """Run them all; what did not end with a code that was told.  ready: makes a line ready to be run."""
    found = []
    for line in lines:
        try:
            done = place.run(ready(line))
        except AssertionError as error:
            found.append(f"{line}: {error}")
            continue
        if done.code not in expected(line.text):
            found.append(f"{line} -> {done.code}: {done.text[-400:]}")
    return found


def with_guests(line: Line) -> bool:
    """Whether it needs, makes or ends a guest, or an image that can be fetched."""
    return line.page == OF_IMAGES or any(word in line.text for word in (*NEEDS_A_VM, " start ", "check_vm_creation"))


def wanted() -> List[Line]:
    """Each command once, in the order of the pages, what needs no VM any more at the end."""
    found: Dict[str, Line] = {}
    for line in documented.lines():
        if line.kind == "agent" and not mention(line):
            found.setdefault(line.text, line)
    return sorted(found.values(), key=lambda line: (line.page == OF_IMAGES, line.page, line.number))


def mention(line: Line) -> bool:
    """`vmagentctl show` in a line of text: told of, not given."""
    name, *argv = shlex.split(line.text, comments=True)
    if not line.inline or len(argv) != 1:
        return False
    if argv[0] in CHOOSING:
        return True
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            PARSERS[name]().parse_args(argv)
    except SystemExit:
        return True
    return False


def expected(text: str) -> Tuple[int, ...]:
    plain = text.split(" #")[0].strip()
    if plain in ENDLESS:
        return (0, 130)
    return next((codes for start, codes in CODES.items() if plain.startswith(start)), (0,))


