"""Messages are declared, documented, called as declared, and never carry a secret or a forged line."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator, List

import pytest

from vmagent import log

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/operations/messages.md"


class Kept(logging.Handler):
    """Keeps records and their plain lines."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(log.PlainFormatter())
        self.records: List[logging.LogRecord] = []
        self.lines: List[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.lines.append(self.format(record))


@pytest.fixture(name="kept")
def _kept() -> Iterator[Kept]:
    handler = Kept()
    logger = logging.getLogger("vmagent.test_log")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield handler
    logger.removeHandler(handler)
    logger.propagate = True


LOGGER = logging.getLogger("vmagent.test_log")


def test_the_page_lists_what_is_declared() -> None:
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in PAGE.read_text().splitlines()]
    rows = [row for row in rows if len(row) in (2, 4) and row[0] not in ("name", "field") and "-" * 3 not in row]
    messages = [[n, logging.getLevelName(m.level).lower(), m.id, m.meaning] for n, m in log.MESSAGES.items()]
    fields = [[f"VMAGENT_{name.upper()}", meaning] for name, meaning in log.FIELDS.items()]
    assert rows == messages + fields


def test_ids_are_128_bits_and_differ() -> None:
    ids = [message.id for message in log.MESSAGES.values()]
    assert len(set(ids)) == len(ids)
    assert all(len(bytes.fromhex(id)) == 16 and id == id.lower() for id in ids)


def _is_event(called: ast.expr) -> bool:
    """`log.event` or `logs.event`."""
    if not isinstance(called, ast.Attribute) or called.attr != "event":
        return False
    return isinstance(called.value, ast.Name) and called.value.id in ("log", "logs")


def calls() -> Iterator[Any]:
    """Every call of `event` in the source: (where, the name, names of the fields)."""
    for path in sorted((ROOT / "vmagent").rglob("*.py")):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "log" in text and ".event(" in text else ():
            if isinstance(node, ast.Call) and _is_event(node.func):
                yield path.name, node.args[1], [k.arg for k in node.keywords]


def test_every_call_is_as_declared() -> None:
    for where, name, fields in calls():
        assert isinstance(name, ast.Constant) and name.value in log.MESSAGES, f"{where}: {ast.dump(name)}"
        assert set(fields) <= set(log.FIELDS), f"{where}: {fields}"


def test_an_event_carries_its_id_level_and_fields(kept: Kept) -> None:
    log.event(LOGGER, "command-refused", "no", vm="v1", problem="no-capacity", verb=None)
    (record,) = kept.records
    assert record.levelno == logging.WARNING
    assert record.__dict__["MESSAGE_ID"] == log.MESSAGES["command-refused"].id
    assert record.__dict__["VMAGENT_VM"] == "v1"
    assert "VMAGENT_VERB" not in record.__dict__
    assert kept.lines == ["warning vmagent.test_log: no vm=v1 problem=no-capacity"]


def test_what_is_no_declared_field_is_left_out(kept: Kept) -> None:
    """FIELDS is closed, so a secret has no way in by name."""
    for name in ("passcode", "user_data", "key", "ssh_keys", "msg", "args"):
        assert name not in log.FIELDS
    log.event(LOGGER, "vm-phase", "x", user_data="hunter2", passcode="hunter2")
    assert "hunter2" not in kept.lines[0]
    assert "hunter2" not in json.dumps({k: str(v) for k, v in kept.records[0].__dict__.items()})


def test_nobody_forges_a_line_or_a_field(kept: Kept) -> None:
    log.event(LOGGER, "poison", "a\nerror vmagent: forged\x1b[2J", reason='x" vm=other\nerror: forged')
    assert kept.lines == [
        "warning vmagent.test_log: a\n  | error vmagent: forged\\x1b[2J "
        'reason="x\\" vm=other\\nerror: forged"'
    ]  # fmt: skip


def test_percent_signs_in_a_text_are_only_text(kept: Kept) -> None:
    log.event(LOGGER, "poison", "100 %s %(x)d")
    assert "100 %s %(x)d" in kept.lines[0]


def test_a_surprise_brings_its_traceback(kept: Kept) -> None:
    try:
        raise ValueError("here")
    except ValueError:
        log.event(LOGGER, "surprise", "a step failed")
    assert "ValueError: here" in kept.lines[0] and "test_log.py" in kept.lines[0]


def test_the_journal_is_told_from_another_stream(tmp_path: Path) -> None:
    with open(tmp_path / "stream", "w") as stream:
        status = os.fstat(stream.fileno())
        same = f"{status.st_dev}:{status.st_ino}"
        assert log.stderr_is_journal({"JOURNAL_STREAM": same}, stream)
        assert not log.stderr_is_journal({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"}, stream)
        assert not log.stderr_is_journal({}, stream)
    assert not log.stderr_is_journal({"JOURNAL_STREAM": same}, stream), "closed"
    assert not log.stderr_is_journal({"JOURNAL_STREAM": same}, io.StringIO())


SCRIPT = """
import logging, sys
{before}
from vmagent import log
log.setup("info", journald={journald})
log.setup("debug", journald={journald})
logging.getLogger("vmagent.x").debug("ours at debug")
logging.getLogger("stomp.py").info("passcode:hunter2")
logging.getLogger("other").warning("theirs")
from twisted.logger import Logger
Logger("n").info("chatter")
Logger("n").error("twisted complains")
"""


@pytest.mark.parametrize(("before", "journald"), [("", False), ("sys.modules['systemd.journal'] = None", True)])
def test_setup_in_a_process_of_its_own(before: str, journald: bool) -> None:
    """Plain lines where there is no journal, or no module to speak to it; each line once although set up twice."""
    script = SCRIPT.format(before=before, journald=journald)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [
        "debug vmagent.x: ours at debug",
        "warning other: theirs",
        "error vmagent.twisted: twisted complains",
    ]


FAKE_JOURNAL = """
import types
class JournalHandler(logging.Handler):
    def __init__(self, **fields):
        super().__init__()
        assert fields == {"SYSLOG_IDENTIFIER": "vmagent"}
    def emit(self, record):
        print(record.getMessage(), record.MESSAGE_ID, record.VMAGENT_VM)
sys.modules["systemd"] = types.ModuleType("systemd")
sys.modules["systemd.journal"] = journal = types.ModuleType("systemd.journal")
journal.JournalHandler = JournalHandler
"""


def test_the_journal_gets_the_fields() -> None:
    script = f"import logging, sys\n{FAKE_JOURNAL}\nfrom vmagent import log\nlog.setup('info', journald=True)\n"
    script += "log.event(logging.getLogger('vmagent.x'), 'vm-phase', 'now ready', vm='v1')\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"now ready {log.MESSAGES['vm-phase'].id} v1\n"
