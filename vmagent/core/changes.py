"""What one store transaction may hold.  A commit is a sequence of these; all of it lands or none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Optional, Tuple, Union

from vmagent.core.context import Context
from vmagent.core.imagemodel import Revocation
from vmagent.core.model import VmRecord
from vmagent.core.usagemodel import Account


@dataclass(frozen=True)
class CommandRow:
    """A command with its verdict.  `digest` is SHA-256 (hex) of the exact body bytes."""

    id: str
    digest: str
    schema: str  # "vm.start/1"
    signer: str
    route: str  # "broker" | "local"
    issued_wall: str
    valid_until_wall: str
    reply_to: str
    members: Tuple[str, ...]  # VM ids it acts on
    status: str  # accepted | done | failed | refused
    reply: Mapping[str, Any]  # the last reply sent
    received_wall: str
    args: Mapping[str, Any]  # without secrets


@dataclass(frozen=True)
class PutVm:
    record: VmRecord


@dataclass(frozen=True)
class PutCommand:
    row: CommandRow


@dataclass(frozen=True)
class PutContext:
    """What a start gives its guests, secrets included (context.py).  It goes with the closing of the command's last
    VM: the same transaction takes it away.
    """

    command: str
    context: Context


@dataclass(frozen=True)
class Publish:
    """Append to the outbox; the store gives it the next sequence of (epoch, stream)."""

    stream: str  # events | usage | capacity | telemetry
    type: str  # "org.vmagent.vm.state"
    subject: str  # "vm/<id>" | "host"
    time_wall: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class SendReply:
    """Append a reply to the outbox: stream "replies", no sequence on the wire."""

    destination: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class PutAudit:
    """Who did what, by which route, with which verdict.  `bounded`: a ring (unauthenticated refusals)."""

    when_wall: str
    who: str
    route: str
    verb: str
    subject: str
    verdict: str  # accepted | refused | done | failed
    why: str
    command: str = ""
    bounded: bool = False


@dataclass(frozen=True)
class PutSetting:
    """One named host-wide value that outlives a restart ("drained")."""

    name: str
    value: Optional[Any]  # None deletes; else JSON


@dataclass(frozen=True)
class PutRevocation:
    """Kept for ever; one per key, the newest version."""

    revocation: Revocation


@dataclass(frozen=True)
class PutAccount:
    """An open segment as it is now; one per segment."""

    account: Account


@dataclass(frozen=True)
class DropAccount:
    """A segment is over: its last period is in the same transaction."""

    segment: str


@dataclass(frozen=True)
class PutUsage:
    """A closed period.  The same segment and period again replaces its data, and keeps its row."""

    vm: str
    segment: str
    period: int
    from_wall: str
    to_wall: str
    data: Mapping[str, Any]  # of vm.usage


@dataclass(frozen=True)
class MarkExported:
    """Rows of usage up to this one need not be kept for `who` any more.  A mark never goes back."""

    who: str
    row: int


Change = Union[
    PutVm, PutCommand, PutContext, Publish, SendReply, PutAudit, PutSetting, PutRevocation, PutAccount, DropAccount,
    PutUsage, MarkExported,
]  # fmt: skip


@dataclass(frozen=True)
class OutboxRow:
    """One message waiting for the broker's receipt."""

    row: int  # grows; the order of sending
    stream: str
    sequence: int  # 0 for replies
    epoch: str
    epoch_number: int
    destination: str  # replies only
    type: str
    subject: str
    time_wall: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Epoch:
    """One life of the store (DESIGN 7, Store lost or restored).

    "restored" stays the cause for the whole life: it is the open records accepted *before* `born_wall` that may be
    older than the truth.  For those the domain's tag is preferred, and without a domain they may have run.
    """

    id: str  # uuid
    number: int  # grows per host, whatever is lost; steps of any size
    born_wall: str
    cause: str  # "first" | "lost" | "restored" | "corrupt"
    set_aside: str = ""  # where a corrupt or superseded file was put


@dataclass(frozen=True)
class Stored:
    """What `open` hands back."""

    epoch: Epoch
    records: Tuple[VmRecord, ...]  # not closed
    pending: Tuple[CommandRow, ...]  # status "accepted": a final reply is still owed
    settings: Mapping[str, Any]
    revocations: Tuple[Revocation, ...] = ()
    accounts: Tuple[Account, ...] = ()  # open ones
