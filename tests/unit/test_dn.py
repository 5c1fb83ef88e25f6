"""Two written forms, one name; and no two names that pass for one."""

from __future__ import annotations

import random

import pytest

from vmagent.core import dn
from vmagent.core.commands import Rdns

JANE: Rdns = ((("DC", "org"),), (("DC", "example"),), (("CN", "Jane Doe"),))

PARSED = (
    ("/DC=org/DC=example/CN=Jane Doe", JANE),
    ("CN=Jane Doe,DC=example,DC=org", JANE),
    ("CN = Jane Doe , DC=example,  DC=org", JANE),
    ("cn=Jane Doe,dc=example,dc=org", JANE),
    ("commonName=Jane Doe,0.9.2342.19200300.100.1.25=example,OID.0.9.2342.19200300.100.1.25=org", None),
    ("/C=NL/O=x/CN=host/wn1.example.org", ((("C", "NL"),), (("O", "x"),), (("CN", "host/wn1.example.org"),))),
    ("/CN=a/emailAddress=a@b.c", ((("CN", "a"),), (("EMAILADDRESS", "a@b.c"),))),
    ("1.2.840.113549.1.9.1=a@b.c,CN=a", ((("CN", "a"),), (("EMAILADDRESS", "a@b.c"),))),
    ("/CN=J\\xC3\\xBCrgen", ((("CN", "J\u00fcrgen"),),)),
    ("CN=J\\C3\\BCrgen", ((("CN", "J\u00fcrgen"),),)),
    ("CN=J\u00fcrgen", ((("CN", "J\u00fcrgen"),),)),
    ("CN=a\\,b\\+c\\=d\\\\e\\\"f\\#,C=NL", ((("C", "NL"),), (("CN", 'a,b+c=d\\e"f#'),))),
    ("CN=\\ a\\ ", ((("CN", " a "),),)),
    ("CN=a\\\\ ", ((("CN", "a\\"),),)),
    ("UID=7+CN=a,C=NL", ((("C", "NL"),), (("CN", "a"), ("UID", "7")))),
    ("CN=a+UID=7,C=NL", ((("C", "NL"),), (("CN", "a"), ("UID", "7")))),
    ("/C=NL/CN=a+UID=7", ((("C", "NL"),), (("CN", "a"), ("UID", "7")))),
    ("/CN=1+1", ((("CN", "1+1"),),)),
    ("CN=", ((("CN", ""),),)),
    ("CN=a=b", ((("CN", "a=b"),),)),
)


@pytest.mark.parametrize(("text", "rdns"), [case for case in PARSED if case[1] is not None])
def test_parsed(text: str, rdns: Rdns) -> None:
    assert dn.parse(text) == rdns
    assert dn.parse(dn.rfc4514(rdns)) == rdns


@pytest.mark.parametrize(
    "text",
    ["", "/", "x", "//", "/x", "CN", "=a", ",", "CN=a,", "CN=a,,C=b", "CN=a+", "1a=b", "CN=a\\", "CN=a\\zz", "CN=\\FF",
     "/CN=\\xFF", 'CN="a"', "CN=<a>", "CN=a;C=b", "CN=a\x00", "x" * 3000, "local:root", "-CN=a", "C N=a"],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(ValueError):
        dn.parse(text)


def test_spellings_of_one_name() -> None:
    assert dn.parse(PARSED[4][0]) == JANE
    assert dn.same((((("cn"), "a"),),), ((("CommonName", "a"),),))


DIFFERENT = (
    "/DC=org/DC=example/CN=Jane Doe",
    "/DC=org/DC=example/CN=jane doe",
    "/DC=org/DC=example/CN=Jane  Doe",
    "/DC=org/DC=example/CN=Jane Doe/CN=proxy",
    "/DC=org/DC=example/O=Jane Doe",
    "/DC=example/DC=org/CN=Jane Doe",
    "/DC=example/CN=Jane Doe",
    "CN=Jane Doe+O=x,DC=example,DC=org",
    "CN=Jane Doe\\,DC\\=example,DC=org",
    "CN=/DC\\=org/DC\\=example/CN\\=Jane Doe",
    "/DC=org/DC=example/CN=J\u0430ne Doe",
)


def test_names_that_look_alike_differ() -> None:
    names = [dn.parse(text) for text in DIFFERENT]
    assert len(set(names)) == len(names)
    assert not any(dn.same(a, b) for i, a in enumerate(names) for b in names[i + 1 :])


def test_nobody_is_not_nobody() -> None:
    assert not dn.same((), ())


def test_proxies() -> None:
    for tail in ("/CN=proxy", "/CN=limited proxy", "/CN=123456", "/CN=1/CN=22/CN=proxy"):
        assert dn.without_proxy(dn.parse("/DC=org/DC=example/CN=Jane Doe" + tail)) == JANE
    assert dn.without_proxy(JANE) == JANE
    assert dn.without_proxy(dn.parse("/CN=123")) == ((("CN", "123"),),)
    assert dn.without_proxy(dn.parse("/C=NL/OU=7")) == dn.parse("/C=NL/OU=7")


def test_slash_is_what_grids_write() -> None:
    assert dn.slash(JANE) == "/DC=org/DC=example/CN=Jane Doe"
    assert dn.parse(dn.slash(JANE)) == JANE


def test_round_trip_of_any_value() -> None:
    chance = random.Random(4514)
    alphabet = 'aZ0 ,+"\\<>;=#/\u00fc\U0001f600\n'
    for _ in range(1500):
        rdns = dn.canonical(
            tuple(
                tuple(
                    (kind, "".join(chance.choice(alphabet) for _ in range(chance.randrange(6))))
                    for kind in chance.sample(["CN", "O", "DC", "UID"], chance.randrange(1, 3))
                )
                for _ in range(chance.randrange(1, 4))
            )
        )
        assert dn.parse(dn.rfc4514(rdns)) == rdns, dn.rfc4514(rdns)


def test_random_text_is_a_name_or_a_value_error() -> None:
    chance = random.Random(1)
    for _ in range(5000):
        text = "".join(chance.choice("/CN=,+\\ a2\xff\"#x") for _ in range(chance.randrange(1, 12)))
        try:
            rdns = dn.parse(text)
        except ValueError:
            continue
        assert dn.parse(dn.rfc4514(rdns)) == rdns
