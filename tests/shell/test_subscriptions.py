"""Image lists kept fresh: taken, refused, kept over a restart, gone at once when the site says so."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from tests.support import imagelists
from tests.support.certificates import DAY, NOW
from tests.support.endorsing import SOURCE, Endorsing
from tests.support.imagelists import IDENTIFIER, image
from vmagent.broker.endorsers import TrustedEndorsers
from vmagent.core import walltime
from vmagent.core.model import Now
from vmagent.core.policy import ListSource, TrustPolicy
from vmagent.errors import Fault, FaultKind
from vmagent.images.subscriptions import Subscriptions

NOW_S = walltime.seconds(imagelists.NOW)
STRANGER = "/DC=org/DC=example/CN=Somebody Else"
URL = "https://images.example.org/list?token=secret"


class AtOnce:
    """Lanes whose calls are over when `run` returns."""

    def run(self, key: str, deadline_s: float, call: Callable[..., Any], *args: Any) -> Deferred[Any]:
        try:
            return succeed(call(*args))
        except Fault as error:
            return fail(error)


class Site:
    """A site with one list by URL, and an agent that may be started again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = Endorsing(folder / "ca")
        self.store = self.ca.trust()
        self.web: Dict[str, Any] = {URL: self.ca.signed(version="1")}
        self.asked: List[str] = []
        self.wall_s = NOW_S
        self.changes = 0
        self.source = dataclasses.replace(SOURCE, path="", url=URL)
        self.policy = TrustPolicy(lists=(self.source,), refresh_s=1000)
        self.start()

    def now(self) -> Now:
        return Now(self.clock.seconds(), walltime.text(self.wall_s), "boot")

    def get(self, url: str) -> Deferred[bytes]:
        self.asked.append(url)
        answer = self.web[url]
        return fail(answer) if isinstance(answer, Exception) else succeed(answer)

    def start(self, policy: Optional[TrustPolicy] = None, begin: bool = True) -> None:
        self.clock = Clock()
        lanes: Any = AtOnce()
        self.lists = Subscriptions(self.folder / "lists", TrustedEndorsers(self.store), lanes, self.clock, self,
                                   lambda: 0.5, self.get)  # fmt: skip
        if begin:
            self.done(self.lists.start(policy or self.policy, 300, self.changed))

    def changed(self) -> None:
        self.changes += 1

    def done(self, work: Any) -> None:
        failures: List[Any] = []
        Deferred.fromCoroutine(work).addErrback(failures.append)
        assert not failures, failures

    def version(self) -> str:
        return self.lists.lists[IDENTIFIER].list.version if self.lists.lists else ""

    def trouble(self) -> str:
        return self.lists.troubles.get(IDENTIFIER, "").split(":")[0]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    site.clock.advance(0)
    yield site
    site.lists.stop()
    assert not site.clock.getDelayedCalls()


def test_a_list_that_is_not_here_is_fetched_at_once_and_then_with_jitter(site: Site) -> None:
    assert (site.version(), site.lists.troubles, len(site.asked)) == ("1", {}, 1)
    site.web[URL] = site.ca.signed(version="2")
    site.clock.advance(999)
    assert site.version() == "1"
    site.clock.advance(1)
    assert site.version() == "2"
    assert site.changes >= 2


def test_a_restart_without_a_network_goes_on_with_what_was_taken(site: Site) -> None:
    site.lists.stop()
    site.web[URL] = Fault(FaultKind.BUSY, "no network")
    site.start()
    assert (site.version(), site.lists.troubles) == ("1", {})
    site.clock.advance(499)
    assert len(site.asked) == 1
    site.clock.advance(1)
    assert (site.version(), site.trouble(), len(site.asked)) == ("1", "busy", 2)


def test_what_failed_is_tried_again_sooner_and_ever_less_often(site: Site) -> None:
    site.web[URL] = Fault(FaultKind.BUSY, "no network")
    site.clock.advance(1000)
    for wait_s, asked in ((59, 2), (1, 3), (119, 3), (1, 4), (240, 5), (480, 6), (500, 7), (500, 8)):
        site.clock.advance(wait_s)
        assert len(site.asked) == asked
    site.web[URL] = site.ca.signed(version="3")
    site.clock.advance(500)
    assert (site.version(), site.lists.troubles) == ("3", {})


BAD = {
    "list-signature": lambda site: b"{}",
    "list-signer": lambda site: site.ca.signed(version="9", x509={"hv:dn": STRANGER}),
    "list-identifier": lambda site: site.ca.signed(version="9", identifier="other"),
    "list-created": lambda site: site.ca.signed(version="9", created="2026-11-25T00:00:00Z"),
    "list-expired": lambda site: site.ca.signed(version="9", expires="2026-11-02T00:00:00Z"),
    "list-rollback": lambda site: site.ca.signed(version="0"),
    "list-format": lambda site: site.ca.signed(version="9", images=[image(size=0)]),
}


@pytest.mark.parametrize("type", BAD)
def test_a_bad_newer_list_never_replaces_a_good_older_one(site: Site, type: str) -> None:
    site.web[URL] = BAD[type](site)
    site.clock.advance(1000)
    assert (site.version(), site.trouble()) == ("1", type)
    site.lists.stop()
    site.start()
    assert site.version() == "1"


def test_a_roll_back_is_seen_across_restarts(site: Site) -> None:
    site.web[URL] = site.ca.signed(version="2")
    site.clock.advance(1000)
    site.lists.stop()
    site.web[URL] = site.ca.signed(version="1")
    site.start()
    site.clock.advance(500)
    assert (site.version(), site.trouble()) == ("2", "list-rollback")


def test_a_revoked_signer_makes_the_list_void_within_a_look(site: Site) -> None:
    site.ca.revoke(site.ca.endorser)
    site.store.reload()
    site.done(site.lists.look())
    assert site.lists.lists[IDENTIFIER].void_type == site.trouble() == "certificate-revoked"
    site.ca.revoke()
    site.store.reload()
    site.done(site.lists.look())
    assert (site.lists.lists[IDENTIFIER].void_type, site.lists.troubles) == ("", {})


def test_a_revocation_list_out_of_date_is_told_and_revokes_nothing(site: Site) -> None:
    site.ca.revoke(ends=NOW + DAY)
    site.store.reload()
    site.done(site.lists.look())
    assert (site.lists.lists[IDENTIFIER].void_type, site.trouble()) == ("", "crl-expired")


def test_a_list_that_is_not_taken_any_more_is_gone_at_once(site: Site) -> None:
    site.lists.adopt(TrustPolicy(), 300)
    assert (site.lists.lists, site.lists.troubles) == ({}, {})
    assert not site.clock.getDelayedCalls()
    site.lists.adopt(site.policy, 300)
    assert site.version() == "1"


def test_new_endorsers_count_at_once(site: Site) -> None:
    other = dataclasses.replace(site.source, endorsers=(STRANGER,))
    site.lists.adopt(TrustPolicy(lists=(other,), refresh_s=1000), 300)
    assert (site.version(), site.trouble()) == ("1", "list-endorser")
    site.lists.adopt(site.policy, 300)
    assert (site.version(), site.lists.troubles) == ("1", {})


def test_a_policy_that_changes_while_a_list_is_fetched_decides_about_it(site: Site) -> None:
    waiting: Deferred[bytes] = Deferred()
    site.lists._get = lambda url: waiting
    site.clock.advance(1000)
    site.lists.adopt(TrustPolicy(), 300)
    waiting.callback(site.ca.signed(version="2"))
    assert site.lists.lists == {}


def test_a_local_file_is_read_again_when_it_changes(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "plain.json"
    file.write_bytes(imagelists.text(version="1"))
    plain = ListSource(IDENTIFIER, path=str(file), signature="none", endorsers=(imagelists.ENDORSER,))
    site.lists.adopt(TrustPolicy(lists=(plain,)), 300)
    assert site.version() == "1" and site.lists.lists[IDENTIFIER].signer == ""
    file.write_bytes(imagelists.text(version="22"))
    site.done(site.lists.look())
    assert site.version() == "22"
    file.unlink()
    site.done(site.lists.look())
    assert (site.version(), site.trouble()) == ("22", "refused")


def test_what_is_no_file_is_refused(site: Site, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", Path("/dev/zero")):
        plain = ListSource("other-list", path=str(path), signature="none", endorsers=(imagelists.ENDORSER,))
        site.lists.adopt(TrustPolicy(lists=(plain,)), 300)
        assert site.lists.troubles["other-list"].startswith("refused")


def test_a_kept_copy_that_was_damaged_is_told_and_fetched_anew(site: Site) -> None:
    site.lists.stop()
    kept = site.folder / "lists" / f"{IDENTIFIER}.list"
    assert kept.stat().st_mode & 0o777 == 0o600
    kept.write_bytes(b"damaged")
    site.start()
    assert (site.version(), site.trouble()) == ("", "list-signature")
    site.clock.advance(0)
    assert (site.version(), site.lists.troubles) == ("1", {})


def test_a_full_disk_keeps_the_list_that_is_kept(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be kept does not count: after a restart it would be a roll-back that nobody sees."""
    folder = site.folder / "lists"
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    folder.write_bytes(b"not a directory")
    site.web[URL] = site.ca.signed(version="2")
    site.clock.advance(1000)
    assert (site.version(), site.trouble()) == ("1", "refused")


def test_what_happened_is_logged_once_and_without_the_url(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vmagent.images")
    site.web[URL] = site.ca.signed(version="2")
    site.clock.advance(1000)
    site.web[URL] = b"{}"
    site.clock.advance(1000)
    site.clock.advance(1000)
    site.clock.advance(1000)
    told = [record.getMessage() for record in caplog.records]
    assert [text.split(":")[1].split()[0] for text in told] == ["version", "list-signature"]
    assert "token" not in caplog.text
