"""The image that `share/build-try-image` builds, booted by a plain QEMU from our own overlay and seed.

No libvirt and no agent: when this fails, the parts are wrong, not their composition.
"""

from __future__ import annotations

import dataclasses
import socket
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

import pytest
from twisted.internet.defer import succeed

from tests.support import building, wires
from tests.support.lanes import HandTurned
from tests.support.waiting import until
from tests.support.wires import Wires
from vmagent.config import CacheSettings, ImageSettings
from vmagent.core.actions import Action, Do
from vmagent.core.model import Firewall, ImageRef, Limits, NicLimits, Rule
from vmagent.core.policy import CatalogueImage, SiteFirewall
from vmagent.host.firewall import NftFirewall
from vmagent.host.processes import ProcProcesses
from vmagent.images.building import Surroundings, local_images
from vmagent.lanes import Lanes

pytestmark = pytest.mark.skipif(not wires.READY, reason=wires.NEEDED)

INSTANCE, BRIDGE = "ztr", "zbr1"
PINGABLE = Limits(nics=(NicLimits(firewall=Firewall(inbound=(Rule("allow", "icmp"), Rule("allow", "icmpv6")))),))
V4, V6 = "198.18.71.10", "2001:db8:71::10"
BOOT_S = 60.0  # plain emulation on a busy machine


class Guest:
    """One VM on a bridge of its own, from first overlay to running QEMU."""

    def __init__(self, folder: Path, golden: Tuple[Path, Dict[str, Any]]) -> None:
        directory, image = golden
        self.folder = folder
        self.reactor = HandTurned()
        self.processes = ProcProcesses()
        lanes = Lanes("try", 2, self.reactor)
        entry = CatalogueImage(image["id"], image["file"], image["format"], image["sha512"])
        settings = ImageSettings(directory, folder / "overlays", folder / "seeds", CacheSettings(folder / "cache"))
        def nothing(command: str) -> Any:
            return succeed(None)

        around = Surroundings(self.reactor, lanes, lambda: 1.0, lambda: 0.0, lambda: 0, frozenset, nothing)
        self.images = local_images(settings, {entry.id: entry}, lanes, around)
        self.firewall = NftFirewall(INSTANCE, lanes, SiteFirewall())
        self.wires = Wires(BRIDGE, "198.18.71.1/24", "2001:db8:71::1/64")
        of = building.spec(image=ImageRef(entry.id, entry.sha512, entry.format), disk_gib=1)
        own = building.interface(of.vm, bridge=BRIDGE, addresses=(f"{V4}/24", f"{V6}/64"), gateways=("198.18.71.1",))
        self.device = INSTANCE + own.device[-11:]
        self.spec = dataclasses.replace(of, interfaces=(dataclasses.replace(own, device=self.device),), limits=PINGABLE)
        self.qemu: Any = None

    def boot(self) -> None:
        self.reactor.settle(self.images.start())
        for do in (Do.MAKE_OVERLAY, Do.MAKE_SEED):
            self.reactor.settle(self.images.perform(Action(do, self.spec)))
        self.reactor.settle(self.firewall.start())
        self.reactor.settle(self.firewall.perform(Action(Do.APPLY_FIREWALL, self.spec)))
        wires.ip("tuntap", "add", self.device, "mode", "tap")
        wires.ip("link", "set", self.device, "master", BRIDGE, "up")
        overlay, seed = self.images.paths(self.spec.vm)
        self.qemu = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "tcg", "-m", "128", "-display", "none", "-uuid", self.spec.vm]
            + ["-serial", f"file:{self.folder}/console", "-monitor", f"unix:{self.folder}/monitor,server,nowait"]
            + ["-drive", f"file={overlay},format=qcow2,if=virtio"]
            + ["-drive", f"file={seed},format=raw,if=virtio,readonly=on"]
            + ["-netdev", f"tap,id=n,ifname={self.device},script=no,downscript=no"]
            + ["-device", f"virtio-net-pci,netdev=n,mac={self.spec.interfaces[0].mac}"]
        )

    def answers(self, address: str) -> bool:
        argv = ["ping", "-c", "1", "-W", "1", "-I", BRIDGE, address]
        return subprocess.run(argv, capture_output=True).returncode == 0

    def frames(self) -> int:
        return self.reactor.settle(self.firewall.watched())[self.device]

    def power_button(self) -> None:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(10)
            monitor.connect(f"{self.folder}/monitor")
            self._prompt(monitor)
            monitor.sendall(b"system_powerdown\n")
            self._prompt(monitor)

    @staticmethod
    def _prompt(monitor: socket.socket) -> None:
        said = b""
        while not said.endswith(b"(qemu) "):
            said += monitor.recv(1000)

    def close(self) -> None:
        if self.qemu is not None:
            self.qemu.kill()
            self.qemu.wait()
        subprocess.run(["ip", "link", "del", self.device], capture_output=True)
        subprocess.run(["nft", "delete", "table", "bridge", self.firewall.table], capture_output=True)
        self.wires.close()


@pytest.fixture
def guest(tmp_path: Path, golden: Tuple[Path, Dict[str, Any]]) -> Iterator[Guest]:
    made = Guest(tmp_path, golden)
    try:
        yield made
    finally:
        made.close()


def test_it_takes_its_addresses_from_the_seed_and_obeys_the_power_button(guest: Guest) -> None:
    guest.boot()
    devices = [guest.device]
    # Popen returns before the kernel has put the new program's arguments in place.
    until(lambda: guest.processes.leftovers(guest.spec.vm, devices) == {"process", "interface"}, 10, "it is seen")
    until(lambda: guest.frames() > 0, BOOT_S, "it speaks by itself")
    until(lambda: guest.answers(V4), 10, "it answers in IPv4")
    until(lambda: guest.answers(V6), 10, "it answers in IPv6")
    until(lambda: "try: up after" in (guest.folder / "console").read_text(errors="replace"), BOOT_S)
    guest.power_button()
    assert guest.qemu.wait(30) == 0
    assert guest.processes.leftovers(guest.spec.vm, devices) == {"interface"}
    guest.reactor.settle(guest.images.perform(Action(Do.CLEAN_UP, guest.spec)))
    assert guest.reactor.settle(guest.images.leftovers()) == {}
