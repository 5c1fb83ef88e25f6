"""What `ports.Images` promises, on the fake and on real files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Callable, List, Tuple

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
MISSING = Fault(FaultKind.REFUSED, "it is not there")
REAL = pytest.param("real", marks=pytest.mark.skipif(not TOOLS, reason=NEEDED))


class Bench:
    """One implementation, and answers waited for.  over(image): wait until its download is over."""

    def __init__(
        self, images: Any, image: ImageRef, settle: Callable[[Any], Any], elsewhere: ImageRef,
        over: Callable[[ImageRef], None],
    ) -> None:
        self.images: ports.Images = images
        self.image = image
        self.elsewhere = elsewhere  # one that is fetched
        self.over = over
        self.told: List[str] = []
        images.tell(self.told.append)
        self._settle = settle

    def files(self) -> Any:
        return self._settle(self.images.files())

    def evict(self, sha512: str) -> None:
        self._settle(self.images.evict(sha512))

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

    def used(self) -> Any:
        return self._settle(self.images.used())

    def free(self) -> int:
        return self._settle(self.images.free_gib())


@pytest.fixture(params=["fake", REAL])
def bench(request: Any, tmp_path: Path) -> Bench:
    reactor = HandTurned()
    if request.param == "fake":
        image = ImageRef("big", "cd" * 64, "raw")
        fake = FakeImages({image.id: (image.sha512, SIZE)})
        return Bench(fake, image, reactor.settle, ImageRef("far", "ef" * 64, "raw", "file:///far"),
                     lambda image: fake.fetched(image.sha512, None if image.id == "far" else MISSING))
    shelf = Shelf(tmp_path)
    image = shelf.made("big", "qcow2", size=str(SIZE))
    images = shelf.images(reactor)
    reactor.settle(images.start())
    far = tmp_path / "offered/far.raw"
    far.write_bytes(bytes(1 << 20))
    elsewhere = ImageRef("far", hashlib.sha512(far.read_bytes()).hexdigest(), "raw", f"file://{far}")

    def over(image: ImageRef) -> None:
        while images.downloads():
            reactor.turn()
        reactor.advance(0)

    return Bench(images, image, reactor.settle, elsewhere, over)


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


def test_what_the_disks_of_each_vm_take(bench: Bench) -> None:
    assert bench.used() == {}
    one, other = bench.spec(0), bench.spec(1)
    both(bench, one)
    bench.do(Do.MAKE_OVERLAY, other)
    assert set(bench.used()) == {one.vm, other.vm}
    assert all(0 < taken < SIZE for taken in bench.used().values()), "what is allocated, not what it may grow to"
    bench.do(Do.CLEAN_UP, one)
    assert set(bench.used()) == {other.vm}


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


# --- images that are fetched


def test_an_image_is_fetched_once_for_all_who_wait_and_each_is_told(bench: Bench) -> None:
    one, other = (dataclasses.replace(bench.spec(member), image=bench.elsewhere) for member in (0, 1))
    assert not bench.images.here(bench.elsewhere)
    for of in (one, other, one):
        bench.do(Do.FETCH_IMAGE, of)
    assert bench.leftovers() == {of.vm: frozenset({"download"}) for of in (one, other)}
    assert [download.sha512 for download in bench.images.downloads()] == [bench.elsewhere.sha512]
    bench.over(bench.elsewhere)
    assert sorted(bench.told) == sorted([one.vm, other.vm])
    assert bench.images.here(bench.elsewhere)
    assert bench.leftovers() == {}
    assert [file.sha512 for file in bench.files()] == [bench.elsewhere.sha512]
    bench.do(Do.MAKE_OVERLAY, one)
    assert bench.leftovers() == {one.vm: frozenset({"overlay"})}


def test_a_clean_up_ends_the_wait(bench: Bench) -> None:
    of = dataclasses.replace(bench.spec(), image=bench.elsewhere)
    bench.do(Do.FETCH_IMAGE, of)
    bench.do(Do.CLEAN_UP, of)
    assert bench.leftovers() == {}
    assert bench.images.downloads() == ()


def test_what_cannot_be_fetched_is_told_when_it_is_asked_for_again_and_once(bench: Bench) -> None:
    of = dataclasses.replace(bench.spec(), image=dataclasses.replace(bench.elsewhere, id="x", url="file:///nowhere"))
    bench.do(Do.FETCH_IMAGE, of)
    bench.over(of.image)
    assert bench.told == [of.vm]
    assert bench.fault(Do.FETCH_IMAGE, of).kind is FaultKind.REFUSED
    bench.do(Do.FETCH_IMAGE, of)
    bench.over(of.image)


def test_a_wish_that_is_no_vm_s_is_fetched_for_and_told_as_one(bench: Bench) -> None:
    one = dataclasses.replace(bench.spec(), image=bench.elsewhere)
    bench.do(Do.FETCH_IMAGE, one)
    bench.images.fetch("a wish", bench.elsewhere)
    (download,) = bench.images.downloads()
    assert download.waiting == tuple(sorted([one.vm, "a wish"]))
    assert set(bench.leftovers()) == {one.vm}
    bench.over(bench.elsewhere)
    assert "a wish" in bench.told
    assert [file.sha512 for file in bench.files()] == [bench.elsewhere.sha512]


def test_a_wish_that_is_given_up_ends_its_download(bench: Bench) -> None:
    bench.images.fetch("a wish", bench.elsewhere)
    bench.images.give_up("a wish")
    assert bench.images.downloads() == ()
    bench.images.give_up("a wish")


def test_a_wish_is_told_why_when_it_asks_again(bench: Bench) -> None:
    image = dataclasses.replace(bench.elsewhere, id="x", url="file:///nowhere")
    bench.images.fetch("a wish", image)
    bench.over(image)
    with pytest.raises(Fault) as caught:
        bench.images.fetch("a wish", image)
    assert caught.value.kind is FaultKind.REFUSED


def test_a_file_that_nobody_stands_on_is_evicted_and_no_other(bench: Bench) -> None:
    of = dataclasses.replace(bench.spec(), image=bench.elsewhere)
    bench.do(Do.FETCH_IMAGE, of)
    bench.over(of.image)
    bench.do(Do.MAKE_OVERLAY, of)
    with pytest.raises(Fault) as caught:
        bench.evict(of.image.sha512)
    assert caught.value.kind is FaultKind.BUSY
    bench.do(Do.CLEAN_UP, of)
    bench.evict(of.image.sha512)
    assert not bench.images.here(of.image)
    with pytest.raises(Fault) as caught:
        bench.evict(of.image.sha512)
    assert caught.value.kind is FaultKind.GONE


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
    bench = Bench(images, image, reactor.settle, image, lambda image: None)
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
