"""HEPiX image lists: what is read, and every way in which a list can be none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support import imagelists
from tests.support.imagelists import MISSING, image, text
from vmagent.core.imagelist import LONGEST_LIST, parse, version_key
from vmagent.core.imagemodel import LIST, ImageRecord


def test_a_list_becomes_its_images() -> None:
    found = parse(text(version="2.1", images=[image("a", "AB" * 64), image("b", "cd" * 64, "512")]))
    assert (found.identifier, found.version, found.created_wall, found.expires_wall) == (
        imagelists.IDENTIFIER, "2.1", imagelists.CREATED, imagelists.EXPIRES,
    )  # fmt: skip
    assert (found.endorser, found.ca) == (imagelists.ENDORSER, imagelists.CA)
    assert found.images[0] == ImageRecord(
        id="a", sha512="ab" * 64, format="qcow2", source=LIST, url=imagelists.URI, size=4096,
        endorser=imagelists.ENDORSER, list=imagelists.IDENTIFIER, list_version="2.1",
    )  # fmt: skip
    assert found.image("b") is found.images[1] is found.endorses("cd" * 64)
    assert found.images[1].size == 512
    assert found.image("c") is found.endorses("ee" * 64) is None


def test_extensions_are_read_and_strangers_passed_over() -> None:
    rows = [
        image("a", **{"dc:date:expires": "2026-11-21T00:00:00Z", "dc:date:created": imagelists.CREATED,
                      "hv:format": "VMDK", "ad:vo": "atlas", "ad:mpuri": "https://x/", "hv:ram_minimum": 512}),
        image("b"),
    ]  # fmt: skip
    first, second = parse(text(images=rows, vo="cms")).images
    assert (first.expires_wall, first.format, first.vo) == ("2026-11-21T00:00:00Z", "vmdk", "atlas")
    assert (second.expires_wall, second.vo) == ("", "cms")


@pytest.mark.parametrize("uri, format", [
    ("https://x/a.QCOW2", "qcow2"), ("https://x/a.vmdk?token=a.qcow2", "vmdk"), ("https://x/a.img", "raw"),
    ("https://x/a", "raw"), ("https://x.qcow2/a", "raw"), ("https://x/a.ova", "ova"),
])  # fmt: skip
def test_without_a_format_the_ending_tells(uri: str, format: str) -> None:
    assert parse(text(images=[image(**{"hv:uri": uri})])).images[0].format == format


REQUIRED = ["dc:date:created", "dc:date:expires", "dc:identifier", "dc:description", "dc:title", "dc:source",
            "hv:version", "hv:uri", "hv:endorser", "hv:images"]  # fmt: skip
REQUIRED_X509 = ["hv:ca", "hv:dn", "hv:email", "dc:creator"]
REQUIRED_IMAGE = ["dc:title", "dc:description", "hv:size", "sl:checksum:sha512", "sl:arch", "hv:uri", "dc:identifier",
                  "sl:os", "sl:osversion", "sl:comments", "hv:hypervisor", "hv:version"]  # fmt: skip


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("given", [MISSING, None, [1], {"a": 1}], ids=["missing", "null", "list", "object"])
def test_what_the_format_requires_of_a_list(name: str, given: Any) -> None:
    with pytest.raises(ValueError, match=f"at .*{name}"):
        parse(text(**{name: given}))


@pytest.mark.parametrize("name", REQUIRED_X509)
@pytest.mark.parametrize("given", [MISSING, None, 7])
def test_what_the_format_requires_of_an_endorser(name: str, given: Any) -> None:
    with pytest.raises(ValueError, match=name):
        parse(text(x509={name: given}))


@pytest.mark.parametrize("name", REQUIRED_IMAGE)
@pytest.mark.parametrize("given", [MISSING, None, [], True])
def test_what_the_format_requires_of_an_image(name: str, given: Any) -> None:
    with pytest.raises(ValueError, match=rf"\[1\].*{name}"):
        parse(text(images=[image("a"), image("b", **{name: given})]))


WRONG = [
    ({"expires": imagelists.CREATED}, "after dc:date:created"),
    ({"created": "2026-02-30T00:00:00Z"}, "a time in UTC"),
    ({"created": "2026-11-01 00:00:00"}, "a time in UTC"),
    ({"identifier": "a b"}, "1 to 64"),
    ({"identifier": "../x"}, "1 to 64"),
    ({"version": "1\n2"}, "1 to 64"),
    ({"version": -1}, "1 to 64"),
    ({"version": True}, "1 to 64"),
    ({"x509": {"hv:dn": "nobody"}}, "a distinguished name"),
    ({"x509": {"hv:ca": "/nobody"}}, "a distinguished name"),
    ({"images": [image(size=0)]}, "bytes, 1 to"),
    ({"images": [image(size=2**50)]}, "bytes, 1 to"),
    ({"images": [image(size=1.5)]}, "bytes, 1 to"),
    ({"images": [image(size="-1")]}, "bytes, 1 to"),
    ({"images": [image(sha512="ab" * 63)]}, "128 hexadecimal"),
    ({"images": [image(sha512="zz" * 64)]}, "128 hexadecimal"),
    ({"images": [image("a"), image("a", "cd" * 64)]}, "stands twice"),
    ({"images": [image(**{"hv:uri": "golden.qcow2"})]}, "an absolute URI"),
    ({"images": [image(**{"hv:uri": "https://x/a b"})]}, "an absolute URI"),
    ({"images": [image(**{"hv:format": "qcow2 -o x"})]}, "a format's name"),
    ({"images": [image(**{"dc:date:expires": "soon"})]}, "a time in UTC"),
    ({"images": ["golden"]}, "hv:image"),
    ({"images": [{}]}, "missing"),
    ({"images": [image()] * 5001}, "at most 5000"),
    ({"vo": 7}, "ad:vo"),
]  # fmt: skip


@pytest.mark.parametrize("members, said", WRONG, ids=[f"{index}" for index, _ in enumerate(WRONG)])
def test_wrong_values_are_named_with_what_would_be_right(members: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        parse(text(**members))
    assert "hv:imagelist" in str(caught.value)


@pytest.mark.parametrize("raw", [
    b"", b"{", b"[]", b"7", b"{}", b'{"hv:imagelist": []}', b"\xff", b'{"hv:imagelist": {}, "hv:imagelist": {}}',
    b'{"hv:imagelist": {"hv:version": NaN}}', b"[" * 100000, b" " * (LONGEST_LIST + 1),
])  # fmt: skip
def test_what_is_no_list_at_all(raw: bytes) -> None:
    with pytest.raises(ValueError):
        parse(raw)


def test_any_cut_of_a_list_is_refused() -> None:
    raw = text()
    for end in range(0, len(raw) - 1, 7):
        with pytest.raises(ValueError):
            parse(raw[:end])


def test_a_list_without_images_is_a_list() -> None:
    assert parse(json.dumps(imagelists.value(images=[])).encode()).images == ()


ORDERED = ["", "a", "a1", "a2", "a10", "b", "1", "1-0", "1.0", "1.0-rc1", "1.0-1", "1.0.1", "1.1", "2.9", "2.10", "10",
           "20260102", "20260110"]  # fmt: skip


def test_versions_compare_as_hepix_tools_do() -> None:
    assert sorted(ORDERED, key=version_key) == ORDERED
    keys = [version_key(version) for version in ORDERED]
    assert all(lower < higher for lower, higher in zip(keys, keys[1:]))
    assert version_key("01") == version_key("1")
