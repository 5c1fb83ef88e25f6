"""The setting `volumes`: each in one place, each place once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.test_configfile import main_file, places, read
from vmagent.core.policy import Volume

BOTH = """
volumes:
  data: {path: /srv/data.raw, writable: true}
  shared: {pool: data, volume: shared data.raw, format: qcow2, vos: [vo.example]}
"""


def test_by_path_or_of_a_storage_pool(tmp_path: Path) -> None:
    assert read(tmp_path, BOTH).policy.volumes == {
        "data": Volume("data", "/srv/data.raw", writable=True),
        "shared": Volume("shared", "", "qcow2", False, ("vo.example",), "data", "shared data.raw"),
    }


@pytest.mark.parametrize(("row", "place"), [
    ("{}", ""),
    ("{writable: true}", ""),
    ("{path: /srv/a, pool: p, volume: v}", ""),
    ("{path: /srv/a, volume: v}", ""),
    ("{pool: p}", ""),
    ("{volume: v}", ""),
    ("{pool: -p, volume: v}", ".pool"),
    ("{pool: p, volume: ../v}", ".volume"),
    ("{path: srv/a}", ".path"),
])
def test_a_volume_is_in_one_place(tmp_path: Path, row: str, place: str) -> None:
    assert places(main_file(tmp_path, f"volumes: {{a: {row}}}\n")) == [f"volumes.a{place}"]


@pytest.mark.parametrize(("one", "other", "place"), [
    ("{path: /srv/a}", "{path: /srv/./a}", "path"),
    ("{pool: p, volume: v}", "{pool: p, volume: v, writable: true}", "volume"),
])
def test_who_writes_has_it_alone_so_it_has_one_name(tmp_path: Path, one: str, other: str, place: str) -> None:
    assert places(main_file(tmp_path, f"volumes: {{a: {one}, b: {other}}}\n")) == [f"volumes.b.{place}"]
    assert len(read(tmp_path, f"volumes: {{a: {one}, b: {{pool: q, volume: v}}}}\n").policy.volumes) == 2
