"""The newest reading as OpenMetrics text, for Prometheus (FORMATS 8.5).

Rules: labels are of bounded number: the VM's id, its interfaces, its flavour, words of ours; never a name that a user
chose, never a subject.  What is not known has no sample.  Counters are those of the source and begin anew with it.
received = by the guest.

Source: the OpenMetrics specification 1.0 (exposition format: families, units, escapes, `# EOF`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from vmagent.core.limitmodel import NicCounters
from vmagent.core.samples import HostSample, Reading, Sample

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
MIB = 2**20
_ESCAPES = {"\\": r"\\", '"': r"\"", "\n": r"\n"}
Labels = Mapping[str, str]


@dataclass(frozen=True)
class Guest:
    """What was given to a VM.  devices: its interfaces."""

    vm: str
    flavour: str
    cores: int
    memory_mib: int
    devices: Tuple[str, ...]


@dataclass(frozen=True)
class Agent:
    """The agent and its host.  phases: how many VMs are in each, all phases named."""

    version: str
    cores: int
    libvirt: bool
    drained: bool
    degraded: int
    phases: Mapping[str, int]


@dataclass
class _Family:
    """name: without `_total` and `_info`; its end is its unit."""

    name: str
    kind: str
    help: str
    samples: List[Tuple[Labels, float]] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        yield f"# TYPE {self.name} {self.kind}"
        unit = self.name.rpartition("_")[2]
        if unit in ("seconds", "bytes", "ratio"):
            yield f"# UNIT {self.name} {unit}"
        yield f"# HELP {self.name} {self.help}"
        suffix = {"counter": "_total", "info": "_info"}.get(self.kind, "")
        for labels, value in self.samples:
            told = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
            yield f"{self.name}{suffix}{{{told}}} {_number(value)}" if told else f"{self.name}{suffix} {_number(value)}"


_AGENT = (
    _Family("vmagent", "info", "The agent."),
    _Family("vmagent_libvirt_connected", "gauge", "1 = libvirt answers."),
    _Family("vmagent_drained", "gauge", "1 = no new VM is started here."),
    _Family("vmagent_degraded_parts", "gauge", "How many parts of the agent do not work as they should."),
    _Family("vmagent_domains", "gauge", "VMs by phase."),
    _Family("vmagent_reading_age_seconds", "gauge", "How long ago all this was read."),
    _Family("vmagent_host_cores", "gauge", "Processors of the host."),
    _Family("vmagent_host_cpu_busy_seconds", "counter", "Processors of the host were busy."),
    _Family("vmagent_host_cpu_steal_seconds", "counter", "Taken by whatever this host itself runs on."),
    _Family("vmagent_host_memory_available_bytes", "gauge", "Memory that the host can still give."),
    _Family("vmagent_host_pressure_ratio", "gauge", "Part of the last 10 s in which something waited."),
)
_DOMAIN = (
    _Family("vmagent_domain", "info", "A VM."),
    _Family("vmagent_domain_cores", "gauge", "Virtual processors."),
    _Family("vmagent_domain_memory_bytes", "gauge", "Memory that it was given."),
    _Family("vmagent_domain_sample_age_seconds", "gauge", "How long ago it was measured."),
    _Family("vmagent_domain_cpu_seconds", "counter", "CPU time of the whole guest, since its QEMU began."),
    _Family("vmagent_domain_vcpu_delay_seconds", "counter", "Its vCPUs waited for a processor."),
    _Family("vmagent_domain_cpu_throttled_seconds", "counter", "It was held back by its own cap."),
    _Family("vmagent_domain_memory_resident_bytes", "gauge", "Memory that its QEMU has."),
    _Family("vmagent_domain_pressure_ratio", "gauge", "Part of the last minute in which something of it waited."),
    _Family("vmagent_domain_disk_age_seconds", "gauge", "How long ago its disk counters were read."),
    _Family("vmagent_domain_disk_read_bytes", "counter", "Read from all its disks."),
    _Family("vmagent_domain_disk_read_operations", "counter", "Reads from all its disks."),
    _Family("vmagent_domain_disk_write_bytes", "counter", "Written to all its disks."),
    _Family("vmagent_domain_disk_write_operations", "counter", "Writes to all its disks."),
    _Family("vmagent_domain_network_receive_bytes", "counter", "IP packets that it received, by the peer's place."),
    _Family("vmagent_domain_network_receive_packets", "counter", "IP packets that it received."),
    _Family("vmagent_domain_network_transmit_bytes", "counter", "IP packets that it sent, by the peer's place."),
    _Family("vmagent_domain_network_transmit_packets", "counter", "IP packets that it sent."),
    _Family("vmagent_domain_network_refused_packets", "counter", "Dropped, by what decided it."),
)
_WAYS = (("receive", "in"), ("transmit", "out"))
_REFUSED = {"rules-in": "dropped_in_packets", "rules-out": "dropped_out_packets", "spoofed": "spoofed_packets",
            "capped": "capped_packets"}  # fmt: skip


class _Page:
    """All families, empty; those that stay so are left out."""

    def __init__(self) -> None:
        self._families = {one.name: _Family(one.name, one.kind, one.help) for one in (*_AGENT, *_DOMAIN)}

    def add(self, name: str, value: Optional[float], **labels: str) -> None:
        """name: after the prefix."""
        if value is not None:
            self._families[f"vmagent_{name}" if name else "vmagent"].samples.append((labels, value))

    def text(self) -> str:
        lines = [line for family in self._families.values() if family.samples for line in family.lines()]
        return "\n".join([*lines, "# EOF", ""])


def text(reading: Optional[Reading], guests: Sequence[Guest], agent: Agent, at: float) -> str:
    """reading: None = there was none yet; at: boot-clock seconds now."""
    page = _Page()
    _agent(page, agent)
    if reading is not None:
        page.add("reading_age_seconds", at - reading.at)
        _host(page, reading.host)
    for guest in guests:
        page.add("domain", 1, vm=guest.vm, flavour=guest.flavour)
        page.add("domain_cores", guest.cores, vm=guest.vm)
        page.add("domain_memory_bytes", guest.memory_mib * MIB, vm=guest.vm)
        if reading is None:
            continue
        sample = reading.samples.get(guest.vm)
        if sample is not None:
            _sample(page, sample, at)
        for device in guest.devices:
            counters = (reading.nics or {}).get(device)
            if counters is not None:
                _nic(page, counters, guest.vm, device)
    return page.text()


def _agent(page: _Page, agent: Agent) -> None:
    page.add("", 1, version=agent.version)
    page.add("libvirt_connected", int(agent.libvirt))
    page.add("drained", int(agent.drained))
    page.add("degraded_parts", agent.degraded)
    page.add("host_cores", agent.cores or None)
    for phase, number in agent.phases.items():
        page.add("domains", number, phase=phase)


def _host(page: _Page, host: HostSample) -> None:
    page.add("host_cpu_busy_seconds", host.cpu_busy_s)
    page.add("host_cpu_steal_seconds", host.cpu_steal_s)
    page.add("host_memory_available_bytes", _bytes(host.memory_free_mib))
    for resource, percent in host.pressure.items():
        page.add("host_pressure_ratio", percent / 100, resource=resource)


def _sample(page: _Page, sample: Sample, at: float) -> None:
    vm = sample.vm
    page.add("domain_sample_age_seconds", at - sample.at, vm=vm)
    page.add("domain_cpu_seconds", sample.cpu_s, vm=vm)
    page.add("domain_vcpu_delay_seconds", sample.delay_s, vm=vm)
    page.add("domain_cpu_throttled_seconds", sample.throttled_s, vm=vm)
    page.add("domain_memory_resident_bytes", _bytes(sample.memory_mib), vm=vm)
    for resource, percent in sample.pressure.items():
        page.add("domain_pressure_ratio", percent / 100, vm=vm, resource=resource)
    if sample.disk is not None and sample.disk_at is not None:
        page.add("domain_disk_age_seconds", at - sample.disk_at, vm=vm)
        for way in ("read", "write"):
            page.add(f"domain_disk_{way}_bytes", getattr(sample.disk, f"{way}_bytes"), vm=vm)
            page.add(f"domain_disk_{way}_operations", getattr(sample.disk, f"{way}_ops"), vm=vm)


def _nic(page: _Page, counters: NicCounters, vm: str, device: str) -> None:
    for name, way in _WAYS:
        for peer in ("local", "external"):
            for what in ("bytes", "packets"):
                value = getattr(counters, f"{way}_{peer}_{what}")
                page.add(f"domain_network_{name}_{what}", value, vm=vm, device=device, peer=peer)
    for why, member in _REFUSED.items():
        page.add("domain_network_refused_packets", getattr(counters, member), vm=vm, device=device, why=why)


def _bytes(mib: Optional[int]) -> Optional[float]:
    return None if mib is None else mib * MIB


def _escaped(text: str) -> str:
    return "".join(_ESCAPES.get(character, character) for character in text)


def _number(value: Any) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


NAMES: Dict[str, str] = {one.name: one.help for one in (*_AGENT, *_DOMAIN)}
"""Every family and what it is, for the documents."""
