"""Rigs for the hypervisor's contract: the port under test, a loop, and hands that act behind the agent's back."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, Iterator, List, Optional, Sequence, Tuple

import libvirt
import libvirt_qemu

from tests.support import bootsector, building
from tests.support.fake_hypervisor import FakeHypervisor
from tests.support.loop import RealLoop
from vmagent.config import HypervisorSettings
from vmagent.core import drivers, quota
from vmagent.core.actions import Action, Do
from vmagent.core.diskxml import DiskSource, PoolVolume, Source
from vmagent.core.domainxml import IOTUNE, NAMESPACE, PREFIX, tag_xml
from vmagent.core.identity import domain_name
from vmagent.core.model import CpuLimit, Disk, DiskIo, Tag, VmSpec
from vmagent.hypervisor.adapter import Libvirt
from vmagent.hypervisor.perform import Hands, Paths
from vmagent.hypervisor.session import event_loop

INSTANCE = "vc"  # not the agent tests' own, so that both may use one libvirtd
GOLDEN_BYTES = bootsector.DISK_BYTES


def settings(uri: str, **kw: Any) -> HypervisorSettings:
    members: Dict[str, Any] = {
        "uri": uri, "emulation": "allow", "pygrub": "forbid", "threads": 4,
        "stuck_after_s": 3.0, "reconnect_max_s": 1.0,
    }  # fmt: skip
    members.update(kw)
    return HypervisorSettings(**members)


class Volumes:
    """The site's data volumes, as a port is told of them: the same registry for every port."""

    def __init__(self) -> None:
        self.sources: Dict[str, Source] = {}

    def of(self, spec: VmSpec) -> Tuple[Source, ...]:
        return tuple(self.sources[disk.volume] for disk in spec.disks)


class Disks:
    """Small real images in a folder that QEMU's user can reach; boot: the golden image's first sector."""

    def __init__(self, volumes: Volumes, boot: bytes = b"") -> None:
        self.volumes = volumes
        self.folder = Path(tempfile.mkdtemp(prefix="vmagent-disks-"))
        self.folder.chmod(0o755)
        self.golden = self.folder / "golden.qcow2"
        raw = self.folder / "golden.raw"
        raw.write_bytes(boot + bytes(GOLDEN_BYTES - len(boot)))
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(self.golden)], check=True)

    def paths(self, spec: VmSpec) -> Paths:
        overlay, seed = (str(self.folder / f"{spec.vm}.{kind}") for kind in ("qcow2", "iso"))
        return Paths(overlay, seed, str(self.golden), self.volumes.of(spec))

    def make(self, spec: VmSpec) -> None:
        paths = self.paths(spec)
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", paths.golden, paths.overlay], check=True
        )
        Path(paths.seed).write_bytes(bytes(2**19))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Rig:
    """One port, started, and everything a contract test needs around it."""

    def __init__(self, port: Any, outside: Any, loop: RealLoop, profile: str, volumes: Volumes,
                 disks: Optional[Disks] = None) -> None:
        self.port = port
        self.outside = outside
        self.loop = loop
        self.profile = drivers.PROFILES[profile]  # what the tests expect of its guests
        self.disks = disks
        self.volumes = volumes
        self.hints: List[Optional[str]] = []
        self.connections: List[bool] = []
        self._specs: List[VmSpec] = []

    def start(self) -> None:
        self.port.start(self.hints.append, self.connections.append)
        self.loop.until(lambda: self.connections and self.hints, 60, "the port connects")

    def spec(self, **kw: Any) -> VmSpec:
        """A new VM of 32 MiB without network, capped where that can be done; its disks exist."""
        members: Dict[str, Any] = {
            "command": str(uuid.uuid4()), "memory_mib": 32, "interfaces": (),
            "cpu_cap_core_percent": 50 if self.profile.cpu_caps else None,
        }  # fmt: skip
        members.update(kw)
        spec = building.spec(**members)
        if self.disks is not None:
            self.disks.make(spec)
        self._specs.append(spec)
        return spec

    def volume(self, name: str, place: int = 2, read_only: bool = False, mode: int = 0o666) -> Disk:
        """A data volume that the site allows; its file exists where the port needs one."""
        path = Path("/nowhere", f"{name}.raw") if self.disks is None else self.disks.folder / f"{name}.raw"
        if self.disks is not None and not path.exists():
            path.write_bytes(bytes(2**20))
            path.chmod(mode)
        self.volumes.sources.setdefault(name, DiskSource(str(path), "raw"))
        return Disk("volume", place, volume=name, read_only=read_only)

    def pool_volume(self, name: str, pool: str, volume: str) -> Disk:
        """The same, as a volume of a storage pool, whether that has it or not."""
        self.volumes.sources[name] = PoolVolume(name, pool, volume, "raw")
        return Disk("volume", 2, volume=name)

    def tag(self, spec: VmSpec, **kw: Any) -> Tag:
        return building.tag(building.record(spec=spec), **{"instance": INSTANCE, **kw})

    def action(self, do: Do, spec: VmSpec, **kw: Any) -> Action:
        members: Dict[str, Any] = {"tag": self.tag(spec), "cpu": quota.cpu_limit(spec)}
        members.update(kw)
        return Action(do, spec, **members)

    def result(self, deferred: Any, seconds: float = 60.0) -> Any:
        return self.loop.result(deferred, seconds)

    def do(self, do: Do, spec: VmSpec, **kw: Any) -> None:
        self.result(self.port.perform(self.action(do, spec, **kw)))

    def see(self, spec: VmSpec) -> Any:
        return self.result(self.port.observe(spec.vm))

    def begin(self, spec: VmSpec, *more: Do) -> None:
        """Define, start paused, and what follows."""
        for do in (Do.DEFINE, Do.START_PAUSED, *more):
            self.do(do, spec)

    def end(self) -> None:
        self.outside.clean([spec.vm for spec in self._specs])
        self.result(self.port.stop())
        if self.disks is not None:
            self.disks.remove()


class Outside:
    """What an administrator does with virsh.  Has the same methods as the fake."""

    def __init__(self, uri: str, domain_type: str) -> None:
        event_loop()
        self.conn = libvirt.open(uri)
        self._type = domain_type
        self._made: List[str] = []
        self._pools: List[Any] = []

    def foreign(self, uuid: str, name: str, tag: Optional[Tag] = None, running: bool = False) -> None:
        domain = self.conn.defineXML(
            f"<domain type='{self._type}'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory>"
            "<os><type>hvm</type></os></domain>"
        )
        self._made.append(uuid)
        if tag is not None:
            domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, tag_xml(tag), PREFIX, NAMESPACE, 0)
        if running:
            domain.create()

    def autostart(self, uuid: str, on: bool = True) -> None:
        self.domain(uuid).setAutostart(int(on))

    def domain(self, vm: str) -> Any:
        return self.conn.lookupByUUIDString(vm)

    def pool(self, name: str, *volumes: str, active: bool = True) -> None:
        """A storage pool in a folder of its own, with these volumes of 1 MiB in it."""
        folder = Path(tempfile.mkdtemp(prefix="vmagent-pool-"))
        folder.chmod(0o755)
        target = f"<target><path>{folder}</path><permissions><mode>0755</mode></permissions></target>"
        pool = self.conn.storagePoolDefineXML(f"<pool type='dir'><name>{name}</name>{target}</pool>")
        self._pools.append((pool, folder))
        pool.create()
        for volume in volumes:
            pool.createXML(f"<volume><name>{volume}</name><capacity>{2**20}</capacity><target><format type='raw'/>"
                           "<permissions><mode>0666</mode></permissions></target></volume>")
        if not active:
            pool.destroy()

    def opened(self, vm: str, path: str) -> List[bool]:
        """What the guest's device stands on: read-only or not.  The node below opens its file as that one needs it."""
        nodes = libvirt_qemu.qemuMonitorCommand(self.domain(vm), '{"execute": "query-named-block-nodes"}', 0)
        return [node["ro"] for node in json.loads(nodes)["return"] if node["file"] == path and node["drv"] == "raw"]

    def suspend(self, vm: str) -> None:
        self.domain(vm).suspend()

    def resume(self, vm: str) -> None:
        self.domain(vm).resume()

    def destroy(self, vm: str) -> None:
        self.domain(vm).destroy()

    def save(self, vm: str) -> None:
        self.domain(vm).managedSave()

    def limit(self, vm: str, cpu: CpuLimit) -> None:
        self.schedule(vm, {"global_period": cpu.period_us, "global_quota": cpu.quota_us})

    def weigh(self, vm: str, weight: int) -> None:
        self.schedule(vm, {"cpu_shares": quota.shares(weight, cgroup_version())})

    def schedule(self, vm: str, parameters: Dict[str, int]) -> None:
        self.domain(vm).setSchedulerParametersFlags(parameters, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def throttle(self, vm: str, limits: DiskIo) -> None:
        parameters = {name: getattr(limits, member) or 0 for member, name in IOTUNE.items()}
        self.domain(vm).setBlockIoTune("vda", parameters, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def undefine(self, uuid: str) -> None:
        self.domain(uuid).undefine()

    def forget(self, domain: libvirt.virDomain) -> None:
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)

    def clean(self, vms: Sequence[str]) -> None:
        """End what this test made: by uuid, nothing else."""
        for vm in {*vms, *self._made}:
            try:
                domain = self.domain(vm)
                self._end(domain)
                self.forget(domain)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise
        for pool, folder in self._pools:
            if pool.isActive():
                pool.destroy()
            pool.undefine()
            shutil.rmtree(folder, ignore_errors=True)
        self.conn.close()

    def _end(self, domain: libvirt.virDomain) -> None:
        """One that crashed may go by itself between the question and the call."""
        try:
            if domain.isActive():
                domain.destroy()
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
                raise


class FakeOutside:
    """The fake itself, with `clean`."""

    def __init__(self, fake: FakeHypervisor) -> None:
        self.fake = fake

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fake, name)

    def clean(self, vms: Sequence[str]) -> None:
        self.fake.domains.clear()


def cgroup_version() -> int:
    return quota.cgroup_version(Path("/proc/cgroups").read_text())


def nobody_halted(vms: Sequence[str]) -> FrozenSet[str]:
    return frozenset()


def fake() -> Rig:
    loop, volumes = RealLoop(), Volumes()
    port = FakeHypervisor(INSTANCE, loop.seconds, sources=volumes.of)
    return Rig(port, FakeOutside(port), loop, "qemu", volumes)


def built_in() -> Rig:
    loop, volumes = RealLoop(), Volumes()
    port = Libvirt(settings("test:///default"), INSTANCE, lambda spec: no_disks(spec, volumes), loop, nobody_halted)
    return Rig(port, Outside("test:///default", "test"), loop, "test", volumes)


def begun(rig: Rig) -> Iterator[Rig]:
    """For a fixture: started, and ended whatever happens."""
    try:
        rig.start()
        yield rig
    finally:
        rig.end()


def no_disks(spec: VmSpec, volumes: Volumes) -> Paths:
    overlay, seed = (f"/nowhere/{spec.vm}.{kind}" for kind in ("qcow2", "iso"))
    return Paths(overlay, seed, "/nowhere/golden.qcow2", volumes.of(spec))


def qemu(
    uri: str, halted: Callable[[Sequence[str]], FrozenSet[str]] = nobody_halted, boot: bytes = b"", **kw: Any
) -> Rig:
    loop = RealLoop()
    disks = Disks(Volumes(), boot)
    port = Libvirt(settings(uri, **kw), INSTANCE, disks.paths, loop, halted)
    return Rig(port, Outside(uri, "qemu"), loop, "qemu", disks.volumes, disks)


def on_machine(rig: Rig, machine: str) -> None:
    """From now on it defines guests of this machine type, as where that is libvirt's own choice."""
    choice = rig.port._hands._choice
    of_type = rig.outside.conn.getDomainCapabilities(None, "x86_64", machine, choice.profile.domain_type)
    choice = drivers.in_ports(choice, of_type)
    profile = dataclasses.replace(choice.profile, machine=machine)
    assert rig.disks is not None
    rig.port._hands = Hands(profile, dataclasses.replace(choice, kinds=(profile,)), INSTANCE, rig.disks.paths,
                            cgroup_version())


def qemu_pid(vm: str, folder: Path = Path("/run/libvirt/qemu")) -> int:
    return int((folder / f"{domain_name(vm)}.pid").read_text())


def halted_by(folder: Path) -> Callable[[Sequence[str]], FrozenSet[str]]:
    """ports.Processes.halted by libvirt's pid files."""

    def state(vm: str) -> str:
        try:
            stat = Path(f"/proc/{qemu_pid(vm, folder)}/stat").read_text()
        except OSError:
            return ""
        return stat.rpartition(")")[2].split()[0]

    return lambda vms: frozenset(vm for vm in vms if state(vm) in ("T", "t", "D"))


def one_bridge(name: str) -> Iterator[str]:
    """A bridge for a test, removed afterwards."""
    subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "link", "del", name], check=True)


def percent(cap: int) -> CpuLimit:
    """A cap in percent of a core."""
    return CpuLimit(quota.PERIOD_US, quota.PERIOD_US * cap // 100)
