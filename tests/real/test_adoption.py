"""A guest that others started, with their names and their disk: adopted under its running QEMU, held, ended, given
back.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest

from tests.real.conftest import BRIDGE, LINE, qemu_pids, virsh
from tests.real.test_limits import alerts, cgroup_quota
from tests.support import documented
from tests.support.agent import ROOT, Agent, Controller
from tests.support.waiting import until
from vmagent.core import walltime

OWNER = "/DC=org/DC=example/CN=A User"
DEVICE = f"theirs{LINE}"
RESTS = b"\xfa\xf4\xeb\xfd"  # cli; 1: hlt; jmp 1b
SOMEBODYS = "<metadata><x:note xmlns:x='https://example.org/notes'>keep</x:note></metadata>"
EMPTY = "  <metadata/>\n"  # libvirt takes an element away, not what held it


class Theirs:
    """Their guest, defined and started behind the agent's back, with its disk elsewhere and its own names."""

    def __init__(self, folder: Path, metadata: str) -> None:
        self.vm, self.name = str(uuid.uuid4()), "db1"
        self.disk = folder / "theirs.raw"
        self.disk.write_bytes(RESTS + bytes(510 - len(RESTS)) + b"\x55\xaa" + bytes(range(256)) * 8192)
        self.disk.chmod(0o666)
        definition = folder / "theirs.xml"
        definition.write_text(
            f"<domain type='qemu'><name>{self.name}</name><uuid>{self.vm}</uuid>{metadata}"
            "<memory unit='MiB'>64</memory><vcpu>2</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os>"
            "<features><acpi/></features><devices>"
            f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{self.disk}'/>"
            "<target dev='hda' bus='ide'/></disk>"
            f"<interface type='bridge'><source bridge='{BRIDGE}'/><target dev='{DEVICE}'/></interface>"
            "<memballoon model='virtio'/></devices></domain>"
        )
        virsh("define", str(definition))
        virsh("start", self.vm)
        assert self.state() == "running"
        self.before = self.looks()
        self.defined = self.xml("--inactive")
        self.pids = qemu_pids(self.vm)

    def state(self) -> str:
        return virsh("domstate", self.vm).strip()

    def xml(self, *options: str) -> str:
        return virsh("dumpxml", *options, self.vm)

    def looks(self) -> Tuple[str, str, Any, str]:
        """Live XML, qdiscs, the interface, and what its disk holds."""
        link = json.loads(run("ip", "-j", "-d", "link", "show", DEVICE))[0]
        kept = {name: link[name] for name in ("ifname", "address", "master", "operstate", "mtu")}
        port = link["linkinfo"]["info_slave_data"]  # the rest of it are timers
        kept.update((name, port.get(name)) for name in ("hairpin", "guard", "learning", "flood", "isolated"))
        return self.xml(), run("tc", "qdisc", "show", "dev", DEVICE), kept, self.bytes()

    def bytes(self) -> str:
        return hashlib.sha256(self.disk.read_bytes()).hexdigest()

    def end(self) -> None:
        virsh("destroy", self.vm)
        virsh("undefine", self.vm, "--managed-save", "--snapshots-metadata")


@pytest.fixture
def theirs(request: Any, config: Dict[str, Any], tmp_path: Path) -> Iterator[Theirs]:
    """With somebody's metadata in it, unless asked for without."""
    one = Theirs(tmp_path, getattr(request, "param", SOMEBODYS))
    try:
        yield one
    finally:
        one.end()


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def adopt(agent: Agent, theirs: Theirs, **kw: Any) -> Any:
    """The answer, as soon as libvirt answers the agent; None = it died."""
    said: List[Any] = []

    def asked() -> bool:
        said.append(agent.ask("adopt", vm=theirs.name, owner=OWNER, lifetime_s=3600, **kw))
        return not agent.alive() or (said[-1] or {}).get("problem", {"type": ""})["type"] != "fault"

    until(asked, 30, f"an answer: {said[-1:]}")
    return said[-1]


def row(agent: Agent, theirs: Theirs) -> Dict[str, Any]:
    rows: List[Dict[str, Any]] = (agent.ask("list") or {"vms": []})["vms"]
    return next((one for one in rows if one["vm"] == theirs.vm), {})


def foreign(agent: Agent, theirs: Theirs) -> bool:
    told = agent.ask("list") or {"foreign": []}
    return any(one["uuid"] == theirs.vm and one["why"] == "no-tag" for one in told["foreign"])


def ready(agent: Agent, theirs: Theirs) -> None:
    until(lambda: row(agent, theirs).get("phase") == "ready", 60, "adopted and ready")


def new_epoch(agent: Agent) -> None:
    born = agent.ask("status")["epoch"]["born"]
    until(lambda: time.time() > walltime.seconds(born) + 3, 10, "commands are taken by a new epoch")


def test_it_is_adopted_over_crashes_and_a_lost_store_and_its_lease_ends_it(
    agent: Agent, controller: Controller, theirs: Theirs
) -> None:
    agent.start(crash_at="before-claim")
    adopt(agent, theirs)
    agent.crashed()
    assert "urn:vmagent" not in theirs.xml() and "vmagent.org" not in theirs.xml()
    agent.start(crash_at="after-claim", ready=False)  # what was committed is done
    agent.crashed()
    agent.start()
    ready(agent, theirs)
    left = row(agent, theirs)["left_s"]
    agent.kill9()
    for file in (agent.folder / "state").glob("vmagent.*"):
        file.unlink()
    agent.start()
    ready(agent, theirs)
    assert row(agent, theirs)["owner"] == OWNER and row(agent, theirs)["left_s"] <= left
    assert qemu_pids(theirs.vm) == theirs.pids
    assert theirs.looks()[1:] == theirs.before[1:]
    new_epoch(agent)
    used = 3600 - row(agent, theirs)["left_s"]
    controller.reply(controller.send("vm.extend", {"vms": [theirs.vm], "lifetime_s": used + 15}), "done")
    until(lambda: not qemu_pids(theirs.vm), 90, "its lease ends it")
    until(lambda: foreign(agent, theirs) and not row(agent, theirs), 70, "foreign again")
    until(lambda: controller.states(theirs.vm)[-1]["closed"], 20, "its last state")
    assert controller.states(theirs.vm)[-1]["outcome"] == "expired"
    assert theirs.state() == "shut off" and theirs.xml("--inactive") == theirs.defined
    assert theirs.bytes() == theirs.before[3]
    assert [e for e in controller.events("vm.lease.warning") if e["data"]["vm"] == theirs.vm]


def test_given_back_it_runs_on_byte_by_byte_as_before(agent: Agent, controller: Controller, theirs: Theirs) -> None:
    agent.start()
    assert adopt(agent, theirs)["dry_run"] is False
    ready(agent, theirs)
    assert "vmagent.org" in theirs.xml() and "vmagent.org" in theirs.xml("--inactive")
    for verb in ("vm.restart", "vm.revert"):
        refused = controller.reply(controller.send(verb, {"vms": [theirs.vm]}))
        assert refused["problem"]["type"] == "not-supported-here"
    assert agent.ask("disown", vm=theirs.name)["vm"] == theirs.vm
    until(lambda: foreign(agent, theirs) and not row(agent, theirs), 70, "foreign again")
    assert theirs.looks() == theirs.before and theirs.xml("--inactive") == theirs.defined
    assert qemu_pids(theirs.vm) == theirs.pids


@pytest.mark.parametrize("theirs", [""], indirect=True)
def test_a_cap_is_held_and_goes_with_the_tag(agent: Agent, controller: Controller, theirs: Theirs) -> None:
    agent.config["intervals"] = {"hold_s": 5}
    agent.start()
    file, before = cgroup_quota(theirs.vm), cgroup_quota(theirs.vm).read_text()
    adopt(agent, theirs, cpu_cap_core_percent=30)
    ready(agent, theirs)
    until(lambda: file.read_text().split()[0] == "30000", 30, "its cap is in the cgroup")
    until(lambda: controller.states(theirs.vm)[-1]["limits"]["proven"].get("cpu", {}).get("cap_core_percent") == 30, 30,
          "and proven")
    virsh("schedinfo", theirs.vm, "--live", "--set", "global_quota=-1")
    until(lambda: file.read_text().split()[0] == "30000", 30, "what somebody lifts is back")
    until(lambda: alerts(controller, "cpu-drift"), 20, "and told")
    assert theirs.xml("--inactive").replace(tagged(theirs), "") == theirs.defined
    agent.ask("disown", vm=theirs.name)
    until(lambda: foreign(agent, theirs), 70, "foreign again")
    assert file.read_text().split()[0] == before.split()[0]
    assert theirs.xml("--inactive").replace(EMPTY, "") == theirs.defined
    assert qemu_pids(theirs.vm) == theirs.pids


def tagged(theirs: Theirs) -> str:
    """What we put into its definition."""
    text = theirs.xml("--inactive")
    return text[text.index("  <metadata>") : text.index("  </metadata>\n") + len("  </metadata>\n")]


def test_what_runs_here_is_not_adopted_by_a_first_start(agent: Agent, theirs: Theirs) -> None:
    agent.start()
    until(lambda: foreign(agent, theirs), 60, "seen")
    assert agent.ask("list")["vms"] == [] and theirs.looks() == theirs.before
    virsh("autostart", theirs.vm)
    refused = adopt(agent, theirs)["problem"]
    assert (refused["type"], refused["why"]) == ("not-adoptable", "autostart")
    virsh("autostart", "--disable", theirs.vm)
    assert adopt(agent, theirs, dry_run=True)["dry_run"] and theirs.looks() == theirs.before


def test_the_commands_of_the_page(agent: Agent, theirs: Theirs) -> None:
    """docs/operations/adoption.md, line by line."""
    agent.start()
    ran = [line.text for line in documented.blocks(ROOT / "docs/operations/adoption.md")]
    assert len(ran) > 3
    until(lambda: foreign(agent, theirs), 60, "seen")
    for text in ran:
        argv = shlex.split(text, comments=True)
        assert argv[0] == "vmagentctl"
        socket = str(agent.folder / "run" / "vmagent.sock")
        done = subprocess.run([sys.executable, "-m", "vmagent.local.ctl", "--socket", socket, *argv[1:]],
                              cwd=str(ROOT), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}: {done.stdout}{done.stderr}"
        if "--yes" in argv:
            ready(agent, theirs)
    until(lambda: foreign(agent, theirs), 70, "given back")
    assert qemu_pids(theirs.vm) == theirs.pids
