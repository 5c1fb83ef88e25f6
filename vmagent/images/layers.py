"""Layers of snapshots as files: found by name, cut back to one that is gone back to, and made empty again.

What a guest wrote is on top of the chain, so going back is to take the top away and to put an empty layer in its place.
The layer is made by `qemu-img` without opening what is below (`-u`): its size is said, and a guest's data is not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from vmagent import children
from vmagent.core.model import VmSpec
from vmagent.core.snapshotmodel import layer_file, memory_file
from vmagent.images.overlay import GIB
from vmagent.images.places import full, settle, sync_directory

_CREATE_S = 60.0
_CREATE_LIMITS = children.Limits(memory_mib=1024, cpu_s=10)


def make_layer(spec: VmSpec, overlay: str, names: Sequence[str], temporary: Path) -> None:
    """Make the last of these layers, empty, on the one before it or on the overlay.  Faults: FULL, REFUSED, UNKNOWN."""
    target = Path(layer_file(overlay, names[-1]))
    below = layer_file(overlay, names[-2]) if len(names) > 1 else overlay
    argv = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below, str(temporary)]
    try:
        children.run([*argv, str(spec.disk_gib * GIB)], _CREATE_S, limits=_CREATE_LIMITS)
        settle(temporary, target)
    except children.ChildFailed as failed:
        raise full(temporary) or failed from failed
    finally:
        temporary.unlink(missing_ok=True)


def cut_back(overlay: str, seed: str, found: Sequence[Path], kept: Sequence[str]) -> None:
    """Take away the seed and all of the layers `found` that are not of the snapshots `kept`."""
    stay = {file(overlay, name) for name in kept for file in (layer_file, memory_file)}
    for path in (Path(seed), *found):
        if str(path) not in stay:
            path.unlink(missing_ok=True)
    for folder in {Path(overlay).parent, Path(seed).parent}:
        sync_directory(folder)
