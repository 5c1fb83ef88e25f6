"""The seed on the disk: an ISO 9660 volume `cidata`, readable by nobody but its owner (it may hold user data)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Mapping

from vmagent import children
from vmagent.core.seed import VOLUME
from vmagent.images.places import full, settle, written

_BUILD_S = 30.0


def make_seed(files: Mapping[str, bytes], target: Path, temporary: Path, folder: Path) -> None:
    """Make or replace `target`; `temporary` and `folder` are used on the way and gone afterwards.

    Faults: REFUSED, FULL, UNKNOWN.
    """
    try:
        written(files, folder)
        argv = ["xorriso", "-as", "mkisofs", "-quiet", "-V", VOLUME, "-J", "-r", "-o", str(temporary), str(folder)]
        children.run(argv, _BUILD_S)
        settle(temporary, target)
    except children.ChildFailed as failed:
        raise full(temporary) or failed from failed
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        temporary.unlink(missing_ok=True)
