"""What `ports.Images` promises, on the fake and on real files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Callable, Tuple

import pytest

from tests.support.building import spec
from tests.support.fake_images import GIB, FakeImages
from tests.support.golden import NEEDED, TOOLS, Shelf, spec_on
from tests.support.lanes import HandTurned
from vmagent import children, ports
from vmagent.core.actions import Action, Do
from vmagent.core.model import ImageRef, VmSpec
from vmagent.core.snapshotmodel import layer_file
from vmagent.errors import Fault, FaultKind

SIZE = 3 * GIB
REAL = pytest.param("real", marks=pytest.mark.skipif(not TOOLS, reason=NEEDED))


class Bench:
    """One implementation, and answers waited for."""

    def __init__(self, images: ports.Images, image: ImageRef, settle: Callable[[Any], Any]) -> None:
        self.images = images
        self.image = image
        self._settle = settle

    def spec(self, member: int = 0, **kw: Any) -> VmSpec:
        return spec_on(self.image, member=member, **{"disk_gib": 3, **kw})

    def do(self, do: Do, of: VmSpec, layers: Tuple[str, ...] = ()) -> None:
        self._settle(self.images.perform(Action(do, of, layers=layers)))

    def fault(self, do: Do, of: VmSpec) -> Fault:
        with pytest.raises(Fault) as caught:
            self.do(do, of)
        return caught.value

    def leftovers(self) -> Any:
        return self._settle(self.images.leftovers())

    def free(self) -> int:
        return self._settle(self.images.free_gib())


@pytest.fixture(params=["fake", REAL])
def bench(request: Any, tmp_path: Path) -> Bench:
    reactor = HandTurned()
    if request.param == "fake":
        image = ImageRef("big", "cd" * 64, "raw")
        return Bench(FakeImages({image.id: (image.sha512, SIZE)}), image, reactor.settle)
    shelf = Shelf(tmp_path)
    image = shelf.made("big", "qcow2", size=str(SIZE))
    images = shelf.images(reactor)
    reactor.settle(images.start())
    return Bench(images, image, reactor.settle)


def both(bench: Bench, of: VmSpec) -> None:
    bench.do(Do.MAKE_OVERLAY, of)
    bench.do(Do.MAKE_SEED, of)


def test_there_is_nothing_at_first(bench: Bench) -> None:
    assert bench.leftovers() == {}


def test_what_was_made_is_left_over_until_it_is_cleaned_up(bench: Bench) -> None:
    of = bench.spec()
    bench.do(Do.MAKE_OVERLAY, of)
    assert bench.leftovers() == {of.vm: frozenset({"overlay"})}
    bench.do(Do.MAKE_SEED, of)
    assert bench.leftovers() == {of.vm: frozenset({"overlay", "seed"})}
    bench.do(Do.CLEAN_UP, of)
    assert bench.leftovers() == {}


def test_everything_may_be_done_twice(bench: Bench) -> None:
    of = bench.spec()
    both(bench, of)
    both(bench, of)
    assert bench.leftovers() == {of.vm: frozenset({"overlay", "seed"})}
    bench.do(Do.CLEAN_UP, of)
    bench.do(Do.CLEAN_UP, of)
    assert bench.leftovers() == {}


def test_clean_up_leaves_the_others_alone(bench: Bench) -> None:
    one, other = bench.spec(0), bench.spec(1)
    both(bench, one)
    both(bench, other)
    bench.do(Do.CLEAN_UP, one)
    assert set(bench.leftovers()) == {other.vm}


@pytest.mark.parametrize(
    "wrong", [{"id": "unheard-of"}, {"sha512": "00" * 64}], ids=["not in the catalogue", "other content"]
)
def test_another_image_than_the_admitted_one_is_refused(bench: Bench, wrong: Any) -> None:
    of = spec_on(dataclasses.replace(bench.image, **wrong), disk_gib=3)
    assert bench.fault(Do.MAKE_OVERLAY, of).kind is FaultKind.REFUSED
    assert bench.leftovers() == {}


def test_a_disk_smaller_than_its_image_is_refused(bench: Bench) -> None:
    assert bench.fault(Do.MAKE_OVERLAY, bench.spec(disk_gib=2)).kind is FaultKind.REFUSED
    assert bench.leftovers() == {}


def test_an_action_for_another_port_is_refused(bench: Bench) -> None:
    assert bench.fault(Do.RESUME, bench.spec()).kind is FaultKind.REFUSED


def test_paths_are_absolute_and_of_one_vm(bench: Bench) -> None:
    def paths(member: int) -> Tuple[str, str]:
        return bench.images.paths(spec(member=member).vm)

    assert paths(0) == paths(0)
    assert len({*paths(0), *paths(1)}) == 4
    assert all(Path(p).is_absolute() for p in paths(0))


def test_free_space_is_a_whole_number(bench: Bench) -> None:
    assert isinstance(bench.free(), int)
    assert bench.free() >= 0


def test_layers_are_made_cut_back_and_go_with_the_rest(bench: Bench) -> None:
    of, other = bench.spec(), bench.spec(1)
    for each in (of, other):
        bench.do(Do.MAKE_OVERLAY, each)
        bench.do(Do.MAKE_SEED, each)
        for layers in (("a",), ("a", "c"), ("a", "c", "d-1")):
            bench.do(Do.MAKE_LAYER, each, layers)
    whole = {"overlay", "seed", "layer:a", "layer:c", "layer:d-1"}
    assert bench.leftovers() == {of.vm: whole, other.vm: whole}
    for _ in range(2):
        bench.do(Do.CUT_BACK, of, ("a",))
        assert bench.leftovers() == {of.vm: {"overlay", "layer:a"}, other.vm: whole}
    for _ in range(2):
        bench.do(Do.CLEAN_UP, of)
        assert bench.leftovers() == {other.vm: whole}


@pytest.mark.skipif(not TOOLS, reason=NEEDED)
def test_a_layer_is_empty_and_stands_on_what_is_below(tmp_path: Path) -> None:
    reactor = HandTurned()
    shelf = Shelf(tmp_path)
    image = shelf.made("big", "qcow2", size=str(SIZE))
    images = shelf.images(reactor)
    reactor.settle(images.start())
    bench = Bench(images, image, reactor.settle)
    of = bench.spec()
    bench.do(Do.MAKE_OVERLAY, of)
    for layers in (("a",), ("a", "c")):
        bench.do(Do.MAKE_LAYER, of, layers)
    overlay = images.paths(of.vm)[0]
    top = layer_file(overlay, "c")
    told = json.loads(children.run(["qemu-img", "info", "--backing-chain", "--output=json", top], 20.0))
    assert [one["filename"] for one in told][:3] == [top, layer_file(overlay, "a"), overlay]
    assert [one.get("backing-filename-format") for one in told][:2] == ["qcow2", "qcow2"]
    assert {one["virtual-size"] for one in told[:3]} == {of.disk_gib * GIB}
    assert oct(Path(top).stat().st_mode & 0o777) == "0o600"
