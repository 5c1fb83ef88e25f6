"""The wiring of what measures guests and host, and of what is told from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

from vmagent import ports
from vmagent.config import Config
from vmagent.host.meter import HostMeter
from vmagent.host.processes import ProcProcesses
from vmagent.hypervisor.adapter import Libvirt
from vmagent.lanes import Lanes
from vmagent.metering import TwoHalves
from vmagent.sampling import Listener, Sampler
from vmagent.telemetry import Telemetry
from vmagent.world import World


@dataclass
class Measuring:
    """Who measures.  More listeners: `sampler.attend`."""

    meter: ports.Meter
    sampler: Sampler
    telemetry: Telemetry


def measuring(
    config: Config, world: World, hypervisor: Libvirt, processes: ProcProcesses, firewall: ports.Firewall,
    clock: ports.Clock, reactor: Any, lanes: Lanes, listeners: Sequence[Listener],
) -> Measuring:
    """lanes: one thread, for the files of the kernel."""
    settings = config.telemetry
    meter = TwoHalves(HostMeter(processes, reactor.seconds), hypervisor.statistics, lanes.run)
    sampler = Sampler(world, meter, firewall, clock, settings.fine_s, settings.coarse_s)
    telemetry = Telemetry(world, lambda: hypervisor.info().cores, clock, settings.fine_s, settings.period_s)
    for listener in (*listeners, telemetry.take):
        sampler.attend(listener)
    return Measuring(meter, sampler, telemetry)
