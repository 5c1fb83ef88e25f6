"""One log line for each committed thing that an operator may want to find again.

It reads what was committed, so the log never tells what did not happen, and nothing that matters can forget to log.
Implements ports.Feed; secrets never reach it, because they are in no change.
"""

from __future__ import annotations

import logging
from typing import Any, Callable, Dict, Mapping, Sequence, Type

from vmagent import ports
from vmagent.core.changes import Change, Publish, PutAudit, PutSetting
from vmagent.log import event

log = logging.getLogger("vmagent")
DRIFTS = ("cpu-drift", "disk-io-drift", "memory-drift", "firewall-drift", "bandwidth-drift", "port-drift")
OF_THEIR_NAME = ("isolated", "rejoined", "spoofed", "capped", "image-distrusted", "accounting-imbalance")
ALERTS = {"stuck": "vm-stuck", **dict.fromkeys(DRIFTS, "limit-drift"), **dict(zip(OF_THEIR_NAME, OF_THEIR_NAME))}
"""Kind of a security.alert -> the message that it is logged as."""


class Chronicle:
    """Logs what was committed."""

    def __init__(self) -> None:
        self._phases: Dict[str, str] = {}  # VM id -> the last phase told

    def publish(self, changes: Sequence[Change]) -> None:
        for change in changes:
            teller = _TELLERS.get(type(change))
            if teller is not None:
                teller(self, change)

    def _published(self, change: Publish) -> None:
        teller = _TYPES.get(change.type)
        if teller is not None:
            teller(self, change.data)

    def _state(self, data: Mapping[str, Any]) -> None:
        vm, phase = data["vm"], data["phase"]
        if self._phases.get(vm) == phase:
            return
        self._phases[vm] = phase
        if data["closed"]:
            del self._phases[vm]
        over = phase == "stopped"
        words = f"{vm} is {phase}" + (f": {data['outcome']}" if over else "")
        event(log, "vm-ended" if over else "vm-phase", words, vm=vm, phase=phase, outcome=data["outcome"],
              reason=data["reason"], command=data["command"])

    def _warning(self, data: Mapping[str, Any]) -> None:
        left = data["remaining_s"]
        event(log, "lease-warning", f"the lease of {data['vm']} ends in {left} s", vm=data["vm"], seconds=left)

    def _reproven(self, data: Mapping[str, Any]) -> None:
        event(log, "limits-reproven", f"{data['vm']} rebooted: its limits hold again after {data['unproven_s']:g} s",
              vm=data["vm"], seconds=round(data["unproven_s"]))

    def _alert(self, data: Mapping[str, Any]) -> None:
        name = ALERTS.get(data["kind"])
        if name is not None:
            about = f"{data['vm']}: " if "vm" in data else ""
            event(log, name, about + data["detail"], vm=data.get("vm"), reason=data["detail"])

    def _audited(self, row: PutAudit) -> None:
        """The audit has one row for each verdict on a command, whatever its route."""
        if row.bounded:
            event(log, "poison", f"a frame was refused: {row.why}", signer=row.who, route=row.route, reason=row.why)
            return
        name = "command-refused" if row.verdict == "refused" else "command-accepted"
        words = f"{row.verb} of {row.who}: {row.verdict}" + (f": {row.why}" if row.why else "")
        event(log, name, words, command=row.command or None, verb=row.verb, signer=row.who, route=row.route,
              reason=row.why or None)

    def _setting(self, change: PutSetting) -> None:
        if change.name == "drained":
            event(log, "drained", "the host takes no new VMs" if change.value else "the host takes new VMs again")


_TELLERS: Mapping[Type[Any], Callable[[Chronicle, Any], None]] = {
    Publish: Chronicle._published, PutAudit: Chronicle._audited, PutSetting: Chronicle._setting,
}
_TYPES: Mapping[str, Callable[[Chronicle, Mapping[str, Any]], None]] = {
    "org.vmagent.vm.state": Chronicle._state,
    "org.vmagent.vm.lease.warning": Chronicle._warning,
    "org.vmagent.limits.reproven": Chronicle._reproven,
    "org.vmagent.security.alert": Chronicle._alert,
}


class Feeds:
    """Several readers of what is committed."""

    def __init__(self, *feeds: ports.Feed) -> None:
        self._feeds = list(feeds)

    def add(self, feed: ports.Feed) -> None:
        """One more, which is built later than who publishes."""
        self._feeds.append(feed)

    def publish(self, changes: Sequence[Change]) -> None:
        for feed in self._feeds:
            feed.publish(changes)
