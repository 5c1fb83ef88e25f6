"""One host's share of its site as a GLUE 2.1 document in JSON (FORMATS 4.2, 4.4; I7).

Theory.  Every object is named after the site, never after the host: a site's document (gluesite.py) is made from its
hosts' by adding up the objects of one class and ID.  So what stands here of a host is its part of a sum (VMs, cores,
memory), of a maximum (the largest VM), or the same on all hosts (flavours, images).

Rules: what nobody knows is left out, as readers of this format expect, and is never 0; `Validity` is what is left of
five minutes; memory is in MB of 2^20 bytes, as other clouds count it.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence

from vmagent.core import walltime

Json = Dict[str, Any]
Data = Mapping[str, Any]
Document = Dict[str, List[Json]]

AUP = "http://go.egi.eu/aup"
PLATFORMS = {"x86_64": "amd64", "aarch64": "arm64", "i686": "i386"}
ACCELERATORS = {"display": "GPU", "3d": "GPU", "accelerator": "other"}
COUNTS = {"TotalVM": "total", "RunningVM": "running", "SuspendedVM": "suspended", "HaltedVM": "halted"}
CRITICAL = ("libvirt", "store", "firewall")  # parts without which no VM starts


def share(state: Data, capacity: Data, images: Sequence[Data], url: str) -> Document:
    """The document of one host.

    state, capacity: data of host.state and host.capacity; images: of image.state; url: where its broker is.
    """
    maker = _Maker(state, capacity)
    vos = _vos(state, capacity)
    return {
        "CloudComputingService": [maker.service(vos)],
        "CloudComputingManager": [maker.manager()],
        "CloudComputingEndpoint": [maker.endpoint(url)],
        "Share": [maker.share(vo) for vo in vos],
        "MappingPolicy": [maker.mapping(vo) for vo in vos],
        "AccessPolicy": [maker.access(vos)],
        "CloudComputingInstanceType": [maker.flavour(one, vos) for one in capacity["flavours"]],
        "CloudComputingImage": [maker.image(one, vos) for one in images if one["trusted"]],
        "CloudComputingVirtualAccelerator": maker.accelerators(),
    }


def _vos(state: Data, capacity: Data) -> List[str]:
    """VOs that have a share here: those that the authority table names, and those whose VMs are here."""
    named = [pattern.lstrip("/").split("/", 1)[0] for row in state["access"] for pattern in row["vos"]]
    literal = {vo for vo in named if vo and not set(vo) & set("*?[")}
    return sorted(literal | {one["vo"] for one in capacity["vos"] if one["vo"]})


def counts(vms: Optional[Data]) -> Json:
    """VMs by what they do; while some cannot be seen only their total is known."""
    known = vms or dict.fromkeys(("total", "running", "suspended", "halted", "unknown"), 0)
    return {name: known[word] for name, word in COUNTS.items() if word == "total" or not known["unknown"]}


class _Maker:
    """What all objects of one host share."""

    def __init__(self, state: Data, capacity: Data) -> None:
        self._state = state
        self._capacity = capacity
        self._site = str(state["site"])
        left = walltime.seconds(capacity["valid_until"]) - walltime.seconds(capacity["at"])
        self._common = {"CreationTime": capacity["at"], "Validity": round(left)}

    def _object(self, id: str, name: str, other: Optional[Data] = None, **associations: Sequence[str]) -> Json:
        made: Json = {"ID": id, "Name": name, **self._common}
        kept = {key: value for key, value in (other or {}).items() if value is not None}
        if kept:
            made["OtherInfo"] = kept
        if associations:
            made["Associations"] = {key: list(ids) for key, ids in associations.items()}
        return made

    def _id(self, *parts: str) -> str:
        return "_".join((self._site, *parts))

    def _shares(self, vos: Sequence[str]) -> List[str]:
        return [self._id("share", vo) for vo in vos]

    def service(self, vos: Sequence[str]) -> Json:
        starts = self._capacity["starts"]
        other = {"Hosts": [self._state["host"]], "StaleParts": [one["part"] for one in self._capacity["stale"]] or None,
                 "ImageTrust": self._state["image_trust"]["unendorsed"],
                 "StartSecondsMedian": starts["median_s"], "StartSecondsP95": starts["p95_s"]}
        return {
            **self._object(self._id("service"), f"vmagent of {self._site}", other, AdminDomain=[self._site],
                           CloudComputingManager=[self._id("manager")], CloudComputingEndpoint=[self._id("endpoint")],
                           Share=self._shares(vos)),
            "Type": "org.cloud.iaas",
            "QualityLevel": "production",
            "ServiceAUP": AUP,
            "Complexity": f"endpointType=1,share={len(vos)}",
            "Capability": ["executionmanagement.dynamicvmdeploy", "security.accounting"],
            **counts(self._capacity["vms"]),
        }

    def manager(self) -> Json:
        hypervisor, capacity = self._state["hypervisor"], self._capacity
        cores, memory, disk = (capacity[what] for what in ("cores", "memory_mib", "disk_gib"))
        smallest, biggest = capacity["instance"]["minimum"], capacity["instance"]["maximum"]
        kind = hypervisor["domain_type"]
        takes = capacity["largest"] is not None  # else what is free is nobody's to have
        other = {
            "AllocatedCPUs": cores["promised"], "AllocatedRAM": memory["promised"],
            "FreeCPUs": cores["free"] if takes else 0, "FreeRAM": memory["free"] if takes else 0,
            "FreeDisk": disk["free"] if takes else 0, "Architecture": hypervisor["arch"] or None,
            **self._cpu(),
            "Snapshots": self._state["capabilities"]["snapshots"]["allowed"],
            "Firewall": self._state["capabilities"]["firewall"]["tracking"] != "none",
            "Bandwidth": bool(self._state["capabilities"]["bandwidth"]["qdisc"]),
        }  # fmt: skip
        return {
            **self._object(self._id("manager"), f"vmagent of {self._site}", other,
                           CloudComputingService=[self._id("service")]),
            "ProductName": "vmagent",
            "ProductVersion": self._state["version"],
            **({"HypervisorName": kind} if kind != "unknown" else {}),
            **({"HypervisorVersion": hypervisor["hypervisor_version"]} if hypervisor["hypervisor_version"] else {}),
            "TotalCPUs": cores["total"],
            "TotalRAM": memory["total"],
            "InstanceMaxCPU": biggest["cores"],
            "InstanceMinCPU": smallest["cores"],
            "InstanceMaxRAM": biggest["memory_mib"],
            "InstanceMinRAM": smallest["memory_mib"],
            "NetworkVirtualizationType": "bridge",
            "CPUVirtualizationType": "emulated" if self._state["capabilities"]["emulated"] else "hardware",
            "ManagerVirtualdiskFormat": ", ".join(self._state["formats"]["image"]),
            "ManagerFailover": False,
            "ManagerLiveMigration": False,
            "ManagerVMBackupRestore": False,
        }

    def _cpu(self) -> Json:
        cpu = self._capacity["cpu"]
        measured = cpu["benchmark"]
        return {"CPUModel": cpu["model"], "CPUMHz": cpu["mhz"],
                **({f"Benchmark_{measured['name']}": measured["per_core"]} if measured else {})}

    def endpoint(self, url: str) -> Json:
        state, info = health(self._state)
        return {
            **self._object(self._id("endpoint"), f"vmagent of {self._site}", None,
                           CloudComputingService=[self._id("service")], AccessPolicy=[self._id("access")]),
            "URL": url,
            "InterfaceName": "vmagent.stomp",
            "InterfaceVersion": "1",
            "Capability": ["executionmanagement.dynamicvmdeploy"],
            "QualityLevel": "production",
            "HealthState": state,
            **({"HealthStateInfo": info} if info else {}),
            "ServingState": self._state["serving"]["state"],
            "Technology": "webservice",
            "Implementor": "vmagent",
            "ImplementationName": "vmagent",
            "ImplementationVersion": self._state["version"],
            "Authentication": "X509",
        }

    def share(self, vo: str) -> Json:
        held = next((one for one in self._capacity["vos"] if one["vo"] == vo), None)
        size = self._capacity["largest"] or {"cores": 0, "memory_mib": 0}
        networks = self._state["networks"]
        kinds = sorted({one["kind"] for one in networks})
        public = next((one["type"] for one in networks if one["kind"] == "public"), None)
        return {
            **self._object(self._id("share", vo), f"{vo} at {self._site}", None,
                           CloudComputingService=[self._id("service")],
                           CloudComputingEndpoint=[self._id("endpoint")], MappingPolicy=[self._id("mapping", vo)]),
            "InstanceMaxCPU": size["cores"],
            "InstanceMaxRAM": size["memory_mib"],
            **counts(held["vms"] if held else None),
            "NetworkInfo": ", ".join(one["type"] for one in networks),
            **({"DefaultNetworkType": kinds[0]} if len(kinds) == 1 else {}),
            **({"PublicNetworkName": public} if public else {}),
            "ProjectID": vo,
        }

    def mapping(self, vo: str) -> Json:
        made = self._object(self._id("mapping", vo), f"{vo} at {self._site}", None, Share=[self._id("share", vo)],
                            PolicyUserDomain=[vo])
        return {**made, "Scheme": "org.glite.standard", "Rule": [f"VO:{vo}"]}

    def access(self, vos: Sequence[str]) -> Json:
        made = self._object(self._id("access"), f"vmagent of {self._site}", None,
                            CloudComputingEndpoint=[self._id("endpoint")], PolicyUserDomain=vos)
        return {**made, "Scheme": "org.glite.standard", "Rule": [f"VO:{vo}" for vo in vos]}

    def flavour(self, one: Data, vos: Sequence[str]) -> Json:
        arch = str(self._state["hypervisor"]["arch"])
        return {
            **self._object(self._id("type", one["flavour"]), one["flavour"], {"PossibleNow": one["possible"]},
                           Share=self._shares(vos), CloudComputingManager=[self._id("manager")],
                           CloudComputingEndpoint=[self._id("endpoint")]),
            "Platform": PLATFORMS.get(arch, arch) or "UNKNOWN",
            "CPU": one["cores"],
            "RAM": one["memory_mib"],
            "Disk": one["disk_gib"],
            "NetworkIn": "UNKNOWN",  # as each request's own rules say
            "NetworkOut": bool(self._state["networks"]),
        }

    def image(self, one: Data, vos: Sequence[str]) -> Json:
        other = {"sha512": one["sha512"], "format": one["format"], "endorser": one.get("endorser") or None,
                 "expires": one.get("expires") or None, "CachedHosts": 1 if one.get("cached") else 0}
        arch = str(self._state["hypervisor"]["arch"])
        return {
            **self._object(self._id("image", one["id"], one["sha512"][:16]), one["id"], other,
                           Share=self._shares(vos), CloudComputingManager=[self._id("manager")],
                           CloudComputingEndpoint=[self._id("endpoint")]),
            **({"MarketplaceURL": one["url"]} if one.get("url") else {}),
            "OSPlatform": PLATFORMS.get(arch, arch) or "UNKNOWN",
            "OSName": "UNKNOWN",
            "AccessInfo": "none",
        }

    def accelerators(self) -> List[Json]:
        found: Dict[str, List[Data]] = {}
        for one in self._capacity["devices"] or ():
            found.setdefault(self._id(one["kind"], one["vendor"], one["device"]), []).append(one)
        return [self._accelerator(id, devices) for id, devices in sorted(found.items())]

    def _accelerator(self, id: str, devices: Sequence[Data]) -> Json:
        first = devices[0]
        aside = sum(1 for one in devices if one["driver"] == "vfio-pci" and one["iommu_group"] is not None)
        return {
            **self._object(id, f"{first['kind']} {first['vendor']}:{first['device']}", {"SetAside": aside},
                           CloudComputingManager=[self._id("manager")]),
            "Type": ACCELERATORS[first["kind"]],
            "Number": len(devices),
            "Vendor": first["vendor"],
            "Model": first["device"],
        }


def health(state: Data) -> Any:
    """(HealthState, why) by what is degraded: `critical` when no VM can start for it."""
    degraded = {one["part"]: one["why"] for one in state["degraded"]}
    info = "; ".join(f"{part}: {why}" for part, why in sorted(degraded.items()))
    if not state["hypervisor"]["connected"] or not state["capabilities"]["start"] or set(degraded) & set(CRITICAL):
        return "critical", info or str(state["serving"]["reason"])
    return ("warning", info) if degraded else ("ok", "")
