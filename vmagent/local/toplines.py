"""`vmagentctl top` as lines of text: sorted, filtered, and as wide as the terminal; 80 columns are enough.

Sparklines show the last two minutes, each guest's against its own greatest: their height compares nothing between
guests, the numbers beside them do.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from vmagent.core import duration
from vmagent.core.columns import clean

Row = Mapping[str, Any]
BARS = "▁▂▃▄▅▆▇█"
SPARK = 5
NAME = 12
LEAST_WIDTH = 80
FILTERS = ("owner", "vo", "phase")


def _of(row: Row, *members: str) -> int:
    return sum(row["pace"][name] or 0 for name in members)


SORTS: Dict[str, Callable[[Row], Any]] = {
    "cpu": lambda row: -_of(row, "cpu_core_percent"),
    "network": lambda row: -_of(row, "network_in_bytes_per_s", "network_out_bytes_per_s"),
    "disk": lambda row: -_of(row, "disk_read_bytes_per_s", "disk_write_bytes_per_s"),
    "left": lambda row: float("inf") if row["left_s"] is None else row["left_s"],
    "name": lambda row: row["name"],
}
"""--sort -> key; what is greatest, or ends first, stands first."""


def wanted(text: str) -> Tuple[str, str]:
    """`owner=text`, `vo=name` or `phase=word`.  ValueError for anything else."""
    name, equals, value = text.partition("=")
    if name not in FILTERS or not equals or not value:
        raise ValueError(f"{text!r} is not one of owner=TEXT, vo=NAME, phase=WORD")
    return name, value


def chosen(rows: Sequence[Row], filters: Sequence[Tuple[str, str]], sort: str) -> List[Row]:
    """Of an owner a part of the name is enough.  Filters of one kind are alternatives, kinds are all to be met."""
    kinds = {name for name, _ in filters}
    kept = [row for row in rows
            if all(any(_matches(row, kind, text) for name, text in filters if name == kind) for kind in kinds)]
    return sorted(kept, key=lambda row: (SORTS[sort](row), row["vm"]))


def _matches(row: Row, kind: str, text: str) -> bool:
    value = str(row[kind])
    return text.lower() in value.lower() if kind == "owner" else value == text


def lines(answer: Row, rows: Sequence[Row], width: int = LEAST_WIDTH, height: Optional[int] = None) -> List[str]:
    """The head, one line per VM, and how many there was no room for.  height: of the screen; None = all."""
    age = "no reading yet" if answer["age_s"] is None else f"measured {answer['age_s']:.0f} s ago"
    room = len(rows) if height is None else max(0, height - 3)
    name = NAME + max(0, width - LEAST_WIDTH) // 2
    owner = max(0, width - LEAST_WIDTH) - (name - NAME)
    shown = [_line(row, name, owner) for row in rows[:room]]
    more = [f"... and {len(rows) - room} more"] if len(rows) > room else []
    title = f"{len(rows)} of {len(answer['vms'])} VMs, {age}"
    head = _cells("ID", "NAME", "PHASE", "LEFT", "CPU%/CAP", "", "NET/s", "", "DISK/s", "", "OWNER", name, owner)
    return [title[:width], head, *shown, *more]


def _line(row: Row, name: int, owner: int) -> str:
    paces, pace, cap = row["paces"], row["pace"], row["limits"]["cpu_cap_core_percent"]
    cpu = f"{_known(pace['cpu_core_percent'])}/{'-' if cap is None else cap}"
    left = "-" if row["left_s"] is None else duration.text(row["left_s"])
    network = ("network_in_bytes_per_s", "network_out_bytes_per_s")
    disk = ("disk_read_bytes_per_s", "disk_write_bytes_per_s")
    return _cells(row["vm"][:8], row["name"], row["phase"], left, cpu, spark(paces["cpu_core_percent"]),
                  amount(_both(pace, network)), spark(_sums(paces, network)),
                  amount(_both(pace, disk)), spark(_sums(paces, disk)), row["owner"], name, owner)


def _cells(
    id: str, called: str, phase: str, left: str, cpu: str, cpus: str, net: str, nets: str, disk: str, disks: str,
    owner: str, name_width: int, owner_width: int,
) -> str:
    cells = [_left(id, 8), _left(called, name_width), _left(phase, 8), left[:6].rjust(6), cpu[:9].rjust(9),
             cpus.ljust(SPARK), net.rjust(6), nets.ljust(SPARK), disk.rjust(6), disks.ljust(SPARK)]
    if owner_width > 4:
        cells.append(_left(owner, owner_width - 1))
    return " ".join(cells).rstrip()


def _left(text: str, width: int) -> str:
    return clean(text)[:width].ljust(width)


def spark(values: Sequence[Optional[int]]) -> str:
    """The newest ones as bars; a blank where nobody knows."""
    newest = list(values)[-SPARK:]
    most = max((value for value in newest if value is not None), default=0)
    return "".join(" " if value is None else BARS[round(value * (len(BARS) - 1) / most) if most else 0]
                   for value in newest)


def amount(per_s: Optional[int]) -> str:
    """Bytes per second in at most six characters: `0`, `980`, `12k`, `3.4M`."""
    if per_s is None:
        return "-"
    value, unit = float(per_s), ""
    for larger in "kMGT":
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f}{unit}" if unit and value < 9.95 else f"{value:.0f}{unit}"


def _known(value: Optional[int]) -> str:
    return "-" if value is None else str(value)


def _both(pace: Row, members: Sequence[str]) -> Optional[int]:
    known = [pace[name] for name in members if pace[name] is not None]
    return sum(known) if known else None


def _sums(paces: Row, members: Sequence[str]) -> List[Optional[int]]:
    return [_both(dict(zip(members, pair)), members) for pair in zip(*(paces[name] for name in members))]
