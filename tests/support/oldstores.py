"""Makes a store file as the code beside it writes it: `python oldstores.py DIRECTORY`, with PYTHONPATH at any revision.

Run once per schema, at the last revision that had it; what it made is kept in tests/data/stores and never made again:
schema-N.db with its marker schema-N.epoch, and schema-N.json, which says what went in.  When a step is added to
`vmagent.store.schema.STEPS`, run it at the revision *before* that, and add the three files to the same commit.
It uses only names that every revision has, and what came later where it is there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, List

from tests.support import building as b
from tests.support.opened import OpenedStore
from vmagent.core import changes
from vmagent.core.codec import plain
from vmagent.core.model import Desired, Outcome
from vmagent.store import schema

OVER = "11111111-2222-4333-8444-555555555555"  # a command whose VM is over
LATER = "2026-11-20T12:00:01.000Z"


def records() -> List[Any]:
    """One that runs, one that waits, one that is stopped, one that is over."""
    return [
        b.record(journal=b.ran()),
        b.record(spec={"member": 1, "name": "waits"}),
        b.record(spec={"member": 2, "name": "stopped"}, journal=b.ran(), desired=Desired.STOP),
        b.record(spec={"command": OVER, "name": "over"}, journal=b.ran(), desired=Desired.ABSENT, closed=True,
                 outcome=Outcome.FINISHED),
    ]  # fmt: skip


def command(id: str, status: str) -> Any:
    members = tuple(record.vm for record in records() if record.spec.command == id)
    reply = {"command": id, "status": status, "result": {"vms": list(members)}}
    return changes.CommandRow(id, "d" * 64, "vm.start/1", b.SIGNER, "broker", b.WALL, LATER, "/queue/replies", members,
                              status, reply, b.WALL, {"count": len(members)})


def common() -> List[Any]:
    made: List[Any] = [changes.PutVm(record) for record in records()]
    made += [changes.PutCommand(command(b.COMMAND, "accepted")), changes.PutCommand(command(OVER, "done"))]
    made += [changes.SendReply("/queue/replies", dict(command(id, status).reply))
             for id, status in ((b.COMMAND, "accepted"), (OVER, "done"))]
    made += [changes.Publish("events", "org.vmagent.vm.state", f"vm/{record.vm}", b.WALL, {"name": record.spec.name})
             for record in records()]
    made += [changes.PutAudit(b.WALL, b.SIGNER, "broker", "vm.start", record.vm, "accepted", "", record.spec.command)
             for record in records()]
    return [*made, changes.PutSetting("drained", True)]


def newer() -> List[Any]:
    """What came with a later schema."""
    made: List[Any] = []
    if hasattr(changes, "PutContext"):
        from vmagent.core.context import Context

        made.append(changes.PutContext(b.COMMAND, Context("aGVsbG8=", ("ssh-ed25519 AAAA u",), (("role", "w"),))))
    if hasattr(changes, "PutRevocation"):
        from vmagent.core.imagemodel import Revocation

        made.append(changes.PutRevocation(Revocation("tiny", "", 1, "forbid", b.SIGNER, "unsafe", b.WALL)))
    if hasattr(changes, "PutAccount"):
        from vmagent.core.usagemodel import Account, Footprint

        vm = records()[0].vm
        account = Account(vm, 1, 1, b.BOOT, Footprint(1, 512, 2), 1000, 5000, 2000, 2)
        made += [changes.PutAccount(account), changes.MarkExported("apel", 1),
                 changes.PutUsage(vm, account.segment, 1, b.WALL, LATER, {"vm": vm, "period": 1})]
    return made


def main(directory: Path) -> None:
    number = len(schema.STEPS)
    path = directory / f"schema-{number}.db"
    with OpenedStore(path) as opened:
        opened.commit(*common(), *newer())
        kept = {
            "epoch": opened.epoch.id,
            "records": [plain(record) for record in records()],
            "commands": [plain(command(b.COMMAND, "accepted")), plain(command(OVER, "done"))],
            "outbox": [plain(row) for row in opened.ask("outbox", 0, 1000)],
            "audit": opened.ask("audit", 1000, ""),
            "later": [plain(change) for change in newer()],
        }
    path.with_suffix(".json").write_text(json.dumps(kept, indent=1, sort_keys=True, default=plain) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
