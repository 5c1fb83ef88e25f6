"""The frame of a monitoring plug-in: arguments, its own end in time, one answer on standard output, the exit code.

Rules (FORMATS 8.1): whatever happens, one line of the grammar comes out, on standard output, and the code is 0 to 3.
Wrong arguments, help, version, a defect and a signal are UNKNOWN (3); a plug-in that is not done in time is CRITICAL.
The alarm ends the process wherever it hangs; what is to be cleaned up then is the plug-in's own business before that.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from typing import Any, Callable, Dict, Mapping, NoReturn, Optional, Sequence, TextIO, Tuple

import vmagent
from vmagent.render import nagios
from vmagent.render.nagios import Metric, Range, Status

Thresholds = Mapping[str, Tuple[Optional[Range], Optional[Range]]]  # label -> (warning, critical)


@dataclass(frozen=True)
class Result:
    """What a plug-in found."""

    status: Status
    text: str
    metrics: Sequence[Metric] = ()
    more: Sequence[str] = ()


class Arguments(argparse.ArgumentParser):
    """An argparse that speaks to Nagios: standard output only, exit code 3."""

    def __init__(self, service: str, about: str, timeout_s: int, **kw: Any) -> None:
        super().__init__(description=about, add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kw)
        self.service = service
        self.add_argument("-h", "--help", action="help", help="show this and end with 3")
        self.add_argument("-V", "--version", action="version", version=f"{service} {vmagent.__version__}",
                          help="show the version and end with 3")
        self.add_argument("-v", "--verbose", action="count", default=0, help="more lines: what was found")
        self.add_argument("-t", "--timeout", type=_seconds, default=timeout_s, metavar="SECONDS",
                          help=f"end by itself after so long (default {timeout_s})")

    def error(self, message: str) -> NoReturn:
        sys.stdout.write(nagios.output(self.service, Status.UNKNOWN, f"{message}; see --help") + "\n")
        self.exit()

    def exit(self, status: int = 0, message: Optional[str] = None) -> NoReturn:
        sys.stdout.flush()
        raise SystemExit(int(Status.UNKNOWN))

    def print_help(self, file: Any = None) -> None:
        super().print_help(sys.stdout)


def add_thresholds(parser: Arguments, defaults: Mapping[str, Tuple[str, str]]) -> None:
    """-w and -c, `NAME=RANGE`, repeatable; defaults: name -> (warning, critical), "" = none."""
    for flag, name, which in (("-w", "--warning", 0), ("-c", "--critical", 1)):
        known = ", ".join(f"{label}={pair[which]}" for label, pair in defaults.items() if pair[which])
        parser.add_argument(flag, name, action="append", default=[], metavar="NAME=RANGE", type=_threshold(defaults),
                            help=f"may be repeated; defaults: {known}".replace("%", "%%"))


def thresholds(said: argparse.Namespace, defaults: Mapping[str, Tuple[str, str]]) -> Dict[
        str, Tuple[Optional[Range], Optional[Range]]]:
    """What holds for each name: what was said, else the default."""
    found = {}
    for label, pair in defaults.items():
        ranges = [nagios.parse(text) if text else None for text in pair]
        for which, given in enumerate((said.warning, said.critical)):
            for name, one in given:
                if name == label:
                    ranges[which] = one
        found[label] = (ranges[0], ranges[1])
    return found


def _threshold(defaults: Mapping[str, Tuple[str, str]]) -> Callable[[str], Tuple[str, Range]]:
    def read(text: str) -> Tuple[str, Range]:
        name, _, given = text.partition("=")
        if name not in defaults:
            raise argparse.ArgumentTypeError(f"{name!r} is not measured; accepted: {', '.join(defaults)}")
        try:
            return name, nagios.parse(given)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _seconds(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r}: give 1 to 86400 seconds")
    return int(text)


def run(service: str, timeout_s: float, verbose: int, check: Callable[[], Result], out: TextIO) -> int:
    """Call `check`, print what it found, and return the exit code; after `timeout_s` the process is ended."""
    logging.getLogger().addHandler(logging.NullHandler())  # nobody reads standard error
    watch(service, timeout_s)
    try:
        result = check()
    except Exception as error:  # noqa: BLE001 - edge: a monitor is told of a defect, too
        trace = traceback.format_exc().splitlines() if verbose else []
        result = Result(Status.UNKNOWN, f"this is a defect: {type(error).__name__}: {error}", more=trace)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
    more = result.more if verbose or result.status is not Status.OK else ()
    out.write(nagios.output(service, result.status, result.text, result.metrics, more) + "\n")
    out.flush()
    return int(result.status)


def watch(service: str, timeout_s: float) -> None:
    """From now on the process ends after `timeout_s`, or at a signal, with a line that says so."""

    def late(*_: Any) -> None:
        _last_word(nagios.output(service, Status.CRITICAL, f"no answer within {timeout_s:g} s"), Status.CRITICAL)

    def told(number: int, _: Any) -> None:
        _last_word(nagios.output(service, Status.UNKNOWN, f"ended by signal {number}"), Status.UNKNOWN)

    signal.signal(signal.SIGALRM, late)
    signal.signal(signal.SIGTERM, told)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)


def _last_word(line: str, status: Status) -> NoReturn:
    """Whatever hangs, and whatever is half written: nothing of it is waited for."""
    os.write(1, line.encode("utf-8", "replace") + b"\n")
    os._exit(int(status))
