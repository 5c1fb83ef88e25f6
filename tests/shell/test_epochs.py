"""Lives of the store: what the marker beside it proves."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import Callable, Optional

import pytest

from tests.support import building as b
from tests.support.opened import OpenedStore
from vmagent.core.changes import Epoch, Publish, PutVm
from vmagent.core.model import Now
from vmagent.store.epochs import Life, verdict
from vmagent.store.marker import SIZE, Damaged, Mark, Marker, decode

ID, OTHER = "0b6f4c1e-0000-4000-8000-000000000001", "0b6f4c1e-0000-4000-8000-000000000002"
LATER = Now(1.0, "2026-11-20T13:00:00.000Z", b.BOOT)


def event() -> Publish:
    return Publish("events", "t", "vm/1", b.WALL, {})


def life(commits: int) -> Life:
    return Life(Epoch(ID, 7, b.WALL, "first"), commits)


@pytest.mark.parametrize(
    "found, mark, damaged, cause",
    [
        (None, None, False, "first"),
        (None, Mark(ID, 7, 5), False, "lost"),
        (None, None, True, "lost"),
        (life(5), None, False, "restored"),
        (life(5), None, True, "restored"),
        (life(5), Mark(OTHER, 7, 5), False, "restored"),
        (life(5), Mark(ID, 7, 6), False, "restored"),
        (life(5), Mark(ID, 7, 5), False, None),
        (life(5), Mark(ID, 7, 4), False, None),  # the marker lags after a crash
    ],
)
def test_the_verdict(found: Optional[Life], mark: Optional[Mark], damaged: bool, cause: Optional[str]) -> None:
    assert verdict(found, mark, damaged) == cause


# -- the marker file


def test_a_mark_is_64_bytes_and_comes_back() -> None:
    mark = Mark(ID, 2**40, 2**50)
    assert len(mark.encode()) == SIZE == 64 and decode(mark.encode()) == mark


def test_any_changed_bit_and_any_other_length_is_damage() -> None:
    raw = Mark(ID, 7, 5).encode()
    for position, bit in itertools.product(range(SIZE), range(8)):
        bad = bytearray(raw)
        bad[position] ^= 1 << bit
        with pytest.raises(Damaged):
            decode(bytes(bad))
    for bad_length in (b"", raw[:-1], raw + b"\0"):
        with pytest.raises(Damaged):
            decode(bad_length)


def test_the_marker_is_replaced_whole_and_then_advanced_in_place(tmp_path: Path) -> None:
    marker = Marker(tmp_path / "vmagent.epoch")
    assert marker.read() is None
    marker.replace(Mark(ID, 7, 1))
    inode = os.stat(tmp_path / "vmagent.epoch").st_ino
    marker.advance(Mark(ID, 7, 2))
    assert marker.read() == Mark(ID, 7, 2) and os.stat(tmp_path / "vmagent.epoch").st_ino == inode
    marker.replace(Mark(OTHER, 8, 1))
    marker.advance(Mark(OTHER, 8, 2))
    assert marker.read() == Mark(OTHER, 8, 2) and os.listdir(tmp_path) == ["vmagent.epoch"]
    marker.close()


# -- with the store


def fill(path: Path, events: int) -> Epoch:
    with OpenedStore(path) as opened:
        for _ in range(events):
            opened.commit(event())
        return opened.epoch


def test_an_older_backup_put_back_is_a_new_epoch_with_its_records(tmp_path: Path) -> None:
    path, backup = tmp_path / "vmagent.db", tmp_path / "backup"
    with OpenedStore(path) as opened:
        opened.commit(PutVm(b.record()), event())
    shutil.copy(path, backup)
    before = fill(path, 3)
    shutil.copy(backup, path)
    with OpenedStore(path, LATER) as opened:
        assert opened.epoch.cause == "restored" and opened.epoch.number > before.number
        assert opened.epoch.id != before.id and opened.epoch.born_wall == LATER.wall
        assert opened.stored.records == (b.record(),)
        assert opened.ask("sequences") == {}
        opened.commit(event())
        rows = opened.ask("outbox", 0, 9)
        assert [(r.epoch_number, r.sequence) for r in rows] == [(before.number, 1), (opened.epoch.number, 1)]
        restored = opened.epoch
    with OpenedStore(path) as opened:
        assert opened.epoch == restored


def test_a_backup_of_the_very_last_state_is_no_loss(tmp_path: Path) -> None:
    path, backup = tmp_path / "vmagent.db", tmp_path / "backup"
    before = fill(path, 3)
    shutil.copy(path, backup)
    path.unlink()
    shutil.copy(backup, path)
    assert fill(path, 0) == before


def without_marker(path: Path) -> None:
    path.with_suffix(".epoch").unlink()


def torn_marker(path: Path) -> None:
    with path.with_suffix(".epoch").open("r+b") as file:
        file.write(b"\0" * 8)


def empty_marker(path: Path) -> None:
    os.truncate(path.with_suffix(".epoch"), 0)


def lost(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize(
    "harm, cause",
    [
        (without_marker, "restored"),
        (torn_marker, "restored"),
        (empty_marker, "restored"),
        (lost, "lost"),
        (emptied, "lost"),
    ],
)
def test_whatever_may_have_forgotten_something_is_a_new_epoch(
    tmp_path: Path, harm: Callable[[Path], None], cause: str
) -> None:
    path = tmp_path / "vmagent.db"
    before = fill(path, 2)
    harm(path)
    with OpenedStore(path) as opened:
        assert opened.epoch.cause == cause and opened.epoch.number > before.number
        opened.commit(event())
        after = opened.epoch
    assert fill(path, 1) == after


def test_the_store_of_another_host_is_a_new_epoch(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there):
        place.mkdir()
        fill(place / "vmagent.db", 2)
    shutil.copy(there / "vmagent.db", here / "vmagent.db")
    assert fill(here / "vmagent.db", 0).cause == "restored"


def test_numbers_grow_even_for_a_host_installed_anew_and_for_a_clock_set_back(tmp_path: Path) -> None:
    path = tmp_path / "vmagent.db"
    first = fill(path, 1)
    for part in list(tmp_path.iterdir()):
        part.unlink()
    with OpenedStore(path, LATER) as opened:
        anew = opened.epoch
    assert anew.cause == "first" and anew.number > first.number
    path.unlink()
    with OpenedStore(path, Now(1.0, "2001-01-01T00:00:00.000Z", b.BOOT)) as opened:
        assert opened.epoch.number == anew.number + 1
