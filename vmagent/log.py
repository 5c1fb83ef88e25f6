"""Logging: one line or one journal entry per event, with fields, never with secrets.

Rules

1. Something an operator may want to find again is an `event`: it has a name in MESSAGES, whose id never changes and
   becomes journald's MESSAGE_ID, and fields out of FIELDS.  docs/operations/messages.md lists both; a test holds them
   equal, and checks every call of `event` in the source.
2. FIELDS is closed, and none of its members can hold a secret.  A field that is not in it is left out.
3. When stderr is the journal, entries carry VMAGENT_VM=, VMAGENT_COMMAND=, ...; else stderr gets the same fields as
   key=value behind the text.  systemd's Python module may be absent.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, TextIO

from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    STDLibLogObserver,
    globalLogBeginner,
)
from twisted.python.failure import Failure

PREFIX = "VMAGENT_"


@dataclass(frozen=True)
class Message:
    """One kind of event.  id: 32 hexadecimal digits, for ever; level: of `logging`; meaning: for the operator."""

    id: str
    level: int
    meaning: str


MESSAGES: Mapping[str, Message] = {
    "agent-ready": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c201", logging.INFO, "The agent has its store and looked at the host once."
    ),
    "agent-stopping": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c202", logging.INFO, "The agent stops. Guests, rules and limits stay as they are."
    ),
    "config-read": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c203", logging.INFO, "A configuration was read and is in force."
    ),
    "config-refused": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c204",
        logging.ERROR,
        "A new configuration is wrong; the old one stays. `vmagent --check-config` tells all the reasons.",
    ),
    "store-epoch": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c205", logging.WARNING, "The store begins a new epoch: it is new or was restored."
    ),
    "store-corrupt": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c206",
        logging.ERROR,
        "The store could not be read and was set aside; VMs are adopted from their tags.",
    ),
    "store-failed": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c207",
        logging.ERROR,
        "A commit failed: nothing is acknowledged until one succeeds. Look at the disk of directories.state.",
    ),
    "libvirt-up": Message("6c8e01a3f2c74b4f9a30b5a4f1d0c208", logging.INFO, "libvirt answers."),
    "libvirt-away": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c209",
        logging.WARNING,
        "libvirt does not answer: the state of VMs is unknown, and nothing is concluded from that.",
    ),
    "broker-up": Message("6c8e01a3f2c74b4f9a30b5a4f1d0c20a", logging.INFO, "The broker is connected."),
    "broker-away": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c20b",
        logging.WARNING,
        "No broker is connected; messages are kept, leases end in time all the same.",
    ),
    "command-accepted": Message("6c8e01a3f2c74b4f9a30b5a4f1d0c20c", logging.INFO, "A command was accepted and stored."),
    "command-refused": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c20d", logging.WARNING, "A command was refused; nothing was done."
    ),
    "vm-phase": Message("6c8e01a3f2c74b4f9a30b5a4f1d0c20e", logging.INFO, "A VM is in another phase."),
    "vm-ended": Message("6c8e01a3f2c74b4f9a30b5a4f1d0c20f", logging.INFO, "A VM has ended, with its outcome."),
    "vm-stuck": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c210",
        logging.ERROR,
        "A VM's QEMU does not answer or cannot be killed. Its capacity stays counted.",
    ),
    "limits-reproven": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c2a0",
        logging.INFO,
        "A guest rebooted, which made a new domain: its limits hold again.",
    ),
    "lease-warning": Message("6c8e01a3f2c74b4f9a30b5a4f1d0c211", logging.INFO, "A VM's agreed run time ends soon."),
    "action-failed": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c212", logging.WARNING, "A step for a VM failed; the loop decides what follows."
    ),
    "foreign-domain": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c213", logging.INFO, "A domain that is not ours was seen; it is never touched."
    ),
    "drained": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c214", logging.WARNING, "The host takes no new VMs, or does again."
    ),
    "poison": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c215",
        logging.WARNING,
        "A message could not be understood or not be authenticated; it was acknowledged and counted.",
    ),
    "surprise": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c216",
        logging.ERROR,
        "An error in the agent itself, with its traceback: please report it.",
    ),
    "limit-drift": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c217",
        logging.WARNING,
        "A running VM's limit was not as wanted. It was set again, unless the line says that it cannot be.",
    ),
    "isolated": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c218",
        logging.ERROR,
        "A running VM's network limits cannot be restored: its interfaces were taken down until they are.",
    ),
    "rejoined": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c219", logging.WARNING, "An isolated VM is proven again; its interfaces are up."
    ),
    "spoofed": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c21a", logging.WARNING, "A VM sent frames with addresses that are not its own."
    ),
    "capped": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c21b",
        logging.WARNING,
        "A VM opens more connections, or to more destinations, than it may: is it compromised?",
    ),
    "accounting-imbalance": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c270",
        logging.ERROR,
        "More is accounted for than this host gives: its books are wrong, or it shrank under its guests.",
    ),
    "image-distrusted": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c230",
        logging.ERROR,
        "VMs run on an image that is not trusted any more; the line says which, and what is done.",
    ),
    "list-taken": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c240", logging.INFO, "A new version of an image list is in use."
    ),
    "list-refused": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c241",
        logging.WARNING,
        "An image list could not be had, was refused, or its signer is in doubt; the last one taken counts on.",
    ),
    "swept": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c21c",
        logging.WARNING,
        "Rules or an interface of ours belonged to no VM any more and were removed.",
    ),
    "image-evicted": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c284", logging.INFO, "A golden image's file was removed from the cache by command."
    ),
    "image-fetched": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c280", logging.INFO, "A golden image was fetched, verified and put into the cache."
    ),
    "image-not-fetched": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c281",
        logging.WARNING,
        "A golden image could not be fetched, or is not what it should be; the reason says which.",
    ),
    "certificate-ends": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c290",
        logging.WARNING,
        "A certificate or revocation list has expired, expires soon or cannot be used; the line names file and date.",
    ),
    "certificates-renewed": Message(
        "6c8e01a3f2c74b4f9a30b5a4f1d0c291",
        logging.INFO,
        "Renewed files of broker.tls are taken: the link to the broker is made anew with them.",
    ),
}

FIELDS: Mapping[str, str] = {
    "vm": "VM id = domain uuid",
    "command": "id of the command",
    "verb": "what the command asked",
    "signer": "subject of the signer, or local:<user>",
    "route": "broker or local",
    "problem": "type of the refusal",
    "fault": "kind of the failure",
    "action": "the step that was taken",
    "phase": "phase of the VM",
    "outcome": "how the VM ended",
    "reason": "why, in plain words",
    "peer": "URI of libvirt or URL of the broker",
    "epoch": "epoch of the store",
    "file": "the file in question",
    "image": "id of the golden image",
    "device": "the host's network interface in question",
    "list": "identifier of the image list",
    "count": "how many",
    "seconds": "how long, or how long until",
}


def event(logger: logging.Logger, name: str, text: str, **fields: Any) -> None:
    """Log an event of MESSAGES.  text: plain words for people; fields: of FIELDS, None is left out.

    In an `except` block the traceback of an event "surprise" goes along.
    """
    message = MESSAGES[name]
    extra: Dict[str, Any] = {PREFIX + key.upper(): str(value) for key, value in _allowed(fields).items()}
    extra["MESSAGE_ID"] = message.id
    logger.log(message.level, "%s", text, extra=extra, exc_info=name == "surprise" and sys.exc_info()[0] is not None)


def surprise(logger: logging.Logger, text: str, failure: Failure) -> None:
    """A "surprise" out of a Deferred's failure, traceback included."""
    message = MESSAGES["surprise"]
    error = failure.value
    logger.log(message.level, "%s: %s", text, error, extra={"MESSAGE_ID": message.id}, exc_info=error)


def _allowed(fields: Mapping[str, Any]) -> Dict[str, Any]:
    return {key: value for key, value in fields.items() if key in FIELDS and value is not None}


class PlainFormatter(logging.Formatter):
    """`warning vmagent.intake: refused command=... problem=...`"""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{record.levelname.lower()} {record.name}: {_safe(record.getMessage())}"
        for key, value in record.__dict__.items():
            if key.startswith(PREFIX):
                line += f" {key[len(PREFIX) :].lower()}={_value(value)}"
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _safe(text: str) -> str:
    """Nobody writes a line of his own into our log: control characters are written out, further lines are marked."""
    lines = text.rstrip("\n").split("\n")
    return "\n  | ".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines)


def _value(value: Any) -> str:
    text = str(value)
    return text if text.isprintable() and text and not set(text) & set(' "=') else json.dumps(text)


def stderr_is_journal(environ: Mapping[str, str], stderr: TextIO) -> bool:
    """systemd names the device and inode of the stream it connected to the journal."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(stderr.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def _journal_handler() -> Optional[logging.Handler]:
    try:
        from systemd.journal import JournalHandler
    except ImportError:
        return None
    handler: logging.Handler = JournalHandler(SYSLOG_IDENTIFIER="vmagent")
    return handler


def _plain_handler(stream: TextIO) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter())
    return handler


_ours: List[logging.Handler] = []
_twisted: List[Any] = []
_from_warning: Any = LogLevelFilterPredicate(LogLevel.warn)


def setup(level: str, journald: Optional[bool] = None) -> None:
    """Send everything to one handler; may be called again, after a change of level.

    level: debug | info | warning | error, of our own loggers; libraries speak from `warning` on, because stomp.py at
    debug writes out whole frames.  journald: None = find out by JOURNAL_STREAM.
    """
    if journald is None:
        journald = stderr_is_journal(os.environ, sys.stderr)
    handler = (_journal_handler() if journald else None) or _plain_handler(sys.stderr)
    root = logging.getLogger()
    for old in _ours:
        root.removeHandler(old)
    _ours[:] = [handler]
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("vmagent").setLevel(level.upper())
    _observe_twisted()


def _observe_twisted() -> None:
    """What Twisted logs, such as the traceback of an error nobody took, goes the same way."""
    if _twisted:
        return
    observer: Any = STDLibLogObserver(name="vmagent.twisted")
    _twisted.append(observer)

    important: Any = FilteringLogObserver(observer, [_from_warning])
    globalLogBeginner.beginLoggingTo([important], redirectStandardIO=False)
