"""What the agent costs while nothing happens: CPU of one core with N idle VMs, against one look by virsh.

    python3 -m bench.idle [VMS] [SECONDS]        (root, libvirt, QEMU; default 30 VMs, 120 s)

Guests are bare QEMUs of 32 MiB without an operating system.  The peer is `virsh domstats --state`, one whole look at
the same domains by somebody else's code, measured in the same run; the agent looks once a minute and holds limits.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, Dict, Iterator, Sequence

from tests.support import confined
from tests.support.agent import HOST, SITE, Agent

INSTANCE = "vmab"
STARTED_S = 1800.0
BATCH = 50  # of guests that are paused: as many run at once


def cpu_s(pid: int) -> float:
    """Of all threads of a process, also of those that ended; finer than clock ticks (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


@contextlib.contextmanager
def roomy() -> Iterator[Path]:
    """A folder with room for a thousand disks that nothing is written to; gone with all that is in it."""
    with tempfile.TemporaryDirectory(prefix="vmagent-bench-", dir="/var/tmp") as name:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4t,mode=0755", "vmagent-bench", name], check=True)
        try:
            confined.give(Path(name))
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


def config(folder: Path, vms: int) -> Dict[str, Any]:
    image = folder / "images" / "none.raw"
    image.parent.mkdir()
    image.write_bytes(b"\0" * (1 << 20))
    digest = subprocess.run(["sha512sum", str(image)], capture_output=True, text=True, check=True).stdout.split()[0]
    (folder / "trust").mkdir()
    return {
        "site": SITE, "host": HOST, "instance": INSTANCE,
        "directories": {"state": str(folder / "state"), "run": str(folder / "run")},
        "hypervisor": {"uri": "qemu:///system", "emulation": "allow"},
        "broker": {"profile": "rabbitmq", "urls": ["stomp://127.0.0.1:1"]},
        "security": {"ca_directory": str(folder / "trust")},
        "flavours": {"bare": {"cores": 1, "memory_mib": 32, "disk_gib": 1}},
        "images": {"directory": str(image.parent), "catalogue": {
            "none": {"file": "none.raw", "format": "raw", "sha512": digest}}},
        "limits": {"cores": 1, "memory_mib": 64, "disk_gib": 1, "lifetime_s": 86400, "count": max(1, vms)},
        "capacity": {"reserved_memory_mib": 256, "memory_overhead_mib": 0, "disk_floor_gib": 0, "cpu_overcommit": 1000},
    }


@contextlib.contextmanager
def agent_with(folder: Path, settings: Dict[str, Any]) -> Iterator[Agent]:
    """An agent; nothing of it or of its VMs is left afterwards, also when a signal ends us."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(f"ended by signal {number}"))
    agent = Agent(folder, settings)
    try:
        agent.start()
        yield agent
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what was begun here is ended, however long it takes
        if agent.alive():
            ended(agent)
        subprocess.run(["nft", "delete", "table", "bridge", f"vmagent_{INSTANCE}"], check=False, capture_output=True)


def ended(agent: Agent) -> None:
    """Every VM, then the agent."""
    agent.ask("command", schema="vm.kill/1", id=str(uuid.uuid4()), args={"all": True})
    deadline = time.monotonic() + 600
    while agent.ask("list")["vms"] and time.monotonic() < deadline:
        time.sleep(1)
    agent.stop()


def start(agent: Agent, vms: int, paused: bool = False) -> float:
    """Start them all through the local socket; seconds until every one is ready.

    paused: each is paused as soon as a batch is there, because without KVM an idle QEMU is not idle.
    """
    while not agent.ask("status").get("hypervisor", {}).get("connected"):  # the socket opens first of all
        time.sleep(0.2)
    begun = time.monotonic()
    batch = BATCH if paused else vms
    for there in range(0, vms, batch):
        wanted = min(batch, vms - there)
        _asked(agent, "vm.start", flavour="bare", image={"id": "none"}, lifetime_s=86400, count=wanted, atomic=True)
        _until_all(agent, there + wanted, ("ready", "paused"))
        if paused:
            running = [row["vm"] for row in agent.ask("list")["vms"] if row["phase"] == "ready"]
            _asked(agent, "vm.pause", vms=running)
            _until_all(agent, there + wanted, ("paused",))
    return time.monotonic() - begun


def _asked(agent: Agent, verb: str, **args: Any) -> None:
    payload = {"schema": f"{verb}/1", "id": str(uuid.uuid4()), "on_behalf_of": {"subject": "/CN=bench"}, "args": args}
    answer = agent.ask("command", **payload)
    assert answer.get("status") in ("accepted", "done"), answer


def _until_all(agent: Agent, number: int, phases: Sequence[str]) -> None:
    deadline = time.monotonic() + STARTED_S
    while time.monotonic() < deadline:
        rows = agent.ask("list")["vms"]
        if len(rows) == number and all(row["phase"] in phases for row in rows):
            return
        time.sleep(1)
    raise SystemExit(f"not all are {' or '.join(phases)} after {STARTED_S:.0f} s: {[row['phase'] for row in rows]}")


def look_s(rounds: int = 3) -> float:
    """CPU seconds of `virsh domstats --state`, the client's side."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(rounds):
        subprocess.run(["virsh", "-c", "qemu:///system", "domstats", "--state"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ((after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)) / rounds


def main() -> None:
    vms = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 120.0
    with roomy() as folder, agent_with(folder, config(folder, vms)) as agent:
        assert agent.process is not None
        took = start(agent, vms)
        time.sleep(10)
        begun, used = time.monotonic(), cpu_s(agent.process.pid)
        time.sleep(seconds)
        used, lasted = cpu_s(agent.process.pid) - used, time.monotonic() - begun
        peer = look_s()
        print(json.dumps({
            "vms": vms, "started_in_s": round(took, 1), "measured_s": round(lasted),
            "agent_percent_of_a_core": round(100 * used / lasted, 3),
            "peer": "virsh domstats --state, once a minute",
            "peer_percent_of_a_core": round(100 * peer / 60, 3),
            "ratio": round(used / lasted / (peer / 60), 2),
        }, indent=1))


if __name__ == "__main__":
    main()
