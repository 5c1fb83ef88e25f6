"""A guest's interface on a bridge, shaped by the real shaper, and somebody else on that bridge.

Both ends are in network namespaces of their own, named like their interfaces.  Needs root, ip and tc.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Iterator, Tuple

from tests.support import building
from tests.support.lanes import HandTurned
from tests.support.stream import stream
from tests.support.wires import Wires
from vmagent.core import identity
from vmagent.core.actions import Action, Do
from vmagent.core.model import Drift, Limits, NicLimits, VmSpec
from vmagent.host.shaper import TcShaper
from vmagent.host.tc import TrafficControl
from vmagent.lanes import Lanes

READY = os.geteuid() == 0 and all(shutil.which(tool) for tool in ("ip", "tc"))
NEEDED = "needs root, ip and tc"
INSTANCE = "zsh"
BRIDGE = "zshaping0"
PEER = "zshother"
VM = building.spec().vm
TAP = identity.device_name(INSTANCE, VM, 0)
IFB = identity.shaper_name(TAP)
SCRATCH = identity.device_name(INSTANCE, "scratch", 0)
GUEST, OUTSIDE = "10.77.8.10", "10.77.8.20"
SLOW_KBIT, FAST_KBIT = 2_000, 50_000
LIMITED = NicLimits(5_000, 4_000)


def spec(limits: NicLimits) -> VmSpec:
    nic = building.interface(VM, device=TAP, bridge=BRIDGE, addresses=(f"{GUEST}/24",))
    return building.spec(interfaces=(nic,), limits=Limits(nics=(limits,)))


class World:
    """A guest on a bridge, and somebody else there."""

    def __init__(self, control: TrafficControl) -> None:
        self.reactor = HandTurned()
        self.shaper = TcShaper(INSTANCE, Lanes("tc", 2, self.reactor), control)
        self.wires = Wires(BRIDGE)
        try:
            self.reactor.settle(self.shaper.start())
            for device, address in ((TAP, GUEST), (PEER, OUTSIDE)):
                self.wires.plug(device)
                self.wires.guest(device, identity.mac_address(device, 0), f"{address}/24")
        except BaseException:
            self.close()
            raise

    def do(self, do: Do, limits: NicLimits = LIMITED) -> None:
        self.reactor.settle(self.shaper.perform(Action(do, spec(limits))))

    def drift(self, limits: NicLimits = LIMITED) -> Tuple[Drift, ...]:
        found: Tuple[Drift, ...] = self.reactor.settle(self.shaper.drift([spec(limits)]))[VM]
        return found

    def shape(self, limits: NicLimits = LIMITED) -> None:
        """As the planner does: look, mend, look."""
        self.drift(limits)
        self.do(Do.SHAPE, limits)
        assert self.drift(limits) == ()

    def renew(self) -> None:
        """Shaped from nothing."""
        self.shape(NicLimits())
        self.shape()

    def stream(self, protocol: str, inward: bool, seconds: float, kbit: int = 0) -> Any:
        source, sink, address = (PEER, TAP, GUEST) if inward else (TAP, PEER, OUTSIDE)
        return stream(protocol, source, sink, address, 5001, seconds, kbit)

    def carries(self, protocol: str, inward: bool) -> int:
        """kbit/s of payload that this machine passes without a limit; UDP is offered twice the most that we ask for."""
        self.shape(NicLimits())
        with self.stream(protocol, inward, 1.0, kbit=2 * FAST_KBIT) as flow:
            return sum(flow.buckets()) * 8 // 1000

    def close(self) -> None:
        self.shaper.close()
        self.wires.close()
        for device in (IFB, SCRATCH, identity.shaper_name(SCRATCH)):
            subprocess.run(["ip", "link", "del", device], capture_output=True)


@contextlib.contextmanager
def opened(control: TrafficControl) -> Iterator[World]:
    made = World(control)
    try:
        yield made
    finally:
        made.close()


def sh(text: str) -> None:
    subprocess.run(["sh", "-e", "-c", text], check=True, capture_output=True)


def pretend(home: Path, refused: str) -> TrafficControl:
    """A tc of a kernel without the qdisc (or filter) `refused`."""
    script = home / "tc"
    script.write_text(
        f"""#!/bin/sh
lines=$(cat)
case "$lines" in *"{refused} "*) echo "Error: Specified {refused} is unknown." >&2; exit 2;; esac
printf '%s\\n' "$lines" | exec {shutil.which("tc")} "$@"
"""
    )
    script.chmod(0o755)
    return TrafficControl(tc=str(script))
