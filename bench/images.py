"""What an image costs on the way to a guest: fetched for the first time, and from the cache.

    python -m bench.images [--rounds 5] [--size-mib 256]

As root.  A real agent, a real broker, a real HTTPS server on this machine, real QEMU.  The image is a raw disk of
--size-mib random bytes behind a boot sector that halts, so that nothing of it can be skipped; a guest of 32 MiB boots
from it.  Each round offers an image of its own and starts two guests, one after the other:

    fetched    from the command's acceptance to the guest's first instruction, the image nowhere on this host
    cached     the same again: the image is in the cache and was proven

and counts what the agent read and wrote on the disk meanwhile (/proc/PID/io, children that ended included).  Beside it
the same bytes are hashed alone in this process: the share of hashing is that time in the time of `fetched`.  The last
line is one JSON object: medians in seconds, bytes per byte of the image, the share from 0 to 1.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

from tests.support import brokers, libvirtd
from tests.support.agent import HOST, SITE, Agent, Controller, vm_of
from tests.support.imageserver import Certificates, ImageServer
from tests.support.waiting import until
from vmagent.site import pki

HALTS = bytes.fromhex("faf4ebfd") + bytes(506) + b"\x55\xaa"
INSTANCE = "vmbi"
COUNTED = ("rchar", "wchar", "read_bytes", "write_bytes")


def configuration(folder: Path, broker: brokers.RabbitMQ, uri: str, source: ImageServer) -> Dict[str, Any]:
    (folder / "passcode").write_text("guest")
    return {
        "site": SITE, "host": HOST, "instance": INSTANCE,
        "directories": {"state": str(folder / "state"), "run": str(folder / "run")},
        "hypervisor": {"uri": uri, "emulation": "allow"},
        "broker": {"profile": "rabbitmq", "urls": [broker.url], "login": "guest",
                   "passcode_file": str(folder / "passcode")},
        "security": {"ca_directory": str(folder / "trust"), "authority": [
            {"signer": "CN=controller", "verbs": ["*"], "vos": ["*"], "scope": "all"}]},
        "flavours": {"dot": {"cores": 1, "memory_mib": 32, "disk_gib": 1}},
        "images": {"requests": [source.url("/")], "unendorsed": "request", "fetch": {"ca": str(folder / "ca.pem")}},
        "capacity": {"reserved_memory_mib": 256, "disk_floor_gib": 1, "cpu_overcommit": 16},
    }


def a_controller(folder: Path, port: int) -> Controller:
    now = datetime.datetime.now(datetime.timezone.utc)
    own = folder / "pki"
    own.mkdir()
    pki.init(own, "bench CA", now)
    pki.issue(own, "controller", "client", now)
    (folder / "trust").mkdir()
    for name in ("ca.pem", "ca.crl"):
        shutil.copy(own / name, folder / "trust")
    return Controller(port, (own / "controller.key").read_bytes(), (own / "controller.pem").read_bytes())


def moved(agent: Agent) -> Mapping[str, int]:
    """What the agent's process has read and written so far, in bytes."""
    assert agent.process is not None
    lines = Path(f"/proc/{agent.process.pid}/io").read_text().splitlines()
    return {name: int(value) for name, _, value in (line.partition(": ") for line in lines) if name in COUNTED}


def one_start(agent: Agent, controller: Controller, image: Mapping[str, str]) -> Tuple[float, Mapping[str, int]]:
    """Seconds from acceptance to the first instruction, and bytes moved."""
    before = moved(agent)
    command = controller.send("vm.start", {"flavour": "dot", "image": dict(image), "lifetime_s": 600})
    state = controller.wait_phase(vm_of(command), "ready", 300)
    after = moved(agent)
    controller.send("vm.kill", {"vms": [vm_of(command)]})
    controller.wait_phase(vm_of(command), "stopped")
    return state["timings_ms"]["resumed"] / 1000, {name: after[name] - before[name] for name in COUNTED}


def one_round(number: int, size: int, agent: Agent, controller: Controller, source: ImageServer) -> Dict[str, float]:
    content = HALTS + os.urandom(size - len(HALTS))
    source.files[f"/{number}.raw"] = content
    began = time.perf_counter()
    sha512 = hashlib.sha512(content).hexdigest()
    hashing_s = time.perf_counter() - began
    image = {"url": source.url(f"/{number}.raw"), "sha512": sha512, "format": "raw"}
    fetched_s, bytes_fetched = one_start(agent, controller, image)
    cached_s, bytes_cached = one_start(agent, controller, image)
    del source.files[f"/{number}.raw"]
    return {
        "fetched_s": fetched_s,
        "cached_s": cached_s,
        "hashing_share": hashing_s / fetched_s,
        "fetched_read_ratio": bytes_fetched["rchar"] / size,
        "fetched_written_ratio": bytes_fetched["wchar"] / size,
        "cached_read_ratio": bytes_cached["rchar"] / size,
        "cached_written_ratio": bytes_cached["wchar"] / size,
    }


def measured(folder: Path, uri: str, rounds: int, size: int) -> List[Dict[str, float]]:
    broker_folder = folder / "broker"
    broker_folder.mkdir()
    broker = brokers.RabbitMQ(broker_folder)
    source = ImageServer(Certificates(folder))
    broker.start()
    controller = a_controller(folder, broker.port)
    agent = Agent(folder, configuration(folder, broker, uri, source))
    try:
        agent.start()
        until(lambda: controller.events("host.state"), 60, "the agent is on the broker")
        return [one_round(number, size, agent, controller, source) for number in range(rounds)]
    finally:
        agent.kill9()
        controller.close()
        source.close()
        broker.stop()
        subprocess.run(["nft", "delete", "table", "bridge", f"vmagent_{INSTANCE}"], check=False, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size-mib", type=int, default=256)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vmagent-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        with libvirtd.isolated() as uri:
            rounds = measured(folder, uri, options.rounds, options.size_mib * 2**20)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    medians = {name: round(statistics.median(each[name] for each in rounds), 3) for name in rounds[0]}
    for name, value in medians.items():
        print(f"{name:24} {value:8.3f}")
    print(json.dumps({"image_mib": options.size_mib, **medians}))


if __name__ == "__main__":
    main()
