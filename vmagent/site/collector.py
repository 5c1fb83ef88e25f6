"""Completeness of the event streams: what came once, what came again, what is missing.

A sequence counts per (source, epoch, stream) from 1 without holes (PROTOCOL 2), so a reader proves that it missed
nothing by counting.  Rules:

    the first event of an epoch that is heard     counting begins there: earlier ones were before our time; but at 1
                                                  when an earlier epoch of that stream is known: we listened already
    the next number                               new
    a number beyond it                            new, and the ones between are missing
    a missing number                              new, and it is missing no more
    any other number heard already                a duplicate: drop it
    a `stream.gap` event                          the range it names will never come: lost, and no more waited for
    a `host.snapshot`, where `heal` is called     it is the whole truth: what its stream lacks before it is healed

An agent that begins a new epoch (new or restored store) begins at 1 again, under a greater epoch number.
Pure but for its memory; `positions` and `Collector(positions)` carry it over a restart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Sequence, Tuple

GAP = "org.vmagent.stream.gap"
MOST_MISSING = 100_000  # remembered per stream; beyond it the oldest are given up as lost
Key = Tuple[str, str, str]  # source, epoch, stream


@dataclass
class Track:
    """One stream of one epoch.  Everything from `first` to `last` came, except `missing` and `lost`."""

    first: int
    last: int
    missing: List[int] = field(default_factory=list)  # ascending
    lost: int = 0  # announced by the agent, or given up
    number: int = 0  # of the epoch


@dataclass(frozen=True)
class Taken:
    """What `take` found.  missing: numbers found missing by this very event."""

    new: bool
    missing: Tuple[int, ...] = ()


class Collector:
    """Counts."""

    def __init__(self, positions: Sequence[Mapping[str, Any]] = ()) -> None:
        self.tracks: Dict[Key, Track] = {}
        self.duplicates = 0
        for one in positions:
            key = (str(one["source"]), str(one["epoch"]), str(one["stream"]))
            self.tracks[key] = Track(one["first"], one["last"], list(one["missing"]), one["lost"], one.get("number", 0))

    def take(self, event: Mapping[str, Any]) -> Taken:
        """Count one event.  KeyError or ValueError when it is none of ours."""
        source, epoch, stream = str(event["source"]), str(event["epoch"]), str(event["stream"])
        number, epoch_number = int(event["sequence"]), int(event["epochnumber"])
        track = self.tracks.get((source, epoch, stream))
        if track is None and self._listened(source, stream, epoch_number):
            track = self.tracks[(source, epoch, stream)] = Track(1, 0, number=epoch_number)
        if track is None:
            self.tracks[(source, epoch, stream)] = Track(number, number, number=epoch_number)
            taken = Taken(True)
        else:
            taken = self._count(track, number)
        if taken.new and event["type"] == GAP:
            self._announced((source, epoch, str(event["data"]["stream"])), event["data"], epoch_number)
        return taken

    def _listened(self, source: str, stream: str, number: int) -> bool:
        """Whether an earlier epoch of this stream was heard."""
        return any(track.number < number and (key[0], key[2]) == (source, stream) for key, track in self.tracks.items())

    def heal(self, snapshot: Mapping[str, Any]) -> int:
        """Wait no more for what the stream of this host.snapshot lacks before it; how many those were."""
        healed, at = 0, (int(snapshot["epochnumber"]), int(snapshot["sequence"]))
        for key, track in self.tracks.items():
            if (key[0], key[2]) == (str(snapshot["source"]), str(snapshot["stream"])):
                left = [number for number in track.missing if (track.number, number) > at]
                healed += len(track.missing) - len(left)
                track.missing = left
        return healed

    def _count(self, track: Track, number: int) -> Taken:
        if number > track.last:
            holes = tuple(range(max(track.last + 1, number - MOST_MISSING), number))
            track.lost += number - track.last - 1 - len(holes)
            track.missing.extend(holes)
            surplus = len(track.missing) - MOST_MISSING
            if surplus > 0:
                track.lost += surplus
                del track.missing[:surplus]
            track.last = number
            return Taken(True, holes)
        if number in track.missing:
            track.missing.remove(number)
            return Taken(True)
        self.duplicates += 1
        return Taken(False)

    def _announced(self, key: Key, data: Mapping[str, Any], epoch_number: int) -> None:
        track = self.tracks.get(key)
        first, last = int(data["first"]), int(data["last"])
        if track is None:
            self.tracks[key] = Track(first, last, [], last - first + 1, epoch_number)
            return
        waited = [number for number in track.missing if first <= number <= last]
        track.missing = [number for number in track.missing if not first <= number <= last]
        beyond = max(0, last - max(track.last, first - 1))
        if first > track.last + 1:
            track.missing.extend(range(track.last + 1, first))
        track.lost += len(waited) + beyond
        track.last = max(track.last, last)

    def missing(self) -> List[Tuple[str, str, str, Tuple[int, ...]]]:
        """(source, epoch, stream, numbers) of everything that is waited for."""
        return [(*key, tuple(track.missing)) for key, track in sorted(self.tracks.items()) if track.missing]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing and nothing was lost since we listen."""
        return not any(track.missing or track.lost for track in self.tracks.values())

    def positions(self) -> List[Dict[str, Any]]:
        """Everything remembered, as JSON."""
        return [
            {"source": source, "epoch": epoch, "stream": stream, "first": track.first, "last": track.last,
             "missing": list(track.missing), "lost": track.lost, "number": track.number}
            for (source, epoch, stream), track in sorted(self.tracks.items())
        ]
