"""The wiring of what measures guests and host, and of what is told from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional, Sequence

import vmagent
from vmagent import ports
from vmagent.config import Config
from vmagent.consequences import unseen
from vmagent.core import events
from vmagent.core.model import Phase
from vmagent.export.http import MetricsServer
from vmagent.host.meter import HostMeter
from vmagent.host.processes import ProcProcesses
from vmagent.hypervisor.adapter import Libvirt
from vmagent.lanes import Lanes
from vmagent.metering import TwoHalves
from vmagent.render import prometheus
from vmagent.sampling import Listener, Sampler
from vmagent.scraping import Scraping
from vmagent.telemetry import Telemetry
from vmagent.world import World


@dataclass
class Measuring:
    """Who measures.  More listeners: `sampler.attend`."""

    meter: ports.Meter
    sampler: Sampler
    telemetry: Telemetry
    scraping: Scraping


def measuring(
    config: Config, world: World, hypervisor: Libvirt, processes: ProcProcesses, firewall: ports.Firewall,
    clock: ports.Clock, reactor: Any, lanes: Lanes, listeners: Sequence[Listener],
) -> Measuring:
    """lanes: one thread, for the files of the kernel."""
    settings = config.telemetry
    meter = TwoHalves(HostMeter(processes, reactor.seconds), hypervisor.statistics, lanes.run)
    sampler = Sampler(world, meter, firewall, clock, settings.fine_s, settings.coarse_s)
    telemetry = Telemetry(world, lambda: hypervisor.info().cores, clock, settings.fine_s, settings.period_s)
    for listener in (*listeners, telemetry.take, hypervisor.take):
        sampler.attend(listener)
    return Measuring(meter, sampler, telemetry, Scraping(world, _server(config, world, hypervisor, sampler, reactor)))


def _server(
    config: Config, world: World, hypervisor: Libvirt, sampler: Sampler, reactor: Any
) -> Optional[MetricsServer]:
    """None = the site wants none."""
    settings = config.prometheus
    if settings.listen is None:
        return None

    def page() -> str:
        return prometheus.text(sampler.newest, _guests(world), _agent(world, hypervisor), reactor.seconds())

    tls = None if settings.tls is None else (settings.tls.certificate, settings.tls.key)
    return MetricsServer(settings.listen, tls, reactor, page, prometheus.CONTENT_TYPE)


def _guests(world: World) -> List[prometheus.Guest]:
    specs = [record.spec for record in world.records.values()]
    return [prometheus.Guest(spec.vm, spec.flavour, spec.cores, spec.memory_mib,
                             tuple(interface.device for interface in spec.interfaces)) for spec in specs]


def _agent(world: World, hypervisor: Libvirt) -> prometheus.Agent:
    phases = {phase.value: 0 for phase in Phase}
    for record in world.records.values():
        phases[events.phase(record, world.observed.get(record.vm) or unseen(record.vm)).value] += 1
    info = hypervisor.info()
    return prometheus.Agent(vmagent.__version__, info.cores, info.connected, world.drained, len(world.degraded), phases)
