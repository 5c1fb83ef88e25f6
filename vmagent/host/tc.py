"""`ip`, `bridge` and `tc` in batch mode: texts on stdin, JSON back.  Blocking: for lanes' threads only.

Rules

1. One child of each per reading and per change, however many interfaces.
2. The programs stop at their first error, so an interface that goes while it is read spoils the reading: it is read
   again without it.
3. What cannot be understood is a Fault, never a guess.
"""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Callable, Dict, FrozenSet, Iterable, List, Mapping, Optional, Sequence, Tuple, TypeVar

from vmagent import children
from vmagent.core import qdiscs, tctext
from vmagent.core.qdiscs import Link, NicSeen
from vmagent.core.shaping import FILTERS, LEAVES, Rate, Tools, Wish, bandwidth
from vmagent.errors import Fault, FaultKind

One = TypeVar("One")
Other = TypeVar("Other")
CHILD_S = 9.0
_FEW = 8  # devices; for more of them all qdiscs are listed at once: the kernel goes through all of them for each
_TRIAL = Rate(1000, 1522)


@dataclass(frozen=True)
class TrafficControl:
    """ip, tc, bridge: names or paths of the programs."""

    ip: str = "ip"
    tc: str = "tc"
    bridge: str = "bridge"

    def read(self, wishes: Sequence[Wish]) -> Dict[str, NicSeen]:
        """What there is, by the wish's device.  Faults: UNKNOWN."""
        names = existing([name for wish in wishes for name in (wish.device, wish.ifb)])
        taps = [wish.device for wish in wishes if wish.device in names]
        try:
            found, (queues, filters) = _beside(lambda: self.links(names), lambda: self._qdiscs(sorted(names), taps))
        except children.ChildFailed as failed:
            if names <= existing(names):
                raise Fault(FaultKind.UNKNOWN, failed.detail) from failed
            return self.read(wishes)
        links = {each.name: each for each in found}
        return {wish.device: _nic(wish, links, queues, filters) for wish in wishes}

    def links(self, names: FrozenSet[str]) -> List[Link]:
        """These, which must exist.  Faults: UNKNOWN, ChildFailed."""
        said = self._ask(self.ip, ["-d"], [f"link show dev {name}" for name in sorted(names)])
        return [_understood(qdiscs.link, each) for document in said for each in document]

    def all_links(self) -> List[Link]:
        """Every interface of the host.  Faults: UNKNOWN, REFUSED."""
        (said,) = self._ask(self.ip, ["-d"], ["link show"])
        return [_understood(qdiscs.link, each) for each in said]

    def targets(self, taps: Sequence[str]) -> FrozenSet[str]:
        """Where these send what comes in.  Faults: UNKNOWN, ChildFailed."""
        said = self._ask(self.tc, [], [f"filter show dev {tap} ingress" for tap in taps])
        return frozenset(each.to for document in said for each in _understood(qdiscs.redirects, document))

    def change(self, ip_lines: Sequence[str], tc_lines: Sequence[str], bridge_lines: Sequence[str] = ()) -> None:
        """Do these, `ip` first.  Faults: ChildFailed with the program's words, UNKNOWN."""
        self._batch(self.ip, ip_lines)
        _beside(lambda: self._batch(self.bridge, bridge_lines), lambda: self._batch(self.tc, tc_lines))

    def apply(self, wishes: Sequence[Wish], seen: Mapping[str, NicSeen], tools: Tools) -> None:
        """From `seen` to what is wished.  Faults: REFUSED, UNKNOWN."""
        try:
            ip_lines = [line for wish in wishes for line in tctext.ip_lines(wish, seen[wish.device])]
        except ValueError as error:
            raise Fault(FaultKind.REFUSED, str(error)) from None
        tc_lines = [line for wish in wishes for line in tctext.tc_lines(wish, seen[wish.device], tools)]
        bridge_lines = [line for wish in wishes for line in tctext.bridge_lines(wish, seen[wish.device])]
        self.change(ip_lines, tc_lines, bridge_lines)

    def probe(self, scratch: Wish) -> Tuple[Optional[Tools], str]:
        """(the best that works, if anything does; what was refused), by trying between two ifbs of ours.

        What works was read back as it was set: a tc that cannot say so in JSON is of no use.  Faults: UNKNOWN, REFUSED.
        """
        self._remove(scratch)
        refused: List[str] = []
        try:
            self.change([f"link add name {scratch.device} type ifb", f"link set dev {scratch.device} up"], [])
            wish = Wish(scratch.device, scratch.ifb, "", _TRIAL, _TRIAL)
            chosen = self._first(wish, [Tools("", each) for each in FILTERS], refused)
            if chosen is not None:
                chosen = self._first(wish, [Tools(each, chosen.filter) for each in LEAVES], refused)
            return chosen, "; ".join(refused)
        finally:
            self._remove(scratch)

    def _first(self, wish: Wish, choice: Sequence[Tools], refused: List[str]) -> Optional[Tools]:
        return next((tools for tools in choice if self._works(wish, tools, refused)), None)

    def _works(self, wish: Wish, tools: Tools, refused: List[str]) -> bool:
        try:
            self.apply([wish], self.read([wish]), tools)
            left = bandwidth(wish, self.read([wish])[wish.device], tools)
        except Fault as fault:
            left = [" ".join(fault.detail.split())]
        if left:
            refused.append(f"{tools.leaf or tools.filter}: {'; '.join(left)}")
        return not left

    def _remove(self, scratch: Wish) -> None:
        self.change([f"link del dev {name}" for name in existing([scratch.device, scratch.ifb])], [])

    def _qdiscs(
        self, devices: Sequence[str], taps: Sequence[str]
    ) -> Tuple[Mapping[str, List[Any]], Mapping[str, List[Any]]]:
        """Their qdiscs and, of the taps, their filters, as tc tells them."""
        few = len(devices) <= _FEW
        lines = [f"qdisc show dev {device}" for device in devices] if few else ["qdisc show"]
        said = self._ask(self.tc, [], [*lines, *(f"filter show dev {tap} ingress" for tap in taps)])
        queues: Dict[str, List[Any]] = dict(zip(devices, said)) if few else {}
        for each in [] if few else said[0]:
            queues.setdefault(each.get("dev", ""), []).append(each)
        return queues, dict(zip(taps, said[len(lines) :]))

    def _batch(self, program: str, lines: Sequence[str]) -> None:
        if lines:
            children.run([program, "-b", "-"], CHILD_S, stdin=_text(lines))

    def _ask(self, program: str, options: Sequence[str], lines: Sequence[str]) -> List[List[Any]]:
        """One answer per line."""
        if not lines:
            return []
        said = children.run([program, "-j", *options, "-b", "-"], CHILD_S, stdin=_text(lines))
        documents = _documents(program, said.decode("utf-8", "replace"))
        if len(documents) != len(lines):
            raise Fault(FaultKind.UNKNOWN, f"{program} gave {len(documents)} answers to {len(lines)} questions")
        return documents


def _beside(one: Callable[[], One], other: Callable[[], Other]) -> Tuple[One, Other]:
    """Both, at once: each waits for a child of its own.  Raises what the one raised, else what the other did."""
    with ThreadPoolExecutor(1) as pool:
        waited = pool.submit(other)
        return one(), waited.result()


def existing(names: Iterable[str]) -> FrozenSet[str]:
    """Those of these interfaces that exist right now."""
    found = set()
    for name in names:
        try:
            socket.if_nametoindex(name)
        except OSError:
            continue
        found.add(name)
    return frozenset(found)


def _nic(wish: Wish, links: Mapping[str, Link], queues: Mapping[str, Any], filters: Mapping[str, Any]) -> NicSeen:
    on_tap, on_ifb = queues.get(wish.device, []), queues.get(wish.ifb, [])
    return NicSeen(
        links.get(wish.device),
        links.get(wish.ifb),
        _understood(qdiscs.queue, on_tap),
        _understood(qdiscs.queue, on_ifb),
        _understood(qdiscs.ingress, on_tap),
        _understood(qdiscs.redirects, filters.get(wish.device, [])),
    )


def _understood(reader: Any, said: Any) -> Any:
    try:
        return reader(said)
    except (KeyError, TypeError, AttributeError) as error:
        raise Fault(FaultKind.UNKNOWN, f"not understood ({error!r}): {json.dumps(said)[:200]}") from None


def _documents(program: str, text: str) -> List[List[Any]]:
    decoder, found, at = json.JSONDecoder(), [], 0
    text = text.strip()
    try:
        while at < len(text):
            document, at = decoder.raw_decode(text, at)
            found.append([each for each in document if each])
            at += len(text[at:]) - len(text[at:].lstrip())
    except ValueError as error:
        raise Fault(FaultKind.UNKNOWN, f"{program} answered what is no JSON: {error}") from None
    return found


def _text(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("ascii")
