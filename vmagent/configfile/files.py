"""What the host must have for the configuration to work: files and groups.  Asked for by --check-config only.

The agent itself starts without them (an expired or missing certificate must not take the local socket away).
"""

from __future__ import annotations

import grp
import os
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional

from vmagent.configfile.loading import Complaint, Parts


def host_complaints(values: Mapping[str, Any]) -> Iterator[Complaint]:
    broker = values["broker"]
    yield from _file(("broker", "passcode_file"), broker["passcode_file"])
    for name in ("ca", "certificate", "key"):
        yield from _file(("broker", "tls", name), (broker["tls"] or {}).get(name))
    yield from _file(("images", "fetch", "ca"), values["images"]["fetch"]["ca"])
    for name in ("certificate", "key"):
        pair = (values["accounting"]["apel"] or {}).get("sign") or {}
        yield from _file(("accounting", "apel", "sign", name), pair.get(name))
    security = values["security"]
    if security["commands"] == "signed" and not Path(security["ca_directory"]).is_dir():
        detail = f"{security['ca_directory']} is no directory"
        yield Complaint(("security", "ca_directory"), detail, "a directory with the site's CA certificates")
    for name in ("admin_group", "reader_group"):
        yield from _group(("socket", name), values["socket"][name])


def _file(at: Parts, path: Optional[str]) -> Iterator[Complaint]:
    if path is None:
        return
    if not Path(path).is_file():
        yield Complaint(at, f"{path} is no file", "an existing file")
    elif not os.access(path, os.R_OK):
        yield Complaint(at, f"{path} cannot be read by this user", "a readable file")


def _group(at: Parts, name: str) -> Iterator[Complaint]:
    if not name:
        return
    try:
        grp.getgrnam(name)
    except KeyError:
        yield Complaint(at, f'there is no group "{name}"', "a group of this host, or empty")
