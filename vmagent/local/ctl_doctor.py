"""`vmagentctl doctor`: the checks of `doctor`, with what the running agent knows if it runs.

It must work when nothing else does: without the agent, and with a configuration that cannot be read.
"""

from __future__ import annotations

import argparse
import json
import socket
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, TextIO

from vmagent import configfile
from vmagent.config import Config
from vmagent.errors import Problem
from vmagent.local import doctor, tables
from vmagent.local.ctl_client import Client, Unreachable
from vmagent.local.ctl_session import Code

Row = Dict[str, str]  # {id, title, level, text, mend}


def run(said: argparse.Namespace, out: TextIO, screen: tables.Screen) -> int:
    """Exit code 1 when something is wrong, else 0."""
    rows: List[Row] = []
    config = _config(said, rows)
    if config is not None:
        live = _live(said.socket or config.socket.path)
        rows += [
            {"id": one.id, "title": one.title, "level": one.level.value, "text": one.text, "mend": one.mend}
            for one in doctor.run(config, live)
        ]
    if said.json:
        out.write(json.dumps({"findings": rows}, indent=2) + "\n")
    else:
        tables.findings(screen, rows)
    return Code.NO if any(row["level"] == doctor.Level.FAIL.value for row in rows) else Code.OK


def _config(said: argparse.Namespace, rows: List[Row]) -> Optional[Config]:
    row = {"id": "configuration", "title": "configuration", "level": doctor.Level.OK.value,
           "text": f"{said.config} can be used", "mend": ""}
    try:
        config = configfile.read(said.config, socket.getfqdn())
    except Problem as problem:
        row["level"] = doctor.Level.FAIL.value
        row["text"] = "; ".join(tables.problems(problem.as_json()))
        row["mend"] = f"mend it, then: vmagent --config {said.config} --check-config; nothing else was examined"
        rows.append(row)
        return None
    rows.append(row)
    return config


def _live(path: Path) -> Optional[Mapping[str, Any]]:
    """What the running agent says of itself; None when it does not answer, which is a finding of `doctor`'s."""
    try:
        with Client(path) as client:
            return {**client.ask("doctor"), "accounting": client.ask("accounting")}
    except (Unreachable, Problem):
        return None
