"""A host with room, as capacity sees it: every part by name."""

from __future__ import annotations

from typing import Any, Dict

from tests.support import building as b
from vmagent.core import events, starts
from vmagent.core.capacity import Around, Device, Here
from vmagent.core.model import Observed, Seen, VmRecord
from vmagent.core.policy import Flavour
from vmagent.core.room import HostRoom

GPU = Device("0000:3b:00.0", "3d", "0x10de", "0x20b0", "vfio-pci", 12)
FLAVOURS = {"small": Flavour(1, 512, 2, 50), "large": Flavour(4, 8192, 40)}


def room(**kw: Any) -> HostRoom:
    """8 cores, 16 GiB to sell and 1 GiB of reserve, 100 GiB of disk above the floor."""
    members: Dict[str, Any] = {"cores": 8, "memory_mib": 16384 + 1024, "disk_free_gib": 105, "drained": False,
                               "emulated_ok": True}
    return HostRoom(**{**members, **kw})


def here(*records: VmRecord, at: float = 2000.0, seen: Any = None, **kw: Any) -> Here:
    """seen: VM id -> Observed; a VM that is not named runs when its journal says so.  recent: closed."""
    look: Dict[str, Observed] = {
        one.vm: b.observed(Seen.RUNNING if one.journal.may_have_run else Seen.MISSING, one.spec, at=at)
        for one in records
    }
    look.update(seen or {})
    members: Dict[str, Any] = {
        "policy": b.policy(flavours=FLAVOURS, memory_overhead_mib=0), "records": records,
        "phases": {one.vm: events.phase(one, look[one.vm]) for one in records}, "room": room(),
        "around": Around({b.BRIDGE: 10_000_000}, (GPU,)), "now": b.now(at),
    }  # fmt: skip
    members["starts"] = starts.lately(None, (*kw.pop("recent", ()), *records), members["now"])
    return Here(**{**members, **kw})
